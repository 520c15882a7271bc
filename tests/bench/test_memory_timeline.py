"""Live bytes over one step: the closed form event by event, exact maxima however few events are kept."""

import json

import pytest

from revsnn_bench.case import Case
from revsnn_bench.measuring import Settings, measure
from revsnn_bench.meters.allocator import MOST_EVENTS, Ledger
from revsnn_bench.meters.memory import measure_memory
from revsnn_bench.meters.selftest import SelfTestStep
from revsnn_bench.records import MemoryRecord, MemoryTimeline


def test_timeline_of_the_selftest_is_its_closed_form():
    """Input, charge, sigmoid, state and output come in forward, the sigmoid goes; the peak is A + 7 B in backward."""
    rows, features, units = 24, 16, 40
    step = SelfTestStep(rows, features, units)
    record = measure_memory(step)
    timeline = record.timeline
    assert timeline is not None
    a, b, w = 4 * rows * features, 4 * rows * units, 4 * features * units
    totals = [sum(live.values()) for _, live in timeline.rows()]
    assert timeline.forward_events == 6
    assert totals[:6] == [a, a + b, a + 2 * b, a + 3 * b, a + 4 * b, a + 3 * b]
    assert max(totals) == timeline.peak_bytes == record.peak_bytes == step.expected["peak_bytes"]
    at_peak = {name: size for name, size in timeline.rows()[totals.index(max(totals))][1].items() if size}
    assert at_peak == step.expected["peak_by_category_bytes"]
    assert totals[-1] == w + a + b  # both gradients and the state are left


@pytest.mark.parametrize("node", ["lif", "lif-checkpoint", "revlif", "lif-carrier"])
def test_highest_point_is_the_peak_of_the_record(node):
    """For every node, on a step too long to be kept whole, the timeline touches `peak_bytes` to the byte."""
    case = Case(node=node, timesteps=24, batch=2, shape=(64,), node_options={"backend": "torch"})
    memory = measure(case, Settings(passes=("memory",))).memory
    assert memory is not None
    assert memory.timeline is not None
    assert memory.timeline.events > MOST_EVENTS >= len(memory.timeline.rows())
    assert memory.timeline.peak_bytes == memory.peak_bytes
    assert memory.timeline.forward_events in [event for event, _ in memory.timeline.rows()]


@pytest.mark.parametrize("length", [1, 2, MOST_EVENTS - 4, MOST_EVENTS + 1, 5000])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_thinning_keeps_the_highest_point_and_both_ends(length, share):
    """Blocks of uneven sizes, made and freed in turn: few events are kept, the highest and the last among them."""
    ledger, totals = Ledger(), {}
    for number in range(length):
        ledger.allocate(f"block {number}", (number * 7919) % 1009 + 1)
        totals[len(ledger.log)] = ledger.live_bytes
        ledger.free(f"block {number - 1}")
        totals[len(ledger.log)] = ledger.live_bytes
    timeline = ledger.timeline(lambda number: "even" if number % 2 == 0 else "odd", int(share * len(ledger.log)))
    found = {event: sum(live.values()) for event, live in timeline.rows()}
    assert len(found) <= MOST_EVENTS
    assert timeline.peak_bytes == ledger.peak_bytes == max(totals.values())
    assert all(totals[event] == total for event, total in found.items())
    assert list(found.values())[-1] == totals[len(totals)]


def test_files_hold_a_timeline_as_text_and_give_it_back():
    """In JSON a category is one string, and reading it back gives the same timeline."""
    timeline = MemoryTimeline(events=9, forward_events=4, live_bytes={"input": ((1, 4096), (7, 0)), "none": ()})
    text = timeline.model_dump_json()
    assert json.loads(text)["live_bytes"] == {"input": "1:4096 7:0", "none": ""}
    assert MemoryTimeline.model_validate_json(text) == timeline


def test_records_from_before_have_no_timeline():
    """A record that was written without the field is read as one without a timeline."""
    fields = measure_memory(SelfTestStep()).model_dump(mode="json", exclude={"timeline"})
    assert MemoryRecord.model_validate(fields).timeline is None
