"""A byte budget in, the cheapest measured plan out: profile, solve, apply, measure, and solve again where it is missed.

plan = make_plan(model, x_seq, budget="4 GiB")
plan.apply(model)                        # or save plan.to_json() and apply_plan(model, path) where you train
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import psutil
import torch
from revsnn_nodes import apply_plan
from revsnn_nodes.plan import put_in_our_neurons
from torch import Tensor, nn

from revsnn_bench.case import Case, parse_size
from revsnn_bench.meters.attribution import attribute_host_peak, attribute_peak
from revsnn_bench.meters.memory import peak_bytes
from revsnn_bench.meters.step import relative_error, same_draws
from revsnn_bench.models.own import ModelError, OwnStep, leaf, load_class
from revsnn_bench.models.step import WorkloadStep
from revsnn_bench.models.workloads import build
from revsnn_bench.plan.predict import fake_step, probe_for
from revsnn_bench.plan.profile import Choice, Profile, profile_fake, profile_step, record_fake_step, record_step
from revsnn_bench.plan.solve import chosen, frontier, frontier_budgets, refined
from revsnn_bench.records import MemoryTimeline
from revsnn_bench.report.units import size

MOST_REPAIRS = 5
MEMORY_SHARE = 0.5
"""A step whose predicted peak is beyond this share of the machine's free memory is profiled without running it."""

ALLOWANCE = 0.02
"""Share by which a measured peak may be above the predicted one before it counts."""

WRONG = 1e-3
"""Relative error from which on the gradient under a plan is another than without one."""

SMALL_BYTES = 64 << 20
"""Peak of the smaller step that gives its seconds."""

_NUMBERS = (
    *("budget_bytes", "fits", "expected_bytes", "predicted_bytes"),
    *("step_s", "plain_bytes", "plain_s", "rounds", "frontier"),
)
"""Fields and properties of a plan that go into its file."""

MEANINGS = {
    "plain": "keeps what autograd keeps",
    "remat": "keeps recipes in place of what is cheap to make again",
    "remat4": "remat of what at most 4 passes make",
    "checkpoint": "keeps its inputs, and runs again in the backward pass",
    "bits": "checkpoint, and spikes are kept as bits",
    "offload": "keeps what autograd keeps in the host's memory",
}
"""What each option of a block does; `revsnn_nodes.plan` says more."""

Measure = Callable[[dict[str, str]], "Measured"]
Refine = Callable[[Profile, list[int]], Profile]


@dataclass(frozen=True)
class Measured:
    """A step under a plan; the error is the relative L2 difference of all parameter gradients to those without one."""

    peak_bytes: int
    gradient_error: float
    timeline: MemoryTimeline


@dataclass(frozen=True)
class Smaller:
    """A plan at a smaller batch: the peak that fake tensors give for it, and what was measured."""

    batch: int
    predicted_bytes: int
    measured: Measured

    @property
    def ratio(self) -> float:
        """How many times the predicted peak was measured; 1 where it was no more than that, and `ALLOWANCE`."""
        ratio = self.measured.peak_bytes / self.predicted_bytes
        return ratio if ratio > 1 + ALLOWANCE else 1.0


@dataclass(frozen=True)
class Row:
    """A block in a plan: what it keeps, its highest bytes beyond what blocks before it keep, seconds beyond plain.

    The seconds are 0 where no more than plain's were measured.
    """

    block: str
    option: str
    kept_bytes: int
    peak_bytes: int
    extra_s: float


@dataclass(frozen=True)
class Plan:
    """What each block does, and what that takes.

    Fields:
        fits: whether `expected_bytes` are within it; otherwise this is the plan that takes least.
        predicted_bytes, step_s: of the step, by the profile, in which it was recorded once.
        plain_bytes, plain_s: of the step without a plan, by the profile.
        rounds: of how many timed steps of one process each time is the least.
        measured: the step under the plan in a fresh process; None where it was too large to run.
        smaller: the plan at the largest batch that fits the machine, where the step was too large to run.
        frontier: (peak, seconds) of each distinct plan, by falling peak.
    """

    budget_bytes: int
    fits: bool
    rows: tuple[Row, ...]
    predicted_bytes: int
    step_s: float
    plain_bytes: int
    plain_s: float
    rounds: int
    measured: Measured | None
    without: Measured | None = None
    smaller: Smaller | None = None
    frontier: tuple[tuple[int, float], ...] = ()

    @property
    def expected_bytes(self) -> int:
        """The measured peak; of a step that did not run the predicted one, times the ratio that a smaller one had."""
        if self.measured is not None:
            return self.measured.peak_bytes
        return round(self.predicted_bytes * (1.0 if self.smaller is None else self.smaller.ratio))

    @property
    def options(self) -> dict[str, str]:
        """Option by block, as `apply_plan` takes them."""
        return {row.block: row.option for row in self.rows}

    def summary(self) -> list[str]:
        """What it comes to, in sentences."""
        peak = f"Predicted peak {size(self.predicted_bytes)}"
        if self.measured is not None:
            peak += f", measured {size(self.measured.peak_bytes)}, gradient error {self.measured.gradient_error:.1e}"
        slower = f"It takes {self.step_s / self.plain_s:.2f} times the time of the model with our neurons and no plan"
        lines = [f"{self._verdict()} {peak}. {slower}, whose peak is {size(self.plain_bytes)}."]
        if self.measured is None:
            lines.append("The step is too large to run here: its seconds are those of a smaller batch, in proportion.")
        if self.smaller is not None:
            found = self.smaller.measured
            done = "Measured" if self.smaller.ratio > 1 else "Verified"
            lines.append(
                f"{done} at a batch of {self.smaller.batch:,}: predicted peak {size(self.smaller.predicted_bytes)}, "
                f"measured {size(found.peak_bytes)}, gradient error {found.gradient_error:.1e}."
            )
            if self.smaller.ratio > 1:
                lines.append(
                    f"The smaller step took {self.smaller.ratio:.2f} times what was predicted, so "
                    f"{size(self.expected_bytes)} are expected."
                )
        least = "that of one step" if self.rounds == 1 else f"the least of {self.rounds} steps"
        return [*lines, f"Each time is {least} of one process, which gives no interval; --rounds N takes more."]

    def _verdict(self) -> str:
        budget, least = size(self.budget_bytes), size(self.expected_bytes)
        if self.fits:
            return f"This plan fits the budget of {budget}."
        if budget == least:
            budget, least = f"{self.budget_bytes:,} B", f"{self.expected_bytes:,} B"
        return f"Nothing fits the budget of {budget}. The least found is {least}, by this plan."

    def legend(self) -> str:
        """What the table of its blocks means, in sentences: of options and names those that are there."""
        lines = [f"{option}: {meaning}." for option, meaning in MEANINGS.items() if option in self.options.values()]
        lines += ["rest: what is in no block."]
        if parts := [match for block in self.options if (match := re.search(r"\[(\d+):(\d+)\]$", block))]:
            lines += [f"{parts[0][0]}: children {parts[0][1]} to {int(parts[0][2]) - 1} of a Sequential."]
        return " ".join([*lines, "highest: a block's highest bytes beyond what the blocks before it keep."])

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain numbers, for a page."""
        timelines = {
            name: measured.timeline.rows()
            for name, measured in (("without a plan", self.without), ("with this plan", self.measured))
            if measured is not None
        }
        document: dict[str, Any] = json.loads(self.to_json())
        return document | {"summary": self.summary(), "legend": self.legend(), "timelines": timelines}

    def apply(self, model: nn.Module) -> nn.Module:
        """Puts our neurons and this plan into a model; see `revsnn_nodes.apply_plan`."""
        put_in_our_neurons(model)
        return apply_plan(model, self.options)

    def to_json(self) -> str:
        """The plan as `apply_plan` reads it from a file."""
        document = {"neurons": "lif", "blocks": [asdict(row) for row in self.rows]}
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        if self.measured is not None:
            numbers |= {"measured_bytes": self.measured.peak_bytes, "gradient_error": self.measured.gradient_error}
        if self.smaller is not None:
            numbers["verified"] = {
                "batch": self.smaller.batch,
                "predicted_bytes": self.smaller.predicted_bytes,
                "measured_bytes": self.smaller.measured.peak_bytes,
                "gradient_error": self.smaller.measured.gradient_error,
            }
        return json.dumps(document | numbers, indent=1) + "\n"


def make_plan(
    model: nn.Module,
    inputs: Tensor,
    loss: Callable[[Tensor], Tensor] | None = None,
    budget: str | int = "1 GiB",
    blocks: type[nn.Module] | None = None,
    rounds: int = 3,
) -> Plan:
    """Plans for a model in this process, on real tensors; its LIF neurons of SpikingJelly are exchanged for ours.

    Args:
        model: takes `inputs`; is left without a plan.
        inputs: `[T, B, *]`.
        loss: of the output; None for a fixed random gradient.
        budget: peak bytes of forward and backward, parameters and inputs not counted; text such as "4 GiB".
        blocks: class of its blocks; found by `find_blocks` where None.
        rounds: timed steps of each option.
    Raises:
        ValueError: no block was found, or the model cannot be measured.
    """
    put_in_our_neurons(model)
    step = OwnStep(model, leaf(inputs), loss)
    profile = profile_step(step, blocks, rounds)
    refine = partial(refined, record=partial(record_step, step, profile.blocks))
    return solve_plan(profile, parse_size(budget), refine, partial(measure_step, step))


def solve_plan(profile: Profile, budget_bytes: int, refine: Refine, measure: Measure | None) -> Plan:
    """Solves, measures, and solves again for a smaller budget while the measured peak is beyond the one asked for.

    Plans are recorded as by `revsnn_bench.plan.solve.refined`; none is measured where the step is too large to run.
    """
    target, repairs, found = budget_bytes, 0, None
    while True:
        profile = refine(profile, [target])
        choice = chosen(profile, target)
        peak = profile.peak_bytes(choice)
        if measure is not None:
            found = measure(dict(zip(profile.blocks, choice, strict=True)))
        excess = (peak if found is None else found.peak_bytes) - budget_bytes
        if excess <= 0 or found is None or peak > target or repairs == MOST_REPAIRS:  # it fits, or nothing does
            break
        target, repairs = peak - excess, repairs + 1
    return Plan(
        budget_bytes=budget_bytes,
        fits=excess <= 0,
        rows=_rows(profile, choice),
        predicted_bytes=peak,
        step_s=profile.step_s(choice),
        plain_bytes=profile.plain_bytes,
        plain_s=profile.plain_s,
        rounds=profile.rounds,
        measured=found,
        without=None if measure is None else measure({}),
        frontier=tuple((profile.peak_bytes(each), profile.step_s(each)) for each in frontier(profile)),
    )


def _rows(profile: Profile, choice: Choice) -> tuple[Row, ...]:
    costs = profile.costs_of(choice)
    return tuple(
        Row(block, option, cost.kept_bytes, max(cost.forward_bytes, cost.peak_bytes), profile.extra_s(number, option))
        for number, (block, option, cost) in enumerate(zip(profile.blocks, choice, costs, strict=True))
    )


def plan_case(
    call: Callable[..., Any],
    case: Case,
    budget_bytes: int,
    rounds: int = 3,
    blocks: str = "",
    limit_bytes: int | None = None,
    with_frontier: bool = False,
) -> Plan:
    """Plans for a case; a plan whose step is too large to run is verified at the largest batch that is not.

    Args:
        call: calls a function with arguments, such as `Runner.call`, which does it in a fresh worker.
        blocks: class of the blocks as `package.module:Class`; "" to find them.
        limit_bytes: peak up to which a step is run; None for `MEMORY_SHARE` of the machine's free memory.
        with_frontier: whether to record plans for other budgets, too.
    """
    limit_bytes = limit_bytes or int(MEMORY_SHARE * psutil.virtual_memory().available)
    profile, largest = call(profile_case, case, rounds, blocks, limit_bytes)
    runs = largest == case
    refine: Refine = partial(call, refine_case, case, runs)
    if with_frontier:
        profile = refine(profile, [budget_bytes, *frontier_budgets(profile)])
    if runs:
        return solve_plan(profile, budget_bytes, refine, partial(call, measure_case, case))
    return _verified(profile, budget_bytes, refine, partial(call, verify_case, largest))


def _verified(profile: Profile, budget_bytes: int, refine: Refine, verify: Callable[[dict[str, str]], Smaller]) -> Plan:
    """Solves, and again for less while a smaller step under the plan shows that more than the budget is expected."""
    target, repairs = budget_bytes, 0
    while True:
        found = solve_plan(profile, target, refine, None)
        within_target = found.fits
        found = replace(found, budget_bytes=budget_bytes, smaller=verify(found.options))
        found = replace(found, fits=found.expected_bytes <= budget_bytes)
        if found.fits or not within_target or found.smaller is None or repairs == MOST_REPAIRS:
            return found
        target, repairs = int(budget_bytes / found.smaller.ratio), repairs + 1


def profile_case(case: Case, rounds: int, blocks: str, limit_bytes: int) -> tuple[Profile, Case]:
    """The profile of a case in a worker, and the case at the largest batch that can be run here.

    Where that is smaller, bytes are those of fake tensors, and seconds in proportion to a batch of about `SMALL_BYTES`.
    """
    kind = load_class(blocks) if blocks else None
    expected = predicted_peak(case, {})
    if expected <= limit_bytes:
        return profile_step(_warm(case), kind, rounds), case
    small = _smaller(case, expected, min(SMALL_BYTES, limit_bytes))
    known = profile_step(build(small), kind, rounds)
    with fake_step(case) as fake:
        record = partial(record_fake_step, fake, known.blocks, probe_for(case))
        profile = profile_fake(known, case.batch / small.batch, record)
    return profile, _smaller(case, expected, limit_bytes)


def refine_case(case: Case, runs: bool, profile: Profile, budgets: list[int]) -> Profile:
    """The profile of a case after the plans for some budgets were recorded, on fake tensors where it is not to run."""
    if runs:
        return refined(profile, budgets, partial(record_step, _warm(case), profile.blocks))
    with fake_step(case) as fake:
        return refined(profile, budgets, partial(record_fake_step, fake, profile.blocks, probe_for(case)))


def _warm(case: Case) -> WorkloadStep:
    """The step of a case after it ran once: what is loaded and compiled then counts for nobody."""
    step = build(case)
    step.backward(step.forward())
    return step


def _smaller(case: Case, expected: int, limit_bytes: int) -> Case:
    """The case at the largest batch whose peak is within a limit, or at 1; peaks lie on a line over the batch."""
    guess = case.model_copy(update={"batch": max(1, int(case.batch * limit_bytes / expected))})
    excess, steps = predicted_peak(guess, {}) - limit_bytes, case.batch - guess.batch
    fewer = -(-excess * steps // (expected - limit_bytes - excess)) if excess > 0 and steps else 0
    return case.model_copy(update={"batch": max(1, guess.batch - fewer)})


def predicted_peak(case: Case, plan: dict[str, str]) -> int:
    """The peak of a case under a plan on fake tensors."""
    with fake_step(case) as fake:
        apply_plan(fake.model, plan)
        return attribute_peak(fake, probe_for(case)).peak_bytes


def verify_case(case: Case, plan: dict[str, str]) -> Smaller:
    """A case under a plan that was made for a larger batch."""
    return Smaller(case.batch, predicted_peak(case, plan), measure_case(case, plan))


def measure_case(case: Case, plan: dict[str, str]) -> Measured:
    """Measures a case under a plan: what the command runs in a fresh worker."""
    return measure_step(_warm(case), plan)


def measure_step(step: WorkloadStep, plan: dict[str, str]) -> Measured:
    """Peak, gradient and live bytes of a step under a plan; leaves the model without one.

    Raises:
        ModelError: the gradient is another under the plan, and the same every time without one.
    """
    apply_plan(step.model, {})
    expected = _gradients(step)
    apply_plan(step.model, plan)
    try:
        error = relative_error(_gradients(step), expected)
        if error > WRONG:
            apply_plan(step.model, {})
            if relative_error(_gradients(step), expected) <= WRONG:
                raise ModelError(
                    "a block that runs again must repeat its first run; under the plan the gradient is "
                    f"{error:.1e} away from that without one. Something draws numbers outside of torch, or carries "
                    "what no attribute of a neuron holds. Draw with torch, and make it anew in `forward`."
                )
            apply_plan(step.model, plan)
        del expected
        return Measured(peak_bytes(step), error, attribute_host_peak(step).timeline)
    finally:
        apply_plan(step.model, {})


def _gradients(step: WorkloadStep) -> list[Tensor]:
    """Gradients of the parameters; buffers that the forward changes are put back, so that the next step is the same."""
    step.prepare()
    buffers = {name: buffer.clone() for name, buffer in step.model.named_buffers()}
    with same_draws(step.source.device, 0):
        step.backward(step.forward())
    found = [p.grad.clone() for p in step.model.parameters() if p.grad is not None]
    step.prepare()
    with torch.no_grad():
        for name, before in buffers.items():
            step.model.get_buffer(name).copy_(before)
    return found
