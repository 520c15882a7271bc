"""Pages in a real browser: they answer, sort, filter and compare by real clicks and keys, and stay silent.

Rendered boxes are measured at the widths of a desktop, a phone and a printed sheet, in light and dark: nothing sticks
out, nothing is clipped, no two texts of a figure touch, and every text has the contrast of WCAG AA.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from revsnn_bench.report.comparison import render_comparison_html
from revsnn_bench.report.html.gallery import render_gallery
from revsnn_bench.report.html.plan import plan_page
from revsnn_bench.report.html.report import render_html
from revsnn_bench.report.html.study import study_page
from revsnn_bench.runs import load_run

HOSTILE = "</script><script>document.title='hit'</script><img src=x onerror=\"document.title='hit'\"> \"'`" + "y" * 3000
_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A click must not race with a smooth scroll.
    "--force-prefers-reduced-motion",
    "--window-size=1280,1000",
)
_MISSING = "{} is not installed; install Debian's chromium and chromium-driver, and selenium"


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One Chromium for all tests, which logs its console and its requests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason=_MISSING.format("selenium"))
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip(_MISSING.format("chromium" if chromium is None else "chromedriver"))
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (*_ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page: `opened(text, width=390)`; afterwards proves that it was silent and stayed local."""

    def open_page(
        text: str, width: int = 1280, height: int = 1000, media: str = "screen", scheme: str = "light"
    ) -> Any:
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        asked = {"media": media, "features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", asked)
        browser.get_log("performance")
        browser.get(path.as_uri())
        # Once, on a busy machine, the page was not there yet. The script is its last element.
        wait.until(
            lambda page: page.current_url == path.as_uri() and page.find_elements("css selector", "body > script")
        )
        return browser

    wait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait(browser, 30)
    yield open_page
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    # On a busy machine the browser's own first page is still loading then.
    asked = {each["request"]["url"] for each in sent if not each["documentURL"].startswith("chrome")}
    assert asked
    assert all(url.startswith(("file:", "data:")) for url in asked), asked


_PAGES: dict[str, str] = {}


def page_of(run):
    """The report of a run, rendered once for runs of the same content."""
    key = run.model_dump_json()
    if key not in _PAGES:
        _PAGES[key] = render_html(run)
    return _PAGES[key]


def find(browser, selector):
    return browser.find_element("css selector", selector)


def shown(browser, selector):
    return [element for element in browser.find_elements("css selector", selector) if element.is_displayed()]


def texts(browser, selector):
    return [element.text for element in shown(browser, selector)]


def choose(browser, selector, text):
    from selenium.webdriver.support.select import Select

    Select(find(browser, selector)).select_by_visible_text(text)


def column(browser, title):
    """Returns the texts of a column of the first table, top to bottom."""
    headings = [button.text for button in browser.find_elements("css selector", "[data-table] thead button")]
    return texts(browser, f"[data-table] tbody td:nth-child({headings.index(title) + 1})")


def press(browser, title):
    (button,) = (b for b in browser.find_elements("css selector", "[data-table] thead button") if b.text == title)
    button.click()


def wait(browser, condition):
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 10).until(condition)


def too_wide(browser, width):
    """Returns what sticks out to the right, unless it is in a box that scrolls by itself."""
    return browser.execute_script(
        """if (document.documentElement.scrollWidth <= arguments[0]) return [];
        return [...document.querySelectorAll("body *")]
          .filter((e) => e.getBoundingClientRect().right > arguments[0] && !e.closest(".scroll"))
          .map((e) => `${e.tagName}.${e.className}`);""",
        width,
    )


def narrow(browser, title, value):
    labels = browser.find_elements("css selector", "[data-table] label")
    (label,) = (label for label in labels if label.text.startswith(title))
    label.find_element("css selector", "select").send_keys(value)


def test_answer_is_on_the_first_screen(opened, sweep_run):
    """Node, memory, cost and gradient are visible before anything is touched."""
    browser = opened(page_of(sweep_run))
    (point,) = shown(browser, ".point")
    assert find(browser, ".point:not([hidden]) h3").text.startswith("lif-carrier")
    assert point.rect["y"] + point.rect["height"] < 1000
    for words in ("Peak 38.00 KiB", "1.53 × lif in step time", "is right: relative error 4.0e-08"):
        assert words in point.text


def test_choosing_t_changes_the_answer(opened, sweep_run):
    """Another T shows the nodes measured there, with the wrong ones named."""
    browser = opened(page_of(sweep_run))
    choose(browser, "select[name=t]", "32")
    (point,) = shown(browser, ".point")
    assert "T = 32" in point.text
    assert texts(browser, ".point:not([hidden]) tr.wrong td:first-child") == ["revlif-revnet", "revlif"]


def test_budget_picks_the_cheapest_node_that_fits(opened, sweep_run):
    """A budget between the carrier and checkpointing leaves the carrier; a tiny one leaves none."""
    browser = opened(page_of(sweep_run))
    choose(browser, "select[name=unit]", "KiB")
    budget = find(browser, "input[name=budget]")
    budget.send_keys("60")
    verdict = (
        "Within 60 KiB: lif-checkpoint, the cheapest here that fits and whose gradient is right, at 1.27 × lif in time."
    )
    assert find(browser, ".verdict").text == verdict
    assert texts(browser, ".point:not([hidden]) tr.over td:first-child") == ["lif", "revlif-stored"]
    budget.clear()
    budget.send_keys("1")
    assert find(browser, ".verdict").text == (
        "No node whose gradient is right fits in 1 KiB here; lif-carrier takes least, 38.00 KiB."
    )


def test_sorting_by_click(opened, sweep_run):
    """A click on a heading sorts by the exact number, the next one turns it round; what is absent stays last."""
    browser = opened(page_of(sweep_run))
    press(browser, "peak")
    rising = column(browser, "peak")
    assert rising[:2] == ["22.00 KiB", "22.00 KiB"]
    assert rising[-4:] == ["–"] * 4
    press(browser, "peak")
    falling = column(browser, "peak")
    assert falling[:2] == ["326.00 KiB", "326.00 KiB"]
    assert falling[-4:] == ["–"] * 4
    assert find(browser, "[data-table] th[aria-sort]").get_attribute("aria-sort") == "descending"


def test_sorting_by_keyboard(opened, sweep_run):
    """Headings take the focus and answer to Enter."""
    browser = opened(page_of(sweep_run))
    find(browser, "[data-table] thead button").send_keys("\ue007")
    assert column(browser, "node") == sorted(column(browser, "node"))


def test_filtering_and_searching(opened, sweep_run):
    """A filter and a search narrow the table together, the count tells, and Clear brings all back."""
    browser = opened(page_of(sweep_run))
    (status,) = (
        label
        for label in browser.find_elements("css selector", "[data-table] label")
        if label.text.startswith("status")
    )
    status.find_element("css selector", "select").send_keys("wrong")
    assert set(column(browser, "status")) == {"wrong"}
    search = find(browser, "[data-table] input[type=search]")
    search.send_keys("REVNET")
    assert column(browser, "node") == ["revlif-revnet", "revlif-revnet"]
    assert find(browser, "[data-table] output").text == "2 of 28"
    search.send_keys(" nothing like this")
    assert texts(browser, ".empty") == ["No row matches. Clear the search and the filters to see all."]
    find(browser, "[data-table] .clear").click()
    assert find(browser, "[data-table] output").text == "28 of 28"


def test_point_of_a_figure_leads_to_its_case(opened, sweep_run):
    """A click on a point shows and marks its row, even where a filter hid it."""
    browser = opened(page_of(sweep_run))
    find(browser, "[data-table] input[type=search]").send_keys("nothing like this")
    link = find(browser, '#figure-gradient-float32 a[href="#case-6"]')
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", link)
    link.click()
    wait(browser, lambda _: browser.switch_to.active_element.get_attribute("id") == "case-6")
    (row,) = shown(browser, "#case-6")
    assert row.text.startswith("lif-carrier")


def test_comparing_by_click(opened, sweep_run, make_record, make_run):
    """The comparison narrows to what got worse, and sorts by how much."""
    records = [
        record.model_copy(update={"memory": record.memory.model_copy(update={"peak_bytes": 100 + i})})
        for i, record in enumerate(sweep_run)
    ]
    more = make_record(node="lif", timesteps=4)
    more = more.model_copy(update={"memory": more.memory.model_copy(update={"peak_bytes": 2 * more.memory.peak_bytes})})
    browser = opened(render_comparison_html(sweep_run, make_run([more, *records[1:]], run_id="run-2")))
    assert texts(browser, ".verdicts dt") == ["1 worse", "27 better"]
    (verdict,) = (
        label
        for label in browser.find_elements("css selector", "[data-table] label")
        if label.text.startswith("verdict")
    )
    verdict.find_element("css selector", "select").send_keys("worse")
    assert column(browser, "case") == ["layer/lif/T4-B8-N64/float32/cpu"]
    assert column(browser, "change") == ["+100.00 %"]
    find(browser, "[data-table] .clear").click()
    press(browser, "change")
    assert column(browser, "change")[-1] == "+100.00 %"


def test_gallery_lists_runs(opened, sweep_run, make_run):
    """Runs can be searched."""
    browser = opened(render_gallery([sweep_run, make_run([], run_id="another")]))
    find(browser, "#runs input[type=search]").send_keys("another")
    assert texts(browser, "#runs tbody td:first-child") == ["another"]


def test_hostile_records_do_nothing(opened, make_record, make_run):
    """Scripts in names, reasons and the environment do not run, and long names do not widen the page."""
    good = make_record(node="lif", timesteps=4)
    named = good.model_copy(update={"case": good.case.model_copy(update={"node": HOSTILE})})
    bad = make_record(node="revlif", timesteps=256, reason=HOSTILE)
    run = make_run([good, named, bad, make_record(node="revlif", status="oom", reason=HOSTILE)], cpu_model=HOSTILE)
    browser = opened(render_html(run))
    assert browser.title.endswith(" · run-1")
    assert not browser.find_elements("css selector", "img")
    assert too_wide(browser, 1280) == []


@pytest.mark.parametrize("width", [360, 768])
def test_small_screens_scroll_down_only(opened, sweep_run, width):
    """On a phone the page is as wide as the screen; tables scroll by themselves."""
    browser = opened(page_of(sweep_run), width=width)
    assert too_wide(browser, width) == []


BROKEN_WORDS = """
const broken = [];
for (const cell of document.querySelectorAll(".scroll tbody td:first-child")) {
  const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    for (const word of node.data.matchAll(/[A-Za-z]+/g)) {
      const range = document.createRange();
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1) broken.push(word[0]);
    }
  }
}
return broken;
"""


@pytest.mark.parametrize("kind", ["example", "paper", "comparison"])
def test_first_columns_break_no_word_on_a_phone(opened, kinds, kind):
    """A name breaks after a hyphen or a slash; a table is wider instead, for it scrolls sideways."""
    assert opened(kinds[kind], width=390).execute_script(BROKEN_WORDS) == []


def test_empty_run_is_a_page(opened, make_run):
    """A run without a record opens without an error."""
    browser = opened(render_html(make_run([])))
    assert "No case was recorded." in find(browser, "#answer").text


RESULTS = Path(__file__).parents[2] / "results"
SCREENS = {"desktop": (1366, 768, "screen"), "phone": (390, 844, "screen"), "print": (718, 1000, "print")}
"""Width, height and medium; a sheet of A4 has 718 CSS pixels between margins of a centimetre."""

FLAWS = """
const [width, printed] = arguments, found = { wide: [], clipped: [], faint: [], touching: [], split: [] };
const name = (e) => `${e.tagName}.${e.getAttribute("class") ?? ""} ${e.textContent.trim().slice(0, 40)}`;
const seen = (e) => e.checkVisibility({ visibilityProperty: true, contentVisibilityAuto: true });
const scrolls = (e) => !printed && e.closest(".scroll");
const boxes = [...document.querySelectorAll("body *")].filter((e) => seen(e) && !e.closest(".skip"));
for (const e of boxes) {
  const box = e.getBoundingClientRect();
  if (!box.width || !box.height) continue;
  if ((box.right > width + 0.5 || box.left < -0.5) && !scrolls(e)) found.wide.push(name(e));
  const style = getComputedStyle(e);
  const cut = e.scrollWidth > e.clientWidth + 1 && style.overflowX !== "visible" && style.display !== "inline";
  if (cut && !scrolls(e) && !e.matches("input,select,svg,svg *")) found.clipped.push(name(e));
}
for (const svg of document.querySelectorAll("figure svg")) {
  if (!seen(svg)) continue;
  const edge = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")].map((e) => [e, e.getBoundingClientRect()]);
  for (const [e, box] of texts) {
    const out = [edge.left - box.left, box.right - edge.right, edge.top - box.top, box.bottom - edge.bottom];
    if (Math.max(...out) > 1) found.clipped.push(name(e));
  }
  texts.forEach(([a, one], i) => texts.slice(i + 1).forEach(([b, two]) => {
    const across = Math.min(one.right, two.right) - Math.max(one.left, two.left);
    const down = Math.min(one.bottom, two.bottom) - Math.max(one.top, two.top);
    if (across > 1 && down > 2) found.touching.push(`${name(a)} and ${name(b)}`);
  }));
}
const parse = (text) => {
  const [r, g, b, a = 1] = text.match(/-?[\\d.]+(e-?\\d+)?/g).map(Number);
  return text.startsWith("color(") ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a];
};
const over = (top, below, share = 1) => below.map((c, i) => top[3] * share * top[i] + (1 - top[3] * share) * c);
const light = (rgb) => {
  const [r, g, b] = rgb.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (e) => {
  const chain = [];
  for (let at = e; at; at = at.parentElement) chain.unshift(getComputedStyle(at).backgroundColor);
  const paper = printed ? [255, 255, 255] : parse(getComputedStyle(document.body).backgroundColor).slice(0, 3);
  return chain.reduce((below, text) => over(parse(text), below), paper);
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let text = walker.nextNode(); text; text = walker.nextNode()) {
  const e = text.parentElement;
  if (!text.data.trim() || !seen(e) || e.closest("script,style,noscript,option,title,.skip,:disabled")) continue;
  for (const word of text.data.matchAll(/(?<!\\S)[\\d.]{2,}(?!\\S)/g)) {
    const range = document.createRange();
    range.setStart(text, word.index);
    range.setEnd(text, word.index + word[0].length);
    if (new Set([...range.getClientRects()].map((box) => box.top)).size > 1) found.split.push(`${name(e)} ${word[0]}`);
  }
  const style = getComputedStyle(e), below = ground(e);
  let share = 1;
  for (let at = e; at; at = at.parentElement) share *= Number(getComputedStyle(at).opacity);
  const ink = over(parse(e instanceof SVGElement ? style.fill : style.color), below, share);
  const [high, low] = [light(ink), light(below)].sort((a, b) => b - a);
  const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
  if ((high + 0.05) / (low + 0.05) < (large ? 3 : 4.5)) found.faint.push(`${name(e)} ${style.color} ${style.fill}`);
}
return found;
"""


PLAN = {
    "summary": ["This plan fits the budget of 12.00 MiB."],
    "legend": "checkpoint: keeps its inputs, and runs again in the backward pass. rest: what is in no block.",
    "budget_bytes": 12 << 20,
    "plain_s": 0.0499,
    "frontier": [(17059240, 0.0499), (10374568, 0.0679)],
    "blocks": [
        {"block": "rest", "option": "remat", "kept_bytes": 393216, "peak_bytes": 393216, "extra_s": 0.0},
        {"block": "layer1.0[0:3]", "option": "checkpoint", "kept_bytes": 0, "peak_bytes": 1 << 22, "extra_s": 0.0079},
    ],
    "timelines": {"without a plan": [(0, {"retained": 0}), (9, {"retained": 17059240})]},
}


@pytest.fixture(scope="module")
def kinds() -> dict[str, str]:
    """Each kind of page, of committed runs: many nodes, options in names, times that were contended."""
    example, paper = (load_run(RESULTS / f"{name}.json") for name in ("example-quick", "paper"))
    kernels, kept = (load_run(RESULTS / f"{name}.json") for name in ("kernels-32x1m", "kernels-32x1m-kept"))
    return {
        "example": render_html(example),
        "paper": render_html(paper),
        "comparison": render_comparison_html(kernels, kept),
        "plan": plan_page(PLAN, "my_net:make, input 4,8,3,32,32"),
        "study": study_page(load_run(RESULTS / "digits-tune.json")),
        "gallery": render_gallery([kernels, kept, example], baselines=[load_run(RESULTS / "baselines" / "quick.json")]),
    }


@pytest.mark.parametrize(
    ("kind", "screen", "scheme"),
    [
        ("example", "desktop", "light"),
        ("example", "desktop", "dark"),
        ("example", "phone", "light"),
        ("example", "phone", "dark"),
        ("example", "print", "light"),
        ("paper", "phone", "dark"),
        ("paper", "print", "light"),
        ("comparison", "desktop", "light"),
        ("comparison", "phone", "dark"),
        ("comparison", "print", "light"),
        ("plan", "desktop", "dark"),
        ("plan", "phone", "light"),
        ("plan", "print", "light"),
        ("study", "desktop", "light"),
        ("study", "phone", "dark"),
        ("gallery", "desktop", "dark"),
        ("gallery", "phone", "light"),
        ("gallery", "print", "light"),
    ],
)
def test_nothing_sticks_out_is_clipped_or_faint(opened, kinds, kind, screen, scheme):
    """Every rendered box of a page, with all that it shows on demand, on a desktop, a phone and a sheet of paper."""
    width, height, media = SCREENS[screen]
    browser = opened(kinds[kind], width, height, media, scheme)
    browser.execute_script("for (const each of document.querySelectorAll('details')) each.open = true;")
    assert browser.execute_script(FLAWS, width, media == "print") == {
        "wide": [],
        "clipped": [],
        "faint": [],
        "touching": [],
        "split": [],
    }


@pytest.mark.parametrize("scripts", [True, False])
@pytest.mark.parametrize(("kind", "screen"), [("example", "desktop"), ("example", "phone"), ("paper", "phone")])
def test_budget_is_answered_above_the_fold(opened, browser, kinds, kind, screen, scripts):
    """T, batch and budget can be chosen, and what to take from which budget on is read, before anything is scrolled."""
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
    width, height, _ = SCREENS[screen]
    opened(kinds[kind], width, height)
    (point,) = shown(browser, ".point")
    (first, *_) = point.find_elements("css selector", ".ladder li")
    assert first.text.startswith("from ")
    assert first.rect["y"] + first.rect["height"] <= height
    (choice,) = shown(browser, ".picker" if scripts else ".picks")
    assert choice.rect["y"] < height


def test_points_are_chosen_without_scripts(opened, browser, kinds):
    """A link shows the point that it names, and no other."""
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    opened(kinds["example"])
    link = browser.find_elements("css selector", ".picks a")[-1]
    wanted = link.get_attribute("href").partition("#")[2]
    link.click()
    (point,) = shown(browser, ".point")
    assert point.get_attribute("id") == wanted


def test_a_phone_comes_to_the_cases_soon(opened, kinds):
    """Answer, findings and figures take less than 6,000 pixels of a phone."""
    for kind in ("example", "paper"):
        browser = opened(kinds[kind], width=390)
        assert find(browser, "#cases").rect["y"] < 6000, kind


def test_eight_columns_at_first_and_all_on_demand(opened, kinds):
    """The table of cases opens with eight columns at most, its headings stay in sight, and a box brings the rest."""
    browser = opened(kinds["example"], width=1366)
    assert 1 < len(shown(browser, "#cases thead th")) <= 8
    scroll = find(browser, "#cases .scroll")
    browser.execute_script("arguments[0].scrollTop = 1000", scroll)
    (heading, *_) = shown(browser, "#cases thead th")
    assert abs(heading.rect["y"] - scroll.rect["y"]) < 3
    find(browser, "#cases .more").click()
    assert len(shown(browser, "#cases thead th")) > 12
