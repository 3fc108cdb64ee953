"""What the gradient norm and W&B cost a training.

    python benchmarks/wandb_overhead.py data=folder data.path=DIR_OR_ARCHIVE

Three trainings of one epoch take turns in one process: with `logger=csv` without the gradient norm,
with `logger=csv`, and with W&B offline. The order is reversed after each round. Measured are
images/s during training, and the seconds that the run takes beside training (set-up, validation,
test, plots, W&B); and the milliseconds of the gradient norm of a step by itself, which are too few
to show in a training. Ratios are medians over the rounds. The last line of the output is JSON.

Options are those of training. Environment: ROUNDS.
"""

import contextlib
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.utils import get_total_norm

from cifar_lightning.config.compose import compose
from cifar_lightning.config.overrides import prepare_arguments
from cifar_lightning.models import DilatedDW
from cifar_lightning.run import devices
from cifar_lightning.train import train

ROUNDS = int(os.environ.get("ROUNDS", "7"))
OF_ALL = ("trainer.max_epochs=1", "target_accuracy=null")
VARIANTS = {
    "without": ("logger=csv", "callbacks.gradient_norm=null"),
    "norm": ("logger=csv",),
    "wandb": ("logger=default", "logger.wandb.mode=offline"),
}


def measure(options: list[str], folder: Path) -> tuple[float, float]:
    """Train; return images/s, and the seconds of the run beside training."""
    config = compose([*OF_ALL, *options], folder)
    begun = time.perf_counter()
    with (folder.parent / "output").open("w") as output, contextlib.redirect_stdout(output):
        metrics = train(config)
    seconds = time.perf_counter() - begun
    return metrics["images_per_s"], seconds - metrics["train_seconds"]


def norm_milliseconds() -> float:
    """Return the median milliseconds of the norm of `dilated_dw`'s gradients on the CPU."""
    network = DilatedDW().to(memory_format=torch.channels_last)
    network(torch.randn(8, 3, 32, 32)).sum().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    seconds = []
    for _ in range(200):
        begun = time.perf_counter()
        get_total_norm(gradients)
        seconds.append(time.perf_counter() - begun)
    return 1000 * statistics.median(seconds)


def main() -> None:
    """Measure and print."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    options = prepare_arguments(sys.argv[1:])
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    besides: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as place:
        save_dir = f"logger.wandb.save_dir={place}/w"
        measure([*options, *VARIANTS["norm"]], Path(place, "warm-up"))
        for number in range(ROUNDS):
            names = list(VARIANTS) if number % 2 == 0 else list(reversed(VARIANTS))
            for name in names:
                own = [*VARIANTS[name], *([save_dir] if name == "wandb" else [])]
                rate, beside = measure([*options, *own], Path(place, f"{name}-{number}"))
                rates[name].append(rate)
                besides[name].append(beside)
            shown = "  ".join(f"{n} {rates[n][-1]:,.0f}/s {besides[n][-1]:.1f} s" for n in VARIANTS)
            print(f"round {number + 1}  {shown}", flush=True)
    ratios = {
        name: [rate / base for rate, base in zip(rates[name], rates["without"], strict=True)]
        for name in ("norm", "wandb")
    }
    summary = {
        "rounds": ROUNDS,
        "norm_ms_a_step": round(norm_milliseconds(), 3),
        "device": devices.device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "torch": torch.__version__,
        **{f"{name}_images_per_s": round(statistics.median(rates[name]), 1) for name in VARIANTS},
        **{f"ratio_{name}": round(statistics.median(found), 3) for name, found in ratios.items()},
        **{f"range_{n}": [round(min(r), 3), round(max(r), 3)] for n, r in ratios.items()},
        **{
            f"{name}_seconds_beside": round(statistics.median(besides[name]), 2)
            for name in VARIANTS
        },
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
