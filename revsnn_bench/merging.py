"""Several runs as one: the shards of a sweep, an interrupted run and the rest of it.

A ratio has both of its values from one environment, so that parts of different environments, code or settings are
refused. What was measured twice must agree in every exact value.
"""

from collections.abc import Sequence

from revsnn_bench.metrics import METRICS
from revsnn_bench.records import Environment, Record, Run
from revsnn_bench.runs import JournalError, condition_differences, in_order_of_plan


class NotMergeable(JournalError):
    """The parts are not parts of one run."""


def merged(parts: Sequence[Run], run_id: str, command: Sequence[str] = ()) -> Run:
    """Joins runs into one, which is complete where every case that a part planned has a record.

    Args:
        parts: finished or not; the order of their cases is that of the plan.
        run_id: name of the joined run.
        command: what asked for it, for the record.
    Raises:
        NotMergeable: there is no part; two parts have another environment, code or settings, or a case with other
            results.
    """
    if not parts:
        raise NotMergeable("`parts` must be at least one run; got none. Name the runs of the shards.")
    first = parts[0].header
    for part in parts[1:]:
        if differences := condition_differences(first, part.header):
            raise NotMergeable(
                f"{part.header.run_id!r} cannot be merged with {first.run_id!r}: {differences}. A ratio has both of "
                "its values from one environment. Measure all parts in one, or report them one by one."
            )
    hosts: dict[str, Environment] = {}
    records: dict[str, tuple[str, Record]] = {}
    for part in parts:
        for name, environment in part.hosts.items():
            if hosts.setdefault(name, environment) != environment:
                raise NotMergeable(
                    f"{part.header.run_id!r} cannot be merged: its host {name!r} is not the {name!r} of another part, "
                    "and times of both would stand under one name. Report the parts one by one."
                )
        for record in part:
            before = records.setdefault(record.case.id, (part.header.run_id, record))
            _require_agreement(*before, part.header.run_id, record)
    planned = tuple(dict.fromkeys(case for part in parts for case in part.planned or ()))
    known = all(part.planned is not None for part in parts)
    began = min(part.header.started_at for part in parts)
    update = {"run_id": run_id, "started_at": began, "command": tuple(command) or first.command}
    run = Run(
        header=first.model_copy(update=update),
        hosts=hosts,
        planned=planned,
        complete={*planned} <= {*records} if known else all(part.complete for part in parts),
        records=tuple(record for _, record in records.values()),
    )
    return in_order_of_plan(run).model_copy(update={} if known else {"planned": None})


def _require_agreement(one: str, before: Record, other: str, after: Record) -> None:
    """Stops where a case has other exact values in another part; NaN agrees with NaN."""
    if before is after:
        return
    names = ["status"] if before.status is not after.status else []
    for metric in METRICS:
        values = metric.read(before), metric.read(after)
        if metric.deterministic and repr(values[0]) != repr(values[1]):
            names.append(metric.name)
    if names:
        raise NotMergeable(
            f"{before.case.id} was measured in {one!r} and in {other!r}, and differs in {', '.join(names[:3])}. One of "
            "the two is not of this sweep, or the machine changed. Leave one of them out."
        )
