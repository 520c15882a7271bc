"""`revsnn-bench report` and `compare`: reports of saved runs, and what changed between two; nothing is measured."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from revsnn_bench.cli.options import (
    FORMATS,
    REPORTS,
    RESULTS,
    Formats,
    Reports,
    Results,
    RunPath,
    failure,
    find_run,
    listed,
    saved_runs,
)
from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.report import write_reports
from revsnn_bench.report.comparison import render_comparison, render_comparison_html
from revsnn_bench.report.terminal import print_run


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
        try:
            written += write_reports(run, reports, listed(format), claims_section(run))
        except ValueError as error:
            raise failure(str(error), ExitCode.USAGE) from None
    if gallery:
        from revsnn_bench.report.html.gallery import render_gallery

        known, unread = saved_runs(results)
        baselines, damaged = saved_runs(results / "baselines")
        unread += damaged
        for sentence in unread:
            typer.secho(f"Warning: left out: {sentence}", err=True, fg=typer.colors.YELLOW)
        reports.mkdir(parents=True, exist_ok=True)
        written.append(reports / "index.html")
        written[-1].write_text(render_gallery(known, unread, baselines), encoding="utf-8")
    for path in written:
        typer.echo(path)
    if open_page and written:
        pages = [path for path in written if path.suffix == ".html"] or written
        webbrowser.open(pages[0].resolve().as_uri())


def compare(
    before: RunPath,
    after: RunPath,
    results: Results = RESULTS,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page to this file.", show_default=False)] = None,
) -> None:
    """Show what changed from run BEFORE to run AFTER: bytes and FLOPs exactly, times over lif's or your own model's."""
    a, b = find_run(before, results), find_run(after, results)
    if html is not None:
        html.write_text(render_comparison_html(a, b), encoding="utf-8")
        typer.echo(html)
    elif markdown:
        typer.echo(render_comparison(a, b))
    else:
        render_comparison(a, b, console=Console())
