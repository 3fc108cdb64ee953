import pytest
from conftest import Compose
from fake_gpu import copies_of_an_epoch
from torch import Tensor

from cifar_lightning.errors import UserError
from cifar_lightning.models import DilatedDW
from cifar_lightning.models.budget import count_network
from cifar_lightning.train import train
from cifar_lightning.training.callbacks.progressive_resizing import ProgressiveResizing

LOW = (
    "callbacks=progressive_resizing",
    "callbacks.progressive_resizing.until=0.5",
    "target_accuracy=null",
    "trainer.max_epochs=2",
)


def test_small_images_come_first_and_full_ones_later(
    tiny: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    forward = DilatedDW.forward

    def spy(network: DilatedDW, images: Tensor) -> Tensor:
        sizes.append((network.training, len(images), images.shape[-1]))
        return forward(network, images)

    monkeypatch.setattr(DilatedDW, "forward", spy)
    metrics = train(tiny(*LOW, "callbacks.progressive_resizing.until=0.25"))
    batches = [(training, size) for training, images, size in sizes if images > 2]  # others check
    assert [size for training, size in batches if training] == [24] * 3 + [32] * 9
    assert {size for training, size in batches if not training} == {32}
    small, full = (6 * count_network(DilatedDW(), size).multiply_adds for size in (24, 32))
    expected = 25 * (3 * small + 9 * full) / 1e12
    assert metrics["train_tflop"] == pytest.approx(expected, abs=1e-6)
    assert metrics["train_images"] == 25 * 12


def test_a_network_that_cannot_take_small_images_is_told_before_the_first_step(
    tiny: Compose,
) -> None:
    with pytest.raises(
        UserError, match="begins with images of 8 x 8 pixels, which the network cannot take"
    ):
        train(tiny(*LOW, "callbacks.progressive_resizing.size=8"))
    with pytest.raises(
        UserError, match=r"the data's images have 32 x 32: use a smaller size, as .*size=24"
    ):
        train(tiny(*LOW, "callbacks.progressive_resizing.size=32"))
    with pytest.raises(ValueError, match="size must be at least 1"):
        ProgressiveResizing(0, 0.5)
    with pytest.raises(ValueError, match="until must be from 0 to 1"):
        ProgressiveResizing(24, 1.1)


def test_it_works_in_low_precision(tiny: Compose) -> None:
    metrics = train(tiny(*LOW, "trainer.max_epochs=1", "trainer.precision=bf16-true"))
    assert metrics["train_images"] == 150


def test_a_gpu_waits_for_no_size() -> None:
    assert copies_of_an_epoch(ProgressiveResizing(24, 0.5)) == ([], 4)
