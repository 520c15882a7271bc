"""What the fidelity of a case is judged by: its reference model, and how its node recovers its input."""

import copy
import math
from contextlib import nullcontext
from functools import partial
from inspect import unwrap
from typing import Any

import torch
from revsnn_nodes import CarrierLIF
from revsnn_nodes.coupled import InvertingNode
from revsnn_nodes.plan import is_neuron, neurons_of
from revsnn_nodes.swap import COMPILED, is_hooked, replaced_method
from torch import Tensor, nn

from revsnn_bench.case import AS_IS, Case, is_own
from revsnn_bench.meters.fidelity import Subject
from revsnn_bench.meters.step import copied, learned, same_bits
from revsnn_bench.models.blocks import ConvBlock
from revsnn_bench.models.field import NETWORKS as FIELD
from revsnn_bench.models.methods import Stepwise, is_approximate
from revsnn_bench.models.own import is_untouched
from revsnn_bench.models.reversible import RevChain
from revsnn_bench.models.workloads import build
from revsnn_bench.records import NoOracle

LARGEST_REFERENCE = 1 << 21
"""Elements of input, T x B x features, up to which the float64 reference runs on all samples; beyond, on fewer."""

STEP_TOLERANCE = 1e-4
"""`rtol` and `atol` of `torch.allclose` for an inverted step, in units of the threshold."""


def subject_of(case: Case) -> Subject:
    """Builds the step and its reference; raises `NoOracle` where a peer's equations are none of ours.

    A single layer that is too large is judged on a slice of its samples, which are independent, and as a whole against
    the reference in its own precision.
    """
    part = case
    if case.workload == "layer":
        most = LARGEST_REFERENCE // (case.timesteps * math.prod(case.shape))
        part = case.model_copy(update={"batch": max(1, min(case.batch, most))})
    step = build(part)
    if differs := next((found for m in step.model.modules() if (found := getattr(m, "differs", ""))), ""):
        raise NoOracle(differs)
    # Same seed, same parameters: of a network that a strategy has wrapped, the reference is that of the plain one.
    in_remat = case.node == "as-is+remat"  # claims that a user's model stays what it is, whatever its neurons are
    wrapped = case.workload in FIELD or in_remat
    plain = build(_plain(case)) if wrapped and case != _plain(case) else None
    reference = _as_is(case, step.model) if is_own(case.workload) else reference_of((plain or step).model, rounded=True)
    shapes = [parameter.shape for parameter in learned(step.model)]
    if reference is not None and [parameter.shape for parameter in learned(reference)] != shapes:
        reference = None  # it has other gradients than those to be judged
    inverting = [module for module in step.model.modules() if isinstance(module, InvertingNode)]
    bare = copy.copy(step)
    bare.around = nullcontext
    return Subject(
        step=step,
        reference=reference,
        recover=partial(_recover, step.model) if isinstance(step.model, InvertingNode | CarrierLIF) else None,
        predicted_error=max((n.predicted_error(len(step.source), step.source.dtype) for n in inverting), default=None),
        whole=None if part == case else build(case),
        plain=plain,
        bare=bare,
        itself=build(_plain(case)).model if in_remat else None,
        approximate=is_approximate(case.node),
        own=is_own(case.workload),
    )


def _as_is(case: Case, model: nn.Module) -> nn.Module | None:
    """What a user's model is held against: itself as it is, every neuron its reference; carriers have their own.

    None where a neuron names no reference: the model's own gradient would be what it is held against. Raises `NoOracle`
    where the model, which has not run yet, is another one every time that it is made.
    """
    changes = {"node_options": ()} | ({} if case.node == "lif-carrier" else {"node": AS_IS})
    as_is = case.model_copy(update=changes)
    made = build(as_is).model
    # A method that changed a weight is wrong; two models as they are have the same ones.
    if _weights_differ(made, model) and _weights_differ(made, build(as_is).model):
        raise NoOracle(
            "its weights are others every time that the model is made: they are drawn by a generator of its own. Draw "
            "them by torch, numpy.random or random, which are seeded here, or seed that generator"
        )
    return reference_of(made, rounded=is_untouched(case.node))


def _weights_differ(one: nn.Module, other: nn.Module) -> bool:
    theirs = dict(other.named_parameters())
    return any(not same_bits(p, theirs[name]) for name, p in one.named_parameters() if name in theirs)


def reference_of(model: nn.Module, rounded: bool = False) -> nn.Module | None:
    """A copy of a model in which every node is its reference by plain autograd, and every block keeps everything.

    SpikingJelly's LIF, IF and parametric LIF are held against ours of the same function. A node of another package
    names its reference by a method `reference()`, which returns a fresh module of the same function and parameters; its
    own copy never stands for it. None where a neuron names none, or where nothing is known for a neuron.

    Args:
        rounded: whether membranes in SpikingJelly's places have the input's type, as theirs do, which fire by it.
    """
    if is_neuron(model):
        return _reference_of_neuron(model, rounded)
    neurons = neurons_of(model)
    if not neurons or any(_reference_of_neuron(neuron) is None for neuron in neurons):
        return None
    reference = _as_written(copied(model))
    if name := _calls_another(reference):
        raise NoOracle(
            f"a copy of it, which it is held against, would run the model itself: `{name}` is a compiled method of "
            "that. Call `model.compile()`, or compile the whole model by `torch.compile(model)`"
        )
    if isinstance(reference, ConvBlock | RevChain | Stepwise):
        reference = reference.plain()
    for name, module in list(reference.named_modules()):
        if name and isinstance(module, ConvBlock):
            reference.set_submodule(name, module.plain())
    shared: dict[nn.Parameter, nn.Parameter] = {}
    inside: set[nn.Module] = set()  # of a neuron that names its reference as a whole
    for name, module in model.named_modules():
        if is_neuron(module) and module not in inside:
            inside.update(module.modules())
            replacement = _reference_of_neuron(module, rounded)
            assert replacement is not None
            theirs = dict(replacement.named_parameters(recurse=False))
            for own, parameter in module.named_parameters(recurse=False):
                if own in theirs:  # that of an earlier replacement, where neurons share it
                    setattr(replacement, own, shared.setdefault(parameter, theirs[own]))
            place = ".".join(part for part in name.split(".") if part != COMPILED)
            if not place:
                return replacement
            reference.set_submodule(place, replacement)
    return reference


def _as_written(model: nn.Module) -> nn.Module:
    """A model without `torch.compile` around it or its parts: what is put in one is not what that calls."""
    while COMPILED in model._modules:
        model = model.get_submodule(COMPILED)
    for module in list(model.modules()):
        for name, child in module._modules.items():
            while child is not None and COMPILED in child._modules:
                child = child.get_submodule(COMPILED)
            module._modules[name] = child
    return model


def _calls_another(model: nn.Module) -> str | None:
    """The name of an attribute that is a method of another model: a copy of a compiled method calls the original."""
    inside = set(model.modules())
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            of_it = getattr(unwrap(value) if callable(value) else value, "__self__", None)
            if isinstance(of_it, nn.Module) and of_it not in inside:
                return f"{path}.{name}" if path else name
    return None


def _reference_of_neuron(neuron: nn.Module, rounded: bool = False) -> nn.Module | None:
    if is_hooked(neuron) or replaced_method(neuron):
        return None  # a neuron of its class alone is another function
    if callable(named := getattr(neuron, "reference", None)):
        found: nn.Module = named()
        itself = type(found) is type(neuron) and not type(neuron).__module__.startswith("revsnn_nodes.")
        return None if itself else found
    if type(neuron).__module__.startswith("spikingjelly."):
        from revsnn_nodes.spikingjelly import twin_of

        twin: Any = twin_of(copy.deepcopy(neuron), backend="torch")
        if rounded and hasattr(twin, "state_dtype"):
            twin.state_dtype = "input"
        return twin  # type: ignore[no-any-return]
    return None


def recovered_steps(node: InvertingNode, x_seq: Tensor, y_seq: Tensor) -> int:
    """For how many steps, from the last one back, the inverse gives input and membrane to `STEP_TOLERANCE`.

    Input and output from rest, `[T, N, *]`; each step is held against stored activations with `torch.allclose`.
    """
    stepping = node.reference()
    stepping.step_mode = "s"
    stored = [torch.full_like(x_seq[0], node.neuron.rest)]
    for x in x_seq:
        stepping(x)
        assert isinstance(stepping.v, Tensor)
        stored.append(stepping.v)
    v = stored[-1]
    for recovered, t in enumerate(reversed(range(len(x_seq)))):
        x_back, _, v = node.invert(y_seq[t : t + 1], v)
        for back, kept in ((x_back[0], x_seq[t]), (v, stored[t])):
            if not torch.allclose(back, kept, rtol=STEP_TOLERANCE, atol=STEP_TOLERANCE):
                return recovered
    return len(x_seq)


def _plain(case: Case) -> Case:
    return case.model_copy(update={"node": case.node.partition("+")[0]})


def _recover(node: InvertingNode | CarrierLIF, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Worst error of the input that the backward pass recovers, spikes that it gets wrong, steps that it inverts."""
    steps = None
    if isinstance(node, InvertingNode):
        x_back, spikes_back, _ = node.invert(y)
        spikes, steps = node.spikes(x, y), recovered_steps(node, x, y)
    else:
        x_back, spikes_back = node.decode(y)
        spikes, x = node.reference().eval()(x), x.clamp(-node.neuron.clamp, node.neuron.clamp)
    return {
        "reconstruction_error": (x_back - x).abs().max().item(),
        "flipped_spikes": int((spikes_back != spikes).sum().item()),
        "recovered_steps": steps,
    }
