"""The time gate: slowdowns beyond the threshold are found, noise and slower machines are not."""

import random

import pytest

from revsnn_bench.gate import Kind, Policy, gate

POLICY = Policy(time_ratio_percent=20)


@pytest.fixture
def timed(make_record):
    """Makes a record whose rounds are noisy, with slow rounds that hit case and lif alike."""

    def make(factor, *, seed, rounds=20, machine=1.0, noise=0.05, node="revlif", timesteps=4, **changes):
        record = make_record(node=node, timesteps=timesteps)
        generator = random.Random(seed)
        load = [machine * generator.choice([1.0, 1.0, 1.5]) for _ in range(rounds)]
        own = tuple(factor * 1e-3 * slow * generator.gauss(1, noise) for slow in load)
        lif = tuple(1e-3 * slow * generator.gauss(1, noise) for slow in load)
        samples = {"forward_time_s": own, "lif_forward_time_s": lif}
        return record.model_copy(update={"time": record.time.model_copy(update=samples | changes)})

    return make


def test_slowdown_beyond_the_threshold_is_a_regression(make_run, timed):
    """Half as slow again, told with both ratios and a p-value, in the phase where it is."""
    verdict = gate(make_run([timed(3.0, seed=1)]), make_run([timed(2.0, seed=2)]), POLICY)
    (finding,) = verdict.failures
    assert (finding.kind, finding.metric) == (Kind.SLOWER, "forward_time_s_ratio_to_lif")
    assert finding.before == pytest.approx(2.0, rel=0.1)
    assert finding.after == pytest.approx(3.0, rel=0.1)
    assert "more than 20 % slower" in finding.detail


def test_time_is_not_gated_unless_asked(make_run, timed):
    """The same slowdown passes by default."""
    assert gate(make_run([timed(3.0, seed=1)]), make_run([timed(2.0, seed=2)])).passed


def test_slowdown_within_the_threshold_passes(make_run, timed):
    """A real but small slowdown, of 10 %, is none by a threshold of 20 %."""
    assert gate(make_run([timed(2.2, seed=1, noise=0.01)]), make_run([timed(2.0, seed=2, noise=0.01)]), POLICY).passed


def test_slower_machine_is_no_slowdown(make_run, timed):
    """Three times the seconds for case and lif alike is the same ratio."""
    assert gate(make_run([timed(2.0, seed=1, machine=3.0)]), make_run([timed(2.0, seed=2)]), POLICY).passed


def test_noise_over_many_cases_gives_no_alarm(make_run, timed):
    """Forty unchanged cases with 20 % noise pass, also without any threshold."""
    sizes = range(1, 41)
    before = make_run([timed(2.0, seed=t, noise=0.2, timesteps=t, node="revlif-stored") for t in sizes])
    after = make_run([timed(2.0, seed=100 + t, noise=0.2, timesteps=t, node="revlif-stored") for t in sizes])
    assert gate(after, before, Policy(time_ratio_percent=0)).passed


def test_contended_rounds_are_not_judged(make_run, timed):
    """Where other work held the processor the slowdown is shown and fails nothing."""
    verdict = gate(make_run([timed(3.0, seed=1, rounds_contended=7)]), make_run([timed(2.0, seed=2)]), POLICY)
    assert verdict.passed
    assert any("not judged: 7 rounds" in finding.detail for finding in verdict.remarks)


def test_time_that_was_lost_is_a_regression(make_run, timed):
    """A run without times does not pass a time gate; a baseline without them is said."""
    good = timed(2.0, seed=1)
    bare = good.model_copy(update={"time": None})
    assert {f.kind for f in gate(make_run([bare]), make_run([good]), POLICY).failures} == {Kind.UNMEASURED}
    late = gate(make_run([good]), make_run([bare]), POLICY)
    assert late.passed
    assert len(late.remarks) == 2


def test_standard_lif_is_not_held_against_itself(make_run, timed):
    """Its ratio is 1 by definition, so there is nothing to test."""
    lif = timed(1.0, seed=1, node="lif")
    verdict = gate(make_run([lif]), make_run([timed(1.0, seed=2, node="lif")]), POLICY)
    assert verdict.findings == ()
