"""Where a run takes place: the fingerprint in its header, and the conditions around each case."""

import os
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from revsnn_bench.records import Conditions, Environment
from revsnn_bench.system import gpu

PACKAGES = ("torch", "numpy", "fvcore", "numba", "triton", "spikingjelly", "pytest-benchmark")
"""Packages whose version may explain a changed number; only those that are installed are recorded."""

_ALLOCATOR_VARIABLES = (
    "MALLOC_",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
)
_EXACT_FIELDS = ("torch", "threads", "deterministic")
_FIELDS_WITH_A_GPU = ("cuda", "gpu")

_CHECKOUT = Path(__file__).resolve().parents[2]


def fingerprint() -> Environment:
    """Describes this process, its machine and the code that runs; holds no absolute path.

    Call it in a worker (`Runner.environment()`): threads and allocator settings are those of the process that
    asks.
    """
    import torch  # not at the top: reading a run and checking a command line need no torch

    commit, dirty = _commit()
    return Environment(
        torch=torch.__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu_model=_cpu_model(),
        cores=_cores(),
        threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        package=_version("revsnn-bench") or "not installed",
        commit=commit,
        committed_at=None if commit is None else _git(_CHECKOUT, "show", "-s", "--format=%cI", commit),
        dirty=dirty,
        packages={name: version for name in PACKAGES if (version := _version(name))},
        cuda=torch.version.cuda,
        driver=gpu.driver_version(),
        gpu=gpu.gpu_name(),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        malloc=_allocator_settings(),
    )


def incomparable_fields(a: Environment, b: Environment) -> list[tuple[str, Any, Any]]:
    """Fields that must agree before exact bytes and FLOPs of two runs are compared, and do not.

    * `torch`: kernels and their temporaries change between versions and builds.
    * `platform`: operating system and processor architecture, not the kernel's release; oneDNN's scratch
      memory on another architecture is another number.
    * `threads`: a parallel reduction allocates one partial result per thread (`sum` over float32: 4 bytes per
      thread, none with one thread). Runs that are to be compared fix their thread count
      (`Runner(threads=...)`).
    * `deterministic`: deterministic kernels use other temporaries.
    * `cuda`, `gpu`: workspaces of cuDNN and cuBLAS depend on both. Only where both runs saw a GPU: without
      one in common they have no CUDA case in common either, and bytes of CPU cases do not depend on it.

    Everything else may differ: CPU model, cores, memory, driver, Python, commit. The gate must say the same
    on every machine of one kind, and a changed commit is what it is there to judge.

    Returns:
        (field, value in `a`, value in `b`), empty when the runs are comparable.
    """
    return list(_differences(a, b))


def _differences(a: Environment, b: Environment) -> Iterator[tuple[str, Any, Any]]:
    if _system(a) != _system(b):
        yield "platform", a.platform, b.platform
    both_saw_a_gpu = a.gpu is not None and b.gpu is not None
    for field in _EXACT_FIELDS + (_FIELDS_WITH_A_GPU if both_saw_a_gpu else ()):
        if getattr(a, field) != getattr(b, field):
            yield field, getattr(a, field), getattr(b, field)


def _system(environment: Environment) -> tuple[str, str]:
    words = environment.platform.split()
    return words[0], words[-1]


class Reading(NamedTuple):
    """Conditions at one moment: load average over one minute, and the GPU where there is one."""

    load: float
    gpu: dict[str, Any] | None


def read_conditions() -> Reading:
    """Reads load, and clocks, temperature and throttle reasons of the GPU; about 1 ms without one."""
    return Reading(load=os.getloadavg()[0], gpu=gpu.gpu_reading())


def conditions(before: Reading, after: Reading | None = None) -> Conditions:
    """Conditions around a case, from a reading before it and one after it (default: read now)."""
    after = read_conditions() if after is None else after
    return Conditions(load_before=before.load, load_after=after.load, gpu_before=before.gpu, gpu_after=after.gpu)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """The processor's name; `platform.processor()` is empty on most Linux systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cores() -> int:
    """Cores that this process may use, which a container or `taskset` can make fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _allocator_settings() -> dict[str, str]:
    """Variables that steer an allocator; libraries in LD_PRELOAD by name, without their folder."""
    settings = {name: value for name, value in os.environ.items() if name.startswith(_ALLOCATOR_VARIABLES)}
    if "LD_PRELOAD" in settings:
        libraries = settings["LD_PRELOAD"].replace(":", " ").split()
        settings["LD_PRELOAD"] = " ".join(Path(library).name for library in libraries)
    return dict(sorted(settings.items()))


def _commit() -> tuple[str | None, bool | None]:
    """Commit of the checkout that this package runs from, and whether its code differs from it.

    An installed package has none, also when it lies inside some other repository. Results and reports do not
    make a checkout dirty: the journal of the very run is one of them.
    """
    top = _git(_CHECKOUT, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != _CHECKOUT:
        return None, None
    changes = _git(_CHECKOUT, "status", "--porcelain", "--", ".", ":(exclude)results", ":(exclude)reports")
    return _git(_CHECKOUT, "rev-parse", "HEAD"), None if changes is None else bool(changes)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
