"""The server: imports torch once, then forks one worker per call, watches it, and reports how it ended.

Why not `multiprocessing`'s own forkserver: it starts Python before the environment of the workers can be set,
and its workers import the caller's `__main__`, so a script without a main guard would run again in each of
them. Here the server is a plain child process with one pipe to its client. When that pipe closes, for
whatever reason, SIGKILL of the client included, it kills the worker and ends.

The server never runs an operation itself: OpenMP threads and CUDA contexts do not survive a fork.
"""

import ctypes
import multiprocessing
import os
import re
import signal
import sys
import time
import traceback
import warnings
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import NamedTuple

import psutil

from revsnn_bench.records import Status
from revsnn_bench.runner.worker import WHERE_ARE_YOU, Outcome, of_exit, with_output, work
from revsnn_bench.system.process import import_frozen

_READ_OUTPUT_BYTES, _KEPT_OUTPUT_BYTES = 1 << 16, 4096
_STACK_DUMP_S, _PATIENCE_S = 0.2, 5.0
_STACK = re.compile(rb"Fatal Python error: |Current thread 0x")
"""How a stack begins that `faulthandler` prints; its first lines are where the worker was."""

_PR_SET_CHILD_SUBREAPER = 36


def kept_output(printed: bytes) -> bytes:
    """The end of what a worker printed; of a worker that printed its stack, the last lines before it and its head."""
    stacks = [found.start() for found in _STACK.finditer(printed)]
    fatal = [start for start in stacks if printed.startswith(b"Fatal", start)]
    if not stacks or len(printed) - (fatal or stacks)[-1] <= _KEPT_OUTPUT_BYTES // 2:
        return printed[-_KEPT_OUTPUT_BYTES:]
    start = (fatal or stacks)[-1]
    return printed[max(0, start - _KEPT_OUTPUT_BYTES // 4) : start + 3 * _KEPT_OUTPUT_BYTES // 4]


class Request(NamedTuple):
    """One call: pickle of (function, arguments), and its limits; only the worker unpickles it."""

    call: bytes
    timeout_s: float
    memory_limit_bytes: int | None


class ClientGone(Exception):
    """The client closed its end: there is nobody left to work for."""


def main(client: Connection) -> None:
    """Serves one client until it closes the connection; the first message names the modules to import."""
    try:
        import_frozen(client.recv())
    except Exception as error:
        client.send(f"{error!r}\n\n{traceback.format_exc()}")
        return
    # The only threads are those of numpy's OpenBLAS, which restarts them after a fork.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    if sys.platform == "linux":  # makes this process the parent of what its workers leave behind, in whatever session
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    client.send(None)
    with suppress(EOFError, OSError, ClientGone):
        while True:
            request: Request = client.recv()
            client.send(_Worker(client, request).outcome())


def _kill_orphans() -> None:
    """Kills and reaps every process below this one, until there is none; the worker itself is gone by now."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.001)


class _Worker:
    """One forked process, from its start until it is dead and reaped."""

    def __init__(self, client: Connection, request: Request) -> None:
        self._client = client
        self._timeout_s = request.timeout_s
        self._deadline = time.monotonic() + request.timeout_s
        self._answer, answer_end = multiprocessing.Pipe(duplex=False)
        self._output, output_end = os.pipe()
        self._printed = self._so_far = b""
        self._output_open = self._answer_open = True
        ends_of_the_server = (client, self._answer)

        def target() -> None:
            for end in ends_of_the_server:
                end.close()
            os.close(self._output)
            work(request.call, request.memory_limit_bytes, answer_end, output_end, server)

        server = os.getpid()
        self._process = ForkProcess(target=target)
        self._process.start()
        answer_end.close()
        os.close(output_end)
        assert self._process.pid is not None
        self._pid = self._process.pid
        # The sentinel of a process is a pipe, which it may close; its number in the kernel ends with it.
        self._ended = os.pidfd_open(self._pid) if hasattr(os, "pidfd_open") else os.dup(self._process.sentinel)

    def outcome(self) -> Outcome:
        """Waits for the answer, the end of the process, the time limit, or the end of the client."""
        try:
            outcome = self._watch()
        finally:
            # The worker's whole group, while its leader is not reaped and its number not used again.
            with suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)
            self._process.kill()
            self._process.join()
            _kill_orphans()
            os.close(self._ended)
            self._answer.close()
            while self._output_open and wait([self._output], 0):
                self._read_output()
            os.close(self._output)
        printed = kept_output(self._printed).decode(errors="replace")
        if outcome is None:
            outcome = of_exit(self._process.exitcode, printed)
        elif outcome.status in (Status.TIMEOUT, Status.ERROR):
            outcome = outcome._replace(reason=with_output(outcome.reason or "", printed))
        return outcome._replace(payload=self._so_far) if outcome.status in (Status.TIMEOUT, Status.OOM) else outcome

    def _watch(self) -> Outcome | None:
        """The answer; None when the process ended without one."""
        while True:
            ready = self._wait(max(0.0, self._deadline - time.monotonic()))
            if self._answer in ready or (self._ended in ready and self._answer_open and self._answer.poll()):
                try:
                    answer: Outcome = self._answer.recv()
                except (EOFError, OSError):  # it closed its end of the pipe: how it ends says why
                    self._answer_open = False
                    continue
                if answer.status is not Status.TIMEOUT:
                    return answer
                self._so_far = answer.payload
                continue
            if self._ended in ready:
                return None
            if not ready:
                return self._timed_out()

    def _wait(self, timeout_s: float) -> list[object]:
        output = [self._output] if self._output_open else []
        answer = [self._answer] if self._answer_open else []
        ready = wait([self._client, self._ended, *answer, *output], timeout_s)
        if self._client in ready:
            raise ClientGone
        if self._output in ready:
            self._read_output()
        return list(ready)

    def _read_output(self) -> None:
        """Keeps the end of what is printed; an empty read means that nobody can print any more."""
        chunk = os.read(self._output, _READ_OUTPUT_BYTES)
        self._output_open = bool(chunk)
        self._printed = (self._printed + chunk)[-_READ_OUTPUT_BYTES:]

    def _timed_out(self) -> Outcome:
        """Asks the worker where it is, so that the reason says more than that it took too long."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, WHERE_ARE_YOU)
        while self._output_open and wait([self._output], _STACK_DUMP_S):
            self._read_output()
            if time.monotonic() > self._deadline + 1:
                break
        return Outcome(Status.TIMEOUT, reason=f"ran past the time limit of {self._timeout_s:g} s")
