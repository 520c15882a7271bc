"""Figures: byte-stable and labelled; zeros, wrong gradients and failed cases shown as what they are."""

import math
import re
import subprocess
import sys
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from revsnn_bench.meters.memory import measure_memory
from revsnn_bench.meters.selftest import SelfTestStep
from revsnn_bench.report import canvas
from revsnn_bench.report.canvas import _NODES, INK, LogRange, Looks, binary_tick
from revsnn_bench.report.figures import draw_figures
from revsnn_bench.report.html import gallery
from revsnn_bench.report.labels import apart
from revsnn_bench.report.points import pareto_front

HOSTILE = "a$\\frac{1$<script>alert(1)</script>\"'&;]]> \U0001f600\x07" + "x" * 500


ROWS, FEATURES, UNITS = 32, 8, (40, 20)
_DRAWN = {}


def drawn(run):
    """The figures of a run, drawn once per session for runs of the same content."""
    key = run.model_dump_json()
    if key not in _DRAWN:
        _DRAWN[key] = draw_figures(run)
    return _DRAWN[key]


def figure(run, name):
    (found,) = (each for each in drawn(run) if each.name == name)
    return found


def named(run, start):
    return [each for each in drawn(run) if each.name.startswith(start)]


def words(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")]


@pytest.fixture
def timed_run(make_record, make_run):
    """Three nodes at one point: `lif` fast and large, `lif-carrier` slow and small, `revlif-stored` neither."""
    return make_run([make_record(node=node) for node in ("lif", "lif-carrier", "revlif-stored")])


def test_importing_the_figures_does_not_import_matplotlib():
    """Text reports start fast: matplotlib is imported when the first figure is drawn."""
    code = "import sys; import revsnn_bench.report.figures; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_figures_are_byte_stable(sweep_run):
    """Two drawings of one run are the same, byte for byte."""
    assert [each.standalone() for each in draw_figures(sweep_run)] == [each.standalone() for each in drawn(sweep_run)]


def test_figures_cover_what_was_measured(sweep_run):
    """A sweep over T gives front, gradient, retained and peak bytes against T, and the parts of the peak."""
    names = [each.name for each in drawn(sweep_run)]
    assert names == [
        "pareto-1",
        "gradient-float32",
        "retained_bytes-timesteps-1",
        "peak_bytes-timesteps-1",
        "breakdown-1",
    ]


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("pareto-1", {"peak bytes", "step time (× lif)"}),
        ("gradient-float32", {"time steps T", "gradient error (relative L2)", "tolerance 1e-03"}),
        ("retained_bytes-timesteps-1", {"time steps T", "retained bytes"}),
        ("breakdown-1", {"live bytes at the peak (KiB)", "retained", "output", "temporary"}),
    ],
)
def test_axes_are_labelled_with_their_unit(sweep_run, name, labels):
    """Each axis says what it shows, and in what."""
    assert labels <= set(words(figure(sweep_run, name).svg))


def test_slopes_are_those_of_the_closed_forms(sweep_run):
    """Retained bytes grow with T for lif, stay for revlif, and are always 0 for the carrier."""
    shown = words(figure(sweep_run, "retained_bytes-timesteps-1").svg)
    assert {"lif · 1.00", "revlif · 0.00", "lif-carrier · always 0"} <= set(shown)


def test_zero_has_a_place_of_its_own(sweep_run, make_record, make_run):
    """0 bytes stand on a tick named so, below every positive value; without zeros there is no such tick."""
    assert "0 B" in words(figure(sweep_run, "retained_bytes-timesteps-1").svg)
    run = make_run([make_record(node="lif", timesteps=t) for t in (4, 8)])
    assert "0 B" not in words(figure(run, "retained_bytes-timesteps-1").svg)
    places = LogRange([0, 64, 4096], base=2)
    assert 0 < places.place(0) < places.place(64) < places.place(4096)


def test_lost_gradients_stand_at_the_top(make_record, make_run):
    """A NaN error is drawn, above every finite one."""
    run = make_run([make_record(node="revlif", timesteps=t) for t in (4, 256)])
    assert "> 100" in words(figure(run, "gradient-float32").svg)
    assert "gradient-float32" not in {each.name for each in draw_figures(make_run(run.records[:1]))}  # one T, no line
    places = LogRange([1e-8, math.nan, math.inf], base=10)
    assert places.place(math.nan) == places.place(math.inf) > places.place(1e-8)


def test_every_case_of_a_line_is_linked(sweep_run):
    """Each point leads to its own case, by its index in the run; the file of its own has no links."""
    line = figure(sweep_run, "retained_bytes-timesteps-1")
    assert sorted(map(int, re.findall(r"case:(\d+)", line.svg))) == list(range(len(sweep_run.records)))
    assert "<a" not in line.standalone()


def test_wrong_gradients_are_hollow(sweep_run):
    """Only the points of wrong cases have the colour of the page inside."""
    svg = figure(sweep_run, "retained_bytes-timesteps-1").svg
    points = re.findall(r'href="case:(\d+)"[^>]*><use [^>]*style="fill:(#\w+)', re.sub(r"<defs>.*?</defs>\n?", "", svg))
    hollow = {int(i) for i, fill in points if fill == "#ffffff"}
    assert hollow == {i for i, record in enumerate(sweep_run) if record.status.value == "wrong"}


def test_beaten_nodes_are_faded(timed_run):
    """The stored coupled node needs as much as lif and more time: it is not on the front."""
    front_of = figure(timed_run, "pareto-1")
    assert {"lif", "lif-carrier", "revlif-stored"} <= set(words(front_of.svg))
    faded = re.findall(r'href="case:(\d+)"[^>]*><use [^>]*opacity', re.sub(r"<defs>.*?</defs>\n?", "", front_of.svg))
    assert faded == ["2"]


def test_contended_times_are_grey_and_not_on_the_front(make_record, make_run):
    """The quickest and smallest node is not ranked where other work held the processor while it was timed."""
    records = [make_record(node=node) for node in ("lif", "lif-checkpoint", "lif-carrier")]
    time = records[2].time.model_copy(update={"rounds_contended": 2, "backward_time_s": (1e-9,) * 12})
    run = make_run([*records[:2], records[2].model_copy(update={"time": time})])
    front_of = figure(run, "pareto-1")
    assert "the time is not decided, so not ranked" in front_of.caption
    hollow = re.findall(
        r'href="case:(\d+)"[^>]*><use [^>]*fill:#ffffff', re.sub(r"<defs>.*?</defs>\n?", "", front_of.svg)
    )
    assert hollow == ["2"]


def test_front_holds_no_seconds_of_two_processes_together(make_record, make_run):
    """The carrier takes 1.2 times the LIF's time, and was timed at twice the clock: lif is not beaten."""
    lif, carrier = make_record(node="lif"), make_record(node="lif-carrier")
    samples = {f"{whose}{phase}_time_s": (speed,) * 12 for whose, speed in (("", 6e-4), ("lif_", 5e-4))
               for phase in ("forward", "backward")}  # fmt: skip
    own = {f"{phase}_time_s": (1e-3,) * 12 for phase in ("forward", "backward")}
    own |= {f"lif_{name}": taken for name, taken in own.items()}
    timed = [(lif, own), (carrier, samples)]
    run = make_run(r.model_copy(update={"time": r.time.model_copy(update=update)}) for r, update in timed)
    front_of = figure(run, "pareto-1")
    assert "step time (× lif)" in words(front_of.svg)
    assert not re.search(r'href="case:\d+"[^>]*><use [^>]*opacity', re.sub(r"<defs>.*?</defs>\n?", "", front_of.svg))


def test_options_that_all_nodes_share_are_said_once(make_record, make_run):
    """`backend` is beside the figure, not in each name; where backends differ it is in the names."""
    nodes = ("lif", "lif-carrier")
    same = make_run([make_record(node=node, node_options={"backend": "torch"}) for node in nodes])
    front_of = figure(same, "pareto-1")
    assert set(nodes) <= set(words(front_of.svg))
    assert front_of.caption.endswith("Every node has backend=torch.")


def test_front_keeps_what_no_other_beats():
    """Less memory at the same cost beats; equal points both stay; the order is by memory."""
    points = {"a": (4, 1), "b": (2, 2), "c": (4, 2), "d": (2, 2), "e": (1, 9)}
    assert pareto_front(points) == ["e", "b", "d", "a"]


def test_front_takes_operations_where_no_time_was_measured(make_record, make_run):
    """Without times the figure shows FLOPs, and says so."""
    run = make_run([make_record(node=node, time=None) for node in ("lif", "lif-carrier")])
    front_of = figure(run, "pareto-1")
    assert "step FLOPs (kFLOP)" in words(front_of.svg)
    assert front_of.title.startswith("Operations against memory")


def foreign(make_record, names):
    """Records of nodes from other packages."""
    plain = make_record(node="lif")
    return [plain.model_copy(update={"case": plain.case.model_copy(update={"node": name})}) for name in names]


def test_a_foreign_node_has_a_look_of_its_own(make_record, make_run):
    """Forty nodes from other packages and all of ours: no two share colour and marker, none has the colour of lif."""
    names = [f"node-{i}" for i in range(40)]
    found = Looks(make_run(foreign(make_record, [*names, *_NODES])))
    assert len({(look.colour, look.marker) for look in found.values()}) == 40 + len(_NODES)
    assert [name for name, look in found.items() if look.colour == INK] == ["lif"]


def test_a_foreign_node_looks_alike_in_every_run(make_record, make_run):
    """Its look follows from its name, whatever other node of the table is there."""
    alone, beside = (Looks(make_run(foreign(make_record, names))) for names in (["mine"], ["lif", "revlif", "mine"]))
    assert alone["mine"] == beside["mine"]


def test_variants_of_a_node_share_colour_and_marker(make_record, make_run):
    """They differ in their dash, and their names stand beside them."""
    known = Looks(make_run([make_record(node="lif", node_options={"k": k}) for k in range(6)]))
    found = known.dashed(known).values()
    assert {(look.colour, look.marker) for look in found} == {(INK, "o")}
    assert len({str(look.dash) for look in found}) == 6


def test_colours_show_on_white_and_on_black_paper():
    """Each colour of a node has three times the contrast of either paper, as WCAG asks; lif's is replaced."""

    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True)) + 0.05

    for colour in {colour for colour, _ in _NODES.values()} - {INK}:
        assert light("#ffffff") / light(colour) >= 3, colour
        assert light(colour) / light("#15171b") >= 3, colour


@pytest.mark.parametrize("wanted", [[], [1.0], [0.5, 0.5, 0.5], [0.0, 0.05, 2.9, 3.0], [1.5] * 18, [-4.0, 9.0]])
def test_names_stand_apart_and_in_order(wanted):
    """At least a row apart, in the order of their lines, within the plot where there is room."""
    places = apart(wanted, 0.16, 0.0, 3.0)
    ordered = sorted(places)
    assert all(b - a >= 0.16 - 1e-9 for a, b in pairwise(ordered))
    assert [place for _, place in sorted(zip(wanted, places, strict=True))] == ordered
    assert all(-1e-9 <= place <= 3.0 + 1e-9 for place in places)


def test_small_multiples_have_the_same_scales(make_record, make_run, measured):
    """Where one step has twice the events of the other, its line between the phases stands at the same place."""
    timeline = measured[0].timeline
    longer = timeline.model_copy(update={"events": 2 * timeline.events})
    steps = [measured[0], measured[0].model_copy(update={"timeline": longer})]
    run = make_run([make_record(node=n, memory=m) for n, m in zip(("lif", "lif-carrier"), steps, strict=True)])
    (step,) = named(run, "timeline")
    dashed = re.findall(r'<path d="M ([\d.]+) [\d.]+ L [\d.]+ [\d.]+ ?"[^>]*stroke-dasharray', step.svg)
    assert len(dashed) == 2
    assert len(set(dashed)) == 1


def test_known_nodes_look_alike_in_every_run(sweep_run, make_record, make_run):
    """A node keeps its colour and marker whatever else was measured."""
    alone = Looks(make_run([make_record(node="lif-carrier")]))["lif-carrier"]
    assert alone == Looks(sweep_run)["lif-carrier"]


@pytest.mark.parametrize("status", ["oom", "timeout", "error", "skipped"])
def test_failed_cases_are_not_drawn(make_record, make_run, status):
    """A failed case is no point, in particular none at 0; a run of failures has no figure."""
    records = [make_record(node="lif", timesteps=t) for t in (4, 8)]
    run = make_run([*records, make_record(node="lif", timesteps=16, status=status)])
    assert "case:2" not in figure(run, "retained_bytes-timesteps-1").svg
    assert draw_figures(make_run([make_record(node="lif", status=status)])) == []


def test_empty_run_has_no_figures(make_run):
    """Nothing measured, nothing drawn."""
    assert draw_figures(make_run([])) == []


def test_hostile_names_stay_text(make_record, make_run):
    """Formulas, tags, unknown glyphs and very long names are drawn as short text, in valid XML."""
    records = []
    for t in (4, 8):
        plain = make_record(node="lif", timesteps=t)
        records += [plain, plain.model_copy(update={"case": plain.case.model_copy(update={"node": HOSTILE})})]
    run = make_run(records)
    assert len(drawn(run)) == 5
    for each in drawn(run):
        text = each.standalone()
        ElementTree.fromstring(text)
        assert "<script" not in text
        assert max(len(word or "") for word in words(text)) < 120


def test_dark_readers_get_light_ink(sweep_run):
    """The file follows the reader's colour scheme, and names no colour that it does not replace."""
    text = figure(sweep_run, "pareto-1").standalone()
    assert "@media (prefers-color-scheme: dark)" in text
    assert 'svg [style*="fill:#1c1e22"]{fill:#eceef1!important}' in text
    assert "black" not in text


def test_short_range_of_bytes_has_more_ticks(timed_run):
    """Within an octave or two, parts of an octave are named too."""
    assert {"32 KiB", "48 KiB", "64 KiB", "96 KiB", "128 KiB"} <= set(words(figure(timed_run, "pareto-1").svg))


@pytest.mark.parametrize("right", [0.1, 1.6])
def test_names_of_ticks_do_not_touch(sweep_run, right):
    """Neither of seven powers of two of bytes, nor of the dates of nine runs, on a panel with names beside it."""
    for scale in (
        lambda axes: LogRange([1 << 24, 1 << 30], base=2).apply(axes, axes.xaxis),
        lambda axes: gallery._scale(axes, [1.0, 2.0], [sweep_run] * 9),
    ):
        with canvas.panels(right=right) as (axes,):
            scale(axes)
            FigureCanvasAgg(axes.figure).draw()
            boxes = sorted(each.get_window_extent().extents.tolist() for each in axes.get_xticklabels())
        assert len(boxes) > 1
        assert all(one[2] < other[0] for one, other in pairwise(boxes))


def test_byte_ticks_are_binary():
    """2^20 is named 1 MiB."""
    assert [binary_tick(n) for n in (0, 9, 10, 20, 33, 44)] == ["1 B", "512 B", "1 KiB", "1 MiB", "8 GiB", "16 TiB"]


def heights(svg):
    """Heights of the filled areas, in points, by the baseline on which they stand, top panel first."""
    found = {}
    areas = re.findall(r'<path d="([^"]+)" clip-path=[^>]*style="fill:(?:url|#)[^>]*stroke:#5f6670', svg)
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
    (step,) = named(step_run, "timeline")
    peaks = [4 * ROWS * FEATURES + 7 * 4 * ROWS * units for units in UNITS]
    assert [record.memory.peak_bytes for record in step_run] == peaks
    first, second = heights(step.svg)
    assert second / first == pytest.approx(peaks[1] / peaks[0], abs=1e-3)
    assert {"lif: peak 36.00 KiB", "lif-carrier: peak 18.50 KiB"} <= set(words(step.svg))


def test_timeline_is_labelled(step_run):
    """Both axes have their unit, the phases their names, and each kind its entry."""
    (step,) = named(step_run, "timeline")
    shown = set(words(step.svg))
    assert {"live bytes (KiB)", "allocation events (blocks allocated or freed so far)"} <= shown
    assert {"forward", "backward", "input", "output", "state", "retained", "temporary", "output gradient"} <= shown
    assert step.svg == named(step_run, "timeline")[0].svg


def test_unattributed_bytes_are_stated(make_record, make_run, measured):
    """Where the allocator saw more than the tracker, the panel says how much is not drawn."""
    seen = measured[0].model_copy(
        update={
            "peak_bytes": measured[0].peak_bytes + 1024,
            "peak_by_category_bytes": measured[0].peak_by_category_bytes | {"unattributed": 1024},
        }
    )
    run = make_run([make_record(node="lif", memory=seen), make_record(node="revlif", memory=measured[1])])
    (step,) = named(run, "timeline")
    assert "lif: peak 37.00 KiB, 1.00 KiB of it unattributed and not drawn" in words(step.svg)


def test_wrong_gradients_take_part_and_are_named(make_record, make_run, measured):
    """Bytes do not depend on the gradient: the largest T is shown, with the node that is wrong there marked."""
    records = [
        make_record(node=node, timesteps=t, memory=memory)
        for t in (4, 16)
        for node, memory in zip(("lif", "revlif"), measured, strict=True)
    ]
    (step,) = named(make_run(records), "timeline")
    assert "T = 16" in step.title
    assert "revlif: peak 18.50 KiB; its gradient is wrong here" in words(step.svg)


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
    assert {"lif[torch]", "lif[fused]", "revlif", "share of the copy's bandwidth (%)"} <= shown
    assert {"5 and 3.8 %", "50 and 38 %", "10 and 7.5 %"} <= shown
    assert sorted(set(map(int, re.findall(r"case:(\d+)", large.svg)))) == [3, 4, 5]
