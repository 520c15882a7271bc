"""Cases on the hosts of a Ray cluster, each in a process of its own there, one case per host or one per GPU at a time.

    revsnn-bench run --cluster local                  # this machine: on several GPUs, one case per GPU at a time
    revsnn-bench run --cluster 10.0.0.1:6379          # a cluster that `ray start` made

Ray starts an actor per host or GPU, and tells which of them are lost. Everything else is in the process of the run: who
gets which case, what is sent again, and the journal. So a case has one result at most. An actor hands its cases to a
`Runner`, as a run without a cluster does, which forks a fresh process for each from one that has torch already. With a
Ray task per case, ended by `max_calls=1`, every case would import torch anew, which takes longer than a small case.

A host takes part where it offers the resource `revsnn_host`. An actor for the CPU holds all of it for the whole run, so
that no other case, of this run or another, is timed beside its own; one for a GPU holds a thousandth, and the GPU.
"""

import importlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from revsnn_bench.case import Case
from revsnn_bench.measuring import Settings, measure
from revsnn_bench.records import Environment, Record, Status, utc_now
from revsnn_bench.runner import Runner, measure_in_processes
from revsnn_bench.system.environment import code_differences, fingerprint, place_differences
from revsnn_bench.system.gpu import processes_on_gpu

RESOURCE = "revsnn_host"
"""What a host offers that takes part: `ray start --resources '{"revsnn_host": 1}'`."""

MOST_LOST = 3
"""A case that lost its host so many times is not sent again: it may be what ends them."""

_START_S, _WITHOUT_HOSTS_S, _WAIT_S, _RELEASE_S, _LISTENER_S = 180.0, 60.0, 1.0, 10.0, 10.0
_OBJECTS_BYTES = 128 << 20
_LONGEST_FOLDER = 40
_THREADS = "OMP_NUM_THREADS"


class ClusterError(ValueError):
    """The cluster cannot be used, or is lost; the message says why and what to do."""


@dataclass(eq=False)
class _Job:
    """A case that is to be measured, and the hosts that were lost with it."""

    case: Case
    settings: Settings
    lost_with: list[str] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        return self.case.device == "cuda"


@dataclass(eq=False)
class _Slot:
    """An actor, and the case that it measures."""

    actor: Any
    on_gpu: bool
    job: _Job | None = None


@dataclass(eq=False)
class _Host:
    """A host that takes part: its number in Ray, its name in the records, and its actors."""

    node: str
    name: str
    gpus: int
    environment: Environment
    slots: list[_Slot] = field(default_factory=list)


class Answer(NamedTuple):
    """What a host said, first of all its name: its environment, or what went wrong."""

    name: str
    number: str
    gpus: int
    slot: _Slot
    found: Environment | Exception


class Cluster:
    """Sends cases to the hosts of a cluster and gathers what they found.

    Args:
        address: "local" for one that is started on this machine and ends with the run; else the address of one that
            is there, as `ray.init` takes it.
        options: keywords of `Runner`, for the runners on the hosts.

    `start` it, `submit` cases, and ask for `results` until all are there; `close` it in the end.
    """

    def __init__(self, address: str, options: dict[str, Any]) -> None:
        self._address, self._options = address, options
        self._folder: Path | None = None
        self._connected = self._needs_gpu = False
        self._modules: tuple[str, ...] = ()
        self._here: Environment | None = None
        self._reference: _Host | None = None
        self._known: dict[str, Environment] = {}
        self._hosts: dict[str, _Host] = {}
        self._asked: dict[Any, tuple[str, _Slot]] = {}
        self._asked_times: Counter[str] = Counter()
        self._left_out: set[str] = set()
        self._cases: set[Case] = set()
        self._waiting: deque[_Job] = deque()
        self._running: dict[Any, tuple[_Host, _Slot, _Job]] = {}
        self._seen = time.monotonic()

    def start(self, needs_gpu: bool = False, modules: Sequence[str] = ()) -> Environment:
        """Connects, and asks every host that takes part for its environment.

        Args:
            needs_gpu: whether a case is to run on a GPU; then a host with one shows it.
            modules: what every host must be able to import, such as that of a user's model.
        Returns:
            The environment of the first host by name, with which all others agree in what exact values depend on.
        Raises:
            ClusterError: no cluster, no host that takes part, or two that cannot be in one run.
        """
        self._needs_gpu, self._modules = needs_gpu, tuple(modules)
        try:
            self._connect()
            return self._agreed()
        except BaseException:
            self.close()
            raise

    def _agreed(self) -> Environment:
        """The environment in which all hosts agree that answer in time."""
        deadline = time.monotonic() + _START_S
        self._ask()
        if not self._asked:
            offer = f"""ray start --address=HOST:PORT --resources='{{"{RESOURCE}": 1}}'"""
            raise ClusterError(
                f"no host of the cluster {self._address!r} offers the resource `{RESOURCE}`, which keeps cases from "
                f"being timed beside each other. Start the hosts that are to measure with {offer}."
            )
        answers: list[Answer] = []
        while self._asked and time.monotonic() < deadline:
            answers += self._answers()
        if not answers:
            raise ClusterError(
                f"no host of the cluster {self._address!r} answered within {_START_S:.0f} s. Another run may hold all "
                "of them. Wait for it to end, or start other hosts."
            )
        for answer in sorted(answers, key=lambda each: each.name):
            if problem := self._admit(answer):
                raise ClusterError(problem)
        assert self._reference is not None
        return self._reference.environment

    def keep_names(self, known: Mapping[str, Environment]) -> None:
        """Has hosts named as in the journal of the run that goes on; a name keeps its environment."""
        hosts, self._hosts, self._known = self._hosts, {}, dict(known)
        for host in hosts.values():
            host.name = self._name(host.name.partition("/")[0], host.environment)
            self._hosts[host.node] = host

    def environment(self, name: str) -> Environment:
        """That of a host, by its name in the records."""
        return self._known[name]

    def submit(self, case: Case, settings: Settings) -> None:
        """Has a case measured; once, however often it is asked for."""
        if case not in self._cases:
            self._cases.add(case)
            self._waiting.append(_Job(case, settings))

    def results(self) -> Iterator[Record]:
        """Records of cases that ended since the last call, or in the next second; keeps the hosts busy.

        Raises:
            ClusterError: no host is left.
        """
        import ray

        self._ask()
        self._dispatch()
        yield from self._impossible()
        self._require_hosts()
        pending = [*self._running, *self._asked]
        ready = ray.wait(pending, timeout=_WAIT_S)[0] if pending else []
        if any(ref in self._asked for ref in ready):
            self._welcome()
        for ref in [ref for ref in ready if ref in self._running]:
            host, slot, job = self._running.pop(ref)
            slot.job = None
            if self._hosts.get(host.node) is not host:  # it is asked again, with actors of its own
                _end(slot)
            if (record := self._record(ref, host, slot, job)) is not None:
                yield record

    def close(self) -> None:
        """Ends what runs, and leaves the cluster; a local one ends too."""
        if self._connected:
            import ray

            slots = [slot for host in self._hosts.values() for slot in host.slots]
            for slot in [*slots, *(slot for _, slot in self._asked.values())]:
                _end(slot)
            with _silent(), suppress(Exception):
                ray.shutdown()
            self._connected = False
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self) -> None:
        with _silent():
            import ray

            if ray.is_initialized():
                raise ClusterError("Ray is in use in this process already. Call `ray.shutdown()` first.")
            options = self._local() if self._address == "local" else {}
            try:
                host, _, port = self._address.rpartition(":")
                if host:  # fails at once where nobody listens, for whom Ray would wait for minutes
                    socket.create_connection((host.strip("[]"), int(port)), _LISTENER_S).close()
                ray.init(address=self._address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
            except Exception as error:
                raise ClusterError(f"cannot join the cluster {self._address!r}: {_headline(error)}") from None
            except SystemExit:  # Ray's way to take a SIGTERM
                raise KeyboardInterrupt from None
        self._connected = True

    def _local(self) -> dict[str, Any]:
        """What a cluster of this machine alone is started with; its files are in a folder that goes with it."""
        options: dict[str, Any] = {
            "include_dashboard": False,
            "resources": {RESOURCE: 1},
            "object_store_memory": _OBJECTS_BYTES,
        }
        # The names of its sockets are below this folder, and the name of a socket has at most 107 bytes.
        if len(tempfile.gettempdir()) <= _LONGEST_FOLDER:
            self._folder = Path(tempfile.mkdtemp(prefix="revsnn-"))
            options["_temp_dir"] = str(self._folder)
        return options

    def _nodes(self) -> dict[str, dict[str, Any]]:
        """Hosts that are alive and offer the resource, by their number in Ray."""
        import ray

        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        return {number: node for number, node in nodes.items() if node["Resources"].get(RESOURCE, 0) >= 1}

    def _ask(self) -> None:
        """Asks new hosts for their environment, and forgets those that are gone."""
        nodes = self._nodes()
        self._hosts = {number: host for number, host in self._hosts.items() if number in nodes}
        for number, node in nodes.items():
            if number not in {*self._hosts, *self._left_out, *(asked for asked, _ in self._asked.values())}:
                slot = self._new_slot(number, self._needs_gpu and _gpus(node) > 0)
                self._asked[slot.actor.environment.remote(self._modules)] = number, slot

    def _answers(self) -> list[Answer]:
        """Hosts that answered, or will within a second."""
        import ray

        ready, _ = ray.wait([*self._asked], num_returns=len(self._asked), timeout=_WAIT_S)
        nodes, answers = self._nodes(), list[Answer]()
        for ref in ready:
            number, slot = self._asked.pop(ref)
            if (node := nodes.get(number)) is None:  # it is gone
                continue
            try:
                found: Environment | Exception = Environment.model_validate_json(ray.get(ref))
            except Exception as error:
                found = error
            answers.append(Answer(node["NodeManagerHostname"], number, _gpus(node), slot, found))
        return answers

    def _welcome(self) -> None:
        """Lets hosts take part that came later; one that cannot is left out with a warning."""
        from ray.exceptions import RayError, RayTaskError

        for answer in self._answers():
            self._asked_times[answer.number] += 1
            is_lost = isinstance(answer.found, RayError) and not isinstance(answer.found, RayTaskError)
            if is_lost and self._asked_times[answer.number] < MOST_LOST:
                continue  # it is asked again, or gone by then
            if problem := self._admit(answer):
                self._left_out.add(answer.number)
                _end(answer.slot)
                _warn(f"{problem} It is left out.")
            else:
                self._asked_times[answer.number] = 0

    def _admit(self, answer: Answer) -> str:
        """Lets a host take part, or says in a sentence why it cannot."""
        name, found = answer.name, answer.found
        if isinstance(found, Exception):
            return f"host {name!r} cannot measure: {_headline(found)}"
        self._here = self._here or fingerprint()
        differing = [("on this machine", *each) for each in code_differences(self._here, found)]
        if (first := self._reference) is not None:
            differing += [(f"on {first.name!r}", *each) for each in place_differences(first.environment, found)]
        if differing:
            other, what, value, own = differing[0]
            advice = "Pass --threads." if what == "threads" else "Install the same on all, or take hosts of one kind."
            return (
                f"host {name!r} cannot measure in this run: `{what}` is {own!r} there and {value!r} {other}. Exact "
                f"bytes belong to one environment. {advice}"
            )
        host = _Host(answer.number, self._name(name, found), answer.gpus, found, [answer.slot])
        self._hosts[answer.number], self._reference = host, first or host
        return ""

    def _name(self, name: str, environment: Environment) -> str:
        """A name that no other host has, and that stands for this environment alone."""
        taken, found, number = {host.name for host in self._hosts.values()}, name, 1
        while found in taken or self._known.get(found, environment) != environment:
            number += 1
            found = f"{name}/{number}"
        self._known[found] = environment
        return found

    def _new_slot(self, number: str, on_gpu: bool) -> _Slot:
        """Starts an actor on a host; Ray starts it once, and sends nothing again by itself."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor = ray.remote(OnHost).options(
            num_cpus=0,
            num_gpus=1 if on_gpu else 0,
            resources={RESOURCE: 0.001 if on_gpu else 1},
            max_restarts=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=number, soft=False),
        )
        folder = str(Path.cwd())
        paths = [*(path or folder for path in sys.path), folder]
        return _Slot(actor.remote(self._options, paths, folder), on_gpu)

    def _slot(self, host: _Host, on_gpu: bool) -> _Slot:
        """An actor that is free, for CPU or GPU; those for the other give way, which are free too."""
        for other in [slot for slot in host.slots if slot.on_gpu != on_gpu]:
            _end(other)
            host.slots.remove(other)
        free = next((slot for slot in host.slots if slot.job is None), None)
        if free is None:
            free = self._new_slot(host.node, on_gpu)
            host.slots.append(free)
        return free

    def _dispatch(self) -> None:
        """Gives each host with room the first case that waits for such a host."""
        for host in self._hosts.values():
            while (job := self._next_for(host)) is not None:
                self._waiting.remove(job)
                slot = self._slot(host, job.on_gpu)
                slot.job = job
                ref = slot.actor.measure.remote(job.case.model_dump_json(), job.settings.model_dump_json())
                self._running[ref] = host, slot, job

    def _next_for(self, host: _Host) -> _Job | None:
        """The first case that fits; one that was lost here goes to another host where there is one."""
        names = {each.name for each in self._hosts.values()}
        busy = [slot for slot in host.slots if slot.job is not None]
        has_room = {False: not busy, True: len(busy) < host.gpus and all(slot.on_gpu for slot in busy)}
        fitting = (job for job in self._waiting if has_room[job.on_gpu])
        return next((job for job in fitting if host.name not in job.lost_with or names <= {*job.lost_with}), None)

    def _impossible(self) -> Iterator[Record]:
        """Cases on a GPU where no host has one: skipped, as on a machine without a GPU."""
        if self._asked or not self._hosts or any(host.gpus for host in self._hosts.values()):
            return
        for job in [job for job in self._waiting if job.on_gpu]:
            self._waiting.remove(job)
            yield _without_numbers(job.case, Status.SKIPPED, "no host of the cluster has a GPU")

    def _require_hosts(self) -> None:
        if self._hosts or self._asked or self._running:
            self._seen = time.monotonic()
        elif time.monotonic() > self._seen + _WITHOUT_HOSTS_S:
            raise ClusterError(
                f"no host of the cluster is left since {_WITHOUT_HOSTS_S:.0f} s, and {len(self._waiting)} cases wait. "
                "Start hosts, and resume the run."
            )
        else:
            time.sleep(_WAIT_S)

    def _record(self, ref: Any, host: _Host, slot: _Slot, job: _Job) -> Record | None:
        """What came of a case; None where it is sent again."""
        import ray
        from ray.exceptions import ActorUnschedulableError, OutOfMemoryError, RayError, RayTaskError

        try:
            return Record.model_validate_json(ray.get(ref)).model_copy(update={"host": host.name})
        except RayTaskError as error:
            return _without_numbers(job.case, Status.ERROR, f"on host {host.name!r}: {_headline(error)}")
        except RayError as error:
            # No case for this host until it has answered anew: for seconds Ray takes one that is lost to be alive.
            if self._hosts.get(host.node) is host:
                del self._hosts[host.node]
                for idle in [each for each in host.slots if each.job is None]:
                    _end(idle)
            if isinstance(error, OutOfMemoryError):
                return _without_numbers(job.case, Status.OOM, f"Ray ended it, for the memory of {host.name!r} was full")
            return self._sent_again(host, job, began=not isinstance(error, ActorUnschedulableError))

    def _sent_again(self, host: _Host, job: _Job, began: bool = True) -> Record | None:
        """Puts a case that lost its host first in the line; the record of one that lost too many."""
        if began:
            job.lost_with.append(host.name)
        if len(job.lost_with) == MOST_LOST:
            hosts = ", ".join(job.lost_with)
            reason = f"its host, or the process there, was lost {MOST_LOST} times ({hosts}): the case may be the cause"
            return _without_numbers(job.case, Status.ERROR, reason)
        _warn(f"host {host.name!r}, or the process there, was lost; {job.case.id} is sent again.")
        self._waiting.appendleft(job)
        return None


class OnHost:
    """The actor: measures on its host as a run without a cluster does, one case at a time.

    Args:
        options: keywords of `Runner`.
        paths: where the run finds modules; those that are here too are searched, last.
        folder: where the run was started. Where it is here too, cases are measured in it, not where `ray start` was
            called: an installed package takes its commit from the clone that it is used in.
    """

    def __init__(self, options: dict[str, Any], paths: list[str], folder: str) -> None:
        sys.path += [path for path in paths if path not in sys.path and Path(path).exists()]
        if Path(folder).is_dir():
            os.chdir(folder)
        # OpenMP would take a thread per processor that an actor asks for, unless told otherwise: Ray's doing.
        given = list[bytes]()
        with suppress(OSError):
            given = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
        if not any(each.startswith(f"{_THREADS}=".encode()) for each in given):
            os.environ.pop(_THREADS, None)
        self._runner = Runner(measure, **options)

    def environment(self, modules: Sequence[str]) -> str:
        """The environment as workers on this host see it, who must be able to import these modules; JSON."""
        for name in modules:
            self._runner.call(_require_module, name)
        return self._runner.environment(modules).model_dump_json()

    def measure(self, case_json: str, settings_json: str) -> str:
        """The record of a case; JSON.

        The GPU must be without another process before, and after: then this case's own are gone.
        """
        case, settings = Case.model_validate_json(case_json), Settings.model_validate_json(settings_json)
        if case.device == "cuda" and (foreign := processes_on_gpu()):
            return _disturbed(case, foreign)
        record = measure_in_processes(self._runner, case, settings)
        deadline = time.monotonic() + _RELEASE_S  # by then the driver has seen that the workers are gone
        while case.device == "cuda" and (foreign := processes_on_gpu()):
            if time.monotonic() >= deadline:
                return _disturbed(case, foreign)
            time.sleep(0.1)
        return record.model_dump_json()


def _disturbed(case: Case, foreign: Mapping[int, str]) -> str:
    names = ", ".join(f"{name} ({number})" for number, name in foreign.items())
    return _without_numbers(case, Status.ERROR, f"another process was on the GPU: {names}").model_dump_json()


def _require_module(name: str) -> None:
    importlib.import_module(name)


def _gpus(node: Mapping[str, Any]) -> int:
    return int(node["Resources"].get("GPU", 0))


def _end(slot: _Slot) -> None:
    """Ends an actor, and with it whatever it measures."""
    import ray

    with suppress(Exception):
        ray.kill(slot.actor)


def _without_numbers(case: Case, status: Status, reason: str) -> Record:
    return Record(case=case, status=status, reason=reason, started_at=utc_now(), duration_s=0.0)


def _headline(error: Exception) -> str:
    """What an exception says in one line; of a task's, what was raised there."""
    cause = getattr(error, "cause", None) or error
    said = str(cause).strip().splitlines() or ["it gave no reason"]
    return f"{type(cause).__name__}: {said[0]}"


def _warn(text: str) -> None:
    sys.stderr.write(f"Warning: {text}\n")


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps Ray from reporting its use, from talking, and from taking over the signals of this process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # what Ray prints of the hosts: none of it
    in_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    hook = sys.excepthook
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.excepthook = hook
        for number, handler in handlers.items() if in_main else ():
            signal.signal(number, handler)
