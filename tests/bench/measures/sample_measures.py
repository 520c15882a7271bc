"""Measure functions that end in every way a case can end; imported by workers, so a module of its own.

Those that need torch import it: a server that has none starts at once.
"""

import atexit
import ctypes
import mmap
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

from revsnn_bench import Case
from revsnn_bench.records import FlopsRecord, PhaseFlops, Record, SkipCase, Status
from revsnn_bench.system.process import hand_over

FLOPS = FlopsRecord(
    **dict.fromkeys(("forward", "backward", "recompute"), PhaseFlops(pointwise=3, multiply_accumulate=4))
)


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
    import torch

    first = not hasattr(torch, "been_here")
    torch.been_here = True  # type: ignore[attr-defined]
    variable = os.environ.get("MALLOC_MMAP_THRESHOLD_")
    text = f"{os.getpid()} {first} {variable} {torch.get_num_threads()} {'numba' in sys.modules}"
    return succeed(case, text)


def compute_in_parallel(case: Case, settings: object) -> Record:
    """Answers with the names of Python's threads, after operators of torch and a kernel have run on several."""
    import torch
    from revsnn_nodes import StandardLIF

    x = torch.randn(4, 1 << 18, requires_grad=True)
    StandardLIF(step_mode="m", backend="fused")(x.exp() * x).sum().backward()
    _ = torch.randn(300, 300) @ torch.randn(300, 300)
    return succeed(case, [thread.name for thread in threading.enumerate()])


def skip(case: Case, settings: object) -> Record:
    raise SkipCase("no CUDA on this machine")


def allocate(case: Case, settings: int) -> Record:
    import torch

    hand_over({"flops": FLOPS})
    return succeed(case, torch.ones(settings // 4).sum().item())


def exhaust_addresses(case: Case, settings: object) -> Record:
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (16 << 20), -1))
    mmap.mmap(-1, 64 << 20)
    return succeed(case, settings)


def exhaust_device(case: Case, settings: object) -> Record:
    import torch

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


def meet(case: Case, settings: str) -> Record:
    """Waits until two cases have each written a file of their own into the folder."""
    folder, end = Path(settings), time.monotonic() + 20
    (folder / str(case.timesteps)).touch()
    while len([*folder.iterdir()]) < 2:
        if time.monotonic() > end:
            raise RuntimeError("nobody came")
        time.sleep(0.01)
    return succeed(case, None)


def ignore_signals_and_sleep(case: Case, settings: object) -> Record:
    hand_over({"flops": FLOPS})
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(60)
    return succeed(case, None)


def crash_deep_down(case: Case, settings: int) -> Record:
    """Segfaults below a hundred long-named frames, after printing a lot."""
    print("much\n" * 5000, flush=True)

    def a_function_with_a_long_name_to_fill_the_stack_that_is_printed(depth: int) -> None:
        if depth:
            a_function_with_a_long_name_to_fill_the_stack_that_is_printed(depth - 1)
        ctypes.string_at(0)

    a_function_with_a_long_name_to_fill_the_stack_that_is_printed(settings)
    return succeed(case, None)


def leave_a_grandchild(case: Case, settings: str) -> Record:
    """Leaves behind a process of another session, whose parent is gone; its number goes into the file."""
    sleep = ("sh", "-c", "sleep 120 > /dev/null 2>&1 & echo $!")
    done = subprocess.run(["setsid", *sleep], capture_output=True, text=True, check=True)
    Path(settings).write_text(done.stdout, encoding="ascii")
    return succeed(case, None)


def close_everything(case: Case, settings: float) -> Record:
    """Closes every descriptor, the runner's pipes among them, and goes on for a while."""
    os.closerange(0, 4096)
    time.sleep(settings)
    return succeed(case, None)


def raise_long(case: Case, settings: object) -> Record:
    raise ValueError("head \ud800 " + "x" * 100_000 + " tail")


def raise_in_str(case: Case, settings: object) -> Record:
    class Broken(RuntimeError):
        def __str__(self) -> str:
            raise OSError("no text")

    raise Broken


def raise_base(case: Case, settings: str) -> Record:
    raise {"interrupt": KeyboardInterrupt, "exit": SystemExit, "generator": GeneratorExit}[settings]


def recurse(case: Case, settings: object) -> Record:
    return recurse(case, settings)


def unpicklable(case: Case, settings: object) -> Record:
    record = succeed(case, None)
    return record.model_copy(update={"reason": lambda: None})


def unvalidated(case: Case, settings: str) -> Record:
    """Returns a record that no validation has seen."""
    strange = {"text": {"reason": "\ud800"}, "number": {"duration_s": 10**400}, "type": {"status": 5, "memory": object}}
    return succeed(case, None).model_copy(update=strange[settings])


def of_a_module_that_nobody_else_has(case: Case, settings: object) -> Any:
    module = types.ModuleType("only_here")
    sys.modules["only_here"] = module
    made = type("Made", (), {"__module__": "only_here"})
    module.Made = made  # type: ignore[attr-defined]
    return made()


def stop(case: Case, settings: object) -> Record:
    os.kill(os.getpid(), signal.SIGSTOP)
    return succeed(case, None)


def kill_the_server(case: Case, settings: object) -> Record:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(30)
    return succeed(case, None)


def break_streams(case: Case, settings: str) -> Record:
    """Closes or removes what Python prints to."""
    if settings == "close":
        sys.stdout.close()
        sys.stderr.close()
    else:
        sys.stdout = sys.stderr = None  # type: ignore[assignment]
    return succeed(case, None)


def print_binary(case: Case, settings: object) -> Record:
    os.write(1, bytes(range(256)) * 100)
    raise ValueError("after binary")


def leave_the_folder(case: Case, settings: object) -> Record:
    os.chdir("/")
    sys.path.clear()
    os.environ.clear()
    return succeed(case, None)


def exhaust_descriptors(case: Case, settings: object) -> Record:
    held = []
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))


def many_children(case: Case, settings: int) -> Record:
    for _ in range(settings):
        if os.fork() == 0:
            os.setsid()
            time.sleep(120)
    return succeed(case, None)


def answer_twice(case: Case, settings: object) -> Record:
    """A fork that also returns: two processes answer for one case."""
    os.fork()
    return succeed(case, None)


def hold_on_at_exit(case: Case, settings: object) -> Record:
    atexit.register(time.sleep, 120)
    threading.Thread(target=time.sleep, args=(120,)).start()
    return succeed(case, None)
