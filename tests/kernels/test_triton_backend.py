"""CUDA tensors choose the Triton kernels, or say why not. The tensors are fake: they need no GPU."""

import importlib.metadata

import pytest
import torch
from nodes_cases import make
from revsnn_nodes.kernels import support as triton_support
from revsnn_nodes.kernels.support import choose_backend
from torch._subclasses.fake_tensor import FakeTensorMode


@pytest.fixture(autouse=True)
def _triton_there(monkeypatch):
    monkeypatch.setitem(triton_support.INSTALLED, "triton", (3, 7))


def choice(node, dtype=torch.float32, features=24):
    """What a node chooses for a fake CUDA tensor, and why."""
    with FakeTensorMode():
        return choose_backend(node, torch.empty(4, 2, features, dtype=dtype, device="cuda"))


@pytest.mark.parametrize("dtype", triton_support.DTYPES, ids=str)
@pytest.mark.parametrize("name", ["lif", "lif-carrier", "revlif", "revlif-anchored"])
def test_cuda_tensors_choose_fused_in_every_precision(name, dtype):
    """All four precisions are taken."""
    assert choice(make(name, backend="fused"), dtype) == ("fused", "")


@pytest.mark.parametrize("name", ["lif", "lif-carrier"])
def test_operators_describe_cuda_results_without_running(name):
    """Shape, dtype and device of output and state, for tracing and memory prediction."""
    node = make(name, backend="auto")
    with FakeTensorMode(), torch.no_grad():
        y = node(torch.empty(4, 2, 24, dtype=torch.float16, device="cuda"))
    assert node.backend_in_use == "fused"
    assert (y.shape, y.dtype, y.device.type) == ((4, 2, 24), torch.float16, "cuda")
    assert (node.v.shape, node.v.device.type) == ((2, 24), "cuda")


def test_many_groups_fall_back():
    """Nine groups run on the reference, and say so."""
    reason = "the fused kernels for CUDA take up to 8 groups, not 9"
    assert choice(make("revlif", groups=9, backend="auto"), features=18) == ("torch", reason)


@pytest.mark.parametrize(("version", "reason"), [
    (None, "triton is not installed"), ((3, 3), r"need triton 3\.4 or above, not 3\.3"),
])  # fmt: skip
def test_triton_missing_or_old(monkeypatch, version, reason):
    """Without triton, or with one whose compiler does not take the kernels: fused is refused, auto falls back."""
    monkeypatch.setitem(triton_support.INSTALLED, "triton", version)
    with pytest.raises(ValueError, match=reason):
        choice(make("lif", backend="fused"))
    assert choice(make("lif", backend="auto"))[0] == "torch"


def test_version_is_read_from_the_installed_package(monkeypatch):
    """Major and minor of whatever suffix; None where there is no such package."""
    monkeypatch.undo()
    for text, numbers in (("3.7.1", (3, 7)), ("3.10.0+git1a2b", (3, 10)), ("3.4rc1", (3, 4))):
        with monkeypatch.context() as patch:
            patch.setattr(importlib.metadata, "version", lambda name, text=text: text)
            assert triton_support.installed_version("triton") == numbers

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", missing)
        assert triton_support.installed_version("triton") is None
