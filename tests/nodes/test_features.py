"""docs/features.md: every feature of `nodes_features.FEATURES` on every node and backend is right, or refused."""

import importlib.util
import os
import re
import warnings
from pathlib import Path

import nodes_cases
import pytest
import torch
from nodes_cases import ALL, FUSED, INVERTING, make, relative_error
from nodes_features import FEATURES, TOLERANCES, plain
from revsnn_nodes import NormCarrierLIF

PAGE = Path(__file__).parents[2] / "docs" / "features.md"
NODES = (*ALL, "if", "plif", "norm-carrier")
FAST = (*FUSED, "if", "plif", "norm-carrier")
COLUMNS = [(name, backend) for name in NODES for backend in ("torch", "fused") if backend == "torch" or name in FAST]
BY_PARTS = ("step mode s, in a loop", "torch.func.vmap", "vmap of grad")
"""Features that run steps or samples by themselves, which a batch norm then normalises by themselves."""
HEAD = """# Features of PyTorch

A feature is right (✓) where output and gradients equal those of plain autograd in float64 (to 1e-6; in the L2 norm to
1e-5 in float32, 1e-2 in float16, 5e-2 in bfloat16), and refused where it raises: a number is that of the message below.
Nodes that invert their membrane have `on_drift="error"`. `tests/nodes/test_features.py` writes this page (with
`REVSNN_WRITE_PAGES=1`) and holds it against a run. Where a node's backends differ, t is `backend="torch"`, and f are
the fused kernels for the CPU.
"""


def new_node(name, backend):
    """A node in float64 for inputs `[T, N, 6]`."""
    options = {"backend": "auto" if backend == "fused" else "torch"}
    node = NormCarrierLIF(6, step_mode="m", **options) if name == "norm-carrier" else make(name, **options)
    if name in INVERTING:
        node.on_drift = "error"
    return node.double()


def expected_of(feature, name):
    """What the results of a feature must equal, as a function of the node's reference and the input."""
    run, expected = FEATURES[feature]
    return run if name == "norm-carrier" and feature in BY_PARTS else expected or run


def verdict(feature, name, backend):
    """ "right", or the first sentence of the error that refuses."""
    x = torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.5
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            got = FEATURES[feature][0](new_node(name, backend), x)
    except Exception as error:
        return re.sub(r"\s+", " ", str(error)).strip().split(". ")[0][:100] or type(error).__name__
    want = expected_of(feature, name)(new_node(name, "torch").reference(), x)
    where = f"{feature}: {name} {backend}"
    if feature in TOLERANCES:
        assert relative_error(together(got), together(want)) <= TOLERANCES[feature], where
    else:
        for mine, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9, equal_nan=True, msg=where)
    return "right"


def together(results):
    """All tensors of some results in one."""
    return torch.cat([each.flatten().double() for each in results])


def page(verdicts):
    """What is right everywhere and what is refused everywhere, the table of the rest, and the messages."""
    messages = list(dict.fromkeys(each for each in verdicts.values() if each != "right"))
    shown = {message: str(number) for number, message in enumerate(messages, 1)} | {"right": "✓"}
    right, refused, rows = [], [], []
    for feature in FEATURES:
        found = {column: shown[verdicts[feature, *column]] for column in COLUMNS}
        if {*found.values()} == {"✓"}:
            right.append(feature)
        elif "✓" not in found.values():
            refused.append(f"{feature} ({', '.join(dict.fromkeys(found.values()))})")
        else:
            cells = [cell([(backend, found[name, backend]) for n, backend in COLUMNS if n == name]) for name in NODES]
            rows.append(f"| {feature} | {' | '.join(cells)} |")
    lines = [HEAD, f"**Right on every node and backend**: {'; '.join(right)}.", ""]
    lines += [f"**Refused on every node and backend**: {'; '.join(refused)}.", ""]
    lines += ["| | " + " | ".join(NODES) + " |", "|---" * (len(NODES) + 1) + "|", *rows]
    lines += ["", *(f"{number}. {message}" for number, message in enumerate(messages, 1)), ""]
    return "\n".join(lines)


def cell(found):
    """A cell of a node: what its backends say, once where they agree."""
    if len({said for _, said in found}) == 1:
        return found[0][1]
    return ", ".join(f"{backend[0]} {said}" for backend, said in found)


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="the page has the fused kernels' columns")
def test_every_feature_is_right_or_refused():
    """No cell is silently wrong, and the committed page says what a run says."""
    text = page({(feature, *column): verdict(feature, *column) for feature in FEATURES for column in COLUMNS})
    if os.environ.get("REVSNN_WRITE_PAGES"):
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text


def test_the_matrix_can_fail():
    """A node with a wrong gradient is not called right."""
    node, x = make("lif"), torch.randn(4, 2, 6, dtype=torch.float64)
    wrong = plain(node, x, lambda leaf: node(leaf * 1.001))
    node.reset()
    assert not torch.allclose(wrong[1], plain(node, x)[1], rtol=1e-6)
    assert nodes_cases.backend == "torch"
