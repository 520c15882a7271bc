"""Measure functions that end in every way a case can end; imported by workers, so a module of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from revsnn_bench import Case
from revsnn_bench.records import Record, Status
from revsnn_bench.runner import SkipCase


def call_by_name(case: Case, settings: tuple[str, object]) -> Record:
    """Calls the function of this module that `settings` names, with the settings that follow the name."""
    name, argument = settings
    record: Record = globals()[name](case, argument)
    return record


def succeed(case: Case, settings: object) -> Record:
    return Record(case=case, status=Status.OK, reason=str(settings), started_at="now", duration_s=0.25)


def disagree(case: Case, settings: object) -> Record:
    return Record(case=case, status=Status.WRONG, reason="gradient_error 0.5", started_at="now", duration_s=0.0)


def tell_process(case: Case, settings: object) -> Record:
    """Answers with this process's id, what it inherited, and whether it has run before."""
    first = not hasattr(torch, "been_here")
    torch.been_here = True  # type: ignore[attr-defined]
    variable = os.environ.get("MALLOC_MMAP_THRESHOLD_")
    text = f"{os.getpid()} {first} {variable} {torch.get_num_threads()} {'numba' in sys.modules}"
    return succeed(case, text)


def compute_in_parallel(case: Case, settings: object) -> Record:
    x = torch.randn(1 << 20, requires_grad=True)
    (x.exp() * x).sum().backward()
    return succeed(case, (torch.randn(300, 300) @ torch.randn(300, 300)).shape)


def skip(case: Case, settings: object) -> Record:
    raise SkipCase("no CUDA on this machine")


def allocate(case: Case, settings: int) -> Record:
    return succeed(case, torch.ones(settings // 4).sum().item())


def exhaust_device(case: Case, settings: object) -> Record:
    try:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    except torch.OutOfMemoryError as error:
        raise ValueError("the model did not fit") from error


def die_of(case: Case, settings: int) -> Record:
    os.kill(os.getpid(), settings)
    return succeed(case, None)


def leave(case: Case, settings: int) -> Record:
    os._exit(settings)


def fail(case: Case, settings: object) -> Record:
    print("about to divide", flush=True)
    print("by nothing", file=sys.stderr)
    return succeed(case, 1 / 0)


def return_nothing(case: Case, settings: object) -> None:
    return None


def print_much(case: Case, settings: object) -> Record:
    for number in range(100_000):
        print("line", number)
    raise ValueError("done printing")


def sleep_with_a_child(case: Case, settings: str) -> Record:
    """Writes its own and its child's process id to the file, then sleeps for a minute."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    part = Path(f"{settings}.part")
    part.write_text(f"{os.getpid()} {child.pid}", encoding="ascii")
    part.rename(settings)
    time.sleep(60)
    return succeed(case, None)


def ignore_signals_and_sleep(case: Case, settings: object) -> Record:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(60)
    return succeed(case, None)
