"""The cache of compiled kernels: shared by all copies of the package, and fresh where a source has changed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("kind", ["index", "kernel"])
def test_a_damaged_file_is_compiled_over(run, tmp_path, kind):
    """One that was cut short, as where a disk was full, is as none; the next process finds what was written over it."""
    run("first")
    suffix = {"index": "nbi", "kernel": "nbc"}[kind]
    for file in (tmp_path / "cache").rglob(f"lif.lif_forward-*.{suffix}"):
        file.write_bytes(file.read_bytes()[:100])
    hits, misses, *_ = run("second")
    assert (hits, misses) == (0, 1)
    hits, misses, *_ = run("third")
    assert (hits, misses) == (1, 0)


def test_what_cannot_be_kept_is_compiled_all_the_same(run, tmp_path):
    """A folder in which no file can be made, for a folder of its name is there."""
    *_, folder, _ = run("first")
    for file in Path(folder).glob("lif.lif_forward-*"):
        file.unlink()
        file.mkdir()
    hits, misses, *_ = run("second")
    assert (hits, misses) == (0, 1)


def test_sources_of_a_kernel_are_what_its_file_imports():
    """Directly or through others, from this package."""
    folder = Path(machine.__file__).resolve().parent
    names = {path.relative_to(folder.parent).as_posix() for path in machine.sources(folder / "carrier.py")}
    assert names == {"cpu/carrier.py", "cpu/equations.py", "cpu/machine.py", "layout.py"}
