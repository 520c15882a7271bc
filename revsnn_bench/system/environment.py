"""Where a run takes place: the fingerprint in its header, conditions around each case, and what would disturb it."""

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module, metadata
from operator import attrgetter
from pathlib import Path
from typing import Any

import psutil

from revsnn_bench.records import Conditions, Environment
from revsnn_bench.system import gpu

PACKAGES = (
    "torch",
    "numpy",
    "fvcore",
    "numba",
    "triton",
    "spikingjelly",
    "snntorch",
    "norse",
    "sinabs",
    "pytest-benchmark",
)
"""Packages whose version may explain a changed number; only those that are installed are recorded."""

_ALLOCATOR_VARIABLES = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_CHECKOUT = Path(__file__).resolve().parents[2]


def fingerprint(modules: Sequence[str] = ()) -> Environment:
    """Describes this process, its machine and the code that runs; holds no absolute path.

    Call it in a worker (`Runner.environment()`): threads and allocator settings are those of the process that asks.

    Args:
        modules: those of the user's models and nodes, which are imported for the digest `sources`; one that cannot be
            is left to its cases, which say why. Packages that have them are among `packages`.
    """
    import torch  # not at the top: reading a run and checking a command line need no torch

    commit, dirty, committed_at = _commit()
    sources = _sources(modules)  # first, for what a module sets as it is imported, such as threads
    return Environment(
        torch=torch.__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu_model=f"{_cpu_model()} ({torch.backends.cpu.get_cpu_capability()})",  # a virtual one has its host's name
        cores=cores(),
        threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        package=_version("revsnn-bench") or "not installed",
        commit=commit,
        committed_at=committed_at,
        dirty=dirty,
        sources=sources,
        packages={name: version for name in (*PACKAGES, *_packages_of(modules)) if (version := _version(name))},
        cuda=torch.version.cuda,
        driver=gpu.driver_version(),
        gpu=gpu.gpu_name(),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        malloc=_allocator_settings(),
    )


def search_working_folder() -> None:
    """Has modules of the user found in the working folder, which a console script does not search."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def incomparable_fields(a: Environment, b: Environment) -> list[tuple[str, Any, Any]]:
    """Fields that must agree before exact bytes and FLOPs of two runs are compared, and do not.

    * `torch`, `deterministic`: kernels and their temporaries change between versions and builds, and with the switch.
    * `platform`: operating system and processor architecture, not the kernel's release; oneDNN's scratch differs.
    * `threads`: a parallel reduction allocates one partial result per thread. Runs that are to be compared fix their
      thread count (`Runner(threads=...)`).
    * `cuda`, `gpu`: workspaces of cuDNN and cuBLAS depend on both. Only where both runs saw a GPU: without one in
      common they have no CUDA case in common either, and bytes of CPU cases do not depend on it.

    Everything else may differ: CPU model, cores, memory, driver, Python, commit. The gate must say the same on every
    machine of one kind, and a changed commit is what it is there to judge.

    Returns:
        (field, value in `a`, value in `b`), empty when the runs are comparable.
    """
    both_saw_a_gpu = a.gpu is not None and b.gpu is not None
    fields = ("torch", "threads", "deterministic", *(("cuda", "gpu") if both_saw_a_gpu else ()))
    found = [("platform", a.platform, b.platform)] if _system(a) != _system(b) else []
    return found + _differing(fields, a, b)


def code_differences(a: Environment, b: Environment) -> list[tuple[str, Any, Any]]:
    """The fields of the code that ran which differ, as `incomparable_fields` returns them."""
    return _differing(("package", "commit", "dirty"), a, b)


def place_differences(a: Environment, b: Environment) -> list[tuple[str, Any, Any]]:
    """Fields of place and code that differ, so that one run cannot have both."""
    return [*incomparable_fields(a, b), *code_differences(a, b), *_differing(("sources",), a, b)]


def machine_differences(a: Environment, b: Environment) -> list[tuple[str, Any, Any]]:
    """What else times depend on and differs, so that one run on one machine cannot have both."""
    found = _differing(("cpu_model", "cores", "python"), a, b)
    for table in ("packages", "malloc"):
        old, new = getattr(a, table), getattr(b, table)
        found += [(f"{table}.{name}", old.get(name), new.get(name)) for name in sorted({*old, *new})]
    return [each for each in found if each[1] != each[2]]


def _differing(fields: Sequence[str], a: Environment, b: Environment) -> list[tuple[str, Any, Any]]:
    return [(name, old, new) for name in fields if (old := getattr(a, name)) != (new := getattr(b, name))]


def _system(environment: Environment) -> tuple[str, str]:
    words = environment.platform.split() or [""]
    return words[0], words[-1]


def read_conditions() -> Conditions:
    """Those before a case: load over one minute, and clocks, temperature and throttle reasons of the GPU, if any."""
    return Conditions(load_before=os.getloadavg()[0], gpu_before=gpu.gpu_reading())


def conditions(before: Conditions) -> Conditions:
    """Conditions around a case, from what was read before it and what there is now."""
    return before.model_copy(update={"load_after": os.getloadavg()[0], "gpu_after": gpu.gpu_reading()})


_SWITCHES = {
    "number of threads": ("get_num_threads", "set_num_threads"),
    "default dtype": ("get_default_dtype", "set_default_dtype"),
    "grad mode": ("is_grad_enabled", "set_grad_enabled"),
    "deterministic algorithms": ("are_deterministic_algorithms_enabled", "use_deterministic_algorithms"),
    "anomaly detection": ("is_anomaly_enabled", "autograd.set_detect_anomaly"),
    "precision of products": ("get_float32_matmul_precision", "set_float32_matmul_precision"),
    "oneDNN": ("_C._get_mkldnn_enabled", "_C._set_mkldnn_enabled"),
}
"""Torch's settings of the whole process that decide what a measurement means: functions that read and write them."""


def read_switches() -> dict[str, Any]:
    """The values of `_SWITCHES`."""
    import torch

    return {name: attrgetter(read)(torch)() for name, (read, _) in _SWITCHES.items()}


def restore_switches(before: dict[str, Any]) -> str:
    """Puts back what `read_switches` read; says what had changed, "" where nothing had."""
    import torch

    changed = {name: now for name, now in read_switches().items() if now != before[name]}
    for name in changed:
        attrgetter(_SWITCHES[name][1])(torch)(before[name])
    return " and ".join(f"{name} from {before[name]} to {now}" for name, now in changed.items())


def _packages_of(modules: Sequence[str]) -> list[str]:
    """The installed packages, other than this one, that have modules."""
    known = metadata.packages_distributions() if modules else {}
    found = {package for name in modules for package in known.get(name.partition(".")[0], ())}
    return sorted(found - {"revsnn-bench"})


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """The processor's name; `platform.processor()` is empty on most Linux systems."""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"^model name[^:]*:(.*)$", text, re.MULTILINE):
            return found[1].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
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


def _commit() -> tuple[str | None, bool | None, str | None]:
    """Commit of the checkout that this package runs from, whether its code differs from it, and when it was made.

    An installed package has that of the clone in the working folder, where each of its files is the same there; else
    none, also when it lies inside some other repository. Results and reports do not make a checkout dirty: the journal
    of the very run is one of them.
    """
    for checkout in (_CHECKOUT, Path.cwd()):
        top = _git(checkout, "rev-parse", "--show-toplevel")
        is_top = top is not None and Path(top).resolve() == checkout.resolve()
        if is_top and (checkout == _CHECKOUT or _is_built_from(checkout)):
            break
    else:
        return None, None, None
    changes = _git(checkout, "status", "--porcelain", "--", ".", ":(exclude)results", ":(exclude)reports")
    commit = _git(checkout, "rev-parse", "HEAD")
    committed_at = None if commit is None else _git(checkout, "show", "-s", "--format=%cI", commit)
    return commit, None if changes is None else bool(changes), committed_at


_BUILT_FROM = {"revsnn_bench/suites": "suites", "revsnn_bench": "revsnn_bench", "revsnn_nodes": "nodes/revsnn_nodes"}
"""Folders of a clone by what the wheel calls them, the first that fits a file counts."""


def _is_built_from(root: Path) -> bool:
    """Whether every source file of the installed packages is, byte for byte, that of a clone."""
    found = [path for package in ("revsnn_bench", "revsnn_nodes") for path in (_CHECKOUT / package).rglob("*.py")]
    try:
        for path in found:
            folder = next(each for each in _BUILT_FROM if path.is_relative_to(_CHECKOUT / each))
            source = root / _BUILT_FROM[folder] / path.relative_to(_CHECKOUT / folder)
            if path.read_bytes() != source.read_bytes():
                return False
    except OSError:
        return False
    return bool(found)


def _sources(modules: Sequence[str]) -> str | None:
    """A digest of this program, and of these modules and what lies beside them and is loaded, but for what is installed
    as a package."""
    if modules:
        search_working_folder()
    for name in modules:
        with suppress(BaseException):
            import_module(name)
    files_of = ((name, getattr(module, "__file__", None)) for name, module in [*sys.modules.items()])
    loaded = {name: Path(file) for name, file in files_of if isinstance(file, str)}
    tops = [loaded[top] for top in {name.partition(".")[0] for name in modules} if top in loaded]
    roots = [top.parents[top.name == "__init__.py"] for top in tops]
    files = {name: path for name, path in loaded.items() if any(map(path.is_relative_to, roots))}
    for package in ("revsnn_bench", "revsnn_nodes"):
        folder = loaded[package].parent if package in loaded else _CHECKOUT / package
        files |= {f"{package}/{path.relative_to(folder)}": path for path in folder.rglob("*.py")}
    digest, found = hashlib.sha256(), False
    for name, path in sorted(files.items()):
        if path.suffix == ".py" and not {"site-packages", "dist-packages"} & {*path.parts}:
            with suppress(OSError):
                digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
                found = True
    return digest.hexdigest()[:16] if found else None


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


BUSY_LOAD = 0.5
"""Load average per core above which other work disturbs the clock."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at: whether it is as it should be, what was found, and what to change where it is not."""

    name: str
    good: bool
    found: str
    advice: str = ""


def machine() -> Iterator[Finding]:
    """What on this machine would disturb a measurement, and how to change it; what there is of a GPU."""
    import torch

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
    name = gpu.gpu_name()
    if name is None:
        yield Finding("GPU", True, "none visible: device cuda is skipped")
        return
    yield Finding(
        "GPU", torch.cuda.is_available(), f"{name}, driver {gpu.driver_version()}",
        "this torch cannot use it: install a CUDA build of torch",
    )  # fmt: skip
    for field, value in (gpu.gpu_reading() or {}).items():
        yield Finding(f"GPU {field}", True, str(value))
