"""docs/extend.md, followed word by word in separate checkouts."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from omegaconf import OmegaConf
from programs import run_command
from test_install import ROOT, sources

from cifar_lightning.run import rebuild
from cifar_lightning.tracking.run_folder import read_rows

DOC = (ROOT / "docs/extend.md").read_text()
RECIPES = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", DOC, re.MULTILINE | re.DOTALL))
# A file and its place, or a command.
STEP = re.compile(
    r"^(?P<end>At the end of )?`(?P<file>[\w./]+)`:\n\n```(?:python|yaml)\n(?P<block>.*?)^```"
    r"|^    (?P<command>(?:[A-Z]+=\S+ )*python .+?)$",
    re.MULTILINE | re.DOTALL,
)
# What makes the commands quick.
SMALLER = {
    "train": [
        "logger=csv",
        "trainer.gpus=0",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=5",
    ],
    "pareto.py": [option for option in TINY if option not in ("data=shapes", "logger=csv")],
    "evaluate": ["robustness=false"],
}
OF_SHAPES = [option for option in TINY if option.startswith("data.")]


def checkout_with(recipe: str, folder: Path) -> tuple[Path, list[str]]:
    """Do what a recipe says, step by step; returns the checkout, and what each command printed."""
    checkout, printed = sources(folder / "checkout"), []
    shutil.copytree(ROOT / "benchmarks", checkout / "benchmarks")
    for step in STEP.finditer(RECIPES[recipe]):
        if step["command"]:
            printed.append(call(step["command"], checkout))
        else:
            write(step, checkout)
    return checkout, printed


def write(step: re.Match[str], checkout: Path) -> None:
    file = checkout / step["file"]
    assert file.exists() == bool(step["end"]), f"{file}: is it new?"
    before = f"{file.read_text()}\n\n" if step["end"] else ""
    file.write_text(before + step["block"])


def call(command: str, checkout: Path) -> str:
    """What a command prints in a checkout, with settings that make it quick."""
    words = shlex.split(command)
    given = dict(word.split("=", 1) for word in words[: words.index("python")])
    environment = {**os.environ, **given, "PYTHONPATH": str(checkout), "ROUNDS": "1"}
    program, *options = words[words.index("python") + 1 :]
    if program == "-m":
        name = options.pop(0).removeprefix("cifar_lightning.")
    else:
        name = Path(program).name
    typed = {option.partition("=")[0] for option in options}
    options += [o for o in SMALLER.get(name, []) if o.partition("=")[0] not in typed]
    if "data=shapes" in options:
        options += OF_SHAPES
    if program == "-m":
        ended = run_command(name, *options, cwd=checkout, env=environment)
    else:
        ended = subprocess.run(
            [sys.executable, program, *options],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


def metrics_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "metrics.json").read_text()))


@pytest.mark.slow
def test_a_network_stands_in_the_table(tmp_path: Path) -> None:
    checkout, (_, table) = checkout_with("A network", tmp_path)
    (run,) = checkout.glob("runs/train/*")
    assert metrics_of(run)["model"] == "tiny"
    # What the document shows: the heading, and of the row what is no matter of training.
    heading, row = re.findall(r"^\| (?:experiment|`tiny`).*", RECIPES["A network"], re.MULTILINE)
    assert heading in table.splitlines()
    assert row[: row.index(" M |")] in table
    assert row[: row.index(" M |")] in (checkout / "runs/pareto/table.md").read_text()


@pytest.mark.slow
def test_a_loss_and_its_setting_are_trained_with(tmp_path: Path) -> None:
    checkout, _ = checkout_with("A loss", tmp_path)
    (config,) = checkout.glob("runs/train/*/config.yaml")
    assert OmegaConf.load(config).loss.epsilon == 2.0
    row, *_ = read_rows(config.parent)
    # Cross-entropy and epsilon (1 - p) of a network that has not learnt yet.
    assert row["train/loss"] > 2.3 + 1.5


@pytest.mark.slow
def test_lightning_modules_train_and_are_evaluated(tmp_path: Path) -> None:
    checkout, (_, evaluated, plain) = checkout_with("A training step", tmp_path)
    two, other = (checkout / "runs/two", *checkout.glob("runs/train/*"))
    last = torch.load(two / "checkpoints/last.ckpt", weights_only=True)
    assert len(last["optimizer_states"]) == 2
    assert f"{metrics_of(two)['test/acc']:.2%}" in evaluated
    assert "Plain, which takes no augment, cutmix, loss, optimizer, scheduler" in plain
    assert metrics_of(other)["test/acc"] is not None
    for name in ("last.ckpt", "best.ckpt"):
        rebuild(other / "checkpoints" / name)


@pytest.mark.slow
def test_an_augmentation_is_part_of_a_training(tmp_path: Path) -> None:
    checkout, _ = checkout_with("An augmentation", tmp_path)
    (best,) = checkout.glob("runs/train/*/checkpoints/best.ckpt")
    program = (
        "import torch; from hydra.utils import instantiate; from omegaconf import OmegaConf\n"
        f"augment = instantiate(OmegaConf.load({str(best.parents[1] / 'config.yaml')!r}).augment)\n"
        "images = torch.tensor([200, 100, 0]).byte().view(1, 3, 1, 1).expand(5000, 3, 32, 32)\n"
        "seen = augment(images, torch.arange(5000), 0, torch.Generator())\n"
        "print((seen == 100).flatten(1).all(1).float().mean().item())"
    )
    share = call(f"python -c {shlex.quote(program)}", checkout)
    assert float(share) == pytest.approx(0.2, abs=0.03)


@pytest.mark.slow
def test_optimizers_have_trained(tmp_path: Path) -> None:
    checkout, _ = checkout_with("An optimizer", tmp_path)
    states = []
    for last in sorted(checkout.glob("runs/train/*/checkpoints/last.ckpt")):
        (saved,) = torch.load(last, weights_only=True)["optimizer_states"]
        states.append(set(saved["state"][0]))
    nadam, own = states
    assert "mu_product" in nadam
    assert own == {"mean"}


@pytest.mark.slow
def test_a_data_set_is_trained_on_evaluated_and_predicted(tmp_path: Path) -> None:
    checkout, (*_, evaluated, _) = checkout_with("A data set", tmp_path)
    run = checkout / "runs" / "stripes"
    assert metrics_of(run)["data"] == "stripes"
    facts = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["hyper_parameters"]
    assert facts["image_size"] == 64
    assert re.search(r"images +150 test images of data=stripes\n", evaluated)
    evaluation = json.loads((run / "evaluation" / "evaluation.json").read_text())
    classes = {"flat", "slanted", "steep"}
    assert set(evaluation["test/acc_by_class"]) == classes
    with (checkout / "answers.csv").open() as file:
        answers = list(csv.DictReader(file))
    assert len(answers) == 150
    assert {answer["class"] for answer in answers} <= classes


@pytest.mark.slow
def test_metrics_are_in_the_curves_and_the_results(tmp_path: Path) -> None:
    checkout, _ = checkout_with("A metric", tmp_path)
    (run,) = checkout.glob("runs/train/*")
    with (run / "metrics.csv").open() as file:
        validation, test = csv.DictReader(file)
    metrics = metrics_of(run)
    for name in ("worst", "f1"):
        assert 0 <= float(validation[f"val/{name}"]) <= 1
        assert metrics[f"test/{name}"] == pytest.approx(float(test[f"test/{name}"]), abs=1e-6)
    assert metrics["test/worst"] < metrics["test/acc"]


@pytest.mark.slow
def test_callbacks_log_and_average(tmp_path: Path) -> None:
    checkout, _ = checkout_with("A callback", tmp_path)
    (run,) = checkout.glob("runs/train/*")
    assert all(row["weight_norm"] > 0 for row in read_rows(run) if "val/acc" in row)
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    averaged, current = last["state_dict"], last["current_model_state"]
    assert any(not torch.equal(averaged[name], current[name]) for name in averaged)


@pytest.mark.slow
def test_several_loggers_record_a_run(tmp_path: Path) -> None:
    checkout, _ = checkout_with("A logger", tmp_path)
    (run,) = checkout.glob("runs/train/*")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in ("val/acc", "test/acc"):
        (logged,) = [row[name] for row in rows if name in row]
        assert logged == next(row[name] for row in read_rows(run) if name in row)
    assert [*run.glob("tensorboard/events.*")]
    assert [*checkout.glob("runs/wandb/offline-run-*")]


@pytest.mark.slow
def test_arguments_of_the_trainer_are_an_option(tmp_path: Path) -> None:
    checkout, _ = checkout_with("A Trainer flag", tmp_path)
    (config,) = checkout.glob("runs/train/*/config.yaml")
    trainer = OmegaConf.load(config).trainer
    assert (trainer.accumulate_grad_batches, trainer.detect_anomaly) == (2, True)


def test_every_block_is_read_short_and_as_the_linter_wants_it(tmp_path: Path) -> None:
    checkout = sources(tmp_path / "checkout")
    steps = [step for step in STEP.finditer(DOC) if step["block"]]
    assert len(steps) == len(re.findall(r"^```(?:python|yaml)", DOC, re.MULTILINE))
    for step in steps:
        lines = [line.strip() for line in step["block"].splitlines()]
        assert len([line for line in lines if line and not line.startswith('"""')]) < 20
        write(step, checkout)
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "."]
        ended = subprocess.run(ruff, cwd=checkout, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
