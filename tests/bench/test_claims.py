"""The claims: verdicts follow from records alone, and change when the records do."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from revsnn_bench import Settings, measure
from revsnn_bench.claims import CLAIMS, Plan, Verdict, cases_of, claims_json, claims_markdown, judge, passes_of
from revsnn_bench.claims.judges import MARGIN, _difference, _maintained
from revsnn_bench.claims.plan import BASELINES, baseline_of
from revsnn_bench.cli import app
from revsnn_bench.records import PhaseFlops, Status, TimeRecord
from revsnn_bench.runs import load_run
from revsnn_bench.session import BenchSession, RunOptions

PLAN = Plan(seeds=(0, 1, 2))
LIF_KEEPS = {"eager": 3, "detached": 2, "fused": 1}
"""Tensors per step."""
SMALL = Plan(
    features=16,
    batch=2,
    saving_features=16,
    timesteps=(4, 8, 20),
    network="vgg11@0.0625",
    seeds=(0,),
    epochs=1,
    deep_width=0.0625,
    groups=(2, 4),
    field_batch=2,
    field_shape=(3, 16, 16),
)
NOTHING = PhaseFlops(pointwise=0, multiply_accumulate=0)
KEYS = [claim.key for claim in CLAIMS]


@pytest.fixture
def judged(make_record, make_accuracy, make_run):
    """Judges synthetic records of a plan: `judged(key, change)`, where `change(case)` gives parts of its record."""

    def run(key, change=lambda case: {}, plan=PLAN):
        records = []
        for case in cases_of(plan, [key]):
            # The fixture has no closed forms of norm-carrier; in a network a carrier keeps more than nothing.
            known = "revlif" if case.workload != "layer" and "carrier" in case.node else case.node
            known = known.partition("+")[0].replace("spikingjelly", "lif")
            base = make_record(case.model_copy(update={"node": known}))
            steps = 12 if case.dtype == "float32" else 64
            fidelity = base.fidelity.model_copy(
                update={"recovered_steps": min(steps, case.timesteps)}
                | ({"gradient_error": 1e-9} if case.dtype == "float64" else {})
            )
            memory = base.memory
            if case.node == "lif" and dict(case.options) in BASELINES.values():
                kept = memory.retained_bytes * LIF_KEEPS[baseline_of(case)] // 3
                memory = memory.model_copy(update={"retained_bytes": kept})
            parts = {
                "status": Status.OK,
                "memory": memory,
                "fidelity": fidelity,
                "accuracy": make_accuracy(0.99),
                **change(case),
            }
            records.append(base.model_copy(update={"case": case, "reason": None, **parts}))
        (finding,) = judge(make_run(records), plan, [key])
        return finding

    return run


def test_memory_is_reached_where_the_gradient_is_wrong(judged):
    """58.65 is passed to each standard LIF, where float32 is wrong: said for each, under conditions."""
    finding = judged("memory")
    assert finding.verdict is Verdict.CONDITIONS
    assert finding.measured.startswith(
        "revlif retains 192 times less than the eager LIF at T = 64 (3 T, which is 58.65 at T = 19.6), "
        "reached at T = 21; 128 times less than the detached LIF at T = 64 (2 T, which is 58.65 at T = 29.3), "
        "reached at T = 32; 64.0 times less than the fused LIF at T = 64 (1 T, which is 58.65 at T = 58.6), reached"
    )
    for t in (21, 32, 64):
        assert f"at T = {t} in float32 its gradient is WRONG" in finding.measured
        assert f"at T = {t} in float64 its gradient is right" in finding.measured
    assert "the float32 gradient is wrong" in finding.why
    assert "In float64, at twice the bytes, it is right" in finding.why


def test_memory_to_the_weaker_baseline_alone_is_no_reproduction(judged, make_record):
    """With a right gradient, but 58.65 reached to the eager LIF alone, it holds under conditions."""
    right = make_record(node="lif", timesteps=4).fidelity
    short = replace(PLAN, timesteps=(4, 8, 16, 21))
    finding = judged("memory", lambda case: {"fidelity": right}, short)
    assert finding.verdict is Verdict.CONDITIONS
    assert (
        "21.0 times less than the fused LIF at T = 21 (1 T, which is 58.65 at T = 58.6), not reached"
        in finding.measured
    )
    assert judged("memory-right", lambda case: {"fidelity": right}, short).verdict is Verdict.CONDITIONS


def test_memory_is_reproduced_where_the_gradient_is_right(judged, make_record):
    """With a right gradient at that T the same bytes reproduce the claim."""
    right = make_record(node="lif", timesteps=4).fidelity
    finding = judged("memory", lambda case: {"fidelity": right})
    assert finding.verdict is Verdict.REPRODUCED


def test_memory_that_never_reaches_the_claim_is_not_reproduced(judged, make_record):
    """A node that retains as much as the standard LIF does not reproduce it."""
    heavy = make_record(node="lif", timesteps=4).memory
    assert judged("memory", lambda case: {"memory": heavy}).verdict is Verdict.NOT


def test_carrier_counts_its_state(judged):
    """A node that retains 0 bytes is compared with the carried state on both sides: 64 at T = 21, not infinity."""
    finding = judged("memory-right")
    assert finding.verdict is Verdict.REPRODUCED
    assert "retains 0 B" in finding.measured
    for times, baseline, t in (("64.0", "eager", 21), ("65.0", "detached", 32), ("65.0", "fused", 64)):
        assert f"{times} times less than the {baseline} LIF at T = {t}" in finding.measured


def test_constant_memory_needs_one_number(judged, make_record):
    """Bytes that differ between two T are not constant; constant bytes with a wrong gradient hold under conditions."""
    assert judged("constant").verdict is Verdict.CONDITIONS

    def grows(case):
        return {"memory": make_record(node="lif", timesteps=case.timesteps).memory} if case.node == "revlif" else {}

    assert judged("constant", grows).verdict is Verdict.NOT


@pytest.mark.parametrize("key", KEYS)
def test_half_measured_cases_give_no_verdict(judged, key):
    """A run without a pass that the claim reads leaves it open and says which; it is no error."""
    claim = CLAIMS[KEYS.index(key)]
    finding = judged(key, lambda case: dict.fromkeys(claim.reads))
    assert finding.verdict is Verdict.OPEN
    assert f"cases were measured without {', '.join(claim.reads)}" in finding.measured


def test_inverse_without_its_check_gives_no_verdict(judged, make_record):
    """Records that do not say how many steps came back leave the claim open."""
    unchecked = make_record(node="lif", timesteps=4).fidelity
    finding = judged("inverse", lambda case: {"fidelity": unchecked})
    assert finding.verdict is Verdict.OPEN


def test_network_must_keep_half_to_each_standard_lif(judged, make_record):
    """Whether it holds to all of them, to some or to none is told apart, and each ratio is named."""

    def of(divisor):
        def change(case):
            if case.node == "revlif" and case.workload != "layer":
                lif = make_record(case.model_copy(update={"node": "lif"})).memory
                return {"memory": lif.model_copy(update={"retained_bytes": lif.retained_bytes // divisor})}
            return {}

        return change

    for divisor, verdict in ((6, "REPRODUCED"), (3, "CONDITIONS"), (1, "NOT")):
        finding = judged("network", of(divisor))
        assert finding.verdict is Verdict[verdict]
    assert "revlif: eager 1.00 (peak 1.00), detached 0.667 (peak 1.00), fused 0.333 (peak 1.00)" in finding.measured
    assert "revlif by itself, to the eager LIF: 12.0" in finding.measured


@pytest.mark.parametrize(
    ("layer", "network", "verdict"),
    [(70, 70, Verdict.REPRODUCED), (70, 99, Verdict.CONDITIONS), (90, 99, Verdict.NOT)],
)
def test_flops_saving_is_judged_per_place(judged, make_record, layer, network, verdict):
    """At least 23 % (to a tenth of it) in the layer and in the network; in one of them; in none."""
    flops = make_record(node="lif").flops

    def change(case):
        new = layer if case.workload == "layer" else network
        total = new if case.node == "revlif" else 100
        backward = PhaseFlops(pointwise=total, multiply_accumulate=0)
        none = PhaseFlops(pointwise=0, multiply_accumulate=0)
        return {"flops": flops.model_copy(update={"backward": backward, "recompute": none})}

    finding = judged("flops", change)
    assert finding.verdict is verdict
    assert f"{100 - layer}.0 %" in finding.measured


def test_time_saving_is_taken_against_lif_in_the_same_rounds(judged, make_record):
    """A machine that was twice as slow for one of the two changes nothing: each is divided by its own lif rounds."""
    base = make_record(node="lif").time

    def change(case):
        slow = 2 if case.node == "revlif" else 1
        own = 3 if case.node == "revlif" else 4
        scaled = {
            name: tuple(slow * factor * each for each in base.forward_time_s)
            for name, factor in (
                ("forward_time_s", own), ("backward_time_s", own), ("lif_forward_time_s", 1), ("lif_backward_time_s", 1)
            )
        }  # fmt: skip
        return {"time": base.model_copy(update=scaled)}

    finding = judged("time", change)
    assert finding.verdict is Verdict.REPRODUCED
    assert "one layer: 25.0 %" in finding.measured


@pytest.mark.parametrize("key", ["flops", "time"])
def test_a_wrong_gradient_saves_nothing(judged, key):
    """Where the node or classic backprop is wrong, no saving is counted, and the finding says so."""
    finding = judged(key, lambda case: {"status": Status.WRONG} if case.node == "revlif" else {})
    assert finding.verdict is Verdict.NOT
    assert finding.measured == "one layer: its gradient is wrong; whole vgg11: its gradient is wrong"


def test_a_time_saving_of_two_hosts_is_not_decided(judged):
    """Each side's ratio is of its own rounds, but the two were taken on different machines of a cluster."""
    finding = judged("time", lambda case: {"host": case.node})
    assert finding.verdict is Verdict.UNDECIDED
    assert "(not decided)" in finding.measured


def test_time_saving_within_its_interval_is_none(judged):
    """Samples that scatter by a factor of ten around a saving of a quarter tell no saving from none."""
    names = ("forward_time_s", "backward_time_s", "lif_forward_time_s", "lif_backward_time_s")

    def change(case):
        own = 3e-4 if case.node == "revlif" else 4e-4
        noisy = tuple(own * (10 if i % 2 else 1) for i in range(11))
        samples = dict(zip(names, (noisy, noisy, (1e-4,) * 11, (1e-4,) * 11), strict=True))
        return {"time": TimeRecord(**samples, rounds_rejected=0, load_before=0.0, load_after=0.0, threads=1)}

    assert judged("time", change).verdict is Verdict.UNDECIDED


def test_accuracy_is_judged_by_the_interval_over_seeds(judged, make_accuracy):
    """Within half a point everywhere, lost in one network, in both; and not decided where the seeds scatter."""

    def drop(points, workloads, noise=0.0):
        def change(case):
            lost = points + noise * (case.seed - 1) if case.node == "revlif" and case.workload in workloads else 0.0
            return {"accuracy": make_accuracy(0.99 - lost)}

        return change

    both = ("digits-net", "vgg11@0.25")
    assert judged("accuracy", drop(0.004, both)).verdict is Verdict.REPRODUCED
    assert judged("accuracy", drop(0.02, both[:1])).verdict is Verdict.CONDITIONS
    assert judged("accuracy", drop(0.02, both)).verdict is Verdict.NOT
    for lost in (0.0, 0.01):
        finding = judged("accuracy", drop(lost, both, noise=0.01))
        assert finding.verdict is Verdict.UNDECIDED
    assert "-1.00 points [-2.69, +0.69] against lif" in finding.measured
    assert judged("accuracy", plan=replace(PLAN, seeds=(0,))).verdict is Verdict.UNDECIDED


def test_a_beta_that_is_not_the_papers_has_a_row_of_its_own(judged, make_accuracy):
    """The verdict on accuracy does not read cases with another beta."""
    assert all("beta" not in case.options for case in cases_of(PLAN, ["accuracy"]))
    betas = {case.options.get("beta") for case in cases_of(PLAN, ["accuracy-beta"])}
    assert betas == {None, 0.1}


def test_groups_must_rise_beyond_their_spread(judged, make_accuracy):
    """A clear rise reproduces, a clear fall does not; a rise lost in the spread of the seeds is not decided."""

    def of(slope, noise):
        def change(case):
            doublings = math.log2(case.options["groups"])
            return {"accuracy": make_accuracy(0.9 + slope * doublings + noise * (case.seed - 1))}

        return change

    assert judged("groups", of(0.01, 0.001)).verdict is Verdict.REPRODUCED
    assert judged("groups", of(0.01, 0.05)).verdict is Verdict.UNDECIDED
    assert judged("groups", of(-0.01, 0.001)).verdict is Verdict.NOT


@pytest.mark.parametrize("seeds", [3, 8])
def test_intervals_of_differences_cover_the_truth(seeds):
    """Of 4,000 simulated differences at the margin at most 5 % (and 1 for the simulation) are called maintained."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(4000):
        pairs = rng.normal(-MARGIN, 0.004, seeds)
        lif = {seed: _accuracy(0.99) for seed in range(seeds)}
        other = {seed: _accuracy(0.99 + pair) for seed, pair in enumerate(pairs)}
        wrong += _maintained(_difference(lif, other)) is True
    assert 0.04 < wrong / 4000 < 0.06


def _accuracy(value):
    return SimpleNamespace(accuracy=value)


def test_inverse_is_told_step_by_step(judged):
    """Twelve steps come back in float32, all in float64."""
    finding = judged("inverse")
    assert finding.verdict is Verdict.CONDITIONS
    assert "12 of 16" in finding.measured
    assert "64 of 64" in finding.measured


KEPT = {"spikingjelly": 480, "spikingjelly+bitpack": 200, "lif": 300, "lif+remat": 100}
"""Retained bytes with which one tensor per block is kept."""


@pytest.fixture
def judged_remat(judged, make_record):
    """Judges the claim on remat: `judged_remat(kept, equal, times)`, by bytes of each node, bits, and step times."""
    base = make_record(node="lif")

    def run(kept=KEPT, equal=(208, 208), times=(1.03, 1.04, 1.05, 1.06, 1.07), error=1e-7):
        def change(case):
            own = times if case.node == "lif+remat" else (1.0,) * len(times)
            none = (0.0,) * len(own)
            samples = {"forward_time_s": own, "lif_forward_time_s": (1.0,) * len(own)}
            samples |= {"backward_time_s": none, "lif_backward_time_s": none, "rounds_by_process": (1,) * len(own)}
            fidelity = {"gradient_error": error, "bit_equal": equal if "+" in case.node else None}
            return {
                "memory": base.memory.model_copy(update={"retained_bytes": kept[case.node]}),
                "fidelity": base.fidelity.model_copy(update=fidelity),
                "time": base.time.model_copy(update=samples),
            }

        return judged("remat", change)

    return run


def test_one_tensor_per_block_needs_bits_bytes_and_time(judged_remat):
    """All four conditions together reproduce it; each one missed is named."""
    finding = judged_remat()
    assert finding.verdict is Verdict.REPRODUCED
    assert "208 of 208 outputs, gradients and buffers have the bits of lif's" in finding.measured
    assert "3.00 times less than lif, 4.80 than eager SpikingJelly (its memopt: 2.40)" in finding.measured
    missed = {
        "equal bits and a right gradient": {"equal": (207, 208)},
        "2.5 times less than lif": {"kept": KEPT | {"lif": 249}},
        "4 times less than eager": {"kept": KEPT | {"spikingjelly": 399}},
        "at most 1.10 of lif's time": {"times": (1.11, 1.12, 1.13, 1.14, 1.15)},
    }
    for name, changed in missed.items():
        finding = judged_remat(**changed)
        assert (finding.verdict, finding.why) == (Verdict.NOT, f"Not met: {name}.")
    assert judged_remat(error=1e-2).verdict is Verdict.NOT


@pytest.mark.parametrize("times", [(1.04, 1.05, 1.06, 1.07, 1.2), (1.05,), (1.2,)])
def test_time_is_decided_by_its_interval(judged_remat, times):
    """Where 1.10 lies inside of the interval, or there is none, nothing is decided."""
    finding = judged_remat(times=times)
    assert finding.verdict is Verdict.UNDECIDED
    assert "does not tell whether it is below 1.10" in finding.why


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("memory", lambda r: {"memory": r.memory.model_copy(update={"retained_bytes": 0})}),
        ("network", lambda r: {"memory": r.memory.model_copy(update={"retained_bytes": 0})}),
        ("one-node", lambda r: {"memory": r.memory.model_copy(update={"retained_bytes": 0})}),
        ("flops", lambda r: {"flops": r.flops.model_copy(update={"backward": NOTHING, "recompute": NOTHING})}),
        ("time", lambda r: {"time": r.time.model_copy(update={"lif_forward_time_s": (), "lif_backward_time_s": ()})}),
    ],
)
def test_a_claim_that_divides_by_nothing_stays_open(judged, make_record, key, change):
    """Bytes and operations of 0, and rounds without the standard LIF's: no verdict, and no error."""
    finding = judged(key, lambda case: change(make_record(node="lif")))
    assert finding.verdict is Verdict.OPEN
    assert finding.measured in ("a value that the claim divides by is 0", "a record lacks a value that the claim reads")


def test_bits_that_were_not_compared_leave_the_claim_open(judged_remat):
    """A record from before equality was counted says nothing of it."""
    assert judged_remat(equal=None).verdict is Verdict.OPEN


@pytest.mark.parametrize("key", KEYS)
def test_a_failed_or_missing_case_leaves_the_claim_open(make_record, make_run, key):
    """A claim is never judged on a part of its cases, and the finding names what is missing or failed."""
    cases = cases_of(PLAN, [key])
    (finding,) = judge(make_run([]), PLAN, [key])
    assert finding.verdict is Verdict.OPEN
    assert f"{len(cases)} of {len(cases)} cases" in finding.measured
    failed = [make_record(case, "oom") for case in cases]
    (finding,) = judge(make_run(failed), PLAN, [key])
    assert finding.verdict is Verdict.OPEN
    assert cases[0].id in finding.measured


def test_report_holds_every_claim_and_its_command(make_run):
    """Markdown and JSON have one row per claim, with the command that measures it."""
    run = make_run([])
    findings = judge(run, PLAN)
    text, document = claims_markdown(run, findings), json.loads(claims_json(run, findings))
    for key in KEYS:
        assert f"revsnn-bench claims --only {key}" in text
    assert [each["key"] for each in document["claims"]] == KEYS


@pytest.mark.parametrize("case", [case for case in cases_of(SMALL) if case.timesteps == 4], ids=lambda case: case.id)
def test_every_case_of_a_plan_can_be_measured(case):
    """Small cases of every claim run to the end, and training gives an accuracy."""
    settings = Settings(passes=() if case.epochs else ("flops",))
    record = measure(case.model_copy(update={"epochs": min(case.epochs, 1)}), settings)
    assert (record.flops is None) == bool(case.epochs)
    assert (record.accuracy is not None) == bool(case.epochs)


def test_a_case_gets_the_passes_that_its_claims_read():
    """A training is not timed besides; a case that several claims share gets what each of them reads."""
    for key, passes in {"accuracy": (), "one-node": ("memory",), "time": ("fidelity", "time")}.items():
        assert {passes_of(case, PLAN, [key]) for case in cases_of(PLAN, [key])} == {passes}
    shared = next(case for case in cases_of(PLAN, ["time"]) if case.workload != "layer" and case.node == "revlif")
    assert passes_of(shared, PLAN, ["time", "flops", "network"]) == ("memory", "flops", "fidelity", "time")


def test_judging_a_saved_run_again_gives_the_same_table(tmp_path, monkeypatch):
    """`claims --from` computes verdicts anew from the records, and exits with 5 while claims are open."""
    monkeypatch.chdir(tmp_path)
    session = BenchSession(RunOptions(settings=Settings(passes=("fidelity",)), run_id="c"))
    small = Plan(features=16, batch=2, timesteps=(4, 16))
    for case in cases_of(small, ["inverse"]):
        session.measure(case)
    saved, *_ = session.finish(complete=True)
    (finding,) = judge(load_run(saved), small, ["inverse"])
    assert finding.verdict is Verdict.CONDITIONS
    done = CliRunner().invoke(app, ["claims", "--from", "c"])
    assert done.exit_code == 5
    written = (tmp_path / "reports" / "c-claims.md").read_text()
    assert "not measured" in written
    some = CliRunner().invoke(app, ["claims", "--from", "c", "--only", "groups"])
    assert (some.exit_code, "not measured" in some.output) == (5, True)
    assert (tmp_path / "reports" / "c-claims.md").read_text() == written  # one claim takes the place of no table of all
    assert CliRunner().invoke(app, ["claims", "--only", "nothing"]).exit_code == 2
