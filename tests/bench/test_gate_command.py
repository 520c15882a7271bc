"""`revsnn-bench gate` on files: its exit codes, its messages, and who may become the baseline."""

import os
import shlex

import pytest
import typer
from typer.testing import CliRunner

from revsnn_bench.cli.reports import gate_command
from revsnn_bench.gate import BaselineRefused, gate, load_baseline, update_baseline
from revsnn_bench.records import SCHEMA_VERSION
from revsnn_bench.report import markdown
from revsnn_bench.report.comparison import render_comparison, render_comparison_html
from revsnn_bench.report.html.report import render_html
from revsnn_bench.report.units import one_line
from revsnn_bench.runs import load_run


@pytest.fixture
def cli():
    """Runs the command; `.exit_code`, `.stdout` and `.stderr` are its own."""
    app = typer.Typer()
    app.command()(gate_command)

    def call(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return call


@pytest.fixture
def saved(tmp_path):
    """Writes a run to a file."""

    def save(run, name):
        path = tmp_path / name
        path.write_text(run.model_dump_json(), encoding="utf-8")
        return path

    return save


@pytest.fixture
def runs(make_run, make_record, saved):
    """A good run, one with a byte more at the peak, one with fewer, and one with a crash."""
    good = make_record(node="lif")

    def peak(extra):
        return good.model_copy(
            update={"memory": good.memory.model_copy(update={"peak_bytes": good.memory.peak_bytes + extra})}
        )

    records = {"good": good, "worse": peak(1), "better": peak(-1), "crash": make_record(node="lif", status="error")}
    return {name: saved(make_run([record], run_id=name), f"{name}.json") for name, record in records.items()}


def test_pass_and_regression(cli, runs):
    """0 and 1, with case, metric and both values on standard output; a run held against itself passes, and says so."""
    itself = cli(runs["good"], "--baseline", runs["good"])
    assert (itself.exit_code, itself.stderr) == (0, "good is the baseline itself: nothing was measured since.\n")
    assert "itself" not in cli(runs["better"], "--baseline", runs["good"]).stderr
    failed = cli(runs["worse"], "--baseline", runs["good"], "--format", "github")
    assert failed.exit_code == 1
    before = load_run(runs["good"]).records[0].memory.peak_bytes
    assert f"layer/lif/T8-B8-N64/float32/cpu: peak_bytes {before:,} B -> {before + 1:,} B" in failed.stdout
    assert cli(runs["worse"], "--baseline", runs["good"], "--tolerance", "peak_bytes=1%").exit_code == 0


def test_crash_ends_with_five(cli, runs):
    """The failed case has its own code; where it is allowed, and no other is there, nothing was compared: 4."""
    assert cli(runs["crash"], "--baseline", runs["good"]).exit_code == 5
    assert cli(runs["crash"], "--baseline", runs["good"], "--allow", "layer/lif/*").exit_code == 4


def test_missing_baseline_names_the_command_that_makes_one(cli, runs, tmp_path):
    """3; and the command in the message works, from a folder of runs of one's own too."""
    path = tmp_path / "base lines" / "cpu.json"
    missing = cli("good", "--results", tmp_path, "--baseline", path)
    assert missing.exit_code == 3
    command = shlex.split(missing.stderr.partition("revsnn-bench gate ")[2])
    assert command == ["good", "--results", str(tmp_path), "--baseline", str(path), "--update-baseline"]
    assert cli(*command).exit_code == 0
    assert load_run(path) == load_run(runs["good"])
    assert cli(runs["good"], "--baseline", path).exit_code == 0
    folder = cli("good", "--results", tmp_path, "--baseline", tmp_path)
    assert folder.exit_code == 3
    assert f"{tmp_path} is a folder. Name a .json file in it." in folder.stderr


def test_latest_is_the_run_that_measured_last(cli, make_run, make_record, saved, tmp_path):
    """Whatever the dates of the files, which a clone makes anew; a merged run is later than its last part."""
    early, late = (
        make_record(node="lif", timesteps=day, started_at=f"2026-01-0{day}T00:00:00+00:00") for day in (2, 3)
    )
    for records, run_id in (([late], "part"), ([early], "first"), ([early, late], "whole"), ([early], "again")):
        path = saved(make_run(records, run_id), f"{run_id}.json")
        os.utime(path, (2e9 if records == [early] else 1e9,) * 2)
        expected = "part" if run_id in ("part", "first") else "whole"
        assert (
            f"PASS: {expected} against"
            in cli("latest", "--results", tmp_path, "--baseline", tmp_path / f"{expected}.json").stdout
        )


def test_other_torch_ends_with_four(cli, runs, saved, make_run, make_record):
    """The field and both values are named; the flag compares all the same."""
    old = saved(make_run([make_record(node="lif")], torch="2.6.0+cpu"), "old.json")
    refused = cli(runs["good"], "--baseline", old, "--format", "markdown")
    assert refused.exit_code == 4
    assert "torch is 2.6.0+cpu in the baseline and 2.13.0+cpu in the run" in refused.stdout
    assert cli(runs["good"], "--baseline", old, "--allow-environment", "torch").exit_code == 0


def test_baseline_of_another_schema_ends_with_four(cli, runs, tmp_path):
    """A file of another version is not comparable; a damaged one is no baseline."""
    other, damaged = tmp_path / "other.json", tmp_path / "damaged.json"
    other.write_text(runs["good"].read_text().replace(f'"schema_version":{SCHEMA_VERSION}', '"schema_version":99'))
    damaged.write_text("{")
    assert cli(runs["good"], "--baseline", other).exit_code == 4
    assert cli(runs["good"], "--baseline", damaged).exit_code == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("--tolerance", "peak_bytes"),
        ("--tolerance", "peak_bytes=much"),
        ("--tolerance", "step_time_s=5"),
        ("--allow-environment", "pytorch"),
        ("--time-ratio", "-1"),
        ("--force",),
        ("--format", "yaml"),
    ],
)
def test_usage_errors_end_with_two(cli, runs, arguments):
    """What cannot be meant is refused before anything is compared."""
    refused = cli(runs["worse"], "--baseline", runs["good"], *arguments)
    assert (refused.exit_code, refused.stdout) == (2, "")


def test_unknown_run_ends_with_two(cli, runs):
    """A run that does not exist is a usage error, not a pass."""
    assert cli("no-such-run", "--baseline", runs["good"]).exit_code == 2


def test_output_goes_to_a_file_and_the_headline_to_the_terminal(cli, runs, tmp_path):
    """The exit code is the same."""
    path = tmp_path / "reports" / "gate.xml"
    failed = cli(runs["worse"], "--baseline", runs["good"], "--format", "junit", "--output", path)
    assert failed.exit_code == 1
    assert path.read_text().startswith("<?xml")
    assert failed.stdout.startswith("FAIL: worse against the baseline good")


@pytest.mark.parametrize(("name", "code"), [("worse", 1), ("crash", 5)])
def test_bad_run_never_becomes_the_baseline_unless_forced(cli, runs, name, code):
    """The baseline keeps every byte of its file, the message says what to do, and force does it."""
    before = runs["good"].read_bytes()
    refused = cli(runs[name], "--baseline", runs["good"], "--update-baseline")
    assert (refused.exit_code, runs["good"].read_bytes()) == (code, before)
    assert "is unchanged" in refused.stderr
    assert "--force" in refused.stderr
    assert cli(runs[name], "--baseline", runs["good"], "--update-baseline", "--force").exit_code == 0
    assert load_run(runs["good"]) == load_run(runs[name])


def test_gate_alone_never_writes(cli, runs):
    """A better run passes and leaves the baseline as it is, until it is asked to replace it."""
    before = runs["good"].read_bytes()
    assert cli(runs["better"], "--baseline", runs["good"]).exit_code == 0
    assert runs["good"].read_bytes() == before
    assert cli(runs["better"], "--baseline", runs["good"], "--update-baseline").exit_code == 0
    assert cli(runs["good"], "--baseline", runs["good"]).exit_code == 0
    assert load_run(runs["good"]).header.run_id == "better"


def test_first_baseline_has_no_failed_case_unless_forced(make_run, make_record, tmp_path):
    """A crash would be expected from then on; so would a run that measured nothing."""
    path = tmp_path / "baseline.json"
    crash = make_run([make_record(node="lif", status="error")])
    with pytest.raises(BaselineRefused, match=r"failed cases: layer/lif/.*\(error\).*--force"):
        update_baseline(crash, path, verdict=None)
    for nothing in (make_run([]), make_run([make_record(node="lif", status="skipped")])):
        with pytest.raises(BaselineRefused, match="no case that was measured"):
            update_baseline(nothing, path, verdict=None)
    assert not path.exists()
    update_baseline(crash, path, verdict=None, force=True)
    assert load_baseline(path) == crash
    assert list(tmp_path.iterdir()) == [path]


def test_verdict_must_be_about_the_run_that_replaces(make_run, make_record, tmp_path):
    """Neither no verdict nor that of another run opens the way, not even with force."""
    run, other = make_run([make_record(node="lif")]), make_run([make_record(node="lif")], run_id="other")
    path = update_baseline(run, tmp_path / "baseline.json", verdict=None)
    with pytest.raises(ValueError, match="must be given where there is a baseline"):
        update_baseline(run, path, verdict=None, force=True)
    with pytest.raises(ValueError, match="got one on 'other' for 'run-1'"):
        update_baseline(run, path, verdict=gate(other, run), force=True)


@pytest.fixture
def partial(make_run, make_record, saved):
    """A baseline of three cases; a run that has measured the first of them; one that never planned the third."""
    records = [make_record(node="lif", timesteps=t) for t in (2, 3, 4)]
    ids = tuple(record.case.id for record in records)
    whole = make_run(records, run_id="whole").model_copy(update={"planned": ids})
    part = make_run(records[:1], run_id="part").model_copy(update={"planned": ids, "complete": False})
    fewer = part.model_copy(update={"planned": ids[:2]})
    return {name: saved(run, f"{name}.json") for name, run in (("whole", whole), ("part", part), ("fewer", fewer))}


def test_a_partial_run_is_no_regression_and_no_pass(cli, partial):
    """4, with what is missing and how to go on; --partial judges what is there, and finds what was never planned."""
    refused = cli(partial["part"], "--baseline", partial["whole"])
    assert refused.exit_code == 4
    assert "the run has 1 of 3 planned cases, and the baseline all planned cases" in one_line(refused.output)
    assert "run --resume" in one_line(refused.output)
    allowed = cli(partial["part"], "--baseline", partial["whole"], "--partial")
    assert allowed.exit_code == 0
    assert "Compared although the run has 1 of 3 planned cases" in one_line(allowed.output)
    lost = cli(partial["fewer"], "--baseline", partial["whole"], "--partial", "--format", "github")
    assert lost.exit_code == 1
    assert "T4-B8-N64/float32/cpu: status ok -> –; removed" in lost.output
    assert "T3-B8" not in lost.output


def test_a_run_without_a_case_is_not_compared(cli, partial, saved, make_run):
    """4, although a partial run may be judged: nothing was; the advice is not to allow what is allowed."""
    whole = load_run(partial["whole"])
    empty = saved(whole.model_copy(update={"records": (), "complete": False}), "empty.json")
    said = cli(empty, "--baseline", partial["whole"], "--partial")
    assert said.exit_code == 4
    assert "the run has no case yet, and the baseline all planned cases" in one_line(said.output)
    assert "run --resume" in one_line(said.output)
    assert "--partial" not in said.output
    nothing = saved(make_run([]), "nothing.json")
    assert cli(nothing, "--baseline", nothing).exit_code == 4
    assert cli(nothing, "--baseline", partial["whole"]).exit_code == 1


def test_a_partial_run_becomes_the_baseline_by_force_alone(cli, partial, tmp_path):
    """Whether there is a baseline or not, and also where it passes by what it has."""
    first = tmp_path / "first.json"
    refused = cli(partial["part"], "--baseline", first, "--update-baseline")
    assert refused.exit_code == 4
    assert "A baseline must be a complete run; got 1 of 3 planned cases in 'part'" in one_line(refused.output)
    assert not first.exists()
    before = partial["whole"].read_bytes()
    assert cli(partial["part"], "--baseline", partial["whole"], "--update-baseline", "--partial").exit_code == 4
    assert partial["whole"].read_bytes() == before
    assert cli(partial["part"], "--baseline", first, "--update-baseline", "--force").exit_code == 0
    assert load_run(first).extent == "1 of 3 planned cases"


def test_reports_and_comparisons_tell_a_partial_run(partial):
    """In the first finding, and among the differences of the two runs, in every format."""
    whole, part = load_run(partial["whole"]), load_run(partial["part"])
    for text in (markdown.render(part), render_html(part, figures=[])):
        assert "1 in all: 1 ok. Not complete: 1 of 3 planned cases." in text
    assert "Not complete" not in markdown.render(whole)
    for text in (render_comparison(whole, part), render_comparison_html(whole, part)):
        assert "1 of 3 planned cases" in text
