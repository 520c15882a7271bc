"""The paper's claims, and for each the pure function that judges it from the records of its cases.

A judge returns conditions, findings, verdict and the rule that led to it. It is called only when every case of the
claim ended and holds what the claim reads, so it takes the parts of a record for granted. The cases are those of
`plan.py`. `CLAIMS` holds the claims in the order of this file.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from statistics import mean, stdev
from typing import Any, NamedTuple, TypeVar

from revsnn_bench.case import Case
from revsnn_bench.claims.plan import Plan
from revsnn_bench.metrics import BY_NAME
from revsnn_bench.records import AccuracyRecord, FidelityRecord, MemoryRecord, Record, Run, Status
from revsnn_bench.report import units
from revsnn_bench.report.points import Ratio, ratio_text, ratio_to_lif

SOURCE = (
    "Lei et al., Towards Zero Memory Footprint Spiking Neural Network Training, arXiv 2308.08649. The equations "
    "measured are this project's reconstruction of the paper's node. Verdicts are computed from the records of the run."
)
"""What the claims are of, and what was measured."""

NO_VERDICT = "A gap is no verdict."
CLAIMED_RATIO, CLAIMED_FLOPS, CLAIMED_TIME = 58.65, 0.23, 0.238
"""Retained bytes of lif over revlif; shares of FLOPs and of time that revlif saves over revlif-revnet."""
ENOUGH = 0.9
"""The share of a claimed saving that counts as the saving."""
LESS_THAN_LIF, LESS_THAN_EAGER, MOST_TIME = 2.5, 4.0, 1.10
"""Retained bytes of the fused LIF and eager SpikingJelly over remat's, at least; step time over the LIF's, at most."""
PARITY = 0.005
"""Half a point: how far below the standard LIF a mean accuracy may lie and still count as maintained."""


class Verdict(StrEnum):
    """What the records say of a claim."""

    REPRODUCED = "reproduced"
    CONDITIONS = "reproduced under conditions"
    NOT = "not reproduced"
    UNDECIDED = "not decided"
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


class Judged(NamedTuple):
    """What a judge returns; the fields are those of `ClaimFinding`."""

    conditions: str
    measured: str
    verdict: Verdict
    why: str


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
    judge: Callable[[list[Record]], Judged]


Scores = dict[str, list[AccuracyRecord]]
_Part = TypeVar("_Part")
_Judge = Callable[[list[Record]], Judged]
_CLAIMS: list[Claim] = []


def _claim(key: str, says: str, cases: Callable[[Plan], list[Case]], *reads: str) -> Callable[[_Judge], _Judge]:
    """Adds a claim with the function that judges it; see `Claim`."""

    def add(judge: _Judge) -> _Judge:
        _CLAIMS.append(Claim(key, says, cases, reads, judge))
        return judge

    return add


@_claim(
    "memory", "The node takes 58.65 times less memory than the current SNN node.", Plan.memory, "memory", "fidelity"
)
def less_memory(records: list[Record]) -> Judged:
    """The ratio over T, the T at which it reaches the claim, and whether the gradient is right there."""
    ratios = {dtype: _ratios(records, dtype) for dtype in ("float32", "float64")}
    reached = {dtype: _first_reaching(found) for dtype, found in ratios.items()}
    conditions = f"{_layer(records)}, float32; T = {_listed(ratios['float32'])}; lif over revlif, retained bytes"
    shown = _listed(f"{units.times(ratio)} at T = {t}" for t, ratio in ratios["float32"].items())
    measured = f"{shown}{_line(ratios['float32'])}"
    if reached["float32"] is None:
        return Judged(conditions, measured, Verdict.NOT, f"The ratio never reaches {CLAIMED_RATIO}.")
    measured += f"; the first T measured beyond is {reached['float32']}"
    right = {}
    for dtype, t in reached.items():
        if t is not None:
            (record,) = _by(records, node="revlif", timesteps=t, dtype=dtype)
            right[dtype] = _is_right(record)
            word, error = "right" if right[dtype] else "WRONG", _fidelity(record).gradient_error
            measured += f"; at T = {t} in {dtype} its gradient is {word} (error {error:.1e})"
    if right["float32"]:
        return Judged(conditions, measured, Verdict.REPRODUCED, "Memory and gradient both hold at that T.")
    why = "Memory yes, gradient no: at the T of the claim float32 training would follow a wrong gradient."
    if right.get("float64"):
        why += " In float64, at twice the bytes, it is right."
    return Judged(conditions, measured, Verdict.CONDITIONS, why)


@_claim(
    "memory-right",
    "The same with a right gradient, by lif-carrier, which is not the paper's.",
    Plan.memory,
    "memory",
    "fidelity",
)
def less_memory_right_gradient(records: list[Record]) -> Judged:
    """The node that keeps nothing, at every T; the carried state counts on both sides."""
    carriers = _by(records, node="lif-carrier")
    t = _first_reaching(_ratios(records, "float32")) or carriers[-1].case.timesteps
    at = [*_by(records, node="lif", timesteps=t, dtype="float32"), *_by(carriers, timesteps=t)]
    lif, carrier = (_memory(record).retained_bytes + _memory(record).state_bytes for record in at)
    counted = lif / carrier
    worst = max(_fidelity(record).gradient_error for record in carriers)
    measured = (
        f"retains {_sizes(carriers)} at every T; with the carried state "
        f"counted on both sides lif takes {units.times(counted)} times more at T = {t}; largest gradient error "
        f"{worst:.1e}"
    )
    conditions = _over_t(records, carriers)
    if all(map(_is_right, carriers)) and counted >= CLAIMED_RATIO:
        why = f"The ratio passes {CLAIMED_RATIO} and the gradient is right at every T."
        return Judged(conditions, measured, Verdict.REPRODUCED, why)
    return Judged(conditions, measured, Verdict.NOT, "It does not hold at some T.")


@_claim("constant", "The node's memory does not grow with T.", Plan.memory, "memory", "fidelity")
def constant_in_t(records: list[Record]) -> Judged:
    """One number of retained bytes for every T."""
    nodes, lif = (_by(records, node=node, dtype="float32") for node in ("revlif", "lif"))
    wrong = [record.case.timesteps for record in nodes if not _is_right(record)]
    conditions = _over_t(records, nodes)
    measured = (
        f"revlif retains {_sizes(nodes)} at every T; lif "
        f"{units.measured('retained_bytes', lif[0])} to {units.measured('retained_bytes', lif[-1])}"
    )
    if len({_memory(record).retained_bytes for record in nodes}) > 1:
        return Judged(conditions, measured, Verdict.NOT, "The bytes differ between two T.")
    if wrong:
        measured += f"; its gradient is wrong at T = {_listed(wrong)}"
        return Judged(conditions, measured, Verdict.CONDITIONS, "Bytes are constant, the gradient is not right.")
    return Judged(conditions, measured, Verdict.REPRODUCED, "One number of bytes, a right gradient at each T.")


@_claim("network", "The memory of a whole network falls with that of its nodes.", Plan.whole_network, "memory")
def in_the_network(records: list[Record]) -> Judged:
    """What the whole network keeps and needs at its peak, node by node, beside the node's ratio by itself."""
    layers = {record.case.node: _memory(record) for record in _by(records, workload="layer")}
    by_itself = layers["lif"].retained_bytes / layers["revlif"].retained_bytes
    whole = [record for record in records if record.case.workload != "layer"]
    (lif,) = _by(whole, node="lif")
    parts, ratios = [], {}
    for record in whole:
        if record is not lif:
            name, own, its = record.case.node, _memory(record), _memory(lif)
            ratios[name] = its.retained_bytes / own.retained_bytes
            peak = units.times(its.peak_bytes / own.peak_bytes)
            parts.append(f"{name} {units.times(ratios[name])} (peak {peak})")
    case = lif.case
    conditions = f"{case.workload}, T = {case.timesteps}, B = {case.batch}, {case.dtype}; lif over node, retained bytes"
    measured = f"times less retained: {_listed(parts)}; revlif by itself: {units.times(by_itself)} at this T"
    if ratios["revlif"] >= ENOUGH * by_itself:
        return Judged(conditions, measured, Verdict.REPRODUCED, "The network's ratio is that of its nodes.")
    why = "Inputs of convolutions and norms stay: the node is one part of what a network keeps."
    return Judged(conditions, measured, Verdict.NOT, why)


@_claim(
    "flops",
    "Backward takes 23 % fewer FLOPs than classic reversible backprop (old and new method on VGG-11).",
    Plan.saving,
    "flops",
)
def fewer_flops(records: list[Record]) -> Judged:
    """1 - backward(revlif) / backward(revlif-revnet), recomputation included."""
    name = "backward_recompute_flops"
    savings, parts = [], []
    for new, old in _pairs(records):
        savings.append(1 - _known(BY_NAME[name].read(new)) / _known(BY_NAME[name].read(old)))
        shown = f"{units.measured(name, new)} against {units.measured(name, old)}"
        parts.append(f"{_place(new)}: {units.percent(savings[-1])} ({shown})")
    conditions = f"{_compared(records)}; backward with all it runs again, 1 MAC = 2 FLOPs"
    return Judged(conditions, "; ".join(parts), *_saving(savings, CLAIMED_FLOPS))


@_claim("time", "Training takes 23.8 % less time than with classic reversible backprop.", Plan.saving, "time")
def less_time(records: list[Record]) -> Judged:
    """The same in step time, each side divided by the standard LIF of its own rounds."""
    savings, parts = [], []
    for new, old in _pairs(records):
        saved = _time_saving(new, old)
        # The lower bound decides; what has none is no saving.
        savings.append(0.0 if saved.low is None else max(0.0, saved.low))
        bounds = saved.low, saved.high
        interval = "" if None in bounds else f" [{_listed(f'{100 * _known(bound):.1f}' for bound in bounds)}]"
        parts.append(f"{_place(new)}: {units.percent(saved.value)}{interval}")
    threads = {record.time.threads for record in records if record.time is not None}
    conditions = f"{_compared(records)}; step time, {_listed(threads)} threads, each against lif in the same rounds"
    return Judged(conditions, "; ".join(parts), *_saving(savings, CLAIMED_TIME))


@_claim("accuracy", "Accuracy is maintained.", Plan.accuracy, "accuracy")
def accuracy_maintained(records: list[Record]) -> Judged:
    """Mean accuracy of each node against the standard LIF, network by network."""
    parts, kept = [], []
    for workload in dict.fromkeys(record.case.workload for record in records):
        scores = _scores(_by(records, workload=workload))
        lif = _mean(scores[_lif_of(scores)])
        parts.append(f"{workload}: {_listed(f'{variant} {_shown(each)}' for variant, each in scores.items())}")
        kept += [lif - _mean(each) <= PARITY for variant, each in scores.items() if variant.startswith("revlif")]
    verdict, why = _of_all(
        kept,
        "Every coupled node is within 0.5 points of lif.",
        "Some coupled nodes are within 0.5 points of lif.",
        "No coupled node comes within 0.5 points of lif.",
    )
    return Judged(_trained(records), "; ".join(parts), verdict, why)


@_claim("groups", "Accuracy rises with the number of groups.", Plan.group_counts, "accuracy")
def rises_with_groups(records: list[Record]) -> Judged:
    """The slope of accuracy over the logarithm of the number of groups, against its standard error."""
    points = [(math.log2(int(r.case.options["groups"] or 2)), r.accuracy.accuracy) for r in records if r.accuracy]
    slope, spread = _slope(points)
    shown = _listed(
        f"{variant.partition('groups=')[2].rstrip(']')} groups {_shown(each)}"
        for variant, each in _scores(records).items()
    )
    measured = f"{shown}; {100 * slope:+.2f} points per doubling, standard error {100 * spread:.2f}"
    if slope > 2 * spread:
        return Judged(_trained(records), measured, Verdict.REPRODUCED, "It rises by more than two standard errors.")
    return Judged(_trained(records), measured, Verdict.NOT, "It does not rise by two standard errors.")


@_claim(
    "one-node",
    "One node swapped in a small VGG: less memory, the same accuracy.",
    Plan.one_swapped,
    "memory",
    "accuracy",
)
def one_node_swapped(records: list[Record]) -> Judged:
    """Bytes and accuracy of a network in which one layer's node is another."""
    scores = _scores(records)
    sizes = {_label(record.case): _memory(record).retained_bytes for record in records}
    lif = _lif_of(scores)
    parts, held = [], []
    for variant, each in scores.items():
        times = units.times(sizes[lif] / sizes[variant])
        parts.append(f"{variant} retains {units.size(sizes[variant])} ({times} times less), {_shown(each)}")
        if variant.startswith("revlif"):
            held.append(sizes[variant] < sizes[lif] and _mean(scores[lif]) - _mean(each) <= PARITY)
    verdict = Verdict.REPRODUCED if all(held) else Verdict.NOT
    why = "It retains less, within 0.5 points of lif." if all(held) else "It retains no less, or loses over 0.5 points."
    return Judged(_trained(records), "; ".join(parts), verdict, why)


@_claim(
    "inverse",
    "The inverse, checked step by step against stored activations with torch.allclose, gives them back.",
    Plan.memory,
    "fidelity",
)
def inverse_checked(records: list[Record]) -> Judged:
    """How many steps come back, from the last one, in each dtype and T."""
    conditions = f"{_layer(records, of='revlif')}; input and membrane, rtol = atol = 1e-4"
    parts, complete = [], []
    for dtype in ("float32", "float64"):
        shown = []
        for record in _by(records, node="revlif", dtype=dtype):
            steps, back = record.case.timesteps, _fidelity(record).recovered_steps
            if back is None:
                gap = "a record of revlif does not say how many steps came back"
                return Judged("", gap, Verdict.OPEN, NO_VERDICT)
            complete.append(back == steps)
            shown.append(f"{back} of {steps}")
        parts.append(f"{dtype}: {_listed(shown)}")
    verdict, why = _of_all(
        complete,
        "Every step comes back at every T.",
        "All steps come back only where T is small for the precision.",
        "At no T does every step come back.",
    )
    return Judged(conditions, "steps recovered, from the last back: " + "; ".join(parts), verdict, why)


@_claim(
    "remat",
    "One tensor per block with the network unchanged, by remat, which is not the paper's.",
    Plan.unchanged_network,
    "memory",
    "fidelity",
    "time",
)
def one_tensor_per_block(records: list[Record]) -> Judged:
    """Bits, bytes and time of a whole network inside remat, beside the fused LIF, eager SpikingJelly and its memopt."""
    nodes = ("spikingjelly", "spikingjelly+bitpack", "lif", "lif+remat")
    eager, memopt, lif, remat = (_by(records, node=node)[0] for node in nodes)
    if _fidelity(remat).bit_equal is None:
        return Judged("", "the record of lif+remat does not say how many tensors are equal", Verdict.OPEN, NO_VERDICT)
    equal, tensors = _known(_fidelity(remat).bit_equal)
    less, far_less, memopt_less = (
        _memory(one).retained_bytes / _memory(other).retained_bytes
        for one, other in ((lif, remat), (eager, remat), (eager, memopt))
    )
    time, memopt_time = (ratio_to_lif("step_time_s", record) for record in (remat, memopt))
    measured = (
        f"{equal} of {tensors} outputs, gradients and buffers have the bits of lif's, gradient error "
        f"{_fidelity(remat).gradient_error:.1e}; retains {_sizes([remat])}, {units.times(less)} times less than lif, "
        f"{units.times(far_less)} than eager SpikingJelly (its memopt: {units.times(memopt_less)}); "
        f"step time to lif {ratio_text(time)} (memopt {ratio_text(memopt_time)})"
    )
    case = remat.case
    conditions = (
        f"{case.workload}, T = {case.timesteps}, B = {case.batch}, {case.features}, {case.dtype}; fused kernels, "
        "SpikingJelly as it comes"
    )
    met = {
        "equal bits and a right gradient": equal == tensors and _is_right(remat),
        f"{LESS_THAN_LIF} times less than lif": less >= LESS_THAN_LIF,
        f"{LESS_THAN_EAGER:g} times less than eager": far_less >= LESS_THAN_EAGER,
        f"at most {MOST_TIME:.2f} of lif's time": time is None or time.low is None or time.low <= MOST_TIME,
    }
    if not all(met.values()):
        return Judged(
            conditions, measured, Verdict.NOT, f"Not met: {_listed(c for c, holds in met.items() if not holds)}."
        )
    if time is None or time.high is None or time.high > MOST_TIME:
        why = f"Bits and bytes hold; the interval of the time does not tell whether it is below {MOST_TIME:.2f}."
        return Judged(conditions, measured, Verdict.UNDECIDED, why)
    return Judged(conditions, measured, Verdict.REPRODUCED, f"Met: {_listed(met)}.")


CLAIMS: tuple[Claim, ...] = tuple(_CLAIMS)
"""The paper's claims, then the experiments that the literature proposes for them."""


def cases_of(plan: Plan, keys: Iterable[str] = ()) -> list[Case]:
    """Every case that some claims need, each once; of all claims where no key is given."""
    return list(dict.fromkeys(case for claim in _chosen(keys) for case in claim.cases(plan)))


def judge(run: Run, plan: Plan, keys: Iterable[str] = ()) -> list[ClaimFinding]:
    """The findings on some claims, or on all; a claim stays open where a case is missing, failed or half measured."""
    return [_judged(claim, run, plan) for claim in _chosen(keys)]


def _chosen(keys: Iterable[str]) -> list[Claim]:
    wanted = set(keys) or {claim.key for claim in CLAIMS}
    return [claim for claim in CLAIMS if claim.key in wanted]


def _judged(claim: Claim, run: Run, plan: Plan) -> ClaimFinding:
    cases, found = claim.cases(plan), {record.case: record for record in run}
    records = [found[case] for case in cases if case in found]
    ended = [r for r in records if r.status in (Status.OK, Status.WRONG)]
    failed = [r.case.id for r in records if r not in ended]
    missing = len(cases) - len(records)
    partial = sum(any(getattr(r, part) is None for part in claim.reads) for r in ended)
    if missing or failed or partial:
        lack = [f"{missing} of {len(cases)} cases are not in the run"] if missing else []
        lack += [f"failed: {_listed(failed)}"] if failed else []
        lack += [f"{partial} cases were measured without {_listed(claim.reads)}"] if partial else []
        return ClaimFinding(claim.key, claim.says, "", "; ".join(lack), Verdict.OPEN, NO_VERDICT)
    return ClaimFinding(claim.key, claim.says, *claim.judge(records))


def _by(records: Iterable[Record], **fields: Any) -> list[Record]:
    """Records whose case has these fields."""
    return [r for r in records if all(getattr(r.case, name) == value for name, value in fields.items())]


def _known(part: _Part | None) -> _Part:
    """A part that the claim reads, which is there before it is judged."""
    assert part is not None
    return part


def _memory(record: Record) -> MemoryRecord:
    return _known(record.memory)


def _fidelity(record: Record) -> FidelityRecord:
    return _known(record.fidelity)


def _is_right(record: Record) -> bool:
    return not _fidelity(record).beyond_tolerance()


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _sizes(records: Iterable[Record]) -> str:
    """The retained bytes that occur."""
    return _listed(map(units.size, sorted({_memory(record).retained_bytes for record in records})))


def _of_all(holds: list[bool], every: str, some: str, none: str) -> tuple[Verdict, str]:
    """The verdict where a condition holds everywhere, somewhere and nowhere."""
    if all(holds):
        return Verdict.REPRODUCED, every
    return (Verdict.CONDITIONS, some) if any(holds) else (Verdict.NOT, none)


def _layer(records: list[Record], of: str = "") -> str:
    case = records[0].case
    return f"one layer{' of ' + of if of else ''}, B = {case.batch}, {case.shape[0]} features"


def _over_t(records: list[Record], shown: list[Record]) -> str:
    return f"{_layer(records)}, float32; T = {_listed(sorted(record.case.timesteps for record in shown))}"


def _ratios(records: list[Record], dtype: str) -> dict[int, float]:
    """Retained bytes of lif over those of revlif, by T."""
    lif, revlif = (
        {r.case.timesteps: _memory(r).retained_bytes for r in _by(records, node=node, dtype=dtype)}
        for node in ("lif", "revlif")
    )
    return {t: lif[t] / size for t, size in revlif.items()}


def _line(ratios: dict[int, float]) -> str:
    """The line that the ratios lie on, and where it meets the claim; nothing where they lie on none."""
    (t0, r0), *_, (t1, r1) = sorted(ratios.items())
    slope = (r1 - r0) / (t1 - t0)
    start = r0 - slope * t0
    if slope <= 0 or any(abs(start + slope * t - ratio) > 1e-3 * ratio for t, ratio in ratios.items()):
        return ""
    return f"; the ratio is {slope:.3g} T {start:+.3g}, {CLAIMED_RATIO} at T = {(CLAIMED_RATIO - start) / slope:.1f}"


def _first_reaching(ratios: dict[int, float]) -> int | None:
    return next((t for t in sorted(ratios) if ratios[t] >= CLAIMED_RATIO), None)


def _pairs(records: list[Record]) -> list[tuple[Record, Record]]:
    """revlif and revlif-revnet at each point."""
    return list(zip(_by(records, node="revlif"), _by(records, node="revlif-revnet"), strict=True))


def _place(record: Record) -> str:
    return "one layer" if record.case.workload == "layer" else f"whole {record.case.workload}"


def _compared(records: list[Record]) -> str:
    layer, network = (pair[0].case for pair in _pairs(records))
    return (
        f"revlif against revlif-revnet, reference backend, float32; one layer T = {layer.timesteps}, "
        f"B = {layer.batch}, {layer.shape[0]} features; {network.workload} T = {network.timesteps}, B = {network.batch}"
    )


def _saving(savings: list[float], claimed: float) -> tuple[Verdict, str]:
    """Reproduced where every place saves as much as claimed, to a tenth of it; under conditions where one does."""
    bound = units.percent(ENOUGH * claimed)
    return _of_all(
        [saving >= ENOUGH * claimed for saving in savings],
        f"Each saves at least {bound}.",
        f"The node alone saves at least {bound}; in the network, what it does not change remains.",
        f"None saves {bound}.",
    )


def _time_saving(new: Record, old: Record) -> Ratio:
    """1 - new / old, each a ratio to its own lif, with the widest interval that the two intervals allow."""
    first, second = (_known(ratio_to_lif("step_time_s", record)) for record in (new, old))
    value = 1 - first.value / second.value
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Ratio(value)
    return Ratio(value, 1 - first.high / second.low, 1 - first.low / second.high)


def _label(case: Case) -> str:
    """The node with the options that tell it from others; all cases here share a backend."""
    options = [f"{name}={option}" for name, option in case.node_options if name != "backend"]
    return f"{case.node}[{','.join(options)}]" if options else case.node


def _trained(records: list[Record]) -> str:
    case, seeds = records[0].case, sorted({record.case.seed for record in records})
    networks = _listed(dict.fromkeys(record.case.workload for record in records))
    return f"{networks} on digits, T = {case.timesteps}, {case.epochs} epochs, {len(seeds)} seeds, mean and deviation"


def _scores(records: list[Record]) -> Scores:
    """Accuracies by variant, one per seed."""
    found: Scores = defaultdict(list)
    for record in records:
        found[_label(record.case)].append(_known(record.accuracy))
    return found


def _lif_of(scores: Scores) -> str:
    return next(variant for variant in scores if variant.partition("[")[0] == "lif")


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
