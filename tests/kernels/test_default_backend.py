"""Nodes as users make them, without naming a backend: fused where that works, and everything else as before."""

import re
from types import SimpleNamespace

import nodes_ddp_worker
import pytest
import revsnn_nodes as nodes
import torch
from nodes_cases import ALL, Problem, assert_ends_close, differentiate, foreign_import_is_silent, make, run_node
from revsnn_nodes.kernels import support as selection
from torch import nn

FUSED = ("lif", "lif-carrier", "revlif", "revlif-anchored")
RTOL = {torch.float64: 1e-11, torch.float32: 2e-4}
"""Gradients of two implementations of one formula; the inverse expands their roundings over five steps."""


def by_default(name, **options):
    """A node whose backend nobody named."""
    silent = {"on_drift": "ignore"} if name in ("revlif", "revlif-revnet") else {}
    return nodes.make_node(name, **({"step_mode": "m"} | silent | options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", FUSED)
def test_default_is_fused_where_numba_is_installed(name, dtype):
    """On the CPU in float32 and float64 the four nodes with kernels run on them, unasked, and give the same."""
    problem, node = Problem().to(dtype), by_default(name)
    assert (node.backend, node.backend_in_use) == ("auto", None)
    got, expected = differentiate(run_node(node), problem), differentiate(run_node(make(name)), problem)
    assert (node.backend_in_use, node.backend_reason) == ("fused", "")
    assert torch.equal(got.y, expected.y)
    assert_ends_close(got, expected, RTOL[dtype])


@pytest.mark.parametrize("name", [n for n in ALL if n not in FUSED])
def test_default_is_the_reference_for_nodes_without_kernels(name):
    """And the reason names the node."""
    node = by_default(name)
    node(Problem().x)
    assert (node.backend_in_use, node.backend_reason) == ("torch", f"{type(node).__name__} has no fused kernel")


def _refuse(name):
    raise ImportError("Numba needs NumPy 2.3 or less.")


WITHOUT_NUMBA = {
    r"pip install numba": ("INSTALLED", {"numba": None}),
    r"need numba 0\.62 or above, not 0\.61": ("INSTALLED", {"numba": (0, 61)}),
    r"numba cannot be imported: Numba needs NumPy": ("importlib", SimpleNamespace(import_module=_refuse)),
    r"NUMBA_DISABLE_JIT": ("os", SimpleNamespace(environ={"NUMBA_DISABLE_JIT": "1"})),
}


@pytest.mark.parametrize("reason", WITHOUT_NUMBA)
@pytest.mark.parametrize("name", FUSED)
def test_default_without_numba_is_the_reference(name, reason, monkeypatch):
    """Missing, too old, failing or told to compile nothing: the reason says so; the result is the reference's bits."""
    monkeypatch.setattr(selection, *WITHOUT_NUMBA[reason])
    monkeypatch.setattr(selection, "numba_obstacle", selection.numba_obstacle.__wrapped__)
    node, problem = by_default(name), Problem()
    got, expected = differentiate(run_node(node), problem), differentiate(run_node(make(name)), problem)
    assert node.backend_in_use == "torch"
    assert re.search(reason, node.backend_reason)
    assert torch.equal(got.x_grad, expected.x_grad)


@pytest.mark.parametrize("name", FUSED)
def test_func_transforms_fall_back(name):
    """torch.func.grad and vmap run on the reference, say so, and give what they gave."""
    x, node = Problem(carried=False).x, by_default(name)

    def loss(node):
        return lambda x: (node.reset(), node(x))[1].square().sum()

    assert torch.equal(torch.func.grad(loss(node))(x), torch.func.grad(loss(make(name)))(x))
    assert (node.backend_in_use, node.backend_reason) == ("torch", "inside a torch.func transform")
    node.reset()
    torch.vmap(lambda x: by_default(name)(x), in_dims=2)(Problem(shape=(2, 3, 4)).x)


def test_second_derivatives_need_the_reference():
    """The default raises, and what the error says to do works."""
    x = Problem(carried=False).x.requires_grad_()
    (grad,) = torch.autograd.grad(by_default("lif")(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='Pass backend="torch" to StandardLIF'):
        grad.square().sum().backward()
    (grad,) = torch.autograd.grad(by_default("lif", backend="torch")(x).sum(), x, create_graph=True)
    assert torch.autograd.grad(grad.square().sum(), x)[0].count_nonzero() > 0


@pytest.mark.parametrize("name", FUSED)
def test_second_backward_and_writing_into_the_output(name):
    """As on the reference: retain_graph gives the same gradient again; a modified output is caught where it is kept."""
    problem, node = Problem(carried=False), by_default(name)
    x = problem.x.clone().requires_grad_()
    y = node(x)
    first, again = (torch.autograd.grad(y, x, problem.y_bar, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)
    y.mul_(2.0)
    if name == "lif":
        assert torch.equal(torch.autograd.grad(y, x, problem.y_bar / 2)[0], first)
    else:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_network_in_spikingjelly_style():
    """reset_net, state_dict, eval and train: a network of default nodes learns what one on the reference learns."""
    neuron, _ = foreign_import_is_silent()
    from spikingjelly.activation_based import functional

    assert neuron.LIFNode is not None

    def losses(**options):
        torch.manual_seed(1)
        network = nn.Sequential(
            nn.Linear(6, 8),
            nodes.CarrierLIF(**options, step_mode="m"),
            nn.Linear(8, 4),
            nodes.StandardLIF(**options, step_mode="m"),
        )
        optimizer, x = torch.optim.SGD(network.parameters(), 0.5), nodes_ddp_worker.batch().float()
        values = []
        for _ in range(5):
            functional.reset_net(network)
            loss = (network(x) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        return values, network

    got, network = losses()
    expected, _ = losses(backend="torch")
    assert got == pytest.approx(expected, rel=1e-4)
    assert got[-1] < got[0]
    assert {node.backend_in_use for node in network if isinstance(node, nodes.SpikingNode)} == {"fused"}
    assert set(network.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    network.eval()
    functional.reset_net(network)
    assert set(network(nodes_ddp_worker.batch().float()).unique().tolist()) <= {0.0, 1.0}
