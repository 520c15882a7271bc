"""Does the measurement measure, and is this machine fit for it? A self-test in closed form, and advice."""

import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch

from revsnn_bench.kernel_speed import KernelSpeed, StepSpeed, kernel_speeds, step_speeds
from revsnn_bench.meters.selftest import run_selftest
from revsnn_bench.report import units
from revsnn_bench.system.environment import cores
from revsnn_bench.system.gpu import driver_version, gpu_name, gpu_reading

BUSY_LOAD = 0.5
"""Load average per core above which other work disturbs the clock."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at: whether it is as it should be, what was found, and what to change where it is not."""

    name: str
    good: bool
    found: str
    advice: str = ""


def self_test(device: str = "cpu") -> list[Finding]:
    """Bytes and operations of a small workload against their closed form; they must agree to the last digit."""
    return [
        Finding(name, expected == measured, f"{measured}", "" if expected == measured else f"must be {expected}")
        for name, expected, measured in run_selftest(device)
    ]


SPEED_HEADINGS = ("kernel or step", "type", "T", "neurons", "time", "least bytes", "GB/s", "of a copy")
"""Columns of `speed_rows`."""


def measure_speeds(device: str, sizes: Sequence[tuple[int, int]], path: Path) -> list[tuple[str, ...]]:
    """Times every fused kernel, and whole steps of layers, at each size in float32 and bfloat16; writes a JSON file.

    Args:
        device: "cuda", or "cpu" for a rehearsal.
        sizes: T and neurons.
        path: of the file: a list of kernels and one of steps, in bytes and seconds.
    Returns:
        Rows of a table with `SPEED_HEADINGS`.
    """
    kernels, steps = list[KernelSpeed](), list[StepSpeed]()
    for dtype in (torch.float32, torch.bfloat16):
        for length, neurons in sizes:
            kernels += kernel_speeds(device, dtype, length, neurons)
            steps += step_speeds(device, dtype, length, neurons)
    about = {"device": gpu_name() if device == "cuda" else "cpu", "torch": torch.__version__}
    content = {**about, "kernels": [asdict(each) for each in kernels], "steps": [asdict(each) for each in steps]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    copies = {(each.dtype, each.steps, each.neurons): each.rate for each in kernels if each.name == "copy"}
    rows = list[tuple[str, ...]]()
    for each in kernels:
        share = each.rate / copies[each.dtype, each.steps, each.neurons]
        rows.append(
            (each.name, each.dtype, str(each.steps), f"{each.neurons:,}", units.seconds(each.time_s),
             units.size(each.nbytes), f"{each.rate / 1e9:,.0f}", units.percent(share))
        )  # fmt: skip
    for step in steps:
        how = "" if step.in_graph or device != "cuda" else ", with its launches"
        rows.append(
            (f"step of {step.node}{how}", step.dtype, str(step.steps), f"{step.neurons:,}", units.seconds(step.time_s),
             units.ABSENT, units.ABSENT, f"{step.copies:.2f} copies")
        )  # fmt: skip
    return rows


def machine() -> Iterator[Finding]:
    """What on this machine would disturb a measurement, and how to change it."""
    available, threads = cores(), torch.get_num_threads()
    yield Finding(
        "threads", threads <= available, f"{threads} on {available} cores",
        f"more threads than cores wait for each other: pass --threads {available}",
    )  # fmt: skip
    load = psutil.getloadavg()[0]
    yield Finding(
        "load", load / available < BUSY_LOAD, f"{load:.1f} over the last minute",
        "other work holds the processor: stop it, or trust bytes and FLOPs but not times",
    )  # fmt: skip
    free = psutil.virtual_memory().available
    yield Finding("free memory", free > 2**30, f"{free / 2**30:.1f} GiB", "below 1 GiB, cases end as oom or swap")
    swapped = psutil.swap_memory().used
    yield Finding("swap in use", swapped < 2**28, f"{swapped / 2**20:.0f} MiB", "swapping distorts times: free memory")
    libc = platform.libc_ver()[0]
    yield Finding(
        "C library", libc == "glibc", libc or "unknown",
        "process_peak_bytes is comparable with tensor bytes under glibc only, whose mmap threshold workers set",
    )  # fmt: skip
    yield from _gpu()


def _gpu() -> Iterator[Finding]:
    name = gpu_name()
    if name is None:
        yield Finding("GPU", True, "none visible: device cuda is skipped")
        return
    yield Finding(
        "GPU", torch.cuda.is_available(), f"{name}, driver {driver_version()}",
        "this torch cannot use it: install a CUDA build of torch",
    )  # fmt: skip
    for field, value in (gpu_reading() or {}).items():
        yield Finding(f"GPU {field}", True, str(value))
