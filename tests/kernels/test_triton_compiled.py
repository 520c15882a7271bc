"""Triton kernels compiled for NVIDIA GPUs, which needs none: what the machine code does with memory and registers."""

import kernels_triton
import pytest
import torch
from kernels_triton import compile_for
from revsnn_nodes.kernels.layout import FORMS, numbers
from revsnn_nodes.parameters import CarrierParameters, CoupledParameters

pytest.importorskip("triton", reason="the Triton kernels need triton")


@pytest.fixture(scope="module")
def pool():
    with kernels_triton.child(TRITON_INTERPRET="0") as pool:
        yield pool


@pytest.fixture
def compiled(pool):
    return lambda *arguments: pool.submit(compile_for, *arguments).result()


def operator(name, steps, dtype, features=512):
    """Arguments of an operator on four samples."""
    x = torch.zeros(steps, 4, features, dtype=dtype)
    v, p = x[0], numbers(CarrierParameters(), 4.0, 4.0)
    q = numbers(CoupledParameters(), 4.0, 4.0)
    norm = (*torch.zeros(4, 8, dtype=dtype), x)
    return {
        "lif_forward": (x, v, None, p, True, False, True),
        "lif_backward": (x, x, v, None, None, p, 0, True, False, False, True, False),
        "norm_lif_forward": (x, v, *norm, p, 64, 0, True, False),
        "norm_lif_backward": (x, v, *norm, x, v, p, 0, 64, 0, True, False, False, True),
        "carrier_forward": (x, v, p, True, False),
        "carrier_backward": (x, v, x, v, p, 0, False, False, True),
        "coupled_forward": (x, v, q, True, False, False, 2, -1, steps),
        "inverse_backward": (x, v, x, v, q, 0, False, False, 2, -1, True),
        "anchored_backward": (x, v, x[:0], x, v, q, 0, True, False, False, False, 2, -1, steps, True),
    }[name]


def test_every_operator_on_cuda_has_a_kernel(pool):
    """And every kernel its operator."""
    kernels, operators = pool.submit(kernels_triton.kernels_and_operators).result()
    assert kernels == operators != set()


@pytest.mark.parametrize(("name", "steps"), [
    ("lif_forward", 16), ("lif_backward", 16), ("carrier_forward", 16), ("carrier_backward", 4),
    ("coupled_forward", 16), ("inverse_backward", 16), ("anchored_backward", 2),
])  # fmt: skip
def test_reads_and_writes_sixteen_bytes_and_spills_nothing(compiled, name, steps):
    """In float32 for sm_90: four columns per thread give wide accesses alone; the widest that are tried
    do not spill; loops read ahead asynchronously; no multiply-add changes a forward's rounding."""
    facts = compiled(90, name, *operator(name, steps, torch.float32))
    wide = [each for each in facts if each["per_thread"] >= 4]
    assert wide
    assert all(each["wide_accesses"] == each["accesses"] > 0 for each in wide)
    assert all(each["spilled_bytes"] == 0 for each in facts)
    assert all(each["multiply_adds"] == 0 for each in facts) or name.endswith("_backward")
    assert any(each["asynchronous"] for each in facts) or name in ("carrier_backward", "anchored_backward")


@pytest.mark.parametrize(("name", "steps"), [("norm_lif_forward", 16), ("norm_lif_backward", 4)])
def test_norm_reads_four_numbers_of_a_channel_alone(compiled, name, steps):
    """Each column loads its channel's, once; sequences are read and written sixteen bytes at a time; nothing spills.

    Forward has two multiply-adds per column, for the shift and the input, and no more.
    """
    for each in compiled(90, name, *operator(name, steps, torch.float32)):
        if each["per_thread"] >= 4:
            assert each["accesses"] - each["wide_accesses"] == 4 * each["per_thread"]
        assert each["spilled_bytes"] == 0
        assert name == "norm_lif_backward" or each["multiply_adds"] == 2 * each["per_thread"]


@pytest.mark.parametrize(("name", "dtype"), [
    ("norm_lif_backward", torch.float64), ("norm_lif_backward", torch.bfloat16), ("lif_backward", torch.float64),
    ("carrier_backward", torch.bfloat16), ("anchored_backward", torch.float64),
], ids=["norm-float64", "norm-bfloat16", "lif-float64", "carrier-bfloat16", "anchored-float64"])  # fmt: skip
def test_other_precisions_compile_for_ampere(compiled, name, dtype):
    """Float64 and bfloat16, odd sizes, for sm_80: it compiles, and with one column to a thread spills nothing."""
    facts = compiled(80, name, *operator(name, 4, dtype, features=514))
    assert all(each["spilled_bytes"] == 0 for each in facts if each["per_thread"] == 1)


def test_longest_pieces_fit_the_registers(compiled):
    """Sixteen steps, whose outputs, gradients and charges a thread holds all at once, do not spill."""
    facts = compiled(90, "carrier_backward", *operator("carrier_backward", 16, torch.float32))
    assert {each["per_thread"] for each in facts} == {1}
    assert all(each["spilled_bytes"] == 0 for each in facts)


@pytest.mark.parametrize("name", [
    "lif_forward", "lif_backward", "norm_lif_forward", "carrier_forward", "coupled_forward", "inverse_backward",
])  # fmt: skip
def test_code_is_the_same_for_every_length(compiled, name):
    """Nothing is unrolled over T, nor compiled again for another."""
    short, long = (compiled(90, name, *operator(name, steps, torch.float32)) for steps in (5, 48))
    assert [each["code"] for each in short] == [each["code"] for each in long]


@pytest.mark.parametrize(("name", "most"), [
    ("lif_forward", 64), ("lif_backward", 64), ("norm_lif_forward", 64), ("carrier_forward", 64),
    ("coupled_forward", 96), ("inverse_backward", 96), ("carrier_backward", 128), ("norm_lif_backward", 128),
    ("anchored_backward", 168),
])  # fmt: skip
def test_registers_leave_room_for_enough_warps(compiled, name, most):
    """Of 65,536 registers per processor: 32 warps at 64, 12 at 168. Sixteen steps, float32, for sm_90."""
    for each in compiled(90, name, *operator(name, 16, torch.float32)):
        assert each["registers"] <= most


@pytest.mark.parametrize(("form", "each_column"), [(0, 2), (1, 1), (2, 1), (3, 1)], ids=FORMS)
def test_every_rounding_of_the_norm(compiled, form, each_column):
    """Of `layout.FORMS`, the first has multiply-adds for shift and input, the others for the input alone."""
    *before, _, decay, soft = operator("norm_lif_forward", 16, torch.float32)
    for each in compiled(90, "norm_lif_forward", *before, form, decay, soft):
        assert each["multiply_adds"] == each_column * each["per_thread"]
        assert each["spilled_bytes"] == 0
