"""Reports from records: pages, figures, Markdown, tables. Nothing here measures, or imports torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from revsnn_bench.records import Run
from revsnn_bench.report import markdown, tables

if TYPE_CHECKING:
    from revsnn_bench.report.figures import Figure

_FORMATS = ("md", "csv", "json", "html", "svg")


def write_reports(run: Run, reports_dir: Path, formats: Sequence[str] = ("md", "csv", "json")) -> list[Path]:
    """Writes the reports of a run, replacing older ones of the same run.

    Args:
        run: header and records.
        reports_dir: folder to write to; made if absent.
        formats: any of `md`, `csv` (wide, long and the data dictionary), `json`, `html` (one self-contained
            page) and `svg` (one file per figure, which the Markdown report then shows).
    Returns:
        The files written; their content is the same, byte for byte, whenever the run is the same.
    Raises:
        ValueError: an unknown format, or a run id that is not a plain file name.
    """
    _require_known(formats)
    _require_plain(run.header.run_id)
    reports_dir.mkdir(parents=True, exist_ok=True)
    figures = _figures(run) if {"html", "svg"} & set(formats) else []
    written = []
    for name in formats:
        if name == "svg":
            from revsnn_bench.report.figures import write_figures

            written += write_figures(run, reports_dir, figures)
            continue
        for suffix, text in _texts(run, name, figures, pictures="svg" in formats):
            path = reports_dir / f"{run.header.run_id}{suffix}"
            path.write_text(text, encoding="utf-8", newline="\n")
            written.append(path)
    return written


def _texts(run: Run, name: str, figures: "list[Figure]", *, pictures: bool) -> list[tuple[str, str]]:
    """The files of one format, as suffix and content."""
    if name == "html":
        from revsnn_bench.report.html import render_html

        return [(".html", render_html(run, figures))]
    if name == "md":
        from revsnn_bench.report.figures import file_name

        shown = [markdown.Picture(file_name(run, f), f.title, f.caption) for f in figures if pictures]
        return [(".md", markdown.render(run, shown))]
    if name == "csv":
        return [
            (".csv", tables.wide_csv(run)),
            ("-long.csv", tables.long_csv(run)),
            ("-columns.csv", tables.columns_csv()),
        ]
    return [("-wide.json", tables.wide_json(run))]


def _figures(run: Run) -> "list[Figure]":
    """Draws the figures; matplotlib is imported only here, so that text reports start fast."""
    from revsnn_bench.report.figures import draw_figures

    return draw_figures(run)


def _require_known(formats: Sequence[str]) -> None:
    unknown = [name for name in formats if name not in _FORMATS]
    if unknown:
        raise ValueError(
            f"`formats` must name formats among {', '.join(_FORMATS)}; got {', '.join(unknown)}. Nothing was "
            "written. Leave the others out."
        )


def _require_plain(run_id: str) -> None:
    if run_id in ("", "..") or Path(run_id).name != run_id:
        raise ValueError(
            f"`run_id` must be a plain file name; got {run_id!r}. The reports would land outside of "
            "`reports_dir`. Rename the run."
        )
