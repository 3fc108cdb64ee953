"""Several loggers at once, those of Lightning's among them, and what is said without their package.

What a logger that was deleted would record is left out.
"""

import sys
from pathlib import Path

import pytest
from conftest import TINY
from programs import only, run_command

from cifar_lightning import run
from cifar_lightning.config.compose import CONF, compose
from cifar_lightning.errors import UserError
from cifar_lightning.tracking.run_folder import read_rows

# By option of the group, in which folder the files go, and the package.
FOLDERS = {
    "tensorboard": "runs/*/tensorboard",
    "mlflow": "runs/mlflow",
    "trackio": "runs/trackio",
    "default": "runs/wandb",
}
HERE = [option for option in FOLDERS if (CONF / "logger" / f"{option}.yaml").exists()]
QUICK = [*(option for option in TINY if not option.startswith("logger")), "target_accuracy=null"]


@pytest.mark.slow
def test_all_loggers_at_once_record_a_run(tmp_path: Path) -> None:
    loggers = f"logger=[csv,{','.join(HERE)}]" if HERE else "logger=[csv]"
    ended = run_command("train", *QUICK, loggers, "hydra.run.dir=runs/run")
    assert (ended.returncode, ended.stderr) == (0, "")
    for option in HERE:
        assert only(FOLDERS[option]).is_dir()
    assert len(read_rows("runs/run")) == 2
    again = run_command("train", "resume=runs/run/checkpoints/last.ckpt", "trainer.max_epochs=2")
    assert (again.returncode, again.stderr) == (0, "")
    assert [row["epoch"] for row in read_rows("runs/run") if "val/acc" in row] == [1, 2]


@pytest.mark.slow
def test_each_run_of_a_sweep_has_all_loggers_of_an_experiment(tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    loggers = [option for option in HERE if option in ("tensorboard", "default")]
    override = f"# @package _global_\ndefaults:\n  - override /logger: {['csv', *loggers]}\n"
    (tmp_path / "mine" / "experiment" / "both.yaml").write_text(override)
    typed = ["--config-dir=mine", "experiment=both", "seed=0,1", "hydra.sweep.dir=runs/sweep"]
    ended = run_command("train", "-m", *QUICK, *typed)
    assert ended.returncode == 0, ended.stderr
    for job in ("0", "1"):
        assert len(read_rows(f"runs/sweep/{job}")) == 2
        if "tensorboard" in HERE:
            assert list(Path("runs/sweep", job, "tensorboard").glob("events.*"))


def test_a_logger_of_lightning_is_added_by_its_class(tmp_path: Path) -> None:
    logger = "pytorch_lightning.loggers.CSVLogger"
    typed = [f"+logger.mine._target_={logger}", f"+logger.mine.save_dir={tmp_path}/mine"]
    ended = run_command("train", *TINY, *typed)
    assert ended.returncode == 0, ended.stderr
    rows = only("mine/*/*/metrics.csv").read_text()
    assert "val/acc" in rows
    assert "optimizer" in only("mine/*/*/hparams.yaml").read_text()


@pytest.mark.parametrize("option", [option for option in HERE if option != "default"])
def test_without_its_package_one_message_says_how_to_install_it(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, option, None)
    monkeypatch.delitem(sys.modules, f"cifar_lightning.tracking.{option}", raising=False)
    said = rf"logger={option} needs .*: make setup .*cifar-lightning\[{option}\]"
    with pytest.raises(UserError, match=said):
        run.check_config(compose([f"logger={option}"]))
