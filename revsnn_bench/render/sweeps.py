"""Which records form a sweep: those that differ in one axis, and in the node."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Literal

from revsnn_bench.case import Case
from revsnn_bench.records import Record, Run

Axis = Literal["timesteps", "batch", "depth"]
AXES: dict[Axis, str] = {"timesteps": "T", "batch": "B", "depth": "D"}
ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Sweep:
    """Records along one axis, with everything else but the node fixed.

    Fields:
        axis: the field of `Case` that varies.
        fixed: a case of the sweep, whose other fields hold for all.
        records: sorted by the axis, then by node in order of first appearance, the standard LIF first.
    """

    axis: Axis
    fixed: Case
    records: tuple[Record, ...]

    @property
    def title(self) -> str:
        """The fixed part, such as `layer, B = 8, N = 4096, float32, cpu`."""
        return fixed_part(self.fixed, without=self.axis)


def position(record: Record, axis: Axis) -> int:
    """Returns where on the axis a record stands."""
    value: int = getattr(record.case, axis)
    return value


def fixed_part(case: Case, without: Axis | None = None) -> str:
    """Returns a point in words, without the axis that varies."""
    sizes = [f"{symbol} = {getattr(case, axis)}" for axis, symbol in AXES.items() if axis != without]
    if case.depth == 1 and without != "depth":
        sizes.remove("D = 1")
    shape = "x".join(map(str, case.shape))
    seed = [f"seed {case.seed}"] if case.seed else []
    return ", ".join([case.workload, *sizes, f"features {shape}", case.dtype, case.device, *seed])


def neurons(case: Case) -> int:
    """Returns N, batch times features."""
    return case.batch * prod(case.shape)


def variants(records: Iterable[Record]) -> list[str]:
    """Returns the nodes with their options, the standard LIF first, then by first appearance."""
    found = dict.fromkeys(record.case.variant for record in records)
    return sorted(found, key=lambda variant: variant != "lif")


def sweeps(run: Run, axis: Axis) -> list[Sweep]:
    """Returns every sweep along an axis: at least two positions with all else but the node equal."""
    rank = {variant: index for index, variant in enumerate(variants(run))}
    groups: dict[Case, list[Record]] = defaultdict(list)
    for record in run:
        groups[record.case.point.model_copy(update={axis: 1})].append(record)
    return [
        Sweep(
            axis,
            records[0].case,
            tuple(sorted(records, key=lambda record: (position(record, axis), rank[record.case.variant]))),
        )
        for records in groups.values()
        if len({position(record, axis) for record in records}) > 1
    ]


def rest(run: Run) -> list[Record]:
    """Returns the records that belong to no sweep, in the order of the run."""
    swept = {record.case for axis in AXES for sweep in sweeps(run, axis) for record in sweep.records}
    return [record for record in run if record.case not in swept]
