"""One case, one fresh process, with a time limit and a memory limit; however it ends, there is a record."""

import os
import pickle
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from multiprocessing import Pipe
from queue import SimpleQueue
from typing import IO, Any, Self

from revsnn_bench.case import Case
from revsnn_bench.measuring import Settings
from revsnn_bench.records import Environment, Record, Status, joined, utc_now
from revsnn_bench.runner.server import Request
from revsnn_bench.runner.worker import Outcome
from revsnn_bench.runs import require_readable
from revsnn_bench.system.environment import conditions, fingerprint, read_conditions
from revsnn_bench.system.process import PRELOAD, status_bytes

# The import path travels through the pipe, and the caller's main module is never imported: a script needs no
# guard.
_BOOT = (
    "import sys; from multiprocessing.connection import Connection; client = Connection(int(sys.argv[1])); "
    "sys.path[:] = client.recv(); from revsnn_bench.runner.server import main; main(client)"
)
_PATIENCE_S = 10.0


@dataclass(eq=False)
class Runner:
    """Runs each case in a fresh process, forked from a server that has imported torch.

    Args:
        measure: called as `measure(case, settings)` in the worker, returns the record. A module-level
            function of an importable module; it may raise `SkipCase`.
        timeout_s: time limit of a case; the worker and all its children are killed when it is over.
        memory_limit_bytes: host memory that a case may allocate on top of what a fresh worker has; None for
            no limit. Linux only.
        preload: modules that the server imports once. They must not start threads or CUDA.
        threads: threads of intra-op parallelism in the workers; None leaves it to torch.
    Raises:
        ValueError: a limit is not positive or cannot be held, or `measure` cannot be imported by a worker.

    Use it as a context manager. The server starts on entry (about 2 s, in the background) and ends with the
    block, with an interrupt, or with this process, however that ends; no worker outlives it.
    """

    measure: Callable[[Case, Any], Record]
    _: KW_ONLY
    timeout_s: float
    memory_limit_bytes: int | None = None
    preload: Sequence[str] = PRELOAD
    threads: int | None = None
    _server: "_Server | None" = field(default=None, init=False)

    def __post_init__(self) -> None:
        _require_positive("timeout_s", self.timeout_s, "It is the time that a case may take, in seconds.")
        _require_positive("memory_limit_bytes", self.memory_limit_bytes, "Pass None for no limit.")
        if self.memory_limit_bytes is not None and status_bytes("VmData") is None:
            raise ValueError(
                f"`memory_limit_bytes` must be None on {platform.system()}; got {self.memory_limit_bytes}. The limit "
                "starts from what Linux says of a process (/proc/self/status). Leave it out, on the command line "
                "--memory-limit: bytes are measured without it."
            )
        _require_positive("threads", self.threads, "Pass None for torch's default.")
        _require_importable(self.measure)

    def run(self, case: Case, settings: object) -> Record:
        """Measures one case in a process of its own, with settings that pickle.

        Returns:
            The record that `measure` made; or one whose status and reason say how it failed, without any number but
            those that it had handed over before its time was up or its memory ran out.
        Raises:
            RuntimeError: the server cannot start, such as when a module of `preload` cannot be imported.
        """
        started_at, start, before = utc_now(), time.monotonic(), read_conditions()
        outcome = self._call(self.measure, case, settings)
        if outcome.status is Status.OK:
            try:
                value = pickle.loads(outcome.payload)
                if isinstance(value, Record):
                    require_readable(value)
                    return value
                reason = f"`measure` must return a Record; got {type(value).__name__}"
            except Exception as error:
                reason = f"`measure` returned what cannot be saved: {error}"
            outcome = Outcome(Status.ERROR, reason=reason)
        parts: dict[str, Any] = {}
        why = outcome.reason
        if outcome.payload and (parts := pickle.loads(outcome.payload)):
            headline, *rest = (why or "").splitlines()
            why = "\n".join([f"{headline}; {' and '.join(parts)}, measured before, are in CSV and JSON", *rest])
        return Record(
            **parts,
            case=case,
            status=outcome.status,
            reason=why,
            conditions=conditions(before),
            started_at=started_at,
            duration_s=time.monotonic() - start,
        )

    def environment(self, modules: Sequence[str] = ()) -> Environment:
        """The fingerprint as workers see it: with their threads, their allocator, and these modules of the user's."""
        outcome = self._call(fingerprint, modules)
        if outcome.status is not Status.OK and modules:  # to import them ended the worker: their cases will say so
            return self.environment()
        environment: Environment = _value(outcome)
        return environment

    def call(self, function: Callable[..., Any], *arguments: object) -> Any:
        """What `function(*arguments)` returns in a worker of its own; both must pickle.

        Raises:
            RuntimeError: it failed; the message starts with a line that can stand alone. `Skipped` for `SkipCase`.
        """
        return _value(self._call(function, *arguments))

    def close(self) -> None:
        """Ends the server and any worker; the next `run` starts a new one."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def kill(self) -> None:
        """Ends the server and any worker at once, from any thread; a call in flight there then ends with an error."""
        if self._server is not None:
            self._server.hang_up()

    def start(self) -> None:
        """Starts the server, which loads its modules while this process goes on; else the first call starts it."""
        self._started()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> "_Server":
        if self._server is None:
            self._server = _Server(self.preload, worker_environment(self.threads))
        return self._server

    def _call(self, function: Callable[..., object], *arguments: object) -> Outcome:
        call = pickle.dumps((function, arguments))
        try:
            return self._started().ask(Request(call, self.timeout_s, self.memory_limit_bytes))
        except (EOFError, ConnectionError):
            reason = f"the process that starts the workers ended: {self._started().last_words()}"
            self.close()
            return Outcome(Status.ERROR, reason=reason)
        except BaseException:
            # Ctrl-C included: the case in flight is killed before anyone else hears of it.
            self.close()
            raise


class Skipped(RuntimeError):
    """What was called raised `SkipCase`."""


def _value(outcome: Outcome) -> Any:
    if outcome.status is Status.SKIPPED:
        raise Skipped(outcome.reason)
    if outcome.status is not Status.OK:
        raise RuntimeError(outcome.reason)
    return pickle.loads(outcome.payload)


def measure_in_processes(runner: Runner, case: Case, settings: Settings) -> Record:
    """What a run records of a case: measured in one process, and timed in as many as `settings.processes`.

    Where a further one fails, the times are those of the processes before it.
    """
    record = runner.run(case, settings)
    if record.time is None or record.case == record.case.point:
        return record
    times, alone = [record.time], settings.model_copy(update={"passes": ("time",), "epochs": 0})
    while len(times) < settings.processes:
        again = runner.run(case, alone)
        if again.time is None:
            break
        times.append(again.time)
    return record.model_copy(update={"time": joined(times)}) if len(times) > 1 else record


class Runners:
    """Measures as many cases at once as there are runners; for passes whose numbers do not depend on the time.

    `submit` cases, and ask for `results` until all are there; `close` ends the workers.
    """

    def __init__(self, runners: Sequence[Runner]) -> None:
        self._runners, self._idle = [*runners], SimpleQueue[Runner]()
        self._pool = ThreadPoolExecutor(len(self._runners))
        self._cases, self._running = set[Case](), set[Future[Record]]()
        for runner in self._runners:
            self._idle.put(runner)

    def submit(self, case: Case, settings: object) -> None:
        """Has a case measured, with settings that pickle; once, however often it is asked for."""
        if case not in self._cases:
            self._cases.add(case)
            self._running.add(self._pool.submit(self._measure, case, settings))

    def _measure(self, case: Case, settings: object) -> Record:
        runner = self._idle.get()
        try:
            return runner.run(case, settings)
        finally:
            self._idle.put(runner)

    def results(self) -> Iterator[Record]:
        """Records of cases that ended since the last call; waits for one where there is none."""
        done, self._running = wait(self._running, return_when=FIRST_COMPLETED)
        for each in done:
            yield each.result()

    def close(self) -> None:
        """Leaves what waits, and kills what runs."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for runner in self._runners:
            runner.kill()
        self._pool.shutdown()
        for runner in self._runners:
            runner.close()


class _Server:
    """The server process, and this end of the pipe to it."""

    def __init__(self, preload: Sequence[str], environment: dict[str, str]) -> None:
        self._pipe, far_end = Pipe(duplex=True)
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed by stop)
        self._ready = False
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, str(far_end.fileno())],
            pass_fds=[far_end.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            # A session of its own: Ctrl-C in the terminal reaches the client alone.
            start_new_session=True,
        )
        far_end.close()
        self._pipe.send(sys.path)
        self._pipe.send(tuple(preload))

    def ask(self, request: Request) -> Outcome:
        """Sends one call and waits for how it ended."""
        if not self._ready:
            try:
                problem = self._pipe.recv()
            except (EOFError, ConnectionError):
                problem = self.last_words()
            if problem is not None:
                raise RuntimeError(f"the process that starts the workers could not import `preload`: {problem}")
            self._ready = True
        self._pipe.send(request)
        outcome: Outcome = self._pipe.recv()
        return outcome

    def last_words(self) -> str:
        """How the server ended, and the end of what it printed."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE_S)
        self._errors.seek(0)
        printed = self._errors.read().decode(errors="replace")[-4096:]
        return f"exit code {self._process.poll()}. {printed}".strip()

    def hang_up(self) -> None:
        """Ends the pipe under whoever reads it: the server kills its worker, with all its children, and ends."""
        if not self._ready:  # it still loads
            self.kill()
            return
        with suppress(OSError), socket.socket(fileno=os.dup(self._pipe.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        """Kills the server, and its worker with it; this end of the pipe then reads its end."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Closes the pipe, at which the server kills its worker and ends; kills one that does not, or still loads."""
        self._pipe.close()
        if not self._ready:
            self.kill()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        self._errors.close()


def worker_environment(threads: int | None) -> dict[str, str]:
    """Environment variables of the workers; glibc and OpenMP read theirs only when a process starts.

    Large blocks are mapped and unmapped one by one, so that resident memory follows tensor bytes. CUDA counts
    GPUs as the driver does, and asking whether there is one does not start CUDA before the fork.
    """
    environment = dict(os.environ)
    environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    environment["MALLOC_MMAP_THRESHOLD_"] = "1048576"
    if threads is not None:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment |= dict.fromkeys(names, str(threads))
    return environment


def _require_positive(name: str, value: float | None, why: str) -> None:
    if value is not None and not value > 0:
        raise ValueError(f"`{name}` must be > 0; got {value}. {why}")


def _require_importable(measure: Callable[..., object]) -> None:
    module = getattr(measure, "__module__", None)
    name = getattr(measure, "__qualname__", type(measure).__qualname__)
    if module == "__main__" or "<" in name:
        raise ValueError(
            f"`measure` must be a function of an importable module; got {name} of {module}. A worker is "
            "another process and finds it by name. Move it to a module of its own."
        )
