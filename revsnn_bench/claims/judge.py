"""What was found of one claim, and the selections of records that judging shares.

The claims about memory, from the bytes that each case retained.

The claims about operations and time, and the inverse held against stored activations.

The claims about accuracy, over several seeds.

Verdicts, each a pure function of a plan and the records of its cases.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from statistics import mean, median, stdev
from typing import Any

from revsnn_bench.case import Case
from revsnn_bench.claims.plan import Plan
from revsnn_bench.metrics import BY_NAME, step_samples
from revsnn_bench.records import AccuracyRecord, Record, Run, Status
from revsnn_bench.report import units
from revsnn_bench.report.points import Ratio, ratio_of_medians

SOURCE = (
    "Lei et al., Towards Zero Memory Footprint Spiking Neural Network Training, arXiv 2308.08649. The equations "
    "measured are this project's reconstruction of the paper's node. Verdicts are computed from the records of the run."
)
"""What the claims are of, and what was measured."""

NO_VERDICT = "A gap is no verdict."


class Verdict(StrEnum):
    """What the records say of a claim."""

    REPRODUCED = "reproduced"
    CONDITIONS = "reproduced under conditions"
    NOT = "not reproduced"
    OPEN = "not measured"


@dataclass(frozen=True)
class ClaimFinding:
    """One row of the table of claims.

    Args:
        key: short name, as `--only` takes it.
        claim: what is claimed.
        conditions: where it was measured here.
        measured: what was found, with its numbers.
        verdict: what follows from the numbers.
        why: the rule that led to the verdict.
    """

    key: str
    claim: str
    conditions: str
    measured: str
    verdict: Verdict
    why: str

    @property
    def command(self) -> str:
        """The command that measures this claim alone."""
        return f"revsnn-bench claims --only {self.key}"


def select(records: Iterable[Record], cases: Iterable[Case]) -> list[Record]:
    """The records of some cases, in the order of the cases; a case that has none is left out."""
    found = {record.case: record for record in records}
    return [found[case] for case in cases if case in found]


def by(records: Iterable[Record], **fields: Any) -> list[Record]:
    """Records whose case has these fields."""
    return [r for r in records if all(getattr(r.case, name) == value for name, value in fields.items())]


def one(records: Iterable[Record], **fields: Any) -> Record | None:
    """The first record whose case has these fields, or None."""
    return next(iter(by(records, **fields)), None)


def listed(values: Iterable[object]) -> str:
    """Values separated by commas."""
    return ", ".join(map(str, values))


def label(case: Case) -> str:
    """The node with the options that tell it from others; all cases here share a backend."""
    options = [f"{name}={option}" for name, option in case.node_options if name != "backend"]
    return f"{case.node}[{','.join(options)}]" if options else case.node


CLAIMED = 58.65
Judged = tuple[str, str, Verdict, str]


def retained(record: Record | None) -> int:
    """Retained bytes of a record that has them."""
    assert record is not None
    assert record.memory is not None
    return record.memory.retained_bytes


def with_state(record: Record | None) -> int:
    """Retained bytes and the carried state, which every node has until `reset()`."""
    assert record is not None
    assert record.memory is not None
    return record.memory.retained_bytes + record.memory.state_bytes


def error(record: Record | None) -> float:
    """Gradient error of a record that has it."""
    assert record is not None
    assert record.fidelity is not None
    return record.fidelity.gradient_error


def is_right(record: Record | None) -> bool:
    """Whether the gradient error is within tolerance."""
    assert record is not None
    assert record.fidelity is not None
    return record.fidelity.gradient_error <= record.fidelity.tolerance


def less_memory(records: list[Record]) -> Judged:
    """The ratio over T, the T at which it reaches the claim, and whether the gradient is right there."""
    ratios = {dtype: _ratios(records, dtype) for dtype in ("float32", "float64")}
    reached = {dtype: _first_reaching(found) for dtype, found in ratios.items()}
    at = reached["float32"]
    conditions = f"{_place(records[0])}; T = {listed(ratios['float32'])}; lif over revlif, retained bytes"
    shown = listed(f"{units.times(ratio)} at T = {t}" for t, ratio in ratios["float32"].items())
    line = _line(ratios["float32"])
    if at is None:
        return conditions, f"{shown}{line}", Verdict.NOT, f"The ratio never reaches {CLAIMED}."
    parts = [f"{shown}{line}", f"the first T measured beyond is {at}"]
    right = {}
    for dtype, t in reached.items():
        if t is not None:
            record = one(records, node="revlif", timesteps=t, dtype=dtype)
            right[dtype] = is_right(record)
            verb = "right" if right[dtype] else "WRONG"
            parts.append(f"at T = {t} in {dtype} its gradient is {verb} (error {error(record):.1e})")
    if right["float32"]:
        return conditions, "; ".join(parts), Verdict.REPRODUCED, "Memory and gradient both hold at that T."
    why = "Memory yes, gradient no: at the T of the claim float32 training would follow a wrong gradient."
    if right.get("float64"):
        why += " In float64, at twice the bytes, it is right."
    return conditions, "; ".join(parts), Verdict.CONDITIONS, why


def less_memory_right_gradient(records: list[Record]) -> Judged:
    """The node that keeps nothing, at every T."""
    carriers = by(records, node="lif-carrier")
    reached = _first_reaching(_ratios(records, "float32")) or carriers[-1].case.timesteps
    at = one(carriers, timesteps=reached)
    counted = with_state(one(records, node="lif", timesteps=reached, dtype="float32")) / with_state(at)
    worst = max(map(error, carriers))
    kept = sorted({retained(record) for record in carriers})
    measured = (
        f"retains {listed(units.scaled(size, 1024, units.BINARY) for size in kept)} at every T; with the carried state "
        f"counted on both sides lif takes {units.times(counted)} times more at T = {reached}; largest gradient error "
        f"{worst:.1e}"
    )
    holds = all(map(is_right, carriers)) and counted >= CLAIMED
    why = (
        f"The ratio passes {CLAIMED} and the gradient is right at every T." if holds else "It does not hold at some T."
    )
    return _conditions(records, carriers), measured, Verdict.REPRODUCED if holds else Verdict.NOT, why


def constant_in_t(records: list[Record]) -> Judged:
    """One number of retained bytes for every T."""
    nodes = by(records, node="revlif", dtype="float32")
    sizes = {retained(record) for record in nodes}
    wrong = [record.case.timesteps for record in nodes if not is_right(record)]
    lif = by(records, node="lif", dtype="float32")
    measured = (
        f"revlif retains {listed(units.scaled(size, 1024, units.BINARY) for size in sorted(sizes))} at every T; lif "
        f"{units.scaled(retained(lif[0]), 1024, units.BINARY)} to {units.scaled(retained(lif[-1]), 1024, units.BINARY)}"
    )
    if len(sizes) > 1:
        return _conditions(records, nodes), measured, Verdict.NOT, "The bytes differ between two T."
    if wrong:
        measured += f"; its gradient is wrong at T = {listed(wrong)}"
        return (
            _conditions(records, nodes),
            measured,
            Verdict.CONDITIONS,
            "Bytes are constant, the gradient is not right.",
        )
    return _conditions(records, nodes), measured, Verdict.REPRODUCED, "One number of bytes, a right gradient at each T."


def in_the_network(records: list[Record]) -> Judged:
    """What the whole network keeps and needs at its peak, node by node, beside the node's ratio by itself."""
    layers = by(records, workload="layer")
    node = retained(one(layers, node="lif")) / retained(one(layers, node="revlif"))
    records = [record for record in records if record not in layers]
    lif = one(records, node="lif")
    assert lif is not None
    assert lif.memory is not None
    parts, ratios = [], {}
    for record in records:
        assert record.memory is not None
        if record is lif:
            continue
        ratios[record.case.node] = retained(lif) / retained(record)
        peak = lif.memory.peak_bytes / record.memory.peak_bytes
        parts.append(f"{record.case.node} {units.times(ratios[record.case.node])} (peak {units.times(peak)})")
    case = lif.case
    conditions = f"{case.workload}, T = {case.timesteps}, B = {case.batch}, {case.dtype}; lif over node, retained bytes"
    measured = f"times less retained: {listed(parts)}; revlif by itself: {units.times(node)} at this T"
    holds = ratios["revlif"] >= 0.9 * node
    why = (
        "The network's ratio is that of its nodes."
        if holds
        else "Inputs of convolutions and norms stay: the node is one part of what a network keeps."
    )
    return conditions, measured, Verdict.REPRODUCED if holds else Verdict.NOT, why


def _ratios(records: list[Record], dtype: str) -> dict[int, float]:
    """lif over revlif by T."""
    nodes = by(records, node="revlif", dtype=dtype)
    return {
        record.case.timesteps: retained(one(records, node="lif", timesteps=record.case.timesteps, dtype=dtype))
        / retained(record)
        for record in nodes
    }


def _line(ratios: dict[int, float]) -> str:
    """The line that the ratios lie on, and where it meets the claim; nothing where they lie on none."""
    (t0, r0), *_, (t1, r1) = sorted(ratios.items())
    slope = (r1 - r0) / (t1 - t0)
    start = r0 - slope * t0
    if slope <= 0 or any(abs(start + slope * t - ratio) > 1e-3 * ratio for t, ratio in ratios.items()):
        return ""
    return f"; the ratio is {slope:.3g} T {start:+.3g}, {CLAIMED} at T = {(CLAIMED - start) / slope:.1f}"


def _first_reaching(ratios: dict[int, float]) -> int | None:
    return next((t for t in sorted(ratios) if ratios[t] >= CLAIMED), None)


def _place(record: Record) -> str:
    case = record.case
    return f"one layer, B = {case.batch}, {case.shape[0]} features, float32"


def _conditions(records: list[Record], of: list[Record]) -> str:
    return f"{_place(records[0])}; T = {listed(sorted(record.case.timesteps for record in of))}"


FEWER_FLOPS = 0.23
LESS_TIME = 0.238
Judged_work = tuple[str, str, Verdict, str]


def fewer_flops(records: list[Record]) -> Judged_work:
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
    conditions = f"{_at(records)}; backward with all it runs again, 1 MAC = 2 FLOPs"
    return conditions, "; ".join(parts), *_verdict(savings, FEWER_FLOPS)


def less_time(records: list[Record]) -> Judged_work:
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
    conditions = f"{_at(records)}; step time, {listed(threads)} threads, each against lif in the same rounds"
    return conditions, "; ".join(parts), *_verdict(savings, LESS_TIME)


def inverse_checked(records: list[Record]) -> Judged_work:
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


def _at(records: list[Record]) -> str:
    layer, network = (pair[0].case for pair in _pairs(records))
    return (
        f"revlif against revlif-revnet, reference backend, float32; one layer T = {layer.timesteps}, "
        f"B = {layer.batch}, {layer.shape[0]} features; {network.workload} T = {network.timesteps}, B = {network.batch}"
    )


PARITY = 0.005
"""Half a point: how far below the standard LIF a mean accuracy may lie and still count as maintained."""

Judged_learning = tuple[str, str, Verdict, str]
Scores = dict[str, list[AccuracyRecord]]


def accuracy_maintained(records: list[Record]) -> Judged_learning:
    """Mean accuracy of each node against the standard LIF, network by network."""
    parts, kept = [], []
    for workload in dict.fromkeys(record.case.workload for record in records):
        scores = _scores(by(records, workload=workload))
        lif = _mean(next(each for variant, each in scores.items() if variant.partition("[")[0] == "lif"))
        parts.append(f"{workload}: {listed(f'{variant} {_shown(each)}' for variant, each in scores.items())}")
        kept += [lif - _mean(each) <= PARITY for variant, each in scores.items() if variant.startswith("revlif")]
    measured = "; ".join(parts)
    if all(kept):
        return _where(records), measured, Verdict.REPRODUCED, "Every coupled node is within 0.5 points of lif."
    if any(kept):
        return _where(records), measured, Verdict.CONDITIONS, "Some coupled nodes are within 0.5 points of lif."
    return _where(records), measured, Verdict.NOT, "No coupled node comes within 0.5 points of lif."


def rises_with_groups(records: list[Record]) -> Judged_learning:
    """The slope of accuracy over the logarithm of the number of groups, against its standard error."""
    points = [(math.log2(int(r.case.options["groups"] or 2)), r.accuracy.accuracy) for r in records if r.accuracy]
    slope, spread = _slope(points)
    scores = _scores(records)
    shown = listed(
        f"{variant.partition('groups=')[2].rstrip(']')} groups {_shown(each)}" for variant, each in scores.items()
    )
    measured = f"{shown}; {100 * slope:+.2f} points per doubling, standard error {100 * spread:.2f}"
    if slope > 2 * spread:
        return _where(records), measured, Verdict.REPRODUCED, "It rises by more than two standard errors."
    return _where(records), measured, Verdict.NOT, "It does not rise by two standard errors."


def one_node_swapped(records: list[Record]) -> Judged_learning:
    """Bytes and accuracy of a network in which one layer's node is another."""
    scores = _scores(records)
    (lif,) = (variant for variant in scores if variant.partition("[")[0] == "lif")
    parts, held = [], []
    sizes = {label(record.case): record.memory.retained_bytes for record in records if record.memory is not None}
    for variant, each in scores.items():
        kept = units.scaled(sizes[variant], 1024, units.BINARY)
        parts.append(
            f"{variant} retains {kept} ({units.times(sizes[lif] / sizes[variant])} times less), {_shown(each)}"
        )
        if variant.startswith("revlif"):
            held.append(sizes[variant] < sizes[lif] and _mean(scores[lif]) - _mean(each) <= PARITY)
    verdict = Verdict.REPRODUCED if all(held) else Verdict.NOT
    why = "It retains less, within 0.5 points of lif." if all(held) else "It retains no less, or loses over 0.5 points."
    return _where(records), "; ".join(parts), verdict, why


def _scores(records: list[Record]) -> Scores:
    """Accuracies by variant, one per seed."""
    found: Scores = defaultdict(list)
    for record in records:
        if record.accuracy is not None:
            found[label(record.case)].append(record.accuracy)
    return dict(found)


def _mean(scores: list[AccuracyRecord]) -> float:
    return mean(each.accuracy for each in scores)


def _shown(scores: list[AccuracyRecord]) -> str:
    text = _spread([each.accuracy for each in scores])
    stripped = [each.stripped_accuracy for each in scores if each.stripped_accuracy is not None]
    return f"{text} (stripped {_spread(stripped)})" if stripped else text


def _spread(values: list[float]) -> str:
    deviation = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{deviation} %"


def _slope(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Least-squares slope and its standard error; infinite where too few points tell."""
    x, y = [point[0] for point in points], [point[1] for point in points]
    width = sum((each - mean(x)) ** 2 for each in x)
    slope = sum((a - mean(x)) * (b - mean(y)) for a, b in points) / width
    left = sum((b - mean(y) - slope * (a - mean(x))) ** 2 for a, b in points)
    return slope, math.sqrt(left / (len(points) - 2) / width) if len(points) > 2 else math.inf


def _where(records: list[Record]) -> str:
    case, seeds = records[0].case, sorted({record.case.seed for record in records})
    networks = listed(dict.fromkeys(record.case.workload for record in records))
    return f"{networks} on digits, T = {case.timesteps}, {case.epochs} epochs, {len(seeds)} seeds, mean and deviation"


@dataclass(frozen=True)
class Claim:
    """One claim: what it says, the cases it needs, and how their records are judged.

    Args:
        key: short name.
        says: the claim in words.
        cases: the cases of a plan that it needs.
        reads: the parts of their records that it needs.
        judge: conditions, findings, verdict and rule, from the records of those cases, none of which failed.
    """

    key: str
    says: str
    cases: Callable[[Plan], list[Case]]
    reads: tuple[str, ...]
    judge: Callable[[list[Record]], tuple[str, str, Verdict, str]]


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "memory",
        "The node takes 58.65 times less memory than the current SNN node.",
        Plan.memory,
        ("memory", "fidelity"),
        less_memory,
    ),
    Claim(
        "memory-right",
        "The same with a right gradient, by lif-carrier, which is not the paper's.",
        Plan.memory,
        ("memory", "fidelity"),
        less_memory_right_gradient,
    ),
    Claim("constant", "The node's memory does not grow with T.", Plan.memory, ("memory", "fidelity"), constant_in_t),
    Claim(
        "network",
        "The memory of a whole network falls with that of its nodes.",
        Plan.whole_network,
        ("memory",),
        in_the_network,
    ),
    Claim(
        "flops",
        "Backward takes 23 % fewer FLOPs than classic reversible backprop (old and new method on VGG-11).",
        Plan.saving,
        ("flops",),
        fewer_flops,
    ),
    Claim(
        "time",
        "Training takes 23.8 % less time than with classic reversible backprop.",
        Plan.saving,
        ("time",),
        less_time,
    ),
    Claim("accuracy", "Accuracy is maintained.", Plan.accuracy, ("accuracy",), accuracy_maintained),
    Claim("groups", "Accuracy rises with the number of groups.", Plan.group_counts, ("accuracy",), rises_with_groups),
    Claim(
        "one-node",
        "One node swapped in a small VGG: less memory, the same accuracy.",
        Plan.one_swapped,
        ("memory", "accuracy"),
        one_node_swapped,
    ),
    Claim(
        "inverse",
        "The inverse, checked step by step against stored activations with torch.allclose, gives them back.",
        Plan.memory,
        ("fidelity",),
        inverse_checked,
    ),
)
"""The paper's claims, then the experiments that the literature proposes for them."""


def cases_of(plan: Plan, keys: Iterable[str] = ()) -> list[Case]:
    """Every case that some claims need, each once; of all claims where no key is given."""
    wanted = set(keys) or {claim.key for claim in CLAIMS}
    return list(dict.fromkeys(case for claim in CLAIMS if claim.key in wanted for case in claim.cases(plan)))


def judge(run: Run, plan: Plan, keys: Iterable[str] = ()) -> list[ClaimFinding]:
    """The findings on some claims, or on all; a claim stays open where a case is missing, failed or half measured."""
    wanted = set(keys) or {claim.key for claim in CLAIMS}
    return [_judged(claim, run, plan) for claim in CLAIMS if claim.key in wanted]


def _judged(claim: Claim, run: Run, plan: Plan) -> ClaimFinding:
    cases = claim.cases(plan)
    records = select(run, cases)
    ended = [r for r in records if r.status in (Status.OK, Status.WRONG)]
    failed = [r.case.id for r in records if r not in ended]
    missing = len(cases) - len(records)
    partial = sum(any(getattr(r, part) is None for part in claim.reads) for r in ended)
    if missing or failed or partial:
        lack = [f"{missing} of {len(cases)} cases are not in the run"] if missing else []
        lack += [f"failed: {listed(failed)}"] if failed else []
        lack += [f"{partial} cases were measured without {listed(claim.reads)}"] if partial else []
        return ClaimFinding(claim.key, claim.says, "", "; ".join(lack), Verdict.OPEN, NO_VERDICT)
    return ClaimFinding(claim.key, claim.says, *claim.judge(records))
