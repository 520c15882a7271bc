"""Inside the worker: one call, in a process that may be killed without harm to others, and how it ended, in words."""

import ctypes
import faulthandler
import os
import pickle
import resource
import signal
import sys
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from revsnn_bench.records import SkipCase, Status
from revsnn_bench.system.process import LISTENERS, address_limit, status_bytes

_OUT_OF_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "std::bad_alloc",
    "_status_alloc_failed",
)
_NO_ADDRESSES = (*_OUT_OF_MEMORY, "resource temporarily unavailable", "can't start new thread", "failed to map segment")
"""What is said where addresses run out, the others of a thread or a library."""

_LONGEST_TRACEBACK = 8000


class Outcome(NamedTuple):
    """How a call ended: `payload` is its pickled value where `status` is ok; `reason` says why it is not.

    Where `status` is timeout or oom, `payload` is what was handed over before.
    """

    status: Status
    payload: bytes = b""
    reason: str | None = None


def of_exception(error: BaseException) -> Outcome:
    """The outcome of a call that raised: the reason's first line can stand alone; an error's traceback follows."""
    headline = "".join(traceback.format_exception_only(error)).strip()
    if type(error).__module__.startswith("revsnn_bench."):  # its words are a sentence of our own
        headline = str(error) or headline
    if isinstance(error, SkipCase):
        return Outcome(Status.SKIPPED, reason=str(error))
    if any(text in headline.lower() for text in _NO_ADDRESSES) and (limit := address_limit()):
        headline = f"{headline.splitlines()[0].removesuffix('.')}. {limit}"
    if is_out_of_memory(error):
        return Outcome(Status.OOM, reason=headline)
    trace = "".join(traceback.format_exception(error)).strip()[-_LONGEST_TRACEBACK:]
    return Outcome(Status.ERROR, reason=without_folders(f"{headline}\n\n{trace}"))


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or what it was raised from, says that memory ran out on host or device."""
    if error is None:
        return False
    import torch  # here alone, in a worker, which has it already: who waits for workers needs none

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    says_so = isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)
    return says_so or is_out_of_memory(error.__cause__)


def of_exit(exit_code: int | None, output: str) -> Outcome:
    """The outcome of a worker that ended without an answer; a negative exit code is a signal, as in `subprocess`."""
    if exit_code == -signal.SIGKILL:
        headline = "killed by SIGKILL: by the kernel's out-of-memory killer, or by hand"
        return Outcome(Status.OOM, reason=with_output(headline, output))
    if exit_code is not None and exit_code < 0:
        names = {number.value: number.name for number in signal.Signals}
        headline = f"crashed by {names.get(-exit_code, f'signal {-exit_code}')}"
    else:
        headline = f"the worker ended with exit code {exit_code} and without a result"
    return Outcome(Status.ERROR, reason=with_output(headline, output))


def with_output(reason: str, output: str) -> str:
    """A reason followed by what the worker printed, where it printed anything."""
    printed = without_folders(output).strip()
    return f"{reason}\n\nThe worker printed:\n{printed}" if printed else reason


def without_folders(text: str) -> str:
    """File names as an import sees them: a record must not depend on, or tell, where things are installed."""
    for folder in sorted({*sys.path, sys.prefix, sys.base_prefix} - {"", "/"}, key=len, reverse=True):
        text = text.replace(folder.rstrip("/") + "/", "")
    return text


WHERE_ARE_YOU = signal.SIGUSR1
"""Signal on which a worker prints the stack of each of its threads, also while it is inside C code."""

_PR_SET_PDEATHSIG = 1


def work(call: bytes, memory_limit_bytes: int | None, answer: Connection, output: int, server: int) -> None:
    """Runs one pickled call and sends its `Outcome` as the answer; the target of the worker process.

    Args:
        call: pickle of (function, arguments).
        memory_limit_bytes: host memory that the call may use on top of what the process has now.
        output: descriptor that receives everything printed.
        server: process id of the server, whose death ends this process.
    """
    _stand_alone(output, server)
    _limit_memory(memory_limit_bytes)
    LISTENERS.append(lambda parts: answer.send(Outcome(Status.TIMEOUT, pickle.dumps(parts))))
    try:
        function, arguments = pickle.loads(call)
        outcome = Outcome(Status.OK, pickle.dumps(function(*arguments)))
    except BaseException as error:
        _limit_memory(None)
        outcome = of_exception(error)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # a node may have closed it, or put something else in its place
            stream.flush()
    answer.send(outcome)


def _stand_alone(output: int, server: int) -> None:
    os.setpgid(0, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable()
    faulthandler.register(WHERE_ARE_YOU)
    # A crash must not leave a core file as large as the case.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # When the machine runs out of memory, the case goes first: not the sweep, not the user's session.
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    if os.getppid() != server:
        os._exit(1)


def _limit_memory(limit_bytes: int | None) -> None:
    """Limits what may be allocated from here on, at which an ordinary exception is raised; None lifts the limit.

    RLIMIT_DATA counts private writable memory: heap, anonymous mappings, 8 MiB for the stack of each new thread.
    RLIMIT_AS would also count what costs nothing, such as mapped libraries, the 64 MiB that glibc reserves per thread,
    and the whole address range that CUDA sets aside.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = hard
    if limit_bytes is not None:
        data = status_bytes("VmData")
        assert data is not None  # see `Runner`
        soft = data + limit_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
