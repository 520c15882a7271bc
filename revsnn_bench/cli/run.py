"""`revsnn-bench run`: the suites, driven through pytest, with a progress bar and reports at the end."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from revsnn_bench.cli.options import failure
from revsnn_bench.exit_codes import ExitCode

if TYPE_CHECKING:
    import pytest

DEFAULT_SUITES = "timesteps,batch,depth,digits"

_SWEEP = "Sweep"
_RUN = "Run"


def suites_dir() -> Path:
    """Where the suites are: in the wheel inside of the package, in a checkout beside it."""
    package = Path(__file__).parent.parent
    packaged = package / "suites"
    return packaged if packaged.is_dir() else package.parent / "suites"


def suite_names() -> list[str]:
    """Names of the suites, as `--suite` takes them."""
    return sorted(path.stem.removeprefix("bench_") for path in suites_dir().glob("bench_*.py"))


def _values(text: str, panel: str = _SWEEP) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(help=text, rich_help_panel=panel, show_default=False)
    return option


def run(
    suite: Annotated[
        str, typer.Option(help="Suites to run, separated by commas; `all` for every one.")
    ] = DEFAULT_SUITES,
    full: Annotated[
        bool, typer.Option("--full/--quick", help="Values for hours, or for minutes.", rich_help_panel=_SWEEP)
    ] = False,
    node: Annotated[str, _values("Nodes, such as lif,revlif; every registered node by default.")] = "",
    timesteps: Annotated[str, _values("Numbers of time steps T, such as 4,8,16.")] = "",
    batch: Annotated[str, _values("Batch sizes, such as 1,8.")] = "",
    depth: Annotated[str, _values("Numbers of blocks, such as 1,4.")] = "",
    shape: Annotated[str, _values("Shapes of one sample at one step, such as 4096 or 16x8x8.")] = "",
    dtype: Annotated[str, _values("Types, among float64, float32, float16, bfloat16.")] = "",
    device: Annotated[str, _values("Devices, among cpu, cuda.")] = "",
    groups: Annotated[str, _values("Groups of the coupled nodes, such as 2,4,8.")] = "",
    alpha: Annotated[str, _values("Reset strengths of the coupled nodes, in (0, 1).")] = "",
    tau: Annotated[str, _values("Membrane time constants, in steps.")] = "",
    backend: Annotated[str, _values("Backends, among torch, fused, auto, of the nodes that have them.")] = "",
    seed: Annotated[str, _values("Seeds of parameters and input.")] = "",
    run_id: Annotated[str, _values("Name of the run; made of date and time by default.", _RUN)] = "",
    results: Annotated[Path, typer.Option(help="Where runs are saved.", rich_help_panel=_RUN)] = Path("results"),
    reports: Annotated[Path, typer.Option(help="Where reports go.", rich_help_panel=_RUN)] = Path("reports"),
    format: Annotated[str, typer.Option(help="Formats of the reports.", rich_help_panel=_RUN)] = "md,csv,json,html,svg",
    live: Annotated[
        bool, typer.Option("--live", help="Refresh the page while cases finish.", rich_help_panel=_RUN)
    ] = False,
    resume: Annotated[str, _values("Go on with an interrupted run: its id, or its .jsonl file.", _RUN)] = "",
    timeout: Annotated[float, typer.Option(help="Time limit per case, in seconds.", rich_help_panel=_RUN)] = 300.0,
    memory_limit: Annotated[str, _values('Memory limit per case, such as "2 GiB".', _RUN)] = "",
    threads: Annotated[str, _values("Threads of each worker; torch's default if not given.", _RUN)] = "",
    passes: Annotated[str, _values("Passes among compile, memory, flops, fidelity, time; all by default.", _RUN)] = "",
    target: Annotated[float, typer.Option(help="Timed seconds to aim for per case.", rich_help_panel=_RUN)] = 0.1,
    keep_freed: Annotated[
        bool,
        typer.Option("--keep-freed", help="Time with freed memory kept, so that no page is new.", rich_help_panel=_RUN),
    ] = False,
    epochs: Annotated[int, typer.Option(help="Epochs of training for accuracy.", rich_help_panel=_RUN)] = 3,
    preload: Annotated[
        str, _values("Modules that workers import first, such as one that registers a node.", _RUN)
    ] = "",
) -> None:
    """Measure nodes side by side: memory, FLOPs, time, gradient error; save the run and write its reports.

    A suite sweeps its own axis over the values given; of the axes that it keeps fixed it takes the first. Ctrl-C ends
    cleanly with what is done; --resume goes on. Exit code 5 where some case failed.
    """
    swept = {
        "node": node, "timesteps": timesteps, "batch": batch, "depth": depth, "shape": shape, "dtype": dtype,
        "device": device, "groups": groups, "alpha": alpha, "tau": tau, "backend": backend, "seed": seed,
    }  # fmt: skip
    chosen = {
        "id": run_id, "results": results, "reports": reports, "formats": format, "timeout": timeout,
        "resume": _journal(resume, results), "memory-limit": memory_limit, "threads": threads, "target": target,
        "passes": passes, "epochs": epochs, "preload": preload,
    }  # fmt: skip
    arguments = ["--benchmark", f"--sweep-preset={'full' if full else 'quick'}"]
    arguments += [f"--sweep-{name}={value}" for name, value in swept.items() if value]
    arguments += [f"--run-{name}={value}" for name, value in chosen.items() if value not in ("", None)]
    arguments += ["--run-live"] if live else []
    arguments += ["--run-keep-freed"] if keep_freed else []
    arguments.append(f"--run-command={shlex.join(['revsnn-bench', *sys.argv[1:]])}")
    import pytest

    _exit(pytest.main([*_quiet(), *arguments, *_suite_files(suite)]))


def _quiet() -> list[str]:
    """pytest as an engine: no letters, no tables but ours, nothing read from or written to the current folder."""
    return ["-qq", "-s", "-rN", "--tb=no", "--disable-warnings", "--benchmark-quiet", "--run-progress"]


def _suite_files(names: str) -> list[str]:
    known = suite_names()
    asked = known if names == "all" else [name.strip() for name in names.split(",") if name.strip()]
    for name in asked:
        if name not in known:
            raise failure(f"no suite {name!r}. Suites are: {', '.join(known)}, or `all`.", ExitCode.USAGE)
    return [str(suites_dir() / f"bench_{name}.py") for name in asked]


def _journal(resume: str, results: Path) -> Path | None:
    if not resume:
        return None
    path = Path(resume) if resume.endswith(".jsonl") else results / f"{resume}.jsonl"
    if not path.is_file():
        finished = path.with_suffix(".json").is_file()
        why = "that run is finished; there is nothing left to do" if finished else "there is no such journal"
        raise failure(f"cannot resume {path}: {why}.", ExitCode.USAGE)
    return path


def _exit(status: "int | pytest.ExitCode") -> None:
    import pytest

    codes = {
        pytest.ExitCode.OK: ExitCode.PASS,
        pytest.ExitCode.TESTS_FAILED: ExitCode.CASE_FAILED,
        pytest.ExitCode.INTERRUPTED: ExitCode.INTERRUPTED,
        pytest.ExitCode.NO_TESTS_COLLECTED: ExitCode.USAGE,
    }
    raise typer.Exit(codes.get(pytest.ExitCode(status), ExitCode.USAGE))
