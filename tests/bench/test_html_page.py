"""Pages: valid, self-contained and small; text of records stays text, and failed cases are shown as such."""

import base64
import cProfile
import hashlib
import re
from collections import Counter

import html5lib
import pytest

from revsnn_bench.claims import Plan, cases_of, claims_section, judge
from revsnn_bench.records import FidelityRecord, Status
from revsnn_bench.report import units, write_reports
from revsnn_bench.report.comparison import render_comparison_html
from revsnn_bench.report.html.gallery import render_gallery
from revsnn_bench.report.html.report import answers, render_html
from revsnn_bench.report.points import ratio_of_times

HOSTILE = "</script><script>document.title='hit'</script><img src=x onerror=alert(1)> \"'`&amp;{{7*7}}\n\x1b[31m"
FORMATS = ("md", "csv", "json", "html", "svg")
NAMESPACE = "{http://www.w3.org/1999/xhtml}"


def parsed(page):
    """Parses strictly: any error of syntax or nesting raises."""
    return html5lib.HTMLParser(strict=True).parse(page)


def rows(page, table="cases"):
    """Returns the cells of each row of a table, as texts."""
    (box,) = (box for box in parsed(page).iter() if box.get("data-table") == table)
    return [["".join(cell.itertext()) for cell in row] for row in box.iter(f"{NAMESPACE}tr")]


def indexed(run):
    return {record.case: number for number, record in enumerate(run)}


_PAGES = {}


def page_of(run):
    """The report of a run, rendered once per session for runs of the same content."""
    key = run.model_dump_json()
    if key not in _PAGES:
        _PAGES[key] = render_html(run)
    return _PAGES[key]


@pytest.fixture
def before_and_after(make_record, make_run):
    """lif grows, revlif shrinks, one case goes, one comes, one breaks."""

    def resized(record, by):
        return record.model_copy(
            update={"memory": record.memory.model_copy(update={"peak_bytes": record.memory.peak_bytes + by})}
        )

    lif, revlif = make_record(node="lif"), make_record(node="revlif", timesteps=4)
    old = [lif, revlif, make_record(node="lif-carrier"), make_record(node="lif", timesteps=2)]
    new = [resized(lif, 512), resized(revlif, -512), make_record(node="lif-carrier", status="oom")]
    return make_run(old, run_id="a"), make_run(
        [*new, make_record(node="lif", timesteps=64)], run_id="b", python="3.12.1"
    )


@pytest.fixture
def pages(sweep_run, make_run, before_and_after):
    """Each kind of page, and each of an empty run."""
    empty = make_run([], run_id="empty")
    return {
        "report": page_of(sweep_run),
        "empty report": page_of(empty),
        "comparison": render_comparison_html(*before_and_after),
        "equal comparison": render_comparison_html(sweep_run, sweep_run),
        "empty comparison": render_comparison_html(empty, empty),
        "gallery": render_gallery([sweep_run, *before_and_after]),
        "empty gallery": render_gallery([]),
    }


def test_pages_are_valid_html(pages):
    """A strict parser finds no error, no id occurs twice, and each link within a page has its target."""
    for name, page in pages.items():
        elements = list(parsed(page).iter())
        ids = Counter(element.get("id") for element in elements if element.get("id"))
        assert not [id for id, count in ids.items() if count > 1], name
        links = {element.get("href") for element in elements} | {
            element.get("{http://www.w3.org/1999/xlink}href") for element in elements
        }
        assert {link[1:] for link in links if link and link.startswith("#")} <= set(ids), name


def test_pages_ask_no_server_for_anything(pages):
    """No address but namespaces, no external resource; the policy allows nothing but the page's own script."""
    for page in pages.values():
        assert set(re.findall(r"https?://[^\"' <]+", page)) <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }
        assert not re.search(r"<(img|iframe|object|embed)\b|\bsrc=|@import|\son\w+=", page)
        (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page


def test_pages_are_byte_stable(sweep_run):
    """One run gives one page."""
    assert render_html(sweep_run) == page_of(sweep_run)


def test_every_case_has_its_row(sweep_run):
    """The table holds each case once, in the order of the run, and names what is the same everywhere."""
    page = page_of(sweep_run)
    heading, *body = rows(page)
    assert heading[:4] == ["node", "T", "status", "retained"]
    assert [row[0] for row in body] == [record.case.variant for record in sweep_run]
    assert "The same everywhere: B 8, workload layer, features 64" in page


def test_wrong_case_shows_its_error_and_no_saving(sweep_run):
    """Memory, FLOPs, time and ratios of a wrong case are withheld; its error and reason are shown."""
    heading, *body = rows(page_of(sweep_run))
    row = dict(zip(heading, next(row for row in body if row[:2] == ["revlif", "32"]), strict=True))
    assert row["status"] == "wrong"
    assert row["gradient error"] == "1.8e+11"
    assert {row[name] for name in ("retained", "peak", "peak × lif", "step time", "step FLOPs")} == {"–"}
    assert "The inverse in time loses the gradient" in row["note"]


def test_answer_names_the_node_its_cost_and_its_gradient(sweep_run):
    """At T = 8 the carrier needs least peak memory, and the answer says what it costs and whether it is right."""
    points, first = answers(sweep_run, indexed(sweep_run))
    assert [point.timesteps for point in points] == [4, 8, 16, 32]
    point = points[first]
    assert (point.timesteps, point.winner) == (8, "lif-carrier")
    assert point.memory == "Peak 38.00 KiB, retained 0 B; lif: 86.00 KiB and 48.00 KiB."
    assert point.cost == "lif-carrier costs 1.53 × lif in step time and 1.67 × lif in step FLOPs."
    assert point.trust == "lif-carrier is right: relative error 4.0e-08, tolerance 1e-03."


def test_a_point_with_an_answer_comes_first(sweep_run):
    """A larger one with more right nodes has none where neither time nor operations were measured."""
    bare = [
        record.model_copy(
            update={
                "case": record.case.model_copy(update={"timesteps": 9}),
                "status": Status.OK,
                "time": None,
                "flops": None,
            }
        )
        for record in sweep_run
        if record.case.timesteps == 32
    ]
    run = sweep_run.model_copy(update={"records": (*sweep_run.records, *bare)})
    points, first = answers(run, indexed(run))
    assert [(point.timesteps, bool(point.steps)) for point in points][:3] == [(4, True), (8, True), (9, False)]
    assert points[first].timesteps == 8


def test_answer_never_recommends_a_wrong_node(sweep_run):
    """At T = 32 revlif keeps little and is wrong: it is listed after all right ones, and named as wrong."""
    point = answers(sweep_run, indexed(sweep_run))[0][-1]
    assert [c.node for c in point.candidates if c.record.status == "wrong"] == ["revlif-revnet", "revlif"]
    assert [c.record.status for c in point.candidates] == ["ok"] * 5 + ["wrong"] * 2
    assert "Wrong here, and ranked nowhere: revlif-revnet and revlif." in point.trust
    assert {c.peak_bytes for c in point.candidates if c.record.status == "wrong"} == {None}


def test_contended_time_is_named_beside_the_cost(make_record, make_run):
    """A time taken while other work held the processor is not shown as if it were sure; where only the standard's own
    time is decided, operations tell what is cheapest."""
    busy = make_record(node="lif-carrier")
    busy = busy.model_copy(update={"time": busy.time.model_copy(update={"rounds_contended": 2})})
    run = make_run([make_record(node="lif"), busy])
    (point,), _ = answers(run, indexed(run))
    assert point.cost.endswith("Its threads had to wait for a core in some rounds, so its time is not ranked.")
    assert [(step.node, point.cost_label) for step in point.steps] == [("lif-carrier", "FLOPs"), ("lif", "FLOPs")]
    assert '<span class="unsure">1.53 (not decided)</span>' in page_of(run)


def test_budget_steps_trade_memory_for_time(sweep_run):
    """More memory buys less time, up to the standard LIF; no node is listed that another beats."""
    point = answers(sweep_run, indexed(sweep_run))[0][1]
    assert [step.node for step in point.steps] == ["lif-carrier", "lif-checkpoint", "lif"]
    assert [units.times(step.cost) for step in point.steps] == ["1.53", "1.27", "1.00"]


def test_point_without_a_right_node_recommends_none(make_record, make_run):
    """Where all failed the answer says how."""
    run = make_run([make_record(node="lif", status="oom"), make_record(node="revlif", timesteps=8, status="error")])
    (point,), _ = answers(run, indexed(run))
    assert (point.winner, point.steps) == ("", [])
    assert point.memory == "No node can be recommended here: of 2 measured, 1 oom and 1 error."
    parsed(page_of(run))


def test_answer_survives_missing_measurements(make_record, make_run):
    """Without lif, times, fidelity or memory the answer names what is not known, and nothing fails."""
    bare = make_record(node="revlif", time=None, fidelity=None, flops=None)
    run = make_run([bare, make_record(node="lif-carrier", memory=None), make_record(node="lif", status="timeout")])
    (point,), _ = answers(run, indexed(run))
    assert point.winner == "revlif"
    assert point.memory.endswith("lif ended as timeout here.")
    assert point.cost == "Neither time nor FLOPs of revlif can be held against those of lif here."
    assert point.trust == "The gradient of revlif was not judged."
    page = page_of(run)
    parsed(page)
    assert '<td><span class="status"></span>not judged</td>' in page


def test_memory_that_was_not_measured_is_not_called_a_failure(make_record, make_run):
    """A run of times alone ended well: the answer says that memory was not measured."""
    run = make_run([make_record(node="lif", memory=None), make_record(node="revlif", memory=None, timesteps=8)])
    (point,), _ = answers(run, indexed(run))
    assert point.memory == "Memory was not measured here, so no node is ranked by it."


def test_title_says_what_was_measured(sweep_run, make_run):
    """Quantities, nodes, workload and T, in the title and in the first heading; the run's name follows."""
    words = "Memory, FLOPs, time and gradients of 7 nodes in layer, T = 4 to 32"
    page = page_of(sweep_run)
    assert f"<title>{words} · run-1</title>" in page
    assert f"<h1>{words}</h1>" in page
    assert "<h1>Nothing was measured</h1>" in page_of(make_run([]))


def test_backends_at_one_size_are_two_points(make_record, make_run):
    """Each is ranked against the lif of its own backend, and its setting names the backend; its nodes do not."""
    nodes, backends = ("lif", "lif-carrier"), ("torch", "fused")
    run = make_run([make_record(node=n, node_options={"backend": b}) for b in backends for n in nodes])
    points, _ = answers(run, indexed(run))
    assert [point.setting.rpartition(", ")[2] for point in points] == ["backend=fused", "backend=torch"]
    assert {c.node for point in points for c in point.candidates} == set(nodes)


def test_environment_is_told_in_words(sweep_run):
    """Machine, threads, versions and commit in a sentence, above every field."""
    page = page_of(sweep_run)
    assert (
        "Measured on 2 cores of Some CPU with 8.00 GiB of memory, in 2 threads, under Linux, with torch 2.13.0+cpu, "
        "Python 3.11.7 and revsnn-bench 0.1.0 at commit 0123abc."
    ) in page


def test_hostile_text_stays_text(make_record, make_run):
    """Tags, quotes, template syntax and control characters of a record reach no page as markup."""
    good = make_record(node="lif", timesteps=4)
    fidelity = FidelityRecord(gradient_error=float("nan"), output_error=0.0, tolerance=1e-3, warning=HOSTILE, neurons=1)
    named = good.model_copy(update={"case": good.case.model_copy(update={"node": HOSTILE, "workload": HOSTILE})})
    bad = make_record(node="revlif", status="wrong", reason=HOSTILE * 20, fidelity=fidelity)
    run = make_run([good, named, bad], run_id="r", cpu_model=HOSTILE, commit=HOSTILE, torch=HOSTILE)
    other = make_run([named, good], run_id="s")
    for page in (page_of(run), render_comparison_html(run, other), render_gallery([run, other])):
        tree = parsed(page)
        assert len(list(tree.iter(f"{NAMESPACE}script"))) == 1
        assert not list(tree.iter(f"{NAMESPACE}img"))
        assert "document.title='hit'" in "".join(tree.itertext())
        assert "\x1b" not in page
        assert "{{7*7}}" in page


def test_run_id_is_no_scheme_in_a_link(make_run):
    """A run called like a script address links to a file of that name."""
    page = render_gallery([make_run([], run_id="javascript:alert(1)")])
    assert 'href="./javascript%3Aalert%281%29.html"' in page


def test_comparison_marks_better_and_worse(before_and_after):
    """Exact quantities count at any difference, a lost case is gone, a new one new, a failure worse."""
    found = {
        (row[0].split("/", 1)[1].rsplit("/", 2)[0], row[1]): row[2:]
        for row in rows(render_comparison_html(*before_and_after), "changes")[1:]
    }
    assert found["lif/T8-B8-N64", "peak_bytes"] == ["86.00 KiB", "86.50 KiB", "+0.58 %", "worse"]
    assert found["revlif/T4-B8-N64", "peak_bytes"][-1] == "better"
    assert found["lif-carrier/T8-B8-N64", "status"] == ["ok", "oom", "–", "worse"]
    assert found["lif/T2-B8-N64", "status"][-1] == "gone"
    assert found["lif/T64-B8-N64", "status"][-1] == "new"
    assert ("revlif/T4-B8-N64", "retained_bytes") not in found


def test_comparison_names_what_differs_beside_the_results(before_and_after):
    """Another version of Python is shown before the numbers."""
    page = render_comparison_html(*before_and_after)
    assert page.index("differ in more than their results") < page.index("Every change")
    assert "<td>python</td><td>3.11.7</td><td>3.12.1</td>" in page


def test_times_within_their_noise_are_no_change(make_record, make_run):
    """A ratio of times is better or worse only where the intervals do not overlap."""
    base = make_record(node="revlif", timesteps=4)

    def slowed(factor):
        own = tuple(factor * sample for sample in base.time.backward_time_s)
        jittered = tuple(s * (1 + 0.02 * (i % 3)) for i, s in enumerate(own))
        return make_run([base.model_copy(update={"time": base.time.model_copy(update={"backward_time_s": jittered})})])

    def verdict(factor):
        table = rows(render_comparison_html(slowed(1.0), slowed(factor)), "changes")
        return next(row[-1] for row in table if row[1] == "backward_time_s_ratio")

    assert [verdict(1.001), verdict(2.0), verdict(0.5)] == ["varies", "worse", "better"]


def test_gallery_tells_where_an_exact_quantity_changed(before_and_after):
    """A changed peak is told with both values and the commit; runs are in order of date, newest first."""
    a, b = before_and_after
    environment = b.header.environment.model_copy(update={"commit": "feed5eed"})
    later = b.header.model_copy(update={"started_at": "2026-02-01T00:00:00Z", "environment": environment})
    page = render_gallery([b.model_copy(update={"header": later}), a])
    assert [row[0] for row in rows(page, "runs")[1:]] == ["b", "a"]
    (lif,) = (row for row in rows(page, "moves") if "/lif/T8" in row[0])
    assert lif[1:4] == ["peak_bytes", "86.00 KiB", "86.50 KiB"]
    assert lif[-1] == "feed5eed: 86.00 KiB to 86.50 KiB"
    assert {row[0] for row in rows(page, "steady")[1:]} >= {"layer/lif/T2-B8-N64/float32/cpu"}


def test_history_tells_other_machines_from_other_code(sweep_run):
    """A changed value is told with the torch that changed beside it; times of another machine are in no line."""
    grown = [r.model_copy(update={"memory": r.memory.model_copy(update={"peak_bytes": 7})}) for r in sweep_run]

    def measured(number, **environment):
        place = sweep_run.header.environment.model_copy(update=environment)
        header = {"run_id": f"r{number}", "started_at": f"2026-03-0{number}T00:00:00Z", "environment": place}
        update = {
            "header": sweep_run.header.model_copy(update=header),
            "records": tuple(grown if number == 2 else sweep_run),
        }
        return sweep_run.model_copy(update=update)

    page = render_gallery([measured(1), measured(2, torch="2.14.0", cpu_model="Other CPU")])
    (lif,) = (row for row in rows(page, "moves") if "/lif/T8" in row[0])
    assert lif[-1] == "0123abc: 86.00 KiB to 7 B (torch 2.13.0+cpu to 2.14.0)"
    assert "figure-history-gradient_error" in page
    assert "figure-history-step_time_s" not in page
    page = render_gallery([measured(1), measured(2, cpu_model="Other CPU"), measured(3)])
    assert "figure-history-step_time_s" in page


def test_gallery_draws_every_metric_over_the_baseline(sweep_run, make_run):
    """A figure per metric that two runs hold, times as ratios, and the baseline named with its commit."""
    later = sweep_run.header.model_copy(update={"run_id": "later", "started_at": "2026-02-01T00:00:00Z"})
    grown = tuple(
        r.model_copy(update={"memory": r.memory.model_copy(update={"peak_bytes": 2 * r.memory.peak_bytes})})
        for r in sweep_run
    )
    page = render_gallery(
        [sweep_run, sweep_run.model_copy(update={"header": later, "records": grown})], (), [sweep_run]
    )
    drawn = set(re.findall(r'id="figure-history-(\w+)"', page))
    assert drawn >= {"peak_bytes", "retained_bytes", "step_flops", "step_time_s", "gradient_error"}
    assert "The gate's baseline: run-1 at commit 0123abc" in page.replace("&#39;", "'")
    (lif,) = (row for row in rows(page, "moves") if "/lif/T8" in row[0])
    assert lif[2:5] == ["86.00 KiB", "172.00 KiB", "86.00 KiB"]


def test_gallery_draws_lines_on_top_of_each_other_once(make_record, make_run):
    """Cases by the thousand make no page that takes minutes: of 20 that all stay as they were one line is seen."""

    def markers(seeds):
        records = [make_record(node="lif", seed=seed) for seed in range(seeds)]
        return render_gallery([make_run(records, run_id) for run_id in ("one", "other")]).count("<use")

    assert markers(20) == markers(1) > 0


def test_claims_are_those_that_the_run_can_judge(make_record, make_run, sweep_run):
    """A run with a claim's cases shows the verdict of the claims code, word for word; others have no such section."""
    records = []
    for case in cases_of(Plan(), ["flops"]):
        base = make_record(case)
        records.append(base.model_copy(update={"status": Status.OK, "reason": None}))
    run = make_run(records)
    (finding,) = judge(run, Plan(), ["flops"])
    page = render_html(run, claims=claims_section(run))
    texts = [" ".join("".join(dd.itertext()).split()) for dd in parsed(page).iter(f"{NAMESPACE}dd")]
    assert f"{finding.verdict.value} {finding.why}" in texts
    assert finding.measured in texts
    assert page.count('<b class="') == len({"flops", "time"})
    assert 'href="#claims"' in page
    assert claims_section(sweep_run) == ""
    assert "claims" not in {element.get("id") for element in parsed(page_of(sweep_run)).iter()}


@pytest.fixture
def large_run(make_record, make_run):
    """1,008 cases, no two with the same samples."""
    nodes = ("lif", "lif-checkpoint", "revlif-stored", "revlif-revnet", "revlif", "revlif-anchored", "lif-carrier")
    records = []
    for node in nodes:
        for i in range(144):
            record = make_record(
                node=node,
                timesteps=2 ** (2 + i % 6),
                batch=2 ** (i // 6 % 6),
                dtype=("float32", "float64", "float16", "bfloat16")[i // 36],
            )
            own = tuple(s * (1 + 1e-5 * len(records)) for s in record.time.backward_time_s)
            records.append(record.model_copy(update={"time": record.time.model_copy(update={"backward_time_s": own})}))
    return make_run(records)


def test_a_thousand_cases_stay_small_and_quick(large_run, tmp_path):
    """The page of 1,008 cases is less than 2 MB; all formats of a part take less than 9 times the calls of a ninth."""
    few, many = (
        calls_of_reports(large_run.model_copy(update={"records": large_run.records[::every]}), tmp_path)
        for every in (144, 16)
    )
    assert many < 9 * few
    write_reports(large_run, tmp_path, ("html",))
    page = (tmp_path / "run-1.html").read_text()
    assert len(page.encode()) < 2_000_000
    assert page.count('id="case-') == len(large_run.records) == 1008
    assert {path.suffix for path in tmp_path.iterdir()} == {".md", ".csv", ".json", ".html", ".svg"}


def calls_of_reports(run, folder):
    """How many functions are called to write every format, imports and remembered ratios left out."""
    write_reports(run.model_copy(update={"records": run.records[:2]}), folder, FORMATS)
    ratio_of_times.cache_clear()
    profile = cProfile.Profile()
    profile.runcall(write_reports, run, folder, FORMATS)
    return sum(entry.callcount for entry in profile.getstats())
