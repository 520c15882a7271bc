"""Options of the pytest plugin: the tables of `run_options` as pytest's options, their checks, and what they mean."""

import importlib
import shlex
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from revsnn_bench.case import FIELDS, Case, Preset, is_own
from revsnn_bench.measuring import UNTIMED
from revsnn_bench.run_options import OPTIONS, SWEEP_OPTIONS, RunOption, find_journal, recorded_command, require_run_name
from revsnn_bench.system.environment import search_working_folder

if TYPE_CHECKING:
    from revsnn_bench.session import RunOptions


def add(parser: pytest.Parser) -> None:
    """Adds every option."""
    group = parser.getgroup("revsnn-bench", "memory, FLOPs, time and gradient error of spiking nodes")
    group.addoption(
        "--benchmark", action="store_true", help="measure in full, save and report; else every case runs once, small"
    )
    group.addoption(
        "--sweep-preset", choices=("quick", "full"), default="quick", help="values for minutes, or for hours"
    )
    for option in OPTIONS.values():
        if option.metavar:
            kind, default = _argparse_type(option), option.default or None
            group.addoption(option.pytest_flag, type=kind, default=default, metavar=option.metavar, help=option.help)
        else:
            group.addoption(option.pytest_flag, action="store_true", help=option.help)
    group.addoption("--run-command", metavar="TEXT", help="the command to record in place of this one")
    group.addoption("--run-every", action="store_true", help="refuse a file of which no test has a case")
    group.addoption("--run-progress", action="store_true", help="a progress bar with the case in flight and time left")


def _argparse_type(option: RunOption) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return option.parse(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None

    return parse


def flag(config: pytest.Config, key: str) -> str:
    """An option as the user typed it: of `revsnn-bench run` where that command drives pytest, else of pytest."""
    return OPTIONS[key].flag if config.getoption("run_command") else OPTIONS[key].pytest_flag


def preset(config: pytest.Config) -> Preset:
    """Which values the sweeps take."""
    if not config.getoption("benchmark"):
        return "smoke"
    chosen: Preset = config.getoption("sweep_preset")
    return chosen


def axes(config: pytest.Config) -> dict[str, tuple[Any, ...]]:
    """The values that the user gave, by axis."""
    given = {option.name: config.getoption(f"sweep_{option.name}") for option in SWEEP_OPTIONS if option.name != "node"}
    return {name: values for name, values in given.items() if values}


def check(config: pytest.Config) -> None:
    """Stops before collection where an option cannot be carried out, as far as can be told without torch."""
    is_spread = config.getoption("numprocesses", None) or config.getoption("dist", "no") != "no"
    if config.getoption("benchmark") and (is_spread or hasattr(config, "workerinput")):  # by xdist, and into one run
        raise pytest.UsageError(
            "--benchmark: cannot be used with -n or --dist. Cases that are timed beside each other disturb each other. "
            "Leave out -n; to use several machines, give each a part with --run-shard."
        )
    if config.getoption("benchmark") and config.getoption("benchmark_skip", None) is None:
        raise pytest.UsageError(
            "--benchmark: cannot be used without pytest-benchmark, which `-p no:benchmark` turns off. Its tables show "
            "the times. Leave out one of the two."
        )
    # pytest-benchmark looks for what it draws with when everything is measured, which would be lost.
    if config.getoption("benchmark_histogram", None) and find_spec("pygal") is None:
        raise pytest.UsageError(
            "--benchmark-histogram: needs pygal; it is not installed. pytest-benchmark draws with it. "
            "Install it with: pip install 'pytest-benchmark[histogram]'"
        )
    if config.getoption("run_workers") > 1:
        _check_several(config, "workers")
        _check_workers(config)
    if config.getoption("run_cluster"):
        _check_several(config, "cluster")
        _check_cluster(config)
    if config.getoption("run_preload"):
        search_working_folder()  # before the process that starts the workers takes the path over
    resume = config.getoption("run_resume")
    with _refusing(config, "run_id"):
        if resume or config.getoption("benchmark"):
            require_run_name(config.getoption("run_id"), resume, config.getoption("run_results"))
    with _refusing(config, "resume"):
        journal(config)


def check_names(config: pytest.Config) -> None:
    """The same of what is known with torch imported: modules, workloads and nodes."""
    with _refusing(config, "preload"):  # what workers will import, so that a node which it registers is known
        for name in config.getoption("run_preload") or ():
            try:
                importlib.import_module(name)
            except Exception as error:
                raise ValueError(f"cannot import {name!r} ({type(error).__name__}: {error}).") from None
    with _refusing(config, "workload"):
        for workload in config.getoption("sweep_workload") or ():
            from revsnn_bench.models.workloads import require_workload

            if is_own(workload):
                _require_module(config, workload)
            else:
                require_workload(workload)
    with _refusing(config, "node"):
        for name in config.getoption("sweep_node") or ():
            from revsnn_bench.models.own import require_method
            from revsnn_bench.models.strategies import strategy

            require_method(name) if has_own_model(config) else strategy(name)


def check_axes(config: pytest.Config, cases: list[Case]) -> None:
    """Refuses a value of an axis that was given and that no case of the sweeps has; a smoke test has one of each."""
    if not cases or not config.getoption("benchmark"):
        return
    for name, values in axes(config).items():
        used = {getattr(case, name) if name in Case.model_fields else case.options.get(name) for case in cases}
        left = [value for value in values if value not in used]
        if not left:
            continue
        bare = name == "shape" and len(values) > 1 and all(len(value) == 1 for value in values)
        meant = f"Did you mean {'x'.join(map(_shown, values))}? " if bare else ""
        raise pytest.UsageError(
            f"{flag(config, name)}: must be values that some case has; got {','.join(map(_shown, values))}, and no "
            f"case has {','.join(map(_shown, left))}. {meant}A suite takes all values of the axes that it sweeps, and "
            "the first of the others. Name a suite that sweeps it, or nodes that take it, or give one value."
        )


def check_node_options(config: pytest.Config, cases: list[Case]) -> None:
    """Refuses an option with which no node of the sweeps can be made or take its input, with what the last one says."""
    if not config.getoption("benchmark"):
        return
    shapes = {case: case.shape if case.workload == "layer" else () for case in cases if not is_own(case.workload)}
    nodes = sorted({(case.node, case.node_options, shape) for case, shape in shapes.items()}, key=repr)
    for name in [row.name for row in FIELDS if row.of_node and row.name in axes(config)]:
        refusals = [_refusal(*each) for each in nodes if name in dict(each[1])]
        if refusals and all(refusals):
            raise pytest.UsageError(f"{flag(config, name)}: no node can be made with it; {refusals[-1]}")


@cache
def _refusal(node: str, options: tuple[tuple[str, Any], ...], shape: tuple[int, ...]) -> str:
    """What a node says against its options, or its input; "" where nothing."""
    import torch

    from revsnn_bench.models.strategies import strategy

    try:
        strategy(node, **dict(options))()
        if shape:  # on the reference backend, which needs no memory to tell
            plain = {name: value for name, value in options if name != "backend"}
            strategy(node, **plain)()(torch.empty(1, 1, *shape, device="meta"))
    except (ValueError, TypeError) as error:
        return f"{node}: {error}"
    except Exception:
        pass  # such as a package that is not installed: the case has the reason
    return ""


def _require_module(config: pytest.Config, workload: str) -> None:
    """Refuses a model of the user that is not there; one that seems to be is imported by the workers alone."""
    search_working_folder()
    importlib.invalidate_caches()
    if not config.getoption("run_cluster") and not _seems_there(*workload.split(":", 1)):
        from revsnn_bench.models.own import ModelError, load_callable

        try:
            load_callable(workload)
        except ModelError as error:
            raise pytest.UsageError(str(error)) from None


def _seems_there(module: str, name: str) -> bool:
    """Whether the module, or the package that it is in, is found, and the text of a module of one file has the name."""
    package, _, rest = module.partition(".")
    spec = find_spec(package)
    if spec is None or rest == "py":
        return False
    is_text = not rest and (spec.origin or "").endswith(".py")
    return not is_text or name.partition(".")[0] in Path(spec.origin or "").read_text("utf-8", "replace")


def _shown(value: Any) -> str:
    """A value of an axis as it is typed."""
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


@contextmanager
def _refusing(config: pytest.Config, key: str) -> Iterator[None]:
    """Ends the session with a `ValueError`'s message, after the option that is at fault."""
    try:
        yield
    except ValueError as error:
        raise pytest.UsageError(f"{flag(config, key)}: {error}") from None


def skips_benchmarks(config: pytest.Config) -> bool:
    """Whether pytest-benchmark was told to skip benchmarks, to which tests that measure cases belong."""
    return bool(config.getoption("benchmark_skip", False) and not config.getoption("benchmark_only"))


def feeds_benchmark(config: pytest.Config) -> bool:
    """Whether pytest-benchmark is to have the times, which it was not told to leave alone."""
    given = config.getoption
    return bool(given("benchmark") and (given("benchmark_enable", False) or not given("benchmark_disable", False)))


def takes_several(config: pytest.Config) -> bool:
    """Whether several cases are measured at once, on a cluster or here."""
    return bool(config.getoption("run_cluster") or config.getoption("run_workers") > 1)


def _check_several(config: pytest.Config, name: str) -> None:
    """Refuses what cannot be together with several cases at a time, on a cluster or here."""
    own = flag(config, name)
    if not config.getoption("benchmark"):
        raise pytest.UsageError(f"{own}: must come with --benchmark. Without it every case runs once, small and here.")
    if config.getoption("timeout", None):  # of pytest-timeout
        raise pytest.UsageError(
            f"{own}: cannot be used with --timeout of pytest-timeout. A test waits while its case waits for others. "
            f"Limit the cases with {flag(config, 'timeout')}."
        )


def _check_workers(config: pytest.Config) -> None:
    """Several at a time only where none is timed, and not on a cluster, whose hosts have one each."""
    own = flag(config, "workers")
    if timed := [name for name in config.getoption("run_passes") if name not in UNTIMED]:
        raise pytest.UsageError(
            f"{own}: must be 1 with the passes {', '.join(timed)}; got {config.getoption('run_workers')}. Cases beside "
            f"each other slow each other. Ask for {flag(config, 'passes')} {','.join(UNTIMED)}, or leave it out."
        )
    if config.getoption("run_cluster"):
        raise pytest.UsageError(f"{own}: cannot be used with {flag(config, 'cluster')}. Leave one of the two out.")


def _check_cluster(config: pytest.Config) -> None:
    """Refuses what cannot be together with a cluster, and a cluster without Ray."""
    own = flag(config, "cluster")
    if config.getoption("run_shard"):
        raise pytest.UsageError(
            f"{own}: cannot be used with {flag(config, 'shard')}. A cluster shares all cases among its hosts. Leave "
            "one of the two out."
        )
    if find_spec("ray") is None:
        raise pytest.UsageError(f"{own}: needs Ray, which is not installed. pip install ray.")


def journal(config: pytest.Config) -> Path | None:
    """The journal of the run to go on with."""
    resumed = config.getoption("run_resume")
    return find_journal(resumed, config.getoption("run_results")) if resumed else None


def has_own_model(config: pytest.Config) -> bool:
    """Whether a model of the user is among the workloads that were asked for."""
    return any(map(is_own, config.getoption("sweep_workload") or ()))


def run_options(config: pytest.Config) -> "RunOptions":
    """How the run of this session is carried out."""
    from revsnn_bench.measuring import Settings
    from revsnn_bench.session import RunOptions

    given = config.getoption
    measured = given("benchmark")
    settings = Settings(passes=("memory", "fidelity"))
    if measured:
        settings = Settings(
            passes=given("run_passes"),
            target_s=given("run_target"),
            processes=given("run_processes"),
            keep_freed=given("run_keep_freed"),
            epochs=given("run_epochs"),
        )
    return RunOptions(
        settings=settings,
        run_id=given("run_id"),
        results_dir=given("run_results") if measured else None,
        reports_dir=given("run_reports"),
        formats=given("run_formats"),
        resume=journal(config),
        timeout_s=given("run_timeout"),
        memory_limit_bytes=given("run_memory_limit"),
        threads=given("run_threads"),
        preload=given("run_preload") or (),
        workers=given("run_workers"),
        cluster=given("run_cluster"),
        live=given("run_live"),
        command=recorded_command(_typed(config)),
    )


def _typed(config: pytest.Config) -> list[str]:
    """The command as the user typed it, word by word."""
    typed = config.getoption("run_command")
    return shlex.split(typed) if typed else ["pytest", *map(str, config.invocation_params.args)]


def resuming(config: pytest.Config, journal: str) -> str:
    """The command that goes on with an interrupted run; `run` knows from the journal what it began with."""
    words, reports = _typed(config), OPTIONS["reports"]
    if words[:2] == ["revsnn-bench", "run"]:
        folder = str(config.getoption("run_reports"))
        words = [*words[:2], *([] if folder == reports.default else [f"{reports.flag}={folder}"])]
    return shlex.join([*words, f"{flag(config, 'resume')}={journal}"])
