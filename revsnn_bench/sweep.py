"""From a declared sweep to its cases: what a suite states, what the user overrides, in one place."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from revsnn_bench.case import Case

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
