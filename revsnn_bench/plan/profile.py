"""What each block of a model costs under each option: bytes kept, highest bytes while it runs, seconds.

The blocks run in a row. Segment i starts where block i does and ends where the next one does; segment 0 is what comes
before the first block. In backward the border between two segments is where the gradient of the tensor between them
arrives. Whole steps are recorded: one for every option, and two for each pair of options, which take turns, where the
output of one block reaches the next in a way that was not seen yet (`_border`). So what a block keeps for its
neighbour, or makes again for it, is in the numbers. With k_i the option of block i and L(t) the live bytes,

    m_i(k_i-1, k_i) = bytes allocated in forward of segment i that are alive where forward ends
    f_i(k_i-1, k_i) = max of L(t) over forward of segment i, less sum over j < i of m_j
    r_i(k_i-1, k_i) = L(t) where backward of segment i ends, less sum over j < i of m_j, less sum over j > i of r_j
    p_i(k_i-1, k_i) = max of L(t) over backward of segment i, less sum over j < i of m_j, less sum over j > i of r_j
    peak            = max over i of  sum over j < i of m_j  +  max(f_i, p_i + sum over j > i of r_j)

r_i is what segment i leaves to those before it: gradients of its parameters, what was not freed, and by how much the
gradient that it passes on is larger than the one that it got.

Pairs do not say all: along a chain of residual additions a block can make tensors again that lie several blocks before
it. So a plan that the costs give is recorded, too, and corrects them (`Profile.corrected`).
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations, pairwise
from typing import Any

import torch
from revsnn_nodes import apply_plan
from revsnn_nodes.plan import OFFLOAD, OPTIONS, PASSES, REST, Block, find_blocks
from torch import Tensor, nn
from torch.profiler import record_function

from revsnn_bench.meters.allocator import Ledger, profiled_events
from revsnn_bench.meters.attribution import Scratch, StorageTracker
from revsnn_bench.meters.step import TrainingStep
from revsnn_bench.system.process import frozen_heap, quiet_gc

Pair = tuple[str, str]
"""Options of the block before and of the block itself; the first segment has "" before it."""

Choice = tuple[str, ...]
"""One option for every segment."""

Record = Callable[[Choice], list["Cost"]]
"""Records a step under a choice of options: the cost of every segment."""

SAME = 0.01
"""Share of the bytes kept to which two options are the same."""

_MARK = "revsnn_bench.plan:"


@dataclass(frozen=True)
class Cost:
    """What a segment takes: m, p, f and r of this module's docstring, in this order."""

    kept_bytes: int
    peak_bytes: int
    forward_bytes: int = 0
    left_bytes: int = 0


@dataclass(frozen=True)
class Profile:
    """Costs of every segment under every pair of options.

    Fields:
        blocks: names in order of running; the first is `REST`, what is in no block.
        options: what each may do. What is in no block is under `remat`: it lies between the others.
        costs: by segment and pair.
        seconds: by segment and option, plain among them: forward and backward of one step.
        plain_s: seconds of the model without a plan.
        recorded: peaks of the whole steps that were recorded, that of the model without a plan among them.
        rounds: of how many timed steps each time is the least.
    """

    blocks: tuple[str, ...]
    options: tuple[tuple[str, ...], ...]
    costs: tuple[dict[Pair, Cost], ...]
    seconds: tuple[dict[str, float], ...]
    plain_s: float
    recorded: dict[Choice, int]
    rounds: int = 3

    @property
    def plain(self) -> Choice:
        """The model without a plan."""
        return ("plain",) * len(self.blocks)

    @property
    def plain_bytes(self) -> int:
        """The peak of the model without a plan."""
        return self.recorded[self.plain]

    def costs_of(self, choice: Choice) -> list[Cost]:
        """The cost of every segment under a choice of options; what is in no block is there under `remat`."""
        pairs = pairwise(["", "remat", *choice[1:]])
        return [costs[pair] for costs, pair in zip(self.costs, pairs, strict=True)]

    def peak_bytes(self, choice: Choice) -> int:
        """The peak for a choice of options: as recorded, or by the equation."""
        return self.recorded.get(choice) or _peak(self.costs_of(choice))

    def corrected(self, choice: Choice, costs: Sequence[Cost]) -> "Profile":
        """With the costs of a step that was recorded under a choice in the place of those of its pairs."""
        pairs = zip(self.costs, pairwise(["", *choice]), costs, strict=True)
        known = tuple(old | {pair: new} for old, pair, new in pairs)
        return replace(self, costs=known, recorded=self.recorded | {choice: _peak(costs)})

    def extra_s(self, segment: int, option: str) -> float:
        """Seconds that an option takes beyond plain; 0 where less was measured, which is noise: it does no less."""
        return max(0.0, self.seconds[segment][option] - self.seconds[segment]["plain"])

    def step_s(self, choice: Choice) -> float:
        """Seconds of a step under a choice of options."""
        return self.plain_s + sum(self.extra_s(number, option) for number, option in enumerate(choice))


def profile_step(step: TrainingStep, kind: type[nn.Module] | None = None, rounds: int = 3) -> Profile:
    """Records and times a step under every option of its device; leaves the model without a plan, the step prepared.

    Args:
        kind: class of its blocks, where the user names it; a ValueError where no block is found.
        rounds: timed steps of each option.
    """
    options = OPTIONS if step.source.device.type == "cpu" else (*OPTIONS, OFFLOAD)
    with quiet_gc(), frozen_heap():
        try:
            names = (REST, *(block.name for block in running_order(step, kind)))
            record = partial(record_step, step, names)
            _timed(step, names, ("remat", *("plain" for _ in names[1:])))  # the first step that records keeps more
            uniform = _distinct(_uniform(record, names, options))
            costs, recorded = _all_costs(record, names, uniform)
            seconds, plain_s = _seconds(step, names, tuple(uniform), rounds)
        finally:
            apply_plan(step.model, {})
    return Profile(names, (("remat",), *(tuple(uniform) for _ in names[1:])), costs, seconds, plain_s, recorded, rounds)


def profile_fake(small: Profile, times: float, record: Record) -> Profile:
    """The profile of a step so many times larger: its bytes, as recorded on fake tensors, and seconds in proportion."""
    costs, recorded = _all_costs(record, small.blocks, _uniform(record, small.blocks, small.options[-1]))
    seconds = tuple({option: times * each for option, each in known.items()} for known in small.seconds)
    return replace(small, costs=costs, seconds=seconds, plain_s=times * small.plain_s, recorded=recorded)


def _uniform(record: Record, names: Sequence[str], options: Sequence[str]) -> dict[str, list[Cost]]:
    """Costs of every segment where all blocks have one option."""
    return {option: record(("remat", *(option for _ in names[1:]))) for option in options}


def _distinct(uniform: dict[str, list[Cost]]) -> dict[str, list[Cost]]:
    """The options, without those that keep what an earlier one keeps, to `SAME` of it."""
    kept: dict[str, int] = {}
    for option, costs in uniform.items():
        total = sum(cost.kept_bytes for cost in costs)
        if not any(abs(total - other) <= SAME * other for other in kept.values()):
            kept[option] = total
    return {option: uniform[option] for option in kept}


def _border(before: str, option: str) -> str:
    """How a block gets the output of the block before it: whole, made again, or from bits where it is binary."""
    # Passes are counted across a border where both sides record, so that there the option before counts.
    if before in ("plain", "checkpoint"):
        return "whole"
    return "again" if before in PASSES and option not in PASSES else before


def _all_costs(
    record: Record, names: Sequence[str], uniform: Mapping[str, list[Cost]]
) -> tuple[tuple[dict[Pair, Cost], ...], dict[Choice, int]]:
    """Costs by segment and pair, from uniform steps and from steps in which two options take turns; all their peaks."""
    known: list[dict[Pair, Cost]] = [{} for _ in names]  # by border and option
    plain = ("plain",) * len(names)
    recorded = {plain: _peak(record(plain))}

    def note(choice: Choice, costs: Sequence[Cost]) -> None:
        recorded[choice] = _peak(costs)
        for found, (before, option), cost in zip(known, pairwise(["", *choice]), costs, strict=True):
            found.setdefault((_border(before, option), option), cost)

    for option, costs in uniform.items():
        note(("remat", *(option for _ in names[1:])), costs)
    for turns in _turns(tuple(uniform)) if len(names) > 2 else ():
        choice = ("remat", *(turns[number % 2] for number in range(1, len(names))))
        note(choice, record(choice))
    befores = [("",), ("remat",), *(tuple(uniform) for _ in names[2:])]
    own = [("remat",), *(tuple(uniform) for _ in names[1:])]
    table = tuple(
        {(before, option): found[_border(before, option), option] for before in some for option in options}
        for found, some, options in zip(known, befores, own, strict=True)
    )
    return table, recorded


def _turns(options: Sequence[str]) -> Iterator[Pair]:
    """Few pairs of options that, taking turns in both orders, show every border that uniform steps do not."""
    seen = {(_border(option, option), option) for option in options}
    for most in (2, 1):  # pairs that show two borders come first
        for one, other in combinations(options, 2):
            new = {(_border(one, other), other), (_border(other, one), one)} - seen
            if len(new) >= most:
                seen |= new
                yield one, other
                yield other, one


def _peak(costs: Sequence[Cost]) -> int:
    kept, left, peak = 0, sum(cost.left_bytes for cost in costs), 0
    for cost in costs:
        left -= cost.left_bytes
        peak = max(peak, kept + cost.forward_bytes, kept + cost.peak_bytes + left)
        kept += cost.kept_bytes
    return peak


def running_order(step: TrainingStep, kind: type[nn.Module] | None = None) -> list[Block]:
    """The blocks in the order in which they run; the model as one block where some run more than once in a step."""
    apply_plan(step.model, {})
    blocks, calls = find_blocks(step.model, kind), []
    if not blocks and kind is not None:
        known = sorted({type(module).__name__ for module in step.model.modules() if [*module.children()]})
        raise ValueError(
            f"`blocks` must be a class of modules that the model has; got {kind.__name__}, and "
            f"{type(step.model).__name__} has none. A plan decides for each of them. Pass the class of its blocks, "
            f"which has modules inside, among {', '.join(known)}."
        )
    if not blocks:
        raise ValueError(
            f"`model` must hold a block with weights and a neuron; {type(step.model).__name__} has none. There is "
            "nothing to choose between. Name the class of its blocks."
        )
    step.prepare()
    with _borders(step.model, blocks, lambda number, _: calls.append(number)):
        step.forward()
    step.prepare()
    if len({*calls}) < len(calls):
        return [Block("")]
    return [blocks[number - 1] for number in calls]


@contextmanager
def _borders(model: nn.Module, blocks: Sequence[Block], note: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Calls `note(i, input)` where block i, from 1 on, starts in forward; not where it runs again."""

    def enter(number: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if torch._C._current_graph_task_id() == -1 and tensors:
            note(number, tensors[0])

    with ExitStack() as hooks:
        for number, block in enumerate(blocks, 1):
            first = block.modules(model)[0]
            hooks.enter_context(first.register_forward_pre_hook(partial(enter, number), with_kwargs=True))
        yield


def _run(step: TrainingStep, blocks: Sequence[Block], mark: Callable[[int], None]) -> None:
    """Forward and backward; `mark` gets the segment that starts, and -1 where forward ends."""

    def note(number: int, x: Tensor) -> None:
        mark(number)
        if x.requires_grad:
            x.register_hook(lambda _: mark(number - 1))

    with _borders(step.model, blocks, note):
        output = step.forward()
    mark(-1)
    step.backward(output)


def record_fake_step(step: TrainingStep, names: Sequence[str], scratch: Scratch | None, choice: Choice) -> list[Cost]:
    """`record_step` on fake tensors, in the context of `revsnn_bench.plan.predict.fake_step`, from a tracker's log."""
    blocks = _planned(step, names, choice)
    tracker = StorageTracker(step.model, scratch)
    marks: list[tuple[int, int]] = []
    with quiet_gc(), tracker:
        _run(step, blocks, lambda number: marks.append((len(tracker.log), number)))
    step.prepare()
    recorded = _Recorded(len(names))
    for place, entry in enumerate(tracker.log):
        while marks and marks[0][0] <= place:
            recorded.mark(marks.pop(0)[1])
        serial = abs(entry) - 1
        if entry > 0:
            recorded.ledger.allocate(serial, tracker.blocks[serial].nbytes)
        else:
            recorded.ledger.free(serial)
        recorded.now()
    return recorded.costs()


def record_step(step: TrainingStep, names: Sequence[str], choice: Choice) -> list[Cost]:
    """Costs of every segment, by their names, in one step, which is left prepared and under the choice."""
    blocks = _planned(step, names, choice)

    def mark(number: int) -> None:
        with record_function(f"{_MARK}{number}"):
            pass

    _, events = profiled_events(lambda: _run(step, blocks, mark), step.source.device.type)
    step.prepare()
    recorded = _Recorded(len(names))
    for event, block in events:
        if block is not None:
            recorded.ledger.book(block)
            recorded.now()
        elif event.name.startswith(_MARK):
            recorded.mark(int(event.name.removeprefix(_MARK)))
    return recorded.costs()


@dataclass
class _Recorded:
    """A step's allocations, cut into segments."""

    segments: int
    ledger: Ledger = field(default_factory=Ledger)
    segment: int = 0
    starts: list[int] = field(default_factory=lambda: [0])
    kept: list[int] = field(default_factory=list)
    highest: dict[tuple[bool, int], int] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)

    def mark(self, number: int) -> None:
        """Segment `number` starts; -1 ends forward, and the last segment goes on in backward."""
        if number >= 0:
            if self.kept:
                self.ends[self.segment] = self.ledger.live_bytes
            else:
                self.starts.append(len(self.ledger.sizes))
            self.segment = number
            return
        bounds = [*self.starts, len(self.ledger.sizes)]
        live = self.ledger.live.values()
        self.kept = [
            sum(self.ledger.sizes[each] for each in live if first <= each < last) for first, last in pairwise(bounds)
        ]

    def now(self) -> None:
        """Looks at the bytes that are alive."""
        key = bool(self.kept), self.segment
        self.highest[key] = max(self.highest.get(key, 0), self.ledger.live_bytes)

    def costs(self) -> list[Cost]:
        """Of every segment."""
        found, left, before = [], 0, sum(self.kept)
        for n in reversed(range(self.segments)):
            before -= self.kept[n]
            own = self.ends[n] - before - left if n in self.ends else 0
            forward, backward = (self.highest.get((part, n), before) - before for part in (False, True))
            found.append(Cost(self.kept[n], backward - left, forward, own))
            left += own
        return found[::-1]


def _planned(step: TrainingStep, names: Sequence[str], choice: Choice) -> list[Block]:
    """Applies a choice of options to a step, and prepares it; returns its blocks."""
    apply_plan(step.model, dict(zip(names, choice, strict=True)))
    step.prepare()
    return [Block.named(name) for name in names[1:]]


def _seconds(
    step: TrainingStep, names: Sequence[str], options: Sequence[str], rounds: int
) -> tuple[tuple[dict[str, float], ...], float]:
    """The least of interleaved rounds, which others disturbed least, by segment and option; and without a plan."""
    samples: list[dict[str, float]] = [{} for _ in names]
    plain = [math.inf] * len(names)
    for _ in range(rounds):
        for option in options:
            choice = ("remat", *(option for _ in names[1:]))
            for known, taken, time_s in zip(samples, choice, _timed(step, names, choice), strict=True):
                known[taken] = min(known.get(taken, math.inf), time_s)
        plain = list(map(min, plain, _timed(step, names, ("plain",) * len(names))))
    samples[0]["plain"] = plain[0]
    return tuple(samples), sum(plain)


def _timed(step: TrainingStep, names: Sequence[str], choice: Choice) -> list[float]:
    blocks = _planned(step, names, choice)
    times, running, last = [0.0] * len(names), 0, time.perf_counter()

    def mark(number: int) -> None:
        nonlocal running, last
        now = time.perf_counter()
        times[running] += now - last
        running, last = (running if number < 0 else number), now

    gc.collect()
    last = time.perf_counter()
    _run(step, blocks, mark)
    mark(0)
    step.prepare()
    return times
