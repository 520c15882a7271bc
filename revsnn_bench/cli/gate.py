"""`revsnn-bench gate`: compares a saved run with its baseline, writes the verdict, ends with its exit code."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from revsnn_bench.cli.options import RESULTS, Results, RunPath, failure, find_run
from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.gate import (
    DEFAULT_BASELINE,
    BaselineRefused,
    MissingBaseline,
    Policy,
    Verdict,
    gate,
    load_baseline,
    update_baseline,
)
from revsnn_bench.gate.formats import RENDERERS, Format, headline, print_verdict
from revsnn_bench.records import Run
from revsnn_bench.runs import JournalError, UnknownSchema


def gate_command(
    run: RunPath = "latest",
    baseline: Annotated[Path, typer.Option(help="The run to compare with.")] = DEFAULT_BASELINE,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC=PERCENT", help="Allowed growth of a metric in percent; 0 by default."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Case id or pattern that may be added, removed, skipped or failing."),
    ] = None,
    allow_environment: Annotated[
        list[str] | None, typer.Option(metavar="FIELD", help="Field of the environment that may differ.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Judge a run that is not complete by the cases that it has.")
    ] = False,
    time_ratio: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT",
            help="Allowed growth of the time over the standard LIF's or your own model's, in percent; off by default.",
        ),
    ] = None,
    format: Annotated[Format, typer.Option(help="Format of the verdict.")] = Format.TABLE,
    output: Annotated[Path | None, typer.Option(help="File for the verdict; the terminal by default.")] = None,
    update: Annotated[
        bool, typer.Option("--update-baseline", help="Make this run the baseline, if it passes.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Make it the baseline even if it does not pass.")] = False,
    results: Results = RESULTS,
) -> None:
    """Fail if a run needs more memory or operations than its baseline, or lost a case.

    Exit codes: 0 pass, 1 regression, 2 usage, 3 no baseline, 4 not comparable, 5 some case newly failed.
    """
    policy = _policy(tolerance or [], allow or [], allow_environment or [], time_ratio, partial)
    if force and not update:
        raise failure("--force must come with --update-baseline; it changes nothing else.", ExitCode.USAGE)
    measured = find_run(run, results)
    if update and not baseline.exists():
        _update(measured, baseline, None, force)
        return
    verdict = gate(measured, _load_baseline(baseline, _words(run, results)), policy)
    _say(verdict, measured, format, output)
    if update:
        _update(measured, baseline, verdict, force)
        return
    raise typer.Exit(verdict.exit_code)


def _policy(
    tolerance: list[str], allow: list[str], fields: list[str], time_ratio: float | None, partial: bool
) -> Policy:
    try:
        return Policy(
            tolerance_percent=dict(map(_tolerance, tolerance)),
            allow=tuple(allow),
            allow_environment=tuple(fields),
            allow_partial=partial,
            time_ratio_percent=time_ratio,
        )
    except ValueError as error:
        raise failure(str(error), ExitCode.USAGE) from None


def _tolerance(text: str) -> tuple[str, float]:
    name, _, percent = text.partition("=")
    try:
        return name.strip(), float(percent.strip().removesuffix("%"))
    except ValueError:
        raise ValueError(
            f"`tolerance` must be METRIC=PERCENT; got {text!r}. It says by how much one metric may grow. "
            "Pass for example peak_bytes=2."
        ) from None


def _words(run: str, results: Path) -> str:
    """The run as an argument of this command, for the commands that messages show."""
    return shlex.join([run] if results == RESULTS else [run, "--results", str(results)])


def _load_baseline(path: Path, run: str) -> Run:
    try:
        return load_baseline(path, run)
    except UnknownSchema as error:
        raise failure(str(error), ExitCode.NOT_COMPARABLE) from None
    except (MissingBaseline, JournalError) as error:
        raise failure(str(error), ExitCode.NO_BASELINE) from None


def _say(verdict: Verdict, run: Run, format: Format, output: Path | None) -> None:
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(RENDERERS[format](verdict, run), encoding="utf-8", newline="\n")
        typer.echo(headline(verdict))
    elif format is Format.TABLE:
        print_verdict(verdict, Console())
    else:
        typer.echo(RENDERERS[format](verdict, run), nl=False)


def _update(run: Run, path: Path, verdict: Verdict | None, force: bool) -> None:
    try:
        update_baseline(run, path, verdict=verdict, force=force)
    except BaselineRefused as error:
        raise failure(str(error), error.exit_code) from None
    # Not on standard output, which may be a document.
    typer.echo(f"{path} is now the run {run.header.run_id}. Commit it.", err=True)
