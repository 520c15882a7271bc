"""What the NVIDIA driver says, through NVML: name, clocks, temperature, throttling, memory of a process.

Nothing here starts CUDA, so it may be called in a process that is about to fork. Without a driver, without
a GPU, or where `CUDA_VISIBLE_DEVICES` hides them all, every function returns None.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pynvml

_REASON_PREFIX = "nvmlClocksThrottleReason"
_THROTTLE_REASONS = {
    name.removeprefix(_REASON_PREFIX): bit
    for name, bit in vars(pynvml).items()
    if name.startswith(_REASON_PREFIX) and not name.endswith(("All", "None"))
}


@contextmanager
def _visible_gpu(uuid: str | None = None) -> Iterator[Any]:
    """Yields the NVML handle of a GPU, by default of what CUDA calls device 0; None where there is none.

    Numbers count in the order of the bus, which is also CUDA's where `CUDA_DEVICE_ORDER=PCI_BUS_ID`: the
    runner sets this for its workers.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield _find(uuid or os.environ.get("CUDA_VISIBLE_DEVICES", "0"))
    finally:
        pynvml.nvmlShutdown()


def _find(visible: str) -> Any:
    first = visible.split(",")[0].strip()
    try:
        if first.startswith(("GPU-", "MIG-")):
            return pynvml.nvmlDeviceGetHandleByUUID(first)
        return pynvml.nvmlDeviceGetHandleByIndex(int(first)) if first.isdigit() else None
    except pynvml.NVMLError:
        return None


def driver_version() -> str | None:
    """Version of the NVIDIA driver, such as `570.86.15`."""
    with _visible_gpu() as handle:
        return None if handle is None else str(pynvml.nvmlSystemGetDriverVersion())


def gpu_name() -> str | None:
    """Name of the first visible GPU, such as `NVIDIA H200`."""
    with _visible_gpu() as handle:
        return None if handle is None else str(pynvml.nvmlDeviceGetName(handle))


def gpu_reading() -> dict[str, Any] | None:
    """Clocks, temperature, power, use and throttle reasons (none at full clocks) of the first visible GPU, now.

    A quantity that this GPU does not report is absent.
    """
    with _visible_gpu() as gpu:
        if gpu is None:
            return None
        readers: dict[str, Callable[[], Any]] = {
            "sm_clock_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_MEM),
            "temperature_c": lambda: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
            "power_w": lambda: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
            "utilization_percent": lambda: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
            "used_bytes": lambda: pynvml.nvmlDeviceGetMemoryInfo(gpu).used,
            "throttle_reasons": lambda: _throttle_reasons(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)),
        }
        reading = {}
        for name, read in readers.items():
            with suppress(pynvml.NVMLError):
                reading[name] = read()
        return reading


def _throttle_reasons(bits: int) -> list[str]:
    return sorted(name for name, bit in _THROTTLE_REASONS.items() if bits & bit)


def process_gpu_bytes(uuid: str) -> int | None:
    """Bytes that the driver holds for this process on the GPU `uuid`: context, cached blocks and libraries.

    The caching allocator never gives blocks back by itself, so read after a step this is its high-water mark. None also
    where the driver does not tell, such as inside a container with its own process ids.
    """
    with _visible_gpu(uuid) as handle:
        for process in _computing(handle):
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                return int(process.usedGpuMemory)
    return None


def processes_on_gpu() -> dict[int, str]:
    """Processes that compute on the first visible GPU: their numbers, as the driver knows them, and names."""
    with _visible_gpu() as handle:
        return {int(process.pid): _name_of(process.pid) for process in _computing(handle)}


def _computing(handle: Any) -> list[Any]:
    """Processes that compute on a GPU; none where there is no GPU, or the driver does not tell."""
    with suppress(pynvml.NVMLError):
        return [] if handle is None else list(pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
    return []


def _name_of(number: int) -> str:
    """File name of a process's program; "another container" where this one does not see the process."""
    try:
        return Path(os.fsdecode(pynvml.nvmlSystemGetProcessName(number))).name
    except pynvml.NVMLError:
        return "of another container"
