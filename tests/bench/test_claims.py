"""The claims: verdicts follow from records alone, and change when the records do."""

import json
import math

import pytest
from typer.testing import CliRunner

from revsnn_bench import Settings, measure
from revsnn_bench.claims import CLAIMS, Plan, Verdict, judge
from revsnn_bench.claims.judge import cases_of
from revsnn_bench.claims.report import claims_json, claims_markdown
from revsnn_bench.cli import app
from revsnn_bench.records import PhaseFlops, Status, TimeRecord
from revsnn_bench.runs import load_run
from revsnn_bench.session import BenchSession, RunOptions

PLAN = Plan(seeds=(0, 1, 2))
SMALL = Plan(
    features=16,
    batch=2,
    saving_features=16,
    timesteps=(4, 8, 20),
    network="vgg11@0.0625",
    seeds=(0,),
    epochs=1,
    groups=(2, 4),
    field_batch=2,
    field_shape=(3, 16, 16),
)
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
            parts = {"fidelity": fidelity, "accuracy": make_accuracy(0.99), **change(case)}
            records.append(base.model_copy(update={"case": case, "status": Status.OK, "reason": None, **parts}))
        (finding,) = judge(make_run(records), plan, [key])
        return finding

    return run


def test_memory_is_reached_where_the_gradient_is_wrong(judged):
    """3 T passes 58.65 at T = 19.6, where float32 is wrong and float64 right: both are said, under conditions."""
    finding = judged("memory")
    assert finding.verdict is Verdict.CONDITIONS
    assert "the ratio is 3 T +0, 58.65 at T = 19.6; the first T measured beyond is 21" in finding.measured
    assert "at T = 21 in float32 its gradient is WRONG" in finding.measured
    assert "at T = 21 in float64 its gradient is right" in finding.measured
    assert "gradient no" in finding.why


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
    assert "64.0 times more at T = 21" in finding.measured


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


def test_network_is_held_against_the_measured_node(judged, make_record):
    """The node's own ratio comes from records: 12 here, in the network as well, and then not in the network."""
    finding = judged("network")
    assert "revlif by itself: 12.0 at this T" in finding.measured
    assert finding.verdict is Verdict.REPRODUCED
    heavy = make_record(node="lif", timesteps=4).memory

    def change(case):
        return {"memory": heavy} if case.workload != "layer" else {}

    assert judged("network", change).verdict is Verdict.NOT


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


def test_time_saving_within_its_interval_is_none(judged):
    """Samples that scatter by a factor of ten around a saving of a quarter tell no saving from none."""
    names = ("forward_time_s", "backward_time_s", "lif_forward_time_s", "lif_backward_time_s")

    def change(case):
        own = 3e-4 if case.node == "revlif" else 4e-4
        noisy = tuple(own * (10 if i % 2 else 1) for i in range(11))
        samples = dict(zip(names, (noisy, noisy, (1e-4,) * 11, (1e-4,) * 11), strict=True))
        return {"time": TimeRecord(**samples, rounds_rejected=0, load_before=0.0, load_after=0.0, threads=1)}

    assert judged("time", change).verdict is Verdict.NOT


def test_accuracy_is_judged_by_the_mean_over_seeds(judged, make_accuracy):
    """Within half a point everywhere, in one network, in none."""

    def drop(points, workloads):
        def change(case):
            lost = points if case.node == "revlif" and case.workload in workloads else 0.0
            return {"accuracy": make_accuracy(0.99 - lost)}

        return change

    assert judged("accuracy", drop(0.004, ("digits-net", "vgg11@0.25"))).verdict is Verdict.REPRODUCED
    assert judged("accuracy", drop(0.02, ("digits-net",))).verdict is Verdict.CONDITIONS
    assert judged("accuracy", drop(0.02, ("digits-net", "vgg11@0.25"))).verdict is Verdict.NOT


def test_groups_must_rise_beyond_their_spread(judged, make_accuracy):
    """A clear rise reproduces; the same rise lost in the spread of the seeds, or a fall, does not."""

    def of(slope, noise):
        def change(case):
            doublings = math.log2(case.options["groups"])
            return {"accuracy": make_accuracy(0.9 + slope * doublings + noise * (case.seed - 1))}

        return change

    assert judged("groups", of(0.01, 0.001)).verdict is Verdict.REPRODUCED
    assert judged("groups", of(0.01, 0.05)).verdict is Verdict.NOT
    assert judged("groups", of(-0.01, 0.001)).verdict is Verdict.NOT


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
            samples |= {"backward_time_s": none, "lif_backward_time_s": none}
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
    """Small cases of every claim run to the end with every pass, and training gives an accuracy."""
    record = measure(case.model_copy(update={"epochs": min(case.epochs, 1)}), Settings(passes=("memory", "flops")))
    assert record.memory is not None
    assert (record.accuracy is not None) == bool(case.epochs)


def test_judging_a_saved_run_again_gives_the_same_table(tmp_path, monkeypatch):
    """`claims --from` computes verdicts anew from the records, and exits with 5 while claims are open."""
    monkeypatch.chdir(tmp_path)
    session = BenchSession(RunOptions(settings=Settings(target_s=0.001, min_rounds=1, max_rounds=1), run_id="c"))
    small = Plan(features=16, batch=2)
    for case in cases_of(small, ["inverse"]):
        session.measure(case)
    saved, *_ = session.finish(complete=True)
    (finding,) = judge(load_run(saved), small, ["inverse"])
    assert finding.verdict is Verdict.CONDITIONS
    done = CliRunner().invoke(app, ["claims", "--from", "c", "--only", "groups"])
    assert done.exit_code == 5
    assert "not measured" in (tmp_path / "reports" / "c-claims.md").read_text()
    assert CliRunner().invoke(app, ["claims", "--only", "nothing"]).exit_code == 2
