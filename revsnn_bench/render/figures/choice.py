"""Which points of a run the figures show: per workload, dtype and device the one that says most."""

from collections import defaultdict

from revsnn_bench.case import Case
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.render.sweeps import neurons

MOST_POINTS = 3


def points_by_setting(run: Run) -> list[tuple[Case, dict[str, Record]]]:
    """Returns the point with most nodes that are right, then the largest one, of each setting.

    Returns:
        Pairs of the point (its standard LIF) and the records there by node, latest record of each; only
        cases that ended as `ok` and whose memory was measured. Settings with most nodes first.
    """
    points: dict[Case, dict[str, Record]] = defaultdict(dict)
    for record in run:
        if record.status is Status.OK and record.memory is not None:
            points[record.case.point][record.case.variant] = record
    best: dict[tuple[str, str, str], Case] = {}
    for point in sorted(points, key=lambda p: (len(points[p]), weight(p))):
        best[point.workload, point.dtype, point.device] = point
    chosen = [point for point in best.values() if len(points[point]) > 1]
    chosen.sort(key=lambda p: -len(points[p]))
    return [(point, points[point]) for point in chosen]


def weight(point: Case) -> int:
    """Returns how much work a point is: steps times neurons times depth."""
    return point.timesteps * neurons(point) * point.depth
