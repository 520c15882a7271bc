"""Inside the worker: one call, in a process that is its own group, may be killed, and takes nobody along."""

import ctypes
import faulthandler
import os
import pickle
import resource
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from revsnn_bench.records import Status
from revsnn_bench.runner.outcomes import Outcome, of_exception

WHERE_ARE_YOU = signal.SIGUSR1
"""Signal on which a worker prints the stack of each of its threads, also while it is inside C code."""

_PR_SET_PDEATHSIG = 1


def work(call: bytes, memory_limit_bytes: int | None, answer: Connection, output: int, server: int) -> None:
    """Runs one pickled call and sends its `Outcome`; the target of the worker process.

    Args:
        call: pickle of (function, arguments).
        memory_limit_bytes: host memory that the call may use on top of what the process has now.
        answer: where the outcome goes.
        output: descriptor that receives everything printed.
        server: process id of the server, whose death ends this process.
    """
    _stand_alone(output, server)
    _limit_memory(memory_limit_bytes)
    try:
        function, arguments = pickle.loads(call)
        outcome = Outcome(Status.OK, pickle.dumps(function(*arguments)))
    except BaseException as error:
        _limit_memory(None)
        outcome = of_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
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
    """Limits what may be allocated from here on; None lifts the limit.

    RLIMIT_DATA counts private writable memory: heap, anonymous mappings, 8 MiB for the stack of each new
    thread. RLIMIT_AS would also count what costs nothing, such as mapped libraries, the 64 MiB that glibc
    reserves per thread, and the whole address range that CUDA sets aside. Allocation then fails with an
    ordinary exception.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = hard if limit_bytes is None else _data_bytes() + limit_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int:
    """What RLIMIT_DATA is compared with."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmData: `memory_limit_bytes` needs Linux. Pass None.")
