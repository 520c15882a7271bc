"""Files of a report: they refer to one another by name, and each column is explained."""

import re

from revsnn_bench.report import write_reports


def test_reports_lie_beside_their_figures(sweep_run, tmp_path):
    """Markdown shows each SVG file by its name; the same run writes the same bytes."""
    written = write_reports(sweep_run, tmp_path / "a", ["md", "html", "svg"])
    report = (tmp_path / "a" / "run-1.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\(([^)]+\.svg)\)", report) == [path.name for path in written if path.suffix == ".svg"]
    again = write_reports(sweep_run, tmp_path / "b", ["md", "html", "svg"])
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in again]


def test_markdown_alone_has_no_broken_pictures(sweep_run, tmp_path):
    """Without the SVG files the Markdown report does not point at them."""
    (path,) = write_reports(sweep_run, tmp_path, ["md"])
    assert "![" not in path.read_text(encoding="utf-8")


def test_data_dictionary_describes_every_column(sweep_run, tmp_path):
    """Each column of the two CSV files has a meaning, and quantities have a unit."""
    wide, long, columns = write_reports(sweep_run, tmp_path, ["csv"])
    lines = [line.split(",", 4) for line in columns.read_text(encoding="utf-8").splitlines()[1:]]
    described = {name: (unit, meaning) for name, _, unit, meaning, *_ in lines}
    headings = {*wide.read_text().splitlines()[0].split(","), *long.read_text().splitlines()[0].split(",")}
    assert set(described) == headings
    assert all(meaning for _, meaning in described.values())
    assert described["peak_bytes"][0] == "B"
