from collections.abc import Callable
from functools import partial
from typing import Literal

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from cifar_lightning.training.augment import (
    Augment,
    Torchvision,
    alternating_flip,
    cutmix,
    cutout,
    flip,
    random_flip,
    random_shift,
    scale,
)

Augmentation = Callable[[Tensor, torch.Generator], Tensor]

AUGMENTATIONS: dict[str, Augmentation] = {
    "random_shift": lambda images, generator: random_shift(images, 3, generator),
    "random_flip": random_flip,
    "alternating_flip": lambda images, _: alternating_flip(images, torch.arange(len(images)), 0),
    "cutout": lambda images, generator: cutout(images, 5, generator),
    "torchvision": Torchvision([v2.RandomRotation(90)]),
    "cutmix": lambda images, generator: cutmix(images, 0.7, generator)[0],
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same_image(n: int = 64) -> Tensor:
    """[n, 3, 9, 12], one image n times, every pixel another value."""
    return torch.arange(3 * 9 * 12).view(1, 3, 9, 12).remainder(251).repeat(n, 1, 1, 1)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_shape_and_dtype_stay_and_the_input_is_untouched(name: str, dtype: torch.dtype) -> None:
    images = same_image().to(dtype)
    before = images.clone()
    augmented = AUGMENTATIONS[name](images, generator())
    assert augmented.shape == images.shape
    assert augmented.dtype == dtype
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_equal_generators_give_equal_images_which_differ_within_a_batch(name: str) -> None:
    first = AUGMENTATIONS[name](same_image(), generator(1))
    assert torch.equal(first, AUGMENTATIONS[name](same_image(), generator(1)))
    if name == "cutmix":  # which mixes one image with itself here
        return
    assert len(first.flatten(1).unique(dim=0)) > 1
    if name != "alternating_flip":  # which draws nothing
        assert not torch.equal(first, AUGMENTATIONS[name](same_image(), generator(2)))


def test_shift_is_a_crop_from_the_reflection_padded_image() -> None:
    images = same_image(200).float()
    padded = torch.nn.functional.pad(images[:1], (2, 2, 2, 2), mode="reflect")[0]
    crops = {
        (top, left): padded[:, top : top + 9, left : left + 12]
        for top in range(5)
        for left in range(5)
    }
    seen = set()
    for shifted in random_shift(images, 2, generator()):
        matches = [offset for offset, crop in crops.items() if torch.equal(crop, shifted)]
        assert len(matches) == 1
        seen.update(matches)
    assert seen == set(crops)  # every offset comes up


@pytest.mark.parametrize("max_shift", [-1, 9])
def test_shift_refuses_what_reflection_cannot_fill(max_shift: int) -> None:
    with pytest.raises(ValueError, match=f"from 0 to 8, not {max_shift}"):
        random_shift(same_image(), max_shift, generator())


def test_flip_mirrors_the_chosen_images_only() -> None:
    images = same_image(2)
    flipped = flip(images, torch.tensor([True, False]))
    assert torch.equal(flipped[0], images[0].flip(-1))
    assert torch.equal(flipped[1], images[1])


def test_random_flip_mirrors_about_half() -> None:
    flipped = random_flip(same_image(1000), generator()) != same_image(1000)
    assert 430 < flipped.flatten(1).any(1).sum() < 570


def test_alternating_flip_shows_every_image_both_ways_in_two_epochs() -> None:
    images, index = same_image(), torch.arange(64) + 1000
    first, second = (alternating_flip(images, index, epoch) for epoch in (0, 1))
    assert torch.equal(first, second.flip(-1))
    assert torch.equal(first, alternating_flip(images, index, 2))


def test_alternating_flip_depends_on_the_image_not_on_its_place_in_the_batch() -> None:
    images, index = same_image(), torch.arange(64)
    order = torch.randperm(64, generator=generator())
    assert torch.equal(
        alternating_flip(images, index, 0)[order],
        alternating_flip(images[order], index[order], 0),
    )


def test_alternating_flip_mirrors_about_half_and_neighbours_independently() -> None:
    index = torch.arange(10_000)
    images = torch.tensor([0.0, 1.0]).expand(10_000, 1, 1, 2)
    flipped = alternating_flip(images, index, 0)[:, 0, 0, 0]
    assert abs(flipped.mean() - 0.5) < 0.02
    assert abs((flipped[1:] == flipped[:-1]).float().mean() - 0.5) < 0.02


def test_cutout_fills_one_square_with_the_mean_colour() -> None:
    images = torch.rand(300, 3, 9, 12, generator=generator())
    changed = cutout(images, 4, generator()) != images
    areas = changed.any(1).sum((1, 2))
    assert areas.max() == 16  # whole squares
    assert 4 <= areas.min() < 16  # clipped ones, at most down to a quarter
    rows, columns = changed.any(1).any(2).sum(1), changed.any(1).any(1).sum(1)
    assert torch.equal(rows * columns, areas)  # one rectangle each
    image = int(areas.argmax())
    filled = cutout(images, 4, generator())[image][changed[image]].view(3, 16)
    assert torch.allclose(filled, images[image].mean((1, 2))[:, None].expand(3, 16))


def test_cutout_refuses_a_size_that_the_images_do_not_have() -> None:
    for size in (-1, 10):
        with pytest.raises(ValueError, match=f"cutout must be from 0 to 9, not {size}"):
            cutout(same_image(), size, generator())


def test_cutmix_puts_a_rectangle_of_the_next_image_in_and_says_how_much_is_left() -> None:
    images = torch.arange(200).view(200, 1, 1, 1).expand(200, 3, 8, 10)
    mixed, others, kept = cutmix(images, 1.0, generator())
    assert others.tolist() == [*range(1, 200), 0]
    for number, image in enumerate(mixed):
        foreign = image[0] != number
        assert torch.equal(image[0], image[2])
        assert set(image[0][foreign].tolist()) <= {int(others[number])}
        assert kept[number].item() == pytest.approx(1 - foreign.float().mean().item())
        rows, columns = foreign.any(1), foreign.any(0)
        assert torch.equal(foreign, rows[:, None] & columns)  # a rectangle
        for inside in (rows, columns):
            assert inside.int().diff().abs().sum() <= 2  # without gaps
    # Areas are between none and all; what is clipped at the border makes them smaller.
    assert 0.6 < kept.mean() < 0.75
    assert kept.min() < 0.2


def test_cutmix_mixes_as_many_images_as_it_is_told() -> None:
    images = torch.arange(2000).view(2000, 1, 1, 1).expand(2000, 1, 32, 32)
    _, _, all_kept = cutmix(images, 0.0, generator())
    assert (all_kept == 1).all()
    mixed, _, kept = cutmix(images, 0.3, generator())
    assert 0.25 < (kept < 1).float().mean() < 0.33
    assert torch.equal(mixed[kept == 1], images[kept == 1])


def test_augment_without_options_changes_nothing() -> None:
    images, index = same_image(), torch.arange(64)
    assert Augment()(images, index, 0, generator()) is images


@pytest.mark.parametrize("which", ["random", "alternating"])
def test_augment_composes_shift_flip_and_cutout(which: Literal["random", "alternating"]) -> None:
    images, index = same_image(), torch.arange(64)
    expected = random_shift(images, 2, g := generator())
    if which == "random":
        expected = random_flip(expected, g)
    else:
        expected = alternating_flip(expected, index, 3)
    expected = cutout(expected, 4, g)
    assert torch.equal(Augment(2, which, 4)(images, index, 3, generator()), expected)


def test_augment_ends_with_functions_of_ones_own() -> None:
    images, index = same_image(), torch.arange(64)
    squares = (partial(cutout, size=4), partial(cutout, size=8))
    expected = random_shift(images, 2, g := generator())
    for size in (4, 8):
        expected = cutout(expected, size, g)
    assert torch.equal(Augment(2, extra=squares)(images, index, 0, generator()), expected)


def test_augment_refuses_an_unknown_flip() -> None:
    with pytest.raises(ValueError, match="'upside-down'"):
        Augment(flip="upside-down")  # type: ignore[arg-type]


def test_scaling_down_takes_means_not_samples() -> None:
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[..., ::2] = 1.0
    scaled = scale(stripes, 16)
    assert scaled.shape == (1, 3, 16, 16)
    assert scaled.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(scaled[..., 2:-2], torch.tensor(0.5), atol=0.01)
    assert torch.allclose(scale(torch.full((2, 3, 32, 32), 0.3), 24), torch.tensor(0.3))


def mirrored(images: Tensor, images_per_draw: int = 1) -> Tensor:
    """Which of them torchvision's RandomHorizontalFlip has mirrored, bool [N]."""
    flips = Torchvision([v2.RandomHorizontalFlip()], images_per_draw)(images, generator())
    return (flips == images.flip(-1)).flatten(1).all(1)


def test_torchvisions_transforms_are_drawn_for_each_image() -> None:
    images = same_image(1000).byte()
    assert 0.45 < mirrored(images).float().mean() < 0.55
    groups = mirrored(images, images_per_draw=10).view(100, 10)
    assert (groups == groups[:, :1]).all()
    assert 0.3 < groups.float().mean() < 0.7


def test_torchvisions_transforms_leave_pytorchs_random_numbers_as_they_are() -> None:
    before = torch.get_rng_state()
    Torchvision([v2.TrivialAugmentWide()])(same_image().byte(), generator())
    assert torch.equal(torch.get_rng_state(), before)
