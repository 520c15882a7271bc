"""Options of the pytest plugin, and what they mean: the preset, the axes, and how a run is carried out."""

import re
import shlex
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from revsnn_bench.case import Preset, parse_size

if TYPE_CHECKING:
    from revsnn_bench.runner.session import RunOptions


def _each(parse: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def values(text: str) -> tuple[Any, ...]:
        try:
            return tuple(parse(part.strip()) for part in text.split(",") if part.strip())
        except ValueError as error:
            raise ArgumentTypeError(f"expected values separated by commas, got {text!r}: {error}") from None

    return values


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split("x"))


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


FORMATS = ("md", "csv", "json", "html", "svg")

AXES: dict[str, tuple[Callable[[str], Any], str]] = {
    "timesteps": (int, "numbers of time steps T, such as 4,8,16"),
    "batch": (int, "batch sizes, such as 1,8"),
    "depth": (int, "numbers of blocks, such as 1,4"),
    "shape": (_shape, "shapes of one sample at one step, such as 4096,65536 or 16x8x8"),
    "dtype": (str, "float64, float32, float16, bfloat16"),
    "device": (str, "cpu, cuda"),
    "groups": (int, "groups of the coupled nodes, such as 2,4,8"),
    "alpha": (float, "reset strengths of the coupled nodes"),
    "tau": (float, "membrane time constants, in steps"),
    "backend": (str, "backends, among torch, fused, auto, of the nodes that have them"),
    "seed": (int, "seeds of parameters and input"),
}


def add(parser: pytest.Parser) -> None:
    """Adds every option."""
    group = parser.getgroup("revsnn-bench", "memory, FLOPs, time and gradient error of spiking nodes")
    group.addoption(
        "--benchmark", action="store_true", help="measure in full, save and report; else every case runs once, small"
    )
    group.addoption("--sweep-preset", choices=("quick", "full"), default="quick", help="minutes, or hours")
    group.addoption("--sweep-node", type=_each(str), metavar="NAMES", help="nodes to compare, by short name")
    for name, (parse, text) in AXES.items():
        group.addoption(f"--sweep-{name}", type=_each(parse), metavar="VALUES", help=text)
    group.addoption("--run-id", metavar="NAME", help="name of the run; made of date and time by default")
    group.addoption("--run-results", type=Path, default=Path("results"), metavar="DIR", help="where runs are saved")
    group.addoption("--run-reports", type=Path, default=Path("reports"), metavar="DIR", help="where reports go")
    group.addoption("--run-formats", type=_each(str), default=FORMATS, metavar="FORMATS", help=",".join(FORMATS))
    group.addoption("--run-resume", type=Path, metavar="JOURNAL", help="go on with an interrupted run (.jsonl)")
    group.addoption("--run-timeout", type=float, default=300.0, metavar="SECONDS", help="time limit per case")
    group.addoption("--run-memory-limit", type=_size, metavar="SIZE", help='memory limit per case, such as "2 GiB"')
    group.addoption("--run-threads", type=int, metavar="N", help="threads of each worker")
    group.addoption("--run-passes", type=_each(str), metavar="PASSES", help="compile, memory, flops, fidelity, time")
    group.addoption("--run-keep-freed", action="store_true", help="time with no page new: freed memory is kept")
    group.addoption("--run-target", type=float, default=0.1, metavar="SECONDS", help="timed seconds per case")
    group.addoption("--run-epochs", type=int, default=3, metavar="N", help="epochs of training for accuracy")
    group.addoption(
        "--run-preload", type=_each(str), default=(), metavar="MODULES", help="modules workers import first"
    )
    group.addoption("--run-live", action="store_true", help="refresh the page in the reports folder as cases finish")
    group.addoption("--run-command", metavar="TEXT", help="the command to record in place of this one")
    group.addoption("--run-progress", action="store_true", help="a progress bar with the case in flight and time left")


def preset(config: pytest.Config) -> Preset:
    """Which values the sweeps take."""
    if not config.getoption("benchmark"):
        return "smoke"
    chosen: Preset = config.getoption("sweep_preset")
    return chosen


def axes(config: pytest.Config) -> dict[str, tuple[Any, ...]]:
    """The values that the user gave, by axis."""
    given = {name: config.getoption(f"sweep_{name}") for name in AXES}
    return {name: values for name, values in given.items() if values}


def check_nodes(config: pytest.Config) -> None:
    """Stops before collection where the user asked for a node that is not registered; says which names are near."""
    asked: tuple[str, ...] = config.getoption("sweep_node") or ()
    if not asked:
        return
    from revsnn_bench.models.strategies import strategy

    for name in asked:
        try:
            strategy(name)
        except ValueError as error:
            raise pytest.UsageError(f"--sweep-node: {error}") from None


def check_run_id(config: pytest.Config) -> None:
    """Stops before collection where a run cannot have the name that the user gave it."""
    run_id = config.getoption("run_id")
    if not run_id or not config.getoption("benchmark") or config.getoption("run_resume"):
        return
    from revsnn_bench.runs import RunInUse, require_new

    try:
        require_new(run_id, config.getoption("run_results"))
    except (ValueError, RunInUse) as error:
        raise pytest.UsageError(f"--run-id: {error}") from None


def _command(config: pytest.Config) -> tuple[str, ...]:
    """What the user typed, for the record: files by their names, because a record must not tell where things lie."""
    typed = config.getoption("run_command")
    words = shlex.split(typed) if typed else ["pytest", *map(str, config.invocation_params.args)]
    return tuple(re.sub(r"(?:(?<=^)|(?<==))/\S*/", "", word) for word in words)


def run_options(config: pytest.Config) -> "RunOptions":
    """How the run of this session is carried out."""
    from revsnn_bench.measuring import PASSES, Settings
    from revsnn_bench.runner.session import RunOptions

    measured = config.getoption("benchmark")
    passes = tuple(config.getoption("run_passes") or PASSES)
    unknown = set(passes) - set(PASSES)
    if unknown:
        raise pytest.UsageError(f"--run-passes takes {', '.join(PASSES)}; got {', '.join(sorted(unknown))}")
    full = Settings(
        passes=passes,
        target_s=config.getoption("run_target"),
        keep_freed=config.getoption("run_keep_freed"),
        epochs=config.getoption("run_epochs"),
    )
    smoke = Settings(passes=("memory", "fidelity"))
    return RunOptions(
        settings=full if measured else smoke,
        run_id=config.getoption("run_id"),
        results_dir=config.getoption("run_results") if measured else None,
        reports_dir=config.getoption("run_reports"),
        formats=config.getoption("run_formats"),
        resume=config.getoption("run_resume"),
        timeout_s=config.getoption("run_timeout"),
        memory_limit_bytes=config.getoption("run_memory_limit"),
        threads=config.getoption("run_threads"),
        preload=config.getoption("run_preload"),
        live=config.getoption("run_live"),
        command=_command(config),
    )
