"""Where a network's retained bytes come from, and what a node's saving leaves of itself in a network."""

from collections import defaultdict

from revsnn_bench.metrics import BY_NAME
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.render import units
from revsnn_bench.render.ratios import lif_of, ratio_to_lif, standard_lifs

KINDS = {
    "conv": "convolution outputs, the norms' inputs",
    "norm": "norm outputs and statistics",
    "node": "nodes: spikes, the convolutions' inputs, and what the node keeps for itself",
    "pool": "pooled spikes",
    "input": "the network's input",
}
"""Parts of a block by the name of the module that made the bytes; anything else is the rest."""

REST = "rest"


def by_kind(record: Record) -> dict[str, int]:
    """Retained bytes by the kind of module that made them, in the order of `KINDS`; nothing where not measured."""
    modules = None if record.memory is None else record.memory.retained_by_module_bytes
    sizes: dict[str, int] = defaultdict(int)
    for module, size in (modules or {}).items():
        parts = module.split(".")
        kind = next((part for part in parts if part in KINDS), REST)
        sizes[kind] += size
    return {kind: sizes[kind] for kind in (*KINDS, REST) if sizes[kind]}


def module_rows(run: Run) -> list[tuple[str, ...]]:
    """One row per case that ended well and is made of several modules: the case, its bytes, and each kind's."""
    rows = []
    for record in run:
        sizes = by_kind(record)
        if record.status is not Status.OK or record.memory is None or not set(sizes) - {REST}:
            continue
        shown = [units.scaled(sizes.get(kind, 0), 1024, units.BINARY) for kind in (*KINDS, REST)]
        rows.append((record.case.id, units.number(_RETAINED, record.memory.retained_bytes), *shown))
    return rows


def node_and_network(run: Run) -> list[str]:
    """One sentence per node: the bytes of lif over its own, by itself and in each network of the run at the same T."""
    lifs = standard_lifs(run)
    alone: dict[tuple[str, int], float] = {}
    inside: dict[tuple[str, int], list[str]] = defaultdict(list)
    for record in run:
        found, key = ratio_to_lif(_RETAINED, record, lifs), (record.case.variant, record.case.timesteps)
        if found is None or lif_of(record.case, lifs) is record:
            continue
        if record.case.workload == "layer":
            alone[key] = found.value
        elif found.value:
            inside[key].append(f"{units.times(1 / found.value)} in {record.case.workload}")
    parts: dict[str, list[str]] = defaultdict(list)
    for (variant, t), places in sorted(inside.items(), key=lambda pair: pair[0][1]):
        if (variant, t) in alone:
            shown = units.listing(list(dict.fromkeys(places)))
            parts[variant].append(f"{_over(alone[variant, t])} by itself, {shown} (T = {t})")
    return [f"lif over {variant} in retained bytes: {'; '.join(texts)}." for variant, texts in parts.items()]


def _over(ratio: float) -> str:
    return units.times(1 / ratio) if ratio else "retains 0 B"


_RETAINED = BY_NAME["retained_bytes"]
