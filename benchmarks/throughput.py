"""Images/s of a training epoch through the Trainer, beside a bare PyTorch loop's.

Both train the same network from the same data with the same batch size, augmentation, optimizer,
precision and memory format, in turn, round after round, so that a noisy machine slows both alike.
The last line of the output is JSON.

    python benchmarks/throughput.py data=folder data.path=DIR_OR_ARCHIVE

Options are those of training; ROUNDS and STEPS in the environment set how much is measured.
"""

import json
import os
import statistics
import sys
import tempfile
import time

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from omegaconf import DictConfig

from cifar_lightning import hardware, run, training
from cifar_lightning.callbacks import Throughput
from cifar_lightning.classifier import Classifier
from cifar_lightning.cli import compose, prepare_arguments
from cifar_lightning.data import ImageData

ROUNDS = int(os.environ.get("ROUNDS", "7"))
STEPS = int(os.environ.get("STEPS", "40"))


def through_the_trainer(config: DictConfig, data: ImageData) -> tuple[float, pl.Trainer]:
    """Images/s of STEPS steps by Lightning, and the Trainer."""
    classifier, _ = run.build_classifier(config, data)
    callbacks = run.build_callbacks(config, has_validation=False)
    callbacks = {"throughput": callbacks["throughput"]}
    trainer = run.build_trainer(config, callbacks, has_validation=False)
    with training.quiet():
        training.fit(trainer, classifier, data, config)
    throughput = callbacks["throughput"]
    assert isinstance(throughput, Throughput)
    return throughput.images_per_s, trainer


def bare_loop(config: DictConfig, data: ImageData, trainer: pl.Trainer) -> float:
    """Images/s of STEPS steps by a loop that does nothing else, as `trainer` would do them."""
    device = trainer.strategy.root_device
    classifier: Classifier = run.build_classifier(config, data)[0].to(device)
    network, augment = classifier.network.train(), classifier.augment
    if config.trainer.compile:
        network.compile()
    optimizer = classifier.make_optimizer(network.parameters())
    scheduler = classifier.make_scheduler(optimizer, STEPS)
    generator = torch.Generator(device).manual_seed(config.seed)
    precision = str(trainer.precision)
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "16-mixed")
    order = iter(data.train_dataloader())
    start = time.perf_counter()
    for _ in range(STEPS):
        images, labels, index = (tensor.to(device, non_blocking=True) for tensor in next(order))
        with torch.autocast(device.type, dtype, enabled=precision.endswith("mixed")):
            logits = network(classifier.normalise(augment(images, index, 0, generator)))
            loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scheduler.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return STEPS * data.batch_size / (time.perf_counter() - start)


def main() -> None:
    """Measure, and print a line a round and the summary."""
    overrides = [
        *prepare_arguments(sys.argv[1:]),
        "logger=csv",
        "trainer.max_epochs=1",
        f"+trainer.limit_train_batches={STEPS}",
        "+trainer.enable_checkpointing=false",
    ]
    with tempfile.TemporaryDirectory() as run_dir:
        config = compose(overrides, run_dir)
        data = run.build_data(config)
        trainers, bares = [], []
        _, trainer = through_the_trainer(config, data)  # a warm-up for both
        bare_loop(config, data, trainer)
        for number in range(ROUNDS):
            if number % 2:  # in turn the first: a machine's speed drifts
                bares.append(bare_loop(config, data, trainer))
            trainers.append(through_the_trainer(config, data)[0])
            if not number % 2:
                bares.append(bare_loop(config, data, trainer))
            print(
                f"round {number}: Trainer {trainers[-1]:.0f}, bare loop {bares[-1]:.0f} images/s",
                flush=True,
            )
    ratios = [one / other for one, other in zip(trainers, bares, strict=True)]
    summary = {
        "data": config.choices.data,
        "model": config.choices.model,
        "batch_size": data.batch_size,
        "rounds": ROUNDS,
        "steps": STEPS,
        "images_per_s": round(statistics.median(trainers), 1),
        "bare_images_per_s": round(statistics.median(bares), 1),
        "ratio_vs_bare": round(statistics.median(ratios), 3),
        "precision": str(trainer.precision),
        "device": hardware.device_name(trainer.strategy.root_device),
        "torch": torch.__version__,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
