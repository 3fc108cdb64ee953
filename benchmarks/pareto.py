"""Accuracy, parameters, multiply-adds and images/s of several networks.

    python benchmarks/pareto.py data=folder data.path=DIR_OR_ARCHIVE

Trains each network by the experiment of its name and tests it once, with the checkpoint that
validation chose. A separate column has the accuracy with the logits of each image and its mirror
image averaged. Speeds are those of inference in float32 and of a training step in the precision of
the training, in batches of 128; the networks take turns. The last line of the output is JSON.

Options are those of training. Environment: EXPERIMENTS and SEEDS (which networks and seeds), ROUNDS
(of the speeds), FOLDER (for the table, the picture and the runs). A run whose figures are in
FOLDER/NAME_SEED.json is not repeated; an interrupted run is resumed. All runs in a folder must be
of the same data option, class names and image size. FOLDER=benchmarks/results/pareto has what was
measured so far.
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
    """Return a run's figures, with its accuracy averaged over mirror images; train it if needed."""
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
    # Of the data that the run was trained on: a resumed run keeps its own, whatever is typed now.
    facts = torch.load(folder.best, weights_only=True)["hyper_parameters"]
    found = {"experiment": name, **metrics, "test/acc_flip": evaluation["test/acc_flip"]}
    found |= {key: facts[key] for key in ("classes", "image_size")}
    figures.write_text(json.dumps(found, indent=2) + "\n")
    return found


def _command(name: str, *options: str) -> None:
    # Its output goes to stderr, because the last line of stdout has to be JSON.
    code = subprocess.call([sys.executable, "-m", f"cifar_lightning.{name}", *options], stdout=2)
    if code:  # of which it has said why
        sys.exit(code)


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return means and standard deviations over the seeds of one network's runs."""
    summary = {key: runs[0][key] for key in ("experiment", "model", "params", "epochs", "device")}
    summary["seeds"] = len(runs)
    for key in ("test/acc", "test/acc_flip", "train_tflop"):
        values = [r[key] for r in runs]
        summary[key] = round(statistics.mean(values), 4)
        summary[f"{key}_std"] = round(statistics.stdev(values), 4) if len(runs) > 1 else None
    return summary


def speeds(classifiers: dict[str, Classifier]) -> dict[str, dict[str, float]]:
    """Measure images/s of inference and of a training step; return medians over rounds, by name."""
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
    """Format the networks as a Markdown table."""
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
    """Describe the table: data, seeds, hardware, precision."""
    first = runs[0]
    return (
        f"data={first['data']}; seeds {', '.join(map(str, SEEDS))}; {first['device']}, torch "
        f"{torch.__version__}; trained and tested in {first['precision']}. Speeds: batches of "
        f"{BATCH}, inference in float32, a training step in the training's precision. By "
        "benchmarks/pareto.py."
    )


def refuse_others(source: dict[str, Any], others: dict[str, dict[str, Any]]) -> None:
    """Exit if one of `others`, named by where it was found, has other data than `source`."""
    for place, other in others.items():
        for key, value in source.items():
            if other.get(key) != value:
                sys.exit(
                    f"{place} is of {key}={other.get(key)}, not {value}, and one table is of one "
                    "data set: take another FOLDER."
                )


def main() -> None:
    """Train and measure what is missing, and write the table and the picture."""
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
