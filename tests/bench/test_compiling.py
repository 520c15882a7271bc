"""The pass that times compilation, in a process with empty caches; and what is compiled is what is judged."""

import subprocess
import sys

import pytest

from revsnn_bench import Case, Settings
from revsnn_bench.measuring import measure
from revsnn_bench.meters.timing import measure_compile_time
from revsnn_bench.records import Status
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


def own(model, node="as-is"):
    return Case(workload=f"own_models:{model}", node=node, timesteps=2, batch=3, shape=(6,))


@pytest.mark.parametrize("model", ["compiled_wrongly", "compiled_in_place", "compiled_neuron"])
def test_passes_before_do_not_hide_a_wrong_gradient_of_compiled_code(model):
    """Counting runs a function as it is written; the gradient that is judged is that of the compiled one."""
    record = measure(own(model), Settings(passes=("memory", "flops", "fidelity")))
    assert record.status is Status.WRONG
    assert record.fidelity.gradient_error > 1


def test_a_compiled_method_of_a_model_is_named():
    """A copy of the model would run the model itself; everything else is measured."""
    record = measure(own("compiled_method"), Settings(passes=("memory", "fidelity")))
    assert record.status is Status.OK
    assert "`forward` is a compiled method of that" in record.reason
    assert record.memory.peak_bytes > 0


def test_compiled_spikingjelly_keeps_one_tensor_and_its_memory_is_believed():
    """All of what a compiled step keeps is counted, though its modules are taken apart as they are written."""
    record = measure(
        Case(node="spikingjelly-compiled", timesteps=8, batch=1, shape=(1 << 17,)), Settings(passes=("memory",))
    )
    memory, output = record.memory, 8 * (1 << 17) * 4
    assert record.status is Status.OK, record.reason
    assert output <= memory.retained_bytes < 1.001 * output
    assert memory.untracked_bytes.held < 1 << 20
    assert sum(memory.retained_by_module_bytes.values()) == memory.retained_bytes
    assert min(memory.retained_by_module_bytes.values()) >= 0


def test_compilation_is_timed_however_warm_the_caches_are():
    """Kernels that this process has compiled, and that are on disk, are compiled again; eager code compiles nothing."""
    pytest.importorskip("numba", reason="the fused CPU kernels need numba")
    fused_case, eager_case = (
        Case(node="lif", timesteps=2, batch=1, shape=(8,), node_options={"backend": backend})
        for backend in ("fused", "torch")
    )
    measure(fused_case, Settings(passes=("time",), min_rounds=1, max_rounds=1))
    fused = measure(fused_case, Settings(passes=("compile",))).compile_time_s
    assert fused > 3 * measure_compile_time(eager_case, BUILD)
