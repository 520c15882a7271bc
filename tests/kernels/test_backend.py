"""Which backend runs, what it says, and that the fused one is a good citizen of its process."""

import multiprocessing
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from nodes_cases import make
from revsnn_nodes import StandardLIF, surrogate
from revsnn_nodes.kernels import ops as operators
from revsnn_nodes.kernels.cpu import machine
from revsnn_nodes.kernels.layout import numbers
from torch._subclasses.fake_tensor import FakeTensorMode

FUSED = ("lif", "lif-carrier", "revlif", "revlif-anchored")


@pytest.mark.parametrize(("x", "options", "reason"), [
    (torch.zeros(2, 1, 4, dtype=torch.float16), {}, "StandardLIF for the CPU take .* and bfloat16, not float16"),
    (torch.zeros(2, 1, 4, device="meta"), {}, "device meta"),
    (torch.zeros(2, 1, 4), {"surrogate_function": lambda z: (z >= 0) + z - z.detach()}, "do not know the surrogate"),
])  # fmt: skip
def test_unsupported_cases_fall_back_or_raise(x, options, reason):
    """auto runs the reference and says why; "fused" raises the same reason."""
    node = make("lif", backend="auto", **options)
    node(x)
    assert node.backend_in_use == "torch"
    assert re.search(reason, node.backend_reason)
    with pytest.raises(ValueError, match=reason):
        make("lif", backend="fused", **options)(x)


@pytest.mark.parametrize("name", FUSED)
def test_float16_falls_back(name):
    """No kernel for the CPU takes it; the reason names the types."""
    node = make(name, backend="auto")
    node(torch.zeros(2, 1, 4, dtype=torch.float16))
    types = "take float32 and float64 and bfloat16, not float16"
    reason = f"the fused kernels of {type(node).__name__} for the CPU {types}"
    assert (node.backend_in_use, node.backend_reason) == ("torch", reason)


def test_subclasses_keep_their_own_dynamics():
    """Another surrogate derivative, or another sequence, is not run by kernels written for the base."""

    class Steeper(surrogate.Sigmoid):
        def derivative(self, z):
            return 2 * super().derivative(z)

    class Silent(StandardLIF):
        def torch_sequence(self, x_seq, v):
            return torch.zeros_like(x_seq), torch.zeros_like(x_seq[0])

    node, silent = make("lif", backend="auto", surrogate_function=Steeper()), Silent(backend="auto")
    x = torch.full((2, 1, 4), 9.0)
    node(x)
    assert node.backend_in_use == "torch"
    assert silent(x).count_nonzero() == 0


def test_unknown_backend_is_refused():
    """The message lists the three."""
    with pytest.raises(ValueError, match='`backend` must be "auto", "torch" or "fused"; got \'cuda\''):
        make("lif", backend="cuda")


def test_reference_of_a_fused_node_is_plain_torch():
    """A node is never held against itself."""
    assert make("lif", backend="fused").reference().backend == "torch"


def test_create_graph_alone_changes_no_gradient():
    """Where nothing is differentiated twice, create_graph=True is harmless."""
    x = torch.randn(4, 2, 6, requires_grad=True)
    node = make("lif", backend="fused")
    grads = [
        torch.autograd.grad((node.reset(), node(x))[1].sum(), x, create_graph=create)[0] for create in (False, True)
    ]
    assert torch.equal(*grads)


def _operator_arguments(dtype):
    x, v = torch.randn(4, 2, 6, dtype=dtype), torch.randn(2, 6, dtype=dtype)
    lif = numbers(StandardLIF(step_mode="m").neuron, 4.0, 4.0)
    carrier, coupled = (numbers(make(name).neuron, 4.0, 4.0) for name in ("lif-carrier", "revlif"))
    anchors, row = torch.randn(1, 2, 6, dtype=dtype), torch.rand(6, dtype=dtype)
    cut = torch.tensor([[0, 1, 2]]), torch.tensor([0.5])
    return {
        "norm_carrier_forward": (x, v, row, row, x, carrier, 1e-5, True, False),
        "norm_carrier_backward": (x, v, row, row, x, row, *cut, x, None, carrier, 0, False, False, True, False),
        "lif_forward": (x, v, None, lif, True, False, True),
        "lif_backward": (x, x, None, v, None, lif, 0, True, False, False, True, False),
        "norm_lif_forward": (x, v, row, row, row, None, x, lif, 1, 0, True, False),
        "norm_lif_backward": (x, v, row, row, None, row, None, x, None, lif, 0, 1, 0, True, False, False, True),
        "carrier_forward": (x, None, carrier, True, False),
        "carrier_backward": (x, v, x, v, carrier, 1, False, False, False),
        "coupled_forward": (x, v, coupled, True, False, False, 2, -1, 3),
        "inverse_backward": (x, v, x, None, coupled, 0, False, False, 2, -1, True),
        "anchored_backward": (x, v, anchors, x, v, coupled, 0, True, False, False, False, 2, -1, 3, True),
    }


@pytest.mark.parametrize(("name", "dtype"), [
    *((name, torch.float32) for name in operators.OPERATORS),
    *((name, torch.bfloat16) for name in operators.OPERATORS if not name.startswith("norm_carrier")),
])  # fmt: skip
def test_operators_are_what_their_schemas_say(name, dtype):
    """torch's own check: nothing is written in place or aliased, and the fake has the result's shapes and strides."""
    torch.library.opcheck(
        getattr(torch.ops.revsnn, name).default,
        _operator_arguments(dtype)[name],
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("name", FUSED)
def test_fake_tensors_pass_through(name):
    """Memory can be predicted without running a kernel."""
    with FakeTensorMode():
        x = torch.randn(4, 2, 6, requires_grad=True)
        make(name, backend="fused")(x).sum().backward()
        assert x.grad.shape == (4, 2, 6)


def _large_run():
    torch.set_num_threads(2)
    x = torch.linspace(-1, 3, 4 * machine.SERIAL_ELEMENTS).view(4, 2, -1).requires_grad_()
    make("lif-carrier", backend="fused")(x).sum().backward()
    return x.grad


def test_forked_children_work_after_the_parent_has():
    """The parent's threads do not exist in a forked child; it starts its own and writes the same bits."""
    torch.set_num_threads(2)
    x = torch.linspace(-1, 3, 4 * machine.SERIAL_ELEMENTS).view(4, 2, -1)
    p = numbers(make("lif-carrier").neuron)

    def forward():
        return torch.ops.revsnn.carrier_forward(x, None, p, True, False)[0].numpy()

    def child():  # no parallel operator of torch itself: its own threads do not survive a fork
        sys.exit(0 if (forward() == expected).all() else 1)

    expected = forward()
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(timeout=60)
    hung = process.is_alive()
    process.kill()
    assert not hung
    assert process.exitcode == 0


def test_threads_may_run_nodes_at_once():
    """Four threads that each run a large node get what one alone gets."""
    expected = _large_run()
    got = [None] * 4

    def run(i):
        got[i] = _large_run()

    workers = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    assert all(torch.equal(grad, expected) for grad in got)


@machine.exact_kernel
def _count_columns(seen, first_to_fail, start, stop, size, threads):
    """Adds one to each column; fails from a column on."""
    if machine.shared_out(start, stop, size, threads):
        return
    for column in range(start, stop):
        seen[column] += 1
    if stop > first_to_fail:
        raise ZeroDivisionError


@pytest.fixture(params=["OpenMP", "pool"])
def team(request, monkeypatch):
    """The threads that share a kernel's columns."""
    if request.param == "pool":
        monkeypatch.setattr(machine, "_process", os.getppid())
    return request.param


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("columns", [1, 4_095, 100_001])
def test_threads_do_each_column_once(team, count, columns):
    """Whatever their number, and where the last piece is short."""
    torch.set_num_threads(count)
    seen = np.zeros(columns)
    machine.run_columns(_count_columns, (seen, columns), columns, 64, 1 << 20)
    assert (seen == 1).all()


@pytest.mark.parametrize("fails_in", [0, 90_000])
def test_error_in_a_kernel_reaches_the_caller(team, fails_in):
    """Also one that happens in a helper thread; the next call is as if nothing had been."""
    torch.set_num_threads(2)
    with pytest.raises(MemoryError if team == "OpenMP" else ZeroDivisionError):
        machine.run_columns(_count_columns, (np.zeros(100_000), fails_in), 100_000, 64, 1 << 20)
    machine.run_columns(_count_columns, (np.zeros(100_000), 100_000), 100_000, 64, 1 << 20)


@pytest.mark.skipif(not machine._region, reason="torch runs its loops by something else than GNU OpenMP")
def test_kernels_run_on_the_threads_of_torch():
    """A large node starts no thread beyond those that an operator of torch has started."""
    code = (
        "import torch, psutil; from revsnn_nodes import StandardLIF; torch.set_num_threads(2);"
        "node = StandardLIF(step_mode='m', backend='fused'); node(torch.ones(4, 1)); node.reset();"
        "x = torch.ones(4, 1 << 20); x.exp(); before = psutil.Process().num_threads(); node(x);"
        "assert psutil.Process().num_threads() == before, (before, psutil.Process().num_threads())"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
