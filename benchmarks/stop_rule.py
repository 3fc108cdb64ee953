"""How often a run that stops at the target has reached it on images that it did not look at.

    python benchmarks/stop_rule.py data=folder data.path=DIR_OR_ARCHIVE

Uses validation images only; the test images are not read. Trains the default recipe to its end and,
from the middle of the training on, validates eight times an epoch: the weights, and two exponential
moving averages of them. Then splits the validation images into random halves, many times. One half
stops the run, at the first check at or above the target plus a margin of z standard errors; the
other half says whether the target is reached there. The fraction of cases in which it is should be
at least the confidence that the margin stands for. The last line of the output is JSON.

Options are those of training. Environment: SEEDS (default 100,101,102, which no published table
uses).
"""

import copy
import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from cifar_lightning import run
from cifar_lightning.config.compose import compose
from cifar_lightning.config.overrides import prepare_arguments
from cifar_lightning.data import ImageData
from cifar_lightning.run import fit

SEEDS = [int(seed) for seed in os.environ.get("SEEDS", "100,101,102").split(",")]
CHECKS_PER_EPOCH = 8
DECAYS = (0.95, 0.98)  # of the moving averages, per step
SPLITS = 2000
MARGINS = (0.0, 0.5, 1.0, 1.28, 1.64)  # in standard errors; 1.28 stands for a confidence of 0.9


class Watch(pl.Callback):
    """Validates several times an epoch, with the weights and with their moving averages.

    Args:
        data: whose validation images are used.

    Attributes:
        epochs: when the checks were, in epochs.
        right: for each kind of weights, a bool tensor [images] per check: correct or not.
    """

    def __init__(self, data: ImageData) -> None:
        self.data = data
        self.epochs: list[float] = []
        self.right: dict[str, list[Tensor]] = {"last": []}
        self.averages: dict[float, dict[str, Tensor]] = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Update the averages; validate if a check is due."""
        network = pl_module.network
        assert isinstance(network, nn.Module)
        weights = {k: v for k, v in network.state_dict().items() if v.is_floating_point()}
        for decay in DECAYS:
            if decay not in self.averages:
                self.averages[decay] = copy.deepcopy(weights)
            average = self.averages[decay]
            for name, value in weights.items():
                average[name].lerp_(value, 1 - decay)
        step, per_epoch = trainer.global_step, int(trainer.num_training_batches)
        total = per_epoch * (trainer.max_epochs or 1)
        if step * 2 < total or step * CHECKS_PER_EPOCH % per_epoch >= CHECKS_PER_EPOCH:
            return
        kept = copy.deepcopy(network.state_dict())
        self.epochs.append(step / per_epoch)
        self.right["last"].append(self._validate(pl_module))
        for decay, average in self.averages.items():
            network.load_state_dict({**kept, **average})
            self.right.setdefault(f"average {decay}", []).append(self._validate(pl_module))
        network.load_state_dict(kept)
        shares = ", ".join(f"{k} {v[-1].float().mean():.2%}" for k, v in self.right.items())
        print(f"  epoch {self.epochs[-1]:.2f}: {shares}", flush=True)

    def _validate(self, module: pl.LightningModule) -> Tensor:
        assert self.data.val is not None
        images, labels = self.data.val.images, self.data.val.labels
        module.eval()
        with torch.no_grad(), module.trainer.precision_plugin.forward_context():
            guesses = [module(part.to(module.device)).argmax(1) for part in images.split(500)]
        module.train()
        return torch.cat(guesses).cpu() == labels


def trained(overrides: Sequence[str], seed: int) -> Watch:
    """Train to the end with checks."""
    with tempfile.TemporaryDirectory() as run_dir:
        config = compose([*overrides, f"seed={seed}"], run_dir)
        data = run.build_data(config)
        pl.seed_everything(seed, verbose=False)
        classifier, _ = run.build_classifier(config, data)
        watch = Watch(data)
        trainer = run.build_trainer(config, {"watch": watch}, validates=False)
        with fit.quiet():
            fit.fit(trainer, classifier, data, config)
    return watch


def kept_promises(
    watches: Sequence[Watch], weights: str, every: int, margin: float, target: float
) -> dict[str, float]:
    """Judge a stop rule: how often the second half of the images confirms the first.

    Args:
        watches: of several seeds.
        weights: a key of `Watch.right`.
        every: use every n-th check only.
        margin: in standard errors of the difference between the accuracies of two halves.
        target: accuracy that the run shall reach.

    Returns:
        `kept`: fraction of the stops that are confirmed; `stopped`: fraction of the splits in which
        a run stops; `epochs`: the mean epoch of the stops.
    """
    generator = torch.Generator().manual_seed(0)
    kept, stops = 0, []
    for watch in watches:
        looked = [i for i, e in enumerate(watch.epochs) if round(e * CHECKS_PER_EPOCH) % every == 0]
        right = torch.stack([watch.right[weights][i] for i in looked]).float()  # [checks, images]
        half = right.shape[1] // 2
        threshold = target + margin * (target * (1 - target) * 2 / half) ** 0.5
        for _ in range(SPLITS):
            order = torch.randperm(right.shape[1], generator=generator)
            judging, asked = right[:, order[:half]].mean(1), right[:, order[half:]].mean(1)
            passed = (judging >= threshold).nonzero()
            if len(passed):
                first = int(passed[0])
                kept += bool(asked[first] >= target)
                stops.append(watch.epochs[looked[first]])
    return {
        "kept": round(kept / max(1, len(stops)), 3),
        "stopped": round(len(stops) / SPLITS / len(watches), 3),
        "epochs": round(sum(stops) / max(1, len(stops)), 2),
    }


def main() -> None:
    """Train, judge, and print a line for each rule, then the summary."""
    logging.disable(logging.INFO)  # what Lightning tells at every start
    overrides = [
        *prepare_arguments(sys.argv[1:]),
        "logger=csv",
        "target_accuracy=null",
        "+trainer.enable_checkpointing=false",
    ]
    watches = []
    for seed in SEEDS:
        print(f"seed {seed}", flush=True)
        watches.append(trained(overrides, seed))
    rules = []
    for weights in watches[0].right:
        for every in (1, 2, 4, 8):
            for margin in MARGINS:
                rule = {"weights": weights, "checks_per_epoch": CHECKS_PER_EPOCH // every}
                judged = kept_promises(watches, weights, every, margin, target=0.8)
                rules.append({**rule, "margin": margin, **judged})
                print(rules[-1], flush=True)
    print(json.dumps({"seeds": SEEDS, "rules": rules}))


if __name__ == "__main__":
    main()
