"""LIF neurons of other libraries, for comparison, and which nodes take a backend.

A peer is a function and a row of `PEERS`; it is skipped where its package is not installed (extra `peers`). Each
library has equations, a reset and a surrogate of its own. A peer is matched where some options of our `StandardLIF`
give the same function: that one is its reference. Where none does, the peer says which equation differs, and is
never ranked. Of SpikingJelly, ours has the equations and names; the others, whose steps are run over `unbind`:

    name               h[t]                                   reset                      phi           our options
    snntorch           (1 - 1/tau) v + x                      to 0, no delay             ATan          decay_input=False
    snntorch-default   (1 - 1/tau) h[t-1] + x - theta s[t-1]  a step later, no gradient  ATan          none
    norse              v + (x - v) / tau                      to 0                       SuperSpike    the default
    sinabs             (1 - 1/tau) v + x / tau                to 0                       PiecewiseExp  the default

sinabs' own reset passes no gradient; with `detach_reset=True` it is taken, and our row with this option is its match.

The surrogate is each library's own, at a sharpness and height that ours can have.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from revsnn_nodes import CarrierLIF, SpikingNode, StandardLIF, node_factory, surrogate
from revsnn_nodes.kernels.support import fused_obstacle
from torch import Tensor, nn

from revsnn_bench.models.own import METHODS, is_untouched
from revsnn_bench.records import SkipCase


def spikingjelly(**options: Any) -> nn.Module:
    """SpikingJelly's `LIFNode`, run as it comes, in step mode "m"."""
    node: nn.Module = theirs("spikingjelly.activation_based.neuron").LIFNode(step_mode="m", **options)
    return node


def spikingjelly_compiled(**options: Any) -> nn.Module:
    """The loop over the steps of SpikingJelly's `LIFNode` under `torch.compile`: one graph, unrolled.

    This form is the fastest that was found: its reference sequence, compiled, takes seven times longer backward.
    """
    node = theirs("spikingjelly.activation_based.neuron").LIFNode(step_mode="s", **options)

    def run(x_seq: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        node.v = v
        spikes = torch.stack([node.single_step_forward(x) for x in x_seq.unbind(0)])
        # What a call leaves behind is guarded by the next: a membrane would cost a second compilation.
        last, node.v = node.v, 0.0
        return spikes, last

    return _CompiledLIF(torch.compile(run, dynamic=False), options)


Run = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Spikes `[T, N, *]` and the last membrane `[N, *]` from an input and the first membrane; or the same of one step."""


class Stepped(nn.Module):
    """A library's neuron, T steps of it, with its membrane carried as ours is.

    Args:
        matched: arguments of the `StandardLIF` that is the same function; None where there is none.
        differs: which equation is another, where none is the same.
    """

    def __init__(self, run: Run, matched: dict[str, Any] | None, differs: str = "") -> None:
        super().__init__()
        self.v: Tensor | float = 0.0
        self.differs = differs
        self._run, self._matched = run, matched

    def forward(self, x_seq: Tensor) -> Tensor:
        """`[T, N, *]` to spikes of the same shape."""
        spikes, self.v = self._run(x_seq, self.v if isinstance(self.v, Tensor) else torch.zeros_like(x_seq[0]))
        return spikes

    def reset(self) -> None:
        """Forgets the membrane."""
        self.v = 0.0

    def reference(self) -> nn.Module | None:
        """Our LIF by plain autograd: the same function; None where there is none."""
        if self._matched is None:
            return None
        return StandardLIF(**self._matched, step_mode="m", backend="torch")


class _CompiledLIF(Stepped):
    """SpikingJelly's LIF as one compiled function; records tell memory by the name of this class."""


def _over_steps(step: Run) -> Run:
    def run(x_seq: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        spikes = []
        for x in x_seq.unbind(0):
            spike, v = step(x, v)
            spikes.append(spike)
        return torch.stack(spikes), v

    return run


def snntorch(tau: float = 2.0, v_threshold: float = 1.0) -> nn.Module:
    """snnTorch's `Leaky` with the reset that ours can have: to zero, in the step of the spike."""
    leaky = _leaky(tau, v_threshold, reset_mechanism="zero", reset_delay=False)
    matched = {"tau": tau, "v_threshold": v_threshold, "decay_input": False, "surrogate_function": surrogate.ATan(2.0)}
    return Stepped(leaky, matched)


def snntorch_default(tau: float = 2.0, v_threshold: float = 1.0) -> nn.Module:
    """snnTorch's `Leaky` as it comes: the threshold is subtracted in the step after the spike, with no gradient."""
    return Stepped(
        _leaky(tau, v_threshold),
        None,
        "its equation is another: h[t] = (1 - 1/tau) h[t-1] + x[t] - theta s[t-1], the reset a step later",
    )


def _leaky(tau: float, v_threshold: float, **options: Any) -> Run:
    spike_grad = theirs("snntorch.surrogate").atan(2.0)
    neuron = theirs("snntorch").Leaky(beta=1.0 - 1.0 / tau, threshold=v_threshold, spike_grad=spike_grad, **options)
    return _over_steps(neuron.forward)


def norse(tau: float = 2.0, v_threshold: float = 1.0) -> nn.Module:
    """Norse's LIF without a synaptic current, `lif_box_feed_forward_step`; its SuperSpike has sharpness 1, as ours."""
    boxes = theirs("norse.torch.functional.lif_box")
    p = boxes.LIFBoxParameters(
        tau_mem_inv=torch.as_tensor(1.0 / tau), v_th=torch.as_tensor(v_threshold), method="super", alpha=1.0
    )

    def step(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        spikes, state = boxes.lif_box_feed_forward_step(x, boxes.LIFBoxFeedForwardState(v), p, dt=1.0)
        return spikes, state.v

    matched = {"tau": tau, "v_threshold": v_threshold, "surrogate_function": surrogate.SuperSpike(1.0)}
    return Stepped(_over_steps(step), matched)


def sinabs(tau: float = 2.0, v_threshold: float = 1.0, detach_reset: bool = False) -> nn.Module:
    """One step of sinabs' `LIF` with normalised input, one spike a step at most, and a reset to zero.

    Its exponential surrogate is scaled by 1/2, to the height of ours. The reset is its `MembraneReset` where detached,
    and otherwise a `reset_fn` that passes the gradient on."""
    activation = theirs("sinabs.activation")
    single_step = theirs("sinabs.layers.functional.lif").lif_forward_single
    phi = activation.SingleExponential(grad_width=0.5 / v_threshold, grad_scale=0.5)

    def with_gradient(spikes: Tensor, state: dict[str, Tensor], threshold: float) -> dict[str, Tensor]:
        return {"v_mem": state["v_mem"] * (1.0 - spikes)}

    reset = activation.MembraneReset() if detach_reset else with_gradient

    def step(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        spikes, state = single_step(
            x, 1.0 - 1.0 / tau, None, {"v_mem": v}, v_threshold, activation.SingleSpike, reset, phi, None, True
        )
        return spikes, state["v_mem"]

    own = surrogate.PiecewiseExp(2.0)
    matched = {"tau": tau, "v_threshold": v_threshold, "detach_reset": detach_reset, "surrogate_function": own}
    return Stepped(_over_steps(step), matched)


def theirs(name: str) -> Any:
    """A module of a library; raises `SkipCase` where that is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return import_module(name)
        except ImportError as error:
            package = (error.name or name).partition(".")[0]
            raise SkipCase(f"{package} is not installed: pip install {package}") from None


PEERS: dict[str, Callable[..., nn.Module]] = {
    "spikingjelly": spikingjelly,
    "spikingjelly-compiled": spikingjelly_compiled,
    "snntorch": snntorch,
    "snntorch-default": snntorch_default,
    "norse": norse,
    "sinabs": sinabs,
}
"""Makers by the name that a case gives them."""


def factory_of(node: str) -> Callable[..., nn.Module]:
    """The class or function behind a node, of its neurons where a strategy or block is named with it.

    Raises:
        ValueError: no such node.
    """
    name = node.partition("+")[0]
    return CarrierLIF if name == "norm-carrier" else PEERS.get(name) or node_factory(name)


def accepts(factory: Any, option: str) -> bool:
    """Whether it takes `backend`, or `step_mode`: every node of this package does, by name or among its keywords."""
    ours = isinstance(factory, type) and issubclass(factory, SpikingNode)
    return ours or option in signature(factory).parameters


@contextmanager
def unlisted() -> Iterator[None]:
    """Neurons made inside are taken off snnTorch's list of all there ever were, which keeps them and their graphs."""
    known = sys.modules.get("snntorch")
    before = len(known.SpikingNeuron.instances) if known else 0
    try:
        yield
    finally:
        if made := sys.modules.get("snntorch"):
            del made.SpikingNeuron.instances[before:]


def takes(node: str, option: str, value: Any) -> bool:
    """Whether a node, or strategy, by name, takes an option, and of backends `value`.

    A method for a model of the user takes any backend, for the neurons that it puts in. What no node can have here,
    such as "fused" without numba, counts as taken: the node's error says what to install.
    """
    if node in METHODS and is_untouched(node):
        return option != "backend"
    if node in METHODS and option == "backend":
        return True
    factory = factory_of(node)
    if option != "backend":
        known = signature(factory).parameters
        return option in known or any(each.kind is each.VAR_KEYWORD for each in known.values())
    if factory in PEERS.values() or not accepts(factory, "backend"):
        return False
    made, x = factory(), torch.zeros(1, 1, 2)
    if value != "fused" or not isinstance(made, SpikingNode):
        return True
    return not fused_obstacle(made, x) or bool(fused_obstacle(StandardLIF(), x))
