"""What the operating system or the driver says of this process: the check from outside torch.

Tensor bytes and resident memory agree only if the C library maps each tensor on its own and gives it back
when it is freed: start Python with `MALLOC_MMAP_THRESHOLD_=1048576`. Otherwise the heap's left-overs are
counted too.
"""

import ctypes
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

_RESET_HIGH_WATER = "5"  # proc(5): resets VmHWM to the present resident set size


def process_peak_bytes(work: Callable[[], object]) -> int | None:
    """Growth of this process's resident high-water mark while `work` runs; run it without any profiler.

    Returns:
        Bytes, in whole KiB; None where the high-water mark cannot be reset (not Linux, or /proc not
        writable).
    """
    if not sys.platform.startswith("linux"):
        return None
    _return_free_heap()
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_HIGH_WATER, encoding="ascii")
    except OSError:
        return None
    before = _status_bytes("VmHWM")
    work()
    after = _status_bytes("VmHWM")
    return None if before is None or after is None else after - before


def driver_bytes(device_index: int) -> int | None:
    """What the NVIDIA driver counts for this process on one device, context and cached blocks included.

    The caching allocator never gives blocks back by itself, so read after a step this is its high-water mark.

    Returns:
        Bytes; None without NVML or where the driver does not tell.
    """
    import pynvml
    import torch

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        uuid = f"GPU-{torch.cuda.get_device_properties(device_index).uuid}"
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByUUID(uuid))
        used = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
    return int(used[0]) if used and used[0] is not None else None


def _return_free_heap() -> None:
    """Gives free heap pages back, or tensors that reuse them would not raise the high-water mark."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def _status_bytes(field: str) -> int | None:
    match = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text("ascii"), re.MULTILINE)
    return int(match[1]) * 1024 if match else None
