"""CIFAR-10 and CIFAR-100 from the official binary archives, in a folder that the user names. Nothing is downloaded.

Format and checksums: https://www.cs.toronto.edu/~kriz/cifar.html. A record is one label byte (CIFAR-100: coarse label,
then fine label) and 3,072 pixel bytes, channel by channel, row by row. Nothing is unpickled.
"""

import hashlib
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from revsnn_bench.data.digits import Split

IMAGE_SHAPE = (3, 32, 32)
IMAGE_BYTES = 3 * 32 * 32


@dataclass(frozen=True)
class CifarFormat:
    """Where one of the data sets lies, and how its records are laid out.

    Args:
        name: of the data set.
        archive: name of the official archive.
        md5: its published checksum; None to read an archive unchecked.
        folder: the folder inside of the archive.
        train_files, test_files: names inside of that folder.
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
        layout: `CIFAR10` or `CIFAR100`.
    Returns:
        Images `[n, 3, 32, 32]` in [0, 1] and labels `[n]` (CIFAR-100: fine labels).
    Raises:
        FileNotFoundError: neither the archive nor its files are there.
        ValueError: an archive with another checksum, or a file of another size than the official one.
    """
    root = Path(folder).expanduser()
    archive = root / layout.archive
    names = (*layout.train_files, *layout.test_files)
    for place in (root / layout.folder, root):
        if all((place / name).is_file() for name in names):
            contents = {name: (place / name).read_bytes() for name in names}
            break
    else:
        contents = _unpacked(archive, names, layout)
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
