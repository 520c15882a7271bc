"""The judges: of what is counted and timed, then of what is learned.

Two trainings of one seed share initialisation and the order of samples, so accuracies are held against the standard
LIF's seed by seed.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

from revsnn_bench.case import Case
from revsnn_bench.claims.plan import BASELINES, baseline_of
from revsnn_bench.metrics import BY_NAME
from revsnn_bench.records import AccuracyRecord, FidelityRecord, MemoryRecord, Record, Status
from revsnn_bench.report import units
from revsnn_bench.report.points import Interval, Ratio, interval_of_mean, one_host, ratio_of, ratio_text, student

CLAIMED_RATIO, CLAIMED_FLOPS, CLAIMED_TIME = 58.65, 0.23, 0.238
"""Retained bytes of lif over revlif; shares of FLOPs and of time that revlif saves over revlif-revnet."""
ENOUGH = 0.9
"""The share of a claimed saving that counts as the saving."""
HALF = 2.0
"""How many times less a network keeps where its memory falls with that of its nodes."""
LESS_THAN_LIF, LESS_THAN_EAGER, MOST_TIME = 2.5, 4.0, 1.10
"""Retained bytes of the fused LIF and eager SpikingJelly over remat's, at least; step time over the LIF's, at most."""

MARGIN = 0.005
"""Half a point: how far below the standard LIF an accuracy may lie and still count as maintained."""
ERROR = 0.05
"""Probability of either wrong decision: that of each of the two one-sided tests."""

_Part = TypeVar("_Part")

Sizes = dict[int, int]
"""Bytes by T."""

Scores = dict[str, dict[int, AccuracyRecord]]
"""Accuracies by variant and seed."""


class Verdict(StrEnum):
    """What the records say of a claim."""

    REPRODUCED = "reproduced"
    CONDITIONS = "reproduced under conditions"
    NOT = "not reproduced"
    UNDECIDED = "not decided"
    OPEN = "not measured"


class Judged(NamedTuple):
    """What a judge returns: where it was measured, what was found, the verdict, and the rule that led to it."""

    conditions: str
    measured: str
    verdict: Verdict
    why: str


class Gap(LookupError):
    """A record holds nothing of what a claim reads."""


def by(records: Iterable[Record], **fields: Any) -> list[Record]:
    """Records whose case has these fields."""
    return [r for r in records if all(getattr(r.case, name) == value for name, value in fields.items())]


def known(part: _Part | None, gap: str = "a record lacks a value that the claim reads") -> _Part:
    """A part that the claim reads; raises `Gap` without one."""
    if part is None:
        raise Gap(gap)
    return part


def memory(record: Record) -> MemoryRecord:
    """The bytes of a record whose claim reads them."""
    return known(record.memory)


def fidelity(record: Record) -> FidelityRecord:
    """The gradient errors of a record whose claim reads them."""
    return known(record.fidelity)


def is_right(record: Record) -> bool:
    """Whether every error lies within the tolerance."""
    return not fidelity(record).beyond_tolerance()


def listed(values: Iterable[object]) -> str:
    """Values separated by commas."""
    return ", ".join(map(str, values))


def sizes(records: Iterable[Record]) -> str:
    """The retained bytes that occur."""
    return listed(map(units.size, sorted({memory(record).retained_bytes for record in records})))


def of_all(holds: list[bool], every: str, some: str, none: str) -> tuple[Verdict, str]:
    """The verdict where a condition holds everywhere, somewhere and nowhere."""
    if all(holds):
        return Verdict.REPRODUCED, every
    return (Verdict.CONDITIONS, some) if any(holds) else (Verdict.NOT, none)


def label(case: Case) -> str:
    """The node with the options that tell it from others; all cases here share a backend."""
    options = [f"{name}={option}" for name, option in case.node_options if name != "backend"]
    return f"{case.node}[{','.join(options)}]" if options else case.node


def less_memory(records: list[Record]) -> Judged:
    """The ratio to each standard LIF, the T from which on it is as claimed, and whether the gradient is right there."""
    own = _retained(by(records, node="revlif", dtype="float32"))
    conditions = f"{_over_t(records)}; lif over revlif, retained bytes"
    parts, reached = [], []
    for baseline, lif in _standards(records).items():
        ratios = {t: lif[t] / size for t, size in own.items()}
        t, last = _first_reaching(ratios), max(ratios)
        reached.append(t)
        first = "not reached" if t is None else f"reached at T = {t}"
        parts.append(
            f"{units.times(ratios[last])} times less than the {baseline} LIF at T = {last}{_line(ratios)}, {first}"
        )
    found = sorted({t for t in reached if t is not None})
    right = {}
    for dtype in ("float32", "float64"):
        for t in found:
            for record in by(records, node="revlif", timesteps=t, dtype=dtype):
                right[dtype, t] = is_right(record)
                word, error = "right" if right[dtype, t] else "WRONG", fidelity(record).gradient_error
                parts.append(f"at T = {t} in {dtype} its gradient is {word} (error {error:.1e})")
    measured = f"revlif retains {'; '.join(parts)}"
    if not found:
        return Judged(conditions, measured, Verdict.NOT, f"The ratio never reaches {CLAIMED_RATIO}.")
    if None not in reached and all(right["float32", t] for t in found):
        return Judged(conditions, measured, Verdict.REPRODUCED, "Memory and gradient both hold, to each standard LIF.")
    why = (
        f"The ratio passes {CLAIMED_RATIO} to {'some standard LIFs alone' if None in reached else 'each standard LIF'}."
    )
    if not all(right["float32", t] for t in found):
        why += " At a T where it does, the float32 gradient is wrong."
        if all(right.get(("float64", t), False) for t in found):
            why += " In float64, at twice the bytes, it is right."
    return Judged(conditions, measured, Verdict.CONDITIONS, why)


def less_memory_right_gradient(records: list[Record]) -> Judged:
    """The node that keeps nothing, at every T; the carried state counts on both sides."""
    carriers = by(records, node="lif-carrier")
    own = {r.case.timesteps: memory(r).retained_bytes + memory(r).state_bytes for r in carriers}
    states = {r.case.timesteps: memory(r).state_bytes for r in carriers}
    parts, reached = [], []
    for baseline, lif in _standards(records).items():
        ratios = {t: (lif[t] + states[t]) / size for t, size in own.items()}
        t = _first_reaching(ratios)
        reached.append(t is not None)
        at = max(ratios) if t is None else t
        parts.append(f"{units.times(ratios[at])} times less than the {baseline} LIF at T = {at}")
    worst = max(fidelity(record).gradient_error for record in carriers)
    measured = (
        f"retains {sizes(carriers)} at every T; with the carried state counted on both sides it takes "
        f"{listed(parts)}; largest gradient error {worst:.1e}"
    )
    verdict, why = of_all(
        reached if all(map(is_right, carriers)) else [False],
        f"The ratio passes {CLAIMED_RATIO} to each standard LIF, and the gradient is right at every T.",
        f"The gradient is right at every T; the ratio passes {CLAIMED_RATIO} to some standard LIFs alone.",
        "It does not hold at some T.",
    )
    return Judged(_over_t(records), measured, verdict, why)


def constant_in_t(records: list[Record]) -> Judged:
    """One number of retained bytes for every T."""
    nodes, lifs = (by(records, node=node, dtype="float32") for node in ("revlif", "lif"))
    lif = [record for record in lifs if baseline_of(record.case) == "eager"]
    wrong = [record.case.timesteps for record in nodes if not is_right(record)]
    measured = (
        f"revlif retains {sizes(nodes)} at every T; the eager LIF "
        f"{units.measured('retained_bytes', lif[0])} to {units.measured('retained_bytes', lif[-1])}"
    )
    if len({memory(record).retained_bytes for record in nodes}) > 1:
        return Judged(_over_t(records), measured, Verdict.NOT, "The bytes differ between two T.")
    if wrong:
        measured += f"; its gradient is wrong at T = {listed(wrong)}"
        return Judged(_over_t(records), measured, Verdict.CONDITIONS, "Bytes are constant, the gradient is not right.")
    return Judged(_over_t(records), measured, Verdict.REPRODUCED, "One number of bytes, a right gradient at each T.")


def in_the_network(records: list[Record]) -> Judged:
    """What the whole network keeps and needs at its peak with each node, to each standard LIF's."""
    layers = {record.case.node: memory(record) for record in by(records, workload="layer")}
    by_itself = layers["lif"].retained_bytes / layers["revlif"].retained_bytes
    whole = [record for record in records if record.case.workload != "layer"]
    parts, halved = [], []
    for name in ("revlif", "lif-carrier", "norm-carrier"):
        (record,) = by(whole, node=name)
        own, shown = memory(record), []
        for lif in by(whole, node="lif"):
            times, peak = memory(lif).retained_bytes / own.retained_bytes, memory(lif).peak_bytes / own.peak_bytes
            shown.append(f"{baseline_of(lif.case)} {units.times(times)} (peak {units.times(peak)})")
            if name == "revlif":
                halved.append(times >= HALF)
        parts.append(f"{name}: {listed(shown)}")
    case = whole[0].case
    conditions = f"{case.workload}, T = {case.timesteps}, B = {case.batch}, {case.dtype}; retained bytes, lif over node"
    alone = f"revlif by itself, to the eager LIF: {units.times(by_itself)}"
    measured = f"times less retained than with each standard LIF. {'; '.join(parts)}. {alone}"
    verdict, why = of_all(
        halved,
        "With revlif the network keeps half of what it keeps with any standard LIF, or less.",
        "With revlif it keeps half or less of what it keeps with some standard LIFs, with others not: inputs of "
        "convolutions and norms stay.",
        "With revlif it keeps more than half: inputs of convolutions and norms stay.",
    )
    return Judged(conditions, measured, verdict, why)


def fewer_flops(records: list[Record]) -> Judged:
    """1 - backward(revlif) / backward(revlif-revnet), recomputation included."""
    name = "backward_recompute_flops"

    def saved(new: Record, old: Record) -> tuple[Ratio, str]:
        share = 1 - known(BY_NAME[name].read(new)) / known(BY_NAME[name].read(old))
        shown = f"{units.measured(name, new)} against {units.measured(name, old)}"
        return Ratio(share, share, share), f"{units.percent(share)} ({shown})"

    return _saving(records, "backward with all it runs again, 1 MAC = 2 FLOPs", CLAIMED_FLOPS, saved)


def less_time(records: list[Record]) -> Judged:
    """The same in step time, each side divided by the standard LIF of its own rounds."""

    def saved(new: Record, old: Record) -> tuple[Ratio, str]:
        """With the widest interval that the two ratios to lif allow; of two hosts none."""
        a, b = (known(ratio_of("step_time_s", record)) for record in (new, old))
        value = 1 - a.value / b.value
        if not one_host(new, old) or a.low is None or a.high is None or b.low is None or b.high is None:
            return Ratio(value), f"{units.percent(value)} (not decided)"
        low, high = 1 - a.high / b.low, 1 - a.low / b.high
        return Ratio(value, low, high), f"{units.percent(value)} [{100 * low:.1f}, {100 * high:.1f}]"

    threads = {record.time.threads for record in records if record.time is not None}
    what = f"step time, {listed(threads)} threads, each against lif in the same rounds"
    return _saving(records, what, CLAIMED_TIME, saved)


def inverse_checked(records: list[Record]) -> Judged:
    """How many steps come back, from the last one, in each dtype and T."""
    conditions = f"{_layer(records, of=' of revlif')}; input and membrane, rtol = atol = 1e-4"
    parts, complete = [], []
    for dtype in ("float32", "float64"):
        shown = []
        for record in by(records, node="revlif", dtype=dtype):
            gap = "a record of revlif does not say how many steps came back"
            steps, back = record.case.timesteps, known(fidelity(record).recovered_steps, gap)
            complete.append(back == steps)
            shown.append(f"{back} of {steps}")
        parts.append(f"{dtype}: {listed(shown)}")
    verdict, why = of_all(
        complete,
        "Every step comes back at every T.",
        "All steps come back only where T is small for the precision.",
        "At no T does every step come back.",
    )
    return Judged(conditions, "steps recovered, from the last back: " + "; ".join(parts), verdict, why)


def one_tensor_per_block(records: list[Record]) -> Judged:
    """Bits, bytes and time of a whole network inside remat, beside the fused LIF, eager SpikingJelly and its memopt."""
    nodes = ("spikingjelly", "spikingjelly+bitpack", "lif", "lif+remat")
    eager, memopt, lif, remat = (by(records, node=node)[0] for node in nodes)
    gap = "the record of lif+remat does not say how many tensors are equal"
    equal, tensors = known(fidelity(remat).bit_equal, gap)
    less, far_less, memopt_less = (
        memory(one).retained_bytes / memory(other).retained_bytes
        for one, other in ((lif, remat), (eager, remat), (eager, memopt))
    )
    time, memopt_time = (ratio_of("step_time_s", record) for record in (remat, memopt))
    measured = (
        f"{equal} of {tensors} outputs, gradients and buffers have the bits of lif's, gradient error "
        f"{fidelity(remat).gradient_error:.1e}; retains {sizes([remat])}, {units.times(less)} times less than lif, "
        f"{units.times(far_less)} than eager SpikingJelly (its memopt: {units.times(memopt_less)}); "
        f"step time {ratio_text(time)} × lif's (memopt {ratio_text(memopt_time)})"
    )
    case = remat.case
    conditions = (
        f"{case.workload}, T = {case.timesteps}, B = {case.batch}, {case.features}, {case.dtype}; fused kernels, "
        "SpikingJelly as it comes"
    )
    met = {
        "equal bits and a right gradient": equal == tensors and is_right(remat),
        f"{LESS_THAN_LIF} times less than lif": less >= LESS_THAN_LIF,
        f"{LESS_THAN_EAGER:g} times less than eager": far_less >= LESS_THAN_EAGER,
        f"at most {MOST_TIME:.2f} of lif's time": time is None or time.low is None or time.low <= MOST_TIME,
    }
    if not all(met.values()):
        return Judged(
            conditions, measured, Verdict.NOT, f"Not met: {listed(c for c, holds in met.items() if not holds)}."
        )
    if time is None or time.high is None or time.high > MOST_TIME:
        why = f"Bits and bytes hold; the interval of the time does not tell whether it is below {MOST_TIME:.2f}."
        return Judged(conditions, measured, Verdict.UNDECIDED, why)
    return Judged(conditions, measured, Verdict.REPRODUCED, f"Met: {listed(met)}.")


def _layer(records: list[Record], of: str = "") -> str:
    case = records[0].case
    return f"one layer{of}, B = {case.batch}, {case.shape[0]} features"


def _over_t(records: list[Record]) -> str:
    steps = sorted({record.case.timesteps for record in records})
    return f"{_layer(records)}, float32; T = {listed(steps)}"


def _retained(records: list[Record]) -> Sizes:
    return {record.case.timesteps: memory(record).retained_bytes for record in records}


def _standards(records: list[Record]) -> dict[str, Sizes]:
    """Retained bytes of each standard LIF, in float32."""
    lifs = by(records, node="lif", dtype="float32")
    return {name: _retained([r for r in lifs if baseline_of(r.case) == name]) for name in BASELINES}


def _line(ratios: dict[int, float]) -> str:
    """The line that the ratios lie on, and where it meets the claim; nothing where they lie on none."""
    (t0, r0), *_, (t1, r1) = sorted(ratios.items())
    slope = (r1 - r0) / (t1 - t0)
    start = r0 - slope * t0
    if slope <= 0 or any(abs(start + slope * t - ratio) > 1e-3 * ratio for t, ratio in ratios.items()):
        return ""
    line = f"{slope:.3g} T" if abs(start) < 1e-6 else f"{slope:.3g} T {start:+.3g}"
    return f" ({line}, which is {CLAIMED_RATIO} at T = {(CLAIMED_RATIO - start) / slope:.1f})"


def _first_reaching(ratios: dict[int, float]) -> int | None:
    return next((t for t in sorted(ratios) if ratios[t] >= CLAIMED_RATIO), None)


def _saving(
    records: list[Record], what: str, claimed: float, saved: Callable[[Record, Record], tuple[Ratio, str]]
) -> Judged:
    """What revlif saves over revlif-revnet in a layer and in the network, by `saved`, which gives it in words too.

    Reproduced where both save as much as claimed, to a tenth of it; under conditions where one does.
    """
    pairs = list(zip(by(records, node="revlif"), by(records, node="revlif-revnet"), strict=True))
    held, parts, least = list[bool | None](), [], ENOUGH * claimed
    for new, old in pairs:
        place = "one layer" if new.case.workload == "layer" else f"whole {new.case.workload}"
        if Status.WRONG in (new.status, old.status):
            held.append(False)
            parts.append(f"{place}: its gradient is wrong")
            continue
        share, shown = saved(new, old)
        parts.append(f"{place}: {shown}")
        if share.low is None or share.high is None or share.low < least <= share.high:
            held.append(None)
        else:
            held.append(share.low >= least)
    layer, network = (new.case for new, _ in pairs)
    conditions = (
        f"revlif against revlif-revnet, reference backend, float32; one layer T = {layer.timesteps}, "
        f"B = {layer.batch}, {layer.shape[0]} features; {network.workload} T = {network.timesteps}, "
        f"B = {network.batch}; {what}"
    )
    measured, bound = "; ".join(parts), f"{units.percent(least)}, {ENOUGH:g} of the claim"
    if None in held and True not in held:
        why = f"The intervals do not tell whether either saves {bound}."
        return Judged(conditions, measured, Verdict.UNDECIDED, why)
    verdict, why = of_all(
        [each is True for each in held],
        f"Both save at least {bound}.",
        f"One of the two alone is sure to save {bound}; in a network, what the node does not change remains.",
        f"Neither saves {bound}.",
    )
    return Judged(conditions, measured, verdict, why)


def accuracy_maintained(records: list[Record]) -> Judged:
    """Each coupled node against the standard LIF, network by network and seed by seed."""
    parts, verdicts = [], []
    for workload in dict.fromkeys(record.case.workload for record in records):
        shown, maintained = _against_lif(by(records, workload=workload), {})
        parts.append(f"{workload}: {listed(shown)}")
        verdicts += maintained
    return Judged(_trained(records), "; ".join(parts), *_verdict(verdicts))


def rises_with_groups(records: list[Record]) -> Judged:
    """The slope of accuracy over the logarithm of the number of groups, and its interval."""
    points = [(math.log2(int(r.case.options["groups"] or 2)), r.accuracy.accuracy) for r in records if r.accuracy]
    slope = _slope(points)
    shown = listed(
        f"{variant.partition('groups=')[2].rstrip(']')} groups {_shown(each)}"
        for variant, each in _scores(records).items()
    )
    verdict, why = Verdict.UNDECIDED, "The slope's interval holds zero."
    if slope.low > 0:
        verdict, why = Verdict.REPRODUCED, "The slope's interval lies above zero."
    elif slope.high <= 0:
        verdict, why = Verdict.NOT, "The slope's interval lies at or below zero."
    return Judged(_trained(records), f"{shown}; {slope.in_points()} per doubling", verdict, why)


def one_node_swapped(records: list[Record]) -> Judged:
    """Bytes and accuracy of a network in which one layer's node is another."""
    kept = {label(record.case): memory(record).retained_bytes for record in records}
    parts, verdicts = _against_lif(records, kept)
    return Judged(_trained(records), "; ".join(parts), *_verdict(verdicts))


def _against_lif(records: list[Record], kept: Mapping[str, int]) -> tuple[list[str], list[bool | None]]:
    """Each node in words, with its bytes where known; of each coupled one whether it maintains accuracy by fewer."""
    scores = _scores(records)
    lif = next(variant for variant in scores if variant.partition("[")[0] == "lif")
    parts, verdicts = [], list[bool | None]()
    for variant in sorted(scores, key=lambda variant: variant != lif):
        words, loss = _shown(scores[variant]), _difference(scores[lif], scores[variant])
        times = f" ({units.times(kept[lif] / kept[variant])} times less)" if kept and variant != lif else ""
        retains = f"retains {units.size(kept[variant])}{times}, " if kept else ""
        parts.append(f"{variant} {retains}{words}" + (f", {loss.in_points()} against lif" if variant != lif else ""))
        if variant.startswith("revlif"):
            verdicts.append(False if kept and kept[variant] >= kept[lif] else _maintained(loss))
    return parts, verdicts


def _maintained(difference: Interval) -> bool | None:
    """Whether an accuracy is no more than the margin below; None where the data cannot tell."""
    if difference.low >= -MARGIN:
        return True
    return False if difference.high < -MARGIN else None


def _verdict(maintained: list[bool | None]) -> tuple[Verdict, str]:
    margin = f"{100 * MARGIN:g} points"
    if all(each is True for each in maintained):
        return Verdict.REPRODUCED, f"By its interval, no node is over {margin} below lif."
    if any(each is False for each in maintained):
        if any(each is True for each in maintained):
            return Verdict.CONDITIONS, f"By their intervals, some nodes are at most {margin} below lif, others further."
        if None not in maintained:
            return Verdict.NOT, f"By its interval, every node is over {margin} below lif, or saves no memory."
    return Verdict.UNDECIDED, f"An interval does not tell whether a node is over {margin} below lif: more seeds would."


def _difference(lif: dict[int, AccuracyRecord], other: dict[int, AccuracyRecord]) -> Interval:
    """Accuracy of `other` less that of `lif`, paired by seed."""
    pairs = [other[seed].accuracy - each.accuracy for seed, each in lif.items() if seed in other]
    return interval_of_mean(pairs, 1 - ERROR)


def _slope(points: Sequence[tuple[float, float]]) -> Interval:
    """Least-squares slope, with Student's interval from its standard error."""
    from scipy.stats import linregress  # not above: it takes longer to load than all that is judged without it

    found = linregress(*zip(*points, strict=True))
    slope = float(found.slope)
    if len(points) < 3:
        return Interval(slope, -math.inf, math.inf)
    half = student(len(points) - 2, 1 - ERROR) * float(found.stderr)
    return Interval(slope, slope - half, slope + half)


def _trained(records: list[Record]) -> str:
    case, seeds = records[0].case, sorted({record.case.seed for record in records})
    networks = listed(dict.fromkeys(record.case.workload for record in records))
    return f"{networks} on digits, T = {case.timesteps}, {case.epochs} epochs, {len(seeds)} seeds, mean and deviation"


def _scores(records: list[Record]) -> Scores:
    found: Scores = defaultdict(dict)
    for record in records:
        found[label(record.case)][record.case.seed] = known(record.accuracy)
    return found


def _shown(scores: dict[int, AccuracyRecord]) -> str:
    text = units.spread([each.accuracy for each in scores.values()])
    stripped = [each.stripped_accuracy for each in scores.values() if each.stripped_accuracy is not None]
    return f"{text} (stripped {units.spread(stripped)})" if stripped else text
