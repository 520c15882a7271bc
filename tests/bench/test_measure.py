"""A case measured end to end: the nodes' bytes and operations against closed forms, and how a case can end."""

import math
import platform
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch.profiler import profile

from revsnn_bench import Case, Settings, measure
from revsnn_bench.meters.fidelity import measure_fidelity
from revsnn_bench.meters.flops import measure_flops
from revsnn_bench.models.reference import subject_of
from revsnn_bench.models.workloads import build
from revsnn_bench.records import FidelityRecord, SkipCase, Status

T, B, N = 5, 2, 16
STEP = B * N
NODES = ("lif", "lif-checkpoint", "revlif-stored", "revlif-revnet", "revlif", "revlif-anchored", "lif-carrier")
BYTES = Settings(passes=("memory",))
FLOPS = Settings(passes=("flops",))


def case(node, **more):
    return Case(node=node, **({"timesteps": T, "batch": B, "shape": (N,), "node_options": {"backend": "torch"}} | more))


def test_bytes_and_operations_are_handed_over_before_later_passes(monkeypatch):
    """What a worker has measured when its time is up is not lost."""
    told = []
    monkeypatch.setattr("revsnn_bench.system.process.LISTENERS", [told.append])
    record = measure(case("lif"), Settings(passes=("memory", "flops", "fidelity")))
    both = {"memory": record.memory, "flops": record.flops}
    assert told == [{"memory": record.memory}, both, both]


# A step of the coupled forward, and the sigmoid surrogate: alpha z, sigmoid, 1 - s, two products.
COUPLED_FORWARD, PHI = 11, 5
README = Path(__file__).parents[2] / "nodes" / "README.md"


def stated_operations(timesteps):
    """The table of the nodes' README, per neuron over T steps."""
    rows = re.findall(r"^\| `([\w-]+)` \|((?: [\dTS -]+\|){3})$", README.read_text(), re.MULTILINE)
    segments = math.ceil(timesteps / math.ceil(math.sqrt(timesteps)))
    return {
        node: [
            eval(cell.replace(" T", f" * {timesteps}").replace("S", str(segments)), {}) for cell in cells.split("|")[:3]
        ]
        for node, cells in rows
    }


@pytest.mark.parametrize("timesteps", [1, 2, 5, 16])
def test_operations_have_a_closed_form_in_time(timesteps):
    """What every node takes per neuron is what the nodes' README states, at each T."""
    stated = stated_operations(timesteps)
    assert sorted(stated) == sorted(NODES)
    for node in NODES:
        flops = measure(case(node, timesteps=timesteps), FLOPS).flops
        phases = (flops.forward, flops.backward, flops.recompute)
        assert [each.pointwise / STEP for each in phases] == stated[node]
        assert not any(each.multiply_accumulate for each in phases)


@pytest.mark.parametrize("node", [node for node in NODES if node not in ("revlif-stored", "revlif-revnet")])
@pytest.mark.parametrize("options", [{}, {"v_reset": None, "detach_reset": True}, {"decay_input": False, "tau": 3.0}])
def test_operations_are_those_of_the_equations_on_every_backend(node, options):
    """A node that runs on its fused kernels, which dispatch one operator a pass, counts as on the reference."""
    counts, steps = {}, {}
    for backend in ("torch", "auto"):
        steps[backend] = build(case(node, node_options=options | {"backend": backend}))
        counts[backend] = measure_flops(steps[backend])
    assert counts["torch"] == counts["auto"]
    steps["auto"].forward()
    has_kernels = find_spec("numba") is not None and node != "lif-checkpoint"
    assert steps["auto"].model.backend_in_use == ("fused" if has_kernels else "torch")


def test_backward_operations_of_the_inverting_nodes_have_a_closed_form():
    """The product and the inverse take a fixed number of operations; RevNet runs inverse, inputs and forward again."""
    revlif, revnet = (measure(case(node), FLOPS).flops for node in ("revlif", "revlif-revnet"))
    # Inverse: gate, alpha g, 1 - alpha g, division; gain D, subtraction, division; and for X_1, one of two groups,
    # threshold, compare, subtraction, division.
    inverse = (4 + 3) * STEP + 4 * STEP // 2
    # Product: threshold, gate, into the gate 2, its opening 5 (y > 0, y < 1, and, product, subtraction), kept 3, phi,
    # product and sum 2; then keep m, beta y, gain m; and an addition for Y_1 and one for X_1, one group each.
    product = (1 + 1 + 2 + 5 + 3 + PHI + 2 + 3 + 1) * STEP
    assert revlif.recompute.pointwise == inverse * T
    assert revlif.backward.pointwise == product * T
    # RevNet recovers both inputs: four operations more for the other half. Then a step of the forward.
    again = inverse + 4 * STEP + COUPLED_FORWARD * STEP
    assert revnet.recompute.pointwise == again * T
    both = [each.backward.total + each.recompute.total for each in (revlif, revnet)]
    assert 1 - both[0] / both[1] > 0.2


def test_retained_bytes_have_a_closed_form():
    """The table of the nodes' README, to the byte; autograd keeps one number per division by tau on top."""
    retained = {node: measure(case(node), BYTES).memory for node in NODES}
    b = 4 * STEP
    assert retained["lif"].retained_bytes == b * 3 * T + 8 * T
    segments = 2  # ceil(5 / ceil(sqrt 5))
    assert retained["lif-checkpoint"].retained_bytes == b * T + b * (segments - 1) + 8 * T
    assert retained["revlif"].retained_bytes == retained["revlif-revnet"].retained_bytes == b
    assert retained["revlif-anchored"].retained_bytes == retained["lif-carrier"].retained_bytes == 0
    assert {each.state_bytes for each in retained.values()} == {b}
    assert {each.output_bytes for each in retained.values()} == {b * T}


@pytest.mark.parametrize("timesteps", [1, 4, 64])
def test_retained_bytes_of_revlif_do_not_depend_on_time(timesteps):
    """One membrane, whatever T is."""
    assert measure(case("revlif", timesteps=timesteps), BYTES).memory.retained_bytes == 4 * STEP


@pytest.mark.parametrize("workload", ["layer", "linear-blocks", "conv-blocks", "digits-net"])
def test_bytes_and_operations_repeat_exactly(workload):
    """Two measurements of one case agree in every byte and every operation."""
    shape = {"conv-blocks": (2, 4, 4), "digits-net": (1, 8, 8)}.get(workload, (8,))
    settings = Settings(passes=("memory", "flops"))
    a, b = (measure(case("lif-carrier", workload=workload, shape=shape), settings) for _ in range(2))
    assert a.flops == b.flops
    inexact = {"process_peak_bytes", "untracked_bytes"}
    assert a.memory.model_dump(exclude=inexact) == b.memory.model_dump(exclude=inexact)


@pytest.fixture(params=["torch", "fused"])
def backend(request):
    if request.param == "fused":
        pytest.importorskip("numba", reason="the fused CPU kernels need numba")
    return {"backend": request.param}


@pytest.mark.parametrize("node", ["lif-carrier", "revlif-anchored"])
@pytest.mark.parametrize("timesteps", [4, 256])
def test_gradients_are_right_at_every_length(node, timesteps, backend):
    """In float32 the gradient error stays below 1e-5 from 4 to 256 steps, fused or not."""
    record = measure(case(node, timesteps=timesteps, node_options=backend), Settings(passes=("fidelity",)))
    assert record.status is Status.OK
    assert record.fidelity.gradient_error < 1e-5


def test_an_error_near_the_tolerance_is_measured_on_more_inputs():
    """The state of revlif at T = 8 errs by a tenth of the tolerance: the worst of three seeds counts."""
    near = case("revlif", timesteps=8, batch=8, shape=(256,))
    record = measure(near, Settings(passes=("fidelity",)))
    alone = [measure_fidelity(subject_of(near.model_copy(update={"seed": seed}))).gradient_error for seed in range(3)]
    assert record.fidelity.inputs == 3
    assert record.fidelity.gradient_error == max(alone) > min(alone)
    for node, steps in (("lif", 10), ("revlif", 4), ("revlif", 32)):
        assert measure(case(node, timesteps=steps), Settings(passes=("fidelity",))).fidelity.inputs == 1


def test_the_worst_of_two_inputs_keeps_what_is_not_finite():
    """A NaN of either side stays, and what one side alone measured is kept."""
    a = FidelityRecord(gradient_error=1e-4, tolerance=1e-3, neurons=8, state_gradient_error=1e-5)
    b = FidelityRecord(gradient_error=math.nan, tolerance=1e-3, neurons=8)
    for worst in (a.worst_with(b), b.worst_with(a)):
        assert math.isnan(worst.gradient_error)
        assert worst.inputs == 2
    assert a.worst_with(b).state_gradient_error == 1e-5


def test_a_drifted_gradient_is_wrong_and_says_why(backend):
    """Beyond a dozen steps revlif ends as `wrong`, with its own warning and the spikes it recovered wrongly."""
    record = measure(case("revlif", timesteps=24, shape=(256,), node_options=backend), Settings(passes=("fidelity",)))
    assert record.status is Status.WRONG
    assert record.reason.startswith("gradient_error")
    assert record.fidelity.flipped_spikes > 0
    assert record.fidelity.predicted_error > record.fidelity.tolerance
    assert "lif-carrier" in record.fidelity.warning or "CarrierLIF" in record.fidelity.warning


def test_accuracy_comes_from_training_on_digits():
    """A short training on real digits reaches far more than chance, and the carrier is tested stripped too."""
    record = measure(
        case("lif-carrier", workload="digits-net", shape=(1, 8, 8), timesteps=2), Settings(passes=(), epochs=2)
    )
    assert record.accuracy.accuracy > 0.6
    assert record.accuracy.stripped_accuracy > 0.6
    assert record.accuracy.train_samples + record.accuracy.test_samples == 1797


def test_a_layer_that_is_too_large_is_judged_on_fewer_samples():
    """Neurons of different samples are independent: the float64 reference runs on a slice of the batch."""
    from revsnn_bench.models.reference import LARGEST_REFERENCE, subject_of

    features = LARGEST_REFERENCE // 4
    subject = subject_of(Case(node="lif", timesteps=2, batch=8, shape=(features,)))
    assert subject.step.source.shape == (2, 2, features)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_case_for_another_device_is_skipped():
    """A case that cannot run here says so instead of failing."""
    with pytest.raises(SkipCase, match="no CUDA device"):
        measure(case("lif", device="cuda"))


def test_unknown_names_are_refused_with_suggestions():
    """A misspelt workload or node names its neighbours."""
    with pytest.raises(ValueError, match="Did you mean layer"):
        build(case("lif", workload="layers"))
    with pytest.raises(ValueError, match="Did you mean revlif"):
        build(case("revlfi"))


@pytest.mark.parametrize(("node", "retained"), [("lif", 4 * 65536 * 8), ("lif-carrier", 0), ("revlif", 4 * 65536)])
def test_fused_kernels_keep_exactly_what_they_say(node, retained):
    """Fused, lif keeps its charges alone, and no thread of the kernels holds on to anything: ten times out of ten."""
    pytest.importorskip("numba", reason="the fused CPU kernels need numba")
    from revsnn_bench.meters.memory import retained_bytes

    step = build(case(node, timesteps=8, batch=1, shape=(65536,), node_options={"backend": "fused"}))
    assert [retained_bytes(step)[0] for _ in range(10)] == [retained] * 10


def test_fused_norm_carrier_keeps_what_its_reference_keeps():
    """In a network: retained bytes are equal, the gradient is right, and its operations are counted."""
    pytest.importorskip("numba", reason="the fused CPU kernels need numba")
    shape = {"workload": "conv-blocks", "shape": (4, 6, 6)}
    passes = Settings(passes=("memory", "flops", "fidelity"))
    fused, plain = (
        measure(case("norm-carrier", node_options={"backend": backend}, **shape), passes)
        for backend in ("fused", "torch")
    )
    assert fused.status is plain.status is Status.OK
    assert fused.memory.retained_bytes == plain.memory.retained_bytes
    assert fused.memory.peak_bytes <= plain.memory.peak_bytes
    assert fused.fidelity.gradient_error < 1e-5
    assert fused.flops.recompute.total > 0


def test_times_come_with_a_copy_and_the_first_step():
    """Each round also times a copy of the input, and the first round of all is kept for what compilation took."""
    times = measure(case("lif"), Settings(passes=("time",), min_rounds=3, max_rounds=3)).time
    assert len(times.copy_time_s) == len(times.forward_time_s) == 3
    assert min(times.copy_time_s) > 0
    assert times.first_step_time_s > 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize("keep_freed", [False, True])
def test_the_record_says_whether_freed_memory_was_kept(runner, keep_freed):
    """In a worker of its own, whose allocator may be set."""
    settings = Settings(passes=("time",), keep_freed=keep_freed, min_rounds=2, max_rounds=2)
    times = runner.run(case("lif-carrier"), settings).time
    assert times.freed_memory_kept is keep_freed
    assert len(times.forward_time_s) == 2


def test_peers_are_measured_beside_our_nodes():
    """SpikingJelly's LIF keeps what ours keeps under autograd, or less; both give the same spikes' bytes."""
    pytest.importorskip("spikingjelly", reason="the peer is not installed")
    memory = measure(case("spikingjelly", node_options={}), BYTES).memory
    assert memory.output_bytes == 4 * STEP * T
    assert 0 < memory.retained_bytes <= measure(case("lif"), BYTES).memory.retained_bytes + 4 * STEP * 3


def test_a_compiled_peer_is_timed_as_it_was_compiled():
    """One graph serves every timed round, and what the memory pass did to the function does not make it eager.

    Dispatch modes, which attribute memory, leave torch.compile unwilling to compile what ran under them.
    """
    pytest.importorskip("spikingjelly", reason="the peer is not installed")
    peer = case("spikingjelly-compiled", node_options={})
    rounds = Settings(passes=("time",), min_rounds=3, max_rounds=3)
    measure(peer, BYTES)
    counters.clear()
    measure(peer, rounds)
    assert counters["stats"]["unique_graphs"] == 1
    step = build(peer)
    with profile() as events:
        step.backward(step.forward())
    assert any("Torch-Compiled Region" in event.name for event in events.events())
    assert counters["stats"]["unique_graphs"] == 1


def test_fidelity_is_judged_without_tf32(monkeypatch):
    """On CUDA torch's convolutions run in TF32 by default; the switches are as before afterwards."""
    from revsnn_bench.meters import fidelity

    seen = []
    original = fidelity.measure_fidelity

    def watched(subject):
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return original(subject)

    monkeypatch.setattr(fidelity, "measure_fidelity", watched)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert measure(case("lif"), Settings(passes=("fidelity",))).status is Status.OK
    assert seen == [(False, False)]
    assert torch.backends.cudnn.allow_tf32


LOADS = "[before := {*__import__('sys').modules}, run(*arguments), {*__import__('sys').modules} - before][-1]"


@pytest.mark.parametrize("node", ["lif", "lif+remat", "lif-carrier"])
def test_a_worker_has_what_a_case_needs(runner, node):
    """A case loads no package, which would take its time and count against its memory limit; a plan no solver."""
    case = Case(node=node, timesteps=2, batch=2, shape=(8,))
    loaded = runner.call(eval, LOADS, {"run": measure, "arguments": (case, Settings(target_s=0.01))})
    assert {name.partition(".")[0] for name in loaded} <= {"torch", "revsnn_bench", "encodings"}
    planning = runner.call(eval, LOADS, {"run": __import__, "arguments": ("revsnn_bench.plan.planning",)})
    assert "revsnn_bench.plan.planning" in planning
    assert "scipy.optimize" not in planning
