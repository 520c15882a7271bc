"""The memory meter against closed forms, repeats, memray and the operating system."""

import json
import os
import platform
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from revsnn_bench.meters.allocator import record_timeline
from revsnn_bench.meters.memory import measure_memory, measure_saved, peak_bytes, retained_bytes
from revsnn_bench.meters.selftest import SelfTestStep, run_selftest
from revsnn_bench.meters.step import TrainingStep
from revsnn_bench.records import SavedBytes

ROWS, FEATURES = 6, 50
SIZE = 4 * ROWS * FEATURES


class _Checkpointed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(lambda z: z.sigmoid().sigmoid(), x, use_reentrant=False, preserve_rng_state=False)


class _HiddenTensor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.hidden = x.exp()
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.hidden


class _Hides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _HiddenTensor.apply(x)


class _UnbindsTime(nn.Module):
    """Saves one view of the input per row, and views of one output."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([row.square() for row in x.unbind(0)]).sigmoid()


class _SavesAConstantOfTheSource(nn.Module):
    def __init__(self, source: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(ROWS, FEATURES))
        self.source = source

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale * self.source.detach()


class _HalfAsView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu()[:, : FEATURES // 2]


class _Cycle(nn.Module):
    """Leaves the sigmoid of its input in a reference cycle that only the garbage collector frees."""

    def forward(self, x: Tensor) -> Tensor:
        box: list[object] = [x.detach().sigmoid()]
        box.append(box)
        return x.relu()


def _step(model: nn.Module, *shape: int) -> TrainingStep:
    source = torch.randn(*(shape or (ROWS, FEATURES)), generator=torch.Generator().manual_seed(1))
    return TrainingStep(model, source.requires_grad_())


def test_selftest_is_exact() -> None:
    """The meters return the closed form of every quantity of the self-test step."""
    pairs = run_selftest()
    assert len(pairs) == 11
    for name, expected, measured in pairs:
        assert measured == expected, name


@pytest.mark.parametrize(("rows", "features", "units"), [(24, 16, 40), (8, 3, 5), (128, 96, 100), (1000, 1, 700)])
def test_selftest_holds_at_every_size(rows: int, features: int, units: int) -> None:
    """The closed forms hold at several sizes, so no constant is hidden in them."""
    step = SelfTestStep(rows, features, units)
    record = measure_memory(step)
    assert record.retained_bytes == step.expected["retained_bytes"]
    assert record.peak_bytes == step.expected["peak_bytes"]
    assert record.peak_by_category_bytes == step.expected["peak_by_category_bytes"]


def test_selftest_refuses_a_size_without_closed_form() -> None:
    """A size whose peak would be in the linear layer is refused by name."""
    with pytest.raises(ValueError, match=r"`units` must make 3 n g > n f \+ f g; got n=2, f=100, g=3"):
        SelfTestStep(2, 100, 3)


@pytest.mark.parametrize(
    ("model", "retained", "peak"),
    [
        (nn.Identity(), 0, 3),  # input, output gradient, and its copy: the caller holds the original
        (nn.Sequential(nn.Sigmoid(), nn.ReLU()), 1, 5),  # sigmoid, output, and three gradients
        (_Checkpointed(), 1, None),
        (_Hides(), 1, 4),  # exp, output, two gradients
        (_Cycle(), 1, None),
        (nn.Sequential(*(nn.Sigmoid() for _ in range(5))), 4, 8),  # five, output gradient, two on the way
    ],
    ids=["identity", "sigmoid-relu", "checkpointed", "hidden", "cycle", "chain"],
)
def test_tensors_retained_and_peak(model: nn.Module, retained: int, peak: int | None) -> None:
    """Retained and peak bytes are whole numbers of tensors, as the graph of the module predicts."""
    step = _step(model)
    assert retained_bytes(step) == (retained * SIZE, 0, SIZE)
    if peak is not None:
        assert peak_bytes(step) == peak * SIZE


@pytest.mark.parametrize(
    ("model", "own", "input_", "output"),
    [
        (nn.Sequential(nn.Sigmoid(), nn.Tanh()), 1, 0, 1),
        (nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.ReLU()), 0, 1, 1),
        (nn.Sequential(nn.SiLU(), nn.SiLU()), 1, 1, 0),
        (_UnbindsTime(), 0, 1, 1),
        (nn.Identity(), 0, 0, 0),
    ],
    ids=["own-and-output", "weights-not-counted", "input", "views-once", "nothing"],
)
def test_what_autograd_packs_is_split_by_owner(model: nn.Module, own: int, input_: int, output: int) -> None:
    """Each storage is counted once, whole, and by whose it is; parameters are not counted."""
    assert measure_saved(_step(model)) == SavedBytes(own=own * SIZE, input=input_ * SIZE, output=output * SIZE)


def test_packed_buffers_and_source_are_not_counted() -> None:
    """Tensors that are alive before the step cost it nothing, though they are packed."""
    step = _step(nn.Identity())
    step.model = _SavesAConstantOfTheSource(step.source)
    assert measure_saved(step) == SavedBytes(own=0, input=0, output=0)


def test_dead_storages_do_not_hide_live_ones() -> None:
    """Storages that die early keep their identity: a later one at the same address is counted too."""

    class DiesEarly(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(4):
                x.exp()  # a graph that nobody keeps
            return x.sigmoid()

    assert measure_saved(_step(DiesEarly())) == SavedBytes(own=4 * SIZE, input=0, output=SIZE)


def test_hidden_tensors_are_seen_by_the_allocator_only() -> None:
    """A tensor kept as an attribute of the context escapes the hooks, not the retained bytes."""
    step = _step(_Hides())
    assert measure_saved(step) == SavedBytes(own=0, input=0, output=0)
    assert retained_bytes(step)[0] == SIZE


def test_step_is_left_prepared_by_the_count_of_what_is_packed() -> None:
    """No hook and no gradient stays behind."""
    step = _step(nn.Sigmoid())
    measure_saved(step)
    assert not step.model._forward_pre_hooks
    assert step.source.grad is None


def test_linear_and_convolution_retain_their_input() -> None:
    """A layer with weights keeps its input, and the parameters are not charged."""
    assert retained_bytes(_step(nn.Linear(FEATURES, 7)))[0] == SIZE
    convolution = _step(nn.Conv2d(3, 5, 3, padding=1), 2, 3, 8, 8)
    assert retained_bytes(convolution) == (4 * 2 * 3 * 64, 0, 4 * 2 * 5 * 64)


def test_output_that_is_a_view_does_not_hide_its_storage() -> None:
    """Only the elements of the output are output; the rest of the storage it pins is retained."""
    assert retained_bytes(_step(_HalfAsView())) == (SIZE // 2, 0, SIZE // 2)


def test_repeats_are_identical_to_the_byte() -> None:
    """Two measurements of one step agree in every host quantity of the allocator."""
    step = _step(nn.Sequential(nn.Linear(FEATURES, 20), nn.Sigmoid(), nn.Linear(20, FEATURES), nn.Tanh()))
    first, second = (
        measure_memory(step).model_dump(exclude={"process_peak_bytes", "untracked_bytes"}) for _ in range(2)
    )
    assert first == second


def test_gradients_of_an_earlier_step_do_not_count() -> None:
    """A step that starts with gradients in place is measured as if they were not there."""
    step = _step(nn.Linear(FEATURES, 7))
    before = peak_bytes(step)
    step.backward(step.forward())
    assert step.source.grad is not None
    assert peak_bytes(step) == before
    assert step.source.grad is None


def test_categories_sum_to_the_peak() -> None:
    """The categories add up to the allocator's peak, kernel scratch included, with nothing unattributed."""
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
    record = measure_memory(_step(network, 4, 3, 18, 18))
    assert sum(record.peak_by_category_bytes.values()) == record.peak_bytes
    assert "unattributed" not in record.peak_by_category_bytes


def test_fake_tensors_of_a_compiler_take_no_memory() -> None:
    """A step whose first call leaves some, as a compiled one does: they claim the CPU, and hold no byte."""
    kept: list[Tensor] = []

    class LeavesFakes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not kept:
                with FakeTensorMode():
                    kept.append(torch.empty(1 << 20))
            return x * 2.0

    record = measure_memory(_step(LeavesFakes()))
    assert kept[0].device.type == "cpu"
    assert record.lasting_bytes == 0


def test_device_fields_are_absent_on_cpu() -> None:
    """No device quantity is a number on a CPU."""
    record = measure_memory(_step(nn.Sigmoid()))
    assert record.device_peak_bytes is None
    assert record.device_reserved_bytes is None
    assert record.driver_peak_bytes is None


def test_unknown_device_is_refused() -> None:
    """A device without an exact reading is an error, never a zero."""
    step = TrainingStep(nn.Sigmoid(), torch.empty(3, device="meta", requires_grad=True))
    with pytest.raises(ValueError, match=r"`step.source` must be on cpu or cuda; got meta"):
        measure_memory(step)


def test_timeline_ignores_blocks_from_before() -> None:
    """A block of an earlier profile whose address is handed out again is no free of the present one."""
    for size in (100, 300, 1000):
        kept, timeline = record_timeline(lambda size=size: [torch.empty(size) for _ in range(8)])
        assert timeline.live_bytes == timeline.peak_bytes == 32 * size
        kept.clear()
        older = [torch.empty(size) for _ in range(8)]
        _, timeline = record_timeline(older.clear)
        assert timeline.live_bytes == timeline.peak_bytes == 0


_OUTSIDE_CHECK = """
import json, sys
import torch
from torch import nn
from revsnn_bench.meters.memory import measure_memory
from revsnn_bench.meters.step import TrainingStep

source = torch.rand(4096, 2048).requires_grad_()
step = TrainingStep(nn.Sequential(nn.Sigmoid(), nn.ReLU()), source)
record = measure_memory(step)
found = {"peak": record.peak_bytes, "process": record.process_peak_bytes}
if sys.argv[1:]:
    import memray
    with memray.Tracker(sys.argv[1], file_format=memray.FileFormat.AGGREGATED_ALLOCATIONS):
        step.backward(step.forward())
    found["memray"] = memray.FileReader(sys.argv[1]).metadata.peak_memory
print(json.dumps(found))
"""


def _measure_in_a_process(*arguments: str) -> dict[str, int]:
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "1048576",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-c", _OUTSIDE_CHECK, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="VmHWM is Linux's")
def test_process_high_water_agrees_within_2_percent() -> None:
    """With the documented malloc setting the resident high-water mark grows by the tensor peak."""
    found = _measure_in_a_process()
    assert found["peak"] == 5 * 4 * 4096 * 2048
    assert found["process"] == pytest.approx(found["peak"], rel=0.02)


def test_memray_agrees_within_half_a_percent(tmp_path: Any) -> None:
    """An allocation tracer that knows nothing of torch sees the same peak."""
    pytest.importorskip("memray")
    found = _measure_in_a_process(str(tmp_path / "step.bin"))
    assert found["memray"] == pytest.approx(found["peak"], rel=0.005)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(("mib", "keep_all"), [(3, False), (3, True), (40, True)])
def test_steady_state_malloc_ends_the_page_faults_of_fresh_mappings(mib, keep_all):
    """Memory that a step frees is handed to the next one with its pages."""
    script = f"""
import ctypes, resource
from revsnn_bench.meters.timing import set_steady_state_malloc
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        block = libc.malloc({mib} << 20)
        ctypes.memset(block, 1, {mib} << 20)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
fresh = faults()
assert set_steady_state_malloc({keep_all})
faults()
print(fresh, faults())
"""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    command = [sys.executable, "-c", script]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    fresh, kept = map(int, out.split())
    assert fresh >= 20
    assert kept < fresh / 4
