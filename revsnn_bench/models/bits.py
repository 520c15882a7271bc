"""Binary tensors at one bit per element."""

from dataclasses import dataclass

import torch
from torch import Tensor

BITS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Packed:
    """A binary tensor in bits.

    Args:
        bits: eight elements per byte, `[ceil(n / 8)]`.
        shape, dtype: of the tensor.
    """

    bits: Tensor
    shape: torch.Size
    dtype: torch.dtype


def pack_bits(x: Tensor) -> Packed | None:
    """A tensor of zeros and ones in bits; None where any element is another number, NaN included."""
    if not bool(((x == 0) | (x == 1)).all()):
        return None
    ones = (x != 0).flatten()
    padded = torch.nn.functional.pad(ones, (0, -ones.numel() % 8)).view(-1, 8)
    weights = torch.tensor(BITS, dtype=torch.uint8, device=x.device)
    return Packed((padded * weights).sum(1, dtype=torch.uint8), x.shape, x.dtype)


def unpack_bits(packed: Packed) -> Tensor:
    """The tensor that was packed, contiguous."""
    weights = torch.tensor(BITS, dtype=torch.uint8, device=packed.bits.device)
    ones = (packed.bits.unsqueeze(1) & weights) != 0
    return ones.flatten()[: packed.shape.numel()].view(packed.shape).to(packed.dtype)
