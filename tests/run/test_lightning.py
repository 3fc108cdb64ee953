"""Every argument of Lightning's Trainer and every Lightning callback works or is refused.

If a new version of Lightning adds one, a test here fails.
"""

import inspect
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import TINY
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict
from programs import hydra_restored, read_json
from pytorch_lightning import callbacks as of_lightning

from cifar_lightning.config.compose import CONF, compose
from cifar_lightning.config.messages import explain
from cifar_lightning.config.refused import FIXED_ARGUMENTS, UNSUPPORTED_CALLBACKS
from cifar_lightning.config.training import check_config
from cifar_lightning.errors import UserError
from cifar_lightning.run import build_trainer
from cifar_lightning.tracking.run_folder import read_rows
from cifar_lightning.train import main, train

Compose = Callable[..., DictConfig]

PARAMETERS = dict(inspect.signature(pl.Trainer).parameters)

# Fewer images than those of TINY, in as many batches.
SMALLER = ("data.train_size=50", "data.val_size=20", "data.test_size=20", "data.batch_size=5")

# Every argument that works, with values that fit into one training.
TRIED: dict[str, Any] = {
    "accelerator": "cpu",
    "accumulate_grad_batches": 2,
    "benchmark": False,
    "check_val_every_n_epoch": 1,
    "detect_anomaly": True,
    "deterministic": True,
    "devices": 1,
    "enable_model_summary": True,
    "enable_progress_bar": True,
    "gradient_clip_algorithm": "value",
    "gradient_clip_val": 1,
    "inference_mode": False,
    "limit_test_batches": 0.5,
    "limit_train_batches": 2,
    "limit_val_batches": 1,
    "log_every_n_steps": 1,
    "max_epochs": 2,
    "max_steps": 100,
    "max_time": "{hours:1}",
    "min_epochs": 1,
    "min_steps": 1,
    "num_nodes": 1,
    "num_sanity_val_steps": 1,
    "plugins": "{_target_:pytorch_lightning.plugins.precision.DoublePrecision}",
    "precision": "null",
    "profiler": "simple",
    "strategy": "single_device",
    "sync_batchnorm": False,
    "val_check_interval": 1,
}


# Whose values in conf/ are not Lightning's, and which older runs had.
OURS = {"deterministic", "enable_model_summary", "log_every_n_steps", "max_epochs", "precision"}
OURS |= {"num_sanity_val_steps", "val_check_interval"}

# Whose data is nowhere: what is refused is refused before it is looked for.
NOWHERE = compose(["data=cifar10", "data.root=nowhere", "data.mirrors=[]", "logger=csv"], "run")


def changed(*typed: str) -> DictConfig:
    """Its configuration with other values, without the time that composing takes."""
    config = NOWHERE.copy()
    with open_dict(config):
        for override in OverridesParser.create().parse_overrides(list(typed)):
            OmegaConf.update(config, override.key_or_group, override.value(), merge=False)
    return config


def test_every_argument_of_the_trainer_is_a_key_or_is_refused() -> None:
    keys = set(OmegaConf.load(CONF / "trainer" / "default.yaml")) - {"_target_", "compile", "gpus"}
    assert keys == TRIED.keys()
    assert keys.isdisjoint(FIXED_ARGUMENTS)
    assert keys | FIXED_ARGUMENTS.keys() == PARAMETERS.keys()


def test_a_missing_key_means_what_conf_says() -> None:
    # As in a user's own conf/trainer/NAME.yaml, and in the record of an older run.
    for key, value in OmegaConf.load(CONF / "trainer" / "default.yaml").items():
        if key in PARAMETERS and key not in OURS:
            assert value == PARAMETERS[str(key)].default, key


def test_an_older_run_without_the_keys_is_resumed_with_what_is_typed(
    trained_run: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(trained_run, tmp_path / "older")
    record = OmegaConf.load(folder / "config.yaml")
    for key in {*TRIED} - OURS:
        del record.trainer[key]
    record.trainer.use_distributed_sampler = False  # which conf/ had
    record.run_dir = str(folder)
    OmegaConf.save(record, folder / "config.yaml")
    typed = ["trainer.max_epochs=2", "trainer.limit_train_batches=2"]
    metrics = train(compose([f"resume={folder}/checkpoints/last.ckpt", *typed], folder))
    assert metrics["train_images"] == 6 * 25 + 2 * 25


def test_the_command_takes_all_arguments_without_a_plus_and_shows_their_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = [f"trainer.{key}={value}" for key, value in TRIED.items()]
    typed = [*TINY, *SMALLER, *typed, "target_accuracy=null", "hydra.run.dir=run"]
    monkeypatch.setattr(sys, "argv", ["cifar-train", *typed])
    with hydra_restored():
        main()
    metrics = read_json(Path("run/metrics.json"))
    assert metrics["epochs"] == 2
    assert metrics["train_images"] == 2 * 2 * 5
    assert metrics["stopped_by"] == "max_epochs"
    assert metrics["precision"] == "64-true"
    shown = capsys.readouterr().out
    assert "FIT Profiler Report" in shown
    assert "Trainable params" in shown
    assert "Testing" in shown  # by the progress bar
    validated = [row["epoch"] for row in read_rows(Path("run")) if "val/acc" in row]
    assert validated == [0.5, 1, 1.5, 2]


# Another value than the default, and what of the Trainer it changes. Of the rest there is no other
# where there are no GPUs and this process was started alone.
ALONE = {"accelerator", "num_nodes", "sync_batchnorm"}
BUILT: dict[str, tuple[str, Callable[[Any], Any], Any]] = {
    "accumulate_grad_batches": ("2", lambda t: t.accumulate_grad_batches, 2),
    "benchmark": ("false", lambda t: torch.backends.cudnn.benchmark, False),
    "check_val_every_n_epoch": ("2", lambda t: t.check_val_every_n_epoch, 2),
    "detect_anomaly": ("true", lambda t: t._detect_anomaly, True),
    "devices": ("2", lambda t: t.num_devices, 2),
    "enable_model_summary": ("true", lambda t: has(t, pl.callbacks.ModelSummary), True),
    "enable_progress_bar": ("true", lambda t: has(t, pl.callbacks.ProgressBar), True),
    "gradient_clip_algorithm": ("value", lambda t: t.gradient_clip_algorithm, "value"),
    "gradient_clip_val": ("0.5", lambda t: t.gradient_clip_val, 0.5),
    "inference_mode": ("false", lambda t: t.test_loop.inference_mode, False),
    "limit_test_batches": ("0.5", lambda t: t.limit_test_batches, 0.5),
    "limit_train_batches": ("9", lambda t: t.limit_train_batches, 9),
    "limit_val_batches": ("8", lambda t: t.limit_val_batches, 8),
    "log_every_n_steps": ("7", lambda t: t.log_every_n_steps, 7),
    "max_epochs": ("6", lambda t: t.max_epochs, 6),
    "max_steps": ("50", lambda t: t.max_steps, 50),
    "max_time": ("{hours:1}", lambda t: has(t, pl.callbacks.Timer), True),
    "min_epochs": ("1", lambda t: t.min_epochs, 1),
    "min_steps": ("3", lambda t: t.min_steps, 3),
    "num_sanity_val_steps": ("5", lambda t: t.num_sanity_val_steps, 5),
    "precision": ("64-true", lambda t: t.precision, "64-true"),
    "profiler": ("simple", lambda t: type(t.profiler).__name__, "SimpleProfiler"),
    "strategy": (
        "ddp_find_unused_parameters_true",
        lambda t: t.strategy._ddp_kwargs,
        {"find_unused_parameters": True},
    ),
    "val_check_interval": ("4", lambda t: t.val_check_interval, 4),
}
DOUBLE = "{_target_:pytorch_lightning.plugins.precision.DoublePrecision}"


def has(trainer: pl.Trainer, kind: type[pl.Callback]) -> bool:
    return any(isinstance(callback, kind) for callback in trainer.callbacks)  # type: ignore[attr-defined]


def test_the_trainer_gets_every_argument() -> None:
    assert BUILT.keys() | ALONE | {"deterministic", "plugins"} == TRIED.keys()
    default = build_trainer(NOWHERE, {})
    config = changed(
        *(f"trainer.{key}={value}" for key, (value, *_) in BUILT.items()), "trainer.accelerator=cpu"
    )
    before = {key: read(default) for key, (_, read, _) in BUILT.items() if key != "strategy"}
    trainer = build_trainer(config, {})
    for key, (_, read, expected) in BUILT.items():
        assert read(trainer) == expected != before.get(key), key
    # Of these two, the one decides the precision too, and the other the default of benchmark.
    others = changed(
        f"trainer.plugins={DOUBLE}", "trainer.precision=null", "trainer.deterministic=true"
    )
    assert build_trainer(others, {}).precision == "64-true" != default.precision
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)


def test_the_others_are_refused_with_what_to_use_instead() -> None:
    for name, (fixed, instead) in FIXED_ARGUMENTS.items():
        value = not fixed if isinstance(fixed, bool) else 3
        message = f"trainer.{name} is not used here: {instead}."
        with pytest.raises(Exception, match="Could not override") as unknown:
            compose([f"trainer.{name}={value}"])
        assert explain(unknown.value, "train") == message
        # As +trainer.NAME=VALUE adds it.
        with pytest.raises(UserError, match=re.escape(message)):
            check_config(changed(f"trainer.{name}={value}"))
    assert "debug=overfit trains on the same" in FIXED_ARGUMENTS["overfit_batches"][1]
    assert "debug=fast runs three batches" in FIXED_ARGUMENTS["fast_dev_run"][1]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["trainer.accelerator=gpu"], "trainer.accelerator=gpu: use trainer.gpus=1, 2, "),
        (
            ["trainer.devices=2"],
            "trainer.devices=2 needs a trainer.accelerator. For GPUs: trainer.gpus=2.",
        ),
        (["trainer.accelerator=cpu", "trainer.devices=0"], "devices=0 must be a whole number"),
        (["trainer.accelerator=cpu", "trainer.gpus=1"], "gpus=1 does not fit trainer.accelerator"),
        (["trainer.strategy=ddp_spawn"], "ddp_spawn cannot return a run's results. Use ddp."),
        (["trainer.strategy=nonsense"], "invalid strategy name"),
        (["trainer.gpus=0", "trainer.sync_batchnorm=true"], "sync_batchnorm=true is for GPUs"),
        (["trainer.max_time=1h"], "not a valid duration"),
        (["trainer.profiler=complex"], "it can only be one of"),
        (
            ["trainer.plugins=[{_target_: pytorch_lightning.plugins.precision.DoublePrecision}]"],
            "Leave it out, and set trainer.precision=64-true.",
        ),
    ],
)
def test_values_that_cannot_work_are_refused_before_the_data_is_read(
    typed: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as refused:
        train(changed(*typed))
    assert message in str(refused.value)
    assert not capsys.readouterr().out


# Every callback that works, with the arguments that it needs; those of one list train together.
BASE = "pytorch_lightning.callbacks"
LENGTH = "{_target_:hydra.utils.get_method,path:builtins.len}"
TOGETHER: list[dict[str, str]] = [
    {
        "DeviceStatsMonitor": "",
        "EarlyStopping": "monitor:val/loss",
        "GradientAccumulationScheduler": "scheduling:{0:2}",
        "LambdaCallback": "",
        "LearningRateMonitor": "",
        "ModelCheckpoint": "",
        "ModelSummary": "",
        "RichProgressBar": "",
        "SpikeDetection": "",
        "ThroughputMonitor": f"batch_size_fn:{LENGTH}",
        "Timer": "duration:{hours:1}",
    },
    {"EMAWeightAveraging": "", "RichModelSummary": "", "TQDMProgressBar": ""},
    {"WeightAveraging": ""},
]


def added(callbacks: dict[str, str]) -> list[str]:
    """As a user types them."""
    return [
        f"+callbacks.{name}={{_target_:{BASE}.{name}{',' * bool(arguments)}{arguments}}}"
        for name, arguments in callbacks.items()
    ]


def test_every_callback_of_lightning_is_tried_or_refused() -> None:
    tried = [name for callbacks in TOGETHER for name in callbacks]
    assert sorted([*tried, *UNSUPPORTED_CALLBACKS]) == sorted(of_lightning.__all__)


@pytest.mark.filterwarnings("ignore:When using the `ThroughputMonitor`, you need to define")
@pytest.mark.parametrize("callbacks", TOGETHER, ids=lambda c: next(iter(c)))
def test_callbacks_of_lightning_work(callbacks: dict[str, str], tiny: Compose) -> None:
    if "DeviceStatsMonitor" in callbacks:
        pytest.importorskip("psutil", reason="it came with W&B, which was deleted")
    settings = ["trainer.max_epochs=2", "trainer.log_every_n_steps=1", "target_accuracy=null"]
    settings += ["trainer.precision=32-true"]  # of which alone Lightning knows the size
    metrics = train(tiny(*SMALLER, *settings, *added(callbacks)))
    assert metrics["test/acc"] is not None
    rows = read_rows(Path("run"))
    if "ModelCheckpoint" in callbacks:
        assert len(list(Path("run/checkpoints/ModelCheckpoint").glob("*.ckpt"))) == 1
        # The schedule ends after the last step, of which accumulating has made half: its rate is
        # a fifth of the highest, as the sixth of six, the first of which warms up.
        assert [row["lr"] for row in rows if "lr" in row][-1] == pytest.approx(0.1 / 5)
        logged = {key for row in rows for key in row}
        assert {"DeviceStatsMonitor.on_train_batch_end/cpu_percent", "train/samples"} <= logged
        assert [row["lr-Muon/pg1"] for row in rows if "lr-Muon/pg1" in row][-1] == pytest.approx(
            0.1 / 5
        )


def test_the_other_callbacks_are_refused() -> None:
    for name, reason in UNSUPPORTED_CALLBACKS.items():
        with pytest.raises(
            UserError, match=f"callbacks.{name}: {name} does not work here: {reason}"
        ):
            check_config(changed(*added({name: ""})))


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (
            {"LearningRateMonitor": ""},
            "logs every trainer.log_every_n_steps steps, of which",
        ),
        ({"EarlyStopping": "monitor:val/acc"}, "EarlyStopping.mode=max"),
        ({"EarlyStopping": ""}, "callbacks.EarlyStopping.monitor is missing: EarlyStopping needs"),
        ({"ModelCheckpoint": "monitor:val/loss,mode:max"}, "ModelCheckpoint.mode=min"),
    ],
)
def test_callbacks_that_would_not_do_what_is_meant_are_refused(
    callbacks: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_config(changed(*added(callbacks)))


class Nothing(pl.Callback):
    """Logs nothing."""


def test_what_lightning_refuses_in_a_training_is_one_message(tiny: Compose) -> None:
    # Another's class might log it.
    stopping = added({"EarlyStopping": "monitor:nothing"})
    other = f"+callbacks.other._target_={__name__}.Nothing"
    with pytest.raises(UserError, match=r"Early stopping conditioned on metric `nothing`"):
        train(tiny(*SMALLER, *stopping, other))


def test_a_limit_that_leaves_nothing_is_found_before_the_training(tiny: Compose) -> None:
    with pytest.raises(UserError, match=r"limit_test_batches=0\.001 of 3 batches is less than one"):
        train(tiny("trainer.limit_test_batches=0.001"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SparseAdam", "optimizer: SparseAdam does not support"),
        ("LBFGS", "optimizer: view size is"),
    ],
)
def test_an_optimizer_that_cannot_take_a_step_says_so(
    name: str, message: str, tiny: Compose
) -> None:
    others = ("~optimizer.fused", "~optimizer.weight_decay")
    with pytest.raises(UserError, match=message):
        train(tiny("optimizer=adamw", f"optimizer._target_=torch.optim.{name}", *others))


class Norms(pl.Callback):
    """Keeps the norm of the gradients that each step took."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        gradients = [w.grad for w in pl_module.parameters() if w.grad is not None]
        self.norms.append(torch.nn.utils.get_total_norm(gradients).item())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_gradients_of_the_shipped_optimizers_are_clipped(
    optimizer: str, tiny: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ("trainer.gradient_clip_val=0.01", "trainer.precision=bf16-mixed")
    few = (*SMALLER, "trainer.limit_train_batches=2")
    train(tiny(*few, f"optimizer={optimizer}", *typed), {"norms": (norms := Norms())})
    assert norms.norms == pytest.approx([0.01, 0.01], rel=1e-3)
    assert "fused=false, because gradients are clipped" in capsys.readouterr().out


def test_a_key_of_ones_own_that_others_refer_to_is_taken(tiny: Compose) -> None:
    check_config(tiny("+mine=50", "data.batch_size=${mine}", "logger=[csv]"))
    with pytest.raises(UserError, match=r"model\.num_classes=3: a run takes it from the data"):
        check_config(tiny("model.num_classes=3"))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("budget.max_params=1000", "256,856 more than budget.max_params=1,000"),
        ("optimizer.lr=-1", "optimizer: lr must not be negative"),
        ("augment.shift=40", "augment: max_shift must be from 0 to 31"),
        ("data.batch_size=50000", "data.batch_size=50000 is not from 1 to 45000, the number"),
        ("data.val_size=3", "data.val_size=3 of 50000 training images is invalid"),
        ("trainer.gpus=99", "trainer.gpus=99, but this machine has"),
        (
            "trainer.accelerator=cpu trainer.devices=2 data.batch_size=25",
            "2 devices cannot share data.batch_size=25 evenly",
        ),
        (
            "+callbacks.more._target_=pytorch_lightning.callbacks.ModelCheckpoint "
            "+callbacks.more.dirpath=file/x",
            "callbacks.more.dirpath=file/x: ",
        ),
        ("callbacks.nan.every_n_steps=0", "callbacks.nan: every_n_steps must be at least 1"),
        ("optimizer.momentum=1", "optimizer.momentum=1 should be less than 1."),
        ("teacher=nowhere.ckpt", "nowhere.ckpt: there is no such file."),
    ],
)
def test_mistakes_are_found_before_the_data_is_read(
    typed: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    with pytest.raises(UserError) as refused:
        train(changed(*typed.split()))
    assert message in str(refused.value)
    assert not capsys.readouterr().out


def test_a_batch_without_images_is_refused_before_a_folder_is_read() -> None:
    with pytest.raises(UserError, match=r"data\.batch_size=0 must be at least 1"):
        train(compose(["data=folder", "data.path=nowhere", "data.batch_size=0", "logger=csv"]))
