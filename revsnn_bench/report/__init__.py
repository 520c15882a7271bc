"""Reports from records: pages, figures, Markdown, tables. Nothing here measures, or imports torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from revsnn_bench.records import Run
from revsnn_bench.report import markdown, tables
from revsnn_bench.report.canvas import Figure
from revsnn_bench.run_options import FORMATS
from revsnn_bench.runs import write_whole

if TYPE_CHECKING:
    from markupsafe import Markup


def write_reports(
    run: Run, reports_dir: Path, formats: Sequence[str] = ("md", "csv", "json"), claims: "Markup | None" = None
) -> list[Path]:
    """Writes the reports of a run, replacing older ones of the same run.

    Args:
        reports_dir: folder to write to; made if absent.
        formats: any of `md`, `csv` (wide, long and the data dictionary), `json`, `html` (one self-contained
            page, and one more of a study) and `svg` (one file per figure, which the Markdown report then shows).
        claims: the section of the paper's claims for the page, see `revsnn_bench.claims`.
    Returns:
        The files written; their content is the same, byte for byte, whenever the run is the same. None is one of a run
        that has `-long` or the like after this one's name.
    Raises:
        ValueError: an unknown format, or a run id that is not a plain file name.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(
            f"`formats` must name formats among {', '.join(FORMATS)}; got {', '.join(unknown)}. Nothing was "
            "written. Leave the others out."
        )
    figures: list[Figure] = []
    if {"html", "svg"} & set(formats):
        from revsnn_bench.report.figures import draw_figures

        figures = draw_figures(run)
    texts: dict[str, str] = {}
    for name in formats:
        if name == "md":
            texts[".md"] = markdown.render(run, figures if "svg" in formats else ())
        elif name == "csv":
            texts |= {".csv": tables.wide_csv(run), ".long.csv": tables.long_csv(run)}
            texts[".columns.csv"] = tables.columns_csv()
        elif name == "json":
            texts[".wide.json"] = tables.wide_json(run)
        elif name == "svg":
            texts |= {figure.suffix: figure.standalone() for figure in figures}
        else:
            from revsnn_bench.report.html.report import render_html
            from revsnn_bench.report.html.study import study_page
            from revsnn_bench.report.study import is_study

            texts[".html"] = render_html(run, figures, claims=claims)
            if is_study(run):
                texts[".study.html"] = study_page(run)
    return write_texts(run, reports_dir, texts)


def write_texts(run: Run, folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Writes texts about a run, each by the end of its file's name; returns the files.

    Raises:
        ValueError: the run id is not a plain file name.
    """
    run_id = run.header.run_id
    if run_id in ("", "..") or Path(run_id).name != run_id:
        raise ValueError(
            f"`run_id` must be a plain file name; got {run_id!r}. The reports would land outside of "
            "`reports_dir`. Rename the run."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in texts.items():
        write_whole(text, folder / f"{run_id}{suffix}")
    return [folder / f"{run_id}{suffix}" for suffix in texts]
