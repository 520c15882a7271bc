"""Scikit-learn's handwritten digits: 1,797 real 8x8 images that ship with the package."""

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor


class Split(NamedTuple):
    """Images `[n, 1, 8, 8]` in [0, 1] and labels `[n]`, for training and for testing."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits(test_share: float = 0.2, seed: int = 0) -> Split:
    """The digits, shuffled by `seed` and split once; the same on every machine."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16.0
    labels = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    images, labels = images[order], labels[order]
    first = round(len(labels) * test_share)
    return Split(images[first:], labels[first:], images[:first], labels[:first])


def direct_encoding(images: Tensor, timesteps: int) -> Tensor:
    """The same image at every step, `[T, n, *]`, as a view; the first layer turns it into spikes."""
    return images.unsqueeze(0).expand(timesteps, *images.shape)
