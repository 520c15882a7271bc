"""The three experiments that the literature proposes for a reversible node, by name and with real numbers."""

import pytest
import torch
from revsnn_nodes import make_node

from revsnn_bench import Case, Settings, measure
from revsnn_bench.models.reference import STEP_TOLERANCE, recovered_steps
from revsnn_bench.models.workloads import build
from revsnn_bench.session import BenchSession, RunOptions

REFERENCE = {"backend": "torch"}
DEEP = REFERENCE | {"decay_input": False}


def test_one_node_swapped_in_a_small_vgg():
    """One layer of a VGG-11 with another node: it retains less than with lif alone, and learns digits all the same."""
    session = BenchSession(RunOptions(settings=Settings(passes=("memory",)), results_dir=None, threads=1))
    found = {}
    for node, options in (("lif", DEEP), ("revlif", DEEP | {"group_dim": 1}), ("lif-carrier", DEEP)):
        case = Case(
            node=node, workload="vgg11-one@0.125", timesteps=4, batch=8, shape=(1, 8, 8), node_options=options, epochs=2
        )
        found[node] = session.measure(case)
    session.finish(complete=False)
    for node, record in found.items():
        assert record.accuracy.accuracy > 0.8, node
    retained = {node: record.memory.retained_bytes for node, record in found.items()}
    assert retained["lif-carrier"] < retained["revlif"] < retained["lif"]


@pytest.mark.parametrize(
    ("timesteps", "dtype", "all_steps"), [(4, "float32", True), (64, "float64", False), (16, "float64", True)]
)
def test_inverse_step_by_step_against_stored_activations(timesteps, dtype, all_steps):
    """Each step inverted from the one after it gives back the stored input and membrane by `torch.allclose`.

    As long as the leak has not amplified the rounding of the output beyond the tolerance: float64 at T = 64 shows where
    it has.
    """
    torch.manual_seed(0)
    node = make_node("revlif", **REFERENCE, on_drift="ignore", step_mode="m")
    stored = make_node("revlif-stored", **REFERENCE, step_mode="s")
    x_seq = (torch.randn(timesteps, 8, 64) + 0.3).to(getattr(torch, dtype))
    membranes, outputs = [torch.zeros_like(x_seq[0])], []
    for x in x_seq:
        outputs.append(stored(x))
        membranes.append(stored.v)
    close, v = 0, membranes[-1]
    for t in reversed(range(timesteps)):
        x_back, spikes, v = node.invert(outputs[t].unsqueeze(0), v)
        if not all(
            torch.allclose(back, kept, rtol=STEP_TOLERANCE, atol=STEP_TOLERANCE)
            for back, kept in ((x_back[0], x_seq[t]), (v, membranes[t]))
        ):
            break
        assert set(spikes.unique().tolist()) <= {0.0, 1.0}
        close += 1
    assert close >= 4
    assert (close == timesteps) == all_steps
    node.reset()
    assert recovered_steps(node, x_seq, torch.stack(outputs)) == close


def test_backward_flops_of_the_old_and_the_new_method_on_vgg11():
    """The new method's backward saves on VGG-11 what it saves in its nodes, to the operation, and nothing elsewhere."""
    network = {"workload": "vgg11@0.125", "timesteps": 4, "batch": 1, "shape": (3, 32, 32), "node_options": REFERENCE}
    flops = Settings(passes=("flops",))

    def backward(case):
        record = measure(case, flops)
        return sum(
            phase.pointwise + phase.multiply_accumulate for phase in (record.flops.backward, record.flops.recompute)
        )

    old, new = (backward(Case(node=node, **network)) for node in ("revlif-revnet", "revlif"))
    in_nodes = 0
    for shape in node_shapes(Case(node="revlif", **network)):
        layer = {"timesteps": 4, "batch": 1, "shape": shape, "node_options": REFERENCE}
        in_nodes += backward(Case(node="revlif-revnet", **layer)) - backward(Case(node="revlif", **layer))
    assert old - new == in_nodes > 0


def node_shapes(case):
    """The shape of one sample at one step in every node of a case's network."""
    step, shapes = build(case), []
    for module in step.model.modules():
        if hasattr(module, "neuron"):
            module.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[2:])))
    step.forward()
    return shapes
