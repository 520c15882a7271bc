"""The pass that times compilation, in a process of its own with empty caches."""

import subprocess
import sys

import pytest

from revsnn_bench import Case, Settings
from revsnn_bench.meters.timing import measure_compile_time
from revsnn_bench.session import BenchSession, RunOptions
from revsnn_bench.system.process import METERS

BUILD = "revsnn_bench.models.workloads:build"


def case(backend, node="lif"):
    return Case(node=node, timesteps=2, batch=1, shape=(8,), node_options={"backend": backend})


def test_the_process_that_compiles_begins_without_the_compiler():
    """So a compile time has its import in it, which the server of workers has behind it."""
    program = "import sys; [__import__(name) for name in sys.argv[1:]]; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program, *METERS], check=False).returncode == 0


def test_a_case_that_fails_where_it_is_compiled_says_how():
    """The error of the other process is in the message."""
    with pytest.raises(RuntimeError, match=r"exit code 1:(.|\n)*`node` must be a registered name"):
        measure_compile_time(case("torch", node="lyf"), BUILD)


def test_only_a_suite_that_asks_for_compilation_gets_it():
    """A run has every pass; a case gets the usual ones, or those that its suite names."""
    settings = Settings(passes=("compile", "memory"))
    session = BenchSession(RunOptions(settings=settings, results_dir=None, threads=1))
    try:
        usual = session.measure(case("torch"))
        asked = session.measure(case("torch", node="lif-checkpoint"), ("compile", "memory"))
    finally:
        session.close()
    assert (usual.compile_time_s, usual.memory is not None) == (None, True)
    assert asked.compile_time_s >= 0
    assert asked.memory is not None
