import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import revsnn_bench
from revsnn_bench.records import Environment, Run
from revsnn_bench.runs import new_run_id
from revsnn_bench.system import gpu
from revsnn_bench.system.environment import conditions, fingerprint, incomparable_fields, read_conditions

ROOT = Path(__file__).parents[2]
LINUX = "Linux 6.1.0 x86_64"


@pytest.fixture
def environment(make_run: Callable[..., Run]) -> Callable[..., Environment]:
    """Makes an environment; keywords replace its fields."""

    def make(**changes: Any) -> Environment:
        return make_run([], **{"platform": LINUX, **changes}).header.environment

    return make


def test_fingerprint_describes_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions, threads, cores and memory are those of the process that asks."""
    found = fingerprint()
    assert found.torch == torch.__version__
    assert found.packages["torch"].split("+")[0] == found.torch.split("+")[0]  # a wheel may leave its device out
    assert found.threads == torch.get_num_threads()
    assert found.cores == len(os.sched_getaffinity(0))
    assert found.memory_bytes == psutil.virtual_memory().total
    assert found.platform.split()[0] == "Linux"
    assert found.cpu_model.endswith(f"({torch.backends.cpu.get_cpu_capability()})")  # two virtual ones have one name
    assert Environment.model_validate_json(found.model_dump_json()) == found


def test_fingerprint_holds_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in it is a path: a preloaded library is recorded by name."""
    monkeypatch.setenv("LD_PRELOAD", "/opt/lib/libjemalloc.so.2:/opt/lib/other.so")
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1048576")
    found = fingerprint()
    assert found.malloc["LD_PRELOAD"] == "libjemalloc.so.2 other.so"
    assert found.malloc["MALLOC_MMAP_THRESHOLD_"] == "1048576"
    strings = _strings(json.loads(found.model_dump_json()))
    assert not [text for text in strings if "/" in text]


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for part in value.values() for text in _strings(part)]
    return [value] if isinstance(value, str) else []


def test_determinism_flag_is_recorded() -> None:
    """`deterministic` follows torch's switch."""
    before = torch.are_deterministic_algorithms_enabled()
    try:
        for flag in (True, False):
            torch.use_deterministic_algorithms(flag)
            assert fingerprint().deterministic is flag
    finally:
        torch.use_deterministic_algorithms(before)


COMMITS = """
import sys
from pathlib import Path
from revsnn_bench.system.environment import fingerprint

root = Path(sys.argv[1])
(root / "results").mkdir()
(root / "results" / "run.jsonl").write_text("measured")
first = fingerprint()
(root / "node.py").write_text("new")
second = fingerprint()
print(first.commit, first.dirty, second.commit, second.dirty)
"""


@pytest.mark.parametrize("folder", [".", "site-packages"])
def test_commit_is_that_of_the_running_code(tmp_path: Path, folder: str) -> None:
    """A checkout gives its commit, dirty through code, not through results; an installed package has none."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(revsnn_bench.__file__).parent, tmp_path / folder / "revsnn_bench", ignore=ignore)
    (tmp_path / ".gitignore").write_text("__pycache__\n", "ascii")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    found = subprocess.run(
        [sys.executable, "-P", "-c", COMMITS, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(tmp_path / folder)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    installed = ["None", "None", "None", "None"]
    assert found == (installed if folder != "." else [head.strip(), "False", head.strip(), "True"])


def test_installed_code_has_the_commit_of_the_clone_that_it_is_run_in(tmp_path: Path) -> None:
    """A wheel built from a clone records its commit there, as long as each file is the same, and elsewhere none."""
    ignore, clone, installed = shutil.ignore_patterns("__pycache__"), tmp_path / "clone", tmp_path / "site-packages"
    for root, suites in ((clone, "suites"), (installed, "revsnn_bench/suites")):
        shutil.copytree(ROOT / "revsnn_bench", root / "revsnn_bench", ignore=ignore)
        shutil.copytree(ROOT / "suites", root / suites, ignore=ignore)
    git = ["git", "-C", str(clone), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()

    def recorded(folder: Path) -> str:
        code = "from revsnn_bench.system.environment import _commit; print(_commit()[0])"
        return subprocess.run(
            [sys.executable, "-P", "-c", code],
            env=os.environ | {"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    assert [recorded(clone), recorded(tmp_path)] == [head, "None"]
    (clone / "revsnn_bench" / "units.py").write_text("new", "ascii")
    (installed / "revsnn_bench" / "units.py").write_text("old", "ascii")
    assert recorded(clone) == "None"


def test_what_bytes_do_not_depend_on_may_differ(environment: Callable[..., Environment]) -> None:
    """Another machine of the same kind is comparable, whatever its processor, memory, kernel and commit."""
    other = environment(
        cpu_model="B",
        cores=64,
        memory_bytes=1,
        commit="f",
        dirty=True,
        python="3.12.1",
        platform="Linux 5.4 x86_64",
    )
    assert incomparable_fields(environment(), other) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("torch", "2.6.0"),
        ("threads", 16),
        ("deterministic", False),
        ("platform", "Darwin 23.1 arm64"),
        ("platform", "Linux 6.1.0 aarch64"),
    ],
)
def test_incomparable_field_is_named_with_both_values(
    environment: Callable[..., Environment], field: str, value: object
) -> None:
    """Each field that bytes depend on is reported alone, with its two values in order."""
    here, there = environment(), environment(**{field: value})
    assert incomparable_fields(here, there) == [(field, getattr(here, field), value)]


def test_gpus_must_agree_where_both_runs_have_one(environment: Callable[..., Environment]) -> None:
    """Two kinds of GPU are incomparable; a run without a GPU has no CUDA case that could be compared."""
    h200, a100 = (environment(gpu=name, cuda="12.8") for name in ("NVIDIA H200", "NVIDIA A100"))
    assert incomparable_fields(h200, a100) == [("gpu", "NVIDIA H200", "NVIDIA A100")]
    assert incomparable_fields(h200, environment()) == []


def test_threads_change_the_bytes() -> None:
    """Why `threads` must agree: a sum over two threads allocates a partial result for each, one thread none."""
    x, before, allocated = torch.ones(1 << 20), torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            x.sum()
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
                x.sum()
            events = profiler.events()
            assert events is not None
            allocated.append(sum(max(0, event.cpu_memory_usage) for event in events))
    finally:
        torch.set_num_threads(before)
    assert allocated[1] > allocated[0]


def test_conditions_hold_both_readings() -> None:
    """The load is read from the system, before and after."""
    before = read_conditions()
    found = conditions(before)
    assert found.load_before == before.load_before
    assert found.load_after is not None
    assert abs(found.load_after - os.getloadavg()[0]) < 1


def test_hidden_gpu_is_none_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no GPU is visible, with a driver or without one, every reading is None and nothing raises."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    readings = (gpu.driver_version(), gpu.gpu_name(), gpu.gpu_reading(), gpu.process_gpu_bytes("GPU-0"))
    assert readings == (None, None, None, None)
    assert fingerprint().gpu is None


@pytest.mark.skipif(gpu.gpu_name() is None, reason="needs an NVIDIA GPU")
def test_gpu_reading_has_clocks_and_throttling() -> None:
    """On a GPU the conditions tell clocks, temperature and throttle reasons."""
    reading = read_conditions().gpu_before
    assert reading is not None
    assert {"sm_clock_mhz", "temperature_c", "throttle_reasons"} <= reading.keys()


def test_a_run_without_a_name_leaves_a_clone_clean() -> None:
    """git ignores what runs without a name, the gallery and pytest-benchmark write; named runs it shows."""
    unnamed = new_run_id()
    written = [
        *(f"results/{unnamed}{suffix}" for suffix in (".json", ".jsonl")),
        *(f"reports/{unnamed}{suffix}" for suffix in (".html", ".md", ".csv", ".wide.json", "-pareto-1.svg")),
        "reports/index.html",
        "benchmark_20261127_204643.svg",
    ]
    named = ["results/mine.json", "reports/mine.html", "results/baselines/mine.json"]
    command = ["git", "-C", str(ROOT), "check-ignore", "--no-index", *written, *named]
    ignored = subprocess.run(command, capture_output=True, text=True, check=False)
    if ignored.returncode == 128:
        pytest.skip("not a clone")
    assert ignored.stdout.split() == written
