"""Seconds, compute and test accuracy of several recipes on one machine.

    python benchmarks/time_to_target.py data=folder data.path=DIR_OR_ARCHIVE

A recipe is the name of an `experiment`, or one of two others. `default` is the configuration
without an experiment. `conventional` is the usual recipe in plain PyTorch, on the default's
network: SGD with lr 0.1, momentum 0.9 and weight decay 5e-4, batches of 128, cosine to zero in 10
epochs, torchvision's transforms on one image at a time in DataLoader workers, fp32. It is tested
with its last weights, the other recipes with those that validation chose.

Seconds are those of training, without set-up, compilation, validation and test. The last line of
the output is JSON.

Options are those of training. Environment: EXPERIMENTS and SEEDS (which recipes and seeds), FOLDER
(for the table, the picture and the runs). The figures of each run are kept in FOLDER/runs.jsonl. A
later start with the same options, hardware and torch measures only what is missing there; delete
the file after a change of the recipes or the code.
"""

import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from conventional import WORKERS, OneByOne, loader
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter
from torch import Tensor

from cifar_lightning import run
from cifar_lightning.config.compose import compose
from cifar_lightning.config.overrides import prepare_arguments
from cifar_lightning.models.budget import train_tflop
from cifar_lightning.run import devices
from cifar_lightning.tracking.run_folder import read_rows
from cifar_lightning.train import train

EXPERIMENTS = os.environ.get("EXPERIMENTS", "speedrun,default,sgd,conventional,airbench94").split(
    ","
)
SEEDS = [int(seed) for seed in os.environ.get("SEEDS", "0,1,2").split(",")]
FOLDER = Path(os.environ.get("FOLDER", "runs/time_to_target"))
CONVENTIONAL_EPOCHS = int(os.environ.get("CONVENTIONAL_EPOCHS", "10"))
TARGETS = (0.80, 0.94)
ON_GPU = torch.cuda.is_available()
KEPT = ("epochs", "train_images", "train_tflop", "train_seconds", "val/acc", "test/acc")


def with_the_trainer(name: str, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Train as the command line does; return figures, and [seconds, accuracy] by validation."""
    experiment = [] if name == "default" else [f"experiment={name}"]
    run_dir = FOLDER / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}_{name}_{seed}"
    logging.disable(logging.INFO)  # Lightning's lines at every start
    config = compose([*overrides, *experiment, f"seed={seed}"], run_dir)
    metrics = train(config)
    rows = [row for row in read_rows(run_dir) if "val/acc" in row]
    curve = [[row["throughput/train_seconds"], row["val/acc"]] for row in rows]
    return {**{key: metrics[key] for key in KEPT}, "curve": curve}


def conventional(seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Train by the conventional recipe; return the same figures."""
    config = compose([*overrides, f"seed={seed}"], FOLDER / f"conventional_{seed}")
    data = run.build_data(config)
    accelerator, _ = devices.choose_devices(
        config.trainer.gpus, torch.cuda.device_count(), 128, one_device="measured on one"
    )
    device = torch.device("cuda" if accelerator == "gpu" else "cpu")
    torch.manual_seed(seed)
    network = run.build_network(config, len(data.classes), data.image_size).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    images = OneByOne(data)
    batches = loader(images, min(128, len(images)), device)
    epochs = CONVENTIONAL_EPOCHS
    torch.backends.cudnn.benchmark = True  # makes it faster
    iter(batches)  # starts the workers, which is set-up
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (data.mean, data.std))

    @torch.no_grad()
    def accuracy(images: Tensor, labels: Tensor) -> float:
        network.eval()
        right = 0
        for part, truth in zip(images.split(500), labels.split(500), strict=True):
            guess = network((part.to(device) / 255 - mean) / std).argmax(1)
            right += int((guess.cpu() == truth).sum())
        network.train()
        return right / len(labels)

    seconds, curve = 0.0, []
    for epoch in range(epochs):
        start = time.perf_counter()
        for inputs, labels in batches:
            inputs, labels = inputs.to(device, non_blocking=True), labels.to(device)
            optimizer.zero_grad()
            F.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
            schedule.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds += time.perf_counter() - start
        if data.val is not None:
            curve.append([seconds, accuracy(data.val.images, data.val.labels)])
        print(
            f"conventional: epoch {epoch + 1}/{epochs}  {seconds:.1f} s  {curve[-1:]}", flush=True
        )
    count = epochs * len(batches) * (batches.batch_size or 0)
    return {
        "epochs": epochs,
        "train_images": count,
        "train_tflop": train_tflop(network, {data.image_size: count}),
        "train_seconds": seconds,
        "val/acc": curve[-1][1] if curve else None,
        "test/acc": accuracy(data.test.images, data.test.labels),
        "curve": curve,
    }


def read(conditions: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the runs that were measured under these conditions."""
    file = FOLDER / "runs.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [run for run in map(json.loads, lines) if run.items() >= conditions.items()]


def measure(name: str, seed: int, conditions: dict[str, Any]) -> None:
    """Train and append the figures to the file, unless they are there."""
    key = {**conditions, "experiment": name, "seed": seed}
    if read(key):
        return
    recipe = conventional if name == "conventional" else partial(with_the_trainer, name)
    # A process of its own, so that no recipe is affected by one that ran before.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        figures = process.submit(recipe, seed, conditions["overrides"]).result()
    with (FOLDER / "runs.jsonl").open("a") as file:
        file.write(f"{json.dumps({**key, **figures})}\n")


def seconds_to(target: float, curve: Iterable[Sequence[float]]) -> float | None:
    """Return the seconds of training until the first validation at or above a target."""
    return next((seconds for seconds, accuracy in curve if accuracy >= target), None)


def summarise(name: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return means and standard deviations over the seeds."""
    summary: dict[str, Any] = {"experiment": name, "seeds": len(runs)}
    for key in ("epochs", "train_images", "train_tflop", "train_seconds", "test/acc"):
        values = [r[key] for r in runs]
        summary[key] = round(statistics.mean(values), 4)
        summary[f"{key}_std"] = round(statistics.stdev(values), 4) if len(runs) > 1 else None
    for target in TARGETS:
        times = [seconds_to(target, r["curve"]) for r in runs]
        reached = [t for t in times if t is not None]
        summary[f"seconds_to_{target:.0%}"] = (
            round(statistics.mean(reached), 1) if len(reached) == len(runs) else None
        )
    return summary


def table(summaries: Sequence[dict[str, Any]]) -> str:
    """Format the recipes as a Markdown table."""
    lines = [
        "| recipe | seeds | epochs | images | TFLOP | seconds | test accuracy "
        "| s to 80 % on validation | s to 94 % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for s in summaries:
        spread = {
            key: "" if s[f"{key}_std"] is None else f" ± {s[f'{key}_std'] * scale:.{digits}f}"
            for key, scale, digits in (("train_seconds", 1, 1), ("test/acc", 100, 2))
        }
        times = [s[f"seconds_to_{target:.0%}"] for target in TARGETS]
        lines.append(
            f"| {s['experiment']} | {s['seeds']} | {s['epochs']:g} | {s['train_images']:,.0f} "
            f"| {s['train_tflop']:.1f} | {s['train_seconds']:.1f}{spread['train_seconds']} "
            f"| {s['test/acc'] * 100:.2f}{spread['test/acc']} % | "
            + " | ".join("-" if t is None else f"{t:.1f}" for t in times)
            + " |"
        )
    return "\n".join(lines)


def picture(runs: Sequence[dict[str, Any]], summaries: Sequence[dict[str, Any]]) -> Figure:
    """Plot accuracy against seconds: a line for validation, a dot for the test."""
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for number, summary in enumerate(summaries):
        colour = f"C{number}"
        for r in runs:
            if r["experiment"] == summary["experiment"]:
                if r["curve"]:
                    axes.plot(*zip(*r["curve"], strict=True), color=colour, alpha=0.6, linewidth=1)
                axes.plot(r["train_seconds"], r["test/acc"], "o", color=colour, markersize=5)
        axes.plot([], [], "o-", color=colour, label=summary["experiment"])
    axes.axhline(0.8, color="#d1242f", linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("accuracy: validation (line), test (dot)")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    return figure


def main() -> None:
    """Measure what is missing, and write the table and the picture."""
    one_gpu = ["trainer.gpus=1"] if ON_GPU else []
    overrides = ["logger=csv", *one_gpu, *prepare_arguments(sys.argv[1:])]
    conditions = {
        "overrides": overrides,
        "device": devices.device_name(torch.device("cuda" if ON_GPU else "cpu")),
        "torch": torch.__version__,
        "conventional_epochs": CONVENTIONAL_EPOCHS,
        "workers": WORKERS,
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS:
        for name in EXPERIMENTS:
            measure(name, seed, conditions)
    runs = read(conditions)
    names = {run["experiment"] for run in runs}
    summaries = sorted(
        (summarise(name, [r for r in runs if r["experiment"] == name]) for name in names),
        key=lambda summary: summary["train_seconds"],
    )
    print(table(summaries))
    (FOLDER / "table.md").write_text(table(summaries) + "\n")
    picture(runs, summaries).savefig(FOLDER / "time_to_target.png")
    print(f"In {FOLDER}: table.md, time_to_target.png, runs.jsonl")
    print(json.dumps({**conditions, "recipes": summaries}))


if __name__ == "__main__":
    main()
