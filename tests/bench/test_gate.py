"""The gate: each planted regression is found, named with both values, and ends with its own exit code.

Slowdowns beyond the threshold are found; noise and slower machines are not.
"""

import math
import random

import pytest

from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.gate import Kind, Policy, formats, gate
from revsnn_bench.records import PhaseFlops, Status

TIMED = Policy(time_ratio_percent=20)


def with_memory(record, **more):
    memory = {name: getattr(record.memory, name) + extra for name, extra in more.items()}
    return record.model_copy(update={"memory": record.memory.model_copy(update=memory)})


def with_recompute(record, pointwise):
    recompute = PhaseFlops(pointwise=pointwise, multiply_accumulate=0)
    return record.model_copy(update={"flops": record.flops.model_copy(update={"recompute": recompute})})


@pytest.fixture
def record(make_record):
    return make_record(node="lif-checkpoint", timesteps=4, batch=8)


def test_run_passes_against_itself(sweep_run):
    """Wrong cases included, nothing differs and every gated value that was measured was compared."""
    verdict = gate(sweep_run, sweep_run)
    assert verdict.exit_code is ExitCode.PASS
    assert {finding.kind for finding in verdict.findings} == {Kind.NOTE}
    assert verdict.values_compared == len(sweep_run.records) * 10
    assert not formats.advice(verdict)


def test_one_tensor_more_per_step_is_a_regression(make_run, record):
    """A membrane more kept at each of 4 steps: the message has case, metric, both values and the bytes added."""
    extra = 4 * 4 * 8 * 64
    worse = with_memory(record, retained_bytes=extra, peak_bytes=extra)
    verdict = gate(make_run([worse]), make_run([record]))
    assert verdict.exit_code is ExitCode.REGRESSION
    assert [finding.metric for finding in verdict.failures] == ["retained_bytes", "peak_bytes"]
    assert formats.sentence(verdict.failures[0]) == (
        "layer/lif-checkpoint/T4-B8-N64/float32/cpu: retained_bytes 10,240 B -> 18,432 B, +8,192 B (+80 %); grew"
    )


def test_extra_recomputation_is_a_regression(make_run, record):
    """Recomputing twice is told once, under the metric that it belongs to."""
    before = record.flops.recompute.total
    verdict = gate(make_run([with_recompute(record, 2 * before)]), make_run([record]))
    (finding,) = verdict.failures
    assert (finding.metric, finding.before, finding.after) == ("recompute_flops", before, 2 * before)
    assert verdict.exit_code is ExitCode.REGRESSION


def test_one_byte_fails_and_a_tolerance_excuses_it(make_run, record):
    """The default is exact; a tolerance holds for its own metric, up to and including its percentage."""
    baseline = make_run([record])
    percent = record.memory.peak_bytes // 100
    assert gate(make_run([with_memory(record, peak_bytes=1)]), baseline).exit_code is ExitCode.REGRESSION
    for grown, tolerance, code in (
        (percent, {"peak_bytes": 1}, ExitCode.PASS),
        (percent + 1, {"peak_bytes": 1}, ExitCode.REGRESSION),
        (percent, {"retained_bytes": 1}, ExitCode.REGRESSION),
    ):
        run = make_run([with_memory(record, peak_bytes=grown)])
        verdict = gate(run, baseline, Policy(tolerance_percent=tolerance))
        assert (verdict.exit_code, verdict.tolerated) == (code, code is ExitCode.PASS)


def test_growth_from_zero_is_beyond_every_percentage(make_run, make_record):
    """A node that kept nothing and now keeps one byte fails under any tolerance."""
    carrier = make_record(node="lif-carrier")
    run = make_run([with_memory(carrier, retained_bytes=1)])
    verdict = gate(run, make_run([carrier]), Policy(tolerance_percent={"retained_bytes": 1000}))
    assert verdict.exit_code is ExitCode.REGRESSION
    assert "0 B -> 1 B, +1 B (from 0)" in formats.sentence(verdict.failures[0])


def test_improvement_is_reported_and_passes(make_run, record):
    """Fewer bytes pass, and the advice is to keep them."""
    verdict = gate(make_run([with_memory(record, retained_bytes=-2048)]), make_run([record]))
    assert verdict.passed
    assert [finding.metric for finding in verdict.improvements] == ["retained_bytes"]
    assert any("--update-baseline" in line and "--force" not in line for line in formats.advice(verdict))


def test_two_runs_without_a_gated_value_are_no_pass(make_run, record):
    """As after `--passes time`: unless times are gated, nothing was judged, and the advice is what to measure."""
    run = make_run([record.model_copy(update={"memory": None, "flops": None})])
    verdict = gate(run, run)
    assert verdict.exit_code is ExitCode.NOT_COMPARABLE
    assert formats.headline(verdict).endswith("no case has a gated value in both.")
    assert "the passes memory and flops" in formats.advice(verdict)[0]
    assert gate(run, run, TIMED).passed
    record = run.records[0]
    alone = record.model_copy(update={"time": record.time.model_copy(update={"rounds_by_process": ()})})
    for bare in (make_run([alone]), make_run([record.model_copy(update={"time": None})])):
        assert gate(bare, bare, TIMED).exit_code is ExitCode.NOT_COMPARABLE


def test_metric_that_was_lost_is_a_regression(make_run, record):
    """A run measured without FLOPs does not pass for one that needs none."""
    verdict = gate(make_run([record.model_copy(update={"flops": None})]), make_run([record]))
    assert {finding.kind for finding in verdict.failures} == {Kind.UNMEASURED}
    assert {finding.metric for finding in verdict.failures} == {"forward_flops", "backward_flops", "recompute_flops"}
    assert gate(make_run([record]), make_run([record.model_copy(update={"flops": None})])).passed


def test_a_gradient_that_is_no_longer_judged_is_a_regression(make_run, make_record, record):
    """A run without the pass `fidelity` has no wrong case; that is no pass, and makes no wrong case right."""
    wrong = make_record(node="revlif", timesteps=32)
    for before in (record, wrong):
        bare = before.model_copy(update={"fidelity": None, "status": Status.OK, "reason": None})
        (finding,) = gate(make_run([bare]), make_run([before])).failures
        assert "gradient_error; no longer measured; the pass `fidelity` was left out" in formats.sentence(finding)
        assert gate(make_run([bare]), make_run([bare])).passed


def test_renamed_case_is_removed_and_added(make_run, make_record, record):
    """A rename fails twice, until both names are allowed; where nothing else is there, nothing was compared."""
    renamed = record.model_copy(update={"case": record.case.model_copy(update={"node": "checkpointed"})})
    run, baseline = make_run([renamed]), make_run([record])
    verdict = gate(run, baseline)
    assert [(f.kind, f.case) for f in verdict.failures] == [
        (Kind.REMOVED, record.case.id),
        (Kind.ADDED, renamed.case.id),
    ]
    assert verdict.exit_code is ExitCode.REGRESSION
    assert "0 values of 0 cases compared, 2 fail" in formats.headline(verdict)
    assert not gate(run, baseline, Policy(allow=(record.case.id,))).passed
    both, other = Policy(allow=(record.case.id, "layer/checkpointed/*")), make_record(node="revlif")
    assert gate(run, baseline, both).exit_code is ExitCode.NOT_COMPARABLE
    assert gate(make_run([renamed, other]), make_run([record, other]), both).passed


def test_case_with_brackets_in_its_id_is_allowed_by_its_id(make_run, make_record):
    """An id is taken literally, although brackets mean something in patterns."""
    case, other = make_record(node="revlif-anchored", node_options={"anchor_every": 2}), make_record(node="revlif")
    assert "[" in case.case.id
    assert gate(make_run([case, other]), make_run([other]), Policy(allow=(case.case.id,))).passed


@pytest.mark.parametrize("status", ["error", "oom", "timeout"])
def test_newly_failing_case_has_its_own_exit_code(make_run, make_record, status):
    """A crash, a lack of memory and a timeout end with 5, say the reason, and are excused by name alone.

    A pattern that excuses every case makes no pass: nothing was compared.
    """
    good, other = make_record(node="revlif"), make_record(node="lif")
    run, baseline = make_run([make_record(node="revlif", status=status), other]), make_run([good, other])
    verdict = gate(run, baseline)
    assert verdict.exit_code is ExitCode.CASE_FAILED
    assert f"status ok -> {status}; newly failing; ended as {status}" in formats.sentence(verdict.failures[0])
    assert gate(run, baseline, Policy(allow=("layer/revlif/*",))).passed
    assert gate(run, make_run([]), Policy()).exit_code is ExitCode.CASE_FAILED
    nothing = gate(make_run(run.records[:1]), make_run([good]), Policy(allow=("*",)))
    assert nothing.exit_code is ExitCode.NOT_COMPARABLE
    assert "newly failing" in formats.render_table(nothing, run)


def test_failed_case_outranks_a_regression(make_run, make_record, record):
    """With both, the exit code says that not everything was compared; both are listed."""
    good, bad = make_record(node="revlif"), make_record(node="revlif", status="error")
    worse = with_memory(record, peak_bytes=1)
    verdict = gate(make_run([worse, bad]), make_run([record, good]))
    assert verdict.exit_code is ExitCode.CASE_FAILED
    assert {finding.kind for finding in verdict.failures} == {Kind.GREW, Kind.FAILED}


def test_case_that_fails_in_both_passes_unless_it_fails_otherwise(make_run, make_record):
    """A known lack of memory is no news; a crash in its place is."""
    oom, error = make_record(status="oom", node="lif"), make_record(status="error", node="lif")
    other = make_record(node="revlif")
    assert gate(make_run([oom, other]), make_run([oom, other])).passed
    assert gate(make_run([oom]), make_run([oom])).exit_code is ExitCode.NOT_COMPARABLE
    assert gate(make_run([error]), make_run([oom])).exit_code is ExitCode.CASE_FAILED


def test_skipped_case_is_a_vanished_measurement(make_run, make_record):
    """A case that was measured and is now skipped fails; one that was skipped before does not."""
    good, skipped = make_record(node="lif"), make_record(node="lif", status="skipped")
    other = make_record(node="revlif")
    assert gate(make_run([skipped]), make_run([good])).exit_code is ExitCode.REGRESSION
    assert gate(make_run([skipped, other]), make_run([good, other]), Policy(allow=("*",))).passed
    assert gate(make_run([skipped, other]), make_run([skipped, other])).passed
    assert gate(make_run([good]), make_run([skipped])).passed


def test_newly_wrong_gradient_is_never_allowed_by_name(make_run, record):
    """A gradient that became wrong fails under every pattern."""
    wrong = record.model_copy(update={"status": Status.WRONG, "reason": "gradient_error 0.3"})
    verdict = gate(make_run([wrong]), make_run([record]), Policy(allow=("*",)))
    assert verdict.exit_code is ExitCode.REGRESSION
    assert formats.sentence(verdict.failures[0]).endswith("status ok -> wrong; newly wrong; gradient_error 0.3")
    assert gate(make_run([record]), make_run([wrong])).passed


def test_case_wrong_in_both_is_compared_all_the_same(make_run, make_record):
    """Bytes of a wrong case are exact, so they are gated; that it is wrong is said."""
    wrong = make_record(node="revlif", timesteps=32)
    assert wrong.status is Status.WRONG
    verdict = gate(make_run([with_memory(wrong, retained_bytes=4)]), make_run([wrong]))
    assert [finding.metric for finding in verdict.failures] == ["retained_bytes"]
    assert ["the same in the baseline" in finding.detail for finding in verdict.remarks] == [True]


def test_other_torch_is_not_comparable(make_run, record):
    """The field is named with both values, nothing is compared, and a flag compares in spite of it."""
    run, baseline = make_run([record]), make_run([record], torch="2.6.0+cpu")
    verdict = gate(run, baseline)
    assert verdict.exit_code is ExitCode.NOT_COMPARABLE
    assert "torch is 2.6.0+cpu in the baseline and 2.13.0+cpu in the run" in formats.headline(verdict)
    assert verdict.values_compared == 0
    assert any("--allow-environment torch" in line for line in formats.advice(verdict))
    told = gate(run, baseline, Policy(allow_environment=("torch",)))
    assert told.passed
    assert told.allowed_differences == (("torch", "2.6.0+cpu", "2.13.0+cpu"),)


def test_a_peak_of_another_processor_is_told_to_be(make_run, record):
    """Convolutions take other scratch there: the peak counts all the same, and the processors stand beside it."""
    before, worse = make_run([record]), make_run([with_memory(record, peak_bytes=9_088)])
    assert not gate(worse, before).remarks
    place = before.header.environment.model_copy(update={"cpu_model": "Another CPU"})
    moved = worse.model_copy(update={"header": worse.header.model_copy(update={"environment": place})})
    verdict = gate(moved, before)
    assert verdict.exit_code is ExitCode.REGRESSION
    assert "cpu_model Some CPU -> Another CPU; scratch of conv" in formats.sentence(verdict.remarks[0])
    assert not gate(moved, moved).remarks


def test_pattern_that_names_nothing_is_said(make_run, record):
    """A typing error in a pattern does not pass in silence; two patterns for one case are both in use."""
    run = make_run([record])
    (remark,) = gate(run, run, Policy(allow=("layer/*", "*", "layr/*"))).remarks
    assert "'layr/*'" in remark.detail


def test_last_record_of_a_case_counts(make_run, record):
    """A case measured again replaces its first attempt."""
    worse = with_memory(record, peak_bytes=1)
    assert gate(make_run([worse, record]), make_run([record])).passed
    assert not gate(make_run([record, worse]), make_run([record])).passed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance_percent": {"retained_byte": 1}}, "Did you mean retained_bytes"),
        ({"tolerance_percent": {"peak": 1}}, r"got 'peak'. Did you mean peak_bytes or device_peak_bytes\?"),
        ({"tolerance_percent": {"step_flop": 1}}, r"Did you mean step_flops\?"),
        ({"tolerance_percent": {"zzz": 1}}, "Pass one of backward_flops, backward_recompute_flops, device_peak_bytes,"),
        ({"tolerance_percent": {"step_time_s": 1}}, "must name a metric that repeats exactly; got 'step_time_s'"),
        ({"tolerance_percent": {"peak_bytes": -1}}, "tolerance of peak_bytes` must be a percentage of at least 0"),
        ({"time_ratio_percent": float("nan")}, "time_ratio_percent` must be a percentage"),
        ({"allow_environment": ("pytorch",)}, "Did you mean torch"),
    ],
)
def test_policy_refuses_what_it_cannot_mean(options, message):
    """A typing error in a policy is an error, not a gate that looks away."""
    with pytest.raises(ValueError, match=message):
        Policy(**options)


@pytest.fixture
def timed(make_record):
    """Makes a record timed by three processes whose rounds are noisy, with slow ones that hit case and lif alike."""

    def make(factor, *, seed, rounds=7, machine=1.0, noise=0.05, apart=0.0, node="revlif", timesteps=4, **changes):
        record = make_record(node=node, timesteps=timesteps)
        generator = random.Random(seed)
        processes = [factor * math.exp(generator.gauss(0, apart)) for _ in range(3)]
        load = [machine * generator.choice([1.0, 1.0, 1.5]) for _ in range(3 * rounds)]
        own = tuple(processes[n // rounds] * 1e-3 * s * generator.gauss(1, noise) for n, s in enumerate(load))
        lif = tuple(1e-3 * slow * generator.gauss(1, noise) for slow in load)
        samples = {"forward_time_s": own, "lif_forward_time_s": lif, "rounds_by_process": (rounds,) * 3}
        backward = {f"{whose}backward_time_s": (1e-3,) * 3 * rounds for whose in ("", "lif_")}
        return record.model_copy(update={"time": record.time.model_copy(update=backward | samples | changes)})

    return make


def test_slowdown_beyond_the_threshold_is_a_regression(make_run, timed):
    """Half as slow again, told with both ratios and a p-value, in the phase where it is."""
    verdict = gate(make_run([timed(3.0, seed=1)]), make_run([timed(2.0, seed=2)]), TIMED)
    (finding,) = verdict.failures
    assert (finding.kind, finding.metric) == (Kind.SLOWER, "forward_time_s_ratio")
    assert finding.before == pytest.approx(2.0, rel=0.1)
    assert finding.after == pytest.approx(3.0, rel=0.1)
    assert "more than 20 % slower" in finding.detail


def test_time_is_not_gated_unless_asked(make_run, timed):
    """The same slowdown passes by default."""
    assert gate(make_run([timed(3.0, seed=1)]), make_run([timed(2.0, seed=2)])).passed


def test_slowdown_within_the_threshold_passes(make_run, timed):
    """A real but small slowdown, of 10 %, is none by a threshold of 20 %."""
    assert gate(make_run([timed(2.2, seed=1, noise=0.01)]), make_run([timed(2.0, seed=2, noise=0.01)]), TIMED).passed


def test_slower_machine_is_no_slowdown(make_run, timed):
    """Three times the seconds for case and lif alike is the same ratio."""
    assert gate(make_run([timed(2.0, seed=1, machine=3.0)]), make_run([timed(2.0, seed=2)]), TIMED).passed


def test_noise_over_many_cases_gives_no_alarm(make_run, timed):
    """Forty unchanged cases with 20 % noise pass, also without any threshold."""
    sizes = range(1, 41)
    before = make_run([timed(2.0, seed=t, noise=0.2, timesteps=t, node="revlif-stored") for t in sizes])
    after = make_run([timed(2.0, seed=100 + t, noise=0.2, timesteps=t, node="revlif-stored") for t in sizes])
    assert gate(after, before, Policy(time_ratio_percent=0)).passed


def test_processes_that_differ_give_no_alarm(make_run, timed):
    """Of 300 unchanged runs whose processes differ by 3 % and rounds by 5 %, at most 7 % fail without any threshold."""
    policy = Policy(time_ratio_percent=0)
    runs = [make_run([timed(2.0, seed=seed, apart=0.03)]) for seed in range(600)]
    alarms = sum(not gate(after, before, policy).passed for before, after in zip(runs[::2], runs[1::2], strict=True))
    assert alarms <= 0.07 * 300


def test_a_slowdown_is_found_although_processes_differ(make_run, timed):
    """Half as slow again is found to be more than 20 % in 95 of 100 pairs of runs, of three processes each."""
    runs = [make_run([timed(3.0 if seed % 2 else 2.0, seed=seed, apart=0.03)]) for seed in range(200)]
    missed = sum(gate(slow, fast, TIMED).passed for fast, slow in zip(runs[::2], runs[1::2], strict=True))
    assert missed <= 5


def test_one_process_is_not_judged(make_run, timed):
    """Nothing says how far two processes would lie apart: the slowdown is shown and fails nothing."""
    alone, three = timed(3.0, seed=1, rounds_by_process=()), timed(2.0, seed=2)
    for before, after in ((three, alone), (alone, three)):
        verdict = gate(make_run([after]), make_run([before]), TIMED)
        assert verdict.passed
        assert all(finding.detail.startswith("one process: not judged") for finding in verdict.remarks)
        assert len(verdict.remarks) == 2


def test_contended_rounds_are_not_judged(make_run, timed):
    """Where threads had to wait for a core the slowdown is shown and fails nothing."""
    verdict = gate(make_run([timed(3.0, seed=1, rounds_contended=7)]), make_run([timed(2.0, seed=2)]), TIMED)
    assert verdict.passed
    assert any("not judged: 7 rounds" in finding.detail for finding in verdict.remarks)


def test_time_that_was_lost_is_a_regression(make_run, timed):
    """A run without times does not pass a time gate; a baseline without them is said."""
    good = timed(2.0, seed=1)
    bare = good.model_copy(update={"time": None})
    assert {f.kind for f in gate(make_run([bare]), make_run([good]), TIMED).failures} == {Kind.UNMEASURED}
    late = gate(make_run([good]), make_run([bare]), TIMED)
    assert late.passed
    assert len(late.remarks) == 2


def test_standard_lif_is_not_held_against_itself(make_run, timed):
    """Its ratio is 1 by definition, so there is nothing to test; a gate of times that judged none says so."""
    lif = timed(1.0, seed=1, node="lif")
    verdict = gate(make_run([lif]), make_run([timed(1.0, seed=2, node="lif")]), TIMED)
    (note,) = verdict.findings
    assert (note.kind, note.metric, note.detail[:10]) == (Kind.NOTE, "time", "not judged")
