"""What compilation costs: a pass of its own, in a process of its own that finds nothing compiled on disk."""

import os
import subprocess
import sys
import time
from importlib import import_module
from pkgutil import resolve_name
from tempfile import TemporaryDirectory

from revsnn_bench.case import Case
from revsnn_bench.meters.step import TrainingStep
from revsnn_bench.meters.timing import synchronize
from revsnn_bench.system.process import PRELOAD

CACHES = ("NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
"""Environment variables that say where compilers keep what they compiled: numba, torch.compile and triton."""

_LATER_STEPS = 3
_BOOT = "import sys; sys.path[:] = {path!r}; from revsnn_bench.meters.compile import main; main({case!r}, {build!r})"


def measure_compile_time(case: Case, build: str) -> float:
    """Seconds that the first step of a process takes beyond a later one, where every cache on disk is empty.

    That is compiling, and loading the compiler; torch and what its first backward imports are loaded before.

    Args:
        case: built anew in the other process, which knows registered nodes by their entry points alone.
        build: what makes a step of a case there, as `module:function`.
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
    for name in PRELOAD:
        import_module(name)
    step = resolve_name(build)(Case.model_validate_json(case))
    first = _step_s(step)
    print(max(0.0, first - min(_step_s(step) for _ in range(_LATER_STEPS))))


def _step_s(step: TrainingStep) -> float:
    """One forward and backward, made alone; on a device, until it is done with both."""
    step.prepare()
    x = step.make_input()
    start = time.perf_counter()
    step.backward(step.run(x))
    synchronize(step.source.device)
    return time.perf_counter() - start
