"""How the kinds of live bytes are drawn: the same colour and hatch in every figure and every run."""

from collections.abc import Iterable
from typing import Any

from revsnn_bench.render import units
from revsnn_bench.render.figures.canvas import INK

# Okabe and Ito's colours. Lines only: matplotlib spells every dot of a dotted hatch out, in 100 KB.
_LOOKS = {
    "input": ("#0072B2", ""),
    "output": ("#56B4E9", "---"),
    "state": ("#999999", "++"),
    "parameter gradient": ("#CC79A7", "xxx"),
    "input gradient": ("#E69F00", "///"),
    "output gradient": ("#009E73", "\\\\\\"),
    "retained": ("#D55E00", "|||"),
    "temporary": ("#ffffff", "//"),
    "unattributed": ("#F0E442", "xx"),
}
"""From the bottom of a stack to its top: what lasts longest first, what comes and goes last."""


def kinds_in_order(found: Iterable[str]) -> list[str]:
    """Returns each kind once, known ones in the order of a stack, others after them."""
    order = {kind: rank for rank, kind in enumerate(_LOOKS)}
    return sorted(dict.fromkeys(found), key=lambda kind: order.get(kind, len(order)))


def kind_style(kind: str) -> dict[str, Any]:
    """Returns keywords of a patch."""
    colour, hatch = _LOOKS.get(kind, ("#ffffff", "++"))
    return {"facecolor": colour, "hatch": hatch, "edgecolor": INK, "linewidth": 0.6}


def binary_unit(largest: int) -> tuple[int, str]:
    """Returns what to divide bytes by, and the name of the unit, so that the largest is at least 1."""
    index = min(max(largest.bit_length() - 1, 0) // 10, len(units.BINARY) - 1)
    return 1 << (10 * index), units.BINARY[index]
