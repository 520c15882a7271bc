"""Figures of a step: memory over its events touches the recorded peak; shares of the bandwidth are those of times."""

import re
from xml.etree import ElementTree

import pytest

from revsnn_bench.meters.memory import measure_memory
from revsnn_bench.meters.selftest import SelfTestStep
from revsnn_bench.report.figures import draw_figures

ROWS, FEATURES, UNITS = 32, 8, (40, 20)


def words(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")]


def named(run, start):
    return [figure for figure in draw_figures(run) if figure.name.startswith(start)]


def heights(svg):
    """Heights of the filled areas, in points, by the baseline on which they stand, top panel first."""
    found = {}
    areas = re.findall(r'<path d="([^"]+)" clip-path=[^>]*style="fill:(?:url|#)[^>]*stroke:#1c1e22', svg)
    for area in areas:
        at = [float(y) for y in re.findall(r"[ML] [-\d.]+ ([-\d.]+)", area)]
        found.setdefault(round(max(at)), []).append(max(at) - min(at))
    return [max(found[baseline]) for baseline in sorted(found)]


@pytest.fixture(scope="module")
def measured():
    """Two self-test steps, whose peaks are A + 7 B with B = 4 x 32 x 40 and 4 x 32 x 20."""
    return [measure_memory(SelfTestStep(ROWS, FEATURES, units)) for units in UNITS]


@pytest.fixture
def step_run(make_record, make_run, measured):
    """A run whose `lif` has the first of the steps, `lif-carrier` the second."""
    nodes = ("lif", "lif-carrier")
    return make_run([make_record(node=node, memory=memory) for node, memory in zip(nodes, measured, strict=True)])


def test_highest_points_are_the_closed_form_peaks(step_run):
    """On one scale, the tallest area of each panel is as high as A + 7 B, in the same proportion to the bytes."""
    (figure,) = named(step_run, "timeline")
    peaks = [4 * ROWS * FEATURES + 7 * 4 * ROWS * units for units in UNITS]
    assert [record.memory.peak_bytes for record in step_run] == peaks
    first, second = heights(figure.svg)
    assert second / first == pytest.approx(peaks[1] / peaks[0], abs=1e-3)
    assert {"lif: peak 36.00 KiB", "lif-carrier: peak 18.50 KiB"} <= set(words(figure.svg))


def test_timeline_is_labelled(step_run):
    """Both axes have their unit, the phases their names, and each kind its entry."""
    (figure,) = named(step_run, "timeline")
    shown = set(words(figure.svg))
    assert {"live bytes (KiB)", "allocation events (blocks allocated or freed so far)"} <= shown
    assert {"forward", "backward", "input", "output", "state", "retained", "temporary", "output gradient"} <= shown
    assert figure.svg == named(step_run, "timeline")[0].svg


def test_unattributed_bytes_are_stated(make_record, make_run, measured):
    """Where the allocator saw more than the tracker, the panel says how much is not drawn."""
    seen = measured[0].model_copy(
        update={
            "peak_bytes": measured[0].peak_bytes + 1024,
            "peak_by_category_bytes": measured[0].peak_by_category_bytes | {"unattributed": 1024},
        }
    )
    run = make_run([make_record(node="lif", memory=seen), make_record(node="revlif", memory=measured[1])])
    (figure,) = named(run, "timeline")
    assert "lif: peak 37.00 KiB, 1.00 KiB of it unattributed and not drawn" in words(figure.svg)


def test_wrong_gradients_take_part_and_are_named(make_record, make_run, measured):
    """Bytes do not depend on the gradient: the largest T is shown, with the node that is wrong there marked."""
    records = [
        make_record(node=node, timesteps=t, memory=memory)
        for t in (4, 16)
        for node, memory in zip(("lif", "revlif"), measured, strict=True)
    ]
    (figure,) = named(make_run(records), "timeline")
    assert "T = 16" in figure.title
    assert "revlif: peak 18.50 KiB; its gradient is wrong here" in words(figure.svg)


def test_without_timelines_nothing_is_drawn(sweep_run):
    """Records of older runs have no timeline, and get no empty figure; nor does one backend get a roofline."""
    assert named(sweep_run, "timeline") == named(sweep_run, "roofline") == []


def test_roofline_tells_every_backend_and_size(kernel_record, make_record, make_run):
    """One figure per size, the largest first, with each node, backend and node without one, and its two shares."""
    records = [
        kernel_record(node, backend, forward, 2 * forward, batch=batch)
        for batch in (1, 8)
        for node, backend, forward in (("lif", "torch", 20.0), ("lif", "fused", 2.0), ("revlif", None, 10.0))
    ]
    large, small = named(make_run(records), "roofline")
    assert ("B = 8" in large.title, "B = 1" in small.title) == (True, True)
    shown = set(words(large.svg))
    assert {"lif[backend=torch]", "lif[backend=fused]", "revlif", "share of the copy's bandwidth (%)"} <= shown
    assert {"5 and 3.8 %", "50 and 38 %", "10 and 7.5 %"} <= shown
    assert sorted(set(map(int, re.findall(r"case:(\d+)", large.svg)))) == [3, 4, 5]
