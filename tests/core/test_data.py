"""Splits, batches, and generated images."""

import copy
from itertools import islice

import pytest
import torch
from torch import Tensor

from cifar_lightning.data import ShapesData, split_balanced
from cifar_lightning.data.datamodule import channel_statistics
from cifar_lightning.data.sampler import InOrderSampler, TrainSampler
from cifar_lightning.data.splits import find_label_shift
from cifar_lightning.errors import UserError

# ------------------------------------------------------------------ splits and batches


def test_split_is_balanced_disjoint_and_complete() -> None:
    labels = torch.arange(1000) % 10
    val, train = split_balanced(labels, 200, seed=3)
    assert torch.equal(labels[val].bincount(), torch.full((10,), 20))
    assert torch.equal(torch.cat([val, train]).sort().values, torch.arange(1000))
    # Of uneven classes, it keeps the shares.
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
    splits = []
    for seed in (0, 1):
        data = ShapesData(train_size=200, test_size=50, val_size=50, batch_size=10, seed=seed)
        data.setup()
        assert data.val is not None
        splits.append(data.val.images)
    assert torch.equal(*splits)


def test_shares_of_classes_that_differ_from_train_to_test_are_found() -> None:
    balanced, uneven = torch.arange(200) % 10, torch.tensor([0] * 500 + [1] * 400 + [2] * 100)
    assert find_label_shift(torch.arange(5000) % 10, balanced) is None
    assert find_label_shift(uneven, uneven[::10]) is None
    few_and_many = torch.cat([torch.arange(5).repeat(100), torch.arange(5, 10).repeat(10)])
    shift = find_label_shift(few_and_many, balanced)
    assert shift is not None
    assert shift.distance == pytest.approx(0.409, abs=1e-3)
    assert shift.train_share == pytest.approx(100 / 550)
    assert shift.test_share == pytest.approx(0.1)
    assert shift.label < 5
    assert find_label_shift(few_and_many, balanced[:10]) is None  # too few to tell
    # A little, which may still move the accuracy by more than the target's margin.
    shifted = torch.cat([torch.arange(10).repeat(960), torch.zeros(400, dtype=torch.int64)])
    assert find_label_shift(torch.arange(50_000) % 10, shifted) is not None


def test_a_random_division_of_few_images_has_no_label_shift() -> None:
    generator = torch.Generator().manual_seed(0)
    for classes, per_class in ((2, 6), (5, 4), (10, 20), (50, 3)):
        labels = torch.arange(classes).repeat(per_class)
        for _ in range(20):
            labels = labels[torch.randperm(len(labels), generator=generator)]
            test = labels[: len(labels) // 5]
            assert find_label_shift(labels[len(test) :], test) is None


@pytest.mark.parametrize(("val_size", "count"), [(50, 50), (0.25, 50), (0, 0)])
def test_val_size_is_a_count_a_fraction_or_nothing(val_size: float, count: int) -> None:
    data = ShapesData(train_size=200, test_size=50, val_size=val_size, batch_size=10)
    data.setup()
    assert (0 if data.val is None else len(data.val)) == count
    assert len(data.train_index) == 200 - count


@pytest.mark.parametrize("val_size", [200, 5000, 1.0, -5, 3, 0.001])
def test_val_size_out_of_range_is_refused(val_size: float) -> None:
    data = ShapesData(train_size=200, test_size=50, val_size=val_size, batch_size=10)
    with pytest.raises(UserError, match=r"number from 10 .* to 199, a fraction such as 0.1, or 0"):
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


def batches(order: TrainSampler | InOrderSampler) -> list[list[int]]:
    return [batch.tolist() for batch in order]


def test_order_is_new_in_each_epoch_and_the_same_for_a_seed() -> None:
    order = TrainSampler(torch.arange(100, 200), 30, seed=5)
    first = batches(order)
    assert [len(batch) for batch in first] == [30, 30, 30]  # 10 left out
    order.set_epoch(1)
    assert batches(order) != first
    order.set_epoch(0)
    assert batches(order) == first
    assert batches(TrainSampler(torch.arange(100, 200), 30, seed=6)) != first


@pytest.mark.parametrize("served", [1, 2, 3, 4])
def test_batches_resume_within_an_epoch(served: int) -> None:
    """Of five batches, of which two are those with the largest losses once more."""

    def order(losses: Tensor) -> TrainSampler:
        made = TrainSampler(torch.arange(30), 10, 5, replay=0.7, losses=losses)
        made.set_epoch(4)
        return made

    def take(order: TrainSampler, losses: Tensor, count: int | None = None) -> list[list[int]]:
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
    before = take(first, stopped, served)
    state = copy.deepcopy(first.state_dict())
    again = order(others)
    again.load_state_dict(state)
    assert before + take(again, others) == whole
    assert others.equal(losses)
    # And the next epoch is a whole one.
    again.set_epoch(5)
    assert len(take(again, others)) == 5


def test_evaluation_batches_are_in_order_and_complete() -> None:
    order = InOrderSampler(7, 3)
    assert batches(order) == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(order) == 3


def test_devices_share_each_batch() -> None:
    one = batches(TrainSampler(torch.arange(90), 30, seed=5))
    two = [batches(TrainSampler(torch.arange(90), 30, 5, rank, 2)) for rank in (0, 1)]
    for whole, left, right in zip(one, *two, strict=True):
        assert sorted(left + right) == sorted(whole)
        assert len(left) == len(right) == 15


def test_devices_evaluate_whole_batches_in_turn_and_all_as_many() -> None:
    orders = [InOrderSampler(7, 3, rank, 2) for rank in (0, 1)]
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


def test_a_linear_model_of_2000_shapes_stays_near_chance() -> None:
    data = ShapesData(train_size=2000).load()
    # Ridge regression to one-hot labels; from 1 to 10,000, its strength hardly matters.
    train, test = (split.images.flatten(1) / 255 - 0.5 for split in (data.train, data.test))
    labels = torch.nn.functional.one_hot(data.train.labels).float()
    similarity = train @ train.T  # [N, N]
    weights = torch.linalg.solve(similarity + 1000.0 * torch.eye(len(train)), labels)
    predictions = (test @ train.T @ weights).argmax(1)
    assert 0.08 < (predictions == data.test.labels).float().mean().item() < 0.20


def test_every_epoch_chooses_anew_what_comes_again() -> None:
    """Else a resumed run, which knows of no earlier epoch, would go another way."""
    losses = torch.zeros(10)
    order = TrainSampler(torch.arange(10), 4, seed=0, replay=0.4, losses=losses)
    for _ in range(2):
        batches = iter(order)
        first = torch.cat([next(batches), next(batches)])
        assert losses.isinf().all()
        losses[first] = torch.arange(8.0)
        # The two that had no place in a whole batch, and the two with the largest losses.
        left_out = set(range(10)) - set(first.tolist())
        assert set(next(batches).tolist()) == left_out | set(first[-2:].tolist())
        losses.fill_(-1.0)
        assert next(batches, None) is None
