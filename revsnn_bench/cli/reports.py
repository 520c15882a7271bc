"""`revsnn-bench report`, `compare`, `gate`: what saved runs say, alone and beside others; nothing is measured."""

import shlex
import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from revsnn_bench.case import one_of
from revsnn_bench.cli.options import (
    FORMATS,
    REPORTS,
    RESULTS,
    Formats,
    Reports,
    Results,
    RunPath,
    checked,
    failure,
    find_run,
    listed,
    refusing,
    run_argument,
    saved_runs,
)
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
from revsnn_bench.gate.formats import RENDERERS, headline, print_verdict
from revsnn_bench.records import Run
from revsnn_bench.report import write_reports
from revsnn_bench.report.comparison import render_comparison, render_comparison_html
from revsnn_bench.report.terminal import print_run
from revsnn_bench.runs import JournalError, UnknownSchema, write_whole


def report(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Run ids, files, or `latest`.", metavar="RUN...", show_default="latest")
    ] = None,
    format: Formats = FORMATS,
    results: Results = RESULTS,
    reports: Reports = REPORTS,
    open_page: Annotated[bool, typer.Option("--open", help="Open the first report when it is written.")] = False,
    gallery: Annotated[
        bool, typer.Option("--gallery", help="Write index.html over all saved runs, with the history of each metric.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the files alone, not the tables.")] = False,
) -> None:
    """Write the reports of saved runs, and show them in the terminal."""
    from revsnn_bench.claims import claims_section

    written: list[Path] = []
    for name in runs or ["latest"]:
        run = find_run(name, results)
        if not quiet:
            print_run(run, Console())
        with refusing(ValueError):
            written += write_reports(run, reports, listed(format), claims_section(run))
    if gallery:
        written.append(_write_gallery(results, reports))
    for path in written:
        typer.echo(path)
    if open_page and written:
        pages = [path for path in written if path.suffix == ".html"] or written
        webbrowser.open(pages[0].resolve().as_uri())


def _write_gallery(results: Path, reports: Path) -> Path:
    """Writes the page over all saved runs and baselines; warns of each file that is none."""
    from revsnn_bench.report.html.gallery import render_gallery

    known, unread = saved_runs(results)
    baselines, damaged = saved_runs(results / "baselines")
    unread += damaged
    for sentence in unread:
        typer.secho(f"Warning: left out: {sentence}", err=True, fg=typer.colors.YELLOW)
    reports.mkdir(parents=True, exist_ok=True)
    page = reports / "index.html"
    write_whole(render_gallery(known, unread, baselines), page)
    return page


def compare(
    before: Annotated[str, run_argument("BEFORE")],
    after: Annotated[str, run_argument("AFTER")],
    results: Results = RESULTS,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page to this file.", show_default=False)
    ] = None,
) -> None:
    """Show what changed from run BEFORE to run AFTER: bytes and FLOPs exactly, times over lif's or your own model's."""
    a, b = find_run(before, results), find_run(after, results)
    if html is not None:
        write_whole(render_comparison_html(a, b), html)
        typer.echo(html)
    elif markdown:
        typer.echo(render_comparison(a, b))
    else:
        render_comparison(a, b, console=Console())


def gate_command(
    run: RunPath = "latest",
    baseline: Annotated[Path, typer.Option(metavar="FILE", help="The run to compare with.")] = DEFAULT_BASELINE,
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
    format: Annotated[
        str, checked(one_of([*RENDERERS]), metavar="FORMAT", help=f"Format of the verdict: {', '.join(RENDERERS)}.")
    ] = "table",
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File for the verdict; the terminal by default.")
    ] = None,
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
    measured, verdict = find_run(run, results), None
    if baseline.exists() or not update:
        accepted = _load_baseline(baseline, run, results)
        verdict = gate(measured, accepted, policy)
        if measured.header == accepted.header:
            typer.echo(f"{measured.header.run_id} is the baseline itself: nothing was measured since.", err=True)
        _say(verdict, measured, format, output)
        if not update:
            raise typer.Exit(verdict.exit_code)
    try:
        update_baseline(measured, baseline, verdict=verdict, force=force)
    except BaselineRefused as error:
        raise failure(str(error), error.exit_code) from None
    # Not on standard output, which may be a document.
    crept = f", with {verdict.tolerated} values that grew within the tolerance" if verdict and verdict.tolerated else ""
    typer.echo(f"{baseline} is now the run {measured.header.run_id}{crept}. Commit it.", err=True)


def _policy(
    tolerance: list[str], allow: list[str], fields: list[str], time_ratio: float | None, partial: bool
) -> Policy:
    with refusing(ValueError):
        return Policy(
            tolerance_percent=dict(map(_tolerance, tolerance)),
            allow=tuple(allow),
            allow_environment=tuple(fields),
            allow_partial=partial,
            time_ratio_percent=time_ratio,
        )


def _tolerance(text: str) -> tuple[str, float]:
    name, _, percent = text.partition("=")
    try:
        return name.strip(), float(percent.strip().removesuffix("%"))
    except ValueError:
        raise ValueError(
            f"`tolerance` must be METRIC=PERCENT; got {text!r}. It says by how much one metric may grow. "
            "Pass for example peak_bytes=2."
        ) from None


def _load_baseline(path: Path, run: str, results: Path) -> Run:
    """The baseline of a run; the commands that messages show name the run as it was named here."""
    words = shlex.join([run] if results == RESULTS else [run, "--results", str(results)])
    no_baseline = refusing(MissingBaseline, JournalError, code=ExitCode.NO_BASELINE)
    with no_baseline, refusing(UnknownSchema, code=ExitCode.NOT_COMPARABLE):
        return load_baseline(path, words)


def _say(verdict: Verdict, run: Run, format: str, output: Path | None) -> None:
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(RENDERERS[format](verdict, run), output)
        typer.echo(headline(verdict))
    elif format == "table":
        print_verdict(verdict, Console())
    else:
        typer.echo(RENDERERS[format](verdict, run), nl=False)
