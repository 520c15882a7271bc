"""Nodes under torch.func, autocast, torch.compile and DistributedDataParallel: what works, and the clear refusals."""

import nodes_ddp_worker as ddp
import pytest
import torch
from functorch.compile import make_boxed_func
from nodes_cases import ALL, COUPLED, FUSED, Problem, make, relative_error
from nodes_tolerances import INVERSE_RTOL_FLOAT64, RTOL
from revsnn_nodes import DriftError, DriftWarning
from torch._dynamo.backends.common import aot_autograd

NO_FUNC_GRAD = ("lif-checkpoint", "revlif-revnet")
"""Nodes that differentiate within their backward pass, which torch.func refuses: see docs/features.md."""


def _loss(name, **options):
    """A stateless function of the input: node, output, sum of squares."""

    def loss(x):
        return make(name, **options)(x).square().sum()

    return loss


@pytest.mark.parametrize("name", [n for n in ALL if n != "revlif-revnet"])
def test_vmap_is_a_loop(name):
    """torch.vmap over any input dimension equals a loop over it, with and without a carried state."""
    x, v = Problem(shape=(2, 3, 8)).x, Problem(shape=(2, 8)).v

    def run(x, v=None):
        node = make(name)
        if v is not None:
            node.v = v
        return node(x), node.v

    for dim in (1, 2):
        expected = [run(part) for part in x.unbind(dim)]
        y, v_last = torch.vmap(run, in_dims=dim)(x)
        assert torch.equal(y, torch.stack([each[0] for each in expected]))
        assert torch.equal(v_last, torch.stack([each[1] for each in expected]))
    y, _ = torch.vmap(run, in_dims=(2, None))(x, v)
    assert torch.equal(y, torch.stack([run(part, v)[0] for part in x.unbind(2)]))


@pytest.mark.parametrize("name", [n for n in ALL if n != "revlif-revnet"])
def test_vmap_over_the_state_alone(name):
    """One input from many initial states: a loop over them, or torch's refusal to write into an unmapped output."""
    x, states = Problem(shape=(2, 8)).x, torch.randn(3, 2, 8, dtype=torch.float64)

    def run(v):
        node = make(name)
        node.v = v
        return node(x)

    if name in ("revlif", "revlif-anchored"):
        with pytest.raises(RuntimeError, match="vmap: inplace arithmetic"):
            torch.vmap(run)(states)
    else:
        assert torch.equal(torch.vmap(run)(states), torch.stack([run(state) for state in states]))


@pytest.mark.parametrize("name", [n for n in ALL if n not in NO_FUNC_GRAD])
def test_per_sample_gradients(name):
    """vmap(grad) over samples, with respect to a weight in front of the node, equals one backward per sample."""
    x, weight = Problem(steps=4, carried=False).x, torch.eye(12, dtype=torch.float64) + 0.1

    def loss(weight, sample):
        return _loss(name)(sample.unsqueeze(1) @ weight)

    got = torch.vmap(torch.func.grad(loss), in_dims=(None, 1))(weight, x)
    for sample in range(2):
        leaf = weight.clone().requires_grad_()
        expected = torch.autograd.grad(loss(leaf, x[:, sample]), leaf)[0]
        assert relative_error(got[sample], expected) < RTOL[torch.float64]


# Warnings of torch's own about its own use of deprecated names.
_TORCH_ITSELF = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:The .grad attribute of a Tensor"
)


@pytest.mark.parametrize("name", ALL)
def test_autocast_runs_in_the_inputs_dtype(name):
    """Under bfloat16 autocast a node takes what the layer before gives; weights get nearly the gradients of float32."""
    torch.manual_seed(3)
    layer, x = torch.nn.Linear(8, 16), 3 * torch.randn(3, 16, 8)

    def weight_gradient(enabled):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = make(name)(layer(x))
        assert y.dtype == (torch.bfloat16 if enabled else torch.float32)
        y.float().sum().backward()
        return layer.weight.grad.clone()

    # A tenth, not a rounding: some spikes flip in bfloat16.
    assert relative_error(weight_gradient(True), weight_gradient(False)) < 0.1


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@_TORCH_ITSELF
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("name", [*FUSED, "if", "plif"])
def test_fused_operators_stay_whole_in_compiled_graphs(name):
    """Whatever T is, the graph has one operator forward and one backward; outputs are the eager ones to the bit."""
    pytest.importorskip("numba")
    graphs = []

    def keep(graph, _):
        graphs.append([str(each.target) for each in graph.graph.nodes if str(each.target).startswith("revsnn.")])
        return make_boxed_func(graph.forward)

    problem, node = Problem(steps=9, carried=False), make(name, backend="auto")
    compiled = torch.compile(node, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep), fullgraph=True)
    y = compiled(problem.x.requires_grad_())
    y.sum().backward()
    assert node.backend_in_use == "fused"
    assert [len(operators) for operators in graphs] == [1, 1]
    assert torch.equal(y, make(name, backend="auto")(problem.x))


@_TORCH_ITSELF
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(("backend", "dynamic"), [("torch", None), ("torch", True), ("auto", None)])
def test_compiled_nodes_follow_their_parameters(backend, dynamic):
    """A tau, a threshold and an alpha that is set after compilation counts from the next call on."""
    x, node = Problem(steps=2, carried=False).x.requires_grad_(), make("lif", backend=backend)
    compiled = torch.compile(node, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for node.tau, node.v_threshold, node.surrogate_function.alpha in (
        (2.0, 1.0, 1.0),
        (4.0, 0.5, 1.0),
        (4.0, 0.5, 3.0),
    ):
        got = torch.autograd.grad(compiled(x).sum(), x)[0]
        node.reset()
        assert torch.equal(got, torch.autograd.grad(node(x).sum(), x)[0])
        node.reset()


@_TORCH_ITSELF
@pytest.mark.usefixtures("_fresh_compiler")
def test_drift_guard_speaks_in_compiled_nodes():
    """The warning, and the error, come through torch.compile."""
    x = Problem(steps=5, shape=(1, 2)).x.float().requires_grad_()
    with pytest.raises(DriftError):
        torch.compile(make("revlif", on_drift="error", drift_tolerance=1e-9), backend="aot_eager")(x)
    with pytest.warns(DriftWarning, match="inverts its membrane"):
        torch.compile(make("revlif", on_drift="warn", drift_tolerance=1e-9), backend="aot_eager")(x)


def test_data_parallel_gradients_are_those_of_one_process(tmp_path):
    """Two gloo processes with half of the batch each: the reduced gradients equal those of the whole batch in one."""
    names = ("lif", "lif-checkpoint", "lif-carrier", "revlif", "revlif-anchored")
    torch.multiprocessing.spawn(ddp.work, args=(2, names, str(tmp_path)), nprocs=2)
    reduced = torch.load(tmp_path / "gradients.pt")
    for name in names:
        expected = ddp.gradients(ddp.network(name), ddp.batch())
        assert max(grad.abs().max() for grad in expected) > 0
        for got, want in zip(reduced[name], expected, strict=True):
            assert relative_error(got, want) < INVERSE_RTOL_FLOAT64
    assert set(names) & set(COUPLED)
