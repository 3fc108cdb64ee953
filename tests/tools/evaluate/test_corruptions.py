import itertools

import pytest
import torch

from cifar_lightning.data import ShapesData
from cifar_lightning.evaluate.corruptions import (
    CORRUPTIONS,
    add_noise,
    blur,
    brighten,
    compress,
    shift,
)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_stay_images_of_their_size(name: str) -> None:
    images = torch.randint(256, (4, 3, 40, 40), dtype=torch.uint8)
    before = images.clone()
    for strength in CORRUPTIONS[name].strengths:
        corrupted = CORRUPTIONS[name].apply(images, strength)
        assert corrupted.shape == images.shape
        assert corrupted.dtype == torch.uint8
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_strength_changes_images_more_than_the_one_before(
    name: str, shapes: ShapesData
) -> None:
    images = shapes.test.images
    corruption = CORRUPTIONS[name]
    changes = [
        (corruption.apply(images, strength).float() - images.float()).abs().mean().item()
        for strength in corruption.strengths
    ]
    assert len(changes) == 5
    assert changes[0] > 0
    assert all(less < more for less, more in itertools.pairwise(changes))


def test_noise_is_the_same_at_every_call_and_leaves_the_runs_randomness_alone() -> None:
    images = torch.full((2, 3, 8, 8), 128, dtype=torch.uint8)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = add_noise(images, 0.1)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(add_noise(images, 0.1), first)
    assert not torch.equal(first[0], first[1])  # another for each image


def test_noise_has_the_deviation_that_was_asked_for() -> None:
    noisy = add_noise(torch.full((64, 3, 32, 32), 128, dtype=torch.uint8), 0.08)
    assert noisy.float().std().item() / 255 == pytest.approx(0.08, rel=0.02)


def test_a_shift_moves_right_and_down_and_reflects_in_the_gap() -> None:
    images = torch.arange(3 * 32 * 32).view(1, 3, 32, 32).to(torch.uint8)
    moved = shift(images, 2)
    assert torch.equal(moved[..., 2:, 2:], images[..., :-2, :-2])
    assert torch.equal(moved[..., 2:, 0], images[..., :-2, 2])
    larger = torch.arange(3 * 64 * 64).view(1, 3, 64, 64).to(torch.uint8)
    assert torch.equal(shift(larger, 2)[..., 4:, 4:], larger[..., :-4, :-4])


def test_brightness_multiplies() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    expected = (images * 1.6).clamp(max=255)
    assert (brighten(images, 1.6) - expected).abs().max() <= 1


def test_blur_is_in_proportion() -> None:
    for size in (32, 64):
        images = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        images[..., : size // 2] = 255  # an edge: its slope is the Gaussian
        slope = -blur(images, 1.0)[0, 0, 0].float().diff()
        places = torch.arange(size - 1.0)
        mean = (slope * places).sum() / slope.sum()
        deviation = ((slope * (places - mean) ** 2).sum() / slope.sum()).sqrt().item()
        assert deviation == pytest.approx(size / 32, rel=0.05)


def test_jpeg_keeps_colours_and_order() -> None:
    images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    for number in range(3):
        images[number, number] = 200  # red, green, blue
    assert (compress(images, 90).float() - images.float()).abs().max() < 5
