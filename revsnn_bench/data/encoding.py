"""From images to sequences: the same image at every step, or random spikes at a rate of its brightness."""

import torch
from torch import Tensor


def direct_encoding(images: Tensor, timesteps: int) -> Tensor:
    """The same image at every step, `[T, n, *]`, as a view; the first layer turns it into spikes."""
    return images.unsqueeze(0).expand(timesteps, *images.shape)


def poisson_encoding(images: Tensor, timesteps: int, seed: int = 0) -> Tensor:
    """Independent spikes at every step, each with the pixel's brightness as its probability.

    Args:
        images: brightness in [0, 1], `[n, *]`.
        timesteps: T.
        seed: of the spikes; the same on every machine and device.
    Returns:
        Zeros and ones, `[T, n, *]`, dtype and device of the images.
    Raises:
        ValueError: brightness outside of [0, 1].
    """
    low, high = images.aminmax()
    if not bool((low >= 0) & (high <= 1)):
        raise ValueError(
            f"`images` must lie in [0, 1]; got values from {low.item():g} to {high.item():g}. A pixel is the "
            "probability of a spike. Encode before normalising, or rescale."
        )
    generator = torch.Generator().manual_seed(seed)
    # Drawn in float32 on the CPU, so that dtype and device change no spike.
    numbers = torch.rand(timesteps, *images.shape, generator=generator)
    return (numbers < images.float().cpu()).to(images)
