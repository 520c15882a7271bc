"""What the network of a case reads: digits in its size, at every step, as spikes, or pixel by pixel."""

from math import isqrt

import torch
from torch import Tensor

from revsnn_bench.case import Case
from revsnn_bench.data.digits import SIDE, Split, digits, pixel_sequences
from revsnn_bench.data.encoding import direct_encoding, poisson_encoding


def shape_of(case: Case, rule: str, sizes: int) -> tuple[int, ...]:
    """The shape of a case, where it has as many sizes as its workload reads.

    Args:
        case: whose shape.
        rule: what the shape must be, for the error.
        sizes: how many.
    Raises:
        ValueError: another number of sizes.
    """
    if len(case.shape) != sizes:
        raise ValueError(
            f"`shape` must be {rule}; got {case.shape}. The workload {case.workload!r} reads it so. "
            "Pass it with --shape."
        )
    return case.shape


def digits_of(case: Case) -> Split:
    """Digits in the size that a case's network reads; for pixel sequences one pixel per time step.

    Raises:
        ValueError: a size below that of a digit, or a number of steps that is not that of a square's pixels.
    """
    if is_sequence(case):
        side = isqrt(case.timesteps)
        if side < SIDE or side * side != case.timesteps:
            raise ValueError(
                f"`timesteps` must be a square of at least {SIDE * SIDE}; got {case.timesteps}. Each step shows one "
                "pixel of a square image. Pass for example 64, 256 or 1024."
            )
        return digits(size=side)
    channels, height, width = shape_of(case, "channels, height and width, such as (3, 32, 32)", 3)
    if height != width or height < SIDE:
        raise ValueError(
            f"`shape` must be square with a side of {SIDE} or more; got {case.shape}. The network runs on digits, "
            "which are enlarged and never reduced. Pass for example (3, 32, 32)."
        )
    return digits(size=height, channels=channels)


def encoded(case: Case, images: Tensor, seed: int = 0) -> Tensor:
    """Images `[n, *]` as a case's network reads them, `[T, n, *]`, in its dtype and on its device.

    Args:
        case: its encoding, T and workload. A sequence shows one pixel per step.
        images: brightness; in [0, 1] for Poisson spikes.
        seed: of the spikes.
    """
    if is_sequence(case):
        x_seq = pixel_sequences(images)
    elif case.encoding == "poisson":
        x_seq = poisson_encoding(images, case.timesteps, seed)
    else:
        x_seq = direct_encoding(images, case.timesteps)
    return x_seq.to(getattr(torch, case.dtype)).to(case.device)


def is_sequence(case: Case) -> bool:
    """Whether the network reads an image pixel by pixel."""
    return case.workload.partition("@")[0] == "pixels"


def refuse_encoding(case: Case) -> None:
    """Refuses spikes where nothing is encoded.

    Raises:
        ValueError: an encoding other than `direct`.
    """
    if case.encoding != "direct":
        raise ValueError(
            f"`encoding` must be 'direct' in the workload {case.workload!r}; got {case.encoding!r}. It reads noise, or "
            "each pixel once, and encodes no image. Leave it out, or pass a network that reads whole images."
        )
