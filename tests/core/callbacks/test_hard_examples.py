import pytest
import torch
from conftest import Compose
from fake_gpu import copies_of_an_epoch
from torch import Tensor

from cifar_lightning import run
from cifar_lightning.errors import UserError
from cifar_lightning.run import fit
from cifar_lightning.train import train
from cifar_lightning.training.callbacks.hard_examples import HardExampleReplay
from cifar_lightning.training.module import Batch, Classifier


def test_the_hardest_images_come_again_at_the_end_of_each_epoch(
    tiny: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[int], Tensor]] = []
    step = Classifier.training_step

    def spy(classifier: Classifier, batch: Batch, batch_idx: int) -> dict[str, Tensor | int]:
        result = step(classifier, batch, batch_idx)
        losses, loss = result["losses"], result["loss"]
        assert isinstance(losses, Tensor)
        assert isinstance(loss, Tensor)
        assert losses.mean().item() == pytest.approx(loss.item(), rel=1e-3)
        seen.append((batch[2].tolist(), losses))
        return result

    monkeypatch.setattr(Classifier, "training_step", spy)
    options = [
        "callbacks=hard_examples",
        "callbacks.hard_examples.fraction=0.4",
        "target_accuracy=null",
    ]
    metrics = train(tiny(*options, "trainer.max_epochs=2"))
    assert metrics["train_images"] == 2 * (150 + 50)  # 0.4 of 150 are 60, which are 2 batches of 25
    for epoch in (seen[:8], seen[8:]):
        first = [image for index, _ in epoch[:6] for image in index]
        again = {image for index, _ in epoch[6:] for image in index}
        assert len(set(first)) == 150
        assert len(again) == 50
        losses = dict(zip(first, torch.cat([part for _, part in epoch[:6]]).tolist(), strict=True))
        assert again == set(sorted(first, key=lambda image: -losses[image])[:50])


def test_the_replay_ends_with_the_training(tiny: Compose) -> None:
    config = tiny("callbacks=hard_examples", "trainer.precision=bf16-true")
    data = run.build_data(config)
    classifier, _ = run.build_classifier(config, data)
    trainer = run.build_trainer(config, run.build_callbacks(config, data))
    with fit.quiet():
        trainer.fit(classifier, data)
    assert trainer.num_training_batches == 6 + 3
    assert len(data.train_dataloader()) == 6


@pytest.mark.parametrize("several", ["gpus=2", "num_nodes=2"])
def test_it_asks_for_one_device_before_any_process_starts(tiny: Compose, several: str) -> None:
    config = tiny("callbacks=hard_examples", f"trainer.{several}", "data.batch_size=24")
    callbacks = run.build_callbacks(config, run.build_data(config))
    with pytest.raises(UserError, match="works on one device"):
        run.build_trainer(config, callbacks)


def test_a_fraction_of_the_images_is_from_0_to_1() -> None:
    with pytest.raises(ValueError, match="fraction must be from 0 to 1"):
        HardExampleReplay(1.1)


def test_a_gpu_waits_for_no_loss() -> None:
    # 64 images, then the hardest 32 again.
    assert copies_of_an_epoch(HardExampleReplay(0.5), replay=0.5) == ([], 6)
