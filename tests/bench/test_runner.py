import functools
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from revsnn_bench import Case
from revsnn_bench.records import MOST_TEXT_BYTES, Record, Status
from revsnn_bench.runner import Runner, Runners
from revsnn_bench.runs import require_readable
from revsnn_bench.system.process import status_bytes

MEASURES = Path(__file__).parent / "measures"
CASE = Case(node="lif")
MIB = 2**20


@pytest.fixture(scope="module")
def measures() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(MEASURES)
        yield importlib.import_module("sample_measures")


@pytest.fixture(scope="module")
def run(measures: ModuleType) -> Iterator[Callable[..., Record]]:
    """Runs one measure function of `sample_measures` by name, under a limit of 256 MiB and 30 s."""
    runner = Runner(measures.call_by_name, timeout_s=30, memory_limit_bytes=256 * MIB, preload=("torch",), threads=2)
    with runner:
        yield lambda name, settings=None: runner.run(CASE, (name, settings))


def _has_no_numbers(record: Record) -> bool:
    parts = (record.memory, record.flops, record.time, record.fidelity, record.accuracy)
    return all(part is None for part in parts)


def _gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _await(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_record_of_measure_comes_back_unchanged(run: Callable[..., Record]) -> None:
    """What `measure` returns is what `run` returns, also when it says the case is wrong."""
    record = run("succeed", {"rounds": 3})
    assert (record.status, record.reason, record.duration_s) == (Status.OK, "{'rounds': 3}", 0.25)
    assert run("disagree").status is Status.WRONG


def test_every_case_gets_a_fresh_process(run: Callable[..., Record]) -> None:
    """Two cases share no process and no state; both have the allocator threshold and the threads."""
    first, second = (str(run("tell_process").reason).split() for _ in range(2))
    assert first[0] != second[0]
    assert first[1:] == second[1:] == ["True", "1048576", "2", "False"]


def test_workers_compute_in_parallel(measures: ModuleType) -> None:
    """OpenMP works in a forked worker, for kernels too: a thread beside its own would contend with what is timed."""
    with Runner(measures.call_by_name, timeout_s=120, threads=2) as runner:
        record = runner.run(CASE, ("compute_in_parallel", None))
    assert (record.status, record.reason) == (Status.OK, "['MainThread']")


def test_skipped_case_gives_its_reason(run: Callable[..., Record]) -> None:
    """`SkipCase` makes a skipped record whose reason is the message."""
    record = run("skip")
    assert (record.status, record.reason) == (Status.SKIPPED, "no CUDA on this machine")


def test_memory_limit_makes_an_oom(run: Callable[..., Record], measures: ModuleType) -> None:
    """Half the limit fits; twice the limit is torch's own allocation error; what it had measured is kept."""
    assert run("allocate", 128 * MIB).status is Status.OK
    record = run("allocate", 512 * MIB)
    assert record.status is Status.OOM
    assert "you tried to allocate 536870912 bytes" in str(record.reason)
    assert str(record.reason).endswith("; flops, measured before, are in CSV and JSON")
    assert (record.flops, record.memory) == (measures.FLOPS, None)


def test_a_limit_of_addresses_is_named_where_it_ends_a_case(run: Callable[..., Record]) -> None:
    """Under `ulimit -v` a mapping or a thread fails in words of its own: the limit is said in the same line."""
    reason = str(run("exhaust_addresses").reason).partition("\n")[0]
    assert reason.startswith("OSError: [Errno 12] Cannot allocate memory. The address space is limited to ")
    assert "(`ulimit -v`)" in reason


def test_device_memory_error_is_oom_through_its_cause(run: Callable[..., Record]) -> None:
    """An exception raised from an out-of-memory error counts as one."""
    assert run("exhaust_device").status is Status.OOM


def test_sigkill_is_taken_for_the_kernels_oom_killer(run: Callable[..., Record]) -> None:
    """SIGKILL from outside is `oom`, and the reason says that it might have been someone else."""
    record = run("die_of", signal.SIGKILL)
    assert record.status is Status.OOM
    assert "out-of-memory killer, or by hand" in str(record.reason)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_crash_names_the_signal_and_the_place(run: Callable[..., Record], number: signal.Signals) -> None:
    """A crash is an error that names the signal and the Python line, and no number."""
    record = run("die_of", number)
    assert record.status is Status.ERROR
    assert str(record.reason).startswith(f"crashed by {number.name}\n")
    assert "in die_of" in str(record.reason)
    assert _has_no_numbers(record)


def test_exit_without_a_result_is_an_error(run: Callable[..., Record]) -> None:
    """A worker that leaves by itself is an error with its exit code."""
    record = run("leave", 3)
    assert record.status is Status.ERROR
    assert "exit code 3" in str(record.reason)


def test_exception_gives_headline_traceback_and_output(
    run: Callable[..., Record], capfd: pytest.CaptureFixture[str]
) -> None:
    """The first line of the reason stands alone; traceback and output follow; the terminal stays clean."""
    record = run("fail")
    reason = str(record.reason)
    assert record.status is Status.ERROR
    assert reason.splitlines()[0] == "ZeroDivisionError: division by zero"
    assert 'File "sample_measures.py"' in reason
    assert str(MEASURES) not in reason
    assert reason.endswith("about to divide\nby nothing")
    assert _has_no_numbers(record)
    assert capfd.readouterr() == ("", "")


def test_wrong_return_type_is_an_error(run: Callable[..., Record]) -> None:
    """A measure function that returns no record is named as the culprit."""
    assert "`measure` must return a Record; got NoneType" in str(run("return_nothing").reason)


def test_a_segmentation_fault_keeps_the_head_of_its_stack(run: Callable[..., Record]) -> None:
    """However deep the stack and however much was printed before: the innermost frame is in the reason."""
    reason = str(run("crash_deep_down", 90).reason)
    assert reason.startswith("crashed by SIGSEGV\n")
    assert "in string_at" in reason
    assert "Fatal Python error: Segmentation fault" in reason
    assert len(reason) < 6000


def test_a_grandchild_in_its_own_session_ends_with_its_case(run: Callable[..., Record], tmp_path: Path) -> None:
    """When the record is there, what the case has left behind is gone, wherever it had put itself."""
    assert run("leave_a_grandchild", str(tmp_path / "pid")).status is Status.OK
    assert _gone(int((tmp_path / "pid").read_text("ascii")))


def _workers() -> list[psutil.Process]:
    """Children of the servers that fork them. This process may have others, such as another test's browser."""
    servers = [child for child in psutil.Process().children() if "python" in child.name()]
    assert servers
    return [worker for server in servers for worker in server.children()]


HOSTILE = [
    ("close_everything", 0.0, Status.ERROR, "exit code 1 and without a result"),
    ("raise_long", None, Status.ERROR, r"ValueError: head \ud800 xxx"),
    ("raise_in_str", None, Status.ERROR, "Broken"),
    ("raise_base", "interrupt", Status.ERROR, "KeyboardInterrupt"),
    ("raise_base", "exit", Status.ERROR, "SystemExit"),
    ("raise_base", "generator", Status.ERROR, "GeneratorExit"),
    ("recurse", None, Status.ERROR, "RecursionError: maximum recursion depth exceeded"),
    ("unpicklable", None, Status.ERROR, "pickle"),
    ("unvalidated", "text", Status.ERROR, "`measure` returned what cannot be saved"),
    ("unvalidated", "number", Status.ERROR, "`measure` returned what cannot be saved"),
    ("unvalidated", "type", Status.ERROR, "`measure` returned what cannot be saved"),
    ("of_a_module_that_nobody_else_has", None, Status.ERROR, "No module named 'only_here'"),
    ("return_nothing", None, Status.ERROR, "must return a Record; got NoneType"),
    ("kill_the_server", None, Status.ERROR, "the process that starts the workers ended: exit code -9"),
    ("break_streams", "close", Status.OK, "None"),
    ("break_streams", "remove", Status.OK, "None"),
    ("print_binary", None, Status.ERROR, "ValueError: after binary"),
    ("leave_the_folder", None, Status.OK, "None"),
    ("exhaust_descriptors", None, Status.ERROR, "Too many open files"),
    ("many_children", 8, Status.OK, "None"),
    ("answer_twice", None, Status.OK, "None"),
    ("hold_on_at_exit", None, Status.OK, "None"),
    ("leave", 0, Status.ERROR, "exit code 0 and without a result"),
    ("die_of", signal.SIGHUP, Status.ERROR, "crashed by SIGHUP"),
    ("die_of", signal.SIGRTMIN + 5, Status.ERROR, f"crashed by signal {signal.SIGRTMIN + 5}"),
    ("die_of", signal.SIGBUS, Status.ERROR, "crashed by SIGBUS"),
    ("print_much", None, Status.ERROR, "done printing"),
    ("allocate", 1 << 40, Status.OOM, "you tried to allocate"),
]


@pytest.mark.parametrize(
    ("name", "settings", "status", "reason"), HOSTILE, ids=[f"{name}-{settings}" for name, settings, *_ in HOSTILE]
)
def test_a_hostile_node_harms_its_own_case_alone(
    run: Callable[..., Record], name: str, settings: object, status: Status, reason: str
) -> None:
    """28 ways to misbehave: each has a record that can be saved and says what happened, and the next case is well."""
    record = run(name, settings)
    assert (record.status, reason in str(record.reason)) == (status, True), record.reason
    assert len(str(record.reason).encode()) <= MOST_TEXT_BYTES
    require_readable(record)
    assert run("succeed").status is Status.OK
    assert not _workers()


def test_a_worker_that_closes_its_descriptors_is_not_out_of_memory(measures: ModuleType) -> None:
    """It is waited for until its time is over, and so is one that has stopped itself."""
    with Runner(measures.call_by_name, timeout_s=1, preload=()) as runner:
        for name in ("close_everything", "stop"):
            assert runner.run(CASE, (name, 60.0)).status is Status.TIMEOUT


def test_endless_output_is_cut_to_its_end(run: Callable[..., Record]) -> None:
    """Of a megabyte of output the last 4096 bytes are kept."""
    reason = str(run("print_much").reason)
    assert "line 99999" in reason
    assert len(reason) < 6000


def test_timeout_says_where_and_kills_the_children(measures: ModuleType, tmp_path: Path) -> None:
    """At the time limit the worker and its own child are dead, and the reason shows where it was."""
    marker = tmp_path / "pids"
    with Runner(measures.sleep_with_a_child, timeout_s=4, preload=()) as runner:
        record = runner.run(CASE, str(marker))
    assert record.status is Status.TIMEOUT
    assert str(record.reason).startswith("ran past the time limit of 4 s")
    assert "in sleep_with_a_child" in str(record.reason)
    assert _has_no_numbers(record)
    assert all(_await(lambda pid=pid: _gone(int(pid))) for pid in marker.read_text("ascii").split())


def test_timeout_needs_no_cooperation(measures: ModuleType) -> None:
    """A worker that ignores signals is killed all the same, and the next case runs; what it had measured is kept."""
    with Runner(measures.ignore_signals_and_sleep, timeout_s=0.5, preload=()) as runner:
        for record in (runner.run(CASE, None), runner.run(CASE, None)):
            assert (record.status, record.flops, record.memory) == (Status.TIMEOUT, measures.FLOPS, None)
            assert "limit of 0.5 s; flops, measured before, are in CSV and JSON" in str(record.reason).splitlines()[0]


def test_two_runners_measure_at_once(measures: ModuleType, tmp_path: Path) -> None:
    """Each of two cases waits for the other; a case that is submitted twice is measured once."""
    cases = [Case(node="lif", timesteps=t) for t in (2, 3)]
    both = Runners([Runner(measures.meet, timeout_s=30, preload=()) for _ in range(2)])
    for case in (*cases, *cases):
        both.submit(case, str(tmp_path))
    records = [*both.results()]
    while len(records) < 2:
        records += both.results()
    assert {(record.case, record.status) for record in records} == {(case, Status.OK) for case in cases}
    assert not [*both.results()]
    both.close()


def test_closed_runners_leave_nothing(measures: ModuleType, tmp_path: Path) -> None:
    """What runs is killed, with its children; what waited for its turn never begins."""
    runners = Runners([Runner(measures.sleep_with_a_child, timeout_s=60, preload=())])
    for t in (2, 3):
        runners.submit(Case(node="lif", timesteps=t), str(tmp_path / "pids"))
    assert _await((tmp_path / "pids").exists)
    pids = (tmp_path / "pids").read_text("ascii").split()
    runners.close()
    assert all(_await(lambda pid=pid: _gone(int(pid))) for pid in pids)
    assert (tmp_path / "pids").read_text("ascii").split() == pids


def test_dead_server_is_an_error_and_replaced(measures: ModuleType) -> None:
    """When the server itself is killed, the case is an error, and the next case gets a new server."""
    others = psutil.Process().children()
    with Runner(measures.succeed, timeout_s=30, preload=()) as runner:
        assert runner.run(CASE, 1).status is Status.OK
        (server,) = set(psutil.Process().children()) - set(others)
        server.kill()
        record = runner.run(CASE, 2)
        assert record.status is Status.ERROR
        assert "the process that starts the workers ended: exit code -9" in str(record.reason)
        assert runner.run(CASE, 3).status is Status.OK


def test_environment_is_the_workers(measures: ModuleType) -> None:
    """The fingerprint has the threads and the allocator setting of the workers, not of this process."""
    with Runner(measures.succeed, timeout_s=60, preload=("torch",), threads=1) as runner:
        environment = runner.environment()
    assert environment.threads == 1
    assert environment.malloc["MALLOC_MMAP_THRESHOLD_"] == "1048576"


def test_unknown_preload_is_reported(measures: ModuleType) -> None:
    """A module that cannot be imported raises at the first case, with its name."""
    runner = Runner(measures.succeed, timeout_s=5, preload=("no_such_module",))
    with runner, pytest.raises(RuntimeError, match=r"could not import `preload`.*no_such_module"):
        runner.run(CASE, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timeout_s": 0}, "`timeout_s` must be > 0; got 0"),
        ({"timeout_s": 1, "memory_limit_bytes": -1}, "`memory_limit_bytes` must be > 0; got -1"),
        ({"timeout_s": 1, "threads": 0}, "`threads` must be > 0; got 0"),
    ],
)
def test_limits_must_be_positive(measures: ModuleType, arguments: dict[str, Any], message: str) -> None:
    """Limits of zero or less are refused by name."""
    with pytest.raises(ValueError, match=message):
        Runner(measures.succeed, **arguments)


def test_a_memory_limit_needs_what_linux_says(measures: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere it is refused before a case runs, with what to do."""
    monkeypatch.setattr("revsnn_bench.system.process.sys.platform", "darwin")
    assert status_bytes("VmData") is None
    with pytest.raises(ValueError, match="--memory-limit: bytes are measured without it"):
        Runner(measures.succeed, timeout_s=1, memory_limit_bytes=MIB)


def test_measure_may_be_a_partial(measures: ModuleType) -> None:
    """Anything that pickles and can be called will do, such as a partial of an importable function."""
    with Runner(functools.partial(measures.succeed), timeout_s=30, preload=()) as runner:
        assert runner.run(CASE, 1).status is Status.OK


def test_measure_must_be_importable() -> None:
    """A function that no other process can import is refused before anything starts."""
    with pytest.raises(ValueError, match="`measure` must be a function of an importable module"):
        Runner(lambda case, settings: None, timeout_s=1)  # type: ignore[arg-type,return-value]


SCRIPT = """
import sys
import psutil
import sample_measures
from revsnn_bench import Case
from revsnn_bench.runner import Runner, Runners

print("script runs", flush=True)
runner = Runner(sample_measures.sleep_with_a_child, timeout_s=60, preload=())
runner.__enter__()
print(psutil.Process().children()[0].pid, flush=True)
try:
    runner.run(Case(node="lif"), sys.argv[1])
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.fixture(params=["file", "command"])
def script(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A running script without a main guard, from a file and from `python -c`, its case in flight."""
    marker = tmp_path / "pids"
    source = ["-c", SCRIPT]
    if request.param == "file":
        (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
        source = [str(tmp_path / "script.py")]
    process = subprocess.Popen(
        [sys.executable, *source, str(marker)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where the tests run in the background, the interrupt is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(MEASURES), *filter(None, sys.path)])},
    )
    with process:
        started = _await(marker.exists, 40)
        yield process, marker
        process.kill()
    assert started


def _processes(output: str, marker: Path) -> list[int]:
    server = output.split("\n")[1]
    return [int(pid) for pid in (server, *marker.read_text("ascii").split())]


def test_killed_parent_leaves_no_orphan(script: tuple[subprocess.Popen[str], Path]) -> None:
    """After SIGKILL of the parent, the server, the worker and the worker's child are gone."""
    process, marker = script
    process.kill()
    output, _ = process.communicate(timeout=20)
    assert all(_await(lambda pid=pid: _gone(pid)) for pid in _processes(output, marker))


def test_interrupt_is_quiet_and_leaves_no_orphan(script: tuple[subprocess.Popen[str], Path]) -> None:
    """Ctrl-C reaches the parent alone: no traceback of a worker, no process left, the script ran once."""
    process, marker = script
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert errors == ""
    assert output.count("script runs") == 1
    assert output.endswith("interrupted\n")
    assert all(_await(lambda pid=pid: _gone(pid)) for pid in _processes(output, marker))
