"""What to measure: `Case`, one point, and `Sweep`, a suite's declaration, with the table of what both are made of.

`FIELDS` has one row per field of a case and per node option that can be swept by name. Ids, the options of the command
line and of pytest, the columns of the CSV files and the headings of reports read this table.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

Device = Literal["cpu", "cuda"]
DType = Literal["float64", "float32", "float16", "bfloat16"]
Encoding = Literal["direct", "poisson", "pixels"]
Backend = Literal["torch", "fused", "auto"]
Option = str | int | float | bool | None
Parser = Callable[[str], Any]
"""One value from text; raises a `ValueError` whose message says what it must be."""

LARGEST = 2**63 - 1
"""No number of a case or a record is larger: those who read it have 64 bits."""

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")

AS_IS = "as-is"
"""The method that leaves a user's model untouched."""


def is_own(workload: str) -> bool:
    """Whether a workload names a model of the user."""
    return ":" in workload


def parse_size(text: str | int) -> int:
    """Bytes of a size with a binary unit: `4 MiB`, `1.5 GiB`, `4096 B`; in Python a whole number is bytes.

    Raises:
        ValueError: no number, or no unit among B, KiB, MiB, GiB and TiB; MB is refused because it is read as both.
    """
    match = _SIZE.fullmatch(text.strip() if isinstance(text, str) else f"{text} B")
    if match is None or match[2] not in UNITS:
        raise ValueError(
            f"`size` must be a number with B, KiB, MiB, GiB or TiB; got {text!r}. Units of 1000 and of 1024 are "
            'easily confused, and so is a number without one. Pass for example "64 MiB".'
        )
    size = float(match[1]) * UNITS[match[2]]
    if size > LARGEST:
        raise ValueError("`size` must be less than 2^63 bytes; got more. No machine has that much. Pass a smaller one.")
    return int(size)


def parse_shape(text: str) -> tuple[int, ...]:
    """Shape of one sample from its sizes joined by x: `4096`, `16x8x8`."""
    sizes = _sizes(text.split("x"))
    if not sizes:
        raise _bad_shape(text)
    return sizes


def parse_input(text: str) -> dict[str, Any]:
    """The fields of a case that a model's input gives: T, B and the features of one sample, as in `4,8,3,32,32`."""
    sizes = _sizes(text.replace("x", ",").split(","))
    if len(sizes) < 3:
        raise ValueError(
            f"`--input` must be T,B,features; got {text!r}. A model takes [T, B, *]. Pass for example 4,8,3,32,32, or "
            "4,8,1 where a sample has one number per step."
        )
    return {"timesteps": sizes[0], "batch": sizes[1], "shape": sizes[2:]}


def _sizes(texts: list[str]) -> tuple[int, ...]:
    """Whole numbers of at least 1; none at all where a text is something else."""
    words = [text.strip() for text in texts]
    if not all(word.isdecimal() and len(word) < 20 and 1 <= int(word) <= LARGEST for word in words):
        return ()
    return tuple(map(int, words))


def _bad_shape(value: Any) -> ValueError:
    return ValueError(
        f"`shape` must be one or more sizes of at least 1, joined by x; got {value!r}. It is the shape of one sample "
        "at one step, without time and batch. Pass for example 4096 or 16x8x8, in Python (4096,) or (16, 8, 8)."
    )


def number(kind: type[int] | type[float], rule: str, accepts: Callable[[Any], bool] = lambda value: True) -> Parser:
    """A parser of finite numbers of at most 64 bits that are accepted; `rule` says which."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        if text.strip().lstrip("+-").isdecimal() and (value is None or not -LARGEST <= value <= LARGEST):
            raise ValueError(f"must be {rule}, of at most 64 bits; got {shown!r}.")
        if value is None or not -LARGEST <= value <= LARGEST or not accepts(value):
            raise ValueError(f"must be {rule}; got {shown!r}.")
        return value

    return parse


def one_of(choices: Sequence[str]) -> Parser:
    """A parser of one of several words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}; got {text!r}.")
        return text

    return parse


def each(parse: Parser) -> Parser:
    """A parser of values separated by commas, as a tuple."""

    def parse_each(text: str) -> tuple[Any, ...]:
        try:
            values = tuple(parse(part.strip()) for part in text.split(",") if part.strip())
        except ValueError as error:
            raise ValueError(f"{error} Several values are separated by commas.") from None
        if not values:
            raise ValueError("must be one value or more; got none. Leave the option out for its default.")
        return values

    return parse_each


ANY = number(int, "a whole number")
WHOLE = number(int, "a whole number of at least 0", lambda value: value >= 0)
COUNT = number(int, "a whole number of at least 1", lambda value: value >= 1)
REAL = number(float, "a number")
POSITIVE = number(float, "a number above 0", lambda value: value > 0)


@dataclass(frozen=True)
class CaseField:
    """A field of `Case`, or a node option that can be swept by name.

    Args:
        name: of the field, of the CSV column, and of the options `--NAME` and `--sweep-NAME`.
        meaning: one sentence, for help texts and for the dictionary of the CSV columns.
        values: end of the help of a swept option: examples.
        heading: of a column in reports; the name if empty.
        in_id: what stands before a value in the id where the value is not the default; None where the id has a fixed
            place for the field.
        swept: whether the command line and pytest have an option for it.
        of_node: whether it is an argument of the node's constructor: part of the case's `variant`, no column.
    """

    name: str
    parse: Parser
    meaning: str
    values: str = ""
    heading: str = ""
    in_id: str | None = None
    swept: bool = True
    of_node: bool = False

    @property
    def title(self) -> str:
        """Heading of a column in reports."""
        return self.heading or self.name

    @property
    def help(self) -> str:
        """Help of an option that takes several values."""
        return f"{self.meaning.removesuffix('.')}{self.values and ', '}{self.values}."

    @property
    def is_whole(self) -> bool:
        """Whether its values are whole numbers."""
        return not self.of_node and Case.model_fields[self.name].annotation is int


def _choice(name: str, literal: Any, meaning: str, **more: Any) -> CaseField:
    choices = get_args(literal)
    return CaseField(name, one_of(choices), f"{meaning}: {', '.join(choices)}.", **more)


FIELDS = (
    CaseField("node", str, "Registry name of the node.", "such as lif,revlif; every node but if and plif by default"),
    CaseField("workload", str, "What the node is put into: layer, a network, or package.module:callable."),
    CaseField("timesteps", COUNT, "T, the number of time steps.", "such as 4,8,16", "T"),
    CaseField("batch", COUNT, "B, samples per step.", "such as 1,8", "B"),
    CaseField("shape", parse_shape, "Features of one sample, sizes joined by x.", "such as 4096,16x8x8", "features"),
    CaseField("depth", COUNT, "D, blocks stacked.", "such as 1,4", "D"),
    _choice("dtype", DType, "Floating-point type of input, state and parameters"),
    _choice("device", Device, "Device that the case runs on"),
    CaseField("seed", ANY, "Seed of parameters and input.", "such as 0,1,2", in_id="seed"),
    CaseField(
        "epochs", WHOLE, "Epochs of training before the test; 0 where the run sets them.", in_id="epochs", swept=False
    ),
    CaseField("learning_rate", POSITIVE, "Highest learning rate of the training's schedule.", in_id="lr", swept=False),
    _choice(
        "encoding",
        Encoding,
        "Input of a network, the image at every step, spikes at a rate of its brightness, or a pixel per step",
        in_id="",
    ),
    CaseField("groups", COUNT, "Number of groups of the coupled nodes.", "such as 2,4,8", of_node=True),
    CaseField("alpha", REAL, "Reset strength of the coupled nodes, in (0, 1).", "such as 0.25,0.5", of_node=True),
    CaseField("tau", REAL, "Membrane time constant, in steps.", "such as 2,4", of_node=True),
    _choice("backend", Backend, "Backend of the nodes that have several", of_node=True),
)
"""A new field of `Case` is a row here; it shows in ids where it is not the default, and gets a column and a heading."""

CASE_FIELDS = tuple(row for row in FIELDS if not row.of_node)
"""What tells two cases apart, with the node's options."""


class Case(BaseModel):
    """One point of a sweep, frozen and hashable, with a stable readable id.

    Args: as in `FIELDS`, and
        node_options: constructor arguments of the node that differ from its defaults.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: str
    workload: str = "layer"
    timesteps: int = Field(default=8, ge=1)
    batch: int = Field(default=8, ge=1)
    shape: tuple[int, ...] = (4096,)
    depth: int = Field(default=1, ge=1)
    dtype: DType = "float32"
    device: Device = "cpu"
    node_options: tuple[tuple[str, Option], ...] = ()
    seed: int = 0
    epochs: int = Field(default=0, ge=0)
    learning_rate: float = Field(default=1e-2, gt=0)
    encoding: Encoding = "direct"

    @field_validator("shape", mode="before")
    @classmethod
    def _shape_of_a_single_size(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @field_validator("shape")
    @classmethod
    def _shape_is_positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1:
            raise _bad_shape(value)
        return value

    @field_validator("node_options", mode="before")
    @classmethod
    def _options_in_a_stable_order(cls, value: Any) -> Any:
        try:
            pairs = value.items() if isinstance(value, dict) else value
            return tuple(sorted((str(name), option) for name, option in pairs))
        except TypeError:
            raise ValueError("must be pairs of a name and a value") from None

    @property
    def options(self) -> dict[str, Option]:
        """Constructor arguments of the node, as keywords."""
        return dict(self.node_options)

    @property
    def variant(self) -> str:
        """The node with its options: what a row of a comparison is called."""
        if not self.node_options:
            return self.node
        return f"{self.node}[{','.join(f'{name}={option}' for name, option in self.node_options)}]"

    @property
    def features(self) -> str:
        """The shape as text, such as `16x8x8`."""
        return "x".join(map(str, self.shape))

    @property
    def size(self) -> str:
        """Timesteps, batch, features and depth, such as `T16-B8-N65536`."""
        depth = f"-D{self.depth}" if self.depth > 1 else ""
        return f"T{self.timesteps}-B{self.batch}-N{self.features}{depth}"

    @property
    def place(self) -> tuple[str, ...]:
        """Everything but the node: workload, size, dtype, device, and what else differs from its default."""
        others = [f"{row.in_id}{self.value(row)}" for row in self._others()]
        return self.workload, self.size, self.dtype, self.device, *reversed(others)

    @property
    def id(self) -> str:
        """Stable readable name, such as `layer/revlif/T16-B8-N65536/float32/cpu`."""
        workload, *rest = self.place
        return "/".join([workload, self.variant, *rest])

    @property
    def others(self) -> list[str]:
        """Fields without a fixed place in headings, where they differ from their default: `seed 1`, `epochs 12`."""
        return [f"{row.title} {self.value(row)}" for row in self._others()]

    def _others(self) -> list[CaseField]:
        defaults = Case.model_fields
        return [r for r in CASE_FIELDS if r.in_id is not None and self.value(r) != defaults[r.name].default]

    def value(self, row: CaseField) -> int | float | str:
        """The value of a field as tables show it: the shape as text."""
        value: int | float | str = self.features if row.name == "shape" else getattr(self, row.name)
        return value

    @property
    def reference(self) -> str:
        """The node that ratios are taken against: the standard LIF, or a user's model as it is."""
        return AS_IS if is_own(self.workload) else "lif"

    @property
    def point(self) -> "Case":
        """The same case with its `reference`; the standard LIF is on the same backend."""
        backend = tuple(option for option in self.node_options if option[0] == "backend")
        kept = () if self.reference == AS_IS else backend
        return self.model_copy(update={"node": self.reference, "node_options": kept})

    def __str__(self) -> str:
        return self.id


Preset = Literal["smoke", "quick", "full"]
Axes = Mapping[str, Sequence[Any]]
"""Values by axis: a field of a case, or else an argument of the node's constructor."""

_SMOKE_SIZE, _SMOKE_BATCH = 8, 2


class Sweep:
    """A suite's declaration: the axes it sweeps, for a quick and for a full run, and what stays fixed.

    Args:
        quick: values by axis for a run of minutes.
        full: values by axis that replace those of `quick` in a long run.
        workload: registry name of the workload.
        nodes: registry names to compare; None for those that the caller gives.
        fixed: values of the axes that are not swept.
    Raises:
        ValueError: one string in place of several nodes or values.
    """

    def __init__(
        self,
        quick: Axes,
        full: Axes | None = None,
        workload: str = "layer",
        nodes: Sequence[str] | None = None,
        **fixed: Any,
    ) -> None:
        self.quick, self.full, self.workload, self.nodes, self.fixed = quick, full or {}, workload, nodes, fixed
        for name, values in {"nodes": nodes, **quick, **self.full}.items():
            if isinstance(values, str):
                raise ValueError(
                    f"`{name}` of a sweep must be a sequence of values; got the string {values!r}. "
                    f"It would be taken letter by letter. Write ({values!r},)."
                )

    def cases(
        self,
        preset: Preset,
        overrides: Axes,
        all_nodes: Sequence[str],
        nodes: Sequence[str] | None = None,
        takes: Callable[[str, str, Any], bool] = lambda node, option, value: True,
        stacks: Callable[[str], bool] = lambda workload: True,
    ) -> list[Case]:
        """Every case, point by point, the nodes of one point next to each other.

        Args:
            preset: "smoke" shrinks every case, trains nothing, and takes one value per axis; "quick" and "full" are
                as declared.
            overrides: values by axis that the user gave. They replace the values of a swept axis; of an axis that
                this suite keeps fixed, the first is taken. Shapes are those that this suite's workload reads; where
                it reads none of them there is no case.
            all_nodes: for sweeps that name none.
            nodes: nodes that the user asked for; of these, a sweep that names its nodes takes the ones it names.
            takes: whether a node, by name, takes a value that the user gave for an option; where it does not, the
                node is measured once, without that option.
            stacks: whether a workload is made of so many blocks; one that is not has no depth of the user's, and is
                measured once where this suite sweeps the depth.
        """
        overrides = {**overrides}
        if "shape" in overrides and "workload" not in overrides:
            overrides["shape"] = [each for each in overrides["shape"] if self.reads(each)]
            if not overrides["shape"]:
                return []
        axes = {**self.quick, **(self.full if preset == "full" else {})}
        axes |= {name: values for name, values in overrides.items() if name in axes}
        fixed = {**self.fixed, **{name: values[0] for name, values in overrides.items() if name not in axes}}
        if preset == "smoke":
            axes = {name: values[:1] for name, values in axes.items()}
        chosen = [node for node in (nodes or self.nodes or all_nodes) if self.nodes is None or node in self.nodes]
        points = [{**fixed, **dict(zip(axes, values, strict=True))} for values in product(*axes.values())]

        def case(node: str, point: Mapping[str, Any]) -> Case:
            fields = {name: value for name, value in point.items() if name in Case.model_fields}
            options = {
                name: value
                for name, value in point.items()
                if name not in fields and (name not in overrides or takes(node, name, value))
            }
            made = Case.model_validate({"node": node, "workload": self.workload, "node_options": options, **fields})
            varies = "depth" in axes or "depth" in overrides
            return made.model_copy(update={"depth": 1}) if varies and not stacks(made.workload) else made

        cases = list(dict.fromkeys(case(node, point) for point in points for node in chosen))
        return [_shrunk(each) for each in cases] if preset == "smoke" else cases

    def reads(self, shape: Sequence[int]) -> bool:
        """Whether the workload takes so many sizes as a shape has: any by a layer, as many as its own by another."""
        own = self.fixed.get("shape") or next(iter(self.quick.get("shape", ())), shape)
        return self.workload == "layer" or len(own) == len(shape)


def _shrunk(case: Case) -> Case:
    shape = tuple(min(size, _SMOKE_SIZE) for size in case.shape)
    return case.model_copy(update={"batch": min(case.batch, _SMOKE_BATCH), "shape": shape, "epochs": 0})
