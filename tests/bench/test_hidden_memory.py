"""Memory that a node hides: counted to the byte where it is a tensor, else the case is unverified."""

import gc
import weakref

import hidden_memory
import pytest
import torch
from revsnn_nodes import registry

from revsnn_bench import Case, Settings, measure
from revsnn_bench.meters.memory import measure_memory
from revsnn_bench.meters.selftest import SelfTestStep
from revsnn_bench.plugin import hold_to_budget
from revsnn_bench.records import Status
from revsnn_bench.runner import Runner
from revsnn_bench.system import process
from revsnn_bench.system.process import PRELOAD

SHAPE = (131072,)
SIZE = 4 * 8 * 131072
"""Bytes of the input, 4 MiB: above what passes for the process's own."""


@pytest.fixture(scope="module")
def plain_memory():
    """What a node that hides nothing takes."""
    registry.register_node("plain", plain)
    record = measure(Case(node="plain", timesteps=4, batch=2, shape=SHAPE), Settings(passes=("memory",)))
    del registry._NODES["plain"]
    return record


@pytest.fixture
def measured(monkeypatch):
    """Gives the record of a planted node, measured by its name as every node is."""

    def of(make):
        monkeypatch.setitem(registry._NODES, "planted", make)
        hidden_memory._EVERYWHERE.clear()
        case = Case(node="planted", timesteps=4, batch=2, shape=SHAPE)
        return measure(case, Settings(passes=("memory",)))

    return of


def plain():
    return hidden_memory.Hiding(lambda node, x, y: None)


def test_a_node_that_hides_nothing_is_ok(plain_memory):
    """One input tensor is retained, for the surrogate; nothing is found beyond it."""
    record = plain_memory
    assert record.status is Status.OK
    assert record.memory.retained_bytes == SIZE
    assert record.memory.lasting_bytes == 0
    assert record.memory.untracked_bytes.held < 1 << 17


def test_a_result_that_is_remembered_by_its_input_is_computed_in_what_is_measured(plain_memory, monkeypatch):
    """In an attribute of the class, for every instance: peak and operations are those of a step with a new input."""
    kept = {}

    def remember(node, x, y):
        key = x.double().sum().item()
        if key not in kept:
            kept[key] = x.repeat(8, 1, 1).sum()

    monkeypatch.setitem(registry._NODES, "planted", lambda: hidden_memory.Hiding(remember))
    case = Case(node="planted", timesteps=4, batch=2, shape=SHAPE)
    record = measure(case, Settings(passes=("memory", "flops")))
    assert record.memory.peak_bytes >= plain_memory.memory.peak_bytes + 3 * SIZE
    assert record.flops.forward.pointwise >= 2 * SIZE
    assert record.status is Status.UNVERIFIED
    assert "it holds 4 B more after every step" in record.reason


@pytest.mark.parametrize("turn", [2, 4])
def test_a_node_that_takes_less_in_some_steps_is_unverified(plain_memory, measured, turn):
    """The higher of two peaks counts, and neither tells of a training; nor do bytes that are kept by some steps."""
    calls = []

    def alternate(node, x, y):
        calls.append(None)
        return torch.cat([y] * 8)[: len(y)].clone() if len(calls) % turn == 0 else None

    record = measured(lambda: hidden_memory.Hiding(alternate))
    assert turn > 2 or record.memory.peak_bytes > plain_memory.memory.peak_bytes
    assert record.status is Status.UNVERIFIED
    assert "what two of its steps take differs by " in record.reason


@pytest.mark.parametrize("name", hidden_memory.TENSORS)
def test_a_hidden_tensor_is_counted_to_the_byte(measured, plain_memory, name):
    """Wherever it is kept, retained and peak bytes hold it."""
    before, record = plain_memory.memory, measured(hidden_memory.TENSORS[name])
    assert record.status is Status.OK
    assert record.memory.retained_bytes == before.retained_bytes + SIZE
    assert record.memory.peak_bytes >= before.peak_bytes + SIZE
    assert sum(record.memory.retained_by_module_bytes.values()) == record.memory.retained_bytes
    assert sum(record.memory.peak_by_category_bytes.values()) == record.memory.peak_bytes


@pytest.fixture(scope="module")
def worker():
    """Runs functions in workers whose server has loaded the module of the planted nodes, and frozen it."""
    with Runner(measure, timeout_s=120, preload=(*PRELOAD, "hidden_memory")) as runner:
        yield runner


@pytest.mark.parametrize("name", hidden_memory.TENSORS)
def test_a_worker_counts_a_hidden_tensor_too(worker, plain_memory, name):
    """Where the server has frozen what it imported, so that the worker looks through its own objects alone."""
    memory = worker.call(hidden_memory.memory_of, name)
    assert memory.retained_bytes == plain_memory.memory.retained_bytes + SIZE


def test_a_worker_knows_every_tensor_once(worker):
    """Whether it was there when the server froze what it had imported, or a meter what there was, or came later."""
    assert worker.call(hidden_memory.counts_of_tensors) == [1, 1, 1]


def test_what_is_let_go_of_beside_a_frozen_heap_is_collected(monkeypatch):
    """Also where all tensors were looked for meanwhile: the model of a rehearsal is nobody's from then on."""
    monkeypatch.setattr(process, "_frozen", None)  # as in a process that is no worker
    with process.frozen_heap():
        circle = [torch.zeros(3)]
        circle.append(circle)
        tensor = weakref.ref(circle[0])
        assert sum(found is circle[0] for found in process.all_tensors()) == 1
        del circle
        gc.collect()
        assert tensor() is None


@pytest.mark.parametrize("name", hidden_memory.OTHERS)
def test_memory_that_is_no_tensor_is_unverified(measured, name):
    """Its bytes are shown and never ranked: the process holds, or has written, what no tensor explains."""
    record = measured(hidden_memory.OTHERS[name])
    assert record.status is Status.UNVERIFIED
    assert "its memory was not all counted" in record.reason


@pytest.mark.memory_budget(peak="1 GiB")
@pytest.mark.usefixtures("measure_case")  # whose record the budget is of, and not the body of this test
def test_no_budget_is_held_where_memory_was_not_all_counted(measured, request):
    """A budget that the tensors keep fails all the same, and says what was seen beside them."""
    record = measured(hidden_memory.OTHERS["numpy array"])
    with pytest.raises(pytest.fail.Exception, match="budget cannot be held: its memory was not all counted"):
        hold_to_budget(request.node, record)


def test_memory_that_grows_is_unverified(measured):
    """A tensor more after every step, though the node is reset: its bytes and the module are named."""

    def hoard(node, x, y):
        node.__dict__.setdefault("history", []).append(x.clone())

    record = measured(lambda: hidden_memory.Hiding(hoard))
    assert record.status is Status.UNVERIFIED
    assert record.reason == f"it holds {SIZE:,} B more after every step, in module ''"


@pytest.mark.parametrize("turn", [0, 1])
def test_what_grows_in_every_second_step_alone_grows(measured, turn):
    """By half of it in a step."""

    def hoard(node, x, y):
        kept, node.__dict__["calls"] = node.__dict__.setdefault("history", []), node.__dict__.get("calls", turn) + 1
        if node.__dict__["calls"] % 2:
            kept.append(x.clone())

    record = measured(lambda: hidden_memory.Hiding(hoard))
    assert record.status is Status.UNVERIFIED
    assert record.memory.growth_bytes == SIZE // 2


def test_what_a_step_frees_is_not_held(measured):
    """Arrays that live within forward alone are no memory between forward and backward, but some of its peak."""
    record = measured(lambda: hidden_memory.Hiding(lambda node, x, y: torch.from_numpy(x.numpy() * 2) is None or None))
    beyond = record.memory.untracked_bytes
    assert beyond.held < 1 << 17
    assert SIZE <= beyond.passing < SIZE + (1 << 17)
    assert record.reason.endswith(f"it takes {beyond.passing:,} B that are no tensors for a time")


def test_a_wrapper_of_a_transform_that_is_still_alive_stops_no_meter():
    """Tensors that `torch.func` left behind have no storage, and are passed over."""
    left = []

    def function(x):
        left.append(x)
        return (x * x).sum()

    torch.func.grad(function)(torch.ones(3))
    assert not torch._C._has_storage(left[0])
    assert measure_memory(SelfTestStep()).retained_bytes == SelfTestStep().expected["retained_bytes"]
