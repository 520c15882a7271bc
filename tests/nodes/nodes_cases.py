"""Every node with the oracle's loop for it, and one way to run either with gradients at all ends."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import nodes_oracle as oracle
import revsnn_nodes as nodes
import torch
from torch import Tensor

LIF_FAMILY = ("lif", "lif-checkpoint", "lif-carrier")
COUPLED = ("revlif-stored", "revlif-revnet", "revlif", "revlif-anchored")
INVERTING = ("revlif-revnet", "revlif")
CLOSED_FORM = ("revlif-revnet", "revlif", "revlif-anchored", "lif-carrier")
ALL = (*LIF_FAMILY, *COUPLED)
FUSED = ("lif", "lif-carrier", "revlif", "revlif-anchored")
NEURONS = [
    {"v_reset": 0.0, "decay_input": True, "detach_reset": True},
    {"v_reset": 0.0, "decay_input": False, "detach_reset": False},
    {"v_reset": -0.3, "decay_input": True, "detach_reset": False},
    {"v_reset": -0.3, "decay_input": False, "detach_reset": True},
    {"v_reset": None, "decay_input": True, "detach_reset": False},
    {"v_reset": None, "decay_input": False, "detach_reset": True},
]
"""Resets, decays and detachments in every pair of values; test_properties draws all triples."""
TAUS = (2.0, 1.7, 1.7, 2.0, 2.0, 1.7)
GATES = ("output", "spike", "output", "spike", "spike", "output")
ROWS = [neuron | {"tau": tau, "reset_gate": gate} for neuron, tau, gate in zip(NEURONS, TAUS, GATES, strict=True)]
"""The same with two more switches of the coupled nodes, in every pair of values too: a time constant whose reciprocal
is exact or not, and the gate of the reset. Tests that compile a kernel per mode share these."""
ROWS_OF_EACH_VALUE = ROWS[2:5]
"""Those for a second type of number: each switch has each of its values in one of them."""
backend = "torch"
"""What `make` makes nodes with; the fixture `on_each_backend` changes it."""
ORACLE: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "lif": oracle.lif,
    "lif-checkpoint": oracle.lif,
    "lif-carrier": oracle.carrier,
} | dict.fromkeys(COUPLED, oracle.coupled)


def make(name: str, **options: Any) -> Any:
    """A node by name, on the backend of the test and silent about drift, unless `options` say otherwise."""
    silent = {"on_drift": "ignore"} if name in INVERTING else {}
    return nodes.make_node(name, **({"backend": backend, "step_mode": "m"} | silent | options))


@dataclass
class Ends:
    """What one run gave at its ends: output, last membrane, and the gradients of input and initial membrane."""

    y: Tensor
    v: Tensor
    x_grad: Tensor | None
    v_grad: Tensor | None


@dataclass
class Problem:
    """Input, initial membrane and arriving gradients of one run, in float64."""

    steps: int = 5
    shape: tuple[int, ...] = (2, 12)
    seed: int = 0
    carried: bool = True
    mean: float = 0.8
    x: Tensor = field(init=False)
    v: Tensor | None = field(init=False)
    y_bar: Tensor = field(init=False)
    v_bar: Tensor = field(init=False)

    def __post_init__(self) -> None:
        rng = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=rng, dtype=torch.float64)

        self.x = 1.5 * normal(self.steps, *self.shape) + self.mean
        self.v = normal(*self.shape) / 4 if self.carried else None
        self.y_bar, self.v_bar = normal(self.steps, *self.shape), normal(*self.shape)

    def to(self, dtype: torch.dtype) -> "Problem":
        """The same problem in another dtype."""
        other = copy.copy(self)
        other.x, other.y_bar, other.v_bar = (part.to(dtype) for part in (self.x, self.y_bar, self.v_bar))
        other.v = None if self.v is None else self.v.to(dtype)
        return other


def differentiate(
    run: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]], problem: Problem, through: str = "yv"
) -> Ends:
    """Runs forward and backward; `through` names the ends at which gradient arrives: output, membrane or both."""
    x = problem.x.clone().requires_grad_()
    v = None if problem.v is None else problem.v.clone().requires_grad_()
    y, v_last = run(x, v)
    loss = sum((end * bar).sum() for name, end, bar in (("y", y, problem.y_bar), ("v", v_last, problem.v_bar))
               if name in through)  # fmt: skip
    leaves = [x] if v is None else [x, v]
    x_grad, *v_grad = torch.autograd.grad(loss, leaves)
    return Ends(y.detach(), v_last.detach(), x_grad, v_grad[0] if v_grad else None)


def row_for(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row's options as far as a node has them: nodes that invert their membrane have one gate alone."""
    takes_gate = name in ("revlif-stored", "revlif-anchored")
    return {key: value for key, value in row.items() if key != "reset_gate" or takes_gate}


def run_node(node: Any) -> Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]:
    """A node as a function of input and initial membrane."""

    def run(x: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        node.reset()
        if v is not None:
            node.v = v
        return node(x), node.v

    return run


def run_oracle(name: str, **options: Any) -> Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]:
    """The oracle of a node as a function of input and initial membrane, in float64."""
    return lambda x, v: ORACLE[name](x, v, **options)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """L2 norm of the difference over that of the expectation, in float64; inf where it is not a number."""
    difference, size = (got.double() - expected.double()).norm().item(), expected.double().norm().item()
    if difference == 0:
        return 0.0
    return difference / size if size and difference == difference else float("inf")


def assert_ends_close(got: Ends, expected: Ends, rtol: float) -> None:
    """Output, membrane and both gradients agree within a relative L2 error."""
    for end in ("y", "v", "x_grad", "v_grad"):
        have, want = getattr(got, end), getattr(expected, end)
        assert (have is None) == (want is None), end
        if want is not None:
            assert have.shape == want.shape
            assert relative_error(have, want) <= rtol, f"{end}: {relative_error(have, want):.2e} > {rtol:.0e}"


def foreign_import_is_silent() -> Any:
    """SpikingJelly's modules, imported whatever they warn about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from spikingjelly.activation_based import neuron, surrogate
    return neuron, surrogate
