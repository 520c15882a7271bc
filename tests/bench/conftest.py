"""Runs with the bytes, operations and errors that the closed forms of the nodes predict."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from revsnn_bench.case import Case
from revsnn_bench.records import (
    AccuracyRecord,
    Environment,
    FidelityRecord,
    FlopsRecord,
    MemoryRecord,
    PhaseFlops,
    Record,
    Run,
    RunHeader,
    SavedBytes,
    Status,
    TimeRecord,
)
from revsnn_bench.system.process import freeze_imported

if TYPE_CHECKING:
    from revsnn_bench.runner import Runner

_OPERATIONS = {  # forward, backward and recomputation, per element and step
    "lif": (6, 9, 0),
    "lif-checkpoint": (6, 9, 6),
    "revlif-stored": (9, 16, 0),
    "revlif-revnet": (9, 16, 19),
    "revlif": (9, 14, 10),
    "revlif-anchored": (9, 14, 9),
    "lif-carrier": (8, 10, 7),
}
_SLOWDOWN = {"lif": 1.0, "lif-checkpoint": 1.4, "revlif-stored": 1.6, "revlif-revnet": 2.5, "revlif": 2.0}
_INVERTS = ("revlif", "revlif-revnet")
_WARNING = "The inverse in time loses the gradient: use lif-carrier, revlif-anchored, or a smaller T."


def _retained_bytes(case: Case) -> int:
    state = 4 * case.batch * math.prod(case.shape)
    segments = math.ceil(case.timesteps / math.ceil(math.sqrt(case.timesteps)))
    anchors = math.ceil(case.timesteps / int(case.options.get("anchor_every") or 4)) - 1
    forms = {
        "lif-checkpoint": state * (case.timesteps + segments - 1),
        "revlif-revnet": state,
        "revlif": state,
        "revlif-anchored": state * anchors,
        "lif-carrier": 0,
    }
    return case.depth * forms.get(case.node, 3 * state * case.timesteps)


def _memory(case: Case) -> MemoryRecord:
    state, retained = 4 * case.batch * math.prod(case.shape), _retained_bytes(case)
    sequence = state * case.timesteps
    return MemoryRecord(
        retained_bytes=retained,
        state_bytes=state * case.depth,
        output_bytes=sequence,
        saved_bytes=SavedBytes(own=retained, input=0, output=0 if case.node == "lif" else sequence),
        peak_bytes=retained + 2 * sequence + 3 * state,
        peak_by_category_bytes={"retained": retained, "output": sequence, "temporary": 3 * state},
        peak_phase="backward",
        peak_module="node",
        process_peak_bytes=retained + 2 * sequence + 3 * state + 4096,
    )


def _flops(case: Case) -> FlopsRecord:
    elements = case.timesteps * case.batch * math.prod(case.shape) * case.depth
    forward, backward, recompute = _OPERATIONS[case.node]
    return FlopsRecord(
        forward=PhaseFlops(pointwise=forward * elements, multiply_accumulate=0),
        backward=PhaseFlops(pointwise=backward * elements, multiply_accumulate=0),
        recompute=PhaseFlops(pointwise=recompute * elements, multiply_accumulate=0),
    )


def _time(case: Case) -> TimeRecord:
    base = tuple(1e-4 * case.timesteps * case.depth * (1 + 0.01 * (i % 5)) for i in range(12))
    slow = _SLOWDOWN.get(case.node, 1.8)
    return TimeRecord(
        forward_time_s=base,
        backward_time_s=tuple(2 * slow * sample for sample in base),
        lif_forward_time_s=base,
        lif_backward_time_s=tuple(2 * sample for sample in base),
        rounds_by_process=(4, 4, 4),
        rounds_rejected=0,
        load_before=0.3,
        load_after=0.4,
        threads=2,
    )


def _fidelity(case: Case) -> FidelityRecord:
    inverts = case.node in _INVERTS
    error = 1e-8 * 4.0**case.timesteps if inverts else 4e-8
    return FidelityRecord(
        gradient_error=math.nan if case.timesteps > 100 and inverts else error,
        output_error=0.0,
        tolerance=1e-3,
        reconstruction_error=error if inverts else None,
        flipped_spikes=0 if inverts else None,
        predicted_error=error if inverts else None,
        warning=_WARNING if inverts and error > 1e-3 else None,
        neurons=case.batch * math.prod(case.shape),
    )


def _record(case: Case | None = None, /, status: Status | str | None = None, **changes: Any) -> Record:
    """Makes the record of a case; keywords replace its parts, unknown ones describe the case."""
    fields = {name: changes.pop(name) for name in list(changes) if name in Case.model_fields}
    case = case or Case(**{"shape": (64,), **fields})
    fidelity = _fidelity(case)
    right = fidelity.gradient_error <= fidelity.tolerance
    status = Status(status) if status else Status.OK if right else Status.WRONG
    parts: dict[str, Any] = {"started_at": "2026-01-01T00:00:00Z"}
    if status in (Status.OK, Status.WRONG):
        parts |= {"memory": _memory(case), "flops": _flops(case), "time": _time(case), "fidelity": fidelity}
    if status is not Status.OK:
        parts["reason"] = f"ended as {status.value}"
    parts |= changes
    return Record(case=case, status=status, duration_s=1.0, **parts)


@pytest.fixture(scope="session")
def runner() -> "Iterator[Runner]":
    """Runs cases in fresh processes of one thread; its server, which imports torch, starts once for all tests."""
    from revsnn_bench.measuring import measure
    from revsnn_bench.runner import Runner

    with Runner(measure, timeout_s=120, threads=1) as runner:
        yield runner


@pytest.fixture(scope="module", autouse=True)
def _warm(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runners of this process find servers that have started, but where servers themselves are tested."""
    if request.path.name == "test_runner.py":
        yield
        return
    from warm_servers import use

    with use():
        yield


@pytest.fixture(autouse=True)
def _rested() -> None:
    """As in a worker: collections leave out what is there, and its tensors are known without a search."""
    freeze_imported()


@pytest.fixture(autouse=True)
def _no_worker_of_xdist(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pytest that a test starts is a session of its own: pytest-benchmark would take it for a worker's."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """Makes one record: `make_record(node="revlif", timesteps=4)`, or with any of its parts replaced."""
    return _record


@pytest.fixture
def kernel_record() -> Callable[..., Record]:
    """Makes the record of a kernel whose forward and backward take so many copies, of 1 s each, of the input."""

    def make(node: str, backend: str | None, forward: float, backward: float, **fields: Any) -> Record:
        options = {"backend": backend} if backend else {}
        record = _record(Case(**{"node": node, "shape": (64,), "node_options": options, **fields}))
        copies = {"forward_time_s": (forward,) * 3, "backward_time_s": (backward,) * 3, "copy_time_s": (1.0,) * 3}
        assert record.time is not None
        return record.model_copy(update={"time": record.time.model_copy(update=copies)})

    return make


@pytest.fixture
def make_accuracy() -> Callable[..., AccuracyRecord]:
    """Makes the accuracy part of a record."""

    def make(accuracy: float, stripped: float | None = None) -> AccuracyRecord:
        return AccuracyRecord(
            accuracy=accuracy,
            stripped_accuracy=stripped,
            data="digits",
            epochs=10,
            train_samples=1437,
            test_samples=360,
            train_time_s=12.5,
        )

    return make


@pytest.fixture
def make_run() -> Callable[..., Run]:
    """Makes a run of records: `make_run(records, run_id="a")`; other keywords change the environment."""

    def make(records: Iterable[Record], run_id: str = "run-1", **environment: Any) -> Run:
        described: dict[str, Any] = {
            "torch": "2.13.0+cpu",
            "python": "3.11.7",
            "platform": "Linux",
            "cpu_model": "Some CPU",
            "cores": 2,
            "threads": 2,
            "memory_bytes": 8 * 2**30,
            "package": "0.1.0",
            "commit": "0123abc",
            "dirty": False,
            "packages": {"numpy": "2.0"},
            "deterministic": True,
            "malloc": {"MALLOC_MMAP_THRESHOLD_": "1048576"},
        }
        header = RunHeader(
            run_id=run_id,
            started_at="2026-01-01T00:00:00Z",
            command=("revsnn-bench", "run"),
            environment=Environment(**(described | environment)),
            settings={"rounds": 12},
        )
        return Run(header=header, records=tuple(records))

    return make


@pytest.fixture
def sweep_run(make_run: Callable[..., Run]) -> Run:
    """Every node over T = 4, 8, 16 and 32, B = 8, 64 features; the inverses go wrong at T = 16."""
    return make_run([_record(node=node, timesteps=t) for t in (4, 8, 16, 32) for node in _OPERATIONS])
