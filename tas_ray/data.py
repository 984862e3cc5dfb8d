"""Datasets and their train / search / test split, delivered as normalised batches on the training device.

Split and augmentation follow the TAS paper's code (NeurIPS 2019): class-stratified halves of the training
set; flip and padded crop for small images; resized crop, colour jitter and PCA lighting for photographs.
"""

import hashlib
import io
import logging
import math
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, final, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float32, Int64, UInt8
from PIL import Image
from torch import Tensor

from tas_ray.augment import (
    CROP_PADDING_DIVISOR,
    crop_and_flip,
    evaluation_view,
    lighting,
    normalize,
    training_view,
)
from tas_ray.randomness import generator, seed_of

# Importing torchvision takes seconds; the functions that read CIFAR or photographs import it themselves.

log = logging.getLogger(__name__)

DatasetName = Literal["digits", "cifar10", "cifar100", "imagenet", "folder", "parquet"]
Split = Literal["train", "search", "training", "test"]
Images = UInt8[Tensor, "_ 3 _ _"]
Labels = Int64[Tensor, "_"]
Batch = tuple[Float32[Tensor, "batch 3 height width"], Int64[Tensor, " batch"]]

_CIFAR10_MEAN, _CIFAR10_STD = (125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)
_CIFAR100_MEAN, _CIFAR100_STD = (129.3 / 255, 124.1 / 255, 112.4 / 255), (68.2 / 255, 65.4 / 255, 70.4 / 255)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_DIGITS_TEST_FRACTION = 0.25
_DIGITS_TEST_SEED = 0
_FINGERPRINT_SAMPLES = 512
_GB = 10**9
_CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images to train, search and test on."""

    dataset: DatasetName = "digits"
    """digits needs nothing; cifar10, cifar100 and imagenet are torchvision's own layouts; folder is one
    folder a class; parquet is files of encoded images."""

    path: Path | None = None
    """Where the data lies. cifar10/100: the folder that holds cifar-10-batches-py or cifar-100-python.
    imagenet: holds train/ and val/. folder: holds train/ and test/ (or val/, if it has no test/). parquet: a
    folder with *train*.parquet and *test*.parquet, or the beginning of their names (data/cifar10 for
    data/cifar10-train.parquet)."""

    image_size: int | None = None
    """Height and width in pixels; images of another size are resized. Left out: the dataset's own (digits 8,
    CIFAR 32, ImageNet 224, parquet as stored). A folder needs it."""

    search_fraction: float = 0.5
    """Share of every class of the training set held out as the search split, between 0 and 1 (TAS: 0.5)."""

    split_seed: int = 111
    """Seed of the train / search split (TAS: 111)."""

    horizontal_flip: bool | None = None
    """Mirror half of the training images. Left out: yes, except for digits. Turn it off where mirroring
    changes the class."""

    memory_limit_gb: float = 8.0
    """Datasets whose decoded images take at most this much (1e9 bytes) live on the training device and are
    augmented there by flip and padded crop. Larger folders, and ImageNet always, are streamed from the files
    with resized crops, colour jitter and lighting; 0 streams any folder."""

    loader_workers: int = 4
    """Processes that decode for each training worker when images are streamed; 0 decodes in the training
    process."""

    def __post_init__(self) -> None:
        if self.dataset not in get_args(DatasetName):
            raise ValueError(f"unknown dataset {self.dataset!r}: choose one of {', '.join(get_args(DatasetName))}.")
        if self.dataset == "digits" and self.path is not None:
            raise ValueError(
                f"digits come with scikit-learn and are not read from {self.path}: leave `path` out, or name "
                "the dataset that lies there (cifar10, cifar100, imagenet, folder or parquet)."
            )
        if self.dataset != "digits" and self.path is None:
            raise ValueError(f"{self.dataset} needs `path`, the folder where the data lies; nothing is downloaded.")
        if self.dataset == "folder" and self.image_size is None:
            raise ValueError("folder needs `image_size`, the height and width in pixels every image is brought to.")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}, but must be at least 1 pixel.")
        if not 0 < self.search_fraction < 1:
            raise ValueError(
                f"search_fraction is {self.search_fraction}, but must lie between 0 and 1 (both excluded): "
                "the weights learn on the rest of the training set and the architecture on this share."
            )
        if not self.memory_limit_gb >= 0:
            raise ValueError(f"memory_limit_gb is {self.memory_limit_gb}, but must be 0 or more.")
        if self.loader_workers < 0:
            raise ValueError(f"loader_workers is {self.loader_workers}, but must be 0 or more.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset(ABC):
    """Labelled images in four splits, delivered in batches by index.

    "train" and "search" are the two disjoint parts of the training set, "training" is their union (what a
    derived network is retrained on), "test" is the official test set. An index counts inside its split, from
    0 to `size(split) - 1`.
    """

    name: str
    """Label for tables: "digits", "cifar10", "parquet:cifar10", "folder:flowers"."""
    classes: int
    """Number of classes; labels are 0 to `classes - 1`."""
    image_size: int
    """Height and width of every batch, in pixels."""
    mean: tuple[float, ...]
    """Per channel, in units of white (0 to 1): a batch is (pixels - mean) / std."""
    std: tuple[float, ...]
    """Per channel, in units of white."""
    fingerprint: str
    """32 hex digits that identify the content (names, sizes, labels and a sample of the pixels) but not the
    train / search split; equal on every machine that has the same data."""
    device: torch.device
    """Where the batches arrive."""
    rows: Mapping[Split, Labels]
    """Sorted row numbers of every split: into the training set for "train", "search", "training", into the
    test set for "test"."""
    channels: ClassVar[int] = 3

    def size(self, split: Split) -> int:
        """Return the number of images in a split. Raises `ValueError` for an unknown split."""
        if split not in self.rows:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(self.rows)}.")
        return len(self.rows[split])

    @abstractmethod
    def batches(
        self, split: Split, steps: Iterable[tuple[int, Tensor]], *, augment: bool, seed: int
    ) -> Iterator[Batch]:
        """Return an iterator over one normalised (images, labels) on the device for each (step, indices).

        Images are float32 [batch, 3, image_size, image_size], labels int64 [batch]. `indices` are CPU int64
        tensors that count inside the split; repetitions are allowed. With `augment`, the pixels depend on
        (split, seed, step, indices) and nothing else: a resumed run that goes on with its step sees what an
        uninterrupted one would have seen. Ranks that train together should each put their rank into `seed`.
        A streamed dataset reads some `steps` ahead of what it has delivered.

        Raises `ValueError` for an unknown split, an index outside the split, or an image file that cannot be
        decoded.
        """

    @abstractmethod
    def pixels(self, split: Split, indices: Tensor) -> tuple[Images, Labels]:
        """Return the images [n, 3, image_size, image_size] of a split as uint8 on the CPU, not augmented, and labels.

        Raises `ValueError` as `batches` does.
        """

    def _rows_of(self, split: Split, indices: Tensor) -> Tensor:
        size = self.size(split)
        if len(indices) and not (int(indices.min()) >= 0 and int(indices.max()) < size):
            raise ValueError(
                f"indices from {int(indices.min())} to {int(indices.max())} do not fit the {split} split of "
                f"{self.name}, which has {size} images (indices 0 to {size - 1})."
            )
        return self.rows[split][indices]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class InMemoryDataset(Dataset):
    """Decoded images that live on the device as uint8, gathered and augmented there a batch at a time."""

    training_images: Images
    training_labels: Labels
    test_images: Images
    test_labels: Labels
    horizontal_flip: bool

    def batches(
        self, split: Split, steps: Iterable[tuple[int, Tensor]], *, augment: bool, seed: int
    ) -> Iterator[Batch]:
        self.size(split)  # refuses an unknown split now, not at the first batch
        return (self._batch(split, step, indices, augment=augment, seed=seed) for step, indices in steps)

    def pixels(self, split: Split, indices: Tensor) -> tuple[Images, Labels]:
        images, labels = self._gathered(split, indices)
        return images.cpu(), labels.cpu()

    def _gathered(self, split: Split, indices: Tensor) -> tuple[Images, Labels]:
        rows = self._rows_of(split, indices).to(self.device, non_blocking=True)
        images, labels = (
            (self.test_images, self.test_labels) if split == "test" else (self.training_images, self.training_labels)
        )
        return images.index_select(0, rows), labels.index_select(0, rows)

    def _batch(self, split: Split, step: int, indices: Tensor, *, augment: bool, seed: int) -> Batch:
        batch, labels = self._gathered(split, indices)
        if augment:
            batch = crop_and_flip(
                batch,
                padding=self.image_size // CROP_PADDING_DIVISOR,
                horizontal_flip=self.horizontal_flip,
                generator=generator("cpu", "augment", split, seed, step),
            )
        return normalize(batch, self.mean, self.std), labels


@dataclass(frozen=True, kw_only=True, eq=False)
class _Files:
    """Image files below one folder and their labels, held so that worker processes share the memory."""

    root: Path
    names: np.ndarray  # bytes, relative to root
    labels: Labels

    def path(self, row: int) -> Path:
        return self.root / os.fsdecode(self.names[row])


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class StreamedDataset(Dataset):
    """Image files that worker processes decode and crop batch by batch, ahead of the training."""

    training_files: _Files
    test_files: _Files
    horizontal_flip: bool
    loader_workers: int

    def batches(
        self, split: Split, steps: Iterable[tuple[int, Tensor]], *, augment: bool, seed: int
    ) -> Iterator[Batch]:
        self.size(split)  # refuses an unknown split now, not at the first batch
        return self._stream(split, steps, augment=augment, seed=seed)

    def pixels(self, split: Split, indices: Tensor) -> tuple[Images, Labels]:
        chunks = enumerate(indices.split(_CHUNK))
        _, images, labels = zip(*self._decoded(split, chunks, augment=False, seed=0), strict=True)
        return torch.cat(images), torch.cat(labels)

    def _stream(
        self, split: Split, steps: Iterable[tuple[int, Tensor]], *, augment: bool, seed: int
    ) -> Iterator[Batch]:
        for step, images, labels in self._decoded(split, steps, augment=augment, seed=seed):
            images = images.to(self.device, non_blocking=True)
            if augment:
                images = lighting(images, generator=generator("cpu", "lighting", split, seed, step))
            yield normalize(images, self.mean, self.std), labels.to(self.device, non_blocking=True)

    def _decoded(
        self, split: Split, steps: Iterable[tuple[int, Tensor]], *, augment: bool, seed: int
    ) -> Iterator[tuple[int, Images, Labels]]:
        decoder = _Decoder(
            files=self.test_files if split == "test" else self.training_files,
            size=self.image_size,
            view=training_view(self.image_size, self.horizontal_flip) if augment else None,
            seed_parts=("augment", split, seed),
        )
        loader = torch.utils.data.DataLoader(
            decoder,
            # One "sample" is a whole batch: its step and plain ints, which need no shared memory to travel.
            sampler=((step, self._rows_of(split, indices).tolist()) for step, indices in steps),
            batch_size=None,
            num_workers=self.loader_workers,
            pin_memory=self.device.type == "cuda",
            generator=generator("cpu", "loader"),  # so that the loader leaves torch's default generator alone
        )
        return iter(loader)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Decoder(torch.utils.data.Dataset[tuple[int, Tensor, Tensor]]):
    """What a loader process does with one (step, rows): decode the files, view them at random or centred."""

    files: _Files
    size: int
    view: Callable[[Image.Image], Tensor] | None
    seed_parts: tuple[int | str, ...]

    def __getitem__(self, key: tuple[int, list[int]]) -> tuple[int, Tensor, Tensor]:
        step, rows = key
        images = torch.empty(len(rows), 3, self.size, self.size, dtype=torch.uint8)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(*self.seed_parts, step))
            for position, row in enumerate(rows):
                path = self.files.path(row)
                image = _decode(path, str(path))
                images[position] = evaluation_view(image, self.size) if self.view is None else self.view(image)
        return step, images, self.files.labels[rows]


def load(config: DataConfig, device: torch.device) -> Dataset:
    """Read a dataset, check it and split it; small images are decoded now and put on `device`.

    Raises `ValueError` when files are missing or corrupt, labels are not 0 to classes-1, train and test
    disagree, the images do not fit `image_size` or `memory_limit_gb`, or a class is too small to be split.
    """
    if config.path is not None:
        is_prefix = config.dataset == "parquet" and not config.path.exists()
        folder = config.path.parent if is_prefix else config.path
        if not folder.is_dir():
            raise ValueError(f"{folder}, where {config.dataset} should lie, is no folder on this machine.")
    match config.dataset:
        case "digits":
            return _in_memory(config, device, _read_digits())
        case "cifar10" | "cifar100":
            return _in_memory(config, device, _read_cifar(config))
        case "parquet":
            return _in_memory(config, device, _read_parquet(config))
        case "imagenet" | "folder":
            return _load_folder(config, device)


# What is shared by all formats


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pixels:
    """A decoded dataset before it is checked, split and moved to the device."""

    name: str
    training_images: Images
    training_labels: Labels
    test_images: Images
    test_labels: Labels
    classes: int
    mean: tuple[float, ...] | None = None  # None: measured on the training images
    std: tuple[float, ...] | None = None
    fingerprint: str | None = None  # None: taken from labels and pixels
    horizontal_flip: bool = True


def _in_memory(config: DataConfig, device: torch.device, pixels: _Pixels) -> InMemoryDataset:
    training_images, test_images = (_resized(images, config) for images in (pixels.training_images, pixels.test_images))
    if pixels.mean is not None and pixels.std is not None:
        mean, std = pixels.mean, pixels.std
    else:
        mean, std = _mean_and_std(training_images)
    flip = pixels.horizontal_flip if config.horizontal_flip is None else config.horizontal_flip
    return InMemoryDataset(
        name=pixels.name,
        classes=pixels.classes,
        image_size=training_images.shape[-1],
        mean=mean,
        std=std,
        fingerprint=pixels.fingerprint or _fingerprint_of_pixels(pixels, training_images.shape[-1]),
        device=device,
        rows=_split(config, pixels.training_labels, len(pixels.test_labels), pixels.classes),
        training_images=training_images.to(device),
        training_labels=pixels.training_labels.to(device),
        test_images=test_images.to(device),
        test_labels=pixels.test_labels.to(device),
        horizontal_flip=flip,
    )


def _split(config: DataConfig, labels: Tensor, test_size: int, classes: int) -> dict[Split, Tensor]:
    """Return the rows of every split: per class, a sample of 1 - search_fraction is "train", the rest
    "search".
    """
    train, search = stratified_split(labels, classes, fraction=1 - config.search_fraction, seed=config.split_seed)
    return {
        "train": train,
        "search": search,
        "training": torch.arange(len(labels)),
        "test": torch.arange(test_size),
    }


def stratified_split(labels: Labels, classes: int, *, fraction: float, seed: int) -> tuple[Labels, Labels]:
    """Return the sorted rows of a sample holding `fraction` of every class, and the sorted rows of the rest.

    The draws of the TAS code: `random.sample(rows, int(len(rows) * fraction))` for one class after the
    other, by a private `random.Random(seed)`; both parts get at least one image of every class. Raises
    `ValueError` for a class with fewer than 2.
    """
    rng = random.Random(seed)
    by_class: list[list[int]] = [[] for _ in range(classes)]
    for row, label in enumerate(labels.tolist()):
        by_class[label].append(row)
    sampled: list[int] = []
    for label, rows in enumerate(by_class):
        if len(rows) < 2:
            raise ValueError(
                f"class {label} has {len(rows)} training image(s), but the split needs at least 2 a class: "
                "one to fit weights on and one to search on. Add images or leave the class out."
            )
        count = int(round(len(rows) * fraction, 6))  # rounded first: 10 * (1 - 0.9) is 0.9999999999999998
        sampled += rng.sample(rows, min(max(count, 1), len(rows) - 1))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[sampled] = True
    return chosen.nonzero().squeeze(1), (~chosen).nonzero().squeeze(1)


def _resized(images: Tensor, config: DataConfig) -> Tensor:
    size = config.image_size
    if size is None or tuple(images.shape[-2:]) == (size, size):
        return images
    _check_memory(config, len(images), size)
    from torchvision.transforms.v2 import functional as v2

    return torch.cat([v2.resize(part, [size, size], antialias=True) for part in images.split(4096)])


def _check_memory(config: DataConfig, count: int, size: int) -> None:
    if _decoded_gb(count, size) > config.memory_limit_gb:
        raise ValueError(
            f"{count} images of {size} x {size} pixels take {_decoded_gb(count, size):.1f} GB decoded, more "
            f"than memory_limit_gb = {config.memory_limit_gb:g}: choose a smaller image_size or raise "
            "memory_limit_gb."
        )


def _decoded_gb(count: int, size: int) -> float:
    return count * Dataset.channels * size * size / _GB


def _mean_and_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of every channel, 0 to 1, exactly: from counts of the 256 values."""
    counts = torch.zeros(images.shape[1], 256, dtype=torch.float64)
    for part in images.split(4096):
        for channel in range(images.shape[1]):
            counts[channel] += torch.bincount(part[:, channel].flatten(), minlength=256)
    values = torch.arange(256, dtype=torch.float64) / 255
    weights = counts / counts.sum(1, keepdim=True)
    mean = weights @ values
    std = (weights * (values - mean[:, None]) ** 2).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(std.clamp_min(1 / 255).tolist())  # 0 if all pixels are equal


def _fingerprint(*parts: str | bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(encoded)}:".encode() + encoded)
    return digest.hexdigest()


def _fingerprint_of_pixels(pixels: _Pixels, size: int) -> str:
    parts: list[str | bytes] = [pixels.name, str(size), str(pixels.classes)]
    for images, labels in (
        (pixels.training_images, pixels.training_labels),
        (pixels.test_images, pixels.test_labels),
    ):
        sample = images[_spaced(len(images))].numpy()
        parts += [str(tuple(images.shape)), labels.numpy().astype("<i8").tobytes(), sample.tobytes()]
    return _fingerprint(*parts)


def _spaced(count: int) -> list[int]:
    """Return at most `_FINGERPRINT_SAMPLES` row numbers, evenly spaced, the first among them."""
    return list(range(0, count, math.ceil(count / _FINGERPRINT_SAMPLES)))


def _decode(source: Path | io.BytesIO, label: str) -> Image.Image:
    """Return an image in RGB. Raises `ValueError` naming it by `label` when it cannot be decoded."""
    try:
        with Image.open(source) as image:
            return image.convert("RGB")
    except Exception as error:  # every decoder raises what it likes when its bytes are broken
        raise ValueError(f"{label} is no image that can be decoded ({error}): restore it or leave it out.") from error


# Digits and CIFAR


def _read_digits() -> _Pixels:
    """Return scikit-learn's 1,797 handwritten digits in three equal channels, a fixed quarter for the test.

    Read from scikit-learn's file, which is what `sklearn.datasets.load_digits` does after importing
    scikit-learn and SciPy for a second or two in every worker process.
    """
    package = find_spec("sklearn")
    assert package, "scikit-learn is a dependency of this package"
    assert package.origin
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    labels = torch.from_numpy(table[:, -1]).long()
    grey = torch.from_numpy(np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8)).reshape(-1, 1, 8, 8)
    images = grey.repeat(1, 3, 1, 1)
    training, test = stratified_split(labels, 10, fraction=1 - _DIGITS_TEST_FRACTION, seed=_DIGITS_TEST_SEED)
    return _Pixels(
        name="digits",
        training_images=images[training],
        training_labels=labels[training],
        test_images=images[test],
        test_labels=labels[test],
        classes=10,
        horizontal_flip=False,
    )


def _read_cifar(config: DataConfig) -> _Pixels:
    from torchvision import datasets

    assert config.path is not None
    hundred = config.dataset == "cifar100"
    folder, reader = ("cifar-100-python", datasets.CIFAR100) if hundred else ("cifar-10-batches-py", datasets.CIFAR10)
    if not (config.path / folder).is_dir():
        archive = f"{config.dataset.replace('cifar', 'cifar-')}-python.tar.gz"
        raise ValueError(
            f"{config.path} holds no {folder}: unpack {archive} (from the CIFAR page of the University of "
            f"Toronto) there, and give the folder that contains {folder} as `path`."
        )
    try:
        training, test = (reader(config.path, train=train, download=False) for train in (True, False))
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"{config.path / folder} is incomplete or corrupt ({error}): unpack the archive again."
        ) from error
    return _Pixels(
        name=config.dataset,
        training_images=torch.from_numpy(training.data).permute(0, 3, 1, 2).contiguous(),
        training_labels=torch.tensor(training.targets),
        test_images=torch.from_numpy(test.data).permute(0, 3, 1, 2).contiguous(),
        test_labels=torch.tensor(test.targets),
        classes=100 if hundred else 10,
        mean=_CIFAR100_MEAN if hundred else _CIFAR10_MEAN,
        std=_CIFAR100_STD if hundred else _CIFAR10_STD,
    )


# Parquet


def _read_parquet(config: DataConfig) -> _Pixels:
    assert config.path is not None
    training_files, test_files = (_parquet_files(config.path, split) for split in ("train", "test"))
    stems = {_parquet_stem(file, "train") for file in training_files}
    stems |= {_parquet_stem(file, "test") for file in test_files}
    if len(stems) > 1 or set(training_files) & set(test_files):
        raise ValueError(
            f"the parquet files at {config.path} begin in different ways "
            f"({', '.join(sorted(map(repr, stems)))} before train or test), as if they were several "
            "datasets: give the beginning of one's file names as `path`, as in "
            f"{training_files[0].parent / sorted(stems)[-1]}."
        )
    training_labels, test_labels = _parquet_labels(training_files), _parquet_labels(test_files)
    classes = _checked_classes(training_labels, test_labels, str(config.path))
    size = config.image_size or _parquet_image_size(training_files)
    _check_memory(config, len(training_labels) + len(test_labels), size)
    return _Pixels(
        name=f"parquet:{_parquet_name(training_files[0])}",
        training_images=_parquet_images(training_files, len(training_labels), size, config),
        training_labels=training_labels,
        test_images=_parquet_images(test_files, len(test_labels), size, config),
        test_labels=test_labels,
        classes=classes,
    )


def _parquet_files(path: Path, split: str) -> list[Path]:
    folder, prefix = (path, "") if path.is_dir() else (path.parent, path.name)
    files = sorted(
        file
        for file in folder.glob("*.parquet")
        if file.name.startswith(prefix) and split in file.name.removeprefix(prefix)
    )
    if not files:
        raise ValueError(
            f"no {prefix}*{split}*.parquet in {folder}: `path` must be a folder with *train*.parquet and "
            "*test*.parquet, or the beginning of their names."
        )
    return files


def _parquet_stem(file: Path, split: str) -> str:
    return file.name.rpartition(split)[0]


def _parquet_name(training_file: Path) -> str:
    """Return what stands before "train" in the file's name, or the folder's name if nothing does."""
    return _parquet_stem(training_file, "train").rstrip("-_.") or training_file.absolute().parent.name


def _open_parquet(file: Path) -> pq.ParquetFile:
    try:
        opened = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is no parquet file that can be read ({error}): copy it again.") from error
    schema = opened.schema_arrow
    rules: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
        "image": (
            lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind),
            "binary (an encoded image)",
        ),
        "label": (pa.types.is_integer, "integer"),
    }
    for column, (is_right, wanted) in rules.items():
        if column not in schema.names:
            raise ValueError(
                f"{file} has no column {column!r}, only {', '.join(schema.names)}: it needs `image` and `label`."
            )
        if not is_right(schema.field(column).type):
            raise ValueError(f"column {column!r} of {file} is {schema.field(column).type}, but must be {wanted}.")
    return opened


def _parquet_values(files: Sequence[Path], column: str) -> Iterator[tuple[Path, int, Any]]:
    """Yield file, row and value of one column, a thousand rows in memory at a time."""
    for file in files:
        opened = _open_parquet(file)
        row = 0
        try:
            for batch in opened.iter_batches(batch_size=1024, columns=[column]):
                for value in batch.column(0).to_pylist():
                    if value is None:
                        raise ValueError(f"row {row} of {file} has no {column}.")
                    yield file, row, value
                    row += 1
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{file} cannot be read from row {row} on ({error}): it is corrupt, copy it again."
            ) from error


def _parquet_labels(files: Sequence[Path]) -> Tensor:
    return torch.tensor([value for _, _, value in _parquet_values(files, "label")], dtype=torch.int64)


def _parquet_image_size(files: Sequence[Path]) -> int:
    file, row, blob = next(_parquet_values(files, "image"))
    image = _decode(io.BytesIO(blob), f"row {row} of {file}")
    if image.width != image.height:
        raise ValueError(
            f"row {row} of {file} is {image.width} x {image.height} pixels: give `image_size`, the height "
            "and width every image is brought to."
        )
    return image.width


def _parquet_images(files: Sequence[Path], count: int, size: int, config: DataConfig) -> Tensor:
    """Return every image, decoded by PIL: torchvision's own decoders are deprecated since 0.29."""
    images = np.empty((count, Dataset.channels, size, size), dtype=np.uint8)
    for position, (file, row, blob) in enumerate(_parquet_values(files, "image")):
        image = _decode(io.BytesIO(blob), f"row {row} of {file}")
        if image.size == (size, size):
            images[position] = np.asarray(image).transpose(2, 0, 1)
        elif config.image_size is None:
            raise ValueError(
                f"row {row} of {file} is {image.width} x {image.height} pixels, but the first image is "
                f"{size} x {size}: give `image_size` to bring all to one size."
            )
        else:
            images[position] = evaluation_view(image, size).numpy()
    return torch.from_numpy(images)


def _checked_classes(training_labels: Tensor, test_labels: Tensor, source: str) -> int:
    """Return the number of classes, having checked that training uses all of 0 to classes-1, test no
    other.
    """
    for labels, split in ((training_labels, "training"), (test_labels, "test")):
        if not len(labels):
            raise ValueError(f"the {split} set of {source} is empty.")
        if int(labels.min()) < 0:
            raise ValueError(
                f"the {split} set of {source} has the label {int(labels.min())}, but labels must count the "
                "classes from 0."
            )
    found = training_labels.unique().tolist()
    if found != list(range(len(found))):
        missing = next(label for label, value in enumerate(found) if label != value)
        raise ValueError(
            f"the training set of {source} has labels up to {found[-1]} but none is {missing}: labels must "
            "be 0 to classes-1, each used."
        )
    if int(test_labels.max()) >= len(found):
        raise ValueError(
            f"the test set of {source} has the label {int(test_labels.max())}, but the training set has only "
            f"{len(found)} classes (labels 0 to {len(found) - 1})."
        )
    return len(found)


# Folders of image files


def _load_folder(config: DataConfig, device: torch.device) -> Dataset:
    assert config.path is not None
    imagenet = config.dataset == "imagenet"
    size = config.image_size or 224
    name = "imagenet" if imagenet else f"folder:{config.path.absolute().name}"
    training_folder = _subfolder(config.path, ("train",))
    test_folder = _subfolder(config.path, ("val",) if imagenet else ("test", "val"))
    training, classes = _list_files(training_folder)
    test, test_classes = _list_files(test_folder)
    if classes != test_classes:
        difference = sorted(set(classes) ^ set(test_classes))
        raise ValueError(
            f"{training_folder} has {len(classes)} classes and {test_folder} {len(test_classes)}; only one "
            f"of the two has {', '.join(difference[:5])}{', ...' if len(difference) > 5 else ''}: both need "
            "the same class folders."
        )
    count = len(training.names) + len(test.names)
    streamed = imagenet or _decoded_gb(count, size) > config.memory_limit_gb
    # The two ways normalise differently, so that a network trained one way must not be taken for the other.
    fingerprint = _fingerprint(name, str(size), str(streamed), *classes, *_file_parts(training), *_file_parts(test))
    if not streamed:
        log.info("%s: decoding %d images into memory (%.2f GB)", name, count, _decoded_gb(count, size))
        pixels = _Pixels(
            name=name,
            training_images=_decode_files(training, size),
            training_labels=training.labels,
            test_images=_decode_files(test, size),
            test_labels=test.labels,
            classes=len(classes),
            fingerprint=fingerprint,
        )
        return _in_memory(config, device, pixels)
    log.info("%s: streaming %d images with %d loader processes", name, count, config.loader_workers)
    return StreamedDataset(
        name=name,
        classes=len(classes),
        image_size=size,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        fingerprint=fingerprint,
        device=device,
        rows=_split(config, training.labels, len(test.names), len(classes)),
        training_files=training,
        test_files=test,
        horizontal_flip=config.horizontal_flip is not False,
        loader_workers=config.loader_workers,
    )


def _subfolder(path: Path, names: Sequence[str]) -> Path:
    """Return the first of the named folders that exists."""
    for name in names:
        if (path / name).is_dir():
            return path / name
    raise ValueError(
        f"{path} holds no folder {' or '.join(names)}: `path` must hold train and test images (imagenet: "
        "train and val; folder: train and test or val), each with one folder of images a class."
    )


def _list_files(folder: Path) -> tuple[_Files, list[str]]:
    from torchvision.datasets import ImageFolder

    try:
        listed = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder} must hold one folder of images for each class, none of them empty ({error})."
        ) from error
    names = [os.fsencode(os.path.relpath(path, folder)) for path, _ in listed.samples]
    return _Files(root=folder, names=np.array(names), labels=torch.tensor(listed.targets)), listed.classes


def _decode_files(files: _Files, size: int) -> Tensor:
    images = torch.empty(len(files.names), Dataset.channels, size, size, dtype=torch.uint8)

    def fill(row: int) -> None:
        images[row] = evaluation_view(_decode(files.path(row), str(files.path(row))), size)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL decodes and resizes without the interpreter lock
        for _ in pool.map(fill, range(len(files.names))):
            pass
    return images


def _file_parts(files: _Files) -> list[bytes]:
    """Return what identifies the files: every name and label, and how a sample of them begins."""
    beginnings = []
    for row in _spaced(len(files.names)):
        with files.path(row).open("rb") as opened:
            beginnings.append(opened.read(4096))
    return [b"\0".join(files.names.tolist()), files.labels.numpy().astype("<i8").tobytes(), *beginnings]
