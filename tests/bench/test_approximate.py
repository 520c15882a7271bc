"""Status `approximate`: numbers in a section of their own, no ranking, no ratio, no regression."""

import io

import pytest
from rich.console import Console

from revsnn_bench.gate import Kind, gate
from revsnn_bench.records import FidelityRecord, GradientBias, Status
from revsnn_bench.report.figures import draw_figures
from revsnn_bench.report.findings import findings, least_of
from revsnn_bench.report.html.report import answers, render_html
from revsnn_bench.report.markdown import render
from revsnn_bench.report.points import AXES, growths, points_by_setting, ratio_of, references, sweeps
from revsnn_bench.report.tables import approximate_rows, long_rows, value_cell, wide_rows
from revsnn_bench.report.terminal import print_run, print_summary

BIAS = GradientBias(relative=0.463, cosine=0.918, by_module={"net.1": (0.79, 0.81), "net.3": (0.0, 1.0)})
NODE = "lif+sltt"


@pytest.fixture
def run(make_record, make_run):
    """Three exact nodes and an approximate method that needs a tenth of the memory and time of any, over T."""
    records = [make_record(node=node, timesteps=t) for t in (4, 8, 16) for node in ("lif", "lif-carrier", "revlif")]
    for lif in [record for record in records if record.case.node == "lif"]:
        fidelity = FidelityRecord(
            gradient_error=0.463, output_error=0.0, tolerance=1e-3, neurons=64, gradient_bias=BIAS
        )
        memory = lif.memory.model_copy(update={"peak_bytes": 17, "retained_bytes": 1})
        time = lif.time.model_copy(update={"forward_time_s": (1e-6,) * 12, "backward_time_s": (1e-6,) * 12})
        parts = {"memory": memory, "time": time, "fidelity": fidelity, "reason": "0.46 from that of BPTT"}
        case = lif.case.model_copy(update={"node": NODE})
        records.append(lif.model_copy(update={"case": case, "status": Status.APPROXIMATE, **parts}))
    return make_run(records)


def approximate(run):
    return [record for record in run if record.case.node == NODE]


def without(run):
    return run.model_copy(update={"records": tuple(record for record in run if record.case.node != NODE)})


def test_it_enters_no_ranking(run):
    """Winners, sweeps, growths, figures and the page's answers are those of the run without it; no value, no ratio."""
    other, lifs = without(run), references(run)
    assert NODE in {record.case.variant for record in run}
    for name in ("peak_bytes", "retained_bytes"):
        assert least_of(run, name) == least_of(other, name)
    assert points_by_setting(run) == points_by_setting(other)
    for axis in AXES:
        assert sweeps(run, axis) == sweeps(other, axis)
        assert growths(run, axis) == growths(other, axis)
    index = {record.case: number for number, record in enumerate(run)}
    assert answers(run, index) == answers(other, index)
    drawn = [(f.name, f.title, f.caption) for f in draw_figures(run)]
    assert [each for each in drawn if each[0] != "methods-1"] == [
        (f.name, f.title, f.caption) for f in draw_figures(other)
    ]
    (caption,) = (text for name, _, text in drawn if name == "methods-1")
    assert "Hollow: an approximate gradient, ranked nowhere." in caption
    at_one_t = run.model_copy(
        update={"records": tuple(r for r in run if r.case.timesteps == run.records[0].case.timesteps)}
    )
    assert "methods-1" not in {figure.name for figure in draw_figures(at_one_t)}
    for record in approximate(run):
        assert ratio_of("peak_bytes", record, lifs) is ratio_of("step_time_s", record, lifs) is None
        assert value_cell("peak_bytes", record) == "–"


def test_findings_call_it_neither_right_nor_wrong(run):
    """No finding on gradients, memory or time names it; the count of statuses does."""
    texts = [finding.text for finding in findings(run)]
    assert texts[0] == "12 in all: 8 ok, 1 wrong, 3 approximate."
    assert not any(NODE in text for text in texts)


def test_it_has_a_section_of_its_own(run):
    """In Markdown and HTML: bias, cosine, each module, raw bytes and time; nowhere among what went wrong."""
    row = approximate_rows(run)[0]
    assert row[1:4] == ("0.46", "0.92", "net.1 0.79, net.3 0.00")
    assert row[5] == "17 B"
    text = render(run)
    section = text.partition("## Approximate gradients")[2].partition("\n## ")[0]
    assert section.count(NODE) == 3
    assert text.count(f"/{NODE}/") == 3
    page = render_html(run)
    assert '<section id="approximate">' in page
    assert "not meant to be the gradient of backpropagation" in page
    assert '<section id="approximate">' not in render_html(without(run))


def test_a_bias_that_was_not_measured_is_absent(run):
    """The row is there all the same, in Markdown and HTML."""
    bare = run.model_copy(update={"records": tuple(r.model_copy(update={"fidelity": None}) for r in run)})
    assert approximate_rows(bare)[0][1:4] == ("–", "–", "–")
    assert "## Approximate gradients" in render(bare)
    assert '<section id="approximate">' in render_html(bare)


def test_files_hold_bias_and_cosine(run):
    """Two columns of the CSV files, empty for exact nodes."""
    of = {row["variant"]: row for row in wide_rows(run)}
    assert (of[NODE]["gradient_bias"], of[NODE]["gradient_cosine"]) == (0.463, 0.918)
    assert of["lif"]["gradient_bias"] is None
    assert {row["value"] for row in long_rows(run) if row["metric"] == "gradient_bias"} == {0.463}


def test_the_terminal_says_it(run):
    """After a run one line names the methods; `report` gives each case with its bias."""
    for show, said in ((print_summary, f"Approximate gradient by design, ranked nowhere: {NODE}."),
                       (print_run, f"{NODE}/T4-B8-N64/float32/cpu approximate: 0.46 from that of BPTT")):  # fmt: skip
        console = Console(file=io.StringIO(), width=100)
        show(run, console)
        assert said in " ".join(console.file.getvalue().split())


def with_status(run, status):
    records = [r.model_copy(update={"status": status}) if r.case.node == NODE else r for r in run]
    return run.model_copy(update={"records": tuple(records)})


def test_the_gate_compares_its_bytes_and_not_its_status(run):
    """Approximate in both is no finding; more bytes are; a node that was right and is approximate is newly wrong."""
    assert not any(NODE in finding.case for finding in gate(run, run).findings)
    grown = [
        r.model_copy(update={"memory": r.memory.model_copy(update={"peak_bytes": 18})}) if r.case.node == NODE else r
        for r in run
    ]
    found = gate(run.model_copy(update={"records": tuple(grown)}), run).failures
    assert {(f.kind, f.metric) for f in found} == {(Kind.GREW, "peak_bytes")}
    assert {f.kind for f in gate(run, with_status(run, Status.OK)).failures} == {Kind.WRONG}
    assert {f.kind for f in gate(with_status(run, Status.OK), run).improvements} == {Kind.IMPROVED}
    assert gate(with_status(run, Status.OK), run).passed
    assert {f.kind for f in gate(with_status(run, Status.WRONG), run).failures} == {Kind.WRONG}
