"""This process as the operating system sees it: was it kept from running, and how much memory did it take?

By the run delay timing rounds are rejected: how long our threads were ready to run and did not, because something else
was on their core. Linux counts it per thread in /proc/self/task/*/schedstat. It is zero for sleeping and for waiting on
a lock or a device, so it needs no model of what the work should have cost. Measured with an eager LIF on 2 threads of 2
cores, in rounds of 0.7 to 5 ms, it is at most 0.009 of wall time alone and 0.55 to 1.02 beside a busy neighbour, who
makes them 20 to 80 times slower: the limit of 0.05 is not delicate. Context switches, processor time over wall time and
the load average do not separate the two. Time that a hypervisor takes away from the whole machine is no run delay;
/proc/stat has it as steal, in ticks of 10 ms; its average over the cores is added. Threads of our own that outnumber
the cores delay each other and read as contention too. Off Linux there is no signal and nothing is rejected.

Tensor bytes and resident memory agree only if the C library maps each tensor on its own and gives it back when it is
freed: start Python with `MALLOC_MMAP_THRESHOLD_=1048576`. Otherwise what is left on the heap is counted too.
"""

import ctypes
import gc
import mmap
import os
import platform
import re
import resource
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from torch import Tensor

METERS = (
    "torch",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "revsnn_bench.measuring",
    *(f"revsnn_bench.meters.{name}" for name in ("fidelity", "flops", "memory", "timing")),
    *(f"revsnn_bench.models.{name}" for name in ("reference", "training", "workloads")),
)
"""What every measurement needs; torch imports the second and the third at the first backward, which takes 0.8 s."""

PRELOAD = (*METERS, "revsnn_nodes.kernels.cpu")
"""What is imported once, before workers are forked: `METERS`, and the compiler of the fused kernels where there is one.

What a case imports by itself would count against its memory limit.
"""

CONTENDED_SHARE = 0.05
"""A round is contended when our threads waited for a core longer than this share of its wall time."""

_TASKS = Path("/proc/self/task")


class RunDelay:
    """Seconds that this process was kept from running since the object was made."""

    def __init__(self) -> None:
        self._steal = _steal_s()
        self._delays = _delays_ns()

    def elapsed_s(self) -> float:
        """Run delay of all threads together, plus the time stolen from a core; 0.0 where neither is known."""
        delays = _delays_ns()
        own = sum(delay - self._delays.get(thread, 0) for thread, delay in delays.items())
        return own / 1e9 + _steal_s() - self._steal


def address_limit() -> str:
    """Of a process under `ulimit -v` a sentence that explains what fails there in other words; "" without a limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return ""
    return (
        f"The address space is limited to {limit:,} B (`ulimit -v`), of which libraries and the stacks of threads take "
        "more than they use. Lift that limit; --memory-limit bounds what a case allocates."
    )


LISTENERS: list[Callable[[Any], None]] = []
"""In a worker, what tells its server what it has measured so far."""


def hand_over(parts: Any) -> None:
    """Gives what is measured to whoever waits for this process, for the case that its time is up before the rest is."""
    for tell in LISTENERS:
        tell(parts)


def _delays_ns() -> dict[str, int]:
    """Run delay of each thread so far; a thread that ends while it is read is left out."""
    delays = {}
    for thread in os.listdir(_TASKS) if _TASKS.is_dir() else ():
        with suppress(OSError, IndexError):
            delays[thread] = int((_TASKS / thread / "schedstat").read_text().split()[1])
    return delays


def _steal_s() -> float:
    return float(getattr(psutil.cpu_times(), "steal", 0.0)) / (psutil.cpu_count() or 1)


class OtherWork:
    """How many cores all other processes took since the object was made; tells their work from threads of our own."""

    def __init__(self) -> None:
        self._start, self._taken = time.perf_counter(), _taken_by_others_s()

    def cores(self) -> float:
        """The mean over the time since then; the system counts in ticks of 10 ms, so that seconds must have passed."""
        return max(0.0, _taken_by_others_s() - self._taken) / (time.perf_counter() - self._start)


def _taken_by_others_s() -> float:
    times = psutil.cpu_times()  # where there are "guest" times, "user" has them too
    kinds = ("user", "nice", "system", "irq", "softirq", "steal")
    return sum(getattr(times, kind, 0.0) for kind in kinds) - time.process_time()


@contextmanager
def quiet_gc() -> Iterator[None]:
    """Collects garbage, then keeps the collector off: it would free at moments that differ between runs."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


_frozen: list["weakref.ref[Tensor]"] | None = None
"""The tensors among what was frozen, in the server of workers, in them, and within `frozen_heap`; None elsewhere."""


def freeze_imported() -> None:
    """In the server: freezes what it has imported, which never becomes garbage, for its workers.

    To touch it would copy its pages in every one of them, so the tensors among it are remembered here. Called again,
    it freezes what has come since.
    """
    global _frozen
    if _frozen is None:
        gc.unfreeze()
        _frozen = []
    gc.collect()
    _freeze()


def import_frozen(names: Iterable[str]) -> None:
    """In the server: imports modules, and freezes them, see `freeze_imported`.

    The collector is off meanwhile: it would go through all that is there again and again.
    """
    with quiet_gc():
        for name in names:
            import_module(name)
    freeze_imported()


def _freeze() -> None:
    assert _frozen is not None
    _frozen.extend(map(weakref.ref, tensors_among(gc.get_objects())))
    gc.freeze()


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Keeps all objects that are there out of collections, which then take milliseconds, and of `gc.get_objects`.

    Beside torch, a collection of everything takes a fifth of a second, and a meter asks for a dozen.
    """
    global _frozen
    outermost = _frozen is None
    stays = not outermost or gc.get_freeze_count()  # whose count goes over all that is frozen
    if outermost:
        gc.unfreeze()
        _frozen = []
    _freeze()
    try:
        yield
    finally:
        if outermost:
            _frozen = None
        if not stays:
            gc.unfreeze()


def all_tensors() -> list["Tensor"]:
    """Every tensor that Python knows, what is frozen included: in a worker, all that was imported before its fork."""
    if _frozen is not None:
        older = [tensor for reference in _frozen if (tensor := reference()) is not None]
        return older + tensors_among(gc.get_objects())
    was_frozen = gc.get_freeze_count()
    gc.unfreeze()
    found = tensors_among(gc.get_objects())
    if was_frozen:
        gc.freeze()
    return found


def tensors_among(objects: list[Any]) -> list["Tensor"]:
    """Those of some objects that are tensors of torch, where that has been imported."""
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    # By type: an `isinstance` would ask lazy proxies, which import what they stand for. Few types, many objects.
    types = {found for found in set(map(type, objects)) if issubclass(found, torch.Tensor)}
    return [each for each in objects if type(each) in types]


_RESET_HIGH_WATER = "5"  # proc(5): resets VmHWM to the present resident set size


def process_peak_bytes(work: Callable[[], object]) -> int | None:
    """Growth of this process's resident high-water mark while `work` runs, without any profiler, in whole KiB.

    None where the high-water mark cannot be reset: not Linux, or /proc not writable.
    """
    if not sys.platform.startswith("linux"):
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # gives free heap pages back, or tensors that reuse them would not raise the high-water mark
        trim(ctypes.c_size_t(0))
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_HIGH_WATER, encoding="ascii")
    except OSError:
        return None
    before = status_bytes("VmHWM")
    work()
    after = status_bytes("VmHWM")
    return None if before is None or after is None else after - before


@dataclass(frozen=True)
class HostUse:
    """What this process holds, and has written, by the C library and the kernel.

    Fields:
        malloc_bytes: in use, tensors included; holes between blocks are not, so fragmentation does not show.
        mapped_bytes: private writable mappings beyond what malloc took from the kernel, and resident shared memory.
        written_bytes: passed to `write` since the process began, to files, pipes and sockets.
    """

    malloc_bytes: int
    mapped_bytes: int
    written_bytes: int

    def __sub__(self, earlier: "HostUse") -> "HostUse":
        return HostUse(*(getattr(self, each.name) - getattr(earlier, each.name) for each in fields(self)))


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2` of malloc.h."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names)


def host_use() -> HostUse | None:
    """Reads `HostUse`; None where the C library is not glibc 2.33 or newer, or /proc has no such files."""
    read = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if read is None or not sys.platform.startswith("linux"):
        return None
    private, shared = status_bytes("VmData"), status_bytes("RssShmem")
    written = re.search(r"^wchar: (\d+)$", Path("/proc/self/io").read_text("ascii"), re.MULTILINE)
    if private is None or shared is None or written is None:
        return None
    read.restype = _MallInfo
    heap = read()
    mapped = private - heap.arena - heap.hblkhd + shared
    return HostUse(heap.uordblks + heap.hblkhd, mapped, int(written[1]))


class ChildUse:
    """The child processes of this one, as they are now; later, what others that it started meanwhile have touched.

    A page that a forked process shares with this one counts when it is written.
    """

    def __init__(self) -> None:
        self._running, self._ended = _child_faults()

    def touched_bytes(self) -> int:
        """Bytes of their pages, of those that have ended and been waited for too."""
        running, ended = _child_faults()
        gone = sum(faults for pid, faults in self._running.items() if pid not in running)
        started = sum(faults for pid, faults in running.items() if pid not in self._running)
        return max(0, ended - self._ended - gone + started) * mmap.PAGESIZE


def _child_faults() -> tuple[dict[int, int], int]:
    """Pages that child processes got from the kernel: of each that is there by its id, and of all that were waited for.

    None off Linux.
    """
    if not sys.platform.startswith("linux"):
        return {}, 0
    running = {}
    for child in psutil.Process().children():
        with suppress(OSError):  # it may end meanwhile
            running[child.pid] = sum(_faults(Path(f"/proc/{child.pid}/stat")))
    return running, _faults(Path("/proc/self/stat"))[1]


def _faults(stat: Path) -> tuple[int, int]:
    """Minor faults of a process and of the children that it waited for, by its /proc/[pid]/stat."""
    values = stat.read_text("ascii", errors="replace").rpartition(")")[2].split()
    return int(values[7]), int(values[8])


_M_PERTURB = -6  # malloc.h
_FREED = 0x80
"""What glibc then fills freed memory with; what it hands out, with the complement."""


@contextmanager
def spoiled_memory() -> Iterator[None]:
    """Inside, glibc hands out memory full of 0x7f: what is read before it is written is seen.

    That is 3.4e38 in float32 and bfloat16, 1.4e306 in float64. A large block would else come as zeros from the system,
    and what adds it to a result as if it were nothing would be right.
    """
    set_option: Any = ctypes.CDLL(None).mallopt if platform.libc_ver()[0] == "glibc" else lambda *_: None
    set_option(_M_PERTURB, _FREED)
    try:
        yield
    finally:
        set_option(_M_PERTURB, 0)


def status_bytes(field: str) -> int | None:
    """A field of /proc/self/status, such as `VmHWM`; None where it has no such field, or there is no such file."""
    if not sys.platform.startswith("linux"):
        return None
    match = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text("ascii"), re.MULTILINE)
    return int(match[1]) * 1024 if match else None
