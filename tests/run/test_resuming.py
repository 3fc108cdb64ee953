"""Resuming: which configuration counts, `resume=auto`, and two processes on one run."""

import copy
import functools
import logging
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from checkpoints import changed_record
from conftest import TINY, Compose, exist
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from programs import hydra_restored, one_message, read_json, run_command
from pytorch_lightning import callbacks

from cifar_lightning.checkpoints.record import write_record
from cifar_lightning.checkpoints.trusted import CALLBACKS
from cifar_lightning.config.compose import compose
from cifar_lightning.config.refused import UNSUPPORTED_CALLBACKS
from cifar_lightning.errors import UserError
from cifar_lightning.run import check_config
from cifar_lightning.run.resume import resumed
from cifar_lightning.system.locks import is_locked, run_lock
from cifar_lightning.system.logs import LogFile
from cifar_lightning.tracking.differences import LIMITS
from cifar_lightning.tracking.resume_arguments import in_run_folder, resume_auto
from cifar_lightning.tracking.run_folder import RunFolder
from cifar_lightning.train import main, train, train_locked

TYPED = ("data=shapes", "optimizer.lr=0.05", "seed=3")
FIRST, SECOND, THIRD = (f"2026-01-0{day}_00-00-00-000000_x" for day in (1, 2, 3))
RUNS = Path("runs/train")

# ------------------------------------------------------------------ by which configuration


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("STEP", "0.07")
        typed = [*TINY, "optimizer.lr='${oc.decode:${oc.env:STEP}}'", "seed=1"]
        train(compose([*typed, "trainer.max_epochs=${seed}"], folder))
    return folder


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    """A copy, whose record `changed_record` changes."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def resume(run_dir: Path, *typed: str) -> DictConfig:
    """As typed after the command: the configuration that the run would be resumed by."""
    config = copy.deepcopy(composed(typed))
    config.resume, config.run_dir = f"{run_dir}/checkpoints/last.ckpt", str(run_dir)
    return resumed(config)


@functools.cache
def composed(typed: Sequence[str]) -> DictConfig:
    return compose(["resume=last.ckpt", *typed])


def test_a_run_is_resumed_by_its_record_with_overrides_on_top(run_dir: Path) -> None:
    config = resume(run_dir, "scheduler=cosine", "target_accuracy=0.5", "trainer.max_epochs=9")
    assert (config.data.train_size, config.seed, config.trainer.max_epochs) == (200, 1, 9)
    assert config.optimizer.lr == 0.07  # as it was evaluated then
    assert config.scheduler._target_ == "cifar_lightning.training.optim.cosine_schedule"
    assert config.choices.scheduler == "cosine"
    # What depends on another value follows it.
    assert config.callbacks.target.target == 0.5
    config = resume(run_dir)
    config.seed = 3
    assert config.trainer.max_epochs == 3
    # What the checkpoint decides may be typed as it was.
    assert resume(run_dir, "data=shapes", *TINY[1:5], "seed=1", "model=dilated_dw").seed == 1
    typed = ("trainer=default", "trainer.gpus=0", "trainer.max_epochs=1", "trainer.max_steps=9")
    assert resume(run_dir, *typed).trainer.max_steps == 9
    moved = run_dir.rename(run_dir.with_name("moved"))
    assert resume(moved).callbacks.best.dirpath == str(moved / "checkpoints")


def test_a_copied_run_has_an_id_of_its_own_on_wandb_and_a_moved_one_keeps_it(
    trained: Path, run_dir: Path, tmp_path: Path
) -> None:
    """`run_dir` is a copy of `trained`."""
    run_id = RunFolder(trained).record()["run_id"]
    assert resume(trained).run_id == run_id == RunFolder(run_dir).record()["run_id"]
    train(compose([f"resume={run_dir}/checkpoints/last.ckpt", "trainer.max_epochs=2"], run_dir))
    copied = RunFolder(run_dir).record()["run_id"]
    assert copied != run_id
    assert resume(run_dir).run_id == copied
    again = Path(shutil.copytree(run_dir, tmp_path / "again"))
    assert resume(again).run_id not in (run_id, copied)
    assert resume(run_dir.rename(tmp_path / "moved")).run_id == copied


@pytest.mark.parametrize(
    ("typed", "advice"),
    [
        ("experiment=sgd", "What another experiment would set can be set key by key"),
        ("optimizer.lr=1", "For another optimizer, start a new run"),
        ("seed=2", "For another seed, start a new run"),
        ("data.val_size=60", r"Only the paths of the images can be changed: data\.path, "),
        ("trainer=ddp", r"one by one, as in trainer\.strategy=ddp"),
        ("~model.num_classes", "For another model, start a new run"),
    ],
)
def test_what_a_checkpoint_decides_cannot_be_overridden(
    trained: Path, typed: str, advice: str
) -> None:
    key = re.escape(typed.partition("=")[0].lstrip("~"))
    with pytest.raises(
        UserError, match=f"takes {key} from the checkpoint: leave it out. .*{advice}"
    ):
        resume(trained, typed)


def test_a_setting_that_there_is_not_is_said_to_be_none(trained: Path) -> None:
    with pytest.raises(UserError, match=r"There is no setting foo, and the run has none either\."):
        resume(trained, "+foo=1")


def test_a_checkpoint_of_the_middle_of_an_epoch_is_refused(tiny: Compose, tmp_path: Path) -> None:
    train(tiny("trainer.val_check_interval=0.5", "target_accuracy=0.0"))
    with pytest.raises(UserError, match=r"saved in the middle of an epoch.*Use last\.ckpt"):
        resumed(compose([f"resume={tmp_path}/run/checkpoints/best.ckpt"]))


def test_a_checkpoint_out_of_its_runs_folder_is_not_resumed(run_dir: Path, tmp_path: Path) -> None:
    alone = run_dir.joinpath("checkpoints", "last.ckpt").rename(tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"is not in its run's folder: .* has no config\.yaml"):
        resumed(compose([f"resume={alone}"]))


def writes(key: str, value: str) -> Callable[[dict[str, Any]], object]:
    """A change of a record's callback that is one of the outputs of Lightning's."""
    target = f"pytorch_lightning.callbacks.{key.partition('.')[0]}"
    return lambda config: config["callbacks"].update(
        x={"_target_": target, key.partition(".")[2]: value}
    )


# Where a record of a stranger's could have a file written or deleted.
OUTSIDE = [
    ("ModelCheckpoint.dirpath", "~/x"),
    ("ModelCheckpoint.dirpath", "s3://x/y"),
    ("ModelCheckpoint.filename", "../../x"),
    ("ModelCheckpoint.filename", "/home/x"),
    ("ModelCheckpoint.filename", "{step:/>9}"),
    ("ModelCheckpoint.filename", "{step:c}x"),
    ("ModelCheckpoint.filename", "{/home/x}"),
    ("ModelCheckpoint.filename", "a/../../../x"),
    ("SpikeDetection.exclude_batches_path", "/home/x.json"),
]

MISPLACED = [
    ("init", "torch.optim.Adam"),
    ("optimizer", "torch.optim.swa_utils.AveragedModel"),
    ("scheduler", "torch.optim.Adam"),
    ("callbacks.x", "pytorch_lightning.callbacks.LambdaCallback"),
    ("callbacks.best.monitor", "pytorch_lightning.callbacks.EarlyStopping"),
]


def calls(key: str, target: str) -> Callable[[dict[str, Any]], object]:
    """A change of a record by which a part calls something else."""
    *groups, last = key.split(".")
    return lambda config: functools.reduce(dict.__getitem__, groups, config).update(
        {last: {"_target_": target}}
    )


SHELL = {"_target_": "os.mkdir", "path": "was_called"}
MAKES_FOLDER = "{oc.create:{_target_:os.mkdir,path:was_called}}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(model=SHELL), "has a _target_ that"),
        (lambda config: config["augment"].update(flip=[[SHELL]]), "has a _target_ that"),
        (lambda config: config.update(model=config["callbacks"]["best"]), "has a _target_ that"),
        (
            lambda config: config["trainer"].update(
                default_root_dir={"_target_": config["trainer"]["_target_"]}
            ),
            r"trainer\.default_root_dir\._target_=pytorch_lightning\.Trainer\.",
        ),
        (lambda config: config.update(x=SHELL, model="${x}"), "has a _target_ that"),
        (lambda config: config["model"].update(_target_=["os.mkdir"]), "has a _target_ that"),
        (lambda config: config["model"].update(x=f"${MAKES_FOLDER}"), "wants to evaluate"),
        (lambda config: config["model"].update(x=f"\\${MAKES_FOLDER}"), "wants to evaluate"),
        (
            lambda config: config.update(a="$", b=MAKES_FOLDER, seed="${a}${b}"),
            "wants to evaluate",
        ),
        (
            lambda config: config.update(seed="${nowhere}"),
            r"config\.yaml cannot be read: .*nowhere",
        ),
        (lambda config: config.update(trainer=5), "cannot be read: it has no trainer"),
        (lambda config: config.pop("cutmix"), "has no cutmix: it was written by another version"),
        (lambda config: config.update(callbacks={"x": {"dirpath": 5}}), "makes callbacks.x wri"),
        (
            lambda config: config["callbacks"]["best"].update(dirpath="/home"),
            "outside of the run's",
        ),
        (
            lambda config: config["trainer"].update(profiler={"dirpath": "/home"}),
            "outside of the run's",
        ),
        *((writes(key, value), r"outside of .* type '?callbacks\.x\.") for key, value in OUTSIDE),
        # Each in its part, and none that runs what its arguments name.
        *((calls(key, target), rf": {re.escape(key)}\._target_=") for key, target in MISPLACED),
    ],
)
def test_a_record_runs_no_code_and_writes_nowhere_else(
    change: Callable[[dict[str, Any]], object], message: str, run_dir: Path
) -> None:
    changed_record(run_dir, change)
    with pytest.raises(UserError, match=message):
        resume(run_dir)
    assert not Path("was_called").exists()
    instantiate(SHELL)  # it would have been
    assert Path("was_called").is_dir()


ALIASES = "a0: &a0 [0]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 4)
)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (ALIASES, r"config\.yaml cannot be read: it has aliases"),
        (f"# {'x' * 10**6}", r"config\.yaml cannot be read: it has more than 1,000,000 bytes"),
    ],
)
def test_a_small_record_that_would_fill_the_memory_is_refused(
    more: str, message: str, run_dir: Path
) -> None:
    record = run_dir / "config.yaml"
    record.write_text(f"{record.read_text()}{more}\n")
    with pytest.raises(UserError, match=message):
        resume(run_dir)
    assert message.partition("cannot")[2] in RunFolder(run_dir).read().problems[0]


def test_what_is_the_users_own_can_be_typed_again(run_dir: Path) -> None:
    mine = {"_target_": "my.Callback"}
    changed_record(run_dir, lambda config: config["callbacks"].update(mine=mine))
    with pytest.raises(
        UserError, match=r"has at that key: callbacks\.mine\._target_=my\.Callback\."
    ):
        resume(run_dir, "+callbacks.mine.monitor=my.Callback")
    assert resume(run_dir, "+callbacks.mine._target_=my.Callback").callbacks.mine == mine
    changed_record(run_dir, lambda config: config["callbacks"]["mine"].update(dirpath="/home"))
    typed = ("+callbacks.mine._target_=my.Callback", "+callbacks.mine.dirpath=/home")
    assert resume(run_dir, *typed).callbacks.mine.dirpath == "/home"


def test_what_pytorch_and_lightning_have_need_not_be_typed_again(run_dir: Path) -> None:
    early = {"_target_": "pytorch_lightning.callbacks.EarlyStopping", "monitor": "val/acc"}
    ema = {"_target_": "pytorch_lightning.callbacks.weight_averaging.EMAWeightAveraging"}

    torchvision = "cifar_lightning.training.augment.Torchvision"
    flip = {"_target_": "torchvision.transforms.v2.RandomHorizontalFlip"}
    apply = {"_target_": "torchvision.transforms.v2.RandomApply", "transforms": [flip]}

    def change(config: dict[str, Any]) -> None:
        config["callbacks"].update(early=early, ema=ema)
        config["callbacks"]["best"].update(filename="{epoch:02d}-{step}-{val/acc:.4f}")
        config["optimizer"].update(_target_="torch.optim.Adam")
        config["scheduler"].update(_target_="torch.optim.lr_scheduler.CosineAnnealingLR")
        config["augment"]["extra"] = [{"_target_": torchvision, "transforms": [flip, apply]}]

    changed_record(run_dir, change)
    config = resume(run_dir)
    assert (config.callbacks.early, config.callbacks.ema) == (early, ema)
    assert config.optimizer._target_ == "torch.optim.Adam"
    assert config.augment.extra[0].transforms == [flip, apply]


def test_every_callback_of_lightning_was_looked_at() -> None:
    """One that is new: see trusted.CALLBACKS for what it has to be to be among them."""
    looked_at = [*CALLBACKS, *UNSUPPORTED_CALLBACKS, "LambdaCallback"]
    assert sorted(looked_at) == sorted(callbacks.__all__)


def test_what_a_record_could_not_keep_is_refused_before_the_data_is_read() -> None:
    with pytest.raises(UserError, match=r"'\$\{x\}' contains \$\{, which a run's record cannot"):
        train(compose(["data=folder", "data.path=nowhere", "logger=csv", r"teacher='\${x}'"]))


def test_a_file_that_is_no_record_is_not_overwritten(tiny: Compose) -> None:
    mine = Path("run/config.yaml")
    mine.parent.mkdir()
    mine.write_text("name: mine\n")
    with pytest.raises(UserError, match=r"config\.yaml is not the record of a run.*move it away"):
        train(tiny())
    assert mine.read_text() == "name: mine\n"
    assert not list(Path().glob("run/checkpoints/*"))


def test_the_record_has_every_start_and_what_was_typed_last(run_dir: Path) -> None:
    typed = [f"resume='{run_dir}/checkpoints/last.ckpt'", "trainer.max_epochs=2"]
    assert train(compose(typed, run_dir))["epochs"] == 2
    with pytest.raises(UserError, match=r"trainer\.gpus=99"):
        train(compose([typed[0], "trainer.gpus=99"], run_dir))
    first, again = RunFolder(run_dir).starts()
    assert "seed=1" in first["overrides"]
    assert again["overrides"] == typed
    assert resume(run_dir).trainer.max_epochs == 2


# ----------------------------------------------------------------------------- resume=auto


def begun(place: Path, typed: Sequence[str] = TYPED, name: str = FIRST) -> Path:
    """A run's folder as a run leaves it that was killed."""
    folder = place / name
    write_record(compose(typed, folder), [o for o in typed if not o.startswith("hydra.")])
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    return folder


def auto(*typed: str) -> Path | None:
    """The run that it is."""
    found = resume_auto([*typed, "resume=auto"])
    if found == [*typed]:
        return None
    kept = [o for o in typed if not o.startswith("hydra.run.dir")]
    assert all(o.startswith(LIMITS) for o in found[len(kept) : -1])
    assert found[: len(kept)] == kept
    return Path(found[-1].removeprefix("resume=")).parents[1]


def test_the_newest_run_that_was_typed_so_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert auto(*TYPED) is None
    assert capsys.readouterr().out == "resume=auto: no run to resume, so this is a new one\n"
    older = begun(RUNS)
    newer = begun(RUNS, name=SECOND)
    begun(RUNS, ["data=shapes", "seed=3"], name=THIRD)
    assert auto(*TYPED) == newer
    assert capsys.readouterr().out == f"resume=auto: {newer}/checkpoints/last.ckpt\n"
    assert auto(*reversed(TYPED)) == newer
    assert auto(*TYPED, "seed=4") is None
    (RUNS / "latest").symlink_to("nowhere")
    assert auto("--cfg=job", *TYPED) == newer
    (newer / "checkpoints" / "last.ckpt").unlink()
    assert auto(*TYPED) == older


def test_a_typed_folder_without_a_checkpoint_begins_a_new_run() -> None:
    typed = (*TYPED, "hydra.run.dir=mine")
    assert auto(*typed) is None  # there is no such folder
    run = begun(Path(), typed, name="mine")
    (run / "checkpoints" / "last.ckpt").unlink()  # as if killed in its first epoch
    assert auto(*typed) is None


def test_after_a_run_of_the_same_values_no_other_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    older, newer = begun(RUNS), begun(RUNS, name=SECOND)
    read: list[Path] = []
    record = RunFolder.record

    def noted(folder: RunFolder) -> Any:
        read.append(folder.path)
        return record(folder)

    monkeypatch.setattr(RunFolder, "record", noted)
    assert auto(*TYPED) == newer
    assert newer in read
    assert older not in read


def test_of_a_key_that_was_typed_twice_the_last_value_counts() -> None:
    epochs = ("trainer.max_epochs=40", "trainer.max_epochs=6")
    run = begun(RUNS, [*TYPED, *epochs])
    assert auto(*TYPED, *reversed(epochs)) is None
    assert auto(*TYPED, *epochs) == auto(*TYPED, epochs[1]) == run


def test_a_finished_run_does_not_go_on_and_an_interrupted_one_does() -> None:
    run = begun(RUNS)
    (run / "metrics.json").write_text('{"stopped_by": "interrupted", "epochs": 1.5}')
    assert auto(*TYPED) == run
    (run / "metrics.json").write_text('{"stopped_by": "max_epochs", "epochs": 4}')
    assert auto(*TYPED) is None


def test_a_run_does_not_go_on_from_the_weights_of_another_one_in_its_folder() -> None:
    run = begun(RUNS)
    (run / "checkpoints" / "last.ckpt").write_text("weights")
    write_record(compose(typed := [*TYPED, "seed=4"], run), typed)
    assert auto(*typed) is None
    (earlier,) = run.glob("before_*")
    assert (earlier / "checkpoints" / "last.ckpt").read_text() == "weights"
    assert RunFolder(earlier).starts()[0]["overrides"] == [*TYPED]


def test_a_run_that_another_process_works_on_is_left_to_it() -> None:
    older, newer = begun(RUNS), begun(RUNS, name=SECOND)
    with run_lock(newer):
        assert auto(*TYPED) == older
    assert auto(*TYPED) == newer


def test_a_run_that_was_resumed_with_other_values_is_another_one() -> None:
    run = begun(RUNS)
    resumes = f"resume={run}/checkpoints/last.ckpt"
    write_record(compose([*TYPED, resumes], run), [resumes, "optimizer.lr=0.05"])
    assert auto(*TYPED) == run
    more = "trainer.max_epochs=9"
    write_record(compose([*TYPED, resumes, more], run), [resumes, more])
    assert auto(*TYPED) is None
    assert auto(*TYPED, more) == run


def test_a_run_is_the_same_if_its_values_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(RUNS)
    assert auto(*TYPED[:1], "optimizer.lr=0.050", "++seed=3") == run
    capsys.readouterr()
    assert auto(*TYPED[:2], "plots=false") is None
    assert capsys.readouterr().out == (
        "resume=auto: no run to resume, so this is a new one "
        f"({run} has seed 3, not 0; plots true, not false)\n"
    )
    assert auto(*TYPED, "callbacks=[default]") == run
    others = ("optimizer=sgd", "callbacks=[default,mirror]", "teacher=x", "seed=4")
    assert auto(*TYPED[:2], *others) is None
    listed = capsys.readouterr().out
    assert "has seed 3, not 4; teacher null, not x; optimizer muon, not sgd; and 1 more)" in listed

    # A value from the environment, and from a file that was edited since.
    monkeypatch.setenv("RATE", "0.2")
    step = "optimizer.lr='${oc.decode:${oc.env:RATE}}'"
    run = begun(RUNS, [step], name=SECOND)
    assert auto(step) == auto("optimizer.lr=0.2") == run
    monkeypatch.setenv("RATE", "0.3")
    assert auto(step) is None
    experiment = tmp_path / "mine" / "experiment" / "mine.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text("# @package _global_\ncutmix: 0.5\n")
    run = begun(RUNS, ["experiment=mine", "hydra.searchpath=[mine]"], name=THIRD)
    typed = ("--config-dir=mine", "experiment=mine")
    assert auto(*typed) == run
    experiment.write_text("# @package _global_\ncutmix: 0.6\n")
    capsys.readouterr()
    assert auto(*typed) is None
    assert f"({run} has cutmix 0.5, not 0.6)" in capsys.readouterr().out


def test_what_differs_between_the_starts_of_one_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the cache is, times, and what conf/ has since the run began."""
    typed = ["data=folder", "data.path=/a/images", "+logger.csv.name='${now:%f}_${oc.env:HOME}'"]
    run = begun(RUNS, [*typed, *(["logger.wandb.mode=offline"] if exist("logger=wandb") else [])])
    monkeypatch.setenv("HOME", str(tmp_path))
    again = [typed[0], "data.path=/a/images/", "data.cache_dir=elsewhere", typed[2]]
    assert auto(*again) == run
    capsys.readouterr()
    assert auto(*again, "data.path=/b/images") is None
    assert f"({run} has data.path /a/images, not /b/images)" in capsys.readouterr().out
    changed_record(run, lambda config: config["trainer"].pop("sync_batchnorm"))
    assert auto(*again) == run
    assert auto(*again, "trainer.sync_batchnorm=true") is None
    changed_record(run, lambda config: config["trainer"].pop("max_epochs"))
    assert auto(*again) is None


def test_a_run_goes_on_with_the_limits_that_are_asked_for() -> None:
    limits = ("trainer.max_steps=5", "trainer.max_time={days:1}")
    resumes = f"resume={begun(RUNS, [*TYPED, *limits])}/checkpoints/last.ckpt"
    asked = ["trainer.max_steps=-1", "trainer.max_time=null"]
    assert resume_auto([*TYPED, "resume=auto"]) == [*TYPED, *asked, resumes]
    assert resume_auto([*TYPED, *limits, "resume=auto"]) == [*TYPED, *limits, resumes]


OWN = """
import os, signal
import pytorch_lightning as pl
from cifar_lightning.training.optim import constant_schedule

class InterruptsOnce(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            os.kill(os.getpid(), signal.SIGTERM)

def schedule(optimizer, steps):
    return constant_schedule(optimizer, steps)

def same(images, generator):
    return images
"""
EXTRA = "cifar_lightning.training.callbacks.extra_metric.ExtraMetric"


def test_the_line_that_an_interrupted_run_prints_resumes_it_with_ones_own_parts() -> None:
    """Those that were typed, and those of --config-dir."""
    Path("own.py").write_text(OWN)
    folder = Path("my conf", "scheduler")
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text("_target_: own.schedule\n_partial_: true\n")
    typed = [
        *("scheduler=own", "+callbacks.once._target_=own.InterruptsOnce", "hydra.run.dir=a=b"),
        "+augment.extra=[{_target_: own.same, _partial_: true}]",
        f"+callbacks.f1={{_target_:{EXTRA},name:f1,metric:{{"
        "_target_:torchmetrics.classification.MulticlassF1Score,_partial_:true}}",
    ]
    options = [*TINY, "trainer.max_epochs=2", "target_accuracy=null", "--config-dir", "my conf"]
    ended = run_command("train", *options, *typed)
    assert ended.returncode == 143, ended.stderr
    (line,) = (line for line in ended.stdout.splitlines() if line.startswith("resume "))
    assert "python -m cifar_lightning.train resume=" in line
    assert ended.stdout.count("MulticlassF1Score") == 1
    arguments = shlex.split(line)[4:]
    resumed_run = run_command("train", *arguments)
    assert resumed_run.returncode == 0, resumed_run.stderr
    assert read_json(Path("a=b/metrics.json"))["resumes"] == 1
    # Without them it is refused, as its record alone may not call them.
    message = one_message(run_command("train", arguments[0]))
    assert "nor the command line has at that key" in message


class Refusing(pl.Callback):
    """Refuses what it sees before the first step."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise UserError("refused at the last moment")


class FailingInAStep(pl.Callback):
    """Fails in the first step."""

    def on_train_batch_start(self, *_: object) -> None:
        raise RuntimeError("a fault of mine")


def damage_optimizer(run_dir: Path) -> None:
    file = run_dir / "checkpoints" / "last.ckpt"
    content = torch.load(file, weights_only=True)
    content["optimizer_states"][0]["param_groups"][0]["params"].pop()
    torch.save(content, file)


RESUME = "resume=run/checkpoints/last.ckpt"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["hydra.run.dir=run"], r"run has a run already: resume=.*last\.ckpt resumes it; hydra"),
        (["hydra.run.dir=run", "trainer.gpuss=1"], "There is no 'trainer.gpuss'"),
        (["hydra.run.dir=run", "trainer.max_epochs=0"], "run has a run already"),
        ([RESUME, "trainer.gpus=99"], "trainer.gpus=99"),
        ([RESUME, "optimizer.lr=9"], "resume takes optimizer.lr from the checkpoint"),
        ([RESUME, "hydra.run.dir=other"], "leave hydra.run.dir= out"),
        (["hydra.run.dir=run", "hydra.output_subdir=mine"], "Hydra's record is always .hydra/"),
        ([RESUME, "hydra.run.dir='${now:%H}'"], "leave hydra.run.dir= out"),
        (
            [RESUME, "trainer.max_epochs=9", f"+callbacks.x._target_={__name__}.Refusing"],
            "refused at the last moment",
        ),
        (
            [RESUME, "trainer.max_epochs=9", f"+callbacks.x._target_={__name__}.FailingInAStep"],
            "cannot be resumed: RuntimeError: a fault of mine",
        ),
        ([RESUME, "trainer.max_epochs=9", "damaged"], "cannot be resumed"),
    ],
)
def test_a_start_that_is_refused_leaves_the_folder_as_it_was(
    typed: list[str], message: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "damaged" in typed:
        damage_optimizer(run_dir)
    before = {file: file.is_file() and file.read_bytes() for file in run_dir.rglob("*")}
    typed = [word for word in typed if word != "damaged"]
    monkeypatch.setattr(sys, "argv", ["cifar-train", "logger=csv", *typed])
    with hydra_restored(), pytest.raises(SystemExit, match=message):
        main()
    assert before == {file: file.is_file() and file.read_bytes() for file in run_dir.rglob("*")}
    assert [file.name for file in Path().iterdir()] == ["run"]


def test_a_log_is_in_the_folder_of_the_run_that_is_resumed(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "new" / "train.log"))
    for name in ("before", "after"):
        log.handle(logging.makeLogRecord({"msg": name}))
        log.begin(tmp_path)
    log.close()
    assert Path("train.log").read_text() == "before\nafter\n"
    assert not Path("new").exists()


def test_an_experiment_that_resumes_a_run_leaves_no_other_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment = Path("mine/experiment/mine.yaml")
    experiment.parent.mkdir(parents=True)
    experiment.write_text("# @package _global_\ncutmix: 0.1\n")
    typed = ["cifar-train", "--config-dir=mine", *TINY, "experiment=mine"]
    monkeypatch.setattr(sys, "argv", [*typed, "target_accuracy=null", "hydra.run.dir=a b"])
    with hydra_restored():
        main()
    with (
        hydra_restored(),
        pytest.raises(
            SystemExit, match=r"already: 'resume=.*/a b/checkpoints/last\.ckpt' resumes it; hydra"
        ),
    ):
        main()
    with experiment.open("a") as file:
        file.write("resume: a b/checkpoints/last.ckpt\n")
    monkeypatch.setattr(sys, "argv", [*typed, "trainer.max_epochs=2"])
    with hydra_restored():
        main()
    assert RunFolder(Path("a b")).read().metrics["epochs"] == 2
    assert not Path("runs").exists()
    experiment.write_text("# @package _global_\nresume: auto\n")
    with hydra_restored(), pytest.raises(SystemExit, match="works only on the command line"):
        main()


@pytest.mark.parametrize("typed", [[], ["hydra.run.dir=there/a/b"], ["hydra.run.dir=there"]])
def test_a_start_that_is_refused_leaves_no_folder(
    typed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("there").mkdir()
    # Before the data is read, and right before the first step.
    for wrong in ("trainer.gpus=99", f"+callbacks.x._target_={__name__}.Refusing"):
        options = [*TINY, "target_accuracy=null", wrong]
        monkeypatch.setattr(sys, "argv", ["cifar-train", *options, *typed])
        with hydra_restored(), pytest.raises(SystemExit, match=r"99|the last moment"):
            main()
        assert [*Path().rglob("*")] == [Path("there")]


def test_a_folder_in_which_no_step_was_taken_may_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ["cifar-train", *TINY, "target_accuracy=null", "hydra.run.dir=run"]
    monkeypatch.setattr(sys, "argv", [*typed, f"+callbacks.x._target_={__name__}.Refusing"])
    with hydra_restored(), pytest.raises(SystemExit):
        main()
    monkeypatch.setattr(sys, "argv", [*typed])
    with hydra_restored():
        main()
    assert RunFolder(tmp_path / "run").read().status == "finished"
    assert RunFolder(tmp_path / "run").read().overrides == typed[1:-1]
    hydra = OmegaConf.load("run/.hydra/hydra.yaml").hydra
    assert hydra.runtime.output_dir == str(tmp_path / "run")
    assert OmegaConf.load("run/.hydra/overrides.yaml") == typed[1:-1]


def test_a_new_run_does_not_begin_in_the_folder_of_another() -> None:
    run = begun(RUNS)
    config = compose(TYPED, run)
    last = run / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match=f"has a run already: resume=.*{last} resumes it; hydra"):
        train(config)
    last.unlink()  # as of a run whose checkpoints were tidied away
    (run / "metrics.json").write_text('{"stopped_by": "max_epochs", "epochs": 4}')
    with pytest.raises(UserError, match=r"has a run already: hydra\.run\.dir=FOLDER gives"):
        train(config)


def test_a_run_that_left_nothing_to_go_on_from_is_moved(tiny: Compose, tmp_path: Path) -> None:
    left = tmp_path / "run" / "metrics.json"
    left.parent.mkdir()
    left.write_text('{"stopped_by": "interrupted", "epochs": 0.5}')
    train(tiny("target_accuracy=null"))
    (earlier,) = left.parent.glob("before_*")
    assert (earlier / "metrics.json").read_text().startswith('{"stopped_by": "interrupted"')
    with pytest.raises(UserError, match=r"has a run already: resume=.*last\.ckpt resumes it"):
        train(tiny("target_accuracy=null"))


def test_all_that_a_run_has_can_be_changed_or_removed_at_a_resume(
    tiny: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callbacks of Lightning's too that were typed, without typing them again."""
    early = "{_target_:pytorch_lightning.callbacks.EarlyStopping,monitor:val/loss,patience:1}"
    timer = "{_target_:pytorch_lightning.callbacks.Timer,duration:{hours:1}}"
    added = [f"+callbacks.early={early}", f"+callbacks.timer={timer}"]
    added += ["trainer.gradient_clip_val=1", "scheduler=cosine", "scheduler.warmup=0.3"]
    train(tiny("target_accuracy=null", *added))
    changed = ["trainer.max_epochs=2", "trainer.gradient_clip_val=null", "~scheduler.warmup"]
    changed += ["callbacks.early.monitor=val/acc", "++callbacks.early.mode=max"]
    changed += ["~callbacks.timer", "~callbacks.early.patience"]
    monkeypatch.setattr(sys, "argv", ["cifar-train", RESUME, *changed])
    with hydra_restored():
        main()
    assert read_json(Path("run/metrics.json"))["epochs"] == 2
    record = RunFolder(tmp_path / "run").record()
    assert record["callbacks"]["timer"] is record["trainer"]["gradient_clip_val"] is None
    assert record["callbacks"]["early"].keys() == {"_target_", "monitor", "mode"}
    assert "warmup" not in record["scheduler"]
    assert in_run_folder(["--cfg=job", RESUME])[0] == "--cfg=job"


@pytest.mark.parametrize(
    ("stopped_by", "began", "asked", "goes_on"),
    [
        ("max_steps", ["trainer.max_steps=5"], [], True),
        ("max_steps", ["trainer.max_steps=5"], ["trainer.max_steps=6"], True),
        ("max_steps", ["trainer.max_steps=5"], ["trainer.max_steps=5"], False),
        ("max_steps", ["trainer.max_steps=5"], ["trainer.max_steps=4"], False),
        ("max_time", ["trainer.max_time='00:00:01:00'"], ["trainer.max_time='00:00:02:00'"], True),
        ("max_time", ["trainer.max_time='00:00:01:00'"], ["trainer.max_time='00:00:00:30'"], False),
        ("max_time", ["trainer.max_time='00:00:01:00'"], ["trainer.max_time=null"], True),
        ("max_time", ["trainer.max_time='00:00:01:00'"], ["trainer.max_time={days:1}"], True),
        ("max_epochs", ["trainer.max_epochs=4"], ["trainer.max_epochs=8"], False),
        ("target", ["trainer.max_steps=5"], [], False),
    ],
)
def test_a_run_is_finished_or_not_by_the_limit_that_is_asked_for(
    stopped_by: str, began: list[str], asked: list[str], goes_on: bool
) -> None:
    run = begun(RUNS, [*TYPED, *began])
    (run / "metrics.json").write_text(f'{{"stopped_by": "{stopped_by}", "epochs": 1}}')
    assert auto(*TYPED, *asked) == (run if goes_on else None)


def test_a_damaged_folder_is_passed_over() -> None:
    run, damaged = begun(RUNS), begun(RUNS, name=SECOND)
    (damaged / "config.yaml").write_text("a: [")
    assert auto(*TYPED) == run
    (damaged / "config.yaml").unlink()
    assert auto(*TYPED) == run


def test_it_is_looked_for_where_the_run_would_be(tmp_path: Path) -> None:
    place = ("hydra.run.dir=elsewhere/mine",)
    run = begun(Path("elsewhere"), [*TYPED, *place], name="mine")
    assert auto(*TYPED) is None
    assert auto(*TYPED, *place) == run
    assert auto(*TYPED, "hydra.run.dir='elsewhere/${now:%H}'") == run
    assert auto(*TYPED, "hydra.run.dir='elsewhere/${hydra:job.name}_${now:%H}'") == run
    mine = tmp_path / "my conf" / "optimizer"
    mine.mkdir(parents=True)
    (mine / "mine.yaml").write_text("_target_: torch.optim.Adam\n_partial_: true\n")
    assert auto(f"--config-dir={mine.parent}", "optimizer=mine") is None
    named = begun(Path("runs/mine"), TYPED)
    assert auto(*TYPED, "hydra.job.name=mine") == named


def test_debugging_is_looked_for_where_its_runs_stand() -> None:
    typed = [*TYPED, "debug=fast"]
    begun(RUNS, typed, name=THIRD)
    run = begun(Path("runs/debug"), typed)
    begun(Path("runs/debug"), name=SECOND)
    assert auto(*typed) == run
    assert auto(*TYPED, "debug=null") is None
    assert auto(*typed, "hydra.run.dir='runs/train/${now:%H}'") == RUNS / THIRD


def test_a_sweep_goes_on_otherwise() -> None:
    for resume in ("resume=auto", "resume=run/checkpoints/last.ckpt"):
        with pytest.raises(UserError, match="resume_sweep=FOLDER"):
            resume_auto(["--multirun", "seed=1,2", resume])


def test_two_processes_do_not_train_in_one_folder(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new"
    monkeypatch.setattr(sys, "argv", ["cifar-train", *TINY, f"hydra.run.dir={new}"])
    with run_lock(new):
        with hydra_restored(), pytest.raises(SystemExit, match="Another process is working"):
            main()
        assert is_locked(new)
        assert [file.name for file in new.iterdir()] == [".lock"]
    # A resume locks the run's own folder, whichever is composed.
    config = compose([f"resume='{run_dir}/checkpoints/last.ckpt'"])  # as an experiment may say
    with run_lock(run_dir), pytest.raises(UserError, match="Another process is working"):
        train_locked(config)


def test_a_run_is_resumed_in_its_own_folder_alone() -> None:
    resumes = f"resume={begun(RUNS)}/checkpoints/last.ckpt"
    with pytest.raises(UserError, match=r"continues the run in .*: leave hydra\.run\.dir= out"):
        in_run_folder([resumes, "hydra.run.dir=elsewhere"])
    found = in_run_folder([f"hydra.run.dir={RUNS / FIRST}", resumes])
    assert [a for a in found if a.startswith("hydra.run")] == [
        f"hydra.run.dir='{Path.cwd() / RUNS / FIRST}'"
    ]


def test_no_callback_saves_among_the_checkpoints_of_another_run(
    run_dir: Path, tiny: Compose
) -> None:
    more = (
        "+callbacks.more={_target_: pytorch_lightning.callbacks.ModelCheckpoint, filename: best, "
    )
    with pytest.raises(UserError, match=r"callbacks\.more\.dirpath=.* of another run"):
        check_config(tiny(f"{more}dirpath: {run_dir}/checkpoints}}", run_dir="other"))
