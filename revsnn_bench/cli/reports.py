"""`revsnn-bench report`: reports of saved runs, without measuring anything.

`revsnn-bench compare`: two saved runs, case by case and metric by metric.
"""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from revsnn_bench.cli.options import failure, find_run, saved_runs
from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.report import write_reports
from revsnn_bench.report.terminal import print_run


def report(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Run ids, files, or `latest`.", metavar="RUN...", show_default="latest")
    ] = None,
    format: Annotated[str, typer.Option(help="Formats among md, csv, json, html, svg.")] = "md,csv,json,html,svg",
    results: Annotated[Path, typer.Option(help="Where runs are saved.")] = Path("results"),
    reports: Annotated[Path, typer.Option(help="Where reports go.")] = Path("reports"),
    open_page: Annotated[bool, typer.Option("--open", help="Open the first report when it is written.")] = False,
    gallery: Annotated[bool, typer.Option("--gallery", help="Write index.html over all saved runs, too.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the files alone, not the tables.")] = False,
) -> None:
    """Write the reports of saved runs, and show them in the terminal."""
    from revsnn_bench.claims.report import claims_section

    written: list[Path] = []
    for name in runs or ["latest"]:
        run = find_run(name, results)
        if not quiet:
            print_run(run, Console())
        try:
            formats = [part.strip() for part in format.split(",") if part.strip()]
            written += write_reports(run, reports, formats, claims_section(run))
        except ValueError as error:
            raise failure(str(error), ExitCode.USAGE) from None
    if gallery:
        written.append(_gallery(results, reports))
    for path in written:
        typer.echo(path)
    if open_page and written:
        pages = [path for path in written if path.suffix == ".html"] or written
        webbrowser.open(pages[0].resolve().as_uri())


def _gallery(results: Path, reports: Path) -> Path:
    from revsnn_bench.report.html import render_gallery

    page = reports / "index.html"
    page.write_text(render_gallery(saved_runs(results)), encoding="utf-8")
    return page


def compare(
    before: Annotated[str, typer.Argument(help="Run id, file, or `latest`.", metavar="A")],
    after: Annotated[str, typer.Argument(help="Run id, file, or `latest`.", metavar="B")],
    results: Annotated[Path, typer.Option(help="Where runs are saved.")] = Path("results"),
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page to this file.", show_default=False)] = None,
) -> None:
    """Show what changed from run A to run B: bytes and FLOPs exactly, times as ratios to the standard LIF."""
    a, b = find_run(before, results), find_run(after, results)
    if html is not None:
        from revsnn_bench.report.html import render_comparison_html

        html.write_text(render_comparison_html(a, b), encoding="utf-8")
        typer.echo(html)
        return
    from revsnn_bench.report.comparison import render_comparison

    if markdown:
        typer.echo(render_comparison(a, b))
    else:
        render_comparison(a, b, console=Console())
