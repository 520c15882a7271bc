"""Scikit-learn's handwritten digits: 1,797 real 8x8 images that ship with the package."""

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate

SIDE = 8
"""Height and width of a digit as it ships."""


class Split(NamedTuple):
    """Images `[n, channels, height, width]` in [0, 1] and labels `[n]`, for training and for testing."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits(test_share: float = 0.2, seed: int = 0, size: int = SIDE, channels: int = 1) -> Split:
    """The digits, shuffled by `seed` and split once; the same on every machine.

    Args:
        test_share: share of the images that is held out.
        seed: of the shuffle.
        size: height and width to enlarge the images to.
        channels: how often to repeat the one channel, for networks that take colour.
    Raises:
        ValueError: a size below 8.
    """
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16.0
    labels = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    images, labels = upsampled(images[order], size).expand(-1, channels, -1, -1), labels[order]
    first = round(len(labels) * test_share)
    return Split(images[first:], labels[first:], images[:first], labels[:first])


def upsampled(images: Tensor, size: int) -> Tensor:
    """Images `[n, c, h, w]` enlarged to `[n, c, size, size]`, bilinear; as they are where the size is theirs.

    Raises:
        ValueError: a size below theirs.
    """
    if size < images.shape[-1]:
        raise ValueError(
            f"`size` must be at least {images.shape[-1]}, the image's own; got {size}. Digits are enlarged, never "
            "reduced. Pass for example 32."
        )
    if size == images.shape[-1]:
        return images
    return interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def pixel_sequences(images: Tensor) -> Tensor:
    """Images `[n, 1, h, w]` as sequences of one pixel per step, row by row: `[h w, n, 1]`; digits give 64 steps."""
    return images.flatten(1).t().unsqueeze(-1).contiguous()
