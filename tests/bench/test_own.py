"""A user's own model as a workload: methods, fidelity, and what is said of one that cannot be measured."""

import inspect
import re
import statistics

import own_models
import pytest
import torch
from revsnn_nodes.plan import put_in_our_neurons

from revsnn_bench.case import Case
from revsnn_bench.measuring import Settings, measure
from revsnn_bench.meters.fidelity import _errors_of_call
from revsnn_bench.models import own
from revsnn_bench.models.own import METHODS, ModelError
from revsnn_bench.models.workloads import build
from revsnn_bench.plan.predict import predict
from revsnn_bench.records import SkipCase, Status
from revsnn_bench.report import markdown
from revsnn_bench.report.html.report import render_html
from revsnn_bench.report.points import ratio_of, references
from revsnn_bench.system.environment import fingerprint, read_switches, restore_switches


def case_of(model="plain", node="lif", shape=(6,), **fields):
    return Case(
        **{"workload": f"own_models:{model}", "node": node, "shape": shape, "timesteps": 2, "batch": 3, **fields}
    )


def line_of(thing, text=""):
    """Number of the line of own_models.py where a definition starts, or where it has a text."""
    lines, start = inspect.getsourcelines(thing)
    return start + next(n for n, line in enumerate(lines) if text in line)


ON_CPU = [method for method in METHODS if method != "lif+offload"]

EXACT = [method for method in ON_CPU if not method.startswith("as-is") and method != "lif-carrier"]
"""What changes neither what the model computes nor its gradient."""


@pytest.mark.parametrize(
    ("model", "node"),
    [
        *(("spikingjelly", method) for method in ON_CPU),
        *(("plain", "as-is"), ("loop", "lif+checkpoint"), ("loop", "lif-carrier")),
        *(("sequential", "lif+remat"), ("with_loss", "lif+bitpack")),
    ],
)
def test_every_method_is_held_against_the_model_as_it_is(model, node):
    """Bytes are measured, and the gradient agrees with float64 of the untouched model."""
    shape = (2, 6, 6) if model == "spikingjelly" else (6,)
    record = measure(case_of(model, node, shape), Settings(passes=("memory", "fidelity")))
    assert record.status is Status.OK, record.reason
    assert record.memory.peak_bytes > 0
    assert record.fidelity.judged_by == "reference"


@pytest.mark.parametrize("node", [method for method in ON_CPU if method != "lif-carrier"])
def test_a_model_that_draws_numbers_is_right(node):
    """A dropout has the same mask in the model, in its reference and in float64; it was called wrong by 0.8."""
    for model, judge in (("Noisy", "reference"), ("noisy_klif", "differences")):
        record = measure(case_of(model, node), Settings(passes=("fidelity",)))
        assert (record.status, record.fidelity.judged_by) == (Status.OK, judge), record.reason
        assert record.fidelity.gradient_error < 1e-5


@pytest.mark.parametrize("node", ["as-is", "lif+remat", "lif+bitpack"])
def test_a_model_with_a_loss_is_judged_by_differences(node):
    """The loss has no graph there, and was taken for one that does not depend on the output; a block that runs again
    ran the model itself in place of its copy."""
    record = measure(case_of("klif_with_a_loss", node), Settings(passes=("fidelity",)))
    assert (record.status, record.fidelity.judged_by) == (Status.OK, "differences"), record.reason
    assert record.fidelity.gradient_error < 1e-5


@pytest.mark.parametrize("node", ["as-is", "lif", "lif+remat", "as-is+remat"])
def test_weights_are_the_same_in_every_model_that_is_made(node):
    """Python and numpy are seeded, too: such models were called wrong by 3. A generator of one's own cannot be."""
    record = measure(case_of("drawn_outside_of_torch", node, timesteps=4), Settings(passes=("fidelity",)))
    assert (record.status, record.fidelity.judged_by) == (Status.OK, "reference"), record.reason
    assert record.fidelity.gradient_error < 1e-5
    record = measure(case_of("drawn_by_its_own", node, timesteps=4), Settings(passes=("fidelity",)))
    assert (record.status, record.fidelity) == (Status.OK if node == "as-is" else Status.UNVERIFIED, None)
    assert "its weights are others every time that the model is made" in record.reason


def test_a_method_that_changes_a_weight_is_wrong(monkeypatch):
    """It is no model whose weights are drawn anew."""

    def change(model):
        put_in_our_neurons(model)
        model.one.weight.data *= 1.5

    monkeypatch.setattr(own, "put_in_our_neurons", change)
    record = measure(case_of("plain", "lif", timesteps=4), Settings(passes=("fidelity",)))
    assert record.status is Status.WRONG
    assert record.fidelity.gradient_error > 0.01


def test_a_scripted_part_is_measured_and_not_judged():
    """It takes no hooks, and runs in the precision that it was made for alone."""
    record = measure(case_of("scripted_part", "as-is"), Settings(passes=("memory", "flops", "fidelity")))
    assert record.status is Status.OK
    assert "scripted or traced part" in record.reason
    assert record.memory.peak_bytes > 0


@pytest.mark.parametrize("method", ["as-is", "lif+remat", "lif-carrier"])
def test_constants_that_are_no_buffers_meet_float64(method):
    """A product of two types is an error of torch, and the reference in float64 stopped there."""
    record = measure(case_of("Constant", method), Settings(passes=("fidelity",)))
    assert record.status is Status.OK, record.reason
    assert record.fidelity.judged_by == "reference"
    assert record.fidelity.gradient_error < 1e-5


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        *((model, "it is another function") for model in ("ReadsTheClock", "KlifReadsTheClock", "loss_that_goes_on")),
        *((model, "its output in float64 is another by 0.5") for model in ("AnotherInFloat64", "KlifAnotherInFloat64")),
    ],
)
def test_a_function_that_cannot_be_run_again_is_not_called_wrong(model, reason):
    """Its reference computes another function, and so has another gradient: that says nothing of its own."""
    record = measure(case_of(model, "lif", timesteps=4), Settings(passes=("fidelity",)))
    assert (record.status, record.fidelity) == (Status.UNVERIFIED, None), record.reason
    assert f"its gradient was not judged: {reason}" in record.reason


@pytest.mark.parametrize("model", ["wrong_and_another_in_float64", "WrongAndMoving"])
def test_no_function_of_another_kind_hides_a_wrong_gradient(model):
    """It is wrong against its reference in its own precision; and a state that a copy has, too, makes no other one."""
    record = measure(case_of(model, "lif", timesteps=4), Settings(passes=("fidelity",)))
    assert record.status is Status.WRONG, record.reason


def test_a_gradient_inside_of_a_forward_costs_no_more_than_what_autograd_packs():
    """`torch.func` refuses hooks on saved tensors, and the case ended there; all but their bytes is measured."""
    record = measure(case_of("OfAGradient", "lif"), Settings(target_s=0.01))
    assert record.status is Status.OK, record.reason
    assert (record.memory.saved_bytes, record.fidelity.judged_by) == (None, "reference")
    assert record.memory.retained_bytes > 0
    assert record.flops.forward.total > 0
    assert record.time is not None


def test_a_gradient_of_nothing_is_judged_by_differences():
    """An error of 0 was a `KeyError`, and the end of the case."""
    record = measure(case_of("OfSigns", "as-is", timesteps=4), Settings(passes=("fidelity",)))
    assert (record.status, record.fidelity.judged_by, record.fidelity.gradient_error) == (Status.OK, "differences", 0)


@pytest.mark.parametrize("node", ["as-is", "lif+remat"])
@pytest.mark.parametrize(
    ("model", "status"),
    [
        *(("ComplexWeights", Status.OK), ("KlifComplex", Status.OK)),
        *(("wrong_imaginary_part", Status.WRONG), ("klif_wrong_imaginary_part", Status.WRONG)),
    ],
)
def test_complex_parameters_stay_complex_and_are_judged_in_both_parts(model, node, status):
    """They were cast to floats, and of their gradients the real part alone was read."""
    case = case_of(model, node)
    assert build(case).model.complex.is_complex()
    record = measure(case, Settings(passes=("fidelity",)))
    assert record.status is status, record.reason


@pytest.mark.parametrize(("method", "status"), [("as-is", Status.OK), ("lif+remat", Status.UNVERIFIED)])
def test_a_model_for_one_precision_alone_is_measured_and_not_judged(method, status):
    record = measure(case_of("Single", method), Settings(passes=("memory", "fidelity")))
    assert (record.status, record.fidelity) == (status, None)
    assert "its gradient was not judged: it does not run in float64 (AssertionError" in record.reason
    assert record.memory.peak_bytes > 0


@pytest.mark.parametrize("method", ["as-is", "as-is+remat", "lif+remat"])
def test_layers_that_carry_a_state_are_reset_between_steps(method):
    record = measure(case_of("Remembering", method, batch=5), Settings(target_s=0.01))
    assert record.status is Status.OK, record.reason
    # The membranes, the last spikes and the mask, each of 8 features; the synapses' currents, of 4. Floats and samples.
    assert record.memory.state_bytes == (8 + 8 + 8 + 4) * 4 * 5


@pytest.mark.parametrize("method", ["as-is", "as-is+remat", "lif+remat"])
def test_a_model_with_a_sparse_matrix_is_measured(method):
    """Its memory is that of indices and values; the product is as many multiply-accumulates as it has values."""
    record = measure(case_of("Sparse", method), Settings(target_s=0.01))
    plain = measure(case_of("Plain", method), Settings(passes=("flops",)))
    assert record.status is Status.OK, record.reason
    more = record.flops.forward.multiply_accumulate - plain.flops.forward.multiply_accumulate
    assert more == 2 * 6 * 2 * 3  # values, steps and samples


@pytest.mark.parametrize("method", ["as-is", "as-is+remat", "lif+remat"])
def test_sparse_gradients_are_measured_and_judged(method):
    """Those of `nn.Embedding(sparse=True)` ended the memory pass, and had no operations."""
    record = measure(case_of("sparse_gradients", method), Settings(target_s=0.01))
    assert record.status is Status.OK, record.reason
    assert record.fidelity.parameter_gradient_error < 1e-5
    assert record.fidelity.bit_equal is None or record.fidelity.bit_equal[0] == record.fidelity.bit_equal[1] > 4
    assert sum(record.memory.peak_by_category_bytes.values()) == record.memory.peak_bytes
    assert record.flops.forward.total > 0
    record = measure(case_of("wrong_sparse_gradients", method), Settings(passes=("fidelity",)))
    assert record.status is Status.WRONG


@pytest.mark.parametrize("method", ["as-is", "lif+remat"])
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        *((model, "every gradient is 0") for model in ("Ends", "EndsInOne", "KlifEndsInNothing", "Saturated")),
        ("EndsInInf", "its output has numbers that are not finite, and so has that of its reference"),
        *((model, "has numbers that are not finite") for model in ("EndsInNan", "KlifEndsInNan")),
        ("Taught", "a copy of it has its own 'teacher.weight'"),
    ],
)
def test_what_tells_nothing_of_a_gradient_is_not_judged(model, reason, method):
    """Gradients of nothing were `ok`, or `wrong` by 1e-21; numbers that are not finite `wrong`; and a part that is
    shared by all copies was cast to float64 in the model itself, which ended the case."""
    record = measure(case_of(model, method), Settings(passes=("fidelity",)))
    assert (record.status, record.fidelity) == (Status.OK if method == "as-is" else Status.UNVERIFIED, None)
    assert "its gradient was not judged" in record.reason
    assert reason in record.reason


@pytest.mark.parametrize("method", ["as-is", "lif+remat"])
def test_a_layer_whose_gradient_is_nothing_is_judged_beside_others(method):
    """1e-22 in the place of 0 was an error of 1. A gradient that is there where there is none stays wrong."""
    record = measure(case_of("SaturatedFirst", method, timesteps=4), Settings(passes=("fidelity",)))
    assert record.status is Status.OK, record.reason
    record = measure(case_of("leaks_where_nothing_is", method, timesteps=4), Settings(passes=("fidelity",)))
    assert record.status is Status.WRONG, record.reason


@pytest.mark.parametrize("method", ["as-is", "lif+remat"])
def test_rounding_alone_in_the_place_of_nothing_is_no_wrong_gradient(method):
    """A bias before a norm was wrong by 0.07 in SpikingJelly's MASNN, whatever the method. Plain autograd in float32
    misses as much."""
    case = case_of("biased_before_a_norm", method, shape=(3,), timesteps=4, batch=256)
    record = measure(case, Settings(passes=("fidelity",)))
    assert record.status is Status.OK, record.reason
    assert 0 < record.fidelity.largest_parameter_error < 0.01


@pytest.mark.parametrize(("times", "is_right"), [(1.5, True), (20.0, False)])
def test_rounding_is_held_against_that_of_plain_autograd(times, is_right):
    """A parameter whose gradient is 0: what is of the size of plain autograd's miss is none of the method's."""
    missed, zero, weight = torch.full((8,), 1e-2), torch.zeros(8, dtype=torch.float64), torch.ones(100)
    mine, plain, exact = (
        {"output": [], "input": [weight], "parameters": [weight, bias], "states": []}
        for bias in (times * missed, missed, zero)
    )
    errors = _errors_of_call(mine, plain, exact, 1e-3)
    assert (errors["largest"] < 0.01) == (errors["parameters"] < 0.001) == is_right


def test_a_neuron_that_cuts_what_it_does_not_learn_from_is_not_called_wrong():
    """A difference goes through what is cut: it was wrong by 0.07, and so was `remat` around the same bits."""
    settings = Settings(passes=("fidelity",))
    plain, inside = (measure(case_of("adaptive_without_grad", node), settings) for node in ("as-is", "as-is+remat"))
    assert (plain.status, plain.fidelity, inside.status) == (Status.OK, None, Status.OK)
    assert "it cuts values from their graph (`no_grad`, `.data`)" in plain.reason
    assert inside.fidelity.bit_equal[0] == inside.fidelity.bit_equal[1] > 4


def test_what_is_detached_is_a_constant():
    """Of a threshold that is detached, an `item()` and a reset; a wrong neuron beside them was not judged. So are a
    `tolist()`, a `detach_()`, and what torch's checkpoint with its Function runs: wrong by 0.1 and more, before."""
    settings = Settings(passes=("fidelity",))
    record = measure(case_of("adaptive", "as-is+remat"), settings)
    assert (record.status, record.fidelity.judged_by) == (Status.OK, "differences"), record.reason
    assert record.fidelity.gradient_error < 1e-5
    assert measure(case_of("adaptive_and_faulty", "lif+bitpack"), settings).status is Status.WRONG


@pytest.mark.parametrize("model", ["rectified", "masked"])
def test_differences_decide_as_the_forward_did(model):
    """A membrane that must be 0 or more is just 0 until a spike comes, and a spike is above 0 where a difference moves
    it there: right gradients were called wrong by 0.1 and more."""
    record = measure(case_of(model, "as-is", timesteps=8), Settings(passes=("fidelity",)))
    assert (record.status, record.fidelity.judged_by) == (Status.OK, "differences"), record.reason


def test_spikes_by_a_function_of_ones_own_are_no_wrong_gradient():
    """Beside a neuron that differences can judge: they saw no derivative where it has one, and said wrong by 1."""
    settings = Settings(passes=("fidelity",))
    plain, inside = (
        measure(case_of("fires_by_its_own", node, timesteps=4), settings) for node in ("as-is", "as-is+remat")
    )
    assert (plain.status, plain.fidelity, inside.status) == (Status.OK, None, Status.OK)
    assert "an `autograd.Function` of its own decides something" in plain.reason


def test_a_kink_that_differences_cross_is_no_wrong_gradient():
    """Each side has its derivative, and a difference is their mean: a right gradient was wrong by 1 there. An error
    that is far more than that stays wrong."""
    settings = Settings(passes=("fidelity",))
    right, inside = (
        measure(case_of("leaky_and_right", node, timesteps=4), settings) for node in ("as-is", "as-is+remat")
    )
    assert (right.status, right.fidelity, inside.status) == (Status.OK, None, Status.OK)
    assert "its forward has a kink where its values lie" in right.reason
    assert measure(case_of("leaky_and_faulty", "as-is", timesteps=4), settings).status is Status.WRONG


def test_a_spectral_norm_is_judged_from_the_vectors_that_it_began_with():
    """They move with every call: a copy that had not run was another function, and right gradients wrong by 0.02."""
    settings = Settings(passes=("fidelity",))
    plain, inside = (measure(case_of("spectral", node, timesteps=4), settings) for node in ("as-is", "as-is+remat"))
    assert (plain.status, plain.fidelity, inside.status) == (Status.OK, None, Status.OK)
    assert inside.fidelity.bit_equal[0] == inside.fidelity.bit_equal[1]


def test_a_neuron_of_ones_own_may_take_the_steps_one_by_one():
    """Without a step mode it was refused at its second step, as one that stands in two places."""
    record = measure(case_of("WrittenLoop", "as-is", timesteps=4), Settings(passes=("fidelity",)))
    assert (record.status, record.fidelity.judged_by) == (Status.OK, "differences"), record.reason


def test_rounding_of_the_model_itself_is_no_wrong_gradient_of_its_method():
    """Behind a softmax that is nearly 1: with all bits of the model as it is, `as-is+remat` was wrong by 1 %."""
    plain, inside = (
        measure(case_of("sure_of_itself", node, timesteps=4), Settings(passes=("fidelity",)))
        for node in ("as-is", "as-is+remat")
    )
    assert (plain.status, inside.status) == (Status.OK, Status.OK), inside.reason
    assert inside.fidelity.bit_equal[0] == inside.fidelity.bit_equal[1] == 10
    assert inside.fidelity.gradient_error < 1e-3


def test_a_mask_in_a_hook_on_a_gradient_is_no_wrong_gradient():
    """Copies had no hooks, and the reference another gradient, by 0.1; a difference knows of none."""
    settings = Settings(passes=("fidelity",))
    for method in ("as-is", "lif+remat"):
        record = measure(case_of("pruned", method, timesteps=4), settings)
        assert record.status is Status.OK, record.reason
        assert record.fidelity.largest_parameter_error < 1e-5
    record = measure(case_of("pruned_loop", "as-is", timesteps=4), settings)
    assert record.status is Status.OK
    assert "it changes gradients in hooks" in record.reason


@pytest.mark.parametrize(
    ("model", "method"),
    [("Delayed", "as-is"), ("Delayed", "lif+remat"), ("norm_of_each_step", "lif+remat"), ("Norse", "as-is+remat")],
)
def test_states_in_lists_and_of_another_type_are_judged(model, method):
    """A queue kept its graph from call to call, which ended the case, as did a count of steps that went on; a leaf in
    float32 could not be judged."""
    pytest.importorskip("norse")
    record = measure(case_of(model, method, timesteps=4), Settings(passes=("fidelity",)))
    assert (record.status, record.fidelity.judged_by) == (Status.OK, "reference"), record.reason
    assert record.fidelity.gradient_error < 1e-5


@pytest.mark.parametrize(
    ("model", "method"), [("Directed", "as-is"), ("Directed", "lif+remat"), ("Scanned", "lif+remat")]
)
def test_what_looks_like_no_layer_of_today_is_measured(model, method, runner):
    """A parameter `v` was taken for a membrane and drawn anew at every step; no meter took an operator of
    functions, or found the parameters of a branch.

    In a process of its own: dynamo runs in each call of the operator, and Python's memory for it is counted.
    """
    record = runner.run(case_of(model, method), Settings(passes=("memory", "flops", "fidelity")))
    assert (record.status, record.uncounted) == (Status.OK, None), record.reason
    assert record.fidelity.judged_by == "reference"
    plain = measure(case_of("Plain", method), Settings(passes=("flops",)))
    assert record.flops.forward.total >= plain.flops.forward.total + 2 * 2 * 3 * 6


@pytest.mark.parametrize("method", ["as-is", "lif+remat"])
def test_what_cannot_be_copied_does_not_stop_a_model(method):
    """A copy for the reference has the model's own lock, and no graph; an iterator would be used up by it."""
    record = measure(case_of("Holds", method), Settings(passes=("memory", "fidelity")))
    assert record.status is Status.OK, record.reason
    assert record.fidelity.gradient_error < 1e-5
    record = measure(case_of("Draws", method), Settings(passes=("memory", "fidelity")))
    assert record.status is (Status.OK if method == "as-is" else Status.UNVERIFIED)
    assert "its gradient was not judged: it cannot be copied (TypeError: cannot pickle 'generator'" in record.reason
    assert predict(case_of("Holds", method)).retained_bytes > 0


@pytest.mark.parametrize("method", ["lif", "lif+remat", "lif+checkpoint"])
def test_a_graph_that_is_left_from_step_to_step_is_counted(method):
    """What `remat` held for it was taken for memory that is no tensor, and to look into a checkpoint's was an error."""
    record = measure(case_of("LeavesAGraph", method, timesteps=2, batch=256), Settings(passes=("memory",)))
    assert record.status is Status.OK, record.reason
    assert record.memory.lasting_bytes >= 8 << 20
    assert record.memory.lasting_bytes % (8 << 20) <= 32 << 10  # without the graph that a backward pass frees


def test_what_the_trial_of_a_model_keeps_is_counted():
    """A table of all models is made by the first forward of all: that of the trial, before the step is there."""
    own_models.TABLES.clear()
    record = measure(case_of("Cached", "as-is"), Settings(passes=("memory",)))
    plain = measure(case_of("Plain", "as-is"), Settings(passes=("memory",)))
    assert record.memory.lasting_bytes == 4 << 18
    assert record.memory.peak_bytes == (4 << 18) + plain.memory.peak_bytes


@pytest.mark.filterwarnings("ignore")  # the profiler says what it lost
@pytest.mark.parametrize(("model", "what"), [("Profiled", "torch's profiler"), ("Traced", "`tracemalloc`")])
def test_a_model_that_ends_what_counts_its_bytes_is_refused(model, what):
    """One that ran a profiler of its own had a peak of 0 bytes, and was `ok`."""
    with pytest.raises(RuntimeError, match=f"{what} must not .* inside of what is measured"):
        measure(case_of(model, "as-is"), Settings(passes=("memory",)))


def test_operations_of_other_threads_are_not_left_out_of_a_count():
    record = measure(case_of("Threaded", "as-is"), Settings(passes=("memory", "flops")))
    assert record.status is Status.UNVERIFIED
    assert record.flops is None
    assert "operators ran in other threads, where none is seen" in record.uncounted


def test_an_operator_without_a_formula_costs_the_operations_alone():
    """No part of the count is shown, everything else is, and reports and the prediction say which operator it was."""
    record = measure(case_of("Renormed", "lif+remat"), Settings(passes=("memory", "flops", "fidelity")))
    assert (record.status, record.flops) == (Status.OK, None)
    assert record.memory.peak_bytes > 0
    assert "`aten::renorm` must have a FLOPs formula" in record.uncounted
    foreseen = predict(record.case)
    assert (foreseen.flops, foreseen.uncounted) == (None, record.uncounted)
    assert foreseen.retained_bytes == record.memory.retained_bytes


def test_recurrent_layers_of_torch_are_counted_and_judged():
    """An LSTM is one operator of oneDNN on the CPU, which has no formula: it is counted as products and gates."""
    record = measure(case_of("Hybrid", "lif+remat"), Settings(passes=("memory", "flops", "fidelity")))
    assert record.status is Status.OK, record.reason
    # A product of each input and one of each state, for 3 gates of 6 and 4 of 4, over 2 steps and 3 samples.
    assert record.flops.forward.multiply_accumulate == 2 * 2 * 3 * (3 * 6 * (6 + 6) + 4 * 4 * (6 + 4))


def test_a_gradient_from_memory_that_nobody_wrote_is_wrong():
    """A block of 3 MiB comes from the system as zeros, and the gradient would be right by that alone."""
    record = measure(case_of("unwritten", "as-is", (1 << 17,)), Settings(passes=("fidelity",)))
    assert record.status is Status.WRONG
    assert not record.fidelity.gradient_error < 1e6


@pytest.mark.parametrize(("node", "status"), [("lif+remat", Status.OK), ("lif+checkpoint", Status.WRONG)])
def test_draws_outside_of_torch_are_the_same_too(node, status):
    """But a block that runs again draws others in Python, for its generator is not torch's: that gradient is wrong."""
    record = measure(case_of("DrawsInPython", node, timesteps=4), Settings(passes=("fidelity",)))
    assert record.status is status, record.reason


@pytest.mark.parametrize("node", ["as-is", "lif+remat", "lif-carrier"])
def test_neurons_that_take_single_steps_are_held_against_such(node):
    """Before, SpikingJelly's LIF in a loop was held against one that takes a batch for time, and wrong by 0.7."""
    record = measure(case_of("Recurrent", node, timesteps=4), Settings(passes=("fidelity",)))
    assert record.status is Status.OK, record.reason
    assert record.fidelity.output_error == 0


@pytest.mark.parametrize("node", ["as-is", "lif+remat", "lif+checkpoint"])
@pytest.mark.parametrize("model", ["Mixed", "Encoded", "tokens", "dictionary"])
def test_models_of_every_day_are_right(model, node):
    """Mixed precision was called wrong; a cast behind a comparison, tokens and a dictionary ended in an error."""
    record = measure(case_of(model, node, timesteps=4), Settings(passes=("memory", "flops", "fidelity")))
    assert record.status is Status.OK, record.reason
    assert record.fidelity.tolerance == (5e-2 if model == "Mixed" else 1e-3)
    assert record.fidelity.parameter_gradient_error < (1e-2 if model == "Mixed" else 1e-5)


def test_mixed_precision_hides_no_fault():
    """Differences judge it at the tolerance of bfloat16; a right neuron beside it passes."""
    record = measure(case_of("faulty_mixed", "as-is", timesteps=4), Settings(passes=("fidelity",)))
    assert (record.status, record.fidelity.tolerance, record.fidelity.judged_by) == (Status.WRONG, 5e-2, "differences")
    assert record.fidelity.gradient_error > 0.5


def test_a_fused_neuron_beside_an_unknown_one_is_judged():
    """Differences decide its spikes again, too; before, they ran out of spikes, and the case was an error."""
    record = measure(case_of("klif_and_lif", "lif", timesteps=4), Settings(passes=("fidelity",)))
    assert (record.status, record.fidelity.judged_by) == (Status.OK, "differences"), record.reason
    assert record.fidelity.gradient_error < 1e-5
    for backend in ("auto", "torch"):  # by the second it was wrong by 7
        case = case_of("klif_and_lif", "lif-carrier", timesteps=4, node_options={"backend": backend})
        carrier = measure(case, Settings(passes=("fidelity",)))
        assert carrier.reason.endswith("its CarrierLIF emits no spikes that could be decided again")


@pytest.mark.parametrize(
    ("model", "status"),
    [
        *((each, Status.OK) for each in ("eif", "qif", "izhikevich", "eif_in_steps", "masked_psn")),
        *((each, Status.WRONG) for each in ("wrong_before_eif", "wrong_before_eif_in_steps")),
    ],
)
def test_a_neuron_in_one_operator_is_judged_by_its_spikes(model, status):
    """Its surrogate is called in float64 alone, step by step; before, nothing could judge it.

    A masked PSN calls its own, and counts its steps: the count began again without the queue of inputs, an error.
    """
    record = measure(case_of(model, "as-is", timesteps=4, batch=8), Settings(passes=("fidelity",)))
    assert (record.status, record.fidelity.judged_by) == (status, "differences")
    assert status is Status.WRONG or max(record.fidelity.errors().values()) < 1e-5


@pytest.mark.parametrize(("model", "why"), [("sltt", None), ("ottt", "it does not fire through a surrogate")])
def test_a_neuron_that_learns_online_is_not_called_wrong(model, why):
    """It cuts its membrane from the graph at every step, as it is meant to; with its trace it returns a list."""
    record = measure(case_of(model, "as-is", timesteps=4, batch=8), Settings(passes=("fidelity",)))
    assert record.status is Status.OK
    assert why in record.reason if why else record.fidelity.gradient_error < 1e-5


def test_a_neuron_that_fires_unseen_beside_others_is_told():
    """In float64 it is seen, and got the spikes of the next layer: an error of shapes, before."""
    record = measure(case_of("hooked", "lif+remat", timesteps=4), Settings(passes=("fidelity",)))
    assert record.status is Status.UNVERIFIED
    assert record.reason.endswith("it fires another number of times in float64")


@pytest.mark.parametrize("model", ["regularised", "rate_regularised"])
def test_a_loss_that_reads_the_model_is_judged(model):
    """The reference runs in the model's place, so that the loss reads parameters and attributes of the reference."""
    for node in ("as-is", "lif+remat"):
        record = measure(case_of(model, node, timesteps=4), Settings(passes=("fidelity",)))
        assert record.status is Status.OK, record.reason
        assert record.fidelity.gradient_error < 1e-5


def test_a_loss_that_reads_parameters_of_another_model_is_not_judged():
    """Inside of a wrapper by `torch.compile` the reference cannot take the model's place."""
    record = measure(case_of("regularised_and_compiled", "lif+remat", timesteps=4), Settings(passes=("fidelity",)))
    assert record.status is Status.UNVERIFIED
    assert "its loss reads the model's parameters by itself" in record.reason


@pytest.mark.parametrize("model", ["frozen_tau", "tied_tau", "accumulated", "told_of_itself"])
@pytest.mark.parametrize("node", ["as-is", "lif+remat"])
def test_no_gradient_of_a_parameter_is_left_unjudged(model, node):
    """A weight's gradient is wrong beside a neuron whose tau is frozen or shared, or has a parameter of its own; or it
    is changed where it is accumulated."""
    record = measure(case_of(model, node), Settings(passes=("fidelity",)))
    assert record.status is Status.WRONG, record.reason
    assert record.fidelity.parameter_gradient_error > 0.1


@pytest.mark.parametrize("node", ["as-is", "lif"])
def test_a_neuron_that_begins_elsewhere_is_held_against_its_own_forward(node):
    """Not against its class, which begins at rest, nor is it exchanged for one of that."""
    record = measure(case_of("begins_elsewhere", node, timesteps=4, batch=8), Settings(passes=("fidelity",)))
    assert (record.status, record.fidelity.judged_by) == (Status.OK, "differences"), record.reason
    assert max(record.fidelity.errors().values()) < 1e-5


@pytest.mark.parametrize("model", ["doubled_by_a_hook", "doubled_by_its_forward"])
@pytest.mark.parametrize("node", ["as-is", "lif"])
def test_a_neuron_that_was_changed_is_not_held_against_one_of_its_class(model, node):
    """Nor exchanged for one: it keeps its hooks and its forward."""
    record = measure(case_of(model, node), Settings(passes=("fidelity",)))
    assert record.status is (Status.OK if node == "as-is" else Status.UNVERIFIED)
    assert "its gradient was not judged" in record.reason


def test_a_model_without_neurons_is_measured_as_it_is():
    """Nothing judges its gradient, and the reason says so; it is what its methods are held against, and `ok`."""
    record = measure(case_of("ByHand", "as-is", timesteps=4), Settings())
    assert (record.status, record.fidelity) == (Status.OK, None)
    assert "its gradient was not judged" in record.reason
    assert record.time.forward_time_s == record.time.lif_forward_time_s
    assert record.memory.peak_bytes > 0
    assert record.flops.forward.multiply_accumulate == 2 * 4 * 3 * 8 * (6 + 8)
    with pytest.raises(SkipCase, match=r"line \d+: ByHand has no neuron that can be exchanged"):
        build(case_of("ByHand", "lif+remat"))


def test_a_reset_that_finds_no_copy_is_named():
    """snnTorch's goes over a list of its own of neurons, in which copies are not."""
    pytest.importorskip("snntorch")
    record = measure(case_of("HiddenReset", "as-is+remat", timesteps=4), Settings(passes=("fidelity",)))
    assert record.status is Status.UNVERIFIED
    assert record.reason.endswith("snntorch.utils.reset finds no copy: leave it out, states are reset between steps")


@pytest.mark.parametrize("model", ["ByHand", "Hidden", "Sinabs", "SinabsRecurrent", "SnnTorch"])
def test_models_of_others_are_measured_inside_remat(model):
    """What a surrogate of any package saves is made again; the judge is the model as it is, and no bit differs."""
    pytest.importorskip("snntorch")
    pytest.importorskip("sinabs")
    settings = Settings(passes=("memory", "flops", "fidelity"))
    plain, inside = (measure(case_of(model, node, timesteps=3), settings) for node in ("as-is", "as-is+remat"))
    assert (plain.status, inside.status) == (Status.OK, Status.OK), inside.reason
    assert inside.fidelity.bit_equal[0] == inside.fidelity.bit_equal[1] > 4
    assert inside.fidelity.gradient_error < 1e-5
    assert inside.memory.retained_bytes < plain.memory.retained_bytes
    assert inside.flops.forward == plain.flops.forward
    if model in ("Hidden", "SnnTorch"):  # the spikes of three steps of three samples of the first layer
        assert plain.memory.retained_bytes - inside.memory.retained_bytes == 3 * 3 * 8 * 4
        for node, record in (("as-is", plain), ("as-is+remat", inside)):
            assert predict(case_of(model, node, timesteps=3)).retained_bytes == record.memory.retained_bytes


@pytest.mark.parametrize("node", ["lif+checkpoint", "lif+bitpack"])
def test_nothing_is_left_of_the_trial_of_a_model(node):
    """Its state held its graph, and that the model: counted as lasting tensors, 2.7 times what is retained."""
    case = case_of("sequential", node, timesteps=4, batch=256)
    found = measure(case, Settings(passes=("memory",))).memory
    assert found.lasting_bytes == 0
    assert found.retained_bytes == predict(case).retained_bytes


@pytest.mark.parametrize(("model", "method"), [("ByHand", "as-is+remat"), ("loop", "lif+remat")])
def test_methods_are_timed_beside_the_model_as_it_is(model, method, make_run):
    """Bytes and time of a method are over those of the model itself, whether neurons can be exchanged or not."""
    plain, method = (measure(case_of(model, node, timesteps=4), Settings(target_s=0.01)) for node in ("as-is", method))
    assert method.time.reference == plain.time.reference == "as-is"
    assert len(method.time.lif_forward_time_s) == len(method.time.forward_time_s) >= 5
    assert method.time.lif_forward_time_s != method.time.forward_time_s
    known = references(make_run([plain, method]))
    peak = ratio_of("peak_bytes", method, known)
    assert peak.value == method.memory.peak_bytes / plain.memory.peak_bytes
    rounds = zip(method.time.forward_time_s, method.time.lif_forward_time_s, strict=True)
    assert ratio_of("forward_time_s", method).value == statistics.median(own / plain for own, plain in rounds)
    older = method.model_copy(update={"time": method.time.model_copy(update={"reference": "lif"})})
    assert ratio_of("forward_time_s", older) is None  # beside another model


def test_a_report_of_own_models_names_what_ratios_are_against(make_run):
    """In every heading and sentence; and it says that nothing judged the model itself."""
    settings = Settings(passes=("memory", "fidelity"))
    records = [measure(case_of("ByHand", node, timesteps=4), settings) for node in ("as-is", "as-is+remat")]
    run = make_run(records)
    for text in (markdown.render(run), render_html(run)):
        assert "peak × as-is" in text
        assert "are taken against the user" in text
        assert "× lif" not in text
        assert "as-is; float32" in text
        assert "its gradient was not judged: it does not fire through a surrogate whose primitive is known" in text


@pytest.mark.parametrize("node", ["as-is", "as-is+remat"])
def test_the_peak_of_a_loop_is_predicted_to_the_byte(node):
    """A weight's gradient comes transposed at every step, so autograd adds out of place: three of it at once.

    The membranes that the step before left are gone by then.
    """
    pytest.importorskip("snntorch")
    case = case_of("WideSnnTorch", node, (512,), timesteps=6)
    memory = measure(case, Settings(passes=("memory",))).memory
    assert memory.peak_phase == "backward"
    assert memory.lasting_bytes == 2 * 3 * (256 + 4) * 4
    assert predict(case).peak_bytes == memory.peak_bytes


def test_a_module_that_copies_itself_is_predicted():
    """Layers of sinabs do: their copies held tensors of another device. What they keep between steps counts too."""
    pytest.importorskip("sinabs")
    case = case_of("Sinabs", "as-is", timesteps=6, batch=64)
    memory = measure(case, Settings(passes=("memory",))).memory
    found = predict(case)
    assert memory.lasting_bytes > 0
    assert found.retained_bytes == pytest.approx(memory.retained_bytes, abs=16)
    assert found.peak_bytes == pytest.approx(memory.peak_bytes, rel=0.01)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "AsksInBackward",
            r"own_models.py, line \d+: the backward pass of own_models:AsksInBackward asks for the numbers",
        ),
        ("masked_loss", r"own_models.py, line \d+: loss.output. asks for the numbers of a tensor .aten.nonzero"),
        ("NoCopy", "a prediction needs a copy of the model; it cannot be copied .TypeError: there is one of it"),
    ],
)
def test_what_cannot_be_predicted_is_told_in_one_sentence(model, message):
    """These were errors of torch and of the harness, which the command took for its own."""
    with pytest.raises(ModelError, match=f"^{message}"):
        predict(case_of(model, "as-is"))


@pytest.mark.parametrize("node", ["as-is", "as-is+remat"])
def test_a_number_that_a_surrogate_keeps_is_known_without_values(node):
    """Inside `remat` it was made again as a tensor without a value, and the prediction refused."""
    case = case_of("Triangular", node, timesteps=4)
    memory = measure(case, Settings(passes=("memory",))).memory
    found = predict(case)
    assert found.retained_bytes == pytest.approx(memory.retained_bytes, abs=16)  # numbers that become tensors


@pytest.mark.parametrize("node", ["as-is", "as-is+remat"])
def test_a_loss_with_a_weight_is_predicted(node):
    """The weight stayed a real tensor, and what was made again from it met those that have shapes alone."""
    case = case_of("learned_loss", node, timesteps=4)
    memory = measure(case, Settings(passes=("memory",))).memory
    assert predict(case).retained_bytes == memory.retained_bytes


def test_a_reference_runs_outside_of_remat(monkeypatch):
    """Before, it ran inside as well, and a recipe that made another tensor was held against itself."""
    from revsnn_nodes.remat import recipes

    original = recipes.Recipe.run

    def wrong(recipe, storages):
        made = original(recipe, storages)
        torch.empty(0).set_(made).mul_(1.5)
        return made

    monkeypatch.setattr(recipes.Recipe, "run", wrong)
    record = measure(case_of("relus", "lif+remat", timesteps=4), Settings(passes=("fidelity",)))
    assert record.status is Status.WRONG, record.reason


def test_a_state_that_nobody_resets_is_told():
    """In torch's words it was a graph that is walked a second time."""
    with pytest.raises(
        ModelError, match=rf"line {line_of(own_models.Carries, 'def forward')}: Carries must begin each"
    ):
        measure(case_of("Carries", "as-is"), Settings(passes=("memory",)))


def test_options_of_nodes_reach_no_model():
    """They would stand in the case's name, and change nothing."""
    with pytest.raises(ValueError, match=r"no other than `backend` for a model of your own; got tau\."):
        build(case_of("plain").model_copy(update={"node_options": (("tau", 3.0),)}))


def test_neurons_of_snntorch_are_told_their_way():
    """They have no `v` and no `reset()`; ours that take their place have both, where the exchange takes them."""
    with pytest.raises(SkipCase, match=r"has no neuron.*revsnn_nodes\.snntorch\.swap_neurons\(model\)"):
        build(case_of("snntorchs"))
    with pytest.raises(SkipCase, match=r"as it is: as-is, as-is\+remat\.$"):
        build(case_of("SnnTorch"))


@pytest.mark.parametrize(("model", "kind"), [("Noisy", "ParametricLIFNode"), ("noisy_klif", "KLIFNode")])
def test_a_carrier_needs_a_lif(model, kind):
    """Where no neuron is a LIF nothing would change: the case is skipped, and says what there is."""
    with pytest.raises(SkipCase, match=f"the model has none, but {kind}"):
        build(case_of(model, "lif-carrier"))


@pytest.mark.parametrize(
    ("model", "node"),
    [
        *(("faulty", node) for node in ("as-is", "lif", "lif+checkpoint")),
        ("faulty_before_tanh", "as-is+remat"),
        ("fires_wrongly", "as-is"),
    ],
)
def test_a_model_of_unknown_neurons_does_not_judge_itself(model, node):
    """Its gradient is three times too large: wrong by differences, where its own float64 run would call it right.

    An operator that keeps its result cuts nothing from its graph: with a `tanh` or `relu` the model was not judged.
    """
    record = measure(case_of(model, node, timesteps=4), Settings(passes=("fidelity",)))
    assert (record.status, record.fidelity.judged_by) == (Status.WRONG, "differences")


def gradients(case):
    torch.manual_seed(0)
    step = build(case)
    step.backward(step.forward())
    return [parameter.grad for parameter in step.model.parameters()]


@pytest.mark.parametrize("node", EXACT)
def test_exact_methods_give_the_bits_of_the_fused_model(node):
    """What is run again or made again has the gradients of `lif`."""
    expected = gradients(case_of("spikingjelly", "lif", (2, 6, 6)))
    assert all(map(torch.equal, gradients(case_of("spikingjelly", node, (2, 6, 6))), expected))


def test_offload_needs_a_gpu():
    """On the CPU there is nowhere to move tensors to, and the case is skipped with that reason."""
    with pytest.raises(SkipCase, match="on the CPU they are there already"):
        build(case_of(node="lif+offload"))


def test_another_name_than_a_method_is_refused():
    """A registered node is none: the model has its neurons."""
    with pytest.raises(ValueError, match=r"`node` must be a method for a model of your own; got 'revlif'"):
        build(case_of(node="revlif"))


BAD = {
    "raises": (own_models.raises, "1 / 0", "own_models:raises raised ZeroDivisionError: division by zero"),
    "nothing": (own_models.nothing, "", "must return an nn.Module, or an object with model.*; it returned a NoneType"),
    "returns_a_tuple": (own_models.Tuple.forward, "", "forward must return one tensor; it returned a tuple"),
    "neuron_twice": (
        own_models.Twice.forward,
        "return",
        "the neuron 'first' is called more than 1 times in one forward .* --input must begin with that T",
    ),
    "shared": (own_models.Shared, "", "'first' and 'second' of Shared are one module"),
    "shared_block": (own_models.SharedBlock, "", "'first' and 'second' of SharedBlock are one module"),
    "SingleStep": (own_models.SingleStep, "self.last(", "step_mode 's' must get one step .*; got .2, 3, 4., all steps"),
    "Complex": (own_models.Complex.forward, "", "forward must return floats; it returned torch.complex64"),
    "exits": (own_models.exits, "raise", "raised SystemExit: 3. It must not end the process"),
    "cut": (own_models.Cut.forward, "", "forward must return a tensor with a gradient"),
    "loss_none": (own_models.loss_none, "loss=", "must return a tensor of one element .*; it returned None"),
    "no_loss": (own_models.no_loss, "", r"loss\(output\); it returned a SimpleNamespace without loss\."),
    "wrong_inputs": (
        own_models.wrong_inputs,
        "inputs=",
        r"floats or integers of the shape \[2, 3, 6\] that --input gives; it returned",
    ),
}


@pytest.mark.parametrize("model", BAD)
def test_a_bad_model_gets_one_sentence_with_its_line(model):
    """The line is that of the user's file."""
    thing, text, message = BAD[model]
    with pytest.raises(ModelError, match=message) as caught:
        build(case_of(model))
    assert str(caught.value).startswith(f"own_models.py, line {line_of(thing, text)}: ")
    assert "\n" not in str(caught.value)


def test_a_model_of_torchs_class_is_told_by_its_name():
    """The line was one in torch's own file."""
    with pytest.raises(ModelError, match=r"^own_models:sequential_in_steps: the neuron '1' in step_mode 's' must get"):
        build(case_of("sequential_in_steps"))


def test_blocks_of_lazy_modules_are_not_looked_for():
    """They have no weights yet; other methods measure such a model. The line is the user's, not that of torch."""
    line = line_of(own_models.lazy)
    with pytest.raises(ModelError, match=rf"own_models.py, line {line}: .* some get theirs from a first input"):
        build(case_of("lazy", "lif+checkpoint"))
    assert measure(case_of("lazy", "lif+remat"), Settings(passes=("memory", "fidelity"))).status is Status.OK


def test_a_model_that_is_not_made_anew_is_refused():
    """It would be held against itself: the neurons that a method exchanged in it were in its reference, too."""
    with pytest.raises(ModelError, match=r"line \d+: own_models:made_once must return a new model at every call"):
        measure(case_of("made_once", "lif+remat"), Settings(passes=("fidelity",)))


def test_an_input_that_does_not_fit():
    """The user's line, the shape of the input, and torch's words."""
    said = r"line \d+: Plain on an input \[2, 3, 5\] raised RuntimeError: (addmm: )?mat1 and mat2"
    with pytest.raises(ModelError, match=said):
        build(case_of(shape=(5,)))


@pytest.mark.parametrize(
    ("model", "shape", "hint"),
    [
        ("without_inputs", (6,), r"Tokens are whole numbers, which inputs\(\) gives"),
        ("without_time", (3, 8, 8), r"torch's layers know no time: fold it into the batch, .*SeqToANNContainer"),
        ("without_time_in_its_norm", (6,), "torch's layers know no time"),
        ("OfAnotherType", (6,), r"Parameters, buffers and inputs all have the case's dtype \(--dtype\)"),
    ],
)
def test_an_input_that_a_layer_cannot_take(model, shape, hint):
    """Tokens that came as floats, time where a layer knows none, half precision in a case of float32: what to do stands
    behind torch's words."""
    with pytest.raises(ModelError, match=rf"on an input \[2, 3, .* raised RuntimeError: .*\. {hint}"):
        build(case_of(model, shape=shape))


def test_a_block_that_does_something_else_where_it_runs_again():
    """What to do, beside torch's words."""
    step = build(case_of("skips", "lif+checkpoint"))
    with pytest.raises(
        ModelError, match=r"own_models:skips: a block that runs again .* first run\. A different number"
    ):
        step.backward(step.forward())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module:make", "There is no module 'no_such_module' here"),
        ("folder/own_models.py:plain", "Pass folder.own_models:plain, the module's name in place of the file's"),
        ("own_models:no_such_name", "The module has no callable 'no_such_name'"),
        ("own_models:INSTANCE", "own_models:INSTANCE must be a function that makes a model; it is a model, a Plain"),
    ],
)
def test_a_bad_path(path, message):
    """It says which half is wrong."""
    with pytest.raises(ModelError, match=message):
        build(case_of(workload=path))


def test_a_module_that_raises_on_import(tmp_path, monkeypatch):
    """The line of the user's file, also in a package; syntax errors included."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_broken.py").write_text("import torch\n\nraise ValueError('no data')\n")
    (tmp_path / "own_syntax.py").write_text("import torch\ndef make(:\n")
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "nets.py").write_text("\n1 / 0\n")
    (tmp_path / "own_raising").mkdir()
    (tmp_path / "own_raising" / "__init__.py").write_text("1 / 0\n")
    with pytest.raises(ModelError, match=r"own_broken.py, line 3: the module own_broken raised ValueError: no data"):
        build(case_of(workload="own_broken:make"))
    with pytest.raises(ModelError, match=r"own_syntax.py, line 2: the module own_syntax raised SyntaxError"):
        build(case_of(workload="own_syntax:make"))
    with pytest.raises(ModelError, match=r"nets.py, line 2: the module own_package.nets raised ZeroDivisionError"):
        build(case_of(workload="own_package.nets:make"))
    with pytest.raises(ModelError, match=r"__init__.py, line 1: the module own_raising.nets raised ZeroDivisionError"):
        build(case_of(workload="own_raising.nets:make"))


@pytest.mark.parametrize("call", ["torch.set_grad_enabled(False)", "torch.set_default_device('meta')"])
def test_a_module_that_leaves_nothing_to_measure_is_named(call, tmp_path, monkeypatch):
    """For the whole process: a graph that "was cut on the way", or an `item()` of a meta tensor, told little."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"own_{'grad' if 'grad' in call else 'device'}"
    (tmp_path / f"{name}.py").write_text(f"import torch\n\n{call}\nmake = torch.nn.Flatten\n")
    try:
        with pytest.raises(ModelError, match=f"the module {name} must leave .* it calls {re.escape(call)} as it is"):
            build(case_of(workload=f"{name}:make"))
    finally:
        torch.set_grad_enabled(True)
        torch.set_default_device(None)


def test_a_module_that_lacks_a_package_is_not_taken_for_missing(tmp_path, monkeypatch):
    """Also where its own name begins with that of the package."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_lacks_net.py").write_text("import own_lacks\n")
    with pytest.raises(ModelError, match=r"own_lacks_net.py, line 1: the module own_lacks_net raised ModuleNotFound"):
        build(case_of(workload="own_lacks_net:make"))


def test_what_the_first_call_keeps_is_counted():
    """Trying a model does not hide it: one more input is kept for good. Weights that the first call makes are none."""
    kept, plain, lazy = (
        measure(case_of(model, "as-is"), Settings(passes=("memory",))).memory
        for model in ("Remembers", "plain", "Lazy")
    )
    assert kept.lasting_bytes == kept.retained_bytes - plain.retained_bytes == 4 * 2 * 3 * 6
    assert plain.lasting_bytes == lazy.lasting_bytes == 0


def test_a_model_that_changes_settings_of_the_process_is_unverified():
    """They would hold for the standard LIF beside it too. They are named, and put back."""
    before = torch.get_num_threads(), torch.get_default_dtype(), torch.is_anomaly_enabled()
    record = measure(case_of("Switches", "as-is"), Settings(passes=("flops",)))
    assert (torch.get_num_threads(), torch.get_default_dtype(), torch.is_anomaly_enabled()) == before
    assert record.status is Status.UNVERIFIED
    assert "default dtype from torch.float32 to torch.float64" in record.reason
    assert "anomaly detection from False to True. Set them where its module is imported" in record.reason


def test_settings_of_a_models_module_hold_for_its_reference_too(tmp_path, monkeypatch):
    """What is set as the module is imported is no doubt of a case, and the run records the threads that there are."""
    monkeypatch.syspath_prepend(tmp_path)
    text = "import torch\nfrom own_models import plain\ntorch.set_num_threads(torch.get_num_threads() % 2 + 1)\n"
    for name in ("own_sets_a", "own_sets_b"):
        (tmp_path / f"{name}.py").write_text(text + "torch.set_default_dtype(torch.float64)\n")
    before = read_switches()
    try:
        assert fingerprint(["own_sets_a"]).threads == torch.get_num_threads() != before["number of threads"]
        record = measure(case_of(workload="own_sets_b:plain", node="lif+remat"), Settings(passes=("flops", "fidelity")))
        assert record.status is Status.OK, record.reason
        assert torch.get_num_threads() == before["number of threads"]
    finally:
        restore_switches(before)


def test_workers_import_the_model(runner):
    """A worker finds the module on the path of its client; a bad model is an error of the case, with its sentence."""
    settings = Settings(passes=("memory",))
    assert runner.run(case_of(), settings).status is Status.OK
    record = runner.run(case_of("raises"), settings)
    assert record.status is Status.ERROR
    assert "own_models:raises raised ZeroDivisionError" in record.reason.partition("\n")[0]


@pytest.mark.parametrize("node", ["as-is", "as-is+remat", "lif"])
def test_neurons_of_spikingjelly_are_judged_by_the_membranes_that_they_round(node):
    """In half precision another neuron fires by that, and the output was wrong by 0.08; ours have float32 there."""
    case = case_of("Rounds", node, shape=(8,), timesteps=6, batch=4)
    record = measure(case, Settings(passes=("fidelity",)))
    assert record.status is Status.OK, record.reason
    assert record.fidelity.output_error == 0.0
