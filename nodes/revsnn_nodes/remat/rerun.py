"""Neurons inside `remat`: they save their inputs alone, and are run again under grad in the backward pass.

They keep their input, which often has a recipe, and not their charges. Contrast: `torch.utils.checkpoint` keeps hold of
everything that the function refers to, and draws random numbers again; here it is one function without randomness.
"""

from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.profiler import record_function

from revsnn_nodes.equations import state_dtype
from revsnn_nodes.kernels.autograd import FusedLIF, FusedNormLIF, norm_lif_spikes
from revsnn_nodes.remat.norm import NormedInput, normed_input
from revsnn_nodes.remat.pack import LABEL, paused, recordable
from revsnn_nodes.remat.recipes import Autocast
from revsnn_nodes.remat.record import Recorder, recorder_now

Outputs = Tensor | tuple[Tensor, ...]


class Begin(torch.autograd.Function):
    """A tensor at which a graph begins, as at a leaf; but a graph holds its leaves, and not this one.

    Keeps nothing for backward, which ends at its output.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, link: Tensor) -> Tensor:
        """The tensor; `link` requires grad."""
        return tensor.detach()


class Rerun(torch.autograd.Function):
    """Runs `call(*tensors)`, and again in the backward pass.

    Keeps for backward: its tensors.
    Exactness: gradients have the bits of `call`'s own; second derivatives are `call`'s, or its error.
    """

    @staticmethod
    def forward(ctx: Any, call: Callable[..., Outputs], *tensors: Tensor | None) -> Outputs:
        """The outputs of `call`."""
        ctx.call = call
        given = next(tensor for tensor in tensors if tensor is not None)
        ctx.autocast = Autocast.now(given.device.type)
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        with torch._C.DisableTorchFunction():
            return call(*tensors)

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the tensors."""
        twice = torch.is_grad_enabled()  # create_graph
        needs = ctx.needs_input_grad[1:]
        with torch._C.DisableTorchFunction(), torch.enable_grad(), paused():
            tensors = ctx.saved_tensors
            if not twice:  # at the beginning of a graph of their own
                link = torch.empty(0, requires_grad=True)
                tensors = [
                    each if each is None else Begin.apply(each, link) if need else each.detach()
                    for each, need in zip(tensors, needs, strict=True)
                ]
            with record_function(LABEL), ctx.autocast.again():
                made = ctx.call(*tensors)
            outputs = made if isinstance(made, tuple) else (made,)
            reached = [
                (get_gradient_edge(output), gradient)
                for output, gradient in zip(outputs, arriving, strict=True)
                if gradient is not None and output.requires_grad
            ]
            wanted = [get_gradient_edge(each) for each, need in zip(tensors, needs, strict=True) if need]
            del tensors, made, outputs  # what the graph does not keep is free before the gradients are made
            found: tuple[Tensor | None, ...] = (None,) * len(wanted)
            if reached:
                ends, arrived = zip(*reached, strict=True)
                found = torch.autograd.grad(ends, wanted, arrived, create_graph=twice, allow_unused=True)
        gradients = iter(found)
        return None, *(next(gradients) if need else None for need in needs)


def run_node(
    node: Any, run: Callable[..., tuple[Tensor, Tensor]], x_seq: Tensor, v: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Runs a neuron; inside `remat` as one that keeps its input in place of its charges, if that keeps no more.

    Its parameters are those of now, in the backward pass too.
    """
    recorder = recorder_now()
    if recorder is None or torch.compiler.is_compiling() or not node.keeps_input_in_remat:
        return run(x_seq, v)
    if not (torch.is_grad_enabled() and recorder.records() and _is_a_function_of_parameters(node, run)):
        return run(x_seq, v)
    parameters: dict[str, Tensor] = dict(node._parameters)
    given = [each for each in (x_seq, v, *parameters.values()) if each is not None]
    if not (all(map(recordable, given)) and any(tensor.requires_grad for tensor in given)):
        return run(x_seq, v)
    with torch._C.DisableTorchFunction():
        if v is not None and recorder.value_of(v).opened:  # cut from its graph: what numpy has read may change unseen
            v = v.clone()
        fuses = node.fuses_batch_norm and run.__name__ == "fused_sequence" and x_seq.requires_grad
        normed = normed_input(recorder.value_of(x_seq), x_seq, recorder.note) if fuses else None
        if normed is None:
            call, again, sources = _of_input(node, run, x_seq, v, parameters)
        else:
            call, again, sources = _of_norm(node, x_seq, v, normed)
        read = recorder.refer(sources, {})
        if read is None or recorder.new_bytes(read) > x_seq.numel() * x_seq.itemsize:
            return _with_charges(node, run, recorder, x_seq, v)
        private = () if normed is None else (normed.mean, normed.inverse_std)  # which no code of the user's has
        recorder.may_change = read.before.keys() - {each.untyped_storage()._cdata for each in private}
        try:
            spikes, v_last = recorder.in_one_module(call)
        finally:
            recorder.may_change = frozenset()
        recorder.note(again, read, spikes, 1)
    return spikes, v_last


def _with_charges(
    node: Any, run: Callable[..., tuple[Tensor, Tensor]], recorder: Recorder, x_seq: Tensor, v: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A neuron that keeps its charges, as one does that takes a single step; fused, its spikes are made from those."""
    spikes, v_last = run(x_seq, v)
    if type(spikes.grad_fn).__name__ == f"{FusedLIF.__name__}Backward":
        read = recorder.refer((spikes.grad_fn.saved_tensors[0], node.neuron.v_threshold), {})  # type: ignore[union-attr]
        if read is not None:
            recorder.note(_fired, read, spikes, 1)
    return spikes, v_last


def _fired(charge_seq: Tensor, threshold: float) -> Tensor:
    """Spikes, from charges that were each rounded to their side of the threshold."""
    return (charge_seq.to(state_dtype(charge_seq.dtype)) - threshold >= 0).to(charge_seq.dtype)


def _is_a_function_of_parameters(node: Any, run: Callable[..., Any]) -> bool:
    """Whether what a node runs is what its class promises to be a function of its input, membrane and parameters alone.

    Not a method of a subclass that does not promise it anew, or of the instance; nor where something else learns.
    """
    promised = _promised(type(node), run.__name__)  # type: ignore[arg-type]
    if promised is None or getattr(run, "__func__", None) is not promised:
        return False
    for name, each in chain(node.__dict__.items(), node._buffers.items()):
        if isinstance(each, Tensor) and each.requires_grad and name not in ("v", "v_seq"):
            return False
    return all(next(child.parameters(), None) is None for child in node._modules.values())


@cache
def _promised(kind: type, name: str) -> Any:
    """The method of this name, of the class that gives `keeps_input_in_remat`; None where a subclass has another."""
    for each in kind.__mro__:
        if "keeps_input_in_remat" in vars(each):
            return getattr(kind, name, None)
        if name in vars(each):
            return None
    return None


Run = tuple[Callable[[], tuple[Tensor, Tensor]], Callable[..., Tensor], tuple[Tensor | None, ...]]
"""A neuron's call; what makes its spikes again; and from which tensors."""


def _of_input(
    node: Any,
    run: Callable[..., tuple[Tensor, Tensor]],
    x_seq: Tensor,
    v: Tensor | None,
    parameters: dict[str, Tensor],
) -> Run:
    """A neuron that keeps its input, and is run again in the backward pass."""
    frozen = object.__new__(type(node))
    surrogate = node.surrogate_function.as_now()
    modules = dict(node._modules, surrogate_function=surrogate)
    # Nothing that holds a membrane, which holds this graph: memories of SpikingJelly do, and `run` does by its node.
    frozen.__dict__.update(node.__dict__, v=None, v_seq=None, _memories={}, _modules=modules)
    name = run.__name__

    def again(x: Tensor, v: Tensor | None, *learned: Tensor) -> tuple[Tensor, Tensor]:
        """Spikes and the last membrane, with the parameters as they were."""
        frozen.__dict__["_parameters"] = dict(zip(parameters, learned, strict=True))
        result: tuple[Tensor, Tensor] = getattr(frozen, name)(x, v)
        return result

    sources = (x_seq, v, *parameters.values())
    return lambda: Rerun.apply(again, *sources), lambda *given: again(*given)[0], sources


def _of_norm(node: Any, x_seq: Tensor, v: Tensor | None, normed: NormedInput) -> Run:
    """A neuron that keeps what its input was made from by a batch norm."""
    neuron, *sources, inner, form = node.neuron, *normed
    return (
        lambda: FusedNormLIF.apply(x_seq, v, *sources, inner, form, neuron, node.surrogate_function),
        lambda v, *sources: norm_lif_spikes(v, *sources, inner=inner, form=form, neuron=neuron),
        (v, *sources),
    )
