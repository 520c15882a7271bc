"""Points: the standard LIF a ratio is taken against, intervals of ratios, and growth as a line or a power."""

import math
from fractions import Fraction

import numpy as np
import pytest

from revsnn_bench.case import Case
from revsnn_bench.measuring import Settings
from revsnn_bench.report import units
from revsnn_bench.report.findings import findings
from revsnn_bench.report.points import (
    Ratio,
    find_fit,
    growths,
    naming,
    namings,
    ratio_of,
    ratio_of_times,
    ratio_text,
    reference_for,
    references,
    sweeps,
)
from revsnn_bench.runner import measure_in_processes


def found(run, variant, metric, axis="timesteps"):
    (growth,) = (g for g in growths(run, axis) if (g.fixed.variant, g.metric) == (variant, metric))
    return growth


@pytest.mark.parametrize(
    ("variant", "formula"),
    [
        ("lif", "3.00 b N T"),
        ("revlif-stored", "3.00 b N T"),
        ("revlif", "1.00 b N, independent of T"),
        ("revlif-revnet", "1.00 b N, independent of T"),
        ("revlif-anchored", "0.25 b N T - 1.00 b N"),
        ("lif-carrier", "0 B, independent of T"),
    ],
)
def test_retained_bytes_are_told_in_closed_form(sweep_run, variant, formula):
    """The formula of the report is the closed form that the bytes were made from."""
    assert found(sweep_run, variant, "retained_bytes").formula() == formula


def test_growth_names_where_it_was_measured_and_where_the_gradient_is_wrong(sweep_run):
    """A growth holds its positions, and those at which the gradient is wrong."""
    growth = found(sweep_run, "revlif", "retained_bytes")
    assert growth.at == (4, 8, 16, 32)
    assert growth.wrong_at == (16, 32)


def test_checkpointing_is_no_line_and_gets_a_power(sweep_run):
    """ceil(sqrt T) segments make no exact line: the growth is stated as a power below 1."""
    fit = found(sweep_run, "lif-checkpoint", "retained_bytes").fit
    assert fit.form == "power"
    assert 0.9 < fit.exponent < 1.0
    assert fit.r_squared > 0.99


def test_times_get_an_exponent_and_only_where_the_gradient_is_right(sweep_run):
    """Times never get an exact line, and times of wrong cases take no part."""
    lif, revlif = (found(sweep_run, variant, "step_time_s") for variant in ("lif", "revlif"))
    assert lif.formula() == "T^1.00 (r² = 1.000)"
    assert revlif.at == (4, 8)
    assert revlif.formula() == "T^1.00 (two points)"


def test_operations_are_counted_per_neuron_and_step(sweep_run):
    """FLOPs carry no itemsize: 6 per neuron and step is `6.00 N T`."""
    assert found(sweep_run, "lif", "forward_flops").formula() == "6.00 N T"


def test_batch_sweep_is_told_with_the_same_symbols(make_record, make_run):
    """Along B, bytes in proportion to B are told as b N T too, since N holds the batch."""
    run = make_run([make_record(node="lif", batch=b) for b in (2, 4, 8)])
    assert found(run, "lif", "retained_bytes", "batch").formula() == "3.00 b N T"


def test_depth_sweep_of_a_network_is_told_in_plain_units(make_record, make_run):
    """A network has no single N, so its growth is told in bytes per block."""
    run = make_run([make_record(node="lif", workload="conv", depth=d) for d in (1, 2, 4)])
    assert found(run, "lif", "retained_bytes", "depth").formula() == "48.00 KiB D"


def test_one_position_is_no_growth(make_record, make_run):
    """Nothing is said about growth from a single position, or across different batches."""
    run = make_run([make_record(node="lif", timesteps=4, batch=2), make_record(node="lif", timesteps=8, batch=4)])
    assert growths(run, "timesteps") == growths(run, "batch") == []


def test_a_gradient_judged_alone_makes_no_sweep_along_the_batch(make_record, make_run):
    """Another batch of which nothing was weighed is no position; along T, where errors grow, it is one."""
    alone = {"memory": None, "flops": None, "time": None}
    records = [make_record(node="lif-carrier", timesteps=t, batch=1, **alone) for t in (4, 8)]
    run = make_run([make_record(node="lif", timesteps=4, batch=8), *records])
    assert sweeps(run, "batch") == []
    assert [sweep.title for sweep in sweeps(run, "timesteps")] == ["layer, B = 1, features 64, float32, cpu"]


def test_failed_positions_take_no_part(make_record, make_run):
    """A case out of memory does not bend the line towards 0."""
    run = make_run([make_record(node="lif", timesteps=t, status="oom" if t == 32 else None) for t in (4, 8, 16, 32)])
    growth = found(run, "lif", "retained_bytes")
    assert growth.at == (4, 8, 16)
    assert growth.formula() == "3.00 b N T"


def test_small_intercept_is_shown_in_bytes(make_record, make_run):
    """8 bytes beside 3 b N T are told as `8 B`, not as `0.00 b N`."""
    records = []
    for t in (4, 8, 16):
        record = make_record(node="lif", timesteps=t)
        memory = record.memory.model_copy(update={"retained_bytes": record.memory.retained_bytes + 8})
        records.append(record.model_copy(update={"memory": memory}))
    assert found(make_run(records), "lif", "retained_bytes").formula() == "3.00 b N T + 8 B"


def test_line_is_exact_or_not_a_line():
    """One byte off the line makes it a power; two points are never called a line."""
    line = find_fit((4, 8, 16), (13, 25, 49))
    assert (line.form, line.slope, line.intercept) == ("linear", Fraction(3), Fraction(1))
    assert find_fit((4, 8, 16), (13, 25, 50)).form == "power"
    assert find_fit((4, 8), (13, 25)).form == "power"


def test_values_without_a_form_are_listed():
    """Zero at some positions and not on a line: no form is claimed."""
    assert find_fit((4, 8, 16), (0, 0, 64)).form == "irregular"


def test_square_growth_is_found():
    """T^2 comes back with exponent 2."""
    fit = find_fit((4, 8, 16), (16.0, 64.0, 256.0))
    assert fit.exponent == pytest.approx(2.0)
    assert fit.r_squared == pytest.approx(1.0)


def test_constant_times_have_exponent_zero():
    """Equal float samples fit the power 0 without a warning."""
    assert find_fit((4, 8, 16), (1.5, 1.5, 1.5)).exponent == 0.0


def test_lif_with_the_same_options_stands_in_where_the_plain_one_is_missing(make_record, make_run):
    """Nodes that do not decay their input are held against the lif that does not; with a plain lif, against that."""
    options = {"decay_input": False}
    lif = make_record(Case(node="lif", shape=(64,), node_options=options))
    more = make_record(Case(node="lif-carrier", shape=(64,), node_options=options | {"tau": 3.0}))
    other = make_record(Case(node="lif-checkpoint", shape=(64,), node_options={"tau": 3.0}))
    lifs = references(make_run([lif, more, other]))
    assert reference_for(more.case, lifs) is lif
    assert reference_for(lif.case, lifs) is lif
    assert reference_for(other.case, lifs) is None
    (found,) = (f for f in findings(make_run([lif, more, other])) if f.topic == "Least retained memory")
    assert "lif-carrier with 0 B (lif: 48.00 KiB)" in found.text
    assert found.where.endswith(
        "lif and lif-carrier have decay_input=False; lif-carrier and lif-checkpoint have tau=3.0."
    )
    plain = make_record(node="lif")
    assert reference_for(more.case, references(make_run([lif, plain, more]))) is plain


def coverage(processes, rounds, between, draws=2000):
    """Share of the intervals that hold the true ratio 1, of simulated times that differ from process to process."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(draws):
        own, lif = [], []
        for _ in range(processes):
            level = math.exp(random.normal(0, between))
            drift = random.lognormal(0, 0.3, rounds)  # meets both alike
            own += list(level * drift * random.lognormal(0, 0.05, rounds))
            lif += list(drift * random.lognormal(0, 0.05, rounds))
        found = ratio_of_times(tuple(own), tuple(lif), (rounds,) * processes)
        held += found.low <= 1 <= found.high
    return held / draws


@pytest.mark.parametrize(
    ("processes", "rounds", "between"),
    [(2, 5, 0.0), (2, 20, 0.1), (3, 5, 0.0), (3, 5, 0.03), (3, 20, 0.1), (5, 5, 0.03)],
)
def test_intervals_cover_what_they_say(processes, rounds, between):
    """At least 93 %, at the numbers of rounds and processes in use, however much processes differ."""
    assert coverage(processes, rounds, between) >= 0.93


@pytest.mark.parametrize(
    ("changes", "topic"), [({"rounds_by_process": ()}, "Times"), ({"rounds_contended": 1}, "Contention")]
)
def test_a_time_of_one_process_or_of_disturbed_rounds_is_not_decided(make_record, make_run, changes, topic):
    """However many rounds one process took, they do not tell how processes differ; a finding says so."""
    record = make_record(node="lif-carrier")
    assert ratio_of("step_time_s", record).decided
    changed = record.model_copy(update={"time": record.time.model_copy(update=changes)})
    found = ratio_of("step_time_s", changed)
    assert not found.decided
    assert ratio_text(found).endswith("(not decided)")
    told = {each.topic: each.where for each in findings(make_run([record, changed]))}
    assert {name: told.get(name) for name in ("Times", "Contention")} == {"Times": None, "Contention": None} | {
        topic: "1 of 2 timed cases"
    }


def test_times_of_one_process_say_what_to_do(make_record, make_run):
    """The option by its name in pytest and on the command line; of several asked for, that the second failed; nothing
    of a run that has no such option, as of `tune`."""
    record = make_record(node="lif-carrier")
    run = make_run([record.model_copy(update={"time": record.time.model_copy(update={"rounds_by_process": ()})})])

    def advice(processes=1, **header):
        header["settings"] = {"processes": processes} if processes else {}
        changed = run.model_copy(update={"header": run.header.model_copy(update=header)})
        return next(each.text for each in findings(changed) if each.topic == "Times")

    assert advice().endswith("Pass --processes 3, or leave it out.")
    assert advice(command=("pytest", "--benchmark")).endswith("Pass --run-processes 3, or leave it out.")
    assert "Of the 3 that were to take them, the second ended without" in advice(processes=3)
    assert "Pass" not in advice(processes=3) + advice(processes=None)


@pytest.mark.parametrize("fine", [1, 2, 3])
def test_a_process_that_fails_takes_no_other_ones_times(make_record, fine):
    """A case is timed by the processes before the one that failed."""
    record = make_record(node="lif-carrier")
    times = record.time.model_copy(update={"rounds_by_process": ()})

    class Failing:
        left = fine

        def run(self, case, settings):
            self.left -= 1
            return record.model_copy(update={"time": times if self.left >= 0 else None})

    found = measure_in_processes(Failing(), record.case, Settings()).time
    assert len(found.rounds_by_process) == (fine if fine > 1 else 0)


def test_ratio_shows_its_interval_unless_it_says_nothing():
    """An interval that prints like its ratio is left out."""
    assert ratio_text(Ratio(1.5, 1.4, 1.6)) == "1.50 [1.40, 1.60]"
    assert ratio_text(Ratio(1.5, 1.4999, 1.5001)) == "1.50"
    assert ratio_text(None) == units.ABSENT


def names_of(make_record, *nodes):
    """What the nodes of a table are called, and what is said once beside it."""
    records = [make_record(node=node, node_options=options) for node, options in nodes]
    names = naming(records)
    return [names(record.case) for record in records], names.note


def test_options_that_all_share_are_said_once(make_record):
    """A name holds only the options in which nodes differ; one that only some nodes take is said to be theirs."""
    torch, fused, grouped = {"backend": "torch"}, {"backend": "fused"}, {"backend": "torch", "group_dim": 1}
    same = names_of(make_record, ("lif", torch), ("lif-carrier", torch))
    assert same == (["lif", "lif-carrier"], "Every node has backend=torch.")
    differ = names_of(make_record, ("lif", torch), ("lif", fused), ("revlif-revnet", {}))
    assert differ == (["lif[backend=torch]", "lif[backend=fused]", "revlif-revnet"], "")
    with_and_without = names_of(make_record, ("lif", torch), ("lif", {}))
    assert with_and_without == (["lif[backend=torch]", "lif"], "")
    some = names_of(make_record, ("lif", torch), ("revlif", grouped))
    assert some == (["lif", "revlif[group_dim=1]"], "Every node has backend=torch.")
    two = names_of(make_record, ("lif", torch), ("revlif", grouped), ("revlif-anchored", grouped))
    assert two == (
        ["lif", "revlif", "revlif-anchored"],
        "Every node has backend=torch; revlif and revlif-anchored have group_dim=1.",
    )


def test_ids_hold_what_names_hold(make_record):
    """Of two cases that differ in an option the ids differ; what both have is in neither."""
    records = [make_record(node="lif", node_options={"backend": "torch", "tau": tau}) for tau in (2.0, 4.0)]
    names = naming(records)
    assert [names.id(record.case).split("/")[1] for record in records] == ["lif[tau=2.0]", "lif[tau=4.0]"]


def test_each_workload_says_its_own_shared_options(make_record):
    """In a table of two workloads a backend is in the names of that one alone in which backends differ."""
    torch, fused = {"backend": "torch"}, {"backend": "fused"}
    layer = [make_record(node="lif", node_options=options) for options in (torch, fused)]
    records = [*layer, make_record(node="lif", workload="vgg11", node_options=torch)]
    names = namings(records)
    assert [names(record.case) for record in records] == ["lif[backend=torch]", "lif[backend=fused]", "lif"]
    assert names.note == "In vgg11 every node has backend=torch."
    double = make_record(node="lif", dtype="float64", node_options=torch)
    said = namings([*records, double]).note
    assert said == "In vgg11 and layer float64 cpu every node has backend=torch."
