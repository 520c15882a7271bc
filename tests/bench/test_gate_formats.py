"""Formats of a verdict: each can be read by the program it is for, hostile text included."""

import io
import json
import re
from xml.etree import ElementTree

import pytest
from rich.console import Console

from revsnn_bench.gate import gate
from revsnn_bench.gate.formats import RENDERERS, print_verdict
from revsnn_bench.records import PhaseFlops, SavedBytes

HOSTILE = 'a<b> & "c", 5% | `x`: 1::error\n::set-output\x1b[31m\x00'


@pytest.fixture
def judged(make_run, make_record):
    """One of everything: a regression, an improvement, a crash with a hostile reason, a removed and a kept case."""
    lif, gone, crashed, kept = (make_record(node=node) for node in ("lif", "revlif-stored", "revlif", "lif-carrier"))
    memory = lif.memory.model_copy(update={"retained_bytes": lif.memory.retained_bytes + 1, "peak_bytes": 1})
    error = make_record(node="revlif", status="error", reason=HOSTILE)
    run = make_run([lif.model_copy(update={"memory": memory}), error, kept], run_id="now")
    return gate(run, make_run([lif, gone, crashed, kept], run_id="then")), run


def printed(verdict, width):
    stream = io.StringIO()
    print_verdict(verdict, Console(file=stream, width=width))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_a_narrow_terminal_has_a_line_per_metric_below_the_case(make_run, make_record):
    """Nine metrics that grew by much take at most 20 lines of 80 columns, with the case once; 160 hold a table."""
    record = make_record(node="lif", timesteps=64, batch=64, shape=(4096,))
    parts = ("retained_bytes", "state_bytes", "output_bytes", "peak_bytes")
    memory = record.memory.model_copy(update={name: 2 * getattr(record.memory, name) for name in parts})
    memory = memory.model_copy(update={"saved_bytes": SavedBytes(own=2**40, input=2**40, output=2**40)})
    twice = {name: PhaseFlops(pointwise=10**15, multiply_accumulate=0) for name in ("forward", "backward")}
    worse = record.model_copy(update={"memory": memory, "flops": record.flops.model_copy(update=twice)})
    verdict = gate(make_run([worse]), make_run([record]))
    assert len(verdict.failures) == 9
    lines, wide = printed(verdict, 80), printed(verdict, 160)
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 20
    assert lines.count(record.case.id) == 1
    peak = verdict.failures[[finding.metric for finding in verdict.failures].index("peak_bytes")]
    assert (
        f"  peak_bytes {peak.before:,} B -> {peak.after:,} B, +{peak.after - peak.before:,} B (+100 %); grew" in lines
    )
    assert any(line.split()[:2] == ["case", "metric"] for line in wide)


def test_a_traceback_is_in_no_verdict(make_run, make_record):
    """The first paragraph of a reason says what is wrong; every format leaves what follows to the record."""
    reason = "RuntimeError: too many spikes\n\nTraceback (most recent call last):\n  File x, line 1"
    run = make_run([make_record(node="lif", status="error", reason=reason)])
    verdict = gate(run, make_run([make_record(node="lif")]))
    for name in ("table", "markdown", "github", "junit"):
        text = RENDERERS[name](verdict, run)
        assert "RuntimeError: too many spikes" in text
        assert "Traceback" not in text


def test_table_and_markdown_name_case_metric_before_and_after(judged):
    """Both tell the regression exactly, the improvement, and what to do."""
    before = judged[0].failures[0].before
    for name in ("table", "markdown"):
        text = " ".join(RENDERERS[name](*judged).split())
        for words in (
            "FAIL: now against",
            "retained_bytes",
            f"{before:,} B",
            f"{before + 1:,} B",
            "removed",
            "--force",
        ):
            assert words in text, (name, words)
        assert "What became better" in text


def test_markdown_row_survives_hostile_text(judged):
    """A reason with pipes and newlines stays in its cell."""
    rows = [line for line in RENDERERS["markdown"](*judged).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7}
    assert "<b>" not in "".join(rows)


def test_junit_counts_and_places_what_happened(judged):
    """One test case per case; a crash is an error, a regression a failure, in well-formed XML."""
    suite = ElementTree.fromstring(RENDERERS["junit"](*judged)).find("testsuite")
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["4", "2", "1", "0"]
    found = {case.get("name").split("/")[0]: [child.tag for child in case] for case in suite.iter("testcase")}
    assert found == {
        "lif": ["failure", "system-out"],
        "revlif-stored": ["failure"],
        "revlif": ["error"],
        "lif-carrier": [],
    }
    assert HOSTILE[:10] in suite.find(".//error").get("message")


def test_junit_of_a_run_that_is_not_comparable(make_run, make_record):
    """The field is the error, and no case counts as passed."""
    run = make_run([make_record(node="lif")])
    verdict = gate(run, make_run([make_record(node="lif")], torch="2.6.0"))
    suite = ElementTree.fromstring(RENDERERS["junit"](verdict, run)).find("testsuite")
    assert suite.find("testcase/error").get("message") == "torch is 2.6.0 in the baseline and 2.13.0+cpu in the run"
    assert (suite.get("tests"), suite.get("errors"), suite.get("skipped")) == ("2", "1", "1")


def test_annotations_are_one_line_each_and_escaped(judged):
    """Three errors and a notice; nothing in a reason can start a command of its own."""
    lines = RENDERERS["github"](*judged).splitlines()
    commands = [re.fullmatch(r"::(\w+) title=([^:,\n]*)::(.*)", line) for line in lines]
    assert [match[1] for match in commands] == ["error", "error", "error", "notice"]
    assert commands[0][2] == "layer/lif/T8-B8-N64/float32/cpu%3A retained_bytes grew"
    assert "5%25" in lines[2]


def test_annotations_of_a_run_that_is_not_comparable(make_run, make_record):
    """The error names the field and both values."""
    run = make_run([make_record(node="lif")])
    text = RENDERERS["github"](gate(run, make_run([], torch="2.6.0")), run)
    assert text.startswith("::error title=Not comparable%3A torch::torch is 2.6.0 in the baseline and 2.13.0+cpu")


def test_custom_smaller_is_better_is_a_list_of_named_values(judged):
    """Exact integers with their unit, a range for what varies, and nothing for a case that crashed."""
    entries = json.loads(RENDERERS["customSmallerIsBetter"](*judged))
    assert all(
        {"name", "unit", "value"} <= set(entry) <= {"name", "unit", "value", "range", "extra"} for entry in entries
    )
    values = {entry["name"]: (entry["value"], entry["unit"]) for entry in entries}
    assert values["layer/lif-carrier/T8-B8-N64/float32/cpu retained_bytes"] == (0, "bytes")
    assert "layer/lif-carrier/T8-B8-N64/float32/cpu forward_time_s_ratio" in values
    assert not [name for name in values if "/revlif/" in name]


@pytest.mark.parametrize("undecided", [{"rounds_by_process": ()}, {"rounds_contended": 1}])
def test_a_time_that_is_not_decided_is_in_no_history(make_run, make_record, undecided):
    """Neither of one process nor of rounds that waited for a core: bytes and operations are there all the same."""
    record = make_record(node="lif-carrier")
    run = make_run([record.model_copy(update={"time": record.time.model_copy(update=undecided)})])
    for format in ("bencher", "customSmallerIsBetter"):
        text = RENDERERS[format](gate(run, run), run)
        assert "peak_bytes" in text
        assert "backward_time_s" not in text


def test_bencher_document_has_values_and_bounds(judged):
    """Benchmark, measure, value; bounds hold the value; names are within Bencher's limits."""
    document = json.loads(RENDERERS["bencher"](*judged))
    assert set(document) == {"layer/lif/T8-B8-N64/float32/cpu", "layer/lif-carrier/T8-B8-N64/float32/cpu"}
    time = document["layer/lif-carrier/T8-B8-N64/float32/cpu"]["backward_time_s_ratio"]
    assert time["lower_value"] <= time["value"] <= time["upper_value"]
    assert document["layer/lif/T8-B8-N64/float32/cpu"]["peak_bytes"] == {"value": 1}
    assert all(len(measure) <= 64 for case in document.values() for measure in case)
