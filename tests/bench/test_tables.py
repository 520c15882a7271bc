"""Tables and files: exact values, ratios at the same point, no case lost, each column explained."""

import csv
import io
import json
import re

import pytest

from revsnn_bench.metrics import BY_NAME, METRICS, measured
from revsnn_bench.records import TimeRecord
from revsnn_bench.report import tables, write_reports
from revsnn_bench.report.points import ratio_of_times


def test_metric_names_end_in_their_unit():
    """A name is unique and tells its unit, so a column of a file needs no legend."""
    endings = {"B": "_bytes", "FLOP": "_flops", "s": "_s"}
    assert len(BY_NAME) == len(METRICS)
    for metric in METRICS:
        assert metric.name.endswith(endings.get(metric.unit, "")), metric.name


def test_nothing_is_measured_of_a_case_that_ran_out_of_memory(make_record):
    """A failed case has no metric at all: not zero, not NaN."""
    assert measured(make_record(node="lif", status="oom")) == {}


def test_wide_has_one_row_per_case_with_exact_bytes(sweep_run):
    """Every case has its row, and bytes keep the integers of the record."""
    wide = tables.wide_rows(sweep_run)
    assert [row["id"] for row in wide] == [record.case.id for record in sweep_run]
    row = next(row for row in wide if row["node"] == "lif" and row["timesteps"] == 16)
    assert row["retained_bytes"] == 3 * 4 * 8 * 64 * 16
    assert row["shape"] == "64"
    assert row["backward_recompute_flops"] == row["backward_flops"] + row["recompute_flops"]


def test_frames_keep_whole_numbers_and_tell_what_is_missing(make_record, make_run):
    """Bytes and settings are integers where others are missing; the long frame holds the same number."""
    run = make_run([make_record(node="lif", status="oom"), make_record(node="revlif")])
    wide, long = tables.frame(run), tables.frame(run, long=True)
    size = run.records[1].memory.retained_bytes
    assert list(wide["retained_bytes"].isna()) == [True, False]
    assert wide["retained_bytes"][1] == size
    assert (str(wide["retained_bytes"].dtype), str(wide["timesteps"].dtype)) == ("Int64", "Int64")
    assert str(wide["step_time_s"].dtype) == str(long["value"].dtype) == "float64"
    assert long.set_index(["node", "metric"])["value"]["revlif", "retained_bytes"] == size


def test_memory_ratio_is_taken_at_the_same_point(sweep_run):
    """revlif at T = 8 is divided by lif at T = 8: 1 / (3 T)."""
    (row,) = (
        row
        for row in tables.long_rows(sweep_run)
        if (row["node"], row["timesteps"], row["metric"]) == ("revlif", 8, "retained_bytes")
    )
    assert row["ratio"] == 1 / 24


def test_time_ratio_comes_from_the_samples_of_the_same_record(make_record, make_run):
    """The time ratio divides medians of interleaved samples; another record's lif does not matter."""
    own = TimeRecord(
        forward_time_s=(3.0, 3.0, 3.0),
        backward_time_s=(5.0, 5.0, 5.0),
        lif_forward_time_s=(1.0, 1.0, 1.0),
        lif_backward_time_s=(3.0, 3.0, 3.0),
        rounds_rejected=0,
        load_before=0.0,
        load_after=0.0,
        threads=1,
    )
    run = make_run([make_record(node="lif"), make_record(node="lif-carrier", time=own)])
    row = tables.wide_rows(run)[1]
    assert row["forward_time_s_ratio"] == 3.0
    assert row["step_time_s"] == 8.0
    assert row["step_time_s_ratio"] == 2.0


def test_times_that_are_not_decided_are_told_apart(make_record, make_run):
    """As in the reports: rounds of one process give none, nor do those in which threads waited for a core."""
    time = make_record(node="lif-carrier").time
    changes = ({}, {"rounds_contended": 1}, {"rounds_by_process": ()})
    times = [None, *(time.model_copy(update=each) for each in changes)]
    run = make_run(make_record(node="lif-carrier", timesteps=2 + i, time=each) for i, each in enumerate(times))
    rows = csv.DictReader(io.StringIO(tables.wide_csv(run)))
    assert [row["times_decided"] for row in rows] == ["", "True", "False", "False"]


def test_time_without_lif_samples_has_no_ratio(make_record, make_run):
    """Without interleaved samples there is no time ratio, even where lif was timed in its own record."""
    time = make_record(node="lif").time.model_copy(update={"lif_forward_time_s": (), "lif_backward_time_s": ()})
    run = make_run([make_record(node="lif"), make_record(node="lif-carrier", time=time)])
    row = tables.wide_rows(run)[1]
    assert row["step_time_s"] > 0
    assert row["step_time_s_ratio"] is None


def test_wrong_case_keeps_raw_values_and_has_no_ratio(make_record, make_run):
    """A wrong gradient earns no ratio, in memory or time, while the raw record stays in the files."""
    run = make_run([make_record(node="lif", timesteps=16), make_record(node="revlif", timesteps=16)])
    row = tables.wide_rows(run)[1]
    assert row["status"] == "wrong"
    assert row["retained_bytes"] == 4 * 8 * 64
    assert {value for name, value in row.items() if name.endswith("_ratio")} == {None}


def test_wrong_standard_lif_is_no_reference(make_record, make_run):
    """A standard LIF whose own gradient is wrong gives no ratio to anyone."""
    run = make_run([make_record(node="lif", status="wrong"), make_record(node="lif-carrier")])
    assert tables.wide_rows(run)[1]["peak_bytes_ratio"] is None


def test_failed_case_keeps_a_row_in_every_table(make_record, make_run):
    """A case without a measurement is still listed, long and wide, with its status and no number."""
    run = make_run([make_record(node="lif", status="timeout")])
    (row,) = csv.DictReader(io.StringIO(tables.long_csv(run)))
    assert (row["status"], row["metric"], row["value"]) == ("timeout", "", "")
    (row,) = csv.DictReader(io.StringIO(tables.wide_csv(run)))
    assert (row["status"], row["reason"], row["peak_bytes"]) == ("timeout", "ended as timeout", "")
    assert len(tables.long_rows(run)) == len(tables.wide_rows(run)) == 1


def test_measured_nan_is_told_apart_from_a_gap(make_record, make_run):
    """A gradient measured as NaN is `nan` in CSV and "NaN" in JSON; a gap is empty and null."""
    run = make_run([make_record(node="revlif", timesteps=256)])
    (row,) = csv.DictReader(io.StringIO(tables.wide_csv(run)))
    assert (row["gradient_error"], row["parameter_gradient_error"]) == ("nan", "")
    (case,) = json.loads(tables.wide_json(run))["cases"]
    assert (case["gradient_error"], case["parameter_gradient_error"]) == ("NaN", None)


def test_csv_returns_hostile_text_unchanged(make_record, make_run):
    """Commas, quotes, pipes and newlines in a reason survive the way through CSV."""
    reason = 'a,"b"|c\nd'
    run = make_run([make_record(node="lif", status="error", reason=reason)])
    (row,) = csv.DictReader(io.StringIO(tables.wide_csv(run)))
    assert row["reason"] == reason


@pytest.mark.parametrize("reason", ["=HYPERLINK(1)", "+1", "-1+1", "@SUM(A1)", "\t=1"])
def test_csv_holds_no_formula(make_record, make_run, reason):
    """Text that a spreadsheet would run stands behind an apostrophe; negative numbers stay numbers."""
    record = make_record(node="lif", status="error", reason=reason, flops=None, seed=-1)
    for text in (tables.wide_csv(make_run([record])), tables.long_csv(make_run([record]))):
        assert not [row for row in csv.reader(io.StringIO(text, newline="")) for cell in row if cell == reason]
    (row,) = csv.DictReader(io.StringIO(tables.wide_csv(make_run([record])), newline=""))
    assert (row["reason"], row["seed"]) == (f"'{reason}", "-1")


def test_a_carriage_return_ends_no_row(make_record, make_run):
    """A reason that a progress bar has printed into stays in its cell, line by line."""
    run = make_run([make_record(node="lif", status="error", reason="10 %\r20 %\r\ndone")])
    (row,) = csv.DictReader(io.StringIO(tables.wide_csv(run), newline=""))
    assert row["reason"] == "10 %\n20 %\ndone"


def test_reports_are_byte_stable(sweep_run, tmp_path):
    """Two writings of one run give the same files, byte for byte."""
    first = write_reports(sweep_run, tmp_path / "a")
    ratio_of_times.cache_clear()
    second = write_reports(sweep_run, tmp_path / "b")
    assert [path.name for path in first] == [
        "run-1.md",
        "run-1.csv",
        "run-1.long.csv",
        "run-1.columns.csv",
        "run-1.wide.json",
    ]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_runs_of_similar_names_write_no_file_twice(sweep_run, tmp_path):
    """As `field` and `field-long`, which are two runs of this repository."""
    names = ("field", *(f"field-{part}" for part in ("long", "wide", "columns", "study")))
    runs = [sweep_run.model_copy(update={"header": sweep_run.header.model_copy(update={"run_id": n})}) for n in names]
    written = [path for run in runs for path in write_reports(run, tmp_path, ("csv", "json"))]
    assert len({*written}) == len(written)


def test_only_the_asked_formats_are_written(sweep_run, tmp_path):
    """`formats` limits what is written."""
    assert [path.name for path in write_reports(sweep_run, tmp_path, ["json"])] == ["run-1.wide.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["run-1.wide.json"]


def test_unknown_format_is_refused_before_anything_is_written(sweep_run, tmp_path):
    """A misspelt format is an error that names the known ones, and writes nothing."""
    with pytest.raises(ValueError, match="`formats` must name formats among md, csv, json, html, svg; got pdf"):
        write_reports(sweep_run, tmp_path, ["md", "pdf"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("run_id", ["../outside", "", "a/b", ".."])
def test_run_id_that_leaves_the_folder_is_refused(make_run, tmp_path, run_id):
    """A run id cannot make the reports land elsewhere."""
    with pytest.raises(ValueError, match="`run_id` must be a plain file name"):
        write_reports(make_run([], run_id=run_id), tmp_path)


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


def test_a_machine_without_a_gpu_has_none(make_run):
    """As `revsnn-bench env` says it; a commit that is not there is not known."""
    rows = dict(tables.environment_rows(make_run([], commit=None)))
    assert [rows[name] for name in ("cuda", "driver", "gpu", "commit")] == ["none", "none", "none", "not known"]
