"""Two runs side by side: exact for bytes and operations, relative for times, nothing dropped."""

import io
import math
import random
import re

import pytest
from rich.console import Console

from revsnn_bench.gate import Policy, gate
from revsnn_bench.report.comparison import BETTER, WORSE, compare, render_comparison, render_comparison_html


def grown(record, extra):
    memory = record.memory.model_copy(update={"peak_bytes": record.memory.peak_bytes + extra})
    return record.model_copy(update={"memory": memory})


def test_a_run_equals_itself(sweep_run, make_record, make_run):
    """No row differs, a measured NaN included."""
    run = make_run([*sweep_run, make_record(node="revlif", timesteps=256)])
    comparison = compare(run, run)
    assert any(value.before != value.before for pair in comparison.cases for value in pair.differences)
    assert not comparison.changed()


def test_one_byte_is_a_change(make_record, make_run):
    """Bytes are compared exactly, as integers."""
    record = make_record(node="lif")
    ((_, found),) = compare(make_run([record]), make_run([grown(record, 1)])).changed()
    assert (found.name, found.after - found.before) == ("peak_bytes", 1)
    assert found.change == pytest.approx(1 / found.before)


def test_slower_machine_is_no_change(make_record, make_run):
    """Times are compared as ratios to lif: twice the seconds everywhere is equal."""
    record = make_record(node="revlif")
    fields = ("forward_time_s", "backward_time_s", "lif_forward_time_s", "lif_backward_time_s")
    doubled = {name: tuple(2 * sample for sample in getattr(record.time, name)) for name in fields}
    slow = record.model_copy(update={"time": record.time.model_copy(update=doubled)})
    comparison = compare(make_run([record]), make_run([slow]))
    assert not comparison.changed()
    names = {value.name for value in comparison.cases[0].differences}
    assert "step_time_s_ratio" in names
    assert not {"step_time_s", "train_time_s"} & names


def test_case_in_one_run_only_is_listed(make_record, make_run):
    """A case that vanished and one that is new each keep a row that says so."""
    before, after = make_run([make_record(node="lif")]), make_run([make_record(node="revlif")])
    comparison = compare(before, after)
    shown = [(found.name, found.note) for _, found in comparison.changed()]
    assert shown == [("status", "only before"), ("status", "only after")]
    assert {value.note for pair in comparison.cases for value in pair.differences} == {"only before", "only after"}


def test_runs_without_a_case_in_common_say_so_first(make_record, make_run):
    """Cases that are gone and new are counted after it; runs of the same cases, and two empty ones, do not say it."""
    before, after = make_run([make_record(node="lif")]), make_run([make_record(node="revlif")])
    text = render_comparison(before, after).splitlines()[2]
    assert text.startswith("No case in common: ")
    assert "revsnn-bench merge" in text
    assert "0 values compared: 1 gone, 1 new" in text
    assert "No case in common: " in render_comparison_html(before, after)
    for one, other in ((before, before), (make_run([]), make_run([]))):
        assert "No case in common" not in render_comparison(one, other)


def test_one_byte_more_is_seen(make_record, make_run):
    """Two sizes that would read alike in MiB are told to the byte, and the change is not said to be 0.00 %."""
    record = make_record(node="lif")
    large, larger = (
        record.model_copy(update={"memory": record.memory.model_copy(update={"peak_bytes": size})})
        for size in (10 << 20, (10 << 20) + 1)
    )
    text = render_comparison(make_run([large]), make_run([larger]))
    assert "| peak_bytes | 10,485,760 B | 10,485,761 B | +9.5e-06 % | worse" in re.sub(" +", " ", text)


def test_case_that_fails_now_is_a_change_of_status(make_record, make_run):
    """ok to oom is told by the status alone, one row and not one for each value that it lost; none of these is 0."""
    before, after = make_run([make_record(node="lif")]), make_run([make_record(node="lif", status="oom")])
    ((pair, row),) = compare(before, after).changed()
    assert (row.before, row.after, row.note) == ("ok", "oom", "status differs")
    (peak,) = (found for found in pair.differences if found.name == "peak_bytes")
    assert (peak.after, peak.note) == (None, "only before")


def test_growth_from_zero_is_infinite_and_told_as_such(make_record, make_run):
    """From 0 bytes there is no percentage: the change is infinite and shown as `from 0`."""
    record = make_record(node="lif-carrier")
    memory = record.memory.model_copy(update={"retained_bytes": 4})
    runs = make_run([record]), make_run([record.model_copy(update={"memory": memory})])
    ((_, found),) = compare(*runs).changed()
    assert math.isinf(found.change)
    assert "from 0" in render_comparison(*runs)


def test_differing_environment_is_named(make_run):
    """The comparison names the fields of the environment that differ, and only these."""
    a, b = make_run([], "a"), make_run([], "b", torch="2.14.0")
    assert compare(a, b).fields() == [("torch", "2.13.0+cpu", "2.14.0")]
    assert "2.14.0" in render_comparison(a, b)


def test_terminal_and_markdown_show_the_same_change(make_record, make_run):
    """Both outputs show before, after and percent, and the terminal keeps to 100 columns."""
    record = make_record(node="revlif-anchored", workload="conv")
    stream = io.StringIO()
    report = render_comparison(
        make_run([record], "a|b"), make_run([grown(record, 1024)]), Console(file=stream, width=100)
    )
    assert "a\\|b before, run-1 after" in report
    for text in (report, stream.getvalue()):
        assert "peak_bytes" in text
        assert "+2.50 %" in text
    assert max(map(len, stream.getvalue().splitlines())) <= 100


def test_equal_runs_say_so(sweep_run):
    """Equal runs give a comparison without a table of changes."""
    report = render_comparison(sweep_run, sweep_run)
    assert "none that can be judged differs." in report
    assert "What changed" not in report


def judged(before, after):
    """Verdicts by metric."""
    comparison = compare(before, after)
    return {found.name: comparison.verdict(pair, found) for pair, found in comparison.changed()}


def test_bytes_of_another_environment_are_not_judged(make_record, make_run):
    """Under another torch more bytes are no regression, and the text says why; under the same one they are worse."""
    record = make_record(node="lif")
    before, after = make_run([record]), [grown(record, 1)]
    assert judged(before, make_run(after)) == {"peak_bytes": "worse"}
    other = make_run(after, torch="9.9")
    assert judged(before, other) == {"peak_bytes": "not judged"}
    assert "not judged, because the runs differ in torch" in render_comparison(before, other)


def test_contended_times_are_not_judged(make_record, make_run):
    """Twice the ratio is worse where both were left alone, and tells nothing where other work held the processor."""
    record = make_record(node="lif-carrier")
    slow = record.time.model_copy(update={"backward_time_s": tuple(3 * t for t in record.time.backward_time_s)})
    for contended, verdict in ((0, "worse"), (2, "not judged")):
        time = slow.model_copy(update={"rounds_contended": contended})
        after = make_run([record.model_copy(update={"time": time})])
        assert judged(make_run([record]), after)["step_time_s_ratio"] == verdict


def test_an_accuracy_that_dropped_is_listed(make_record, make_run, make_accuracy):
    """A point or more is far apart, which is no failure of anything; less is counted as what varies."""
    for after, verdict in ((0.97, "far apart"), (0.1, "far apart"), (0.971, "varies")):
        runs = [make_run([make_record(node="lif", accuracy=make_accuracy(value))]) for value in (0.98, after)]
        assert judged(*runs) == {"accuracy": verdict}
        assert ("| accuracy |" in render_comparison(*runs)) == (verdict == "far apart")


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (4e-8, 5e-7, "far apart"),
        (5e-7, 4e-8, "far apart"),
        (9e-4, 1.1e-3, "far apart"),
        (2e-8, 1e-7, "varies"),
        (0.5, math.nan, "far apart"),
        (0.0, 1e-7, "far apart"),
    ],
)
def test_an_error_ten_times_as_large_or_across_its_tolerance_is_listed(make_record, make_run, before, after, verdict):
    """Errors differ from run to run; by ten times, or from right to wrong, they do for a reason."""
    record = make_record(node="lif")
    fidelity = [record.fidelity.model_copy(update={"gradient_error": error}) for error in (before, after)]
    runs = [make_run([record.model_copy(update={"fidelity": each})]) for each in fidelity]
    assert judged(*runs) == {"gradient_error": verdict}


def test_many_cases_give_no_more_false_alarms_than_few(make_record, make_run):
    """Of 12 pairs of runs of one program, 30 cases each, none has a time called worse or better; by intervals
    that do not overlap, a third would. Three times the time is found among them."""
    draw, cases = random.Random(0), [make_record(node="lif-carrier", timesteps=t) for t in range(2, 32)]

    def run():
        records = []
        for record in cases:
            factors = [draw.lognormvariate(0, 0.05) for _ in range(6)]
            taken = {"forward_time_s": tuple(factors[:3]), "backward_time_s": tuple(factors[3:])}
            standard = {"lif_forward_time_s": (1.0,) * 3, "lif_backward_time_s": (1.0,) * 3}
            time = record.time.model_copy(update={**taken, **standard, "rounds_by_process": (1, 1, 1)})
            records.append(record.model_copy(update={"time": time}))
        return records

    def alarms(before, after):
        changes = compare(make_run(before), make_run(after)).judged()
        return [change.case for change in changes if change.verdict in (WORSE, BETTER)]

    pairs = [(run(), run()) for _ in range(12)]
    assert not any(alarms(*pair) for pair in pairs)
    before, after = pairs[0]
    time = before[7].time
    slow = time.model_copy(update={"backward_time_s": tuple(3 * t for t in time.backward_time_s)})
    after[7] = before[7].model_copy(update={"time": slow})
    assert {*alarms(before, after)} == {before[7].case.id}


@pytest.mark.parametrize("change", [{"cpu_model": "Other CPU"}, {"cores": 128}, {}])
def test_times_of_two_machines_are_not_compared(make_record, make_run, change):
    """Three times the ratio says nothing across processors, nor where one run kept what it freed (--keep-freed): none
    is listed, each text names both machines, and bytes are judged all the same."""
    record = make_record(node="lif-carrier")
    slow = {"backward_time_s": tuple(3 * t for t in record.time.backward_time_s), "freed_memory_kept": not change}
    slow = record.time.model_copy(update=slow)
    before, after = make_run([record]), make_run([grown(record.model_copy(update={"time": slow}), 1)], **change)
    assert judged(before, after) == {"peak_bytes": "worse"}
    place = after.header.environment
    said = f"timed on Some CPU, 2 cores before and on {place.cpu_model}, {place.cores} cores"
    said += " after" if change else " with freed memory kept after"
    for text in (render_comparison(before, after), render_comparison_html(before, after)):
        assert f"Times are not compared: {said}." in text
    verdict = gate(after, before, Policy(time_ratio_percent=0, tolerance_percent={"peak_bytes": 1}))
    assert verdict.passed
    assert [note.detail for note in verdict.remarks if note.metric == "time"] == [f"not judged: {said}"]


def test_a_case_that_may_still_be_measured_is_not_gone(make_record, make_run):
    """Of a run that is not complete nothing is lost yet."""
    lif, carrier = make_record(node="lif"), make_record(node="lif-carrier")
    before, after = make_run([lif, carrier]), make_run([lif])
    assert judged(before, after)["status"] == "gone"
    partial = after.model_copy(update={"planned": tuple(r.case.id for r in (lif, carrier)), "complete": False})
    assert not partial.complete
    assert judged(before, partial)["status"] == "not judged"


def test_what_only_varies_is_counted(make_record, make_run):
    """Gradient errors differ from run to run: none is listed, and the text says how many there are."""
    record = make_record(node="lif")
    other = record.model_copy(update={"fidelity": record.fidelity.model_copy(update={"gradient_error": 5e-8})})
    report = render_comparison(make_run([record]), make_run([other]))
    assert "1 more are never exact or differ within their noise" in report
    assert "What changed" not in report
