"""Splits, batches, and the three sources."""

import copy
import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from cifar_lightning.data import FolderData, ShapesData
from cifar_lightning.data.batches import BatchOrder
from cifar_lightning.data.module import channel_statistics, split_balanced
from cifar_lightning.errors import DataUnavailable, UserError

# ------------------------------------------------------------------ splits and batches


def test_split_is_balanced_disjoint_and_complete() -> None:
    labels = torch.arange(1000) % 10
    val, train = split_balanced(labels, 200, seed=3)
    assert torch.equal(labels[val].bincount(), torch.full((10,), 20))
    assert torch.equal(torch.cat([val, train]).sort().values, torch.arange(1000))


def test_split_keeps_the_shares_of_uneven_classes() -> None:
    labels = torch.tensor([0] * 70 + [1] * 25 + [2] * 5)
    val, _ = split_balanced(labels, 19, seed=0)
    assert labels[val].bincount().tolist() == [13, 5, 1]


def test_split_depends_on_its_seed_alone() -> None:
    labels = torch.arange(500) % 10
    first, _ = split_balanced(labels, 50, seed=1)
    torch.manual_seed(99)
    assert torch.equal(first, split_balanced(labels, 50, seed=1)[0])
    assert not torch.equal(first, split_balanced(labels, 50, seed=2)[0])


def test_the_runs_seed_does_not_move_the_validation_split() -> None:
    parts = []
    for seed in (0, 1):
        data = ShapesData(train_size=200, test_size=50, val_size=50, batch_size=10, seed=seed)
        data.setup()
        assert data.val is not None
        parts.append(data.val.images)
    assert torch.equal(*parts)


@pytest.mark.parametrize(("val_size", "count"), [(50, 50), (0.25, 50), (0, 0)])
def test_val_size_is_a_count_a_fraction_or_nothing(val_size: float, count: int) -> None:
    data = ShapesData(train_size=200, test_size=50, val_size=val_size, batch_size=10)
    data.setup()
    assert (0 if data.val is None else len(data.val)) == count
    assert len(data.train_index) == 200 - count


@pytest.mark.parametrize("val_size", [200, 5000, 1.0, -5, 3, 0.001])
def test_val_size_out_of_range_is_refused(val_size: float) -> None:
    data = ShapesData(train_size=200, test_size=50, val_size=val_size, batch_size=10)
    with pytest.raises(UserError, match=r"count from 10 .* to 199, a fraction such as 0.1, or 0"):
        data.setup()


def test_a_batch_larger_than_the_data_is_refused() -> None:
    data = ShapesData(train_size=200, test_size=50, val_size=50, batch_size=151)
    with pytest.raises(
        UserError, match="batch_size=151 is not from 1 to 150, the number of training"
    ):
        data.setup()


def test_training_and_validation_images_do_not_overlap(shapes: ShapesData) -> None:
    seen = torch.cat([index for _, _, index in shapes.train_dataloader()])
    assert len(seen) == len(seen.unique()) == 300
    assert shapes.val is not None
    train_images = {bytes(image.numpy()) for image in shapes.train.images[seen]}
    val_images = {bytes(image.numpy()) for image in shapes.val.images}
    assert len(train_images) == 300
    assert not train_images & val_images


def test_batches_hold_images_labels_and_their_positions(shapes: ShapesData) -> None:
    images, labels, index = next(iter(shapes.train_dataloader()))
    assert (images.dtype, images.shape) == (torch.uint8, (50, 3, 32, 32))
    assert torch.equal(images, shapes.train.images[index])
    assert torch.equal(labels, shapes.train.labels[index])


def test_validation_and_test_come_whole_and_in_order(shapes: ShapesData) -> None:
    loader = shapes.test_dataloader()
    assert torch.equal(torch.cat([images for images, _, _ in loader]), shapes.test.images)


def batches(order: BatchOrder) -> list[list[int]]:
    return [batch.tolist() for batch in order]


def test_order_is_new_in_each_epoch_and_the_same_for_a_seed() -> None:
    order = BatchOrder(torch.arange(100, 200), 30, seed=5)
    first = batches(order)
    assert [len(batch) for batch in first] == [30, 30, 30]  # 10 left out
    order.set_epoch(1)
    assert batches(order) != first
    order.set_epoch(0)
    assert batches(order) == first
    assert batches(BatchOrder(torch.arange(100, 200), 30, seed=6)) != first


@pytest.mark.parametrize("given", [1, 2, 3, 4])
def test_an_order_goes_on_within_an_epoch(given: int) -> None:
    """Of five batches, of which two are those with the largest losses once more."""

    def order(losses: Tensor) -> BatchOrder:
        made = BatchOrder(torch.arange(30), 10, 5, revisit=0.7, losses=losses)
        made.set_epoch(4)
        return made

    def take(order: BatchOrder, losses: Tensor, count: int | None = None) -> list[list[int]]:
        """As a training does, which notes the losses of each batch."""
        taken = []
        for batch in islice(order, count):
            losses[batch] = (losses[batch].nan_to_num(posinf=0) + batch * 7 % 11).float()
            taken.append(batch.tolist())
        return taken

    losses, stopped, others = torch.zeros(30), torch.zeros(30), torch.zeros(30)
    whole = take(order(losses), losses)
    assert len(whole) == 5
    first = order(stopped)
    before = take(first, stopped, given)
    state = copy.deepcopy(first.state_dict())
    again = order(others)
    again.load_state_dict(state)
    assert before + take(again, others) == whole
    assert others.equal(losses)
    # And the next epoch is a whole one.
    again.set_epoch(5)
    assert len(take(again, others)) == 5


def test_order_without_a_seed_is_as_given_and_complete() -> None:
    order = BatchOrder(torch.arange(7), 3, seed=None)
    assert batches(order) == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(order) == 3


def test_devices_share_each_batch() -> None:
    one = batches(BatchOrder(torch.arange(90), 30, seed=5))
    two = [batches(BatchOrder(torch.arange(90), 30, 5, rank, 2)) for rank in (0, 1)]
    for whole, left, right in zip(one, *two, strict=True):
        assert sorted(left + right) == sorted(whole)
        assert len(left) == len(right) == 15


def test_devices_evaluate_whole_batches_in_turn_and_all_as_many() -> None:
    orders = [BatchOrder(torch.arange(7), 3, None, rank, 2) for rank in (0, 1)]
    assert [batches(order) for order in orders] == [[[0, 1, 2], [6]], [[3, 4, 5], []]]
    assert [len(order) for order in orders] == [2, 2]


def test_channel_statistics_are_exact() -> None:
    images = torch.randint(0, 256, (20, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    mean, std = channel_statistics(images.byte())
    scaled = images.double().transpose(0, 1).flatten(1) / 255
    assert mean == pytest.approx(scaled.mean(1).tolist())
    assert std == pytest.approx(scaled.std(1, correction=0).tolist())


# ------------------------------------------------------------------------------ shapes


def test_shapes_are_the_same_for_a_seed_and_balanced() -> None:
    first, again = (ShapesData(train_size=300, test_size=100).load() for _ in range(2))
    other = ShapesData(train_size=300, test_size=100, data_seed=1).load()
    assert torch.equal(first.train.images, again.train.images)
    assert not torch.equal(first.train.images, other.train.images)
    assert torch.equal(first.train.labels.bincount(), torch.full((10,), 30))
    assert first.train.images.shape == (300, 3, 32, 32)
    assert first.train.images.dtype == torch.uint8
    assert len(first.classes) == 10


def test_a_linear_model_stays_under_40_percent_on_shapes() -> None:
    parts = ShapesData().load()

    def features(images: Tensor) -> Tensor:
        return torch.cat([images.flatten(1) / 255 - 0.5, torch.ones(len(images), 1)], 1)

    # Ridge regression to one-hot labels, the best of several strengths, chosen on the test
    # images themselves: in the linear model's favour.
    x, y = features(parts.train.images), torch.nn.functional.one_hot(parts.train.labels).float()
    gram = x.T @ x
    accuracies = []
    for strength in (1.0, 30.0, 1000.0):
        weights = torch.linalg.solve(gram + strength * torch.eye(len(gram)), x.T @ y)
        guesses = (features(parts.test.images) @ weights).argmax(1)
        accuracies.append((guesses == parts.test.labels).float().mean().item())
    assert 0.08 < max(accuracies) < 0.40


# ------------------------------------------------------------------------ class folders

Files = dict[str, bytes]


def png(colour: tuple[int, int, int], size: tuple[int, int] = (32, 32), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(file, "png")
    return file.getvalue()


def small_data_set(above: str = "") -> Files:
    """Two classes; the file names interleave them, as official indices do."""
    files = {f"{above}labels.txt": b"cat\ndog\n", f"{above}train/cat/.hidden": b""}
    for part, count in (("train", 12), ("test", 4)):
        for i in range(count):
            kind = ("cat", "dog")[i % 2]
            files[f"{above}{part}/{kind}/{i:05d}.png"] = png(
                (10 * i, 0, 200 if kind == "dog" else 0)
            )
    return files


def write_folder(path: Path, files: Files) -> Path:
    for name, content in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return path


def write_tar(path: Path, files: Files, mode: str = "w:xz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_zip(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


SOURCES: dict[str, Callable[[Path, Files], Path]] = {
    "folder": lambda path, files: write_folder(path / "set", files),
    "tar.xz": lambda path, files: write_tar(path / "set.tar.xz", files),
    "tgz": lambda path, files: write_tar(path / "set.tgz", files, "w:gz"),
    "tar": lambda path, files: write_tar(path / "set.tar", files, "w"),
    "zip": lambda path, files: write_zip(path / "set.zip", files),
}


def folder_data(path: Path, **arguments: int) -> FolderData:
    return FolderData(path, batch_size=2, val_size=2, cache_dir=path.parent / "cache", **arguments)


def ready(data: FolderData) -> FolderData:
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("above", ["", "cifar10/deep/"])
def test_folders_and_archives_give_the_same_images(tmp_path: Path, kind: str, above: str) -> None:
    data = ready(folder_data(SOURCES[kind](tmp_path, small_data_set(above))))
    assert data.classes == ("cat", "dog")
    assert data.train.images.shape == (12, 3, 32, 32)
    assert data.train.images.dtype == torch.uint8
    # In the order of the file names, the classes interleaved.
    assert data.train.images[:, 0, 0, 0].tolist() == [10 * i for i in range(12)]
    assert data.train.labels.tolist() == [0, 1] * 6
    assert data.test.labels.tolist() == [0, 1] * 2
    assert data.test.images[1, :, 5, 5].tolist() == [10, 0, 200]


def test_numbers_in_names_count_by_value(tmp_path: Path) -> None:
    files = {}
    for part, count in (("train", 12), ("test", 4)):
        for i in range(count):
            kind = ("cat", "dog")[i % 2]
            files[f"{part}/{kind}/{i}_{kind}.png"] = png((10 * i, 0, 0))  # as fast.ai names them
    data = ready(folder_data(write_folder(tmp_path / "set", files)))
    assert data.train.images[:, 0, 0, 0].tolist() == [10 * i for i in range(12)]


def test_other_modes_become_rgb_and_rotated_photographs_are_turned(tmp_path: Path) -> None:
    files = small_data_set()
    files["train/cat/00000.png"] = png((90, 90, 90), mode="L")
    files["train/cat/00002.png"] = png((90, 80, 70), mode="RGBA")
    photograph = Image.new("RGB", (32, 32))
    photograph.paste((255, 255, 255), (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    file = io.BytesIO()
    photograph.save(file, "png", exif=exif)
    files["train/cat/00004.png"] = file.getvalue()
    images = ready(folder_data(write_folder(tmp_path / "set", files))).train.images
    assert images[0, :, 0, 0].tolist() == [90, 90, 90]
    assert images[2, :, 0, 0].tolist() == [90, 80, 70]
    assert images[4, 0, :, 0].tolist() == [0] * 16 + [255] * 16


def test_the_cache_spares_decoding_until_the_source_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_folder(tmp_path / "set", small_data_set())
    decoded = []
    original = Image.open

    def counting(file: io.BytesIO) -> Image.Image:
        decoded.append(file)
        return original(file)

    monkeypatch.setattr(Image, "open", counting)
    ready(folder_data(path))
    assert len(decoded) == 16
    ready(folder_data(path))
    assert len(decoded) == 16
    changed = path / "train/cat/00000.png"
    changed.write_bytes(png((77, 0, 0)))
    os.utime(changed, ns=(1, 1))
    data = ready(folder_data(path))
    assert len(decoded) == 32
    assert data.train.images[0, 0, 0, 0] == 77
    (path / "train/cat/00012.png").write_bytes(png((1, 2, 3)))
    assert len(ready(folder_data(path)).train) == 13


def test_a_channel_that_never_changes_can_be_divided_by(tmp_path: Path) -> None:
    data = ready(folder_data(write_folder(tmp_path / "set", small_data_set())))
    assert data.mean[1] == 0.0
    assert data.std[1] == 1.0
    assert 0 < data.std[0] < 1


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set", small_data_set())
    ready(folder_data(path))
    (cache,) = (tmp_path / "cache").glob("*.pt")
    cache.write_bytes(cache.read_bytes()[:1000])
    assert len(ready(folder_data(path)).train) == 12


def test_image_size_resizes_and_has_a_cache_of_its_own(tmp_path: Path) -> None:
    files = small_data_set() | {"train/cat/00000.png": png((9, 9, 9), (40, 64))}
    path = write_folder(tmp_path / "set", files)
    assert ready(folder_data(path, image_size=24)).train.images.shape[2:] == (24, 24)
    assert ready(folder_data(path, image_size=36)).train.images.shape[2:] == (36, 36)


MISTAKES: dict[str, tuple[Files, str]] = {
    "mixed sizes": (
        {"train/dog/00011.png": png((0, 0, 0), (40, 30))},
        r"mixed sizes: .* 32 x 32 pixels, train/dog/00011.png has 40 x 30 pixels\.",
    ),
    "not an image": ({"train/dog/notes.png": b"hello"}, "train/dog/notes.png is not an image"),
    "truncated image": (
        {"train/dog/00001.png": png((1, 2, 3))[:60]},
        "train/dog/00001.png is not an image that can be read",
    ),
    "a class without test images": ({"train/emu/0.png": png((1, 1, 1))}, "differ in .* emu"),
    "two data sets": ({"b/train/cat/0.png": png((1, 1, 1))}, "more than one data set"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("kind", ["folder", "tar.xz", "zip"])
def test_what_is_wrong_with_the_images_is_named(tmp_path: Path, kind: str, mistake: str) -> None:
    extra, message = MISTAKES[mistake]
    path = SOURCES[kind](tmp_path, small_data_set() | extra)
    with pytest.raises(UserError, match=message):
        folder_data(path).prepare_data()
    assert not list((tmp_path / "cache").glob("*.pt"))


@pytest.mark.parametrize("kind", ["folder", "tar.xz", "zip"])
@pytest.mark.parametrize("places", [("train/emu",), ("train/emu", "test/emu")])
def test_an_empty_class_folder_is_named(tmp_path: Path, kind: str, places: tuple[str, ...]) -> None:
    source = write_folder(tmp_path / "whole", small_data_set("deep/"))
    for place in (*places, ".hidden", "train/.hidden", "elsewhere"):
        (source / "deep" / place).mkdir(parents=True)
    path = {
        "folder": lambda: source,
        "tar.xz": lambda: Path(shutil.make_archive(str(tmp_path / "x"), "xztar", source)),
        "zip": lambda: Path(shutil.make_archive(str(tmp_path / "x"), "zip", source)),
    }[kind]()
    named = ", ".join(sorted(places))
    with pytest.raises(UserError, match=f"no images in the class folders {named}\\. Wanted"):
        folder_data(path).prepare_data()


@pytest.mark.parametrize("kind", ["tar.xz", "tgz", "zip"])
@pytest.mark.parametrize("name", ["../outside.png", "train/../../outside.png", "/outside.png"])
def test_an_archive_cannot_write_outside(tmp_path: Path, kind: str, name: str) -> None:
    path = SOURCES[kind](tmp_path, small_data_set() | {name: png((1, 1, 1))})
    with pytest.raises(UserError, match="points out of it"):
        folder_data(path).prepare_data()
    assert not list(tmp_path.rglob("outside.png"))
    assert not list(tmp_path.parent.glob("outside.png"))


@pytest.mark.parametrize("kind", ["tar.xz", "tgz", "tar", "zip"])
def test_a_truncated_archive_is_named(tmp_path: Path, kind: str) -> None:
    path = SOURCES[kind](tmp_path, small_data_set())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"set\.\S+ is damaged or not an archive|holds no images"):
        folder_data(path).prepare_data()


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    files = {name: content for name, content in small_data_set().items() if "test" not in name}
    with pytest.raises(UserError, match=r"no images for test\. Wanted: train/<class>/"):
        folder_data(write_folder(tmp_path / "set", files)).prepare_data()


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    files = {name: content for name, content in small_data_set().items() if "dog" not in name}
    with pytest.raises(UserError, match=r"one class, cat: .* Wanted: .*, of two classes or more"):
        folder_data(write_folder(tmp_path / "set", files)).prepare_data()


def test_oblong_images_are_refused_until_they_are_cut(tmp_path: Path) -> None:
    files = {
        f"{part}/{kind}/{i}.png": png((9 * i, 9, 9), (40, 30))
        for part in ("train", "test")
        for kind in ("cat", "dog")
        for i in range(4)
    }
    path = write_folder(tmp_path / "set", files)
    with pytest.raises(UserError, match=r"40 x 30 pixels; .* data\.image_size=30 cuts each"):
        ready(folder_data(path))
    assert ready(folder_data(path, image_size=30)).image_size == 30


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match=r"nowhere: there is no such file"):
        folder_data(tmp_path / "nowhere").prepare_data()
    with pytest.raises(DataUnavailable, match="CIFAR10_FOLDER"):
        FolderData(None).prepare_data()
