"""The cache of compiled kernels: shared by all copies of the package, and fresh where a source has changed."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import pytest
import revsnn_nodes
from revsnn_nodes.kernels.cpu import machine

RUN = """
import json, torch
from revsnn_nodes import StandardLIF
from revsnn_nodes.kernels.cpu import carrier, lif
StandardLIF(backend="fused")(torch.ones(2, 1, 4))
stats = lif.lif_forward.stats
counts = (sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
print(json.dumps([*counts, stats.cache_path, carrier.norm_gradient._cache._cache_file._source_stamp]))
"""


@pytest.fixture
def run(tmp_path):
    """Copies the package, changes files in it, and runs a fused LIF in a process of its own."""

    def in_copy(name: str, *changed: str) -> tuple[int, int, str, str]:
        copy = tmp_path / name / "revsnn_nodes"
        shutil.copytree(Path(revsnn_nodes.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
        for file in changed:
            with (copy / "kernels" / "cpu" / file).open("a") as source:
                source.write("# a comment\n")
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(copy.parent)}
        command = [sys.executable, "-c", RUN]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        hits, misses, folder, stamp = json.loads(done.stdout)
        return hits, misses, folder, stamp

    return in_copy


def test_copies_share_what_is_compiled_until_a_source_changes(run, tmp_path):
    """In NUMBA_CACHE_DIR: another folder compiles nothing, nor does a change of a file that the kernel does not use."""
    hits, misses, folder, stamp = run("first")
    assert (hits, misses) == (0, 1)
    assert Path(folder).is_relative_to(tmp_path / "cache")
    hits, misses, _, other = run("carrier_changed", "carrier.py")
    assert (hits, misses) == (1, 0)
    assert other != stamp
    hits, misses, _, other = run("equations_changed", "equations.py")
    assert (hits, misses) == (0, 1)
    assert other != stamp


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """Compiles a small kernel as another process would, or finds it: hits, misses, and the folder of the cache."""
    (tmp_path / "tiny.py").write_text("def add(a, b):\n    return a + b\n")
    monkeypatch.setattr(machine, "_PACKAGE", tmp_path)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))

    def once():
        spec = importlib.util.spec_from_file_location("tiny", tmp_path / "tiny.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "tiny", module)
        spec.loader.exec_module(module)
        kernel = machine.exact_kernel(module.add)
        assert kernel(1.0, 2.0) == 3.0
        return sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values()), kernel.stats.cache_path

    return once


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_a_damaged_file_is_compiled_over(compiled, suffix):
    """Its index or the kernel, cut short, as where a disk was full, is as none; what is written over it is found."""
    hits, misses, folder = compiled()
    assert (hits, misses) == (0, 1)
    (file,) = Path(folder).glob(f"*.{suffix}")
    file.write_bytes(file.read_bytes()[:50])
    assert compiled()[:2] == (0, 1)
    assert compiled()[:2] == (1, 0)


def test_what_cannot_be_kept_is_compiled_all_the_same(compiled):
    """A folder in which no file can be made, for a folder of its name is there."""
    *_, folder = compiled()
    for file in Path(folder).iterdir():
        file.unlink()
        file.mkdir()
    assert compiled()[:2] == (0, 1)


def test_sources_of_a_kernel_are_what_its_file_imports():
    """Directly or through others, from this package."""
    folder = Path(machine.__file__).resolve().parent
    names = {path.relative_to(folder.parent).as_posix() for path in machine.sources(folder / "carrier.py")}
    assert names == {"cpu/carrier.py", "cpu/equations.py", "cpu/machine.py", "layout.py"}
