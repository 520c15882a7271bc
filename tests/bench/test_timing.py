"""The timing meter on steps whose time and order are known."""

import gc
import hashlib
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from revsnn_bench.meters.step import TrainingStep
from revsnn_bench.meters.timing import Round, Sample, is_contended, measure_time, select_rounds
from revsnn_bench.system import process
from revsnn_bench.system.process import OtherWork, RunDelay


class Step(TrainingStep):
    """A training step that runs two given functions and writes down what was called."""

    def __init__(
        self,
        forward: Callable[[], object] = lambda: None,
        backward: Callable[[], object] = lambda: None,
        name: str = "",
        log: list[str] | None = None,
    ) -> None:
        super().__init__(nn.Identity(), torch.ones(1, requires_grad=True))
        self.work = {"forward": forward, "backward": backward}
        self.name = name
        self.log = [] if log is None else log

    def prepare(self) -> None:
        self.log.append(f"{self.name}prepare")

    def run(self, x: Tensor) -> Tensor:
        self.log.append(f"{self.name}forward")
        self.work["forward"]()
        output = x * 1.0
        output.register_hook(self.run_backward)
        return output

    def run_backward(self, _: Tensor) -> None:
        self.log.append(f"{self.name}backward")
        self.work["backward"]()


def pointwise(elements: int) -> Callable[[], object]:
    x = torch.ones(elements)
    return lambda: x.sigmoid().sum()


def rounds_of(*shares: float) -> list[Round]:
    """Rounds of one second with these shares of run delay."""
    return [Round(Sample(0.25, 0.25, share), Sample(0.25, 0.25, 0.0), 0.1) for share in shares]


@pytest.mark.parametrize(
    "source",
    [
        torch.full((3,), 0.75, requires_grad=True),
        torch.full((3, 2), 0.75).t().requires_grad_(),
        torch.full((3,), 5.0, dtype=torch.bfloat16),
        (torch.arange(64) % 2).float().requires_grad_(),
        torch.arange(12),
        torch.tensor([0, 0, 0, 0, 3, 1, 4, 2, 5, 9, 7, 8, 6]),
    ],
    ids=["floats", "transposed", "bfloat16", "spikes", "tokens", "padded"],
)
def test_no_two_steps_have_the_same_input(source):
    """So a model that gives back what it remembers of an input is timed like any other."""
    seen = []
    step = Step()
    step.source = source
    step.run = lambda x: (seen.append(tuple(x.flatten().tolist())), torch.ones((), requires_grad=True) * 1)[1]
    record = measure_time(step, None, target_s=0.0)
    assert len(seen) == 2 + len(record.forward_time_s) + record.rounds_rejected
    assert len(set(seen)) == len(seen)
    spikes = [{*each} <= {0.0, 1.0} for each in seen]
    assert all(spikes) or not any(spikes)  # which may be kept at a bit each


def test_a_known_time_comes_out_with_forward_and_backward_apart():
    """The fastest sample of each is the sleep and what waking up costs: forward takes twice what backward does."""
    step = Step(lambda: time.sleep(0.02), lambda: time.sleep(0.01))
    record = measure_time(step, None, target_s=0.0)
    assert min(record.forward_time_s) >= 0.02
    assert min(record.backward_time_s) >= 0.01
    assert 1.2 < min(record.forward_time_s) / min(record.backward_time_s) < 2.5


def test_more_elements_take_longer():
    record = measure_time(Step(pointwise(1 << 22)), Step(pointwise(1 << 14)), target_s=0.0)
    assert statistics.median(record.forward_time_s) > 4 * statistics.median(record.lif_forward_time_s)


def test_without_a_reference_the_samples_are_its_own_reference():
    record = measure_time(Step(pointwise(1 << 12)), None, target_s=0.0)
    assert record.lif_forward_time_s == record.forward_time_s
    assert record.lif_backward_time_s == record.backward_time_s
    assert record.threads == torch.get_num_threads()


@pytest.mark.parametrize(("target_s", "rounds"), [(0.0, 3), (1e9, 8)])
def test_the_number_of_rounds_stays_within_its_bounds(target_s, rounds):
    """A round that is left alone by others is certain only for sleeping work."""
    step, reference = (Step(lambda: time.sleep(0.005)) for _ in range(2))
    record = measure_time(step, reference, target_s=target_s, min_rounds=3, max_rounds=8)
    samples = (record.forward_time_s, record.backward_time_s, record.lif_forward_time_s)
    assert {len(each) for each in samples} <= set(range(3, rounds + 1))
    assert len(record.forward_time_s) + record.rounds_rejected >= rounds


def test_the_warm_up_sets_the_number_of_rounds():
    """20 ms per round reach 0.2 s in ten rounds at most; a slow machine needs fewer, but more than the minimum."""
    step, reference = (Step(lambda: time.sleep(0.01)) for _ in range(2))
    record = measure_time(step, reference, target_s=0.2, min_rounds=1, max_rounds=50)
    assert 1 < len(record.forward_time_s) + record.rounds_rejected <= 20


def test_every_backward_follows_a_fresh_forward_and_the_order_alternates():
    log: list[str] = []
    measure_time(Step(name="a.", log=log), Step(name="b.", log=log), target_s=0.0, min_rounds=4, max_rounds=4)
    assert log.pop() == "a.prepare"
    calls = [tuple(log[start : start + 3]) for start in range(0, len(log), 3)]
    a, b = (tuple(f"{name}.{call}" for call in ("prepare", "forward", "backward")) for name in "ab")
    pairs = list(zip(calls[::2], calls[1::2], strict=True))
    assert len(pairs) >= 6
    assert pairs == [(a, b) if index % 2 == 0 else (b, a) for index in range(len(pairs))]


def test_the_garbage_collector_rests_while_the_clock_runs_and_is_put_back(monkeypatch):
    seen = []
    monkeypatch.setattr(process, "_frozen", None)  # outside of a worker
    gc.unfreeze()
    measure_time(Step(lambda: seen.append(gc.isenabled())), None, target_s=0.0)
    assert not any(seen)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_step_that_fails_leaves_the_garbage_collector_on():
    def fail() -> None:
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        measure_time(Step(fail), None)
    assert gc.isenabled()


@pytest.mark.parametrize(("min_rounds", "max_rounds"), [(0, 5), (6, 5)])
def test_bounds_that_no_number_meets_are_refused(min_rounds, max_rounds):
    with pytest.raises(ValueError, match="`min_rounds` must be at least 1"):
        measure_time(Step(), None, min_rounds=min_rounds, max_rounds=max_rounds)


def test_contended_rounds_are_left_out_in_order():
    rounds = rounds_of(0.0, 0.5, 0.01, 0.9, 0.04)
    assert select_rounds(rounds, 2) == [rounds[0], rounds[2], rounds[4]]


def test_the_least_contended_rounds_fill_up_the_minimum():
    rounds = rounds_of(0.9, 0.5, 0.01, 0.6, 0.7)
    assert select_rounds(rounds, 3) == [rounds[1], rounds[2], rounds[3]]
    assert [is_contended(each) for each in rounds] == [True, True, False, True, True]


@pytest.fixture
def busy_neighbour():
    """A process that never stops working, on the one core that this thread may use too."""
    if not hasattr(os, "sched_setaffinity") or not os.path.exists("/proc/self/schedstat"):
        pytest.skip("needs Linux: CPU affinity and run delays")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    spin = "print('spinning', flush=True)\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        yield
    finally:
        os.sched_setaffinity(0, cores)
        process.kill()
        process.communicate()


def spin() -> None:
    """Uses 30 ms of processor time: more than a scheduler lets one of two processes have at a stretch."""
    until = time.thread_time() + 0.03
    while time.thread_time() < until:
        pass


@pytest.mark.usefixtures("busy_neighbour")
def test_rounds_that_shared_their_core_are_rejected_and_counted():
    record = measure_time(Step(spin), None, target_s=0.0, min_rounds=2, max_rounds=2)
    assert record.rounds_rejected == record.rounds_contended == len(record.forward_time_s) == 2
    assert record.others_cores > 0.2


def test_threads_of_our_own_are_not_other_work():
    """Two of them are at work: what others took is at most what these left of the cores."""
    data = bytes(1 << 23)
    threads = [threading.Thread(target=lambda: [hashlib.sha256(data) for _ in range(20)]) for _ in range(2)]
    others, start, own = OtherWork(), time.perf_counter(), time.process_time()
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    taken = (time.process_time() - own) / (time.perf_counter() - start)
    assert 0 <= others.cores() <= os.cpu_count() - taken + 0.2


def test_sleeping_is_not_contention():
    delay = RunDelay()
    start = time.perf_counter()
    time.sleep(0.1)
    assert delay.elapsed_s() < 0.5 * (time.perf_counter() - start)
