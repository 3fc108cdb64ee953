"""Images/s of training through the Trainer, compared with three other loops.

    python benchmarks/throughput.py data=folder data.path=DIR_OR_ARCHIVE

The first table compares, with the options as typed:

- the Trainer, with two callbacks: throughput and the NaN guard;
- the network alone: forward and backward on one fixed batch;
- a bare PyTorch loop with the same network, data, batch size, augmentation, optimizer, precision
  and memory format, compiled if the Trainer's network is;
- the conventional pipeline: the same network and optimizer, but torchvision's transforms on one
  image at a time in DataLoader workers, fp32 and the default memory format, in its own process.

They take turns, so that noise of the machine affects all alike. The second table has the first
three for several batch sizes and precisions, eager and compiled, with the fraction of the
throughput of large matrix products that they reach, and the number of epochs after which compiling
pays off. All run on one device. The last line of the output is JSON.

Options are those of training. Environment: ROUNDS and IMAGES (per measurement; on a GPU at least
200 steps) for the first table; SETTING_ROUNDS (0: no table), SETTING_IMAGES, BATCH_SIZES,
PRECISIONS and COMPILE=false (eager only) for the second; WORKERS (of the conventional pipeline).
"""

import itertools
import json
import logging
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from conventional import WORKERS, OneByOne, loader
from omegaconf import DictConfig
from torch import Tensor
from torch._inductor.utils import fresh_cache
from torch.utils.data import DataLoader

from cifar_lightning import run
from cifar_lightning.config.compose import compose
from cifar_lightning.config.overrides import prepare_arguments
from cifar_lightning.data import ImageData
from cifar_lightning.models.budget import count_network
from cifar_lightning.run import compile as warm_up
from cifar_lightning.run import devices, fit
from cifar_lightning.training.callbacks import Throughput
from cifar_lightning.training.module import Classifier

ROUNDS = int(os.environ.get("ROUNDS", "7"))
# Per measurement of the first and of the second table, rounded to whole steps.
IMAGES = int(os.environ.get("IMAGES", "10240"))
SETTING_IMAGES = int(os.environ.get("SETTING_IMAGES", "4096"))
SETTING_ROUNDS = int(os.environ.get("SETTING_ROUNDS", "3"))
ON_GPU = torch.cuda.is_available()
LEAST_STEPS = 200 if ON_GPU else 1
BATCH_SIZES = os.environ.get("BATCH_SIZES", "512,2048,8192" if ON_GPU else "128,256,512")
PRECISIONS = os.environ.get("PRECISIONS", "32-true,bf16-mixed")
COMPILE = os.environ.get("COMPILE", "true") == "true"
DTYPES = {"32-true": torch.float32, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
CIFAR_EPOCH = 45_000  # images


class Bench:
    """The loops to measure, for one setting.

    Args:
        overrides: of training.
        run_dir: for the files of the runs.
        images: per measurement; raised on a GPU if these are fewer than 200 steps.

    Attributes:
        compile_seconds: of the last compilation; None if there was none.
    """

    def __init__(self, overrides: Sequence[str], run_dir: str, images: int) -> None:
        options = ["logger=csv", "+trainer.enable_checkpointing=false"]
        if ON_GPU:
            options.append("trainer.gpus=1")
        self.options = [*options, *overrides]
        first = compose(self.options, run_dir)
        self.data: ImageData = run.build_data(first)
        self.batch_size: int = self.data.batch_size
        available = len(self.data.train_index) // self.batch_size
        wanted = max(images // self.batch_size, LEAST_STEPS)
        self.epochs = math.ceil(wanted / available)
        self.steps_per_epoch = math.ceil(wanted / self.epochs)
        self.steps = self.epochs * self.steps_per_epoch
        limits = [
            f"trainer.max_epochs={self.epochs}",
            f"trainer.limit_train_batches={self.steps_per_epoch}",
        ]
        self.config: DictConfig = compose([*self.options, *limits], run_dir)
        self.compile_seconds: float | None = None
        self.trainer: pl.Trainer
        self.through_the_trainer()  # to warm up, and to learn device and precision
        self.precision = str(self.trainer.precision)
        self.device = self.trainer.strategy.root_device
        if self.precision not in DTYPES:
            sys.exit(f"Error: the bare loop has no precision {self.precision}.")

    def through_the_trainer(self) -> float:
        """Train by Lightning's Trainer; return images/s."""
        classifier, _ = run.build_classifier(self.config, self.data)
        callbacks = run.build_callbacks(self.config, self.data)
        callbacks = {name: callbacks[name] for name in ("throughput", "nan") if name in callbacks}
        self.trainer = run.build_trainer(self.config, callbacks, validates=False)
        with fit.quiet():
            fit.fit(self.trainer, classifier, self.data, self.config)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, warm_up.WarmUp):
                self.compile_seconds = callback.compile_seconds
        throughput = callbacks["throughput"]
        assert isinstance(throughput, Throughput)
        return throughput.images_per_s

    def _prepared(self) -> Classifier:
        """Build a classifier on the device, compiled if the setting says so."""
        classifier = run.build_classifier(self.config, self.data)[0].to(self.device).train()
        if self.config.trainer.compile:
            warm_up.compile_network(classifier.network, self.device)
        return classifier

    def _forward(self) -> Any:
        enabled = self.precision.endswith("mixed")
        return torch.autocast(self.device.type, DTYPES[self.precision], enabled=enabled)

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def network_alone(self) -> float:
        """Run forward and backward on one batch; return images/s."""
        classifier = self._prepared()
        images, _, _ = next(iter(self.data.train_dataloader()))
        inputs = classifier.normalise(images.to(self.device))

        def steps(number: int) -> None:
            for _ in range(number):
                with self._forward():
                    logits = classifier.network(inputs)
                logits.float().sum().backward()
                classifier.network.zero_grad()

        steps(warm_up.CALLS_TO_WARM_UP)
        start = self._clock()
        steps(self.steps)
        return self.steps * len(inputs) / (self._clock() - start)

    def bare_loop(self) -> float:
        """Train by a plain loop with the same steps as the Trainer's; return images/s."""
        classifier = self._prepared()
        network = classifier.network
        optimizer = classifier.make_optimizer(network.parameters())
        scheduler = classifier.make_scheduler(optimizer, self.steps)
        generator = torch.Generator(self.device).manual_seed(self.config.seed)
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "16-mixed")

        def step(batch: tuple[Tensor, Tensor, Tensor]) -> None:
            images, labels, index = (t.to(self.device, non_blocking=True) for t in batch)
            images = classifier.augment(images, index, 0, generator)
            with self._forward():
                logits = network(classifier.normalise(images))
                loss = F.cross_entropy(
                    logits, labels, label_smoothing=self.config.loss.label_smoothing
                )
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            scheduler.step()

        batches = self.data.train_dataloader()
        for _ in range(warm_up.CALLS_TO_WARM_UP):
            step(next(iter(batches)))
        seconds = 0.0
        for _ in range(self.epochs):
            epoch = itertools.islice(batches, self.steps_per_epoch)
            batch = next(epoch)  # the Trainer's clock too runs from the first step to the last
            start = self._clock()
            for following in epoch:
                step(batch)
                batch = following
            step(batch)
            seconds += self._clock() - start
        return self.steps * self.batch_size / seconds

    def matrix_products(self) -> float:
        """Return the best TFLOP/s of several large matrix products in the setting's precision."""
        size = 8192 if self.device.type == "cuda" else 2048
        one, other = torch.rand(2, size, size, device=self.device, dtype=DTYPES[self.precision])
        best = 0.0
        tf32 = torch.backends.cuda.matmul.allow_tf32
        # As cuDNN's convolutions are allowed to.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
        for _ in range(10):
            start = self._clock()
            one @ other
            best = max(best, 2 * size**3 / (self._clock() - start) / 1e12)
        torch.backends.cuda.matmul.allow_tf32 = tf32
        return best


@cache
def one_by_one(
    options: tuple[str, ...], run_dir: str, steps: int, device: torch.device
) -> tuple[DictConfig, ImageData, DataLoader[Any]]:
    """Build configuration, data and batches of the conventional pipeline, once per process."""
    config = compose(options, run_dir)
    data: ImageData = run.build_data(config)
    images = OneByOne(data, steps * data.batch_size)
    return config, data, loader(images, data.batch_size, device)


def conventional(
    options: tuple[str, ...], run_dir: str, steps: int, epochs: int, device: torch.device
) -> float:
    """Train by the conventional pipeline, so many steps per epoch; return images/s."""
    config, data, batches = one_by_one(options, run_dir, steps, device)
    classifier = run.build_classifier(config, data)[0]
    network = classifier.network.to(memory_format=torch.contiguous_format).to(device).train()
    optimizer = classifier.make_optimizer(network.parameters())
    scheduler = classifier.make_scheduler(optimizer, steps * epochs)
    torch.backends.cudnn.benchmark = True  # makes it faster
    iterator = itertools.chain.from_iterable(batches for _ in range(epochs))
    batch: list[Tensor] | None = next(iterator)
    start = time.perf_counter()
    while batch:
        images, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
        loss = F.cross_entropy(network(images), labels, label_smoothing=config.loss.label_smoothing)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        batch = next(iterator, None)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return steps * epochs * data.batch_size / (time.perf_counter() - start)


def in_turn(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure all of them in turn; return each one's images/s by round."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        # The order turns round: a machine's speed drifts.
        for name in list(contestants)[:: -1 if number % 2 else 1]:
            rates[name].append(contestants[name]())
        figures = ", ".join(f"{name} {rate[-1]:,.0f}" for name, rate in rates.items())
        print(f"round {number + 1} of {rounds}, images/s: {figures}", flush=True)
    return rates


def ratio(rates: dict[str, list[float]], one: str, other: str) -> float:
    """Return the median, over the rounds, of the ratio of images/s."""
    pairs = zip(rates[one], rates[other], strict=True)
    return round(statistics.median(a / b for a, b in pairs), 3)


def rounded(rates: dict[str, list[float]]) -> dict[str, list[int]]:
    """Round to whole images/s."""
    return {name: [round(rate) for rate in by_round] for name, by_round in rates.items()}


def four(overrides: Sequence[str], run_dir: str) -> dict[str, Any]:
    """Compare the four loops with the options that were typed."""
    bench = Bench(overrides, run_dir, IMAGES)
    setting = (tuple(bench.options), run_dir, bench.steps_per_epoch, bench.epochs, bench.device)
    # A process of its own: in this one the Trainer has changed how memory is kept.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other_process:
        contestants: dict[str, Callable[[], float]] = {
            "Trainer": bench.through_the_trainer,
            "network alone": bench.network_alone,
            "bare loop": bench.bare_loop,
            "conventional": lambda: other_process.submit(conventional, *setting).result(),
        }
        for name in list(contestants)[1:]:
            contestants[name]()  # a warm-up
        rates = in_turn(contestants, ROUNDS)
    return {
        "data": bench.config.choices.data,
        "model": bench.config.choices.model,
        "batch_size": bench.data.batch_size,
        "rounds": ROUNDS,
        "steps": bench.steps,
        "workers": WORKERS,
        "images_per_s": round(statistics.median(rates["Trainer"]), 1),
        "alone_images_per_s": round(statistics.median(rates["network alone"]), 1),
        "bare_images_per_s": round(statistics.median(rates["bare loop"]), 1),
        "conventional_images_per_s": round(statistics.median(rates["conventional"]), 1),
        "ratio_vs_alone": ratio(rates, "Trainer", "network alone"),
        "ratio_vs_bare": ratio(rates, "Trainer", "bare loop"),
        "ratio_vs_conventional": ratio(rates, "Trainer", "conventional"),
        "precision": bench.precision,
        "compile": bool(bench.config.trainer.compile),
        "device": devices.device_name(bench.device),
        "torch": torch.__version__,
        "rounds_images_per_s": rounded(rates),
    }


def setting(overrides: Sequence[str], run_dir: str) -> list[dict[str, Any]]:
    """Compare Trainer, network alone and bare loop in one setting, eager and compiled."""
    torch.compiler.reset()  # else the networks of other settings count towards its limit
    benches = {"eager": Bench([*overrides, "trainer.compile=false"], run_dir, SETTING_IMAGES)}
    seconds = None
    if COMPILE:
        with fresh_cache():  # else the compiled code of an earlier start is found on the disk
            compiled = Bench([*overrides, "trainer.compile=true"], run_dir, SETTING_IMAGES)
        seconds = compiled.compile_seconds
        if seconds is not None:  # a compiler was found
            benches["compiled"] = compiled
    peak = benches["eager"].matrix_products()
    rates = in_turn(
        {
            f"{how} {name}": measure
            for how, bench in benches.items()
            for name, measure in (
                ("Trainer", bench.through_the_trainer),
                ("network alone", bench.network_alone),
                ("bare loop", bench.bare_loop),
            )
        },
        SETTING_ROUNDS,
    )
    peak = max(peak, benches["eager"].matrix_products())
    results: list[dict[str, Any]] = []
    for how, bench in benches.items():
        network = run.build_network(bench.config, len(bench.data.classes), bench.data.image_size)
        flop = 6 * count_network(network, bench.data.image_size).multiply_adds
        rate = statistics.median(rates[f"{how} Trainer"])
        results.append(
            {
                "batch_size": bench.batch_size,
                "precision": bench.precision,
                "compile": how == "compiled",
                "images_per_s": round(rate, 1),
                "ratio_vs_alone": ratio(rates, f"{how} Trainer", f"{how} network alone"),
                "ratio_vs_bare": ratio(rates, f"{how} Trainer", f"{how} bare loop"),
                "peak_tflops": round(peak, 4),
                "share_of_peak": round(rate * flop / 1e12 / peak, 4),
                "rounds_images_per_s": rounded(
                    {name: rate for name, rate in rates.items() if name.startswith(how)}
                ),
            }
        )
    if "compiled" in benches and seconds is not None:
        gain = ratio(rates, "compiled Trainer", "eager Trainer")
        epoch = CIFAR_EPOCH / results[0]["images_per_s"]  # seconds, eager
        saved = epoch - epoch / gain
        results[1]["ratio_vs_eager"] = gain
        results[1]["compile_seconds"] = round(seconds, 1)
        results[1]["epochs_that_pay"] = round(seconds / saved, 1) if saved > 0 else None
    return results


def table(settings: list[dict[str, Any]]) -> str:
    """Format the settings as a Markdown table."""
    lines = [
        "| batch | precision | compiled | images/s | of network alone | of bare loop "
        "| of matrix peak | of eager | s to compile | epochs that pay |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for s in settings:
        gain = s.get("ratio_vs_eager")
        lines.append(
            f"| {s['batch_size']} | {s['precision']} | {'yes' if s['compile'] else 'no'} "
            f"| {s['images_per_s']:,.0f} | {s['ratio_vs_alone']:.0%} | {s['ratio_vs_bare']:.0%} "
            f"| {s['share_of_peak']:.0%} of {s['peak_tflops']:.2f} TFLOP/s "
            f"| {'-' if gain is None else f'{gain:.0%}'} | {s.get('compile_seconds') or '-'} "
            f"| {s.get('epochs_that_pay') or '-'} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, and print a line for each round, the table and the summary."""
    logging.disable(logging.INFO)  # what Lightning tells at every start
    overrides = prepare_arguments(sys.argv[1:])
    with tempfile.TemporaryDirectory() as run_dir:
        summary = four(overrides, run_dir)
        settings = []
        if SETTING_ROUNDS:
            for batch, precision in itertools.product(
                BATCH_SIZES.split(","), PRECISIONS.split(",")
            ):
                chosen = [f"data.batch_size={batch}", f"trainer.precision={precision}"]
                print(*chosen, flush=True)
                settings += setting([*overrides, *chosen], run_dir)
            print(table(settings))
    print(json.dumps({**summary, "settings": settings}))


if __name__ == "__main__":
    main()
