"""The claims about memory, from the bytes that each case retained."""

from revsnn_bench.claims.finding import Verdict, by, listed, one
from revsnn_bench.records import Record
from revsnn_bench.render import units

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
