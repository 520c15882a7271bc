"""`revsnn-bench run` and `merge`: the suites, driven through pytest, and the shards of a sweep as one run."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from revsnn_bench.cli.options import (
    RESULTS,
    Input,
    Model,
    Results,
    RunName,
    failure,
    find_run,
    given_model,
    is_typed,
    listed,
    refusing,
    require_name,
    typed_command,
    with_options,
)
from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.run_options import OPTIONS, RUN_OPTIONS, SWEEP_OPTIONS, find_journal
from revsnn_bench.runs import Journal, NotMergeable, load_run, merged, new_run_id, write_run
from revsnn_bench.system.process import address_limit

DEFAULT_SUITES = "timesteps,batch,depth,digits"

QUIET = (
    *("-qq", "-s", "-rN", "--tb=no", "--disable-warnings", "--benchmark-quiet", "--run-progress"),
    *("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "--benchmark-storage=file:///dev/null"),
)
"""pytest as an engine: no letters, no tables but those of the run, and no folders of its own. Hypothesis, where it is
installed, would be imported at the end for nothing."""


_OF_THE_PLACE = ("run_id", "resume", "results", "reports")
_FREE = ("timeout", "memory_limit", "threads", "format", "live", "preload", "workers", "cluster")
"""Options that may be given anew with --resume, since no planned case depends on them."""


@with_options(*SWEEP_OPTIONS, *RUN_OPTIONS)
def run(
    context: typer.Context,
    suite: Annotated[
        str, typer.Option(metavar="NAMES", help="Suites to run, separated by commas; `all` for every one.")
    ] = DEFAULT_SUITES,
    full: Annotated[
        bool, typer.Option("--full/--quick", help="Values for hours, or for minutes.", rich_help_panel="Sweep")
    ] = False,
    model: Model = "",
    input: Input = "",
    **given: Any,
) -> None:
    """Measure nodes side by side: memory, FLOPs, time, gradient error; save the run and write its reports.

    A suite sweeps its own axis over the values given; of the axes that it keeps fixed it takes the first, and a value
    that no suite takes is refused. Ctrl-C ends cleanly with what is done; --resume goes on, with the options that the
    run began with. Exit code 5 where some case failed, or every one was skipped.
    """
    if given["resume"]:
        given |= _begun(context)
        suite, full, model, input = (given.pop(name) for name in ("suite", "full", "model", "input"))
    if fields := given_model(context, model, input):
        suite, given = "model", given | fields | {"shape": "x".join(map(str, fields["shape"]))}
    every = ["--run-every"] if is_typed(context, "suite") and "all" not in listed(suite) else []
    run_suites(suite, ["--benchmark", f"--sweep-preset={'full' if full else 'quick'}", *every], given)


def _begun(context: typer.Context) -> dict[str, Any]:
    """The options of a run that is resumed, by name: those it began with, and those given now that may differ."""
    now = context.params
    require_name(now["run_id"], Path(now["results"]), now["resume"])
    with refusing(ValueError, flag="--resume: "):
        journal = find_journal(now["resume"], Path(now["results"]))
        words = load_run(journal).header.command
    if words[:2] != ("revsnn-bench", "run"):
        raise failure(
            f"--resume: {journal} was not begun by `revsnn-bench run`, but by `{shlex.join(words) or 'a program'}`. "
            "Go on with that, and name the run as its `resume`.",
            ExitCode.USAGE,
        )
    begun = context.command.make_context("run", [*words[2:]], parent=context.parent).params
    for name, value in now.items():
        if name in _OF_THE_PLACE or not is_typed(context, name):
            continue
        if name not in _FREE and value != begun[name]:
            raise failure(
                f"--{name.replace('_', '-')}: the run began with {begun[name] or 'none'}; got {value}. A run that is "
                f"resumed measures the cases that it planned. Leave the option out, or start a new run. It began as "
                f"`{shlex.join(words)}`.",
                ExitCode.USAGE,
            )
        begun[name] = value
    return begun | {name: now[name] for name in _OF_THE_PLACE}


def run_suites(names: str, arguments: Sequence[str], given: Mapping[str, Any]) -> NoReturn:
    """Runs suites by pytest, with these arguments and options by key, and ends the command as they ended."""
    files = _suite_files(names)
    for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD"):
        os.environ.pop(name, None)  # meant for the user's tests: `-x`, `-k` or `-n auto` would drop or refuse cases
    import pytest

    options = [
        OPTIONS[key].pytest_flag if value is True else f"{OPTIONS[key].pytest_flag}={value}"
        for key, value in given.items()
        if value
    ]
    command = f"--run-command={shlex.join(['revsnn-bench', *sys.argv[1:]])}"
    codes: dict[int, ExitCode] = {
        pytest.ExitCode.OK: ExitCode.PASS,
        pytest.ExitCode.TESTS_FAILED: ExitCode.CASE_FAILED,
        pytest.ExitCode.INTERRUPTED: ExitCode.INTERRUPTED,
        pytest.ExitCode.INTERNAL_ERROR: ExitCode.BROKEN,
        ExitCode.NO_FILE: ExitCode.NO_FILE,
    }
    status = pytest.main([*QUIET, *arguments, *options, command, *files])
    if status == pytest.ExitCode.INTERNAL_ERROR and (limit := address_limit()):
        typer.echo(limit, err=True)
    raise typer.Exit(codes.get(status, ExitCode.USAGE))


def _suite_files(names: str) -> list[str]:
    """The files of suites, by their names separated by commas; in the wheel they are inside of the package."""
    package = Path(__file__).parent.parent
    folder = package / "suites" if (package / "suites").is_dir() else package.parent / "suites"
    known = {path.stem.removeprefix("bench_"): str(path) for path in sorted(folder.glob("bench_*.py"))}
    asked = listed(names)
    for name in asked or [names]:  # with no file pytest would run the tests of the folder that it is in
        if name not in (*known, "all"):
            raise failure(f"no suite {name!r}. Suites are: {', '.join(known)}, or `all`.", ExitCode.USAGE)
    return [known[name] for name in (known if "all" in asked else asked)]


def merge(
    parts: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run ids or files, finished or not.")],
    run_id: RunName = "",
    partial: Annotated[bool, typer.Option("--partial", help="Join them though planned cases are missing.")] = False,
    results: Results = RESULTS,
) -> None:
    """Join the runs of shards, made by `run --shard I/N`, into one run with the bytes and FLOPs of a run in one piece.

    Exit code 4 where the parts are of different environments, code or settings, or planned cases are missing; nothing
    is written then.
    """
    runs = [find_run(part, results) for part in parts]
    with refusing(NotMergeable, code=ExitCode.NOT_COMPARABLE):
        run = merged(runs, run_id or new_run_id(), typed_command())
    if not (run.complete or partial):
        example = f"; missing is, among others, {run.missing[0]}" if run.missing else ""
        raise failure(
            f"only {run.extent} are there{example}. Name the other parts, go on with those that were interrupted, or "
            "join what there is with --partial.",
            ExitCode.NOT_COMPARABLE,
        )
    with refusing(ValueError, flag="--run-id: "), Journal.create(results, run.header) as journal:  # takes the name
        saved = journal.path.with_suffix(".json")
        write_run(run, saved)
        journal.discard()
    typer.echo(saved)
