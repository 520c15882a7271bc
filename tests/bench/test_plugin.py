"""The pytest plugin in projects of its own: real sessions, most of them inside of this process, real measurements."""

import io
import json
import os
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec

import pytest
from revsnn_nodes import registry
from typer.testing import CliRunner

from revsnn_bench.cli import app

CASE = "from revsnn_bench import Case\n"
RETAINED = 4 * 2 * 64 * 3 * 8 + 8 * 8
"""Bytes that lif keeps at T = 8, B = 2, 64 features: three tensors per step, and
8 bytes per step, since autograd keeps the divisor tau as a tensor of one number."""

SMALL = 'Case(node="{node}", timesteps=4, batch=2, shape=(64,))'
ENDINGS = f"""
import pytest, torch
from revsnn_bench import Case

SMALL = dict(timesteps=4, batch=2, shape=(64,))
LONG = dict(timesteps=32, batch=2, shape=(64,))
BUDGET = Case(node="lif", timesteps=8, batch=2, shape=(64,))

def test_keeps_nothing(measure_case):
    record = measure_case(Case(node="lif-carrier", **SMALL))
    assert record.memory.retained_bytes == 0
    assert measure_case(Case(node="revlif", **SMALL)).memory.retained_bytes == 4 * 2 * 64

@pytest.mark.memory_budget(retained="{RETAINED} B")
def test_at_the_budget(measure_case): measure_case(BUDGET)

@pytest.mark.memory_budget(retained="{RETAINED - 1} B")
def test_over_the_budget(measure_case): measure_case(BUDGET)

@pytest.mark.memory_budget(peak="1 KiB")
def test_over_the_peak(measure_case): measure_case(BUDGET)

@pytest.mark.memory_budget(peak="8 KiB")
def test_own_tensors_within(): torch.zeros(2048)

@pytest.mark.memory_budget(peak="8 KiB")
def test_own_tensors_beyond(): a = torch.zeros(2048); b = torch.zeros(1)

def test_warned(measure_case): measure_case(Case(node="revlif", **LONG))

@pytest.mark.memory_budget(peak="1 B")
def test_warned_and_over(measure_case): measure_case(Case(node="revlif", **LONG))

@pytest.mark.xfail(reason="the inverse is lost")
def test_warned_and_marked(measure_case): measure_case(Case(node="revlif", **LONG))

@pytest.mark.sweep(quick={{"timesteps": (32,)}}, nodes=("revlif",), batch=2, shape=(64,))
def test_swept(case, measure_case): measure_case(case)

@pytest.mark.memory_budget(peak="1 B")
@pytest.mark.sweep(quick={{"timesteps": (32,)}}, nodes=("revlif",), batch=2, shape=(64,))
def test_swept_and_over(case, measure_case): measure_case(case)

def test_silent(measure_case): measure_case(Case(node="revlif", node_options={{"on_drift": "ignore"}}, **LONG))

def test_bad(measure_case):
    measure_case(Case(node="revlif", timesteps=2, batch=2, shape=(64,), node_options={{"groups": 7}}))

def test_good(measure_case): measure_case(Case(node="lif", **SMALL))
"""


def run_pytest(folder, source, *arguments):
    """Writes a test file, runs pytest on it in a fresh process, and returns its exit code with what it printed."""
    (folder / "test_it.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "warm_plugin", "-rA", *arguments]
    path = os.pathsep.join(filter(None, sys.path))
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def project(tmp_path):
    """Runs pytest in a project of one test file, in a fresh process."""
    return lambda source, *arguments: run_pytest(tmp_path, source, *arguments)


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """As `project`, in a session inside of this one, which has torch already."""

    def run(source, *arguments):
        (tmp_path / "test_it.py").write_text(source)
        printed = io.StringIO()
        with (
            monkeypatch.context() as patch,
            warnings.catch_warnings(),
            redirect_stdout(printed),
            redirect_stderr(printed),
        ):
            warnings.simplefilter("default")
            patch.chdir(tmp_path)
            patch.syspath_prepend(tmp_path)
            patch.delitem(sys.modules, "test_it", raising=False)
            code = pytest.main(["-p", "no:cacheprovider", "-rA", *arguments])
        return code, printed.getvalue()

    return run


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """What pytest printed of the tests of `ENDINGS`, each of which ends in another way."""
    code, printed = run_pytest(tmp_path_factory.mktemp("endings"), ENDINGS, "--run-target=0.01", "--run-processes=1")
    assert code == 1, printed
    return printed


def test_three_lines_measure_a_case(ended):
    """The fixture gives a record with exact bytes, in any project."""
    assert "PASSED test_it.py::test_keeps_nothing" in ended
    assert "report:" not in ended


def test_benchmark_saves_reports_and_feeds_pytest_benchmark(inside, tmp_path):
    """With --benchmark the samples taken in the worker are pytest-benchmark's, and the run is saved and reported."""
    source = CASE + (
        "import pytest\n"
        '@pytest.mark.sweep(quick={"timesteps": (2, 4)}, nodes=("lif", "lif-carrier"), batch=2, shape=(64,))\n'
        "def test_timesteps(case, measure_case):\n"
        "    measure_case(case)\n"
    )
    code, printed = inside(
        source,
        "--benchmark",
        "--run-id=mine",
        "--benchmark-json=bench.json",
        "--run-target=0.01",
        "--sweep-timesteps=2",
    )
    assert code == 0, printed
    saved = json.loads((tmp_path / "results" / "mine.json").read_text())
    assert [record["case"]["node"] for record in saved["records"]] == ["lif", "lif-carrier"]
    times = saved["records"][1]["time"]
    samples = [f + b for f, b in zip(times["forward_time_s"], times["backward_time_s"], strict=True)]
    benchmarks = json.loads((tmp_path / "bench.json").read_text())["benchmarks"]
    assert benchmarks[1]["stats"]["data"] == pytest.approx(samples, rel=1e-6)
    (info,) = benchmarks[1]["extra_info"].values()
    assert info["retained_bytes"] == 0
    assert info["status"] == "ok"
    assert "peak" in printed, printed
    assert (tmp_path / "reports" / "mine.md").is_file()


def test_a_case_without_time_does_not_ask_for_the_benchmark_fixture(inside, tmp_path):
    """A test whose case has no time gives no warning; one that asks for the fixture and forgets it does.

    One that times something of its own with it has that time, and what was measured beside it.
    """
    source = CASE + (
        f"def test_bytes(measure_case): measure_case({SMALL.format(node='lif')}, passes=('memory',))\n"
        "def test_both(measure_case):\n"
        f"    measure_case({SMALL.format(node='revlif')}, passes=('memory',))\n"
        f"    measure_case({SMALL.format(node='lif-carrier')})\n"
        "def test_forgets(benchmark): pass\n"
        "def test_own(benchmark, measure_case):\n"
        f"    measure_case({SMALL.format(node='lif-carrier')})\n"
        "    assert benchmark.pedantic(sum, ((1, 2),), rounds=2) == 3\n"
    )
    options = ("--benchmark", "--run-target=0.01", "--run-formats=md", "--benchmark-json=bench.json")
    code, printed = inside(source, *options)
    assert code == 0, printed
    assert printed.count("Benchmark fixture was not used at all in this test!") == 1
    both, own = json.loads((tmp_path / "bench.json").read_text())["benchmarks"]
    assert own["stats"]["rounds"] == 2
    assert [name.split("/")[1] for name in own["extra_info"]] == ["lif-carrier"]
    assert [name.split("/")[1] for name in both["extra_info"]] == ["revlif", "lif-carrier"]


def test_resume_measures_only_what_is_missing(inside, tmp_path):
    """A journal cut after its first case is finished, and the first case is taken from it."""
    source = CASE + (
        "import pytest\n"
        '@pytest.mark.sweep(quick={"timesteps": (2, 3)}, nodes=("lif",), batch=2, shape=(16,))\n'
        "def test_timesteps(case, measure_case):\n"
        "    measure_case(case)\n"
    )
    options = ("--benchmark", "--run-id=r", "--run-passes=memory")
    code, printed = inside(source, *options)
    assert code == 0, printed
    finished = tmp_path / "results" / "r.json"
    run = json.loads(finished.read_text())
    finished.unlink()
    journal = finished.with_suffix(".jsonl")
    lines = [json.dumps(run["header"]), json.dumps(run["records"][0]), '{"case": {"no']
    journal.write_text("\n".join(lines))
    code, printed = inside(source, *options, f"--run-resume={journal}")
    assert code == 0, printed
    again = json.loads(finished.read_text())["records"]
    assert again[0] == run["records"][0]
    assert again[1]["case"] == run["records"][1]["case"]
    assert again[1]["memory"]["peak_bytes"] == run["records"][1]["memory"]["peak_bytes"]
    assert again[1] != run["records"][1]


@pytest.mark.parametrize(
    ("name", "failure"),
    [
        ("at_the_budget", None),
        (
            "over_the_budget",
            f"retained memory is {RETAINED:,} B, 1 B over the budget of {RETAINED - 1:,} B. Largest contributors: ",
        ),
        ("over_the_peak", "peak memory is"),
        ("warned_and_over", "peak memory is"),
        ("swept_and_over", "peak memory is"),
        ("own_tensors_within", None),
        (
            "own_tensors_beyond",
            "peak memory is 8,196 B, 4 B over the budget of 8,192 B. Largest contributors: block 1 8,192 B",
        ),
    ],
)
def test_memory_budget_holds_cases_and_tests_to_their_bytes(ended, name, failure):
    """The marker fails with the number, the limit and the largest contributors; at the limit it passes.

    It does so where the gradient is wrong, too. In a test that measures no case it holds the test's own host
    tensors to the budget.
    """
    assert f"{'PASSED' if failure is None else 'FAILED'} test_it.py::test_{name}" in ended
    assert failure is None or failure in ended


def test_a_wrong_gradient_fails_and_in_a_sweep_a_warned_one_is_expected(ended):
    """It fails a test, which may be marked with xfail; in a sweep, a node that warned of it is an expected failure."""
    assert "FAILED test_it.py::test_warned - " in ended
    assert "XFAIL test_it.py::test_warned_and_marked" in ended
    assert "XFAIL test_it.py::test_swept[layer/revlif/" in ended
    assert "FAILED test_it.py::test_silent" in ended
    assert "more than the tolerance 0.001" in ended


def test_a_failing_case_fails_its_test_with_the_reason(ended):
    """An error in a worker is that test's failure, and the other cases go on."""
    assert "FAILED test_it.py::test_bad" in ended
    assert "`groups` must divide the size 64" in ended
    assert "PASSED test_it.py::test_good" in ended


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--sweep-node=revlfi", "--sweep-node: `node` must be a registered name; got 'revlfi'"),
        ("--sweep-shape=abc", "argument --sweep-shape: `shape` must be one or more sizes of at least 1, joined by x"),
        ("--run-threads=0", "argument --run-threads: must be a whole number of at least 1; got '0'"),
        ("--run-cluster=local", "--run-cluster: must come with --benchmark. Without it every case runs once, small"),
        ("--run-resume=nothing", "--run-resume: cannot resume results/nothing.jsonl: there is no such journal"),
    ],
)
def test_a_wrong_option_is_a_usage_error(inside, option, message):
    """It stops the session before anything is measured, under pytest's own name of the option."""
    source = "import pytest\n@pytest.mark.sweep(quick={'timesteps': (2,)})\ndef test_a(case, measure_case): pass\n"
    code, printed = inside(source, option)
    assert code == 4, printed
    assert message in printed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("peek='1 B'", 'memory_budget of test_a takes retained="4 MiB", peak="64 MiB", or both; got peek=\'1 B\''),
        ("'1 B'", "or both; got '1 B'"),
        ("", "or both; got neither"),
        ("peak='64'", "test_a: `size` must be a number with B, KiB, MiB, GiB or TiB; got '64'"),
    ],
)
def test_a_wrong_budget_is_refused_before_anything_runs(inside, given, message):
    """With the test's name, and with what the marker got."""
    code, printed = inside(f"import pytest\n@pytest.mark.memory_budget({given})\ndef test_a(): print('it ran')\n")
    assert code == 4, printed
    assert message in printed
    assert "Traceback" not in printed
    assert "it ran" not in printed


def test_preload_registers_nodes_for_the_sweep(inside, tmp_path, monkeypatch):
    """A node that a preloaded module registers can be asked for by name, and is measured by the workers."""
    monkeypatch.setattr(registry, "_NODES", dict(registry._NODES))
    (tmp_path / "my_nodes.py").write_text(
        "from revsnn_nodes import StandardLIF\nfrom revsnn_nodes.registry import register_node\n"
        "class Mine(StandardLIF): pass\nregister_node('mine', Mine)\n"
    )
    source = "import pytest\n@pytest.mark.sweep(quick={'timesteps': (2,)}, batch=2, shape=(8,))\n"
    source += "def test_it(case, measure_case): measure_case(case)\n"
    code, printed = inside(source, "--run-preload=my_nodes", "--sweep-node=mine")
    assert code == 0, printed
    assert "layer/mine/T2-B2-N8" in printed
    code, printed = inside(source, "--run-preload=no_nodes", "--sweep-node=mine", "--collect-only")
    assert code == 4
    assert "ERROR: --run-preload: cannot import 'no_nodes' (ModuleNotFoundError" in printed


def test_pytest_without_sweeps_imports_no_torch(project):
    """The plugin costs a project that does not use it no import of torch."""
    source = "import sys\ndef test_light(): assert 'torch' not in sys.modules\n"
    code, printed = project(source)
    assert code == 0, printed


UNMEASURED = CASE + (
    "import pytest, sys\n"
    "def test_plain(): pass\n"
    "def test_measures(measure_case): measure_case(Case(node='lif', timesteps=2, batch=2, shape=(8,)))\n"
)


def test_options_of_pytest_benchmark_know_what_measures(inside, tmp_path):
    """--benchmark-skip skips the tests that measure cases, and --benchmark-only runs them alone; no folder is left."""
    code, printed = inside(UNMEASURED, "--benchmark-skip")
    assert code == 0, printed
    assert "1 passed, 1 skipped" in printed
    assert "--benchmark-skip: it measures cases" in printed
    code, printed = inside(UNMEASURED, "--benchmark-only")
    assert code == 0, printed
    assert "1 passed, 1 skipped" in printed
    assert "PASSED test_it.py::test_measures" in printed
    assert {path.name for path in tmp_path.iterdir()} <= {"test_it.py", "__pycache__"}
    quick = ("--benchmark", "--benchmark-disable", "--run-processes=1", "--run-target=0.01", "--run-formats=md")
    code, printed = inside(UNMEASURED, *quick, "-k", "measures")
    assert code == 0, printed
    assert "Benchmark fixture was not used" not in printed


def test_without_pytest_benchmark_tests_run_and_nothing_is_measured(inside):
    """A project that turns it off has its tests, for this plugin is loaded in every one; --benchmark is refused."""
    code, printed = inside(UNMEASURED, "-p", "no:benchmark", "-k", "measures")
    assert code == 0, printed
    assert "PASSED test_it.py::test_measures" in printed
    code, printed = inside(UNMEASURED, "-p", "no:benchmark", "--benchmark")
    assert code == 4
    assert "ERROR: --benchmark: cannot be used without pytest-benchmark, which `-p no:benchmark` turns off." in printed


def test_an_interrupt_before_the_first_case_says_so(inside, tmp_path):
    """The last line is ours, after what pytest itself says of an interrupt."""
    code, printed = inside("raise KeyboardInterrupt", "--benchmark")
    assert code == pytest.ExitCode.INTERRUPTED
    assert printed.rstrip().endswith("interrupted before a case was measured")
    assert not (tmp_path / "results").exists()


def test_workers_of_xdist_are_refused_with_the_reason(inside, tmp_path):
    """They would time cases beside each other."""
    code, printed = inside(UNMEASURED, "--benchmark", "-n", "2")
    assert code == 4
    assert "ERROR: --benchmark: cannot be used with -n or --dist. Cases that are timed beside each other" in printed
    assert not (tmp_path / "results").exists()


SWEEP = """
import pytest

@pytest.mark.sweep(quick={"timesteps": (2, 3, 4)}, nodes=("lif",), batch=2, shape=(16,))
def test_it(case, measure_case):
    if case.timesteps == 4: pytest.skip("not today")
    measure_case(case)
"""
LIMIT_ONE = """
import pytest

@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    for item in items:
        if "T3-" in item.name and config.getoption("run_id"):
            item.add_marker(pytest.mark.timeout(0.05))
"""


def test_a_time_limit_and_an_early_stop_leave_a_run_that_can_be_resumed(project, inside, tmp_path):
    """pytest-timeout strikes in the second of three cases, and -x stops: the first is saved, the rest can follow.

    A case whose test is skipped is in the run with the reason, so that the run is complete.
    """
    (tmp_path / "conftest.py").write_text(LIMIT_ONE)
    options = ("--benchmark", "--run-passes=memory", "--run-formats=md")
    code, printed = project(SWEEP, *options, "--run-id=r", "-x")
    assert code == 1, printed
    assert "Timeout" in printed
    assert "interrupted: 1 of 3 planned cases measured; go on with: pytest -p no:cacheprovider " in printed
    assert " --run-id=r -x --run-resume=results/r.jsonl" in printed
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        refused = CliRunner().invoke(app, ["run", "--resume=r"])
    assert refused.exit_code == 2
    assert "results/r.jsonl was not begun by `revsnn-bench run`, but by `pytest " in refused.output
    code, printed = inside(SWEEP, *options, "--run-resume=r")
    assert code == 0, printed
    run = json.loads((tmp_path / "results" / "r.json").read_text())
    assert run["complete"]
    assert [record["case"]["timesteps"] for record in run["records"]] == [2, 3, 4]
    assert (run["records"][2]["status"], run["records"][2]["reason"]) == ("skipped", "Skipped: not today")


def test_a_suite_without_a_plan_that_stops_early_is_not_complete(inside, tmp_path):
    """Tests that make their cases themselves: -x leaves a run to go on with, but where the last test is what failed."""
    measures = f"def test_it(measure_case): measure_case({SMALL.format(node='lif')})\n"
    options = ("--benchmark", "--run-passes=memory", "--run-formats=md", "-x")
    code, printed = inside(
        CASE + measures + "def test_fails(): assert 0\ndef test_more(): pass\n", *options, "--run-id=a"
    )
    assert code == 1, printed
    assert "interrupted: 1 cases of a run that was not finished measured; go on with: pytest " in printed
    code, printed = inside(CASE + measures + "def test_fails(): assert 0\n", *options, "--run-id=b")
    assert code == 1, printed
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["a.jsonl", "b.json"]


def test_torch_is_there_before_a_test_begins(project):
    """So that no time limit of a test can strike in the midst of its import; where nothing needs it, it is not."""
    source = (
        "import pytest, sys\n"
        "def setup_function(function): assert 'torch' in sys.modules\n"
        "@pytest.mark.memory_budget(peak='1 KiB')\n"
        "def test_it(): pass\n"
    )
    code, printed = project(source, "--timeout=60")
    assert code == 0, printed


@pytest.mark.skipif(find_spec("pygal") is None, reason="needs pygal, of the extra `histogram`")
def test_the_histogram_is_drawn(inside, tmp_path):
    """`--benchmark-histogram` of pytest-benchmark draws the measured times; pygal, which it needs, is of our extra."""
    source = CASE + f"def test_lif(measure_case): measure_case({SMALL.format(node='lif')}, passes=('time',))\n"
    quick = ("--run-target=0.01", "--run-processes=1", "--run-formats=md")
    code, printed = inside(source, "--benchmark", *quick, "--benchmark-histogram=drawn")
    assert code == 0, printed
    assert "test_lif" in next(tmp_path.glob("drawn*.svg")).read_text()


def test_an_error_of_pytest_benchmark_at_the_end_loses_no_run(inside, tmp_path):
    """It cannot group a test without parameters by one; the run is saved and has its reports."""
    source = CASE + f"def test_lif(measure_case): measure_case({SMALL.format(node='lif')}, passes=('time',))\n"
    quick = ("--run-target=0.01", "--run-processes=1", "--run-formats=md", "--run-id=kept")
    with pytest.raises(TypeError):
        inside(source, "--benchmark", *quick, "--benchmark-group-by=param:case")
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"kept.json"}
    assert (tmp_path / "reports" / "kept.md").exists()


def test_without_what_draws_it_nothing_is_measured(project, tmp_path):
    """Before the first case one sentence names the package and the command that installs it."""
    (tmp_path / "conftest.py").write_text("import sys\nsys.modules['pygal'] = None\n")
    code, printed = project("def test_it(measure_case): pass\n", "--benchmark", "--benchmark-histogram")
    assert code == 4
    assert "needs pygal; it is not installed" in printed
    assert "pip install 'pytest-benchmark[histogram]'" in printed
