"""Wall time of one training step, interleaved round by round with that of a reference.

That is the standard LIF at the same point, or for a method on a user's model that model as it is. The next round runs
them the other way round, so that whatever drifts (clock, temperature, page cache) meets both alike. Every backward
follows a fresh forward. Preparation, making the input and the output's gradient, garbage collection and the meter
itself are outside of the clock.

What compilation costs is a pass of its own, in a process of its own that finds nothing compiled on disk.
"""

import ctypes
import gc
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pkgutil import resolve_name
from tempfile import TemporaryDirectory
from typing import NamedTuple

import psutil
import torch
from torch import Tensor

from revsnn_bench.case import Case
from revsnn_bench.meters.step import TrainingStep, change_input
from revsnn_bench.records import TimeRecord
from revsnn_bench.system.process import CONTENDED_SHARE, METERS, OtherWork, RunDelay, frozen_heap, quiet_gc

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MOST = 2**31 - 1  # what its int holds


class Sample(NamedTuple):
    """One forward and one backward, in seconds, and how long the process was kept from running meanwhile."""

    forward_s: float
    backward_s: float
    delay_s: float

    @property
    def wall_s(self) -> float:
        """Timed seconds."""
        return self.forward_s + self.backward_s


class Round(NamedTuple):
    """The step and the reference, timed one right after the other; one sample where they are the same."""

    step: Sample
    reference: Sample
    copy_s: float

    @property
    def samples(self) -> tuple[Sample, ...]:
        """What was timed."""
        return (self.step,) if self.reference is self.step else (self.step, self.reference)

    @property
    def wall_s(self) -> float:
        """Timed seconds."""
        return sum(sample.wall_s for sample in self.samples)

    @property
    def delay_share(self) -> float:
        """Run delay as a share of the timed seconds."""
        return sum(sample.delay_s for sample in self.samples) / self.wall_s


def measure_time(
    step: TrainingStep,
    reference: TrainingStep | None,
    *,
    target_s: float = 0.3,
    min_rounds: int = 5,
    max_rounds: int = 50,
    warm_rounds: int = 2,
) -> TimeRecord:
    """Times forward and backward apart, in rounds; the step is left prepared.

    Some rounds, at least 2, come first and are not counted: the first pays for compilation and first use, the last sets
    the number of rounds. Those in which threads had to wait for a core are rejected and run again, up to twice in all.

    Args:
        reference: what ratios are taken against; None where `step` is it.
        target_s: timed seconds to aim for, step and reference together.
    Returns:
        One sample per accepted round, in seconds. Where fewer than `min_rounds` passed, the least contended of
        the others fill up to it; `rounds_contended` counts them.
    Raises:
        ValueError: bounds that no number of rounds meets.
    """
    if not 1 <= min_rounds <= max_rounds:
        raise ValueError(
            f"`min_rounds` must be at least 1 and at most `max_rounds`; got {min_rounds} and {max_rounds}. "
            "Every case needs a sample. Pass for example 5 and 50."
        )
    load_before = psutil.getloadavg()[0]
    with quiet_gc(), frozen_heap():
        touched = step.source.detach().clone()
        first = _run_round(step, reference, touched, step_first=True)
        for _ in range(max(warm_rounds, 2) - 1):
            warm = _run_round(step, reference, touched, step_first=False)
        target = min(max(math.ceil(target_s / warm.wall_s), min_rounds), max_rounds)
        others, alone, rounds = OtherWork(), 0, list[Round]()
        while alone < target and len(rounds) < 2 * target:
            rounds.append(_run_round(step, reference, touched, step_first=len(rounds) % 2 == 0))
            alone += not is_contended(rounds[-1])
        others_cores = others.cores()
    step.prepare()
    kept = select_rounds(rounds, min_rounds)
    return TimeRecord(
        forward_time_s=tuple(each.step.forward_s for each in kept),
        backward_time_s=tuple(each.step.backward_s for each in kept),
        lif_forward_time_s=tuple(each.reference.forward_s for each in kept),
        lif_backward_time_s=tuple(each.reference.backward_s for each in kept),
        copy_time_s=tuple(each.copy_s for each in kept),
        first_step_time_s=first.step.wall_s,
        rounds_rejected=len(rounds) - len(kept),
        rounds_contended=sum(is_contended(each) for each in kept),
        others_cores=others_cores,
        load_before=load_before,
        load_after=psutil.getloadavg()[0],
        threads=torch.get_num_threads(),
    )


def is_contended(each: Round) -> bool:
    """Whether threads of this process waited for a core for more than `CONTENDED_SHARE` of the round."""
    return each.delay_share > CONTENDED_SHARE


def select_rounds(rounds: Sequence[Round], min_rounds: int) -> list[Round]:
    """The rounds that count, in order: those left alone, and if too few, the least contended up to `min_rounds`."""
    alone = sum(not is_contended(each) for each in rounds)
    ranked = sorted(range(len(rounds)), key=lambda index: rounds[index].delay_share)
    return [rounds[index] for index in sorted(ranked[: max(alone, min_rounds)])]


def set_steady_state_malloc(keep_all: bool = False) -> bool:
    """Makes glibc keep freed blocks below 32 MiB, as it does by itself in a long-running process.

    A low `MALLOC_MMAP_THRESHOLD_`, which memory passes need, would make every block a fresh mapping, and the page
    faults of its first touch would be what is timed.

    With `keep_all` it keeps larger ones too, as caching allocators such as jemalloc do; by itself it gives them back.

    Returns whether it was done: not where the C library is another.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    mapped, trimmed = (_MOST, _MOST) if keep_all else (32 << 20, 64 << 20)
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, mapped) and libc.mallopt(_M_TRIM_THRESHOLD, trimmed))


def _run_round(step: TrainingStep, reference: TrainingStep | None, touched: Tensor, step_first: bool) -> Round:
    if reference is None:
        of_step = of_reference = _time(step)
    elif step_first:
        of_step, of_reference = _time(step), _time(reference)
    else:
        of_reference, of_step = _time(reference), _time(step)
    return Round(of_step, of_reference, _copy_s(step.source.detach(), touched))


def _copy_s(source: Tensor, touched: Tensor) -> float:
    """Seconds of a copy to memory that has been touched before: one read and one write, and nothing else."""
    synchronize(source.device)
    start = time.perf_counter_ns()
    touched.copy_(source)
    synchronize(source.device)
    return (time.perf_counter_ns() - start) / 1e9


def _time(step: TrainingStep) -> Sample:
    device = step.source.device
    step.prepare()
    change_input(step)
    x = step.make_input()
    gc.collect()
    synchronize(device)
    delay = RunDelay()
    start = time.perf_counter_ns()
    output = step.run(x)
    synchronize(device)
    forward_s = (time.perf_counter_ns() - start) / 1e9
    gradient = step.output_gradient(output)
    synchronize(device)
    start = time.perf_counter_ns()
    output.backward(gradient)
    synchronize(device)
    backward_s = (time.perf_counter_ns() - start) / 1e9
    return Sample(forward_s, backward_s, delay.elapsed_s())


def synchronize(device: torch.device) -> None:
    """Waits until a device has done what it was given; the CPU has by then."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


CACHES = ("NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
"""Environment variables that say where compilers keep what they compiled: numba, torch.compile and triton."""

_BOOT = "import sys; sys.path[:] = {path!r}; from revsnn_bench.meters.timing import main; main({case!r}, {build!r})"


def measure_compile_time(case: Case, build: str) -> float:
    """Seconds that the first step of a process takes beyond a later one, where every cache on disk is empty.

    That is compiling, and loading the compiler; torch and what its first backward imports are loaded before.

    Args:
        build: what makes a step of the case there, as `module:function`; nodes are known by their entry points alone.
    Raises:
        RuntimeError: the case fails there; with the end of what it printed.
    """
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-P", "-c", _BOOT.format(path=sys.path, case=case.model_dump_json(), build=build)]
        environment = os.environ | dict.fromkeys(CACHES, folder)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"the process that compiles ended with exit code {done.returncode}:\n{done.stderr[-4096:]}")
    return float(done.stdout.split()[-1])


def main(case: str, build: str) -> None:
    """Runs in the other process: prints the seconds for a case given as JSON."""
    for name in METERS:
        import_module(name)
    step = resolve_name(build)(Case.model_validate_json(case))
    first = _time(step).wall_s
    print(max(0.0, first - min(_time(step).wall_s for _ in range(3))))
