"""Milliseconds of depthwise convolutions: PyTorch's dilated one, ours, and undilated ones.

    python benchmarks/depthwise.py

Forward and backward of a batch of 128, in bf16 if trainings on this machine use it. All layers take
turns; the median of the rounds is reported. Environment: ROUNDS. The last line of the output is
JSON.
"""

import json
import os
import statistics
import time

import torch
from torch import nn

from cifar_lightning.models.blocks import Depthwise
from cifar_lightning.run.devices import choose_precision

ROUNDS = int(os.environ.get("ROUNDS", "20"))
SHAPES = ((64, 16), (128, 8))  # channels, pixels


def layers(channels: int) -> dict[str, nn.Module]:
    """Build the layers to compare, by name."""
    return {
        "pytorch": _pytorch(channels, 3, dilation=2),
        "ours": Depthwise(channels, dilation=2),
        "undilated": Depthwise(channels),
        "undilated 5x5": _pytorch(channels, 5),
        "undilated 7x7": _pytorch(channels, 7),
    }


def _pytorch(channels: int, size: int, dilation: int = 1) -> nn.Module:
    padding = size // 2 * dilation
    return nn.Conv2d(channels, channels, size, 1, padding, dilation, groups=channels, bias=False)


def main() -> None:
    """Measure, and print the medians."""
    bf16 = choose_precision("cpu").startswith("bf16")
    results = []
    for channels, size in SHAPES:
        maps = torch.randn(128, channels, size, size).to(memory_format=torch.channels_last)
        milliseconds: dict[str, list[float]] = {}
        compared = layers(channels)
        for turn in range(ROUNDS + 1):
            for name, layer in compared.items():
                x = maps.to(torch.bfloat16 if bf16 else torch.float32).requires_grad_()
                start = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    out = layer(x)
                out.backward(out.detach())
                taken = time.perf_counter() - start
                if turn:  # the first is for warming up
                    milliseconds.setdefault(name, []).append(taken * 1000)
        medians = {name: round(statistics.median(taken), 2) for name, taken in milliseconds.items()}
        results.append({"channels": channels, "size": size, **medians})
        print(results[-1])
    print(json.dumps({"torch": torch.__version__, "bf16": bf16, "milliseconds": results}))


if __name__ == "__main__":
    main()
