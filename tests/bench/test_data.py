"""Data readers and encodings: values, shapes, checksums, and what is said when files are missing or wrong."""

import hashlib
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from revsnn_bench.models.data import (
    CIFAR10,
    CIFAR100,
    IMAGE_BYTES,
    digits,
    direct_encoding,
    pixel_sequences,
    poisson_encoding,
    read_cifar,
    upsampled,
)

RECORDS = (6, 4)


def small(layout):
    """The layout with few records per file, and no checksum yet."""
    return replace(layout, records=RECORDS, md5=None)


@pytest.fixture(params=[CIFAR10, CIFAR100], ids=lambda layout: layout.name)
def unpacked(request, tmp_path):
    """A folder in the official layout with random records, its layout, and what is in it."""
    layout, rng = small(request.param), np.random.default_rng(0)
    folder = tmp_path / layout.folder
    folder.mkdir()
    tables = {}
    for names, records in zip((layout.train_files, layout.test_files), RECORDS, strict=True):
        for name in names:
            table = rng.integers(0, 10, (records, layout.label_bytes + IMAGE_BYTES), dtype=np.uint8)
            (folder / name).write_bytes(table.tobytes())
            tables[name] = table
    return tmp_path, layout, tables


def packed(root, layout):
    """Packs the folder into the official archive, removes it, and returns the layout with the archive's checksum."""
    archive, folder = root / layout.archive, root / layout.folder
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, layout.folder)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    return replace(layout, md5=hashlib.md5(archive.read_bytes()).hexdigest())


def test_records_come_out_as_they_were_written(unpacked):
    """Every pixel and label of every file, in order; CIFAR-100's class is its fine label; [n, 3, 32, 32] in [0, 1]."""
    root, layout, tables = unpacked
    split = read_cifar(root, layout)
    for images, labels, names in (
        (split.train_images, split.train_labels, layout.train_files),
        (split.test_images, split.test_labels, layout.test_files),
    ):
        table = np.concatenate([tables[name] for name in names])
        assert torch.equal(labels, torch.from_numpy(table[:, layout.label_bytes - 1].astype(np.int64)))
        assert images.shape == (len(table), 3, 32, 32)
        first_red_row = table[:, layout.label_bytes : layout.label_bytes + 32] / np.float32(255)
        assert np.array_equal(images[:, 0, 0].numpy(), first_red_row)
        last_blue_pixel = table[:, -1] / np.float32(255)
        assert np.array_equal(images[:, 2, 31, 31].numpy(), last_blue_pixel)


def test_archive_and_folder_give_the_same(unpacked):
    """The archive is read in place, unpacked nowhere; the folder itself may be named too."""
    root, layout, _ = unpacked
    expected = read_cifar(root / layout.folder, layout)
    layout = packed(root, layout)
    assert all(torch.equal(*pair) for pair in zip(read_cifar(root, layout), expected, strict=True))
    assert [path.name for path in root.iterdir()] == [layout.archive]


def test_archive_with_another_checksum_is_refused(unpacked):
    """One byte more, and the published MD5 and the one found are named."""
    root, layout, _ = unpacked
    layout = packed(root, layout)
    with (root / layout.archive).open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(
        ValueError, match=f"must have the published MD5 {layout.md5}; got [0-9a-f]{{32}}. It is damaged"
    ):
        read_cifar(root, layout)


def test_file_cut_short_is_refused(unpacked):
    """A truncated file is named with the size that it must have."""
    root, layout, _ = unpacked
    path = root / layout.folder / layout.test_files[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"`{path.name}` must hold 4 records of [\d,]+ bytes; got [\d,]+ bytes"):
        read_cifar(root, layout)


@pytest.mark.parametrize("layout", [CIFAR10, CIFAR100], ids=lambda layout: layout.name)
def test_missing_files_are_named(tmp_path, layout):
    """An empty folder: the error names the archive, every file, and where to get them."""
    with pytest.raises(FileNotFoundError) as raised:
        read_cifar(tmp_path, layout)
    for name in (layout.archive, *layout.train_files, *layout.test_files, "www.cs.toronto.edu/~kriz/cifar.html"):
        assert name in str(raised.value)


def test_official_archives_hold_sixty_thousand_images():
    """The official layouts: 50,000 images to train on and 10,000 to test on, in both."""
    for layout in (CIFAR10, CIFAR100):
        train, test = layout.records
        assert (train * len(layout.train_files), test * len(layout.test_files)) == (50_000, 10_000)


def test_digits_are_those_of_scikit_learn():
    """Read from its file: importing it takes longer than all else that a run waits for."""
    from sklearn.datasets import load_digits  # not above: every test process would wait for it

    split, shipped = digits(), load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    images, labels = (
        torch.cat([split.test_images, split.train_images]),
        torch.cat([split.test_labels, split.train_labels]),
    )
    assert torch.equal(images[:, 0] * 16, torch.from_numpy(shipped.images).float()[order])
    assert torch.equal(labels, torch.from_numpy(shipped.target)[order])


def test_digits_are_split_once_and_enlarged():
    """1,797 digits, a fifth held out, the same every time; enlarged and repeated over channels they keep their mean."""
    split, large = digits(), digits(size=32, channels=3)
    assert (len(split.train_labels), len(split.test_labels)) == (1438, 359)
    assert split.train_images.shape[1:] == (1, 8, 8)
    assert large.test_images.shape[1:] == (3, 32, 32)
    assert torch.equal(large.train_labels, split.train_labels)
    means = large.train_images.mean((1, 2, 3)), split.train_images.mean((1, 2, 3))
    assert torch.allclose(*means, atol=0.02)
    assert 0 <= large.train_images.min() <= large.train_images.max() <= 1


def test_images_are_never_reduced():
    """A size below the image's own is refused."""
    with pytest.raises(ValueError, match="`size` must be at least 8, the image's own; got 4"):
        upsampled(torch.zeros(1, 1, 8, 8), 4)


def test_pixel_sequences_go_row_by_row():
    """64 steps of one pixel each, in reading order."""
    images = torch.arange(2 * 64.0).view(2, 1, 8, 8)
    sequences = pixel_sequences(images)
    assert sequences.shape == (64, 2, 1)
    assert torch.equal(sequences[9, :, 0], images[:, 0, 1, 1])


def test_direct_encoding_repeats_without_copying():
    """The same image at every step, in one storage."""
    images = torch.rand(2, 1, 3, 3)
    x_seq = direct_encoding(images, 5)
    assert x_seq.shape == (5, 2, 1, 3, 3)
    assert x_seq.data_ptr() == images.data_ptr()


def test_poisson_encoding_is_binary_seeded_and_has_the_rate():
    """Zeros and ones; black never and white always fires; a rate is met within 5 standard deviations."""
    images = torch.tensor([[0.0, 0.3, 1.0]])
    spikes = poisson_encoding(images, 10_000, seed=3)
    rates = spikes.mean(0)[0]
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert rates[0] == 0
    assert rates[2] == 1
    assert abs(rates[1] - 0.3) < 5 * (0.3 * 0.7 / 10_000) ** 0.5
    assert torch.equal(spikes, poisson_encoding(images, 10_000, seed=3))
    assert not torch.equal(spikes, poisson_encoding(images, 10_000, seed=4))
    assert torch.equal(spikes[:50].bool(), poisson_encoding(images.double(), 10_000, seed=3)[:50].bool())


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_poisson_encoding_refuses_what_is_no_probability(value):
    """Brightness outside of [0, 1]."""
    with pytest.raises(ValueError, match=r"`images` must lie in \[0, 1\]"):
        poisson_encoding(torch.tensor([[0.5, value]]), 2)
