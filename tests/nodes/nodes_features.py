"""Features of PyTorch, each as a function of a node and an input: what must equal plain autograd, or be refused.

A function returns tensors. They are held against those of another function, or of the same, on the node's reference, by
plain autograd on the torch backend in float64.
"""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Feature = Callable[[Any, Tensor], list[Tensor]]


def plain(node: Any, x: Tensor) -> list[Tensor]:
    """Output and input gradient of a sum of squares."""
    leaf = x.detach().clone().requires_grad_()
    y = node(leaf)
    return [y.detach(), torch.autograd.grad(y.square().sum(), leaf)[0]]


def through(run: Callable[[Any, Tensor], Tensor]) -> Feature:
    """`plain` with another way to call the node."""
    return lambda node, x: plain(lambda leaf: run(node, leaf), x)


def _reloaded(node: Any) -> Any:
    other = copy.deepcopy(node)
    other.load_state_dict(node.state_dict())
    return other


def _pickled(node: Any) -> Any:
    return pickle.loads(pickle.dumps(node))


def _saved(node: Any) -> Any:
    file = io.BytesIO()
    torch.save(node, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _retained(node: Any, x: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    y = node(leaf)
    first, second = (torch.autograd.grad(y.square().sum(), leaf, retain_graph=True)[0] for _ in range(2))
    return [y.detach(), (first + second) / 2]


def _backward(node: Any, x: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    y = node(leaf)
    y.square().sum().backward()
    return [y.detach(), leaf.grad]


def _anomaly(node: Any, x: Tensor) -> list[Tensor]:
    with torch.autograd.detect_anomaly(check_nan=True):
        return plain(node, x)


def _hooked(node: Any, x: Tensor) -> list[Tensor]:
    handles = [
        node.register_forward_hook(lambda _, __, y: y * 1),
        node.register_forward_pre_hook(lambda _, args: (args[0] * 1,)),
        node.register_full_backward_hook(lambda _, grads, __: grads),
    ]
    result = plain(node, x)
    for handle in handles:
        handle.remove()
    return result


def _silent(context: Any) -> Feature:
    def run(node: Any, x: Tensor) -> list[Tensor]:
        with context():
            node(x)
        node.reset()
        return plain(node, x)

    return run


def _inference_state(node: Any, x: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        node(x)
    return plain(node, x)


def _truncated(node: Any, x: Tensor) -> list[Tensor]:
    results = []
    for _ in range(2):
        results += plain(node, x)
        node.detach()
    return results


def _across_calls(node: Any, x: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    y = torch.cat([node(leaf), node(leaf / 2)])
    return [y.detach(), torch.autograd.grad(y.square().sum(), leaf)[0]]


def _checkpointed_twice(reentrant: bool, detach: bool) -> Feature:
    def run(node: Any, x: Tensor) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        y = checkpoint(node, leaf, use_reentrant=reentrant)
        if detach:
            node.detach()
        y = torch.cat([y, checkpoint(node, leaf / 2, use_reentrant=reentrant)])
        y.square().sum().backward()
        return [y.detach(), leaf.grad]

    return run


def _two_calls(detach: bool) -> Feature:
    def run(node: Any, x: Tensor) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        y = node(leaf)
        if detach:
            node.detach()
        y = torch.cat([y, node(leaf / 2)])
        return [y.detach(), torch.autograd.grad(y.square().sum(), leaf)[0]]

    return run


def _penalty(node: Any, x: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(node(leaf).sum(), leaf, create_graph=True)
    return list(torch.autograd.grad((grad.square().sum() + leaf.sum()), leaf))


def _steps(node: Any, x: Tensor) -> list[Tensor]:
    def loop(leaf: Tensor) -> Tensor:
        node.step_mode = "s"
        y = torch.stack([node(step) for step in leaf.unbind(0)])
        node.step_mode = "m"
        return y

    return plain(loop, x)


def _written(target: str) -> Feature:
    def run(node: Any, x: Tensor) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        given = leaf * 1
        y = node(given)
        kept = y.detach().clone()
        loss = y.square().sum()
        with torch.no_grad():
            (given if target == "input" else y).mul_(2)
        return [kept, torch.autograd.grad(loss, leaf)[0]]

    return run


def _functional(node: Any, x: Tensor) -> list[Tensor]:
    gradient = torch.func.grad(lambda each: node(each).square().sum())(x)
    node.reset()
    return [node(x).detach(), gradient]


def _per_sample(node: Any, x: Tensor) -> list[Tensor]:
    def loss(each: Tensor) -> Tensor:
        node.reset()
        return node(each.unsqueeze(1)).square().sum()

    gradient = torch.func.vmap(torch.func.grad(loss), in_dims=1, out_dims=1)(x)
    node.reset()
    return [node(x).detach(), gradient]


def _jacobian(vectorize: bool) -> Feature:
    def run(node: Any, x: Tensor) -> list[Tensor]:
        def last(each: Tensor) -> Tensor:
            node.reset()
            return node(each)[-1, 0]

        return [torch.autograd.functional.jacobian(last, x, vectorize=vectorize)]

    return run


def _forward_mode(node: Any, x: Tensor) -> list[Tensor]:
    return [torch.func.jvp(node, (x,), (torch.ones_like(x),))[1]]


def _no_grad_input(node: Any, x: Tensor) -> list[Tensor]:
    assert not node(x).requires_grad
    node.reset()
    return plain(node, x)


def _special(value: float) -> Feature:
    def run(node: Any, x: Tensor) -> list[Tensor]:
        x = x.clone()
        x[0, 0, 0] = value
        return [node(x).detach()[:, 1:]]  # the other sample must not notice

    return run


def _exported(node: Any, x: Tensor) -> list[Tensor]:
    program = torch.export.export(node, (x,), strict=False)
    node.reset()
    return plain(program.module(), x)


def _compiled(node: Any, x: Tensor) -> list[Tensor]:
    torch._dynamo.reset()
    return plain(torch.compile(node, backend="aot_eager", fullgraph=True), x[:1])


def _on_meta(node: Any, x: Tensor) -> list[Tensor]:
    y = node(x.to("meta"))
    node.reset()
    assert y.shape == x.shape
    assert y.device.type == "meta"
    return plain(node, x)


def _empty_batch(node: Any, x: Tensor) -> list[Tensor]:
    return plain(node, x[:, :0])


def _accumulated(node: Any, x: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    for _ in range(2):
        y = node(leaf)
        (y.square().sum() / 2).backward()
        node.reset()
    return [y.detach(), leaf.grad]


def _saved_on_cpu(node: Any, x: Tensor) -> list[Tensor]:
    with torch.autograd.graph.save_on_cpu():
        return plain(node, x)


FEATURES: dict[str, tuple[Feature, Feature | None]] = {
    "forward, torch.autograd.grad": (plain, plain),
    "backward()": (_backward, plain),
    "retain_graph, two backward passes": (_retained, plain),
    "accumulation over two batches": (_accumulated, plain),
    "detect_anomaly": (_anomaly, plain),
    "save_on_cpu": (_saved_on_cpu, plain),
    "module hooks": (_hooked, plain),
    "deepcopy": (lambda node, x: plain(copy.deepcopy(node), x), plain),
    "pickle": (lambda node, x: plain(_pickled(node), x), plain),
    "torch.save, torch.load": (lambda node, x: plain(_saved(node), x), plain),
    "state_dict": (lambda node, x: plain(_reloaded(node), x), plain),
    "no_grad before": (_silent(torch.no_grad), plain),
    "inference_mode before": (_silent(torch.inference_mode), plain),
    "state from inference_mode": (_inference_state, None),
    "input without grad": (_no_grad_input, plain),
    "state carried over two calls": (_across_calls, None),
    "truncated BPTT with detach()": (_truncated, None),
    "step mode s, in a loop": (_steps, plain),
    "checkpoint, reset before": (through(lambda n, x: checkpoint(n, x, use_reentrant=False)), plain),
    "checkpoint, state carried": (_checkpointed_twice(False, False), _two_calls(False)),
    "checkpoint, state detached": (_checkpointed_twice(False, True), _two_calls(True)),
    "checkpoint reentrant, state carried": (_checkpointed_twice(True, False), _two_calls(False)),
    "checkpoint reentrant, state detached": (_checkpointed_twice(True, True), _two_calls(True)),
    "nested checkpoint": (
        through(lambda n, x: checkpoint(lambda e: checkpoint(n, e, use_reentrant=False), x, use_reentrant=False)),
        plain,
    ),
    "create_graph penalty": (_penalty, None),
    "output written in place": (_written("output"), plain),
    "input written in place": (_written("input"), plain),
    "transposed input": (through(lambda n, x: n(x.transpose(1, 2).contiguous().transpose(1, 2))), plain),
    "every second of a longer input": (through(lambda n, x: n(x.repeat_interleave(2, -1)[..., ::2])), plain),
    "input expanded over time": (through(lambda n, x: n(x[:1].expand_as(x))), None),
    "input expanded over the batch": (through(lambda n, x: n(x[:, :1].expand_as(x))), None),
    "NaN in one sample": (_special(float("nan")), None),
    "inf in one sample": (_special(float("inf")), None),
    "T = 1": (lambda node, x: plain(node, x[:1]), None),
    "batch of 0": (_empty_batch, None),
    "meta device": (_on_meta, plain),
    "torch.func.grad": (_functional, plain),
    "vmap of grad": (_per_sample, plain),
    "jacobian": (_jacobian(False), None),
    "jacobian, vectorised": (_jacobian(True), None),
    "torch.func.jvp": (_forward_mode, None),
    "torch.compile, fullgraph": (_compiled, lambda node, x: plain(node, x[:1])),
    "torch.export, training": (_exported, plain),
}
"""By feature: what runs it, and what its results must equal on the reference; None for the feature itself there."""
