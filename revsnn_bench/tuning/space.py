"""What a study searches: an axis per parameter, as text and as Optuna suggests from it, and the case of a choice."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from revsnn_bench.case import Case, Device, DType, Encoding, Option

if TYPE_CHECKING:
    import optuna

Objective = Literal["accuracy", "peak", "time"]
OBJECTIVES: dict[str, Literal["maximize", "minimize"]] = {
    "accuracy": "maximize",
    "peak": "minimize",
    "time": "minimize",
}
"""What can be asked for, and its direction as Optuna names it."""

Params = Mapping[str, Option]
_WORDS: dict[str, Option] = {"true": True, "false": False, "none": None}
_DIGITS = 3
"""Significant digits of a sampled number: more would make ids long and change nothing."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; with `log` each octave is as likely as another."""

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}{':log' if self.log else ''}"

    @property
    def values(self) -> tuple[Option, ...]:
        """Its ends."""
        return self.low, self.high

    def nearest(self, value: Option) -> Option:
        """The value itself where it lies inside, else the end that is nearer."""
        return min(max(float(value or 0), self.low), self.high)

    def suggested(self, trial: "optuna.Trial", name: str) -> Option:
        """What Optuna suggests, rounded."""
        value = trial.suggest_float(name, self.low, self.high, log=self.log)
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Choice:
    """Some values."""

    values: tuple[Option, ...]

    def __str__(self) -> str:
        return ",".join(map(_word, self.values))

    def nearest(self, value: Option) -> Option:
        """The value itself where it is one of them, else the first."""
        return value if value in self.values else self.values[0]

    def suggested(self, trial: "optuna.Trial", name: str) -> Option:
        """What Optuna suggests."""
        chosen: Option = trial.suggest_categorical(name, self.values)
        return chosen


Axis = Range | Choice


def parse_value(text: str) -> Option:
    """A value from text: a number, true, false, none, or the text itself."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parse_axis(text: str) -> Axis:
    """An axis from text: `0.1..0.9`, `1..8:log`, or values such as `2,4,8`; one value fixes the parameter."""
    ends, colon, scale = text.strip().partition(":")
    low, dots, high = ends.partition("..")
    if not dots and not colon:
        values = tuple(parse_value(part.strip()) for part in text.split(",") if part.strip())
        if values:
            return Choice(tuple(dict.fromkeys(values)))
    try:
        bounds = float(low), float(high)
    except ValueError:
        bounds = (math.nan, math.nan)
    log = scale == "log"
    in_order = bounds[0] < bounds[1] < math.inf and bounds[0] > (0 if log else -math.inf)
    if not (dots and scale in ("", "log") and in_order):
        raise ValueError(
            f"`--space` must give LOW..HIGH, LOW..HIGH:log or values separated by commas; got {text!r}. LOW must lie "
            "below HIGH, and above 0 for log. Pass for example tau=1.1..8:log or groups=2,4,8."
        )
    return Range(*bounds, log)


def _word(value: Option) -> str:
    word = next((text for text, each in _WORDS.items() if each is value), None)
    return word or (repr(value) if isinstance(value, float) else str(value))


@dataclass(frozen=True)
class Parameter:
    """Something that can be searched.

    Args:
        name: of the field of a case, or of the node's option.
        usual: where it is searched unless the user says otherwise; None where it is left alone.
        default: the value of the first trials.
    """

    name: str
    usual: Axis | None
    default: Option
    meaning: str

    def applies(self, node: str) -> bool:
        """Whether a node has it, as every node has the fields of the case."""
        return self.name in Case.model_fields or argument_of(self.name) in arguments_of(node)


PARAMETERS: tuple[Parameter, ...] = (
    Parameter("learning_rate", Range(1e-3, 3e-2, log=True), 1e-2, "Highest learning rate of the schedule."),
    Parameter("timesteps", None, 4, "T, the number of time steps."),
    Parameter("tau", Range(1.1, 8.0, log=True), 2.0, "Membrane time constant, in steps."),
    Parameter("v_threshold", Range(0.25, 2.0, log=True), 1.0, "Membrane value at which a neuron fires."),
    Parameter("slope", Range(1.0, 10.0, log=True), 4.0, "Sharpness alpha of the surrogate."),
    Parameter("surrogate", None, "Sigmoid", "Class of the surrogate."),
    Parameter("decay_input", None, True, "Whether the input is divided by tau."),
    Parameter("alpha", Range(0.05, 0.95), 0.5, "Reset strength of the coupled nodes."),
    Parameter("beta", Range(0.05, 2.0, log=True), 1.0, "Weight of the partner's input in a coupled output."),
    Parameter("groups", Choice((2, 4, 8)), 2, "Number of groups of the coupled nodes."),
    Parameter("epsilon", Choice((1 / 16, 1 / 64, 1 / 256)), 1 / 16, "Scale of the carried input."),
)
BY_NAME = {each.name: each for each in PARAMETERS}


def argument_of(option: str) -> str:
    """The argument of a node's constructor that an option is, or is a part of."""
    return "surrogate_function" if option in ("slope", "surrogate") else option


def arguments_of(node: str) -> frozenset[str]:
    """Names of what a node's constructor takes; those of its strategy are the node's."""
    from revsnn_bench.models.peers import factory_of

    return frozenset(signature(factory_of(node)).parameters)


class StudySettings(BaseModel):
    """All that decides which trials a study has, and what it finds; equal ones give equal trials.

    Args:
        nodes: registry names, with strategies; the defaults of each are its first trials, those of the first node are
            what the best are compared with.
        space: axis by parameter, as text; what is missing is `PARAMETERS`' own, and an axis of one value is fixed.
        options: node options that every trial has, where its node takes them.
        budget_bytes: largest peak of a training step; None for none.
        objective: what is asked for; bytes are held to the budget in any case.
        drift_tolerance: largest gradient error that a node may predict of itself.
        firing: lowest and highest share of spikes that a network may have after its first epoch.
        retrain: how many of the best are trained again, on `seeds` seeds after the study's own.
        Others: as in `Case`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workload: str = "vgg11@0.25"
    nodes: tuple[str, ...] = ("lif", "lif-carrier", "revlif", "revlif-anchored")
    space: dict[str, str] = Field(default_factory=dict)
    options: dict[str, Option] = Field(default_factory=dict)
    timesteps: int = Field(default=4, ge=1)
    batch: int = Field(default=64, ge=1)
    shape: tuple[int, ...] = (1, 8, 8)
    encoding: Encoding = "direct"
    dtype: DType = "float32"
    device: Device = "cpu"
    epochs: int = Field(default=12, ge=1)
    objective: tuple[Objective, ...] = ("accuracy", "peak", "time")
    budget_bytes: int | None = Field(default=None, ge=1)
    drift_tolerance: float = Field(default=1e-3, gt=0)
    firing: tuple[float, float] = (0.005, 0.9)
    trials: int = Field(default=40, ge=1)
    seed: int = Field(default=0, ge=0)
    retrain: int = Field(default=3, ge=0)
    seeds: int = Field(default=5, ge=2)

    @field_validator("space", mode="before")
    @classmethod
    def _space_is_known(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """Each axis in its one spelling; Python may give a sequence of values, or a pair of bounds as text."""
        unknown = sorted(set(given) - set(BY_NAME) - {"node"})
        if unknown:
            raise ValueError(
                f"`space` must name parameters among {', '.join(BY_NAME)}; got {', '.join(unknown)}. Fixed options of "
                "the node go into --option."
            )
        if "node" in given:
            raise ValueError("`space` must not name the node; got node. Pass --node with several, such as lif,revlif.")
        return {
            name: str(parse_axis(axis) if isinstance(axis, str) else Choice(tuple(axis)))
            for name, axis in given.items()
        }

    @field_validator("nodes", "objective")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError(f"must name each at least and at most once; got {', '.join(value) or 'none'}.")
        return value

    def require_sound(self) -> None:
        """A ValueError for a parameter or an option that no node has, and where no network is made of a value."""
        from revsnn_bench.models.workloads import network

        taken = frozenset[str]().union(*map(arguments_of, self.nodes))
        of_case = BY_NAME.keys() & Case.model_fields.keys()
        for name in (*self.space, *self.options):
            if name not in of_case and argument_of(name) not in taken:
                raise ValueError(
                    f"`{name}` must be an argument of a node in the study; got it for {', '.join(self.nodes)}. None of "
                    "them would be changed by it. Leave it out, or name a node that has it."
                )
        for node in self.nodes:
            defaults = self.defaults(node)
            network(self.case(defaults), classes=10)
            for name, axis in self.axes(node).items():
                usual = BY_NAME[name].default
                if isinstance(axis, Range) and not isinstance(usual, float):
                    raise ValueError(
                        f"`{name}` must be searched among values separated by commas; got {axis}. A range has numbers "
                        f"between whole ones. Pass for example {name}={_word(usual)}."
                    )
                for value in axis.values if name in self.space else ():
                    network(self.case(defaults | {name: value}), classes=10)

    def axes(self, node: str) -> dict[str, Axis]:
        """What is searched for a node, by parameter."""
        found: dict[str, Axis] = {}
        for each in PARAMETERS:
            axis = parse_axis(self.space[each.name]) if each.name in self.space else each.usual
            if axis is not None and each.name not in self.options and each.applies(node):
                found[each.name] = axis
        return found

    def defaults(self, node: str) -> dict[str, Option]:
        """The first trial of a node: what every parameter is where nobody tunes it, or the nearest that is searched."""
        usual = {each.name: each.default for each in PARAMETERS} | {"timesteps": self.timesteps}
        return {"node": node} | {name: axis.nearest(usual[name]) for name, axis in self.axes(node).items()}

    def suggested(self, trial: "optuna.Trial") -> dict[str, Option]:
        """A choice: the node, then what it has."""
        node = Choice(self.nodes).suggested(trial, "node")
        return {"node": node} | {name: axis.suggested(trial, name) for name, axis in self.axes(str(node)).items()}

    def case(self, params: Params, seed: int | None = None) -> Case:
        """The case of a choice, with the study's seed or another."""
        known = arguments_of(str(params["node"]))
        fields = self.model_dump(include={*Case.model_fields})
        options = {name: value for name, value in self.options.items() if argument_of(name) in known}
        for name, value in params.items():
            (fields if name in Case.model_fields else options)[name] = value
        return Case.model_validate(fields | {"node_options": options} | ({} if seed is None else {"seed": seed}))

    @property
    def fresh_seeds(self) -> Sequence[int]:
        """Seeds that no trial has seen."""
        return range(self.seed + 1, self.seed + 1 + self.seeds)
