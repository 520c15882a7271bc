"""`revsnn-bench compare`: two saved runs, case by case and metric by metric."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from revsnn_bench.cli.find import find_run


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
        from revsnn_bench.render.html import render_comparison_html

        html.write_text(render_comparison_html(a, b), encoding="utf-8")
        typer.echo(html)
        return
    from revsnn_bench.render.compare import render_comparison

    if markdown:
        typer.echo(render_comparison(a, b))
    else:
        render_comparison(a, b, console=Console())
