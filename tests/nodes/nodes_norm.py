"""NormCarrierLIF's oracle: batch norm, clamp and the LIF loop in float64, from nothing of the package."""

import nodes_oracle as oracle
import torch
from nodes_cases import relative_error
from revsnn_nodes import NormCarrierLIF
from torch import nn

CHANNELS = 3


def oracle_run(z, weight, bias, residual, v, *, eps=1e-5, epsilon=1 / 16, **neuron):
    """Normalise over all but channels, clamp, LIF loop; output and last membrane."""
    dims = [d for d in range(z.dim()) if d != 2]
    spread = (-1, *[1] * (z.dim() - 3))
    centred = z - z.mean(dims, keepdim=True)
    n = centred / (centred.square().mean(dims, keepdim=True) + eps).sqrt()
    border = oracle.CARRIER_FRACTION / epsilon
    n = torch.where(n.abs() < border, n, border * torch.sign(n.detach()))
    x = n * weight.reshape(spread) + bias.reshape(spread) + residual
    spikes, v = oracle.lif(x, v, **neuron)
    return spikes + epsilon * n, v


def problem(steps, shape=(4, CHANNELS, 3, 3), seed=0, sparse=False):
    """Input, weight, bias, residual, state and arriving gradients, in float64."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=rng, dtype=torch.float64)

    z = 2 * normal(steps, *shape) + 1
    if sparse:  # rare large inputs on a quiet background: far outside of the clamp once normalised
        z = 0.1 * normal(steps, *shape) + 20 * (torch.rand(steps, *shape, generator=rng) < 0.004)
    parts = {
        "z": z,
        "weight": 1 + normal(CHANNELS) / 4,
        "bias": normal(CHANNELS) / 2 + 0.5,
        "residual": normal(steps, *shape) / 4,
        "v": normal(*shape) / 4,
    }
    return parts, (normal(steps, *shape), normal(*shape))


def node_with(parts, kind=NormCarrierLIF, backend="torch", **options):
    node = kind(CHANNELS, backend=backend, step_mode="m", **options).to(parts["z"].dtype)
    node.weight, node.bias = nn.Parameter(parts["weight"].clone()), nn.Parameter(parts["bias"].clone())
    return node


def node_gradients(parts, bars, **options):
    node = node_with(parts, **options)
    ends = {name: parts[name].clone().requires_grad_() for name in ("z", "residual", "v")}
    node.v = ends["v"]
    y = node(ends["z"], ends["residual"])
    assert node.backend_in_use == node.backend
    leaves = ends | {"weight": node.weight, "bias": node.bias}
    loss = (y * bars[0]).sum() + (node.v * bars[1]).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return y.detach(), dict(zip(leaves, grads, strict=True))


def oracle_gradients(parts, bars, **options):
    leaves = {name: part.double().clone().requires_grad_() for name, part in parts.items()}
    y, v = oracle_run(**leaves, **options)
    loss = (y * bars[0].double()).sum() + (v * bars[1].double()).sum()
    return y.detach(), dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def assert_gradients_close(got, expected, rtol):
    for name, gradient in got.items():
        assert relative_error(gradient, expected[name]) <= rtol, name
