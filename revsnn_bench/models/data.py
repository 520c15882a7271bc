"""Data sets, and how their images become sequences.

Digits: scikit-learn's 1,797 handwritten 8x8 images, which ship with the package. CIFAR-10 and CIFAR-100: the official
binary archives, from a folder that the user names; nothing is downloaded and nothing is unpickled. Format and
checksums: https://www.cs.toronto.edu/~kriz/cifar.html. A record is one label byte (CIFAR-100: coarse label, then fine
label) and 3,072 pixel bytes, channel by channel, row by row.

Encodings: the same image at every step, random spikes at a rate of its brightness, or one pixel per step.
"""

import hashlib
import tarfile
from dataclasses import dataclass
from importlib.util import find_spec
from math import isqrt, prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from revsnn_bench.case import Case
from revsnn_bench.records import SkipCase

SIDE = 8
"""Height and width of a digit as it ships."""


class Split(NamedTuple):
    """Images `[n, channels, height, width]` in [0, 1] and labels `[n]`, for training and for testing."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits(size: int = SIDE, channels: int = 1) -> Split:
    """The digits, shuffled and split once, a fifth for testing; the same on every machine.

    Args:
        size: height and width to enlarge the images to; below 8 raises `ValueError`.
        channels: how often to repeat the one channel, for networks that take colour.
    """
    # What `sklearn.datasets.load_digits` reads. Importing scikit-learn takes two seconds; every run would wait.
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ImportError("The digits need scikit-learn, which is not installed: pip install scikit-learn.")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = torch.from_numpy(np.loadtxt(file, delimiter=","))
    images = rows[:, :-1].float().reshape(-1, 1, SIDE, SIDE) / 16.0
    labels = rows[:, -1].long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = upsampled(images[order], size).expand(-1, channels, -1, -1), labels[order]
    first = round(len(labels) * 0.2)
    return Split(images[first:], labels[first:], images[:first], labels[:first])


def upsampled(images: Tensor, size: int) -> Tensor:
    """Images `[n, c, h, w]` enlarged to `[n, c, size, size]`, bilinear, or as they are; `ValueError` if it is less."""
    if size < images.shape[-1]:
        raise ValueError(
            f"`size` must be at least {images.shape[-1]}, the image's own; got {size}. Digits are enlarged, never "
            "reduced. Pass for example 32."
        )
    if size == images.shape[-1]:
        return images
    return interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def pixel_sequences(images: Tensor, window: int = 1) -> Tensor:
    """Images `[n, 1, h, w]` as sequences of one more pixel per step, row by row: `[h w, n, window]`.

    A step shows the latest pixels, oldest first; those before the first are dark.
    """
    pixels = nn.functional.pad(images.flatten(1), (window - 1, 0))
    return pixels.unfold(1, window, 1).transpose(0, 1).contiguous()


IMAGE_SHAPE = (3, 32, 32)
IMAGE_BYTES = prod(IMAGE_SHAPE)


@dataclass(frozen=True)
class CifarFormat:
    """Where one of the data sets lies, and how its records are laid out.

    Args:
        md5: its published checksum; None to read an archive unchecked.
        label_bytes: labels per record; the last is the class.
        records: images per file, of training and test files.
    """

    name: str
    archive: str
    md5: str | None
    folder: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    label_bytes: int
    records: tuple[int, int]


CIFAR10 = CifarFormat(
    name="CIFAR-10",
    archive="cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    train_files=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test_files=("test_batch.bin",),
    label_bytes=1,
    records=(10_000, 10_000),
)
CIFAR100 = CifarFormat(
    name="CIFAR-100",
    archive="cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
    train_files=("train.bin",),
    test_files=("test.bin",),
    label_bytes=2,
    records=(50_000, 10_000),
)


def read_cifar(folder: str | Path, layout: CifarFormat = CIFAR10) -> Split:
    """Reads a data set from its archive, or from the folder that the archive unpacks to.

    Args:
        folder: holds the archive, or the unpacked folder, or is the unpacked folder.
    Returns:
        Images `[n, 3, 32, 32]` in [0, 1] and labels `[n]` (CIFAR-100: fine labels).
    Raises:
        FileNotFoundError: neither the archive nor its files are there.
        ValueError: an archive with another checksum, or a file of another size than the official one.
    """
    root = Path(folder).expanduser()
    names = (*layout.train_files, *layout.test_files)
    places = [each for each in (root / layout.folder, root) if all((each / name).is_file() for name in names)]
    if places:
        contents = {name: (places[0] / name).read_bytes() for name in names}
    else:
        contents = _unpacked(root / layout.archive, names, layout)
    train = _parsed(contents, layout.train_files, layout, layout.records[0])
    return Split(*train, *_parsed(contents, layout.test_files, layout, layout.records[1]))


def _unpacked(archive: Path, names: tuple[str, ...], layout: CifarFormat) -> dict[str, bytes]:
    if not archive.is_file():
        raise FileNotFoundError(
            f"`folder` must hold {layout.archive}, or the files {', '.join(names)}, in {layout.folder} or by "
            f"themselves; got {archive.parent}. {layout.name} is read from its official binary version, and nothing is "
            "downloaded. Get the archive from https://www.cs.toronto.edu/~kriz/cifar.html."
        )
    with archive.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if layout.md5 not in (None, found):
        raise ValueError(
            f"`{layout.archive}` must have the published MD5 {layout.md5}; got {found}. It is damaged, or another "
            "version. Get it again from https://www.cs.toronto.edu/~kriz/cifar.html."
        )
    contents = {}
    with tarfile.open(archive) as tar:
        for name in names:
            # Read in memory, member by member: no path of the archive ever touches the disk.
            member = tar.extractfile(f"{layout.folder}/{name}")
            assert member is not None
            contents[name] = member.read()
    return contents


def _parsed(
    contents: dict[str, bytes], names: tuple[str, ...], layout: CifarFormat, records: int
) -> tuple[Tensor, Tensor]:
    record_bytes = layout.label_bytes + IMAGE_BYTES
    for name in names:
        if len(contents[name]) != records * record_bytes:
            raise ValueError(
                f"`{name}` must hold {records:,} records of {record_bytes:,} bytes; got {len(contents[name]):,} bytes. "
                f"It is not the file of {layout.name}'s binary version, or is cut short. Unpack {layout.archive} again."
            )
    table = np.concatenate([np.frombuffer(contents[name], np.uint8).reshape(-1, record_bytes) for name in names])
    images = torch.from_numpy(table[:, layout.label_bytes :].reshape(-1, *IMAGE_SHAPE)).float() / 255.0
    return images, torch.from_numpy(table[:, layout.label_bytes - 1].astype(np.int64))


def direct_encoding(images: Tensor, timesteps: int) -> Tensor:
    """The same image at every step, `[T, n, *]`, as a view; the first layer turns it into spikes."""
    return images.unsqueeze(0).expand(timesteps, *images.shape)


def poisson_encoding(images: Tensor, timesteps: int, seed: int = 0) -> Tensor:
    """Independent spikes at every step, each with the pixel's brightness as its probability.

    Args:
        images: brightness in [0, 1], `[n, *]`; another raises `ValueError`.
        seed: of the spikes; the same on every machine and device.
    Returns:
        Zeros and ones, `[T, n, *]`, dtype and device of the images.
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


def shape_of(case: Case, rule: str, sizes: int) -> tuple[int, ...]:
    """The shape of a case; raises `ValueError` with the rule for another number of sizes than its workload reads."""
    if len(case.shape) != sizes:
        raise ValueError(
            f"`shape` must be {rule}; got {case.shape}. The workload {case.workload!r} reads it so. "
            f"Pass it with its sizes joined by x, as --shape {'x'.join(['3', '32', '32'][-sizes:])}."
        )
    return case.shape


def digits_of(case: Case) -> Split:
    """Digits in the size that a case's network reads; for pixel sequences one pixel per time step.

    Raises:
        ValueError: a size below a digit's.
        SkipCase: a number of steps that is not that of a square's pixels, as among the values that suites sweep.
    """
    if is_sequence(case):
        side = isqrt(case.timesteps)
        if side < SIDE or side * side != case.timesteps:
            raise SkipCase(
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


def encoded(case: Case, images: Tensor, seed: int) -> Tensor:
    """Images `[n, *]` as a case's network reads them, `[T, n, *]`, in its dtype and on its device.

    A sequence shows one pixel more per step; encoded so, the case's shape is how many pixels a step shows.
    """
    if is_sequence(case):
        x_seq = pixel_sequences(images, case.shape[0] if case.encoding == "pixels" else 1)
    elif case.encoding == "poisson":
        x_seq = poisson_encoding(images, case.timesteps, seed)
    else:
        x_seq = direct_encoding(images, case.timesteps)
    return x_seq.to(getattr(torch, case.dtype)).to(case.device)


def is_sequence(case: Case) -> bool:
    """Whether the network reads an image pixel by pixel: `pixels` always, another where the encoding says so."""
    return "pixels" in (case.workload.partition("@")[0], case.encoding)
