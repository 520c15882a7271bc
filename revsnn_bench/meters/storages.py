"""Storages as what memory is made of: two views of one storage are counted once."""

from collections.abc import Iterable

import torch
from torch import Tensor


def storage_of(tensor: Tensor) -> torch.UntypedStorage:
    """The storage of a strided tensor; equal storages have equal `_cdata`."""
    return tensor.untyped_storage()


def unique_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind `tensors`."""
    return sum({storage._cdata: storage.nbytes() for storage in map(storage_of, tensors)}.values())


def own_bytes(tensor: Tensor) -> int:
    """Bytes of the tensor's elements; never more than its storage, which a view may share with others."""
    return min(tensor.numel() * tensor.element_size(), storage_of(tensor).nbytes())
