"""Features of PyTorch, each as a function of a node and an input: what must equal plain autograd, or be refused.

A function returns tensors. They are held against those of another function, or of the same, on the node's reference, by
plain autograd on the torch backend in float64.
"""

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from revsnn_nodes import NormCarrierLIF
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, create_selective_checkpoint_contexts

Feature = Callable[[Any, Tensor], list[Tensor]]


def plain(node: Any, x: Tensor, run: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """Output, and gradients of the input and of the node's parameters, of a sum of squares of `run(x)` or `node(x)`."""
    leaf = x.detach().clone().requires_grad_()
    y = (node if run is None else run)(leaf)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [leaf, *node.parameters()])]


def through(run: Callable[[Any, Tensor], Tensor]) -> Feature:
    """`plain` with another way to call the node."""
    return lambda node, x: plain(node, x, lambda leaf: run(node, leaf))


def accumulated(node: Any, leaf: Tensor) -> list[Tensor]:
    """What `backward()` has left: gradients of the input and of the node's parameters."""
    return [leaf.grad, *(parameter.grad for parameter in node.parameters())]


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
    leaves = [leaf, *node.parameters()]
    passes = [torch.autograd.grad(y.square().sum(), leaves, retain_graph=True) for _ in range(2)]
    return [y.detach(), *((first + second) / 2 for first, second in zip(*passes, strict=True))]


def _backward(node: Any, x: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    y = node(leaf)
    y.square().sum().backward()
    return [y.detach(), *accumulated(node, leaf)]


def _anomaly(node: Any, x: Tensor) -> list[Tensor]:
    with torch.autograd.detect_anomaly(check_nan=True):
        return plain(node, x)


def _hooked(node: Any, x: Tensor) -> list[Tensor]:
    handles = [
        node.register_forward_hook(lambda _, __, y: y * 1),
        node.register_forward_pre_hook(lambda _, args: (args[0] * 1,)),
        node.register_full_backward_pre_hook(lambda _, grads: grads),
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


def _backward_over_two_calls(retain: bool) -> Feature:
    def run(node: Any, x: Tensor) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        for each in (leaf, leaf / 2):
            y = node(each)
            y.square().sum().backward(retain_graph=retain)
        return [y.detach(), *accumulated(node, leaf)]

    return run


def _in_mid_sequence(change: Callable[[Any], Any]) -> Feature:
    def run(node: Any, x: Tensor) -> list[Tensor]:
        node(x)
        return plain(change(node), x)

    return run


def _detached(node: Any) -> Any:
    node.detach()
    return node


def _summed(node: Any, x: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    y = node(leaf)
    return [y.detach(), *torch.autograd.grad(y.sum(), [leaf, *node.parameters()])]


def _penalty(node: Any, x: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(node(leaf).sum(), leaf, create_graph=True)
    return list(torch.autograd.grad((grad.square().sum() + leaf.sum()), leaf, retain_graph=True))


def _by_steps(node: Any, x: Tensor) -> Tensor:
    node.step_mode = "s"
    y = torch.stack([node(step) for step in x.unbind(0)])
    node.step_mode = "m"
    return y


def _written(target: str) -> Feature:
    def run(node: Any, x: Tensor) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        given = leaf * 1
        y = node(given)
        kept = y.detach().clone()
        loss = y.square().sum()
        with torch.no_grad():
            (given if target == "input" else y).mul_(2)
        return [kept, *torch.autograd.grad(loss, [leaf, *node.parameters()])]

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
    assert node(x).requires_grad == any(True for _ in node.parameters())
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


def _exported_for_use(node: Any, x: Tensor) -> list[Tensor]:
    node.eval()
    program = torch.export.export(node, (x,), strict=False)
    node.reset()
    return [program.module()(x)]


def _two_batches(node: Any, x: Tensor, run: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """Two steps from rest; then two of another batch size, from the state that two before them left."""
    results = plain(node, x[:2], run)
    node.reset()
    larger = x.repeat(1, 3, 1)
    node(larger[:2])
    node.detach()
    return results + plain(node, larger[2:], run)


def _compiled(node: Any, x: Tensor) -> list[Tensor]:
    torch._dynamo.reset()
    results = _two_batches(node, x, torch.compile(node, backend="aot_eager", fullgraph=True))
    node.reset()
    by_other_sums = isinstance(node, NormCarrierLIF) and node.backend == "auto"  # whose kernels rest when compiled
    assert by_other_sums or torch.equal(results[0], node(x[:2]))
    return results


def _on_meta(node: Any, x: Tensor) -> list[Tensor]:
    y = copy.deepcopy(node).to("meta")(x.to("meta"))
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
    return [y.detach(), *accumulated(node, leaf)]


def _tensor_hooks(node: Any, x: Tensor) -> list[Tensor]:
    seen = []

    def run(leaf: Tensor) -> Tensor:
        leaf.register_hook(lambda grad: seen.append(grad) or grad)
        y = node(leaf)
        y.register_hook(lambda grad: seen.append(grad) or grad * 1)
        return y

    return plain(node, x, run) + seen


def _after_accumulation(node: Any, x: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    seen = []
    leaf.register_post_accumulate_grad_hook(lambda tensor: seen.append(tensor.grad.clone()))
    y = node(leaf)
    y.square().sum().backward(inputs=[leaf])
    return [y.detach(), *seen]


def _through_the_state(node: Any, x: Tensor) -> list[Tensor]:
    v = torch.full_like(x[0], 0.3).requires_grad_()
    node.v = v
    y = node(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum() + node.v.square().sum(), v)]


def _from_the_state(node: Any, x: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    node(leaf)
    return [node.v.detach(), *torch.autograd.grad(node.v.square().sum(), leaf)]


def _channels_last(node: Any, x: Tensor) -> Tensor:
    images = torch.stack([x, x / 2], -1).unsqueeze(-1)
    y = node(images.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2]))
    return y.sum((-1, -2))


def _functional_call(node: Any, x: Tensor) -> Tensor:
    parameters = {name: parameter * 1 for name, parameter in node.named_parameters()}
    return torch.func.functional_call(node, parameters, (x,))


def _in_eval(node: Any, x: Tensor) -> list[Tensor]:
    return plain(node.eval(), x)


def _added_in_place(node: Any, x: Tensor) -> Tensor:
    y = node(x)
    y += x
    return y


def _layers(node: Any, x: Tensor) -> nn.Sequential:
    """Linear, node, linear, in the dtype of x; the same weights in every call."""
    rng = torch.Generator().manual_seed(5)
    layers = nn.Sequential(nn.Linear(6, 6), node, nn.Linear(6, 3))
    for layer in (layers[0], layers[2]):
        for parameter in layer.parameters():
            parameter.data = torch.randn(parameter.shape, generator=rng, dtype=x.dtype)
    return layers


def _partly_frozen(node: Any, x: Tensor) -> list[Tensor]:
    layers = _layers(node, x)
    layers[0].weight.requires_grad_(False)
    layers[2].bias.requires_grad_(False)
    for parameter in list(node.parameters())[:1]:
        parameter.requires_grad_(False)
    return _trained(layers, layers, x)


def _trained(run: Callable[[Tensor], Tensor], layers: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, and gradients of all parameters that are not frozen."""
    y = run(x)
    y.square().sum().backward()
    return [y.detach(), *(each.grad for each in layers.parameters() if each.requires_grad)]


def _under_autocast(dtype: torch.dtype) -> Feature:
    def run(node: Any, x: Tensor) -> list[Tensor]:
        layers = _layers(node.float(), x.float())
        with torch.autocast("cpu", dtype):
            return _trained(layers, layers, x.float())

    return run


def _in(dtype: torch.dtype) -> Feature:
    return lambda node, x: plain(node.to(dtype), x.to(dtype))


def _scaled(node: Any, x: Tensor) -> list[Tensor]:
    layers = _layers(node, x)
    optimizer = torch.optim.SGD(layers.parameters(), 1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    for _ in range(2):
        scaler.scale(layers(x).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        node.reset()
    return [parameter.detach() for parameter in layers.parameters()]


def _data_parallel(node: Any, x: Tensor) -> list[Tensor]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        layers = _layers(node, x)
        return _trained(DistributedDataParallel(layers), layers, x)
    finally:
        dist.destroy_process_group()


def _deterministic(node: Any, x: Tensor) -> list[Tensor]:
    torch.use_deterministic_algorithms(True)
    try:
        return plain(node, x)
    finally:
        torch.use_deterministic_algorithms(False)


def _selective(node: Any, x: Tensor) -> Tensor:
    contexts = partial(create_selective_checkpoint_contexts, [torch.ops.aten.mul.Tensor])
    return checkpoint(node, x, use_reentrant=False, context_fn=contexts)


def _in_a_thread(node: Any, x: Tensor) -> Tensor:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(node, x).result()


def _pulled_back(node: Any, x: Tensor) -> list[Tensor]:
    y, pull = torch.func.vjp(node, x)
    return [y.detach(), *pull(2 * y)]


def _jacrev(node: Any, x: Tensor) -> list[Tensor]:
    def last(each: Tensor) -> Tensor:
        node.reset()
        return node(each)[-1, 0]

    return [torch.func.jacrev(last)(x)]


def _mapped(node: Any, x: Tensor) -> list[Tensor]:
    def run(each: Tensor) -> Tensor:
        node.reset()
        return node(each.unsqueeze(1)).squeeze(1)

    return [torch.func.vmap(run, in_dims=1, out_dims=1)(x).detach()]


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
    "tensor hooks": (_tensor_hooks, None),
    "backward(inputs=), post-accumulate hook": (_after_accumulation, None),
    "deepcopy": (lambda node, x: plain(copy.deepcopy(node), x), plain),
    "pickle": (lambda node, x: plain(_pickled(node), x), plain),
    "torch.save, torch.load": (lambda node, x: plain(_saved(node), x), plain),
    "state_dict": (lambda node, x: plain(_reloaded(node), x), plain),
    "no_grad before": (_silent(torch.no_grad), plain),
    "inference_mode before": (_silent(torch.inference_mode), plain),
    "state from inference_mode": (_inference_state, None),
    "input without grad": (_no_grad_input, plain),
    "partly frozen parameters": (_partly_frozen, None),
    "eval()": (_in_eval, None),
    "gradient of the initial membrane": (_through_the_state, None),
    "gradient from the last membrane": (_from_the_state, None),
    "state carried over two calls": (_across_calls, None),
    "truncated BPTT with detach()": (_truncated, None),
    "backward() twice over a carried state": (_backward_over_two_calls(False), None),
    "the same with retain_graph": (_backward_over_two_calls(True), None),
    "deepcopy in mid-sequence": (_in_mid_sequence(copy.deepcopy), _in_mid_sequence(_detached)),
    "to(dtype) and back in mid-sequence": (_in_mid_sequence(lambda n: n.float().double()), None),
    "expanded gradient": (_summed, None),
    "every second step of the output": (through(lambda n, x: n(x)[::2]), None),
    "step mode s, in a loop": (through(_by_steps), plain),
    "checkpoint, reset before": (through(lambda n, x: checkpoint(n, x, use_reentrant=False)), plain),
    "checkpoint, state carried": (_checkpointed_twice(False, False), _two_calls(False)),
    "checkpoint, state detached": (_checkpointed_twice(False, True), _two_calls(True)),
    "checkpoint reentrant, state carried": (_checkpointed_twice(True, False), _two_calls(False)),
    "checkpoint reentrant, state detached": (_checkpointed_twice(True, True), _two_calls(True)),
    "nested checkpoint": (
        through(lambda n, x: checkpoint(lambda e: checkpoint(n, e, use_reentrant=False), x, use_reentrant=False)),
        plain,
    ),
    "selective checkpoint": (through(_selective), plain),
    "checkpoint_sequential": (through(lambda n, x: checkpoint_sequential([n], 1, x, use_reentrant=False)), plain),
    "create_graph penalty": (_penalty, None),
    "residual, y + x": (through(lambda n, x: n(x) + x), None),
    "residual, y += x": (through(_added_in_place), through(lambda n, x: n(x) + x)),
    "output written in place": (_written("output"), plain),
    "input written in place": (_written("input"), plain),
    "transposed input": (through(lambda n, x: n(x.transpose(1, 2).contiguous().transpose(1, 2))), plain),
    "every second of a longer input": (through(lambda n, x: n(x.repeat_interleave(2, -1)[..., ::2])), plain),
    "channels_last images": (through(_channels_last), None),
    "input expanded over time": (through(lambda n, x: n(x[:1].expand_as(x))), None),
    "input expanded over the batch": (through(lambda n, x: n(x[:, :1].expand_as(x))), None),
    "NaN in one sample": (_special(float("nan")), None),
    "inf in one sample": (_special(float("inf")), None),
    "T = 1": (lambda node, x: plain(node, x[:1]), None),
    "batch of 0": (_empty_batch, None),
    "meta device": (_on_meta, plain),
    "float32": (_in(torch.float32), None),
    "float16": (_in(torch.float16), None),
    "bfloat16": (_in(torch.bfloat16), None),
    "autocast, float16": (_under_autocast(torch.float16), None),
    "autocast, bfloat16": (_under_autocast(torch.bfloat16), None),
    "GradScaler": (_scaled, None),
    "DistributedDataParallel, gloo": (_data_parallel, lambda node, x: _trained(layers := _layers(node, x), layers, x)),
    "deterministic algorithms": (_deterministic, plain),
    "forward in another thread": (through(_in_a_thread), plain),
    "torch.func.functional_call": (through(_functional_call), plain),
    "torch.func.vjp": (_pulled_back, lambda node, x: plain(node, x)[:2]),
    "torch.func.jacrev": (_jacrev, None),
    "torch.func.vmap": (_mapped, lambda node, x: [node(x).detach()]),
    "torch.func.grad": (_functional, lambda node, x: plain(node, x)[:2]),
    "vmap of grad": (_per_sample, lambda node, x: plain(node, x)[:2]),
    "jacobian": (_jacobian(False), None),
    "jacobian, vectorised": (_jacobian(True), None),
    "torch.func.jvp": (_forward_mode, None),
    "torch.compile, two steps, another batch size, fullgraph": (_compiled, _two_batches),
    "torch.export, training": (_exported, plain),
    "torch.export, eval()": (_exported_for_use, lambda node, x: [node.eval()(x)]),
}
"""By feature: what runs it, and what its results must equal on the reference; None for the feature itself there."""

TOLERANCES = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2, "autocast, float16": 1e-2, "autocast, bfloat16": 5e-2}
"""Features in less than float64, and the relative L2 error of outputs and gradients within which they are right."""
