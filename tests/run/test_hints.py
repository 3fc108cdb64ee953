"""What is said to names that people know from other projects."""

import inspect
import sys
from collections.abc import Callable, Sequence

import pytest
import pytorch_lightning as pl
from conftest import exist
from programs import hydra_restored
from test_conf import names

from cifar_lightning.config.habits import ANSWERS, INSTEAD, OTHER_NAMES, suggestion
from cifar_lightning.config.messages import known_names
from cifar_lightning.config.options import plain_arguments
from cifar_lightning.config.refused import refusal
from cifar_lightning.errors import UserError
from cifar_lightning.train import main

KNOWN = {command: known_names(command) for command in names("")}
TOOLS = {"evaluate", "predict", "export", "report", "search", "dashboard"} <= {*KNOWN}


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("lr", "optimizer.lr"),
        ("learning_rate", "optimizer.lr"),
        ("model.lr", "optimizer.lr"),
        ("optimizer.learning_rate", "optimizer.lr"),
        ("model.optimizer.lr", "optimizer.lr"),
        ("optimizer.lrr", "optimizer.lr"),
        ("optimiser.lr", "optimizer.lr"),
        ("momentum", "optimizer.momentum"),
        ("weight_decay", "optimizer.weight_decay"),
        ("epochs", "trainer.max_epochs"),
        ("max_epochs", "trainer.max_epochs"),
        ("trainer.max_epoch", "trainer.max_epochs"),
        ("batch_size", "data.batch_size"),
        ("batch-size", "data.batch_size"),
        ("val_split", "data.val_size"),
        ("data_dir", "data.root"),
        ("gpus", "trainer.gpus"),
        ("devices", "trainer.gpus"),
        ("device", "trainer.gpus"),
        ("precision", "trainer.precision"),
        ("trainer.gradient_clip", "trainer.gradient_clip_val"),
        ("gradient_clip_val", "trainer.gradient_clip_val"),
        ("grad_accum", "trainer.accumulate_grad_batches"),
        ("warmup_steps", "scheduler.warmup"),
        ("compile", "trainer.compile"),
        ("project", "logger.wandb.project"),
        ("name", "logger.wandb.name"),
        ("tags", "logger.wandb.tags"),
        ("ckpt_path", "resume"),
        ("checkpoint", "resume"),
        ("task_name", "hydra.run.dir"),
        ("paths.output_dir", "hydra.run.dir"),
        ("net", "model"),
        ("modle", "module or model"),
        ("dataset", "data"),
        ("opt", "optimizer"),
        ("sched", "scheduler"),
        ("seeed", "seed"),
    ],
)
def test_a_known_name_is_told_the_key_here(typed: str, key: str) -> None:
    if key.startswith("logger.wandb.") and not exist("logger=wandb"):
        pytest.skip("W&B was deleted")
    assert suggestion(typed, KNOWN["train"]) == f" Did you mean {key}?"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("data.num_workers", "All images are in memory"),
        ("fp16", "trainer.precision=16-mixed"),
        ("model.dropout", "no dropout"),
        ("wandb", "logger=wandb"),
        ("patience", "EarlyStopping"),
        ("image_size", "from its data"),
        ("n_trials", "cifar_lightning.search"),
        ("path", "data=folder data.path="),
        ("weights", "begins with new weights"),
        ("optimizer.beta", "+optimizer.betas="),
    ],
)
def test_a_known_name_without_a_key_is_told_why(typed: str, said: str) -> None:
    if said == "cifar_lightning.search" and "search" not in KNOWN:
        assert said not in suggestion(typed, KNOWN["train"])
    else:
        assert said in suggestion(typed, KNOWN["train"])


@pytest.mark.parametrize("typed", ["zzz", "callbacks.x", "trainer.zzz", "data.foo.bar"])
def test_a_name_that_nothing_is_near_gets_no_guess(typed: str) -> None:
    assert suggestion(typed, KNOWN["train"]) == ""


@pytest.mark.skipif(not TOOLS, reason="a command was deleted")
@pytest.mark.parametrize(
    ("command", "typed", "key"),
    [
        ("evaluate", "ckpt_path", "checkpoint"),
        ("evaluate", "gpus", "trainer.gpus"),
        ("evaluate", "path", "checkpoint"),
        ("predict", "path", "checkpoint or images"),
        ("predict", "input", "images"),
        ("predict", "bs", "batch_size"),
        ("export", "output_file", "output"),
        ("report", "folder", "run"),
        ("search", "lr", "optimizer.lr"),
        ("search", "num_trials", "n_trials"),
        ("dashboard", "projet", "project"),
    ],
)
def test_each_command_is_told_its_own_keys(command: str, typed: str, key: str) -> None:
    assert suggestion(typed, KNOWN[command]) == f" Did you mean {key}?"


@pytest.mark.skipif(not TOOLS, reason="a command was deleted")
def test_an_answer_is_for_the_commands_that_it_is_true_of() -> None:
    assert "trainer.precision=16-mixed" in suggestion("fp16", KNOWN["evaluate"])
    assert suggestion("fp16", KNOWN["report"]) == ""
    assert suggestion("early_stopping", KNOWN["evaluate"]) == ""


@pytest.mark.parametrize("name", inspect.signature(pl.Trainer).parameters)
def test_every_argument_of_lightnings_trainer_is_found_without_its_group(name: str) -> None:
    key = {"devices": "trainer.gpus"}.get(name, f"trainer.{name}")
    assert refusal(name) or suggestion(name, KNOWN["train"]) == f" Did you mean {key}?"


@pytest.mark.skipif(not TOOLS or not exist("logger=default"), reason="a part was deleted")
def test_every_key_that_is_suggested_is_there() -> None:
    known = {"data.path"}.union(*KNOWN.values())  # that of data=folder
    assert {*OTHER_NAMES} <= known
    assert {*INSTEAD} - {"hydra/sweeper"} <= known
    assert {about for about, _ in ANSWERS.values()} <= known


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "--lr 0.1",
            "--lr is not an option. Values are set by KEY=VALUE. As in: optimizer.lr=0.1.",
        ),
        ("-lr 0.1", "-lr is not an option. Values are set by KEY=VALUE. As in: optimizer.lr=0.1."),
        ("seed=1 --batch-size 64 -m", "As in: data.batch_size=64."),
        ("--epochs=10", "--epochs is not an option. Values are set by KEY=VALUE. As in: trainer."),
        ("--amp", "Values are set by KEY=VALUE. trainer.precision=16-mixed"),
        ("--zzz -m", "--zzz is not an option. Values are set by KEY=VALUE."),
        ("--experiment best_1m", "As in: experiment=best_1m."),
        ("--config=x.yaml", "As in: experiment=x.yaml."),
        ("--hlep", "--hlep is not an option. Did you mean --help?"),
    ],
)
def test_an_option_that_is_none_is_told_as_a_key(typed: str, said: str) -> None:
    with pytest.raises(UserError) as raised:
        plain_arguments(typed.split(), "train")
    assert said in str(raised.value)


# What is typed, and what the command ends with.
ENDINGS: list[tuple[Sequence[str], Sequence[str]]] = [
    (["lr=3"], ["There is no 'lr' in the configuration. Did you mean optimizer.lr?\n--help all"]),
    (["--lr", "0.1"], ["As in: optimizer.lr=0.1."]),
    (["fast_dev_run=true"], ["fast_dev_run is not used here: debug=fast"]),
    (["+fast_dev_run=true"], ["fast_dev_run is not used here: debug=fast"]),
    (["optimizer=adamw", "momentum=0.9"], ["optimizer.momentum? It belongs to optimizer=muon"]),
    (["optimizer=adam"], ["Did you mean adamw?", "optimizer._target_=torch.optim.Adam."]),
    (["trainer=gpu"], ["There is no trainer=gpu.", "trainer.gpus=1 trains on a GPU"]),
    (["model=resnet18"], ["Did you mean resnet20?\ndocs/extend.md adds a network."]),
    (["+seed=1"], ["seed is in the configuration already: seed=VALUE, without +, sets it."]),
    (["+model=resnet20"], ["already: model=resnet20, without +, replaces it."]),
    (["data=shapes", "+lr=3"], ["There is no setting lr", "Did you mean optimizer.lr?"]),
]


@pytest.fixture
def message(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    def run_here(*typed: str) -> str:
        monkeypatch.setattr(sys, "argv", ["cifar-train", *typed])
        with hydra_restored(), pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, str)  # which is exit code 1
        return ended.value.code

    return run_here


@pytest.mark.parametrize(("typed", "expected"), ENDINGS, ids=lambda x: x[-1][:40])
def test_the_command_says_it(
    typed: Sequence[str], expected: Sequence[str], message: Callable[..., str]
) -> None:
    said = message(*typed)
    assert said.startswith("\nError: ")
    for part in expected:
        assert part in said
