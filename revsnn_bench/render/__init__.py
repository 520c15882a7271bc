"""Reports from records: Markdown, CSV, JSON and terminal tables. Nothing here measures, or imports torch."""

from collections.abc import Callable, Sequence
from pathlib import Path

from revsnn_bench.records import Run
from revsnn_bench.render import markdown, tables

_FILES: dict[str, tuple[tuple[str, Callable[[Run], str]], ...]] = {
    "md": ((".md", markdown.render),),
    "csv": ((".csv", tables.wide_csv), ("-long.csv", tables.long_csv)),
    "json": ((".json", tables.wide_json),),
}


def write_reports(run: Run, reports_dir: Path, formats: Sequence[str] = ("md", "csv", "json")) -> list[Path]:
    """Writes the reports of a run, replacing older ones of the same run.

    Args:
        run: header and records.
        reports_dir: folder to write to; made if absent.
        formats: any of `md`, `csv` (wide and long) and `json`.
    Returns:
        The files written; their content is the same, byte for byte, whenever the run is the same.
    Raises:
        ValueError: an unknown format, or a run id that is not a plain file name.
    """
    unknown = [name for name in formats if name not in _FILES]
    if unknown:
        raise ValueError(
            f"`formats` must name formats among {', '.join(_FILES)}; got {', '.join(unknown)}. Nothing was "
            "written. Leave the others out."
        )
    run_id = run.header.run_id
    if run_id in ("", "..") or Path(run_id).name != run_id:
        raise ValueError(
            f"`run_id` must be a plain file name; got {run_id!r}. The reports would land outside of "
            "`reports_dir`. Rename the run."
        )
    reports_dir.mkdir(parents=True, exist_ok=True)
    written = []
    for name in formats:
        for suffix, render in _FILES[name]:
            path = reports_dir / f"{run_id}{suffix}"
            path.write_text(render(run), encoding="utf-8", newline="\n")
            written.append(path)
    return written
