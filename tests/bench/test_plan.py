"""Plans within a byte budget: costs of mixes from costs of pairs, the cheapest one, and what is measured of it."""

import functools
import itertools
import json
import os
import random
import re
import resource
from dataclasses import replace
from functools import partial
from pathlib import Path

import own_models
import pytest
import torch
from revsnn_nodes import StandardLIF, apply_plan
from revsnn_nodes.plan import WHOLE
from torch import nn
from typer.testing import CliRunner

from revsnn_bench.case import Case
from revsnn_bench.cli import app
from revsnn_bench.meters.memory import peak_bytes
from revsnn_bench.models.own import ModelError, OwnStep
from revsnn_bench.models.workloads import build
from revsnn_bench.plan import planning
from revsnn_bench.plan.planning import (
    Measured,
    make_plan,
    measure_case,
    measure_step,
    plan_case,
    predicted_peak,
    profile_case,
    solve_plan,
)
from revsnn_bench.plan.predict import fake_step, probe_for
from revsnn_bench.plan.profile import (
    Cost,
    Profile,
    profile_fake,
    profile_step,
    record_fake_step,
    record_step,
    running_order,
)
from revsnn_bench.plan.solve import cheapest, chosen, frontier, frontier_budgets, least, refined
from revsnn_bench.records import MemoryTimeline
from revsnn_bench.report import units
from revsnn_bench.runs import write_whole


def conv_net(blocks=4):
    layers = []
    for inputs in [2, *[8] * (blocks - 1)]:
        layers += [own_models.per_step(nn.Conv2d(inputs, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))]
        layers += [StandardLIF(step_mode="m")]
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def step():
    torch.manual_seed(0)
    step = OwnStep(conv_net(), torch.randn(4, 24, 2, 12, 12, requires_grad=True))
    step.backward(step.forward())
    return step


@pytest.fixture(scope="module")
def profile(step):
    return profile_step(step, rounds=1)


def test_the_peak_of_any_mix_follows_from_pairs(step, profile):
    """Eight random mixes: predicted within 2 % of the allocator's peak; without a plan to the byte.

    A checkpoint keeps the state of the random generator, 5056 bytes, which are booked with the block before it.
    """
    draw = random.Random(0)
    for _ in range(8):
        choice = tuple(draw.choice(options) for options in profile.options)
        apply_plan(step.model, dict(zip(profile.blocks, choice, strict=True)))
        assert profile.peak_bytes(choice) == pytest.approx(peak_bytes(step), rel=0.02), choice
    apply_plan(step.model, {})
    assert profile.plain_bytes == peak_bytes(step)


def made_up(seed=0):
    """A profile with random costs: what keeps less tends to take longer."""
    draw = random.Random(seed)
    options = {"plain": 0, "remat": 1, "checkpoint": 2}
    allowed = (("remat",), *[tuple(options)] * 5)
    costs = tuple(
        {
            (before, option): Cost(*map(draw.randrange, (1500 - 500 * options[option], 2000, 2000, 300)))
            for before in (allowed[i - 1] if i else ("",))
            for option in own
        }
        for i, own in enumerate(allowed)
    )
    seconds = tuple({"plain": 0.5} | {option: options[option] + draw.random() for option in own} for own in allowed)
    names = tuple(map(str, range(6)))
    return Profile(names, allowed, costs, seconds, 10.0, {("plain",) * len(names): 10**6})


@pytest.mark.parametrize("seed", range(6))
def test_the_solver_finds_what_trying_everything_finds(seed):
    """Cheapest within each of several budgets, and least of all, of 243 choices."""
    profile = made_up(seed=seed)
    choices = list(itertools.product(*profile.options))
    peaks = sorted(map(profile.peak_bytes, choices))
    for budget in (peaks[0], peaks[20], peaks[100], peaks[-1]):
        best = min(profile.step_s(choice) for choice in choices if profile.peak_bytes(choice) <= budget)
        found = cheapest(profile, budget)
        assert profile.peak_bytes(found) <= budget
        assert profile.step_s(found) == pytest.approx(best, rel=1e-4)
    assert cheapest(profile, peaks[0] - 1) is None
    assert profile.peak_bytes(least(profile)) == peaks[0]


def test_a_plan_whose_costs_were_wrong_is_corrected_by_its_record():
    """Where steps with a checkpoint behind remat take 500 bytes more than thought, the plan is another one."""
    profile = made_up()

    def wrong(choice):
        return ("remat", "checkpoint") in itertools.pairwise(choice)

    def record(choice):
        return [replace(cost, kept_bytes=cost.kept_bytes + 500 * wrong(choice)) for cost in profile.costs_of(choice)]

    peaks = sorted(map(profile.peak_bytes, itertools.product(*profile.options)))
    budget = next(budget for budget in peaks[10::10] if wrong(cheapest(profile, budget)))
    thought, found = cheapest(profile, budget), refined(profile, [budget], record)
    choice = chosen(found, budget)
    assert found.recorded[thought] > budget
    assert found.recorded[choice] <= budget
    assert profile.step_s(choice) >= profile.step_s(thought)


def test_the_frontier_falls_in_bytes_and_rises_in_time():
    """Each point is a plan of its own that was recorded."""
    profile = made_up()
    profile = refined(profile, [2000, 3000, 4000, *frontier_budgets(profile)], profile.costs_of)
    choices = frontier(profile)
    points = [(profile.peak_bytes(choice), profile.step_s(choice)) for choice in choices]
    assert len(points) > 2
    assert all(a[0] > b[0] and a[1] <= b[1] for a, b in itertools.pairwise(points))
    assert {*choices} <= {*profile.recorded}


def plan_for(step, profile, budget):
    refine = partial(refined, record=partial(record_step, step, profile.blocks))
    return solve_plan(profile, budget, refine, partial(measure_step, step))


@pytest.mark.parametrize("share", [1.0, 0.75, 0.5, 0.25])
def test_a_plan_fits_as_measured_or_is_the_least(step, profile, share):
    """Its peak is the one predicted; it has the gradient of the model without a plan, to the bit."""
    plan = plan_for(step, profile, int(share * profile.plain_bytes))
    assert plan.measured.gradient_error == 0.0
    assert plan.predicted_bytes == plan.measured.peak_bytes
    assert plan.fits == (plan.measured.peak_bytes <= plan.budget_bytes)
    assert plan.fits or plan.predicted_bytes == pytest.approx(profile.peak_bytes(least(profile)), rel=0.02)
    assert plan.without.peak_bytes == profile.plain_bytes
    assert plan.measured.timeline.peak_bytes == plan.measured.peak_bytes


def test_a_plan_that_is_measured_too_large_is_solved_again():
    """The solver's budget is lowered by the excess, at most five times."""
    profile, tried = made_up(), []
    middle = sorted(map(profile.peak_bytes, itertools.product(*profile.options)))[100]
    budget = profile.peak_bytes(cheapest(profile, middle))

    def measure(options):
        tried.append(options)
        peak = profile.peak_bytes(tuple(options.values())) if options else 10**6
        return Measured(peak + 300, 0.0, MemoryTimeline(events=0, forward_events=0, live_bytes={}))

    plan = solve_plan(profile, budget, partial(refined, record=profile.costs_of), measure)
    assert 2 <= sum(map(bool, tried)) <= 6
    assert plan.fits
    assert plan.measured.peak_bytes <= budget


def test_a_plan_for_a_model_in_python(tmp_path):
    """`make_plan`, `apply` and `apply_plan` from a file."""
    model, x = conv_net(3), torch.randn(3, 4, 2, 8, 8)
    plan = make_plan(model, x, budget="1 GiB", rounds=1)
    assert plan.fits
    takes = f"with our neurons and no plan, whose peak is {units.size(plan.plain_bytes)}."
    assert takes in plan.summary()[0]  # as the command's tables have it
    near = replace(plan, fits=False, budget_bytes=339_999, measured=replace(plan.measured, peak_bytes=340_000))
    told = "budget of 339,999 B. The least found is 340,000 B, by this plan."
    assert told in near.summary()[0]  # two sizes that differ do not read alike
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json())
    assert apply_plan(plan.apply(model), path) is model


class Scaled(nn.Module):
    """Divides by a mean of what came before, which every forward changes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(8))

    def forward(self, x):
        """The input, scaled."""
        self.scale.lerp_(x.detach().abs().mean((0, 1)), 0.5)
        return x / self.scale.clone()


def test_a_buffer_that_each_forward_changes_does_not_tell_a_plan_from_none():
    """Both steps that are compared start from the same buffers."""
    model = nn.Sequential(nn.Linear(6, 8), StandardLIF(step_mode="m"), nn.Linear(8, 8), Scaled())
    plan = make_plan(model, torch.randn(4, 16, 6, generator=torch.Generator().manual_seed(0)), budget="1 GiB")
    assert plan.measured.gradient_error == 0


def test_a_plan_under_which_the_gradient_is_another_is_refused():
    """A block that runs again draws others in Python; one that does not is as without a plan."""
    step = build(Case(workload="own_models:DrawsInPython", node="as-is", timesteps=3, batch=2, shape=(6,)))
    assert measure_step(step, {WHOLE: "remat"}).gradient_error == 0
    with pytest.raises(ModelError, match=r"must repeat its first run; under the plan the gradient is .* away"):
        measure_step(step, {WHOLE: "checkpoint"})


def test_a_loop_over_time_is_one_block():
    """Its layers run once per step of time, so that they cannot be ordered."""
    step = build(Case(workload="own_models:loop", node="lif", timesteps=3, batch=2, shape=(6,)))
    assert [block.name for block in running_order(step)] == ["(model)"]


def test_a_model_without_blocks_is_refused():
    """There is nothing to choose between."""
    step = OwnStep(nn.Sequential(StandardLIF(step_mode="m")), torch.randn(2, 3, 4, requires_grad=True))
    with pytest.raises(ValueError, match="must hold a block with weights and a neuron; Sequential has none"):
        profile_step(step)


CASE = Case(workload="own_models:spikingjelly", node="lif", timesteps=3, batch=4, shape=(2, 6, 6))
GENERATOR_BYTES = torch.get_rng_state().nbytes


def test_a_profile_on_fake_tensors_has_the_bytes_of_the_real_one():
    """The peak of every choice of options within 1 %, but for the generator's state that each checkpoint keeps.

    Where the peak is before or after the checkpoints, which depends on what the processor's convolutions take, none is.
    """
    case = CASE.model_copy(update={"batch": 64})
    real, largest = profile_case(case, 1, "", 2**30)
    assert largest == case
    with fake_step(case) as step:
        fake = profile_fake(real, 1.0, partial(record_fake_step, step, real.blocks, probe_for(case)))
    assert fake.plain_bytes == pytest.approx(real.plain_bytes, rel=0.01)
    for choice in itertools.product(*real.options):
        kept = GENERATOR_BYTES * sum(option in ("checkpoint", "bits") for option in choice)
        least = fake.peak_bytes(choice)
        assert 0.99 * least <= real.peak_bytes(choice) <= 1.01 * (least + kept), choice


@pytest.mark.parametrize(("model", "batch", "size"), [("vgg", 4, 32), ("sew_resnet", 2, 64), ("spikformer", 16, 16)])
def test_plans_of_spikingjellys_networks(model, batch, size, monkeypatch):
    """Each fits, or is the least recorded; the peak of a model built anew is within 2 % of the one predicted."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    case = Case(workload=f"own_models:{model}", node="lif", timesteps=2, batch=batch, shape=(3, size, size))
    step = build(case)
    step.backward(step.forward())
    profile = profile_step(step, rounds=1)
    budgets = [int(share * profile.plain_bytes) for share in (0.75, 0.25)]
    profile = refined(profile, budgets, partial(record_step, step, profile.blocks))

    @functools.cache
    def measured(*options):
        return measure_case(case, dict(options))

    for budget in budgets:
        plan = solve_plan(profile, budget, lambda known, _: known, lambda options: measured(*options.items()))
        assert plan.predicted_bytes == pytest.approx(plan.measured.peak_bytes, rel=0.02)
        assert plan.measured.gradient_error == 0.0
        assert plan.fits or plan.predicted_bytes == min(profile.recorded.values())


def here(function, *arguments):
    return function(*arguments)


def test_a_step_of_100_gib_is_planned_without_running_it():
    """Its bytes are predicted in full; the plan is verified at the largest batch within a limit, and says so."""
    case = Case(workload="own_models:sequential", node="lif", timesteps=3, batch=200_000_000, shape=(6,))
    budget, limit = 125 * 2**30, 4 << 20
    plan = plan_case(here, case, budget, rounds=1, limit_bytes=limit)
    assert 100 * 2**30 < plan.predicted_bytes <= budget < plan.plain_bytes
    assert plan.measured is None
    found = plan.smaller
    assert predicted_peak(case.model_copy(update={"batch": found.batch}), {}) <= limit
    assert predicted_peak(case.model_copy(update={"batch": found.batch + 2}), {}) > limit
    assert found.measured.peak_bytes == pytest.approx(found.predicted_bytes, rel=0.02)
    assert found.measured.gradient_error == 0.0
    assert "too large to run here" in plan.summary()[1]
    assert f"Verified at a batch of {found.batch:,}" in plan.summary()[2]
    assert plan.summary()[0].startswith("This plan fits the budget of 125.00 GiB. Predicted peak 1")
    assert plan.summary()[3].startswith("Each time is that of one step of one process, which gives no interval")
    assert len(plan.summary()) == 4
    assert plan.expected_bytes == plan.predicted_bytes
    assert json.loads(plan.to_json())["verified"]["batch"] == found.batch


@pytest.mark.parametrize(("share", "fits"), [(1.4, True), (1.1, False)])
def test_a_smaller_step_that_takes_more_than_predicted_counts(monkeypatch, share, fits):
    """Its ratio is that of the whole: within 1.4 times the peak without a plan another plan is found, within 1.1 times
    nothing fits.
    """
    true, tried = measure_case, []

    def half_more(case, options):
        tried.append(options)
        found = true(case, options)
        return replace(found, peak_bytes=int(1.5 * predicted_peak(case, options)))

    monkeypatch.setattr(planning, "measure_case", half_more)
    case = Case(workload="own_models:sequential", node="lif", timesteps=3, batch=20_000, shape=(6,))
    budget = int(share * predicted_peak(case, {}))
    plan = plan_case(here, case, budget, rounds=1, limit_bytes=1 << 20)
    assert plan.fits is fits
    assert plan.expected_bytes == pytest.approx(1.5 * plan.predicted_bytes, rel=1e-3)
    assert (plan.expected_bytes <= budget) is fits
    assert len(tried) == 2 or fits  # seconds of one round may choose the plan that fits at once
    told = f"took 1.50 times what was predicted, so {units.size(plan.expected_bytes)} are expected."
    assert told in plan.summary()[-2]
    saved = json.loads(plan.to_json())
    assert (saved["fits"], saved["expected_bytes"]) == (fits, plan.expected_bytes)
    assert fits or plan.summary()[0].startswith("Nothing fits the budget of ")


def test_blocks_are_named_by_their_class():
    """Every module of the class is one; anything else is refused."""
    plan = plan_case(here, CASE, 2**20, rounds=1, blocks="spikingjelly.activation_based.layer:Conv2d")
    assert [row.block for row in plan.rows] == ["rest", "0", "3"]
    with pytest.raises(ModelError, match="must name a class of modules; got 'own_models:plain', a function"):
        plan_case(here, CASE, 2**20, rounds=1, blocks="own_models:plain")


def test_largest_says_in_one_sentence_what_is_wrong():
    """As `plan` does: the worker's traceback stays out of it."""
    model = ["--model", "own_models:returns_a_tuple", "--input", "2,3,6"]
    result = CliRunner().invoke(app, ["largest", *model, "--budget", "1 MiB"], env={"COLUMNS": "400"})
    assert result.exit_code == 5
    what = r"as-is, as-is\+remat, lif, .*: error: own_models.py, line \d+: forward must return one tensor"
    assert re.search(what, result.output)
    assert "Traceback" not in result.output
    arguments = ["largest", "--model=own_models:nett", "--input=2,3,6", "--budget=1 MiB", "--node=as-is"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.output.startswith("Error: as-is: `--model` must be package.module:callable; got 'own_models:nett'.")
    arguments = ["largest", *model, "--budget=1 MiB", "--node=lif+chekpoint"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "400"})
    assert result.exit_code == 2
    assert result.output.startswith("Error: `node` must be a method for a model of your own; got 'lif+chekpoint'.")


def test_largest_begins_at_two_samples_where_a_batch_norm_needs_them():
    """A norm over the features of one step has no variance in a batch of one: that said nothing of larger ones."""
    model = ["--model", "own_models:norm_of_each_step", "--input", "3,8,6", "--node", "as-is"]
    options = ["--axis", "batch", "--budget", "1 MiB", "--limit", "2"]
    result = CliRunner().invoke(app, ["largest", *model, *options], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert re.search(r"^as-is +2 or more ", result.output, re.MULTILINE)


@pytest.mark.parametrize("command", [["predict"], ["largest", "--budget", "4 KiB", "--limit", "2"]])
def test_methods_that_a_model_has_not_are_named_below_those_that_it_has(command):
    """Nobody asked for them: the table is there, and the command has not failed."""
    model = ["--model", "own_models:no_neuron", "--input", "2,3,6"]
    result = CliRunner().invoke(app, [*command, *model], env={"COLUMNS": "400"})
    assert result.exit_code == 0, result.output
    rows = [line.split()[0] for line in result.output.splitlines() if line.startswith("as-is")]
    assert rows == ["as-is", "as-is+remat"]
    assert re.search(r"Skipped: lif, lif\+remat, lif\+checkpoint, lif\+bitpack: own_models.py, line", result.output)
    assert CliRunner().invoke(app, [*command, *model, "--node", "lif"]).exit_code == 5


PLAIN = ["plan", "--model", "own_models:sequential", "--input", "2,3,6", "--rounds", "1"]


def test_a_command_that_finds_no_plan_that_fits_ends_with_5(tmp_path):
    """So that what follows `&&` does not start; `apply_plan` warns, and the text explains its words."""
    path = tmp_path / "made" / "plan.json"
    path.parent.mkdir()
    path.write_text("the old plan")
    os.link(path, tmp_path / "old.json")
    result = CliRunner().invoke(app, [*PLAIN, "--budget", "10 B", "--output", str(path)], env={"COLUMNS": "400"})
    assert result.exit_code == 5
    assert re.search(r"Nothing fits the budget of 10 B. The least found is [\d.]+ KiB, by this plan.", result.output)
    assert "rest: what is in no block. " in result.output
    assert re.search(r"\w+: keeps .* \[\d+:\d+\]: children \d+ to \d+ of a Sequential. highest: ", result.output)
    assert not re.search(r"-\d+\.\d ms", result.output)
    with pytest.warns(UserWarning, match=r"does not fit its budget of 0.00 MiB: a step is expected to take"):
        apply_plan(own_models.sequential(), path)
    assert (tmp_path / "old.json").read_text() == "the old plan"  # replaced in one step, not written over


def test_a_plan_that_could_not_be_saved_is_not_made(tmp_path, monkeypatch):
    """A file that is a folder, or lies in a file, is refused before a worker starts."""
    monkeypatch.setattr("revsnn_bench.runner.Runner.call", None)
    (tmp_path / "file").touch()
    for flag, path in itertools.product(("--output", "--page"), (tmp_path, tmp_path / "file" / "plan.json")):
        result = CliRunner().invoke(app, [*PLAIN, "--budget", "1 MiB", flag, str(path)])
        assert result.exit_code == 2
        assert result.output.startswith(f"Error: {flag}: ")


def test_a_plan_that_does_not_fit_on_the_disk_leaves_the_old_one(tmp_path):
    """The file is named, its plan is whole, and no half of another lies beside it; what is no file is written to."""
    path = tmp_path / "plan.json"
    path.write_text("the old plan")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as refused:
            write_whole("a plan\n" * 100, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused.value.filename == str(path)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("plan.json", "the old plan")]
    write_whole("a plan", Path(os.devnull))
    assert Path(os.devnull).is_char_device()


@pytest.mark.parametrize("plain_bytes", [10**6, 1000])
def test_no_plan_gains_time(plain_bytes):
    """It does no less than the model, so less time is noise: of equals the one with the least peak, or none at all."""
    seconds = {"plain": 9.0, "remat": 2.0, "checkpoint": 1.0}
    faster = made_up()
    faster = replace(faster, seconds=(seconds,) * 6, recorded={faster.plain: plain_bytes})
    plan = solve_plan(faster, 10**7, partial(refined, record=faster.costs_of), None)
    assert plan.predicted_bytes <= plain_bytes
    assert ({row.option for row in plan.rows} == {"plain"}) == (plain_bytes == 1000)
    assert all(row.extra_s == 0 for row in plan.rows)
    assert plan.step_s == plan.plain_s


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["--model", "own_models:raises", "--input", "2,3,6"],
            5,
            r"own_models.py, line \d+: own_models:raises raised",
        ),
        (["--model", "own_models:no_neuron", "--input", "2,3,6"], 5, "NoNeuron has no neuron that can be exchanged"),
        (["--model", "own_models:plain", "--input", "2,6"], 2, "`--input` must be T,B,features; got '2,6'"),
        (["--model", "plain.py", "--input", "2,3,6"], 2, "--model must name the function too, such as plain:make; got"),
        (
            ["--model", "own_models:plain", "--input", "2,3,6", "--blocks", "torch.nn:Lin"],
            2,
            "^Error: `--blocks` must be package.module:Class; got 'torch.nn:Lin'. The module has no class 'Lin'. Name",
        ),
        (
            ["--model", "own_models:plain", "--input", "2,3,6", "--blocks", "torch.nn"],
            2,
            "^Error: `--blocks` must be package.module:Class; got 'torch.nn'. It names a module alone. Name the",
        ),
        (
            ["--model", "own_models:sequential", "--input", "2,3,6", "--blocks", "torch.nn:LSTM"],
            2,
            "^Error: `blocks` must be a class of modules that the model has; got LSTM, and Sequential has none.",
        ),
    ],
)
def test_the_command_says_in_one_sentence_what_is_wrong(arguments, code, message):
    """The worker's traceback stays out of it."""
    result = CliRunner().invoke(app, ["plan", *arguments, "--budget", "1 MiB"], env={"COLUMNS": "400"})
    assert result.exit_code == code
    assert re.search(message, result.output.replace("│", ""))
    assert "Traceback" not in result.output
