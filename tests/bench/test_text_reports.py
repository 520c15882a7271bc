"""Markdown and terminal: readable, honest about what failed, safe against the text of records."""

import io
import re

import pytest
from rich.console import Console

from revsnn_bench.metrics import BY_NAME
from revsnn_bench.report import markdown, units
from revsnn_bench.report.figures import draw_figures
from revsnn_bench.report.findings import findings
from revsnn_bench.report.html.report import render_html
from revsnn_bench.report.terminal import Grid, print_run, print_summary

HOSTILE = "x | y\n# z <script>alert(1)</script> [a](http://b) `c` \x1b[31mred [bold]d[/bold]"


def told(run, topic):
    return [f"{finding.where}: {finding.text}" for finding in findings(run) if finding.topic == topic]


def row_of(report, *cells):
    """Returns the only table row that starts with these cells."""
    pattern = r"\|\s*" + r"\s*\|\s*".join(map(re.escape, cells)) + r"\s*\|"
    (line,) = (line for line in report.splitlines() if re.match(pattern, line))
    return [cell.strip() for cell in line.strip("|").split("|")]


def printed(run):
    stream = io.StringIO()
    print_run(run, Console(file=stream, width=100))
    return stream.getvalue()


def summed_up(run, width=100):
    stream = io.StringIO()
    print_summary(run, Console(file=stream, width=width))
    return stream.getvalue().splitlines()


def test_summary_of_a_sweep_names_node_bytes_and_time(sweep_run):
    """Counts, a sentence with the node of least peak, its bytes and its time against lif, and who is wrong."""
    counts, answer, wrong = summed_up(sweep_run)
    assert counts == "Run run-1: 28 in all: 24 ok, 4 wrong."
    assert answer == ("Least peak at layer T32-B8-N64 float32: lif-carrier, 134.00 KiB (0.411 × lif), time 1.53 × lif.")
    assert wrong == "Wrong gradient at some points, and ranked at none of them: revlif-revnet and revlif."


def test_an_operator_without_a_formula_is_named(make_record, make_run):
    """By the summary and the table of findings, once for all that it is true of, whatever its text."""
    records = [make_record(node=node, flops=None, uncounted=HOSTILE) for node in ("lif", "revlif")]
    run = make_run([*records, make_record(node="lif-carrier")])
    assert told(run, "Operations") == [f"lif, revlif: not counted: {HOSTILE}"]
    said = "Operations of lif, revlif: not counted: x | y # z <script>alert(1)</script> [a](http://b) `c` red [bold]d"
    assert said in " ".join(summed_up(run, 300)).replace("�", "").replace("[31m", "")
    assert r"<script>" not in row_of(markdown.render(run), "Operations")[2]


def test_a_gradient_that_no_pass_judged_is_named(make_record, make_run):
    """Where the pass was left out a node with a wrong gradient may lead, and each text says that none was judged."""
    nodes = ("lif", "revlif")
    run = make_run([make_record(node=node, timesteps=64, status="ok", fidelity=None) for node in nodes])
    said = "lif, revlif: not judged: the run left out the pass `fidelity`; what is ranked here may be wrong."
    assert told(run, "Gradient") == [said]
    assert f"Gradient of {said}" in " ".join(summed_up(run, 200))
    assert 'data-gradient="is right or was not judged"' in render_html(run, figures=[])
    fronts = [figure for figure in draw_figures(run) if figure.name in ("pareto-1", "breakdown-1")]
    for figure in fronts:
        assert "Only nodes whose gradient is right or was not judged take part." in figure.caption
    assert len(fronts) == 2
    part = told(make_run([*run, make_record(node="lif-carrier", timesteps=64)]), "Gradient")
    assert any("lif, revlif: not judged in 2 of 3 cases: " in text for text in part)


def test_summary_stays_short_however_much_was_measured(make_record, make_run):
    """Twenty workloads with failures and long reasons take twenty lines of at most 100 columns."""
    pairs = [(node, f"workload-{i}") for i in range(20) for node in ("lif", "lif-carrier")]
    records = [make_record(node=node, workload=workload) for node, workload in pairs]
    records += [make_record(node="lif", timesteps=t, status="error", reason=HOSTILE * 9) for t in range(1, 9)]
    records.append(make_record(node="revlif", timesteps=256))
    lines = summed_up(make_run(records))
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 100
    assert "16 more workloads and types are in the report." in lines
    assert lines[-1] == "6 more cases failed; the report has their reasons."
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("width", [80, 120])
def test_summary_tells_peak_and_time_with_its_interval_at_any_width(make_record, make_run, width):
    """Two settings have a row each: node, bytes, and the time with its interval, uncut, in 80 columns and in 120."""
    records = []
    for workload in ("layer", "conv-blocks-of-a-long-name"):
        slow = make_record(node="lif-carrier", workload=workload)
        own = tuple(sample * (1 + 0.04 * (i % 3)) for i, sample in enumerate(slow.time.backward_time_s))
        time = slow.time.model_copy(update={"backward_time_s": own})
        records += [make_record(node="lif", workload=workload), slow.model_copy(update={"time": time})]
    lines = summed_up(make_run(records), width)
    assert re.search(
        r"lif-carrier, 38.00 KiB \(0.442 × lif\), time 1\.\d+ \[1\.\d+, 1\.\d+\] × lif", " ".join(map(str.strip, lines))
    )
    rows = lines[-2:]
    for row in rows:
        assert re.search(r"  lif-carrier +38.00 KiB +0.442 .* 1\.\d+ \[1\.\d+, 1\.\d+\]$", row)
        assert len(row) <= width


def test_summary_of_nothing_says_so(make_run):
    """A run without a record has one line."""
    assert summed_up(make_run([])) == ["Run run-1: No case was recorded."]


def test_wrong_cases_are_not_ranked(make_record, make_run):
    """revlif keeps least at T = 16 and is wrong there: the ranking passes it over."""
    nodes = ("lif", "revlif", "revlif-anchored")
    run = make_run([make_record(node=node, timesteps=16) for node in nodes])
    (text,) = told(run, "Least retained memory")
    assert "revlif-anchored with 6.00 KiB (lif: 96.00 KiB)" in text
    assert told(run, "Memory ratio") == []


def test_wrong_case_shows_its_error_and_no_saving(sweep_run):
    """The row of a wrong case holds its gradient error and no memory, time or ratio."""
    cells = row_of(markdown.render(sweep_run), "16", "revlif", "wrong")
    assert cells[-1] == "4.3e+01"
    assert set(cells[3:-1]) == {units.ABSENT}


def test_winner_is_named_with_what_it_costs(sweep_run):
    """The first finding about memory names node, point, bytes and price."""
    (text,) = told(sweep_run, "Least retained memory")
    assert text.startswith("layer, T = 32, B = 8, features 64, float32, cpu: lif-carrier with 0 B (lif: 192.00 KiB).")
    assert "1.67 × lif in step FLOPs" in text
    assert "at 4 of the 4 points" in text


def test_memory_ratio_is_told_with_its_t(sweep_run):
    """The ratio lif / revlif is 3 T, and is never told without T."""
    (text,) = told(sweep_run, "Memory ratio")
    assert "12.0 times at T = 4, 24.0 times at T = 8;" in text


def test_inverse_gradient_saving_is_one_minus_the_quotient(sweep_run):
    """saving = 1 - (14 + 10) / (16 + 19) with the operations of the two nodes."""
    (text,) = told(sweep_run, "Inverse gradient")
    assert f"{100 * (1 - 24 / 35):.1f} % fewer backward and recompute FLOPs (2 points)" in text
    assert "20.0 % less backward time as a ratio to lif's" in text


def test_trust_tells_right_and_wrong_apart(sweep_run):
    """Each node is told with the T at which its gradient is right, and at which it is wrong."""
    text = next(text for text in told(sweep_run, "Gradient") if text.startswith("revlif-revnet, revlif;"))
    assert "right at T = 4, 8 (worst error 6.6e-04" in text
    assert "wrong at T = 16, 32 (worst error 1.8e+11" in text


def test_nan_is_the_worst_error(make_record, make_run):
    """A NaN gradient is never hidden behind a finite one, nor printed as nan."""
    run = make_run([make_record(node="revlif", timesteps=t) for t in (16, 256, 32)])
    assert "worst error not finite" in told(run, "Gradient")[0]
    assert not re.search(r"\bnan\b", markdown.render(run) + printed(run), re.IGNORECASE)


def test_a_gradient_that_is_wrong_in_its_parameters_alone_shows_that_error(make_record, make_run):
    """Not that of the input, which is within; one parameter is allowed ten tolerances."""
    record = make_record(node="lif", timesteps=4, status="wrong")
    fine = record.fidelity.model_copy(update={"gradient_error": 1e-6, "largest_parameter_error": 9e-3})
    assert not fine.beyond_tolerance()
    lost = record.model_copy(update={"fidelity": fine.model_copy(update={"largest_parameter_error": 1.0})})
    assert "wrong at T = 4 (worst error 1.0e+00, tolerance 1.0e-02)" in told(make_run([lost]), "Gradient")[0]


def test_warnings_of_nodes_are_told_once_each(sweep_run):
    """One warning given at two T is one finding that names both."""
    assert [text.split(":")[0] for text in told(sweep_run, "Warning")] == [
        "revlif-revnet, float32, at T = 16, 32",
        "revlif, float32, at T = 16, 32",
    ]


def test_warnings_that_differ_in_numbers_are_one(make_record, make_run):
    """The same words with another T and error are one finding, in the words of the smallest T; other words are two,
    and so are two types, whose names hold numbers, too."""
    records = []
    for t, dtype, text in (
        (32, "float32", "lost over 32 steps of float32 by 1e+00"),
        (16, "float32", "lost over 16 steps of float32 by 6e-01"),
        (8, "float32", "slow"),
        (4, "float16", "lost over 4 steps of float16 by 1e-02"),
    ):
        record = make_record(node="revlif", timesteps=t, dtype=dtype)
        fidelity = record.fidelity.model_copy(update={"warning": text})
        records.append(record.model_copy(update={"fidelity": fidelity}))
    expected = [
        "revlif, float32, at T = 16, 32: lost over 16 steps of float32 by 6e-01",
        "revlif, float32, at T = 8: slow",
        "revlif, float16, at T = 4: lost over 4 steps of float16 by 1e-02",
    ]
    assert told(make_run(records), "Warning") == expected


@pytest.mark.parametrize("status", ["oom", "timeout", "error", "skipped"])
def test_failed_case_is_shown_as_what_it_is(make_record, make_run, status):
    """A failed case appears in the table with its status and no number, and in the list with its reason."""
    run = make_run([make_record(node="lif", timesteps=4), make_record(node="lif", timesteps=8, status=status)])
    report = markdown.render(run)
    cells = row_of(report, "8", "lif", status)
    assert set(cells[3:]) == {units.ABSENT}
    assert row_of(report, "layer/lif/T8-B8-N64/float32/cpu", status)[-1] == f"ended as {status}"
    assert f"T8-B8-N64/float32/cpu {status}: ended as {status}" in printed(run)


def test_winner_without_lif_says_why(make_record, make_run):
    """Where the standard LIF ran out of memory the finding says so, instead of a ratio."""
    nodes = [make_record(node=node) for node in ("revlif", "lif-carrier")]
    run = make_run([make_record(node="lif", status="oom"), *nodes])
    assert "lif ended as oom there" in told(run, "Least retained memory")[0]


def test_hostile_text_stays_text_in_markdown(make_record, make_run):
    """Pipes, tags, links, newlines and escape codes in a record change neither the table nor the page."""
    record = make_record(node="bad|node`<b>", status="error", reason=HOSTILE)
    report = markdown.render(make_run([record, make_record(node="lif")], run_id="r|<i>"))
    assert "<" not in report
    assert "\x1b" not in report
    (line,) = (line for line in report.splitlines() if "alert" in line)
    assert len(re.findall(r"(?<!\\)\|", line)) == 5
    assert "\\[a\\](http" in line


def test_hostile_text_stays_text_in_the_terminal(make_record, make_run):
    """Rich markup and escape codes in a record are printed as text, or dropped."""
    text = printed(make_run([make_record(node="lif", status="error", reason=HOSTILE)]))
    assert "[bold]d[/bold]" in text
    assert "\x1b" not in text


def test_a_failure_is_told_whole_and_without_its_traceback(make_record, make_run):
    """A sentence longer than the terminal is wide is not cut off; what follows a blank line stays in the record."""
    sentence = f"my_net.py, line 7: {'what must hold, what was given, and how to mend it; ' * 4}end"
    record = make_record(node="lif", status="error", reason=f"{sentence}\n\nTraceback (most recent call last)")
    text = "\n".join(summed_up(make_run([record]), width=80))
    assert sentence in " ".join(text.split())
    assert "Traceback" not in text


@pytest.mark.parametrize("width", [80, 100, 120])
def test_terminal_breaks_no_word(sweep_run, width):
    """No line is wider than the terminal, and each row with its node and numbers stands on one line."""
    stream = io.StringIO()
    print_run(sweep_run, Console(file=stream, width=width))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert any(line.split()[:4] == ["16", "revlif-anchored", "ok", "6.00"] for line in lines)


@pytest.mark.parametrize(("width", "count"), [(32, 4), (60, 5), (80, 4), (200, 4)])
def test_a_grid_breaks_no_word_at_any_width(width, count):
    """Every cell is on some line in one piece: in a table, below its first cell, or by itself."""
    table = Grid("Title", ["case", "metric", "change"], [False, False, True])
    cells = ("layer/lif-carrier/T16-B8-N65536", "recompute_flops", "+1,048,576 B (+8.33 %)")
    table.add_row(*cells)
    stream = io.StringIO()
    Console(file=stream, width=width).print(table)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert all(any(cell in line for line in lines) for cell in cells)
    assert len(lines) == count


def test_a_long_cell_gets_the_room_of_the_first_one():
    """A sentence beside wide cells would be a column of single words: the first cell goes on a line of its own."""
    table = Grid("Title", ["case", "before", "what"])
    table.add_row("net:make/as-is/T8-B4-N16/float32/cpu" * 2, "ok", "why it failed, in words " * 9)
    stream = io.StringIO()
    Console(file=stream, width=100).print(table)
    assert len(stream.getvalue().splitlines()) < 10
    assert "why it failed, in words why it failed, in words" in stream.getvalue()


def test_every_case_is_in_the_report(sweep_run, make_record, make_run):
    """A case outside of all sweeps has its row too."""
    run = make_run([*sweep_run, make_record(node="lif", workload="conv", dtype="float16")])
    assert row_of(markdown.render(run), "conv T8-B8-N64 float16 cpu", "lif", "ok")
    assert "conv T8-B8-N64" in printed(run)


def test_accuracy_is_shown_where_it_was_measured(make_record, make_run, make_accuracy):
    """Accuracy appears as a finding and as a table, with the budget; a run without it has neither."""
    records = [
        make_record(node="lif", accuracy=make_accuracy(0.992)),
        make_record(node="lif-carrier", accuracy=make_accuracy(0.991, stripped=0.992)),
    ]
    run = make_run(records)
    assert told(run, "Accuracy") == ["layer, T = 8, B = 8, features 64, float32, cpu: lif 99.2 %, lif-carrier 99.1 %."]
    cells = row_of(markdown.render(run), "layer/lif-carrier/T8-B8-N64/float32/cpu", "ok", "99.1 %")
    assert cells[3:] == ["99.2 %", "12.50 s", "digits, 10 epochs", "1437", "360"]
    assert "## Accuracy" not in markdown.render(make_run([make_record(node="lif")]))


def test_a_training_alone_has_no_row_of_costs(make_record, make_run, make_accuracy):
    """`train` measures no cost of a step: a table of dashes would say nothing; its accuracy is in the terminal too."""
    none = dict.fromkeys(("memory", "flops", "time", "fidelity"))
    trained = make_record(node="lif-carrier", accuracy=make_accuracy(0.991, stripped=0.992), **none)
    run = make_run([trained])
    assert "Single points" not in markdown.render(run)
    assert "Single points" not in printed(run)
    assert re.search(r"lif-carrier/T8-B8-N64/float32/cpu +ok +99.1 % +99.2 % +12.50 s", printed(run))
    assert row_of(
        markdown.render(make_run([make_record(node="lif", status="oom")])), "layer T8-B8-N64 float32 cpu", "lif", "oom"
    )


def test_contended_rounds_are_told(make_record, make_run):
    """Times for which threads waited for a core are named, and what they waited for; quiet runs say nothing."""
    quiet = make_record(node="lif")

    def waited(others_cores):
        time = quiet.time.model_copy(update={"rounds_contended": 3, "others_cores": others_cores})
        return quiet.model_copy(update={"time": time})

    for others_cores in (None, 0.5):
        (text,) = told(make_run([quiet, waited(others_cores)]), "Contention")
        assert text.startswith("1 of 2 timed cases: other work held the processor in 3 rounds that were kept. These")
    (text,) = told(make_run([waited(0.5), waited(0.012), waited(0.02)]), "Contention")
    assert "other work held the processor in 3 rounds that were kept; threads waited for a core in 6 rounds" in text
    assert "while other processes took at most 0.02 cores: the case's own threads are more than the cores." in text
    assert told(make_run([quiet]), "Contention") == []


def test_a_time_that_is_not_decided_has_a_question_mark_in_the_terminal(make_record, make_run):
    """There is no room for the words; without the mark it would read as a decided one."""
    lif, carrier = make_record(node="lif"), make_record(node="lif-carrier")
    waited = carrier.model_copy(update={"time": carrier.time.model_copy(update={"rounds_contended": 1})})
    for record, shown in ((carrier, "1.53"), (waited, "1.53?")):
        (row,) = re.findall("^.*lif-carrier +ok .*$", printed(make_run([lif, record])), re.MULTILINE)
        assert shown in row.split()


def test_the_standard_that_wins_costs_nothing_against_itself(make_record, make_run):
    """Neither its bytes nor its cost is told a second time as that of what all others are held against."""
    run = make_run([make_record(node="lif"), make_record(node="revlif-stored")])
    (text,) = told(run, "Least peak memory")
    assert ": lif and revlif-stored with 86.00 KiB. Cost of revlif-stored: 1.67 × lif" in text


def test_nodes_of_one_point_stand_below_it(make_record, make_run):
    """A point that is too wide for its column is a line above its nodes, not four lines beside each of them."""
    nodes = ("lif", "lif-checkpoint", "lif-carrier")
    run = make_run([make_record(node=node, workload="package.module:network", shape=(2, 64, 64)) for node in nodes])
    lines = printed(run).split("Single points")[1].splitlines()
    start = lines.index("package.module:network T8-B8-N2x64x64 float32 cpu")
    assert [line.split()[0] for line in lines[start + 1 : start + 4]] == [*nodes]


def test_environment_and_columns_are_explained(sweep_run):
    """The report says where it was measured and what each quantity means."""
    report = markdown.render(sweep_run)
    assert row_of(report, "torch")[-1] == "2.13.0+cpu"
    assert row_of(report, "retained_bytes", "retained")[2] == BY_NAME["retained_bytes"].meaning
    assert "device_peak_bytes" not in report


def test_empty_run_is_a_report(make_run):
    """A run without a record says so, in both outputs."""
    assert "No case was recorded." in markdown.render(make_run([]))
    assert "No case was recorded." in printed(make_run([]))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (2**20 - 1, "1.00 MiB"), (3 * 2**19, "1.50 MiB")],
)
def test_bytes_are_binary_and_labelled_so(value, text):
    """MiB is 2^20 bytes; small counts stay exact."""
    assert units.number(BY_NAME["peak_bytes"], value) == text


def test_a_half_is_rounded_up():
    """3.125 MiB, as predicted, and 32 bytes more, as measured, read the same; so do operations."""
    assert [units.size(value) for value in (3276800, 3276832, 1179648, -1179648)] == ["3.13 MiB"] * 2 + [
        "1.13 MiB",
        "-1.13 MiB",
    ]
    assert units.number(BY_NAME["step_flops"], 1125) == "1.13 kFLOP"


def test_seconds_that_round_up_take_the_next_unit():
    """Nothing reads 1000.00 ms or 1000.00 µs."""
    assert [units.seconds(value) for value in (0.999996, 0.99999, 9.99996e-4, 0.0, 2e-9)] == [
        "1.00 s",
        "999.99 ms",
        "1.00 ms",
        "0.00 µs",
        "0.00 µs",
    ]


def test_ratios_have_three_digits_where_rounding_carries():
    """0.09999 and 9.999 are rounded before their digits are counted."""
    assert [units.times(value) for value in (0.09999, 9.999, 0.5, 123.4)] == ["0.100", "10.0", "0.500", "123"]
