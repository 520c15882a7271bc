"""The pytest plugin in projects of its own: real sessions in fresh processes, real measurements."""

import json
import subprocess
import sys

import pytest

CASE = "from revsnn_bench import Case\n"
SMALL = 'Case(node="{node}", timesteps=4, batch=2, shape=(64,))'


@pytest.fixture
def project(tmp_path):
    """Writes a test file, runs pytest on it, and returns what it printed with its exit code."""

    def run(source, *arguments):
        (tmp_path / "test_it.py").write_text(source)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout + done.stderr

    return run


def test_three_lines_measure_a_case(project):
    """The fixture gives a record with exact bytes, in any project."""
    source = CASE + (
        "def test_keeps_nothing(measure_case):\n"
        f"    record = measure_case({SMALL.format(node='lif-carrier')})\n"
        "    assert record.memory.retained_bytes == 0\n"
        f"    assert measure_case({SMALL.format(node='revlif')}).memory.retained_bytes == 4 * 2 * 64\n"
    )
    code, printed = project(source)
    assert code == 0, printed
    assert not (printed.count("report:"))


def test_benchmark_saves_reports_and_feeds_pytest_benchmark(project, tmp_path):
    """With --benchmark the samples taken in the worker are pytest-benchmark's, and the run is saved and reported."""
    source = CASE + (
        "import pytest\n"
        '@pytest.mark.sweep(quick={"timesteps": (2, 4)}, nodes=("lif", "lif-carrier"), batch=2, shape=(64,))\n'
        "def test_timesteps(case, measure_case):\n"
        "    measure_case(case)\n"
    )
    code, printed = project(
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
    assert "retained" in printed
    assert (tmp_path / "reports" / "mine.md").is_file()


def test_a_case_without_time_does_not_ask_for_the_benchmark_fixture(project, tmp_path):
    """A test whose case has no time gives no warning; one that asks for the fixture and forgets it does."""
    source = CASE + (
        f"def test_bytes(measure_case): measure_case({SMALL.format(node='lif')}, passes=('memory',))\n"
        "def test_both(measure_case):\n"
        f"    measure_case({SMALL.format(node='revlif')}, passes=('memory',))\n"
        f"    measure_case({SMALL.format(node='lif-carrier')})\n"
        "def test_forgets(benchmark): pass\n"
    )
    options = ("--benchmark", "--run-target=0.01", "--run-formats=md", "--benchmark-json=bench.json")
    code, printed = project(source, *options)
    assert code == 0, printed
    assert printed.count("Benchmark fixture was not used at all in this test!") == 1
    (both,) = json.loads((tmp_path / "bench.json").read_text())["benchmarks"]
    assert [name.split("/")[1] for name in both["extra_info"]] == ["revlif", "lif-carrier"]


def test_resume_measures_only_what_is_missing(project, tmp_path):
    """A journal cut after its first case is finished, and the first case is taken from it."""
    source = CASE + (
        "import pytest\n"
        '@pytest.mark.sweep(quick={"timesteps": (2, 3)}, nodes=("lif",), batch=2, shape=(16,))\n'
        "def test_timesteps(case, measure_case):\n"
        "    measure_case(case)\n"
    )
    options = ("--benchmark", "--run-id=r", "--run-passes=memory")
    code, printed = project(source, *options)
    assert code == 0, printed
    finished = tmp_path / "results" / "r.json"
    run = json.loads(finished.read_text())
    finished.unlink()
    journal = finished.with_suffix(".jsonl")
    lines = [json.dumps(run["header"]), json.dumps(run["records"][0]), '{"case": {"no']
    journal.write_text("\n".join(lines))
    code, printed = project(source, *options, f"--run-resume={journal}")
    assert code == 0, printed
    again = json.loads(finished.read_text())["records"]
    assert again[0] == run["records"][0]
    assert again[1]["case"] == run["records"][1]["case"]
    assert again[1]["memory"]["peak_bytes"] == run["records"][1]["memory"]["peak_bytes"]
    assert again[1] != run["records"][1]


RETAINED = 4 * 2 * 64 * (3 * 8 - 2) + 8 * 8
"""Bytes that lif keeps at T = 8, B = 2, 64 features: three tensors per step, less two of the last step's reset, and
8 bytes per step, since autograd keeps the divisor tau as a tensor of one number."""


@pytest.mark.parametrize(
    ("budget", "failure"),
    [
        (f'retained="{RETAINED} B"', None),
        (
            f'retained="{RETAINED - 1} B"',
            f"retained memory is {RETAINED:,} B, 1 B over the budget of {RETAINED - 1:,} B",
        ),
        ('peak="1 KiB"', "peak memory is"),
    ],
)
def test_memory_budget_holds_a_case_to_its_bytes(project, budget, failure):
    """The marker fails with the number, the limit and the largest contributors; at the limit it passes."""
    source = CASE + (
        "import pytest\n"
        f"@pytest.mark.memory_budget({budget})\n"
        'def test_budget(measure_case): measure_case(Case(node="lif", timesteps=8, batch=2, shape=(64,)))\n'
    )
    code, printed = project(source)
    assert (code == 0) == (failure is None), printed
    if failure is not None:
        assert failure in printed
        assert "Largest contributors: " in printed


def test_memory_budget_watches_a_test_that_measures_no_case(project):
    """Without `measure_case` the test's own host tensors are counted, exactly."""
    source = (
        "import pytest, torch\n"
        '@pytest.mark.memory_budget(peak="8 KiB")\n'
        "def test_within(): torch.zeros(2048)\n"
        '@pytest.mark.memory_budget(peak="8 KiB")\n'
        "def test_beyond(): a = torch.zeros(2048); b = torch.zeros(1)\n"
    )
    code, printed = project(source)
    assert code == 1, printed
    assert "PASSED test_it.py::test_within" in printed
    assert "peak memory is 8,196 B, 4 B over the budget of 8,192 B. Largest contributors: block 1 8,192 B" in printed


def test_an_unwarned_wrong_gradient_fails_and_a_warned_one_is_expected(project):
    """A node that says its gradient is wrong is an expected failure; one that silences itself fails."""
    wrong = 'Case(node="revlif", timesteps=32, batch=2, shape=(64,), node_options={})'
    silent = wrong.replace("{}", '{"on_drift": "ignore"}')
    source = CASE + (
        f"def test_warned(measure_case): measure_case({wrong})\ndef test_silent(measure_case): measure_case({silent})\n"
    )
    code, printed = project(source)
    assert code == 1, printed
    assert "XFAIL test_it.py::test_warned" in printed
    assert "FAILED test_it.py::test_silent" in printed
    assert "more than the tolerance 0.001" in printed


def test_a_failing_case_fails_its_test_with_the_reason(project):
    """An error in a worker is that test's failure, and the other cases go on."""
    source = CASE + (
        "def test_bad(measure_case):\n"
        '    measure_case(Case(node="revlif", timesteps=2, batch=2, shape=(64,), node_options={"groups": 7}))\n'
        f"def test_good(measure_case): measure_case({SMALL.format(node='lif')})\n"
    )
    code, printed = project(source)
    assert code == 1, printed
    assert "`groups` must divide the size 64" in printed
    assert "PASSED test_it.py::test_good" in printed


def test_an_unknown_node_is_a_usage_error_with_a_suggestion(project):
    """A misspelt node stops the session before anything is measured."""
    source = "import pytest\n@pytest.mark.sweep(quick={'timesteps': (2,)})\ndef test_a(case, measure_case): pass\n"
    code, printed = project(source, "--sweep-node=revlfi")
    assert code == 4, printed
    assert "Did you mean revlif" in printed


def test_pytest_without_sweeps_imports_no_torch(project):
    """The plugin costs a project that does not use it no import of torch."""
    source = "import sys\ndef test_light(): assert 'torch' not in sys.modules\n"
    code, printed = project(source)
    assert code == 0, printed
