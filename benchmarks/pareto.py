"""Networks and what they are worth: accuracy against parameters, multiply-adds and images/s.

    python benchmarks/pareto.py data=folder data.path=DIR_OR_ARCHIVE

Each network is trained by the experiment of its name and tested once with the checkpoint that
validation chose; the accuracy with each image's logits averaged with those of its mirror image
stands apart. Speeds are of float32 inference and of a training step in the training's precision, a
batch of 128 each, the networks taking turns. Options are those of training; in the environment,
EXPERIMENTS and SEEDS say which networks and seeds, ROUNDS how many turns, and FOLDER where the
table, the picture and the runs go. A run whose figures are there, in NAME_SEED.json, is not
repeated, and an interrupted one is resumed from its last epoch; all are of one data option, with
the same class names and size of images. FOLDER=benchmarks/results/pareto has those that were
measured so far. The last line of the output is JSON.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra.errors import HydraException
from pareto_picture import picture

from cifar_lightning import run
from cifar_lightning.config.compose import compose
from cifar_lightning.config.messages import explain
from cifar_lightning.config.overrides import prepare_arguments
from cifar_lightning.errors import UserError
from cifar_lightning.run import devices
from cifar_lightning.tracking.run_folder import RunFolder
from cifar_lightning.training.module import Classifier

EXPERIMENTS = os.environ.get(
    "EXPERIMENTS", "best_dilated_dw,best_257k,best_1m,resnet20,airbench94"
).split(",")
SEEDS = [int(seed) for seed in os.environ.get("SEEDS", "0").split(",")]
ROUNDS = int(os.environ.get("ROUNDS", "10"))
FOLDER = Path(os.environ.get("FOLDER", "runs/pareto"))
BATCH = 128


def measure(name: str, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    """A run's figures, with the accuracy averaged with mirror images; trained if it is not."""
    figures = FOLDER / f"{name}_{seed}.json"
    if figures.exists():
        return dict(json.loads(figures.read_text()))
    folder = RunFolder(FOLDER / f"{name}_{seed}")
    if not folder.metrics_json.exists():
        fresh = [f"experiment={name}", f"seed={seed}", f"hydra.run.dir={folder.path}", *overrides]
        _command("train", *([f"resume={folder.last}"] if folder.last.exists() else fresh))
    _command("evaluate", f"checkpoint={folder.best}", "robustness=false")
    metrics = json.loads(folder.metrics_json.read_text())
    evaluation = json.loads((folder.evaluation / "evaluation.json").read_text())
    # What it was trained on: an interrupted one is resumed with its own.
    facts = torch.load(folder.best, weights_only=True)["hyper_parameters"]
    found = {"experiment": name, **metrics, "test/acc_flip": evaluation["test/acc_flip"]}
    found |= {key: facts[key] for key in ("classes", "image_size")}
    figures.write_text(json.dumps(found, indent=2) + "\n")
    return found


def _command(name: str, *options: str) -> None:
    # What it prints is not of the table, whose last line is JSON.
    code = subprocess.call([sys.executable, "-m", f"cifar_lightning.{name}", *options], stdout=2)
    if code:  # of which it has said why
        sys.exit(code)


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of one network's runs: means and standard deviations over the seeds."""
    summary = {key: runs[0][key] for key in ("experiment", "model", "params", "epochs", "device")}
    summary["seeds"] = len(runs)
    for key in ("test/acc", "test/acc_flip", "train_tflop"):
        values = [r[key] for r in runs]
        summary[key] = round(statistics.mean(values), 4)
        summary[f"{key}_std"] = round(statistics.stdev(values), 4) if len(runs) > 1 else None
    return summary


def speeds(classifiers: dict[str, Classifier]) -> dict[str, dict[str, float]]:
    """Images/s of inference and of a training step, medians over rounds, by name."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = devices.choose_precision("gpu" if device.type == "cuda" else "cpu")
    first = next(iter(classifiers.values()))
    shape = (BATCH, 3, first.image_size, first.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    labels = torch.randint(0, len(first.classes), (BATCH,), device=device)

    def infer(classifier: Classifier) -> None:
        with torch.inference_mode():
            classifier.eval()(images)

    def train(classifier: Classifier) -> None:
        half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
        classifier.train().zero_grad()
        with torch.autocast(device.type, half) if half else nullcontext():
            loss = F.cross_entropy(classifier(images).float(), labels)
        loss.backward()

    seconds: dict[tuple[str, str], list[float]] = {}
    for turn in range(ROUNDS + 1):
        for name, classifier in classifiers.items():
            for what, work in (("images_per_s", infer), ("train_images_per_s", train)):
                taken = _seconds(work, classifier.to(device))
                if turn:  # the first is for warming up
                    seconds.setdefault((name, what), []).append(taken)
    return {
        name: {
            what: round(BATCH / statistics.median(seconds[name, what]))
            for what in ("images_per_s", "train_images_per_s")
        }
        for name in classifiers
    }


def _seconds(work: Callable[[Classifier], None], classifier: Classifier) -> float:
    start = time.perf_counter()
    work(classifier)
    if classifier.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def table(summaries: Sequence[dict[str, Any]]) -> str:
    """Markdown, a row a network."""
    lines = [
        "| experiment | parameters | multiply-adds | images/s, inference | images/s, training "
        "| epochs | TFLOP | seeds | test accuracy | averaged with mirror images |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for s in summaries:
        plain, flipped = (
            f"{s[key] * 100:.2f}"
            + (f" ± {spread * 100:.2f}" if (spread := s[f"{key}_std"]) else "")
            for key in ("test/acc", "test/acc_flip")
        )
        tflop = f"{s['train_tflop']:,.{0 if s['train_tflop'] >= 10 else 2}f}"
        lines.append(
            f"| `{s['experiment']}` | {s['params']:,} | {s['multiply_adds'] / 1e6:.1f} M "
            f"| {s['images_per_s']:,} | {s['train_images_per_s']:,} | {s['epochs']} "
            f"| {tflop} | {s['seeds']} | {plain} % | {flipped} % |"
        )
    return "\n".join(lines)


def caption(runs: Sequence[dict[str, Any]]) -> str:
    """What the table is of: data, hardware, precision, seeds."""
    first = runs[0]
    return (
        f"data={first['data']}; seeds {', '.join(map(str, SEEDS))}; {first['device']}, torch "
        f"{torch.__version__}; trained and tested in {first['precision']}. Speeds: batches of "
        f"{BATCH}, inference in float32, a training step in the training's precision. By "
        "benchmarks/pareto.py."
    )


def refuse_others(source: dict[str, Any], others: dict[str, dict[str, Any]]) -> None:
    """End if one of others, by the place it is in, is not of the same data."""
    for place, other in others.items():
        for key, value in source.items():
            if other.get(key) != value:
                sys.exit(
                    f"{place} is of {key}={other.get(key)}, not {value}, and one table is of one "
                    "data set: take another FOLDER."
                )


def main() -> None:
    """Train and measure what is not measured yet, and write the table and the picture."""
    overrides = ["logger=csv", *prepare_arguments(sys.argv[1:])]
    classifiers, budgets, sources = {}, {}, {}
    try:
        for name in EXPERIMENTS:
            config = compose([f"experiment={name}", *overrides])
            data = run.build_data(config)
            # New: what a network costs does not lie in its weights.
            classifiers[name], budgets[name] = run.build_classifier(config, data)
            sources[f"experiment={name}"] = {
                "data": config.choices.data,
                "classes": list(data.classes),
                "image_size": data.image_size,
            }
    except (HydraException, UserError) as error:
        sys.exit(explain(error, "train", overrides))
    source = next(iter(sources.values()))
    refuse_others(source, sources)
    refuse_others(source, {str(f): json.loads(f.read_text()) for f in FOLDER.glob("*_[0-9]*.json")})
    FOLDER.mkdir(parents=True, exist_ok=True)
    runs = [measure(name, seed, overrides) for seed in SEEDS for name in EXPERIMENTS]
    refuse_others(source, {f"{r['experiment']}_{r['seed']}": r for r in runs})
    measured = speeds(classifiers)
    summaries = [
        {
            **summarise([r for r in runs if r["experiment"] == name]),
            "multiply_adds": budgets[name].multiply_adds,
            **measured[name],
        }
        for name in EXPERIMENTS
    ]
    summaries.sort(key=lambda s: (s["params"], s["test/acc"]))
    print(table(summaries))
    (FOLDER / "table.md").write_text(f"{table(summaries)}\n\n{caption(runs)}\n")
    figure = picture(summaries, f"data={source['data']}", source["classes"])
    figure.savefig(FOLDER / "pareto.png")
    print(f"In {FOLDER}: table.md, pareto.png, the runs")
    print(json.dumps({"torch": torch.__version__, "batch": BATCH, "networks": summaries}))


if __name__ == "__main__":
    main()
