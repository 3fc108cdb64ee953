"""Images/s of training steps through the Trainer, in a bare PyTorch loop, and the conventional way.

The bare loop does the same as the Trainer: network, data, batch size, augmentation, optimizer,
precision, memory format. The conventional pipeline trains the same network with the same optimizer
from torchvision's transforms, image by image in DataLoader workers, in fp32 and the default memory
format. The three take turns, round after round, so that a noisy machine slows all of them alike.
The last line of the output is JSON.

    python benchmarks/throughput.py data=folder data.path=DIR_OR_ARCHIVE

Options are those of training; ROUNDS and STEPS in the environment set how much is measured, and
WORKERS how many DataLoader workers the conventional pipeline has (one a core by default).
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cifar_lightning import hardware, run, training
from cifar_lightning.callbacks import Throughput
from cifar_lightning.classifier import Classifier
from cifar_lightning.cli import compose, prepare_arguments
from cifar_lightning.data import ImageData

ROUNDS = int(os.environ.get("ROUNDS", "7"))
STEPS = int(os.environ.get("STEPS", "40"))
WORKERS = int(os.environ.get("WORKERS", str(os.cpu_count())))


def through_the_trainer(config: DictConfig, data: ImageData) -> tuple[float, pl.Trainer]:
    """Images/s of STEPS steps by Lightning, and the Trainer."""
    classifier, _ = run.build_classifier(config, data)
    callbacks = run.build_callbacks(config, data)
    callbacks = {name: callbacks[name] for name in ("throughput", "nan") if name in callbacks}
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
    optimizer = classifier.make_optimizer(network.parameters())
    scheduler = classifier.make_scheduler(optimizer, STEPS)
    generator = torch.Generator(device).manual_seed(config.seed)
    precision = str(trainer.precision)
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "16-mixed")
    batches = iter(data.train_dataloader())
    batch = next(batches)  # the Trainer's clock begins with the first step too
    start = time.perf_counter()
    for step in range(STEPS):
        images, labels, index = (tensor.to(device, non_blocking=True) for tensor in batch)
        with torch.autocast(device.type, dtype, enabled=precision.endswith("mixed")):
            logits = network(classifier.normalise(augment(images, index, 0, generator)))
            loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scheduler.step()
        if step + 1 < STEPS:
            batch = next(batches)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return STEPS * data.batch_size / (time.perf_counter() - start)


class OneByOne(Dataset[tuple[Tensor, int]]):
    """STEPS batches of the training images, transformed one by one, as most code on CIFAR-10 does.

    Args:
        data: the images and their mean and standard deviation.
    """

    def __init__(self, data: ImageData) -> None:
        chosen = data.train_index[: STEPS * data.batch_size]
        images = data.train.images[chosen].permute(0, 2, 3, 1)  # [N, H, W, 3]
        self.images = images.contiguous().numpy()
        self.labels = data.train.labels[chosen].tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(data.image_size, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(data.mean, data.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def conventional(
    config: DictConfig,
    data: ImageData,
    loader: DataLoader[tuple[Tensor, int]],
    device: torch.device,
) -> float:
    """Images/s of STEPS steps of the conventional pipeline."""
    classifier = run.build_classifier(config, data)[0]
    network = classifier.network.to(memory_format=torch.contiguous_format).to(device).train()
    optimizer = classifier.make_optimizer(network.parameters())
    scheduler = classifier.make_scheduler(optimizer, STEPS)
    batches = iter(loader)
    batch: list[Tensor] | None = next(batches)
    start = time.perf_counter()
    while batch:
        images, labels = batch
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        loss = F.cross_entropy(network(images), labels, label_smoothing=config.label_smoothing)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        batch = next(batches, None)
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
        if config.trainer.compile:
            sys.exit("Error: with trainer.compile=true the compiling would be measured.")
        data = run.build_data(config)
        if len(data.train_index) < STEPS * data.batch_size:
            sys.exit(f"Error: {STEPS} steps need {STEPS * data.batch_size} training images.")
        _, trainer = through_the_trainer(config, data)  # a warm-up, for each of the three
        if str(trainer.precision) not in ("32-true", "16-mixed", "bf16-mixed"):
            sys.exit(f"Error: the bare loop has no precision {trainer.precision}.")
        device = trainer.strategy.root_device
        loader = DataLoader(
            OneByOne(data),
            data.batch_size,
            shuffle=True,
            num_workers=WORKERS,
            persistent_workers=WORKERS > 0,  # in its favour: starting them is not measured
            pin_memory=device.type == "cuda",
        )
        contestants: dict[str, Callable[[], float]] = {
            "Trainer": lambda: through_the_trainer(config, data)[0],
            "bare loop": lambda: bare_loop(config, data, trainer),
            "conventional": lambda: conventional(config, data, loader, device),
        }
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        contestants["bare loop"](), contestants["conventional"]()
        for number in range(ROUNDS):
            # The order turns round: a machine's speed drifts.
            for name in list(contestants)[:: -1 if number % 2 else 1]:
                rates[name].append(contestants[name]())
            figures = ", ".join(f"{name} {rate[-1]:.0f}" for name, rate in rates.items())
            print(f"round {number + 1} of {ROUNDS}, images/s: {figures}", flush=True)

    def ratio_to(other: str) -> float:
        ratios = [a / b for a, b in zip(rates["Trainer"], rates[other], strict=True)]
        return round(statistics.median(ratios), 3)

    summary = {
        "data": config.choices.data,
        "model": config.choices.model,
        "batch_size": data.batch_size,
        "rounds": ROUNDS,
        "steps": STEPS,
        "workers": WORKERS,
        "images_per_s": round(statistics.median(rates["Trainer"]), 1),
        "bare_images_per_s": round(statistics.median(rates["bare loop"]), 1),
        "conventional_images_per_s": round(statistics.median(rates["conventional"]), 1),
        "ratio_vs_bare": ratio_to("bare loop"),
        "ratio_vs_conventional": ratio_to("conventional"),
        "precision": str(trainer.precision),
        "device": hardware.device_name(device),
        "torch": torch.__version__,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
