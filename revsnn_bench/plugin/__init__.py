"""The pytest plugin: sweeps as parameters, cases measured in workers, numbers in the terminal and in a file.

    def test_my_node_keeps_nothing(measure_case):
        record = measure_case(Case(node="my-node", timesteps=16))
        assert record.memory.retained_bytes == 0

With `--benchmark` cases are measured in full, saved and reported; without it every case runs once, small and fast.
"""

import shlex
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.outcomes import Skipped

from revsnn_bench.case import Case, Sweep, parse_size
from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.measuring import memory_doubt
from revsnn_bench.plugin import options

if TYPE_CHECKING:
    from revsnn_bench.records import Record
    from revsnn_bench.session import BenchSession

SESSION = pytest.StashKey["BenchSession"]()
SUBMITTING = pytest.StashKey[bool]()
HAD_STORAGE = pytest.StashKey[bool]()
PLANNED = pytest.StashKey[list[str] | None]()
NODES = pytest.StashKey[list[str]]()
SWEPT = pytest.StashKey[list[Case]]()
EMPTY = pytest.StashKey[list[str]]()
LAST = pytest.StashKey[pytest.Item]()
FILES = pytest.StashKey[list[str]]()
HINT = pytest.StashKey[str]()
FAULT = pytest.StashKey[str]()

STORAGE = Path(".benchmarks")
"""Where pytest-benchmark saves what it is asked to save; it makes the folder whether or not it was asked."""

_MOST_REPORTS, _MOST_CONTRIBUTORS, _MOST_ROWS = 2, 5, 30
"""Reports named in the terminal, pages first: figures alone would fill it; parts of memory beyond a budget; and cases
of a run whose tables are printed."""

MARKERS = (
    "sweep(quick, full, workload, nodes, **fixed): parametrize `case` over nodes and axes, as revsnn_bench.case.Sweep",
    'memory_budget(retained="4 MiB", peak="64 MiB"): fail where a measured case, or else the test itself, takes more',
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--benchmark` and the options of the sweeps and of the run."""
    options.add(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Registers the markers, checks the options, and shows progress where the command line asked for it."""
    config.stash[HAD_STORAGE] = STORAGE.exists()
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    options.check(config)
    if config.getoption("run_command"):
        # The process that starts workers loads torch while it is imported here; a user's tests may still change the
        # path and the environment that it gets.
        session_of(config).start()
    options.check_names(config)
    if config.getoption("run_progress"):
        config.pluginmanager.register(Progress(), "revsnn-bench-progress")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrizes `case` for every test that declares a sweep."""
    marker = metafunc.definition.get_closest_marker("sweep")
    if marker is None or "case" not in metafunc.fixturenames:
        return
    config = metafunc.config
    from revsnn_bench.models.peers import takes
    from revsnn_bench.models.workloads import stacks

    sweep = Sweep(*marker.args, **marker.kwargs)
    asked = config.getoption("sweep_node")
    if asked and options.has_own_model(config):
        sweep.nodes = None  # those of a suite are its own network's; a model of the user takes every method
    cases = sweep.cases(options.preset(config), options.axes(config), _usual_nodes(config), asked, takes, stacks)
    config.stash.setdefault(SWEPT, []).extend(cases)
    metafunc.parametrize("case", cases, ids=[case.id for case in cases])


def _usual_nodes(config: pytest.Config) -> list[str]:
    """The nodes of a sweep that names none; the command line, which hides pytest's warnings, shows what is left out."""
    if NODES not in config.stash:
        from revsnn_nodes.registry import OTHER_NEURONS, usable_node_names

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            config.stash[NODES] = [name for name in usable_node_names() if name not in OTHER_NEURONS]
        for warning in caught:
            if config.getoption("run_command"):
                sys.stderr.write(f"Warning: {warning.message}\n")
            else:
                warnings.warn(warning.message, stacklevel=2)
    return config.stash[NODES]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that measure cases are benchmarks to pytest-benchmark's options; those of other shards are left out.

    Which cases belong to a shard does not depend on their order.
    """
    config.stash[EMPTY] = _without_cases(items) if config.getoption("run_every") else []
    for item in filter(_measures, items):
        if options.skips_benchmarks(config):
            item.add_marker(pytest.mark.skip(reason="--benchmark-skip: it measures cases"))
        elif config.getoption("benchmark_only", False):  # which takes those alone that name the fixture `benchmark`
            item.own_markers = [m for m in item.own_markers if "--benchmark-only" not in m.kwargs.get("reason", "")]
    shard = config.getoption("run_shard")
    if not shard:
        return
    config.stash[PLANNED] = _planned(items)
    number, count = shard
    keys = {item: case.id if (case := _case_of(item)) else item.nodeid for item in items if not _is_without_case(item)}
    own = {*sorted({*keys.values()})[number - 1 :: count]}
    config.hook.pytest_deselected(items=[item for item in items if keys.get(item) not in own])
    items[:] = [item for item in items if keys.get(item) in own]
    if keys and not items:
        raise pytest.UsageError(
            f"{options.flag(config, 'shard')}: must have no more parts than there are cases; got {count} parts, and "
            f"{len({*keys.values()})} {'case' if len({*keys.values()}) == 1 else 'cases'}. Part {number} has none."
        )


_NO_CASE = (
    "has a case of what was asked for. One that names its nodes takes of these alone, and a workload other than "
    "`layer` takes shapes of as many sizes as its own. Ask for other nodes, another shape or suite."
)


def _without_cases(items: Iterable[pytest.Item]) -> list[str]:
    """Suites of which no test has a case."""
    full = {item.path: False for item in items}
    for item in items:
        full[item.path] |= not _is_without_case(item)
    return [path.stem.removeprefix("bench_") for path, has_one in full.items() if not has_one]


def _is_without_case(item: pytest.Item) -> bool:
    """Whether the sweep of a test has no case."""
    return "case" in _parameters(item) and _case_of(item) is None


def _planned(items: Iterable[pytest.Item]) -> list[str] | None:
    """Ids of the cases that tests measure; None where a test without a parameter `case` makes its cases itself.

    Pytest skips a test whose sweep has no case, as where it names none of the nodes asked for.
    """
    measuring = [item for item in items if _measures(item)]
    if not all("case" in _parameters(item) for item in measuring):
        return None
    return [case.id for item in measuring if (case := _case_of(item)) is not None]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Opens the run before anything is measured, so that it cannot end with nothing saved.

    torch is imported by then: a time limit of a test that struck in the midst of that import would end the process.
    """
    swept = session.config.stash.get(SWEPT, [])
    if empty := session.config.stash.get(EMPTY, []):
        raise pytest.UsageError(f"--suite: no sweep of {' or '.join(empty)} {_NO_CASE}")
    options.check_axes(session.config, swept)
    options.check_node_options(session.config, swept)
    if session.config.option.collectonly or options.skips_benchmarks(session.config):
        return
    limits = [_limits(item) for item in session.items]  # a list, so that every marker is checked
    if any(limits):
        import revsnn_bench.meters.allocator  # noqa: F401
    if not any(map(_measures, session.items)):
        return
    own = _planned(session.items)
    if own == []:
        raise pytest.UsageError(f"no sweep {_NO_CASE}")
    cases = [case for item in session.items if _measures(item) and (case := _case_of(item)) is not None]
    try:
        session_of(session.config).open(session.config.stash.get(PLANNED, own), own, cases)
    except OSError as error:
        place = f" {error.filename!r}" if error.filename else ""
        raise pytest.UsageError(f"cannot write the run to{place}: {error.strerror}. Name other folders.") from None
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    except RuntimeError as error:  # of the worker that is asked for the environment
        reason = str(error).partition("\n")[0].rstrip(".")
        names = " and ".join(options.flag(session.config, key) for key in ("timeout", "memory_limit"))
        raise pytest.UsageError(f"no worker can measure here: {reason}. Its limits are {names}.") from None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Where several cases run at once: has every test say which it measures; all are submitted before one is awaited.

    Each test runs up to its first case, with its fixtures, and is heard of no more until it runs in full.
    """
    config = session.config
    if options.takes_several(config) and SESSION in config.stash:
        from _pytest.runner import runtestprotocol

        asked = [item for item in session.items if _measures(item)]
        config.stash[SUBMITTING] = True
        for item, following in zip(asked, [*asked[1:], None], strict=True):
            runtestprotocol(item, log=False, nextitem=following)
        config.stash[SUBMITTING] = False
    return (yield)


class Submitted(Skipped):
    """Ends a test whose case is submitted; the test runs again, and then waits for the record."""


def _measures(item: pytest.Item) -> bool:
    """Whether a test measures cases."""
    return "measure_case" in getattr(item, "fixturenames", ())


def _case_of(item: pytest.Item) -> Case | None:
    """The case of a test that a sweep parametrized."""
    case = _parameters(item).get("case")
    return case if isinstance(case, Case) else None


def _parameters(item: pytest.Item) -> dict[str, object]:
    return item.callspec.params if hasattr(item, "callspec") else {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Records the case of a test that was skipped before it measured, so that the run can be complete."""
    report = yield
    if item.config.stash.get(SUBMITTING, False):
        return report
    item.config.stash[LAST] = item
    if report.skipped and not hasattr(report, "wasxfail") and SESSION in item.config.stash and _measures(item):
        case = _case_of(item)
        if case is not None:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            item.config.stash[SESSION].leave_out(case, reason)
    return report


@pytest.fixture
def measure_case(request: pytest.FixtureRequest) -> "Callable[..., Record]":
    """Measures a case in a fresh process and returns its record; `passes=` leaves out what does not apply to it.

    The test fails where the case ends in `error`, `timeout` or `oom`, takes more than its `memory_budget`, or has a
    wrong gradient; it is skipped where the case cannot run here. In a sweep a wrong gradient of which the node itself
    warned is an expected failure.
    """
    from revsnn_bench.runner.cluster import ClusterError
    from revsnn_bench.session import OtherPasses

    config = request.config
    # A test that takes the fixture `benchmark` itself times with it what it likes.
    timer = None if "benchmark" in request.fixturenames else ReplayTimer()
    untold: list[Record] = []
    benchmark: Any = None

    def measure(case: Case, passes: "Sequence[str] | None" = None) -> "Record":
        nonlocal benchmark
        if config.stash.get(SUBMITTING, False):
            session_of(config).submit(case, passes)
            raise Submitted
        try:
            record = session_of(config).measure(case, passes)
        except OtherPasses as error:
            if config.getoption("run_command"):  # which hides what pytest says of a test
                sys.stderr.write(f"Warning: {error}\n")
            pytest.fail(str(error), pytrace=False)
        except ClusterError as error:
            pytest.exit(str(error))
        except OSError as error:  # such as a full disk: no other case could be saved, either
            config.stash[FAULT] = f"cannot write {error.filename or 'a file'}: {error.strerror}."
            pytest.exit(config.stash[FAULT])
        untold.append(record)
        # Only a time asks for the fixture: pytest-benchmark warns of one that is not used.
        if benchmark is None and record.time is not None and options.feeds_benchmark(config):
            benchmark = _benchmark_of(request, timer)
        while benchmark is not None and untold:
            _replay(benchmark, timer, untold.pop(0))
        _judge(record)
        hold_to_budget(request.node, record)
        _judge_gradient(request.node, record)
        return record

    return measure


def session_of(config: pytest.Config) -> "BenchSession":
    """The run of this pytest session, made when it is first asked for."""
    if SESSION not in config.stash:
        from revsnn_bench.session import BenchSession

        try:
            config.stash[SESSION] = BenchSession(options.run_options(config))
        except ValueError as error:  # a limit that this system cannot hold
            raise pytest.UsageError(str(error)) from None
    return config.stash[SESSION]


class Progress:
    """Shows progress on stderr while pytest itself stays silent.

    It is drawn once a second, and not at all where nobody sees it: to draw it takes a core that a case may be using.
    """

    def __init__(self) -> None:
        import rich.progress as rich
        from rich.console import Console

        console = Console(stderr=True)
        self._bar = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(bar_width=24),
            rich.MofNCompleteColumn(),
            rich.TimeElapsedColumn(),
            rich.TextColumn("left"),
            rich.TimeRemainingColumn(),
            console=console,
            refresh_per_second=1,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("collecting", total=None)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Starts the bar when the number of cases is known."""
        self._bar.update(self._task, total=len(session.items), description="starting")
        self._bar.start()

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Names the case in flight."""
        callspec = getattr(item, "callspec", None)
        self._bar.update(self._task, description=item.name if callspec is None else callspec.id)

    def pytest_runtest_logfinish(self) -> None:
        """Counts a case that ended."""
        self._bar.advance(self._task)

    def pytest_sessionfinish(self) -> None:
        """Takes the bar away before the results are shown."""
        self._bar.stop()

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Prints no letter per test, since the bar shows how many are done."""
        category = report.outcome if report.when == "call" or report.outcome != "passed" else ""
        return category, "", ""


class ReplayTimer:
    """A clock for pytest-benchmark: read in pairs, each pair is one sample apart."""

    def __init__(self) -> None:
        self._readings: list[float] = []
        self._now = 0.0

    def load(self, samples_s: Iterable[float]) -> None:
        """Sets the samples that come next."""
        for sample in samples_s:
            self._readings += [self._now, self._now + sample]
            self._now += sample

    def __call__(self) -> float:
        """The next reading, in seconds."""
        return self._readings.pop(0) if self._readings else self._now


def _replay(benchmark: Any, timer: ReplayTimer | None, record: "Record") -> None:
    """Gives a record's step times to the `benchmark` fixture by this clock, and everything else to its `extra_info`.

    Only the first case of a test reaches pytest-benchmark's statistics, which hold one benchmark per test.
    """
    from revsnn_bench.metrics import measured

    benchmark.extra_info[record.case.id] = {"status": record.status.value, **measured(record)}
    if timer is None or record.time is None or benchmark.stats is not None or benchmark.disabled:
        return
    samples = [f + b for f, b in zip(record.time.forward_time_s, record.time.backward_time_s, strict=True)]
    timer.load(samples)
    benchmark.pedantic(lambda: None, rounds=len(samples), iterations=1)


def _benchmark_of(request: pytest.FixtureRequest, timer: ReplayTimer | None) -> Any:
    """The fixture of pytest-benchmark, which takes its timer and its group from the test's marker."""
    case = _case_of(request.node)
    group = None if case is None else " ".join(case.place)
    if timer is not None:
        request.node.add_marker(pytest.mark.benchmark(timer=timer, group=group))
    return request.getfixturevalue("benchmark")


def _judge(record: "Record") -> None:
    """Ends the test of a case that was not measured."""
    if record.status.value == "skipped":
        pytest.skip(_told(record))
    if record.status.value in ("error", "timeout", "oom"):
        pytest.fail(_told(record), pytrace=False)


def _judge_gradient(item: pytest.Item, record: "Record") -> None:
    """Ends the test of a wrong gradient; in a sweep, which compares nodes, one of which the node warned is expected."""
    if record.status.value == "wrong":
        if item.get_closest_marker("sweep") and record.fidelity is not None and record.fidelity.warning:
            pytest.xfail(_told(record))
        pytest.fail(_told(record), pytrace=False)


def _told(record: "Record") -> str:
    return f"{record.case.id} {record.status.value}: {record.reason}"


def _limits(item: pytest.Item) -> dict[str, int]:
    """The limits in bytes that a test's `memory_budget` declares, by `retained` and `peak`."""
    marker = item.get_closest_marker("memory_budget")
    if marker is None:
        return {}
    if marker.args or not marker.kwargs or not set(marker.kwargs) <= {"retained", "peak"}:
        got = ", ".join([*map(repr, marker.args), *(f"{name}={value!r}" for name, value in marker.kwargs.items())])
        raise pytest.UsageError(
            f'memory_budget of {item.name} takes retained="4 MiB", peak="64 MiB", or both; got {got or "neither"}'
        )
    try:
        return {name: parse_size(size) for name, size in marker.kwargs.items()}
    except ValueError as error:
        raise pytest.UsageError(f"memory_budget of {item.name}: {error}") from None


def hold_to_budget(item: pytest.Item, record: "Record") -> None:
    """Fails the test where a measured case takes more than the test allows, or memory that was not all counted."""
    limits, case, memory = _limits(item), record.case.id, record.memory
    if not limits:
        return
    if doubt := memory_doubt(record.case, memory):
        pytest.fail(f"{case}: memory_budget cannot be held: {doubt}", pytrace=False)
    if memory is None:
        pytest.fail(f"{case}: memory_budget needs the memory pass, which did not run", pytrace=False)
    saved = memory.saved_bytes
    parts = {}
    if saved is not None:
        parts = {"saved, own": saved.own, "aliasing the input": saved.input, "aliasing the output": saved.output}
    found = {"retained": memory.retained_bytes, "peak": memory.peak_bytes}
    parts_of = {"retained": parts, "peak": memory.peak_by_category_bytes}
    for name, limit in limits.items():
        _hold(case, name, found[name], limit, parts_of[name])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Holds a test with a memory budget, that measures no case, to that budget: the host tensors of its body."""
    limits = _limits(item)
    if not limits or _measures(item):
        return (yield)
    from revsnn_bench.meters.allocator import watch_timeline

    with watch_timeline() as ledger:
        result = yield
    found = {"peak": ledger.peak_bytes, "retained": ledger.live_bytes}
    blocks = {"peak": ledger.at_peak, "retained": ledger.live.values()}
    for name, limit in limits.items():
        sizes = sorted((ledger.sizes[number] for number in blocks[name]), reverse=True)
        _hold(item.name, name, found[name], limit, {f"block {i}": size for i, size in enumerate(sizes, 1)})
    return result


def _hold(what: str, name: str, found: int, limit: int, parts: dict[str, int]) -> None:
    if found <= limit:
        return
    largest = sorted(parts.items(), key=lambda part: part[1], reverse=True)[:_MOST_CONTRIBUTORS]
    contributors = ", ".join(f"{part} {size:,} B" for part, size in largest if size)
    pytest.fail(
        f"{what}: {name} memory is {found:,} B, {found - limit:,} B over the budget of {limit:,} B. "
        f"Largest contributors: {contributors or 'none known'}",
        pytrace=False,
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before that of pytest-benchmark, which may end with an error
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Generator[None, object, object]:
    """Ends the workers, saves the run and writes its reports, also after an interrupt.

    The command fails where every case was skipped, since nothing was measured then.
    """
    stash = session.config.stash
    if session.config.getoption("run_command"):
        _hide_interrupt(session.config.pluginmanager.getplugin("terminalreporter"))
    if SESSION in stash:
        run = stash[SESSION].run
        all_skipped = run is not None and {record.status.value for record in run} == {"skipped"}
        if all_skipped and exitstatus == pytest.ExitCode.OK and session.config.getoption("run_command"):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        interrupted = exitstatus in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR)
        stopped = (session.shouldfail or session.shouldstop) and session.items[-1:] != [stash.get(LAST, None)]
        try:
            stash[FILES] = [str(path) for path in stash[SESSION].finish(not (interrupted or stopped))]
        except OSError as error:
            stash[FILES] = [str(path) for path in (stash[SESSION].saved,) if path is not None]
            text = " ".join([f"cannot write {error.filename}: {error.strerror}.", *error.__notes__])
            stash.setdefault(FAULT, text)
        except KeyboardInterrupt:
            stash[HINT] = _interrupted_at_the_end(session.config)
            raise
        if FAULT in stash:
            session.exitstatus = ExitCode.NO_FILE
    if exitstatus == pytest.ExitCode.INTERRUPTED and session.config.getoption("benchmark") and not stash.get(FILES, ()):
        stash.setdefault(HINT, "interrupted before a case was measured")
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and PLANNED in stash:
        session.exitstatus = pytest.ExitCode.OK  # more shards than cases
    return (yield)


def _hide_interrupt(reporter: Any) -> None:
    """Leaves to the last line of the command what an interrupt means; pytest's tell where in this program it came."""
    found = reporter._keyboardinterrupt_memo
    if found is not None and "KeyboardInterrupt" in found.reprcrash.message:
        reporter._report_keyboardinterrupt = lambda: None


def _interrupted_at_the_end(config: pytest.Config) -> str:
    """Where the run is whose saving or reports were cut off, and how to have them."""
    path, run = config.stash[SESSION].saved, config.stash[SESSION].run
    if path is None or run is None:
        return "interrupted"
    how = f"go on with: {options.resuming(config, str(path))}"
    if (finished := path.with_suffix(".json")).exists():
        path, how = finished, f"write its reports with: revsnn-bench report {shlex.quote(str(finished))}"
    return f"interrupted: {run.extent} measured, in {path}; {how}"


def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends the workers, says last how to go on, and takes pytest-benchmark's folder away if it was made for nothing."""
    for key in (FAULT, HINT):  # after what pytest itself says of an interrupt
        if key in config.stash:
            config.pluginmanager.getplugin("terminalreporter").write_line(config.stash[key])
    if SESSION in config.stash:
        config.stash[SESSION].close()
    if not config.stash.get(HAD_STORAGE, True):
        with suppress(OSError):
            STORAGE.rmdir()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Shows what was found, and where the run and its reports are: tables of a short run of the command, else a dozen
    lines."""
    files = config.stash.get(FILES, [])
    if not files:
        return
    from rich.console import Console

    from revsnn_bench.report.terminal import print_run, print_summary
    from revsnn_bench.runs import load_run

    terminalreporter.section("revsnn-bench")
    width = max(100, terminalreporter._tw.fullwidth)
    console = Console(file=terminalreporter._tw._file, width=width, no_color=not terminalreporter._tw.hasmarkup)
    run = load_run(Path(files[0]))
    skipped = [record.reason or "" for record in run if record.status.value == "skipped"]
    if config.getoption("run_command") and len(skipped) < len(run.records) <= _MOST_ROWS:
        print_run(run, console)
    else:
        print_summary(run, console)
        for reason in dict.fromkeys(reason.strip().partition("\n")[0] for reason in skipped):
            terminalreporter.write_line(f"skipped: {reason}")
        if len(skipped) < len(run.records):
            terminalreporter.write_line(f"the whole comparison: revsnn-bench report {files[0]}")
    terminalreporter.write_line(f"run:     {files[0]}")
    reports = sorted(files[1:], key=lambda path: (not path.endswith(".html"), not path.endswith(".md")))
    for path in reports[:_MOST_REPORTS]:
        terminalreporter.write_line(f"report:  {path}")
    if len(reports) > _MOST_REPORTS:
        terminalreporter.write_line(f"         and {len(reports) - _MOST_REPORTS} more files beside it")
    if files[0].endswith(".jsonl"):
        config.stash[HINT] = f"interrupted: {run.extent} measured; go on with: {options.resuming(config, files[0])}"
    elif not run.complete:
        terminalreporter.write_line(f"a part: {run.extent} measured; join the parts with revsnn-bench merge")
