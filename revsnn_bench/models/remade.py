"""Saved tensors that the backward pass makes again, from another tensor that autograd keeps anyway."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import record_function


class _Kept:
    """A tensor as it was saved: hooks bypass autograd's check for changes in place, so that it is made here."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, tensor._version

    def unpack(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                "A tensor needed for gradient computation has been modified inplace: "
                f"{self.tensor.dtype} {tuple(self.tensor.shape)} is at version {self.tensor._version}; expected "
                f"version {self.version}. The backward pass reads it. Change a copy."
            )
        return self.tensor


class _Remade:
    """In place of a tensor: what it was made of, and how."""

    def __init__(self, source: Tensor, make: Callable[[Tensor], Tensor], shape: torch.Size) -> None:
        self.source, self.make, self.shape = _Kept(source), make, shape

    def unpack(self) -> Tensor:
        with record_function("recompute"), torch.no_grad():
            return self.make(self.source.unpack()).view(self.shape)


def made_again(made: Tensor, source: Tensor, make: Callable[[Tensor], Tensor]) -> saved_tensors_hooks:
    """Operations under this context do not keep `made`: their backward passes call `make(source)` again.

    Args:
        made: what those operations read, contiguous.
        source: what it was made of; the operation that made it keeps this for its own backward pass, so that it costs
            nothing here.
        make: gives the bits of `made`, and has no other effect.
    """
    source = source.detach()
    # Autograd keeps this function, too, and with it whatever it refers to: not the tensor itself.
    address, numel = made.data_ptr(), made.numel()

    def pack(tensor: Tensor) -> Any:
        same = tensor.data_ptr() == address and tensor.numel() == numel
        return _Remade(source, make, tensor.shape) if same else _Kept(tensor)

    return saved_tensors_hooks(pack, lambda packed: packed.unpack())
