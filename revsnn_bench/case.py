"""Sizes in bytes as people write them: `4 MiB`, `1.5 GiB`, `4096`.

What to measure: one node in one workload at one size, frozen, hashable, with a stable readable id.

From a declared sweep to its cases: what a suite states, what the user overrides, in one place.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")


def parse_size(text: str | int) -> int:
    """Bytes of a size with a binary unit.

    Raises:
        ValueError: no number, or a unit other than B, KiB, MiB, GiB and TiB; MB is refused because it is read as both.
    """
    match = _SIZE.fullmatch(str(text).strip())
    if match is None or match[2] not in UNITS:
        raise ValueError(
            f"`size` must be a number with B, KiB, MiB, GiB or TiB; got {text!r}. Units of 1000 and of 1024 are "
            'easily confused. Pass for example "64 MiB".'
        )
    return int(float(match[1]) * UNITS[match[2]])


Device = Literal["cpu", "cuda"]
DType = Literal["float64", "float32", "float16", "bfloat16"]
Encoding = Literal["direct", "poisson"]
Option = str | int | float | bool | None


class Case(BaseModel):
    """One point of a sweep: node x workload x timesteps x batch x depth x dtype x device.

    Args:
        node: registry name of the node, such as `lif` or `revlif`; see `revsnn-bench nodes`.
        workload: registry name of the workload: `layer` (one node, nothing else) or a network.
        timesteps: T, the number of time steps.
        batch: B, samples per step.
        shape: features of one sample, such as `(65536,)` or `(16, 8, 8)`.
        depth: number of blocks, for workloads that stack them.
        dtype: floating-point type of input, state and parameters.
        device: where the case runs.
        node_options: constructor arguments of the node that differ from its defaults.
        seed: seeds the parameters and the input.
        epochs: passes over the training data before the test; 0 leaves it to the settings of the run.
        encoding: how a network is shown an image: the same at every step, or as random spikes at a rate of its
            brightness.
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
    encoding: Encoding = "direct"

    @field_validator("shape", mode="before")
    @classmethod
    def _shape_of_a_single_size(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @field_validator("shape")
    @classmethod
    def _shape_is_positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1:
            raise ValueError(
                f"`shape` must be one or more sizes of at least 1; got {value}. It is the shape of one "
                "sample at one step, without time and batch. Pass for example (4096,) or (16, 8, 8)."
            )
        return value

    @field_validator("node_options", mode="before")
    @classmethod
    def _options_in_a_stable_order(cls, value: Any) -> Any:
        pairs = value.items() if isinstance(value, dict) else value
        return tuple(sorted((str(name), option) for name, option in pairs))

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
    def size(self) -> str:
        """Timesteps, batch, features and depth: the point of the sweep."""
        depth = f"-D{self.depth}" if self.depth > 1 else ""
        return f"T{self.timesteps}-B{self.batch}-N{'x'.join(map(str, self.shape))}{depth}"

    @property
    def id(self) -> str:
        """Stable readable name, such as `layer/revlif/T16-B8-N65536/float32/cpu`."""
        seed = f"/seed{self.seed}" if self.seed else ""
        epochs = f"/epochs{self.epochs}" if self.epochs else ""
        encoding = "" if self.encoding == "direct" else f"/{self.encoding}"
        return f"{self.workload}/{self.variant}/{self.size}/{self.dtype}/{self.device}{encoding}{epochs}{seed}"

    @property
    def point(self) -> "Case":
        """The same case with the standard LIF on the same backend: what ratios are taken against."""
        backend = tuple(option for option in self.node_options if option[0] == "backend")
        return self.model_copy(update={"node": "lif", "node_options": backend})

    def __str__(self) -> str:
        return self.id


Preset = Literal["smoke", "quick", "full"]
Axes = Mapping[str, Sequence[Any]]

CASE_AXES = ("timesteps", "batch", "depth", "shape", "dtype", "device", "seed", "epochs", "encoding")
"""Axes that are fields of a case; any other axis, such as `groups`, is a constructor argument of the node."""

_SMOKE_SIZE, _SMOKE_BATCH = 8, 2


@dataclass(frozen=True)
class Sweep:
    """A suite's declaration: the axes it sweeps, for a quick and for a full run, and what stays fixed.

    Args:
        quick: values by axis for a run of minutes.
        full: values by axis that replace those of `quick` in a long run.
        workload: registry name of the workload.
        nodes: registry names to compare; None for every registered node.
        fixed: values of the axes that are not swept.
    Raises:
        ValueError: one string in place of several nodes or values.
    """

    quick: Axes
    full: Axes = field(default_factory=dict)
    workload: str = "layer"
    nodes: Sequence[str] | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in {"nodes": self.nodes, **self.quick, **self.full}.items():
            if isinstance(values, str):
                raise ValueError(
                    f"`{name}` of a sweep must be a sequence of values; got the string {values!r}. "
                    f"It would be taken letter by letter. Write ({values!r},)."
                )

    @classmethod
    def of_marker(cls, quick: Axes, full: Axes | None = None, workload: str = "layer",
                  nodes: Sequence[str] | None = None, **fixed: Any) -> "Sweep":  # fmt: skip
        """The sweep of `@pytest.mark.sweep(...)`; unnamed keywords are fixed values."""
        return cls(quick=quick, full=full or {}, workload=workload, nodes=nodes, fixed=fixed)

    def cases(
        self,
        preset: Preset,
        overrides: Axes,
        all_nodes: Sequence[str],
        nodes: Sequence[str] | None = None,
        takes: Callable[[str, str, Any], bool] = lambda node, option, value: True,
    ) -> list[Case]:
        """Every case, point by point, the nodes of one point next to each other.

        Args:
            preset: "smoke" shrinks every case, trains nothing, and takes one value per axis; "quick" and "full" are
                as declared.
            overrides: values by axis that the user gave. They replace the values of a swept axis; of an axis that
                this suite keeps fixed, the first is taken.
            all_nodes: every registered node, for sweeps that name none.
            nodes: nodes that the user asked for; of these, a sweep that names its nodes takes the ones it names.
            takes: whether a node, by name, takes a value that the user gave for an option; where it does not, the
                node is measured once, without that option.
        """
        axes = {**self.quick, **(self.full if preset == "full" else {})}
        axes |= {name: values for name, values in overrides.items() if name in axes}
        fixed = {**self.fixed, **{name: values[0] for name, values in overrides.items() if name not in axes}}
        if preset == "smoke":
            axes = {name: values[:1] for name, values in axes.items()}
        chosen = [node for node in (nodes or self.nodes or all_nodes) if self.nodes is None or node in self.nodes]
        points = [{**fixed, **dict(zip(axes, values, strict=True))} for values in product(*axes.values())]
        cases = [self._case(node, _taken(node, point, overrides, takes)) for point in points for node in chosen]
        cases = list(dict.fromkeys(cases))
        return [_shrunk(case) for case in cases] if preset == "smoke" else cases

    def _case(self, node: str, point: Mapping[str, Any]) -> Case:
        fields = {name: value for name, value in point.items() if name in CASE_AXES}
        options = {name: value for name, value in point.items() if name not in CASE_AXES}
        return Case(node=node, workload=self.workload, node_options=options, **fields)  # type: ignore[arg-type]


def _taken(
    node: str, point: Mapping[str, Any], overrides: Axes, takes: Callable[[str, str, Any], bool]
) -> Mapping[str, Any]:
    """A point without the options that the user gave and the node does not take."""
    options = [name for name in overrides if name in point and name not in CASE_AXES]
    refused = {name for name in options if not takes(node, name, point[name])}
    return {name: value for name, value in point.items() if name not in refused}


def _shrunk(case: Case) -> Case:
    shape = tuple(min(size, _SMOKE_SIZE) for size in case.shape)
    return case.model_copy(update={"batch": min(case.batch, _SMOKE_BATCH), "shape": shape, "epochs": 0})
