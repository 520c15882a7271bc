"""The claims about operations and time, and the inverse held against stored activations."""

from statistics import median

from revsnn_bench.claims.finding import NO_VERDICT, Verdict, by, listed
from revsnn_bench.metric_readers import step_samples
from revsnn_bench.metrics import BY_NAME
from revsnn_bench.records import Record
from revsnn_bench.render import units
from revsnn_bench.render.ratios import Ratio, ratio_of_medians

FEWER_FLOPS = 0.23
LESS_TIME = 0.238
Judged = tuple[str, str, Verdict, str]


def fewer_flops(records: list[Record]) -> Judged:
    """1 - backward(revlif) / backward(revlif-revnet), recomputation included."""
    metric = BY_NAME["backward_recompute_flops"]
    savings, parts = [], []
    for new, old in _pairs(records):
        flops = [metric.read(new), metric.read(old)]
        assert flops[0] is not None
        assert flops[1]
        savings.append(1 - flops[0] / flops[1])
        shown = [units.number(metric, value) for value in flops]
        parts.append(f"{_name(new)}: {units.percent(savings[-1])} ({shown[0]} against {shown[1]})")
    conditions = f"{_conditions(records)}; backward with all it runs again, 1 MAC = 2 FLOPs"
    return conditions, "; ".join(parts), *_verdict(savings, FEWER_FLOPS)


def less_time(records: list[Record]) -> Judged:
    """The same in step time, each side divided by the standard LIF of its own rounds."""
    savings, parts = [], []
    for new, old in _pairs(records):
        saved = _time_saving(new, old)
        # A saving that its own interval does not tell from none is none.
        savings.append(saved.value if saved.low is None or saved.low > 0 else 0.0)
        interval = (
            "" if saved.low is None or saved.high is None else f" [{100 * saved.low:.1f}, {100 * saved.high:.1f}]"
        )
        parts.append(f"{_name(new)}: {units.percent(saved.value)}{interval}")
    threads = {record.time.threads for record in records if record.time is not None}
    conditions = f"{_conditions(records)}; step time, {listed(threads)} threads, each against lif in the same rounds"
    return conditions, "; ".join(parts), *_verdict(savings, LESS_TIME)


def inverse_checked(records: list[Record]) -> Judged:
    """How many steps come back, from the last one, in each dtype and T."""
    parts, complete = [], []
    for dtype in ("float32", "float64"):
        shown = []
        for record in by(records, node="revlif", dtype=dtype):
            assert record.fidelity is not None
            steps, back = record.case.timesteps, record.fidelity.recovered_steps
            if back is None:
                return "", "a record of revlif does not say how many steps came back", Verdict.OPEN, NO_VERDICT
            complete.append(back == steps)
            shown.append(f"{back} of {steps}")
        parts.append(f"{dtype}: {listed(shown)}")
    case = records[0].case
    conditions = (
        f"one layer of revlif, B = {case.batch}, {case.shape[0]} features; input and membrane, rtol = atol = 1e-4"
    )
    measured = "steps recovered, from the last back: " + "; ".join(parts)
    if all(complete):
        return conditions, measured, Verdict.REPRODUCED, "Every step comes back at every T."
    if any(complete):
        return conditions, measured, Verdict.CONDITIONS, "All steps come back only where T is small for the precision."
    return conditions, measured, Verdict.NOT, "At no T does every step come back."


def _verdict(savings: list[float], claimed: float) -> tuple[Verdict, str]:
    """Reproduced where every place saves as much as claimed, to a tenth of it; under conditions where one does."""
    enough = [saving >= 0.9 * claimed for saving in savings]
    bound = units.percent(0.9 * claimed)
    if all(enough):
        return Verdict.REPRODUCED, f"Each saves at least {bound}."
    if any(enough):
        return (
            Verdict.CONDITIONS,
            f"The node alone saves at least {bound}; in the network, what it does not change remains.",
        )
    return Verdict.NOT, f"None saves {bound}."


def _time_saving(new: Record, old: Record) -> Ratio:
    found = []
    for record in (new, old):
        samples = step_samples(record)
        assert samples is not None
        ratio = ratio_of_medians(samples.own, samples.lif) or Ratio(median(samples.own))
        found.append(ratio)
    first, second = found
    value = 1 - first.value / second.value
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Ratio(value)
    return Ratio(value, 1 - first.high / second.low, 1 - first.low / second.high)


def _pairs(records: list[Record]) -> list[tuple[Record, Record]]:
    """revlif and revlif-revnet at each point."""
    return list(zip(by(records, node="revlif"), by(records, node="revlif-revnet"), strict=True))


def _name(record: Record) -> str:
    return "one layer" if record.case.workload == "layer" else f"whole {record.case.workload}"


def _conditions(records: list[Record]) -> str:
    layer, network = (pair[0].case for pair in _pairs(records))
    return (
        f"revlif against revlif-revnet, reference backend, float32; one layer T = {layer.timesteps}, "
        f"B = {layer.batch}, {layer.shape[0]} features; {network.workload} T = {network.timesteps}, B = {network.batch}"
    )
