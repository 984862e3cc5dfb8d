"""Datasets: what the splits hold, that batches repeat, every format, and what bad data is answered."""

import io
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from jaxtyping import config as type_checks
from PIL import Image
from torch import Tensor

from tas_ray.data import DataConfig, Dataset, InMemoryDataset, StreamedDataset, load, stratified_split
from tas_ray.randomness import generator

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(DataConfig(), CPU)


def batch(dataset: Dataset, split: Any, indices: Tensor, step: int = 0, **options: Any) -> tuple[Tensor, Tensor]:
    (only,) = dataset.batches(split, [(step, indices)], **({"augment": False, "seed": 0} | options))
    return only


def everything(dataset: Dataset, split: Any) -> tuple[Tensor, Tensor]:
    return batch(dataset, split, torch.arange(dataset.size(split)))


def stored(dataset: Dataset, images: Tensor) -> Tensor:
    """Return uint8 pixels, the normalisation undone."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (dataset.mean, dataset.std))
    return ((images * std + mean) * 255).round().byte()


def pictures(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return `count` noise images, [count, height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(file: Path, images: list[Any], labels: list[Any]) -> None:
    table = pa.table({"image": pa.array(images, pa.binary()), "label": pa.array(labels, pa.int8())})
    pq.write_table(table, file)


def parquet_folder(folder: Path, *, name: str = "", size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Write 12 training and 6 test images of 3 classes; return their pixels."""
    training, test = pictures(12, size, size, 1), pictures(6, size, size, 2)
    write_parquet(folder / f"{name}train.parquet", [encoded(p) for p in training], [0, 1, 2] * 4)
    write_parquet(folder / f"{name}test.parquet", [encoded(p) for p in test], [0, 1, 2] * 2)
    return training, test


def image_folder(folder: Path, *, test: str = "test", size: tuple[int, int] = (16, 16)) -> None:
    """Write 4 training and 2 test images for each of the classes ant and bee."""
    for number, (split, count) in enumerate((("train", 4), (test, 2))):
        for place, name in enumerate(("ant", "bee")):
            (folder / split / name).mkdir(parents=True)
            for index, pixels in enumerate(pictures(count, *size, seed=10 * number + place)):
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")


def folder_config(folder: Path, **fields: Any) -> DataConfig:
    defaults: dict[str, Any] = {"dataset": "folder", "path": folder, "image_size": 16, "loader_workers": 0}
    return DataConfig(**(defaults | fields))


# Splits


def test_the_split_is_the_published_one() -> None:
    labels = torch.randint(0, 10, (500,), generator=generator("cpu", "labels"))
    rng = random.Random(111)
    expected = []
    for label in range(10):
        rows = [row for row in range(500) if int(labels[row]) == label]
        expected += rng.sample(rows, int(len(rows) * 0.5))
    sampled, rest = stratified_split(labels, 10, fraction=0.5, seed=111)
    assert sampled.tolist() == sorted(expected)
    assert rest.tolist() == sorted(set(range(500)) - set(expected))


@pytest.mark.parametrize(("fraction", "count"), [(0.5, 10), (1 - 0.9, 2), (0.99, 19), (0.001, 1), (0.9999, 19)])
def test_every_class_is_split_alike_and_no_part_is_empty(fraction: float, count: int) -> None:
    labels = torch.arange(5).repeat(20)
    sampled, rest = stratified_split(labels, 5, fraction=fraction, seed=0)
    assert labels[sampled].bincount().tolist() == [count] * 5
    assert labels[rest].bincount().tolist() == [20 - count] * 5


def test_train_and_search_are_disjoint_and_make_up_training(digits: Dataset) -> None:
    train, search = (set(digits.rows[split].tolist()) for split in ("train", "search"))
    assert not train & search
    assert train | search == set(digits.rows["training"].tolist()) == set(range(digits.size("training")))
    assert digits.size("train") + digits.size("search") == digits.size("training")


def test_training_and_test_hold_every_digit_of_scikit_learn_once(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    original = load_digits()
    expected = sorted(
        (tuple(np.rint(pixels * 255 / 16).astype(int)), int(label))
        for pixels, label in zip(original.data, original.target, strict=True)
    )
    found = []
    for split in ("training", "test"):
        images, labels = everything(digits, split)
        pixels = stored(digits, images)
        assert bool((pixels == pixels[:, :1]).all())  # grey in three channels
        found += [(tuple(p.flatten().tolist()), int(y)) for p, y in zip(pixels[:, 0], labels, strict=True)]
    assert sorted(found) == expected


def test_the_digits_test_set_is_a_stratified_quarter_whatever_the_split_seed(digits: Dataset) -> None:
    _, labels = everything(digits, "test")
    _, training_labels = everything(digits, "training")
    shares = labels.bincount() / (labels.bincount() + training_labels.bincount())
    assert float((shares - 0.25).abs().max()) < 0.005
    other = load(DataConfig(split_seed=5, search_fraction=0.2), CPU)
    assert torch.equal(everything(other, "test")[0], everything(digits, "test")[0])
    assert other.size("search") == pytest.approx(0.2 * other.size("training"), abs=10)


# Batches


def test_batches_are_normalised_images_and_integer_labels_in_the_order_asked(digits: Dataset) -> None:
    indices = torch.tensor([5, 2, 2, 300])
    images, labels = batch(digits, "train", indices)
    assert images.shape == (4, 3, 8, 8)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert torch.equal(images[1], images[2])
    all_images, all_labels = everything(digits, "training")
    assert torch.equal(images, all_images[digits.rows["train"][indices]])
    assert torch.equal(labels, all_labels[digits.rows["train"][indices]])


def test_training_pixels_have_mean_0_and_deviation_1(digits: Dataset) -> None:
    images, _ = everything(digits, "training")
    assert float(images.mean()) == pytest.approx(0, abs=1e-4)
    assert float(images.std()) == pytest.approx(1, abs=1e-4)


def test_a_later_start_sees_the_same_pixels(digits: Dataset) -> None:
    steps = [(step, torch.arange(step, step + 64)) for step in range(6)]
    whole = list(digits.batches("train", steps, augment=True, seed=3))
    resumed = list(digits.batches("train", iter(steps[4:]), augment=True, seed=3))
    for (images, labels), (images_again, labels_again) in zip(whole[4:], resumed, strict=True):
        assert torch.equal(images, images_again)
        assert torch.equal(labels, labels_again)


def test_steps_seeds_and_splits_draw_their_own_augmentation(digits: Dataset) -> None:
    zeros = torch.zeros(64, dtype=torch.int64)
    first = batch(digits, "training", zeros, step=1, augment=True, seed=1)[0]
    assert len(first.flatten(1).unique(dim=0)) > 1  # each position has its own window
    for step, seed in ((2, 1), (1, 2)):
        assert not torch.equal(first, batch(digits, "training", zeros, step=step, augment=True, seed=seed)[0])


def test_digits_are_shifted_by_a_pixel_but_never_mirrored(digits: Dataset) -> None:
    original = stored(digits, batch(digits, "train", torch.tensor([0]))[0])
    padded = torch.nn.functional.pad(original[0], (1, 1, 1, 1))
    windows = {padded[:, top : top + 8, left : left + 8].numpy().tobytes() for top in range(3) for left in range(3)}
    images, _ = batch(digits, "train", torch.zeros(300, dtype=torch.int64), augment=True)
    seen = {image.numpy().tobytes() for image in stored(digits, images)}
    assert seen == windows


def test_augmentation_leaves_torchs_own_generator_alone(tmp_path: Path, digits: Dataset) -> None:
    image_folder(tmp_path)
    streamed = load(folder_config(tmp_path, memory_limit_gb=0.0), CPU)
    before = torch.get_rng_state()
    for dataset in (digits, streamed):
        batch(dataset, "train", torch.arange(2), augment=True)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("indices", [[0, 10**6], [-1]])
def test_an_index_outside_the_split_is_refused(digits: Dataset, indices: list[int]) -> None:
    with pytest.raises(ValueError, match=r"do not fit the search split of digits, which has \d+ images"):
        batch(digits, "search", torch.tensor(indices))


def test_an_unknown_split_is_refused_before_the_first_batch(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type_checks, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="unknown split 'valid': choose one of train, search, training, test"):
        digits.batches("valid", [], augment=False, seed=0)  # type: ignore[arg-type]


# Size, fingerprint


def test_digits_can_be_enlarged() -> None:
    dataset = load(DataConfig(image_size=16), CPU)
    images, _ = batch(dataset, "test", torch.arange(3))
    assert images.shape == (3, 3, 16, 16)
    assert dataset.image_size == 16


def test_the_fingerprint_tells_content_apart_but_not_the_search_split(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        parquet_folder(tmp_path / name, name="same-")
    pixels = pictures(12, 8, 8, 1)
    pixels[0, 0, 0, 0] ^= 1
    write_parquet(tmp_path / "b" / "same-train.parquet", [encoded(p) for p in pixels], [0, 1, 2] * 4)
    write_parquet(tmp_path / "c" / "same-test.parquet", [encoded(p) for p in pictures(6, 8, 8, 2)], [0, 2, 1] * 2)

    def fingerprint(folder: str, **fields: Any) -> str:
        return load(DataConfig(dataset="parquet", path=tmp_path / folder, **fields), CPU).fingerprint

    assert fingerprint("a") == fingerprint("a", split_seed=5, search_fraction=0.3)
    assert len({fingerprint("a"), fingerprint("b"), fingerprint("c"), fingerprint("a", image_size=4)}) == 4


# Parquet


def test_parquet_gives_back_the_images_written(tmp_path: Path) -> None:
    training, test = parquet_folder(tmp_path, name="shapes-")
    dataset = load(DataConfig(dataset="parquet", path=tmp_path), CPU)
    assert isinstance(dataset, InMemoryDataset)
    assert (dataset.name, dataset.classes, dataset.image_size) == ("parquet:shapes", 3, 8)
    for split, pixels in (("training", training), ("test", test)):
        images, labels = everything(dataset, split)
        assert torch.equal(stored(dataset, images), torch.from_numpy(pixels).permute(0, 3, 1, 2))
        assert labels.tolist() == [0, 1, 2] * (len(pixels) // 3)


def test_parquet_reads_jpeg_and_grey_images_and_several_files(tmp_path: Path) -> None:
    grey = pictures(4, 8, 8)[..., 0]
    write_parquet(tmp_path / "train-0.parquet", [encoded(grey[0]), encoded(grey[1])], [0, 1])
    write_parquet(tmp_path / "train-1.parquet", [encoded(grey[2], "JPEG"), encoded(grey[3])], [0, 1])
    write_parquet(tmp_path / "test.parquet", [encoded(grey[0])], [0])
    dataset = load(DataConfig(dataset="parquet", path=tmp_path), CPU)
    pixels = stored(dataset, everything(dataset, "training")[0])
    assert torch.equal(pixels[3], torch.from_numpy(grey[3]).expand(3, 8, 8))
    jpeg = np.array(Image.open(io.BytesIO(encoded(grey[2], "JPEG"))))
    assert torch.equal(pixels[2, 0], torch.from_numpy(jpeg))
    assert dataset.name == f"parquet:{tmp_path.name}"


def test_a_file_name_prefix_chooses_one_dataset_of_a_folder(tmp_path: Path) -> None:
    parquet_folder(tmp_path, name="cifar10-")
    parquet_folder(tmp_path, name="cifar100-", size=4)
    for path in (tmp_path, tmp_path / "cifar10"):
        with pytest.raises(ValueError, match="as if they were several datasets"):
            load(DataConfig(dataset="parquet", path=path), CPU)
    dataset = load(DataConfig(dataset="parquet", path=tmp_path / "cifar10-"), CPU)
    assert (dataset.name, dataset.image_size) == ("parquet:cifar10", 8)


def test_a_file_that_is_named_train_and_test_is_in_neither(tmp_path: Path) -> None:
    parquet_folder(tmp_path, name="contest-")
    with pytest.raises(ValueError, match="as if they were several datasets"):
        load(DataConfig(dataset="parquet", path=tmp_path), CPU)
    assert load(DataConfig(dataset="parquet", path=tmp_path / "contest"), CPU).size("test") == 6


def test_parquet_images_of_other_sizes_need_image_size(tmp_path: Path) -> None:
    parquet_folder(tmp_path)
    odd = [encoded(p) for p in pictures(5, 8, 8)] + [encoded(pictures(1, 9, 12)[0])]
    write_parquet(tmp_path / "test.parquet", odd, [0, 1, 2] * 2)
    with pytest.raises(ValueError, match=r"row 5 of .*test.parquet is 12 x 9 pixels, but the first image is 8 x 8"):
        load(DataConfig(dataset="parquet", path=tmp_path), CPU)
    dataset = load(DataConfig(dataset="parquet", path=tmp_path, image_size=6), CPU)
    assert everything(dataset, "test")[0].shape == (6, 3, 6, 6)


def test_parquet_images_that_are_not_square_need_image_size(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [encoded(p) for p in pictures(4, 6, 8)], [0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"row 0 of .*train.parquet is 8 x 6 pixels: give `image_size`"):
        load(DataConfig(dataset="parquet", path=tmp_path), CPU)


@pytest.mark.parametrize(
    ("split", "labels", "message"),
    [
        ("train", [0, 1, 2, -1, 0, 1], "training set of .* has the label -1"),
        ("train", [0, 1, 3, 0, 1, 3], "labels up to 3 but none is 2"),
        (
            "test",
            [0, 1, 2, 3, 0, 1],
            r"test set of .* has the label 3, but the training set has only 3 classes",
        ),
        ("test", [0, 1, 2, -3, 0, 1], "test set of .* has the label -3"),
        ("train", [0, 1, 2, 0, 1, None], r"row 5 of .*train.parquet has no label"),
        ("train", [0, 0, 0, 1, 1, 2], r"class 2 has 1 training image\(s\), but the split needs at least 2"),
    ],
)
def test_wrong_labels_are_refused(tmp_path: Path, split: str, labels: list[Any], message: str) -> None:
    parquet_folder(tmp_path)
    write_parquet(tmp_path / f"{split}.parquet", [encoded(p) for p in pictures(6, 8, 8)], labels)
    with pytest.raises(ValueError, match=message):
        load(DataConfig(dataset="parquet", path=tmp_path), CPU)


@pytest.mark.parametrize("broken", [b"no image", b"", encoded(pictures(1, 8, 8)[0], "JPEG")[:-200], None])
def test_a_corrupt_image_is_named_by_file_and_row(tmp_path: Path, broken: bytes | None) -> None:
    parquet_folder(tmp_path)
    images = [encoded(p) for p in pictures(5, 8, 8)]
    write_parquet(tmp_path / "train.parquet", [*images, broken], [0, 1, 2] * 2)
    with pytest.raises(ValueError, match=r"row 5 of .*train.parquet (is no image that can be decoded|has no image)"):
        load(DataConfig(dataset="parquet", path=tmp_path), CPU)


def test_a_corrupt_parquet_file_is_named(tmp_path: Path) -> None:
    parquet_folder(tmp_path)
    whole = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train.parquet is no parquet file that can be read"):
        load(DataConfig(dataset="parquet", path=tmp_path), CPU)
    (tmp_path / "train.parquet").write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    with pytest.raises(ValueError, match=r"train.parquet (cannot be read from row 0 on|is no parquet file)"):
        load(DataConfig(dataset="parquet", path=tmp_path), CPU)


def test_parquet_columns_are_checked(tmp_path: Path) -> None:
    parquet_folder(tmp_path)
    pq.write_table(pa.table({"img": [b""], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"no column 'image', only img, label"):
        load(DataConfig(dataset="parquet", path=tmp_path), CPU)
    pq.write_table(pa.table({"image": [b""], "label": ["cat"]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"column 'label' of .* is string, but must be integer"):
        load(DataConfig(dataset="parquet", path=tmp_path), CPU)


def test_missing_and_empty_parquet_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \*train\*.parquet in"):
        load(DataConfig(dataset="parquet", path=tmp_path), CPU)
    parquet_folder(tmp_path)
    write_parquet(tmp_path / "test.parquet", [], [])
    with pytest.raises(ValueError, match=r"the test set of .* is empty"):
        load(DataConfig(dataset="parquet", path=tmp_path), CPU)


def test_too_much_to_decode_into_memory_is_refused_with_the_numbers(tmp_path: Path) -> None:
    parquet_folder(tmp_path)
    with pytest.raises(ValueError, match=r"18 images of 2000 x 2000 pixels take 0.2 GB decoded, more than .* = 0.1"):
        load(DataConfig(dataset="parquet", path=tmp_path, image_size=2000, memory_limit_gb=0.1), CPU)


# CIFAR


def write_cifar(path: Path, *, hundred: bool) -> dict[str, np.ndarray]:
    folder = path / ("cifar-100-python" if hundred else "cifar-10-batches-py")
    folder.mkdir()
    files = {"train": 40, "test": 20} if hundred else {f"data_batch_{i}": 10 for i in range(1, 6)} | {"test_batch": 20}
    pixels = {}
    for number, (name, count) in enumerate(files.items()):
        pixels[name] = np.random.default_rng(number).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        content = {
            "data": pixels[name].reshape(count, -1),
            "fine_labels" if hundred else "labels": [row % 10 for row in range(count)],
        }
        (folder / name).write_bytes(pickle.dumps(content))
    names = {"fine_label_names": ["x"] * 100} if hundred else {"label_names": ["x"] * 10}
    (folder / ("meta" if hundred else "batches.meta")).write_bytes(pickle.dumps(names))
    return pixels


def test_cifar10_is_read_in_torchvisions_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = write_cifar(tmp_path, hundred=False)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    dataset = load(DataConfig(dataset="cifar10", path=tmp_path), CPU)
    assert (dataset.name, dataset.classes, dataset.image_size) == ("cifar10", 10, 32)
    training = np.concatenate([pixels[f"data_batch_{i}"] for i in range(1, 6)])
    assert torch.equal(stored(dataset, everything(dataset, "training")[0]), torch.from_numpy(training))
    assert torch.equal(stored(dataset, everything(dataset, "test")[0]), torch.from_numpy(pixels["test_batch"]))
    assert dataset.mean == (125.3 / 255, 123.0 / 255, 113.9 / 255)
    assert dataset.std == (63.0 / 255, 62.1 / 255, 66.7 / 255)


def test_cifar_images_are_mirrored_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, hundred=False)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    for flip, expected in ((None, True), (True, True), (False, False)):
        dataset = load(DataConfig(dataset="cifar10", path=tmp_path, horizontal_flip=flip), CPU)
        assert isinstance(dataset, InMemoryDataset)
        assert dataset.horizontal_flip is expected


def test_cifar100_needs_images_of_all_its_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, hundred=True)  # labels 0 to 9 only
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    with pytest.raises(ValueError, match="class 10 has 0 training image"):
        load(DataConfig(dataset="cifar100", path=tmp_path), CPU)


@pytest.mark.parametrize(
    ("dataset", "folder", "archive"),
    [
        ("cifar10", "cifar-10-batches-py", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python", "cifar-100-python.tar.gz"),
    ],
)
def test_missing_and_corrupt_cifar_say_what_to_unpack_where(
    tmp_path: Path, dataset: Any, folder: str, archive: str
) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path} holds no {folder}: unpack {archive}"):
        load(DataConfig(dataset=dataset, path=tmp_path), CPU)
    write_cifar(tmp_path, hundred=dataset == "cifar100")  # not the published bytes
    with pytest.raises(ValueError, match=f"{folder} is incomplete or corrupt"):
        load(DataConfig(dataset=dataset, path=tmp_path), CPU)


# Folders and ImageNet


@pytest.mark.parametrize("size", [(16, 16), (40, 25)])
def test_a_folder_gives_the_same_pixels_from_memory_and_streamed(tmp_path: Path, size: tuple[int, int]) -> None:
    image_folder(tmp_path, size=size)
    in_memory = load(folder_config(tmp_path), CPU)
    streamed = load(folder_config(tmp_path, memory_limit_gb=0.0), CPU)
    assert isinstance(in_memory, InMemoryDataset)
    assert isinstance(streamed, StreamedDataset)
    assert in_memory.name == streamed.name == f"folder:{tmp_path.name}"
    assert in_memory.fingerprint != streamed.fingerprint  # they normalise differently
    for split in ("train", "search", "training", "test"):
        (images, labels), (same_images, same_labels) = (
            everything(in_memory, split),
            everything(streamed, split),
        )
        assert torch.equal(stored(in_memory, images), stored(streamed, same_images))
        assert torch.equal(labels, same_labels)
    if size == (16, 16):
        bee = torch.from_numpy(pictures(4, 16, 16, seed=1)).permute(0, 3, 1, 2)
        assert torch.equal(stored(in_memory, everything(in_memory, "training")[0])[4:], bee)


def test_streamed_batches_do_not_depend_on_the_number_of_processes_or_the_start(tmp_path: Path) -> None:
    image_folder(tmp_path, size=(30, 40))
    steps = [(step, torch.tensor([step % 4, 3, 0])) for step in range(5)]

    def batches(workers: int, first: int, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
        dataset = load(folder_config(tmp_path, memory_limit_gb=0.0, loader_workers=workers), CPU)
        return list(dataset.batches("train", steps[first:], augment=True, seed=seed))

    whole, resumed, other = batches(0, 0), batches(2, 2), batches(0, 2, seed=2)
    for here, there, different in zip(whole[2:], resumed, other, strict=True):
        assert torch.equal(here[0], there[0])
        assert torch.equal(here[1], there[1])
        assert not torch.equal(here[0], different[0])
    change = whole[0][0][2] - whole[1][0][2]  # the same image and position, at another step
    assert float((change - change[:, :1, :1]).abs().max()) > 0.5  # another view, not only other lighting


def test_imagenet_is_streamed_from_train_and_val(tmp_path: Path) -> None:
    image_folder(tmp_path, test="val", size=(300, 260))
    dataset = load(DataConfig(dataset="imagenet", path=tmp_path, loader_workers=0), CPU)
    assert isinstance(dataset, StreamedDataset)
    assert (dataset.name, dataset.image_size, dataset.classes) == ("imagenet", 224, 2)
    assert batch(dataset, "test", torch.tensor([1]))[0].shape == (1, 3, 224, 224)
    assert dataset.mean == (0.485, 0.456, 0.406)


def test_a_folder_prefers_test_over_val(tmp_path: Path) -> None:
    image_folder(tmp_path, test="val")
    assert load(folder_config(tmp_path), CPU).size("test") == 4
    for name in ("ant", "bee"):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.fromarray(pictures(1, 16, 16)[0]).save(tmp_path / "test" / name / "only.png")
    assert load(folder_config(tmp_path), CPU).size("test") == 2


def test_train_and_test_folders_must_have_the_same_classes(tmp_path: Path) -> None:
    image_folder(tmp_path)
    (tmp_path / "test" / "bee").rename(tmp_path / "test" / "cow")
    with pytest.raises(ValueError, match="only one of the two has bee, cow: both need the same class folders"):
        load(folder_config(tmp_path), CPU)


def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no folder train"):
        load(folder_config(tmp_path), CPU)
    image_folder(tmp_path, test="other")
    with pytest.raises(ValueError, match="holds no folder test or val"):
        load(folder_config(tmp_path), CPU)
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match="must hold one folder of images for each class"):
        load(folder_config(tmp_path), CPU)


@pytest.mark.parametrize(("memory_limit_gb", "workers"), [(1.0, 0), (0.0, 0), (0.0, 1)])
def test_a_corrupt_image_file_is_named(tmp_path: Path, memory_limit_gb: float, workers: int) -> None:
    image_folder(tmp_path)
    file = tmp_path / "train" / "bee" / "2.png"
    file.write_bytes(file.read_bytes()[:300])
    config = folder_config(tmp_path, memory_limit_gb=memory_limit_gb, loader_workers=workers)
    with pytest.raises(ValueError, match=r"bee/2.png is no image that can be decoded"):
        everything(load(config, CPU), "training")


def test_names_outside_ascii_are_found(tmp_path: Path) -> None:
    image_folder(tmp_path)
    for split in ("train", "test"):
        (tmp_path / split / "bee").rename(tmp_path / split / "蜂")
    streamed = load(folder_config(tmp_path, memory_limit_gb=0.0), CPU)
    assert everything(streamed, "training")[1].tolist() == [0] * 4 + [1] * 4


# Configuration


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "mnist"}, "unknown dataset 'mnist': choose one of digits, cifar10"),
        ({"dataset": "cifar10"}, "cifar10 needs `path`"),
        ({"path": Path("here")}, "digits come with scikit-learn and are not read from here"),
        ({"dataset": "folder", "path": Path("here")}, "folder needs `image_size`"),
        ({"image_size": 0}, "image_size is 0, but must be at least 1"),
        ({"search_fraction": 0.0}, "search_fraction is 0.0, but must lie between 0 and 1"),
        ({"search_fraction": 1.0}, "search_fraction is 1.0, but must lie between 0 and 1"),
        ({"search_fraction": float("nan")}, "search_fraction is nan"),
        ({"memory_limit_gb": -1.0}, "memory_limit_gb is -1.0"),
        ({"loader_workers": -1}, "loader_workers is -1"),
    ],
)
def test_a_wrong_configuration_is_refused(
    fields: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type_checks, "jaxtyping_disable", True)  # users run without them
    with pytest.raises(ValueError, match=message):
        DataConfig(**fields)


@pytest.mark.parametrize("dataset", ["cifar10", "imagenet", "folder", "parquet"])
def test_a_path_that_does_not_exist_is_refused(tmp_path: Path, dataset: Any) -> None:
    config = DataConfig(dataset=dataset, path=tmp_path / "nowhere" / "below", image_size=16)
    with pytest.raises(ValueError, match=f"nowhere.*where {dataset} should lie, is no folder on this machine"):
        load(config, CPU)
