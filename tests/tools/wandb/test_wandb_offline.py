"""W&B logging, tested by real offline runs that are read with W&B's own viewer."""

import io
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import weights_of
from conftest import TINY
from omegaconf import DictConfig, open_dict
from PIL import Image
from wandb_files import Recorded, recorded, run_folders

from cifar_lightning import run
from cifar_lightning.config.compose import CONF, PACKAGE, compose, title
from cifar_lightning.errors import UserError
from cifar_lightning.tracking.run_folder import read_rows
from cifar_lightning.tracking.run_logger import flat_config
from cifar_lightning.tracking.wandb import WandbRunLogger, start_run
from cifar_lightning.tracking.wandb.code_state import code_state
from cifar_lightning.train import train

Compose = Callable[..., DictConfig]

OFFLINE = ("logger=default", "logger.wandb.mode=offline", "target_accuracy=null")


@dataclass(frozen=True)
class OfflineRun:
    """A training with W&B offline.

    Attributes:
        run_dir: its folder.
        recorded: what W&B recorded.
        output: that it printed.
        code: the commit and the diff of the checkout when it began.
    """

    run_dir: Path
    recorded: Recorded
    output: str
    code: tuple[str | None, bytes]


@pytest.fixture(scope="module")
def offline_run(tmp_path_factory: pytest.TempPathFactory) -> OfflineRun:
    """It reaches its target."""
    folder = tmp_path_factory.mktemp("wandb")
    options = [*TINY, "plots=true", "logger=default", "logger.wandb.mode=offline"]
    options += ["optimizer.lr=0.05", "target_accuracy=0.05"]
    options += ["trainer.max_epochs=3", "trainer.min_epochs=2"]
    run_dir, output, code = folder / "runs" / "train" / "run", io.StringIO(), code_state()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
        patch.chdir(folder)
        train(compose(options, run_dir))
    (wandb_folder,) = run_folders(folder)
    return OfflineRun(run_dir, recorded(wandb_folder), output.getvalue(), code)


def metrics_of(offline_run: OfflineRun) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((offline_run.run_dir / "metrics.json").read_text())
    return content


# What a run logs.


def test_each_row_of_metrics_csv_is_a_row_over_epochs_with_the_target_beside_it(
    offline_run: OfflineRun,
) -> None:
    shown = offline_run.recorded
    rows = read_rows(offline_run.run_dir)[:-1]  # the last is the test's
    threshold = metrics_of(offline_run)["target_val_acc"]
    assert threshold > 0.05
    assert [row["epoch"] for row in shown.rows] == [1, 2]
    for logged, row in zip(shown.rows, rows, strict=True):
        expected = {name: value for name, value in row.items() if name != "step"}
        expected |= {"target_accuracy": 0.05, "target_val_acc": threshold}
        assert {name: logged[name] for name in expected} == pytest.approx(expected, abs=1e-6)
        assert logged["_step"] == row["step"]
    assert {"train/loss", "train/acc", "val/loss", "val/acc", "lr"} <= set(shown.rows[0])
    assert {"throughput/images_per_s", "train/grad_norm"} <= set(shown.rows[0])
    axes = {m.get("name", m.get("glob_name")): m.get("step_metric") for m in shown.of("metric")}
    assert axes == {"epoch": None, "*": "epoch"}


def test_the_configuration_is_flat_and_whole(offline_run: OfflineRun) -> None:
    config = offline_run.recorded.config
    assert not [key for key, value in config.items() if isinstance(value, dict) and key != "_wandb"]
    assert config["model"] == "dilated_dw"
    assert config["optimizer"] == "muon"
    assert config["optimizer/lr"] == 0.05
    assert config["data/batch_size"] == 25
    assert config["callbacks/target/target"] == 0.05  # a reference, resolved
    assert "optimizer.lr=0.05" in config["overrides"]
    composed = compose(["data=shapes"])
    for group in ("augment", "budget", "init", "model", "optimizer", "scheduler", "trainer"):
        assert {f"{group}/{key}" for key in composed[group]} <= set(config)


def test_the_budgets_counts_and_the_code_are_in_the_configuration(offline_run: OfflineRun) -> None:
    config = offline_run.recorded.config
    assert config["network/parameters"] == 257_856
    assert config["network/multiply_adds"] == 44_167_744
    assert (config["network/dilated"], config["network/separable"]) == (1, 2)
    commit, diff = offline_run.code
    assert config["code/commit"] == commit
    assert config["code/dirty"] is (bool(diff) if commit else None)
    patch = offline_run.recorded.folder / "files" / "diff.patch"
    assert patch.exists() == bool(diff)


def test_the_summary_is_metrics_json_and_the_figures_are_logged(offline_run: OfflineRun) -> None:
    metrics, summary = metrics_of(offline_run), offline_run.recorded.summary
    assert {key: summary.get(key) for key in metrics} == metrics
    assert metrics["stopped_by"] == "target"
    assert metrics["seconds_to_target"] > 0
    best = max(read_rows(offline_run.run_dir)[:-1], key=lambda row: row["val/acc"])
    assert metrics["best_epoch"] == best["epoch"]
    figures = {path.stem for path in (offline_run.run_dir / "figures").glob("*.png")}
    assert {"learning_curves", "confusion_matrix", "class_accuracies", "filters"} <= figures
    assert figures <= offline_run.recorded.names


def test_the_test_is_shown_class_by_class_and_mistake_by_mistake(offline_run: OfflineRun) -> None:
    shown, metrics = offline_run.recorded, metrics_of(offline_run)
    by_class = {k: v for k, v in shown.summary.items() if k.startswith("test/acc_by_class/")}
    classifier, _ = run.rebuild(offline_run.run_dir / "checkpoints" / "best.ckpt")
    data = run.build_data(compose(TINY))
    assert [name.rpartition("/")[2] for name in by_class] == sorted(data.classes)
    shares = torch.bincount(data.test.labels, minlength=10) / len(data.test)
    means = [by_class[f"test/acc_by_class/{name}"] for name in data.classes]
    assert (torch.tensor(means) * shares).sum() == pytest.approx(metrics["test/acc"], abs=1e-5)

    (artifact,) = (a for a in shown.of("artifact") if a["name"].endswith("-mistakes"))
    files = {entry["path"]: entry["local_path"] for entry in artifact["manifest"]["contents"]}
    place = offline_run.run_dir.parents[2]
    table = json.loads((place / files["mistakes.table.json"]).read_text())
    assert table["columns"] == ["image", "label", "prediction", "confidence", "test image"]
    assert len(table["data"]) == round((1 - metrics["test/acc"]) * len(data.test))
    confidences = [row[3] for row in table["data"]]
    assert confidences == sorted(confidences, reverse=True)
    with torch.no_grad():
        predictions = classifier(data.test.images).argmax(1)
    agree = 0
    for cell, label, prediction, _, number in table["data"]:
        assert label != prediction
        assert data.classes[data.test.labels[number]] == label
        agree += data.classes[predictions[number]] == prediction
        picture = np.asarray(Image.open(place / files[cell["path"]]))  # [4 H, 4 W, 3]
        image = data.test.images[number].permute(1, 2, 0).numpy()
        assert np.array_equal(picture[::4, ::4], image)
        assert picture.shape == (128, 128, 3)
    assert agree >= len(table["data"]) - 2  # fp32 here, bf16 there, where the chip is fast at it


def test_the_best_checkpoint_is_an_artifact_with_its_figures(offline_run: OfflineRun) -> None:
    shown, metrics = offline_run.recorded, metrics_of(offline_run)
    (artifact,) = (a for a in shown.of("artifact") if a["type"] == "model")
    assert artifact["name"] == f"model-{shown.run['run_id']}"
    assert "best" in artifact["aliases"]
    assert json.loads(artifact["metadata"]) == metrics
    (entry,) = artifact["manifest"]["contents"]
    file = offline_run.run_dir.parents[2] / entry["local_path"]
    assert file.name == entry["path"] == "best.ckpt"
    mine, logged = weights_of(offline_run.run_dir / "checkpoints" / "best.ckpt"), weights_of(file)
    assert mine.keys() == logged.keys()
    assert all(torch.equal(mine[name], logged[name]) for name in mine)
    classifier, info = run.rebuild(file)
    assert info.model == "dilated_dw"
    assert len(classifier.classes) == 10
    with pytest.raises(UserError, match=r"holds only the network.*Use last\.ckpt"):
        train(compose([f"resume={file}"]))


def test_a_run_has_a_name_that_can_be_read_and_is_found_by_tags(offline_run: OfflineRun) -> None:
    shown = offline_run.recorded.run
    assert shown["display_name"].startswith("dilated_dw data.train_size=200 data.test_size=60 ")
    assert shown["display_name"].endswith("… seed 0")
    assert len(shown["display_name"]) == 100
    assert shown["job_type"] == "train"
    assert shown["tags"] == ["dilated_dw", "shapes"]
    assert shown["project"] == "cifar-lightning"


def test_titles_leave_out_what_is_of_the_machine() -> None:
    chosen = {"model": "dilated_dw", "experiment": None}
    typed = ["optimizer=sgd", "trainer.limit_train_batches=3", "data.path=/here", "trainer.gpus=0"]
    typed += ["logger.wandb.mode=offline", "seed=3", "data=folder", "hydra.run.dir=x", "model=x"]
    typed += ["+trainer.default_root_dir=/home/me/x", "+mine=[~/a,b]", "+mine=sqlite:////home/me/x"]
    typed += ["target_accuracy=null", "trainer.limit_test_batches=0"]  # of every trial
    assert title(chosen, 3, typed) == (
        "dilated_dw optimizer=sgd trainer.limit_train_batches=3 seed 3"
    )
    assert title(chosen | {"experiment": "sgd"}, 0, ["model=x"]) == "sgd model=x seed 0"


def test_no_panel_of_the_dashboard_can_be_empty(offline_run: OfflineRun) -> None:
    panels = pytest.importorskip("cifar_lightning.dashboard.panels")  # which can be deleted
    shown = offline_run.recorded
    logged = shown.names | {f"config.{key}" for key in shown.config}
    for panel in panels.specification("mine")["panels"]:
        assert set(panel["shows"]) <= logged, panel


# What stays here.


def strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from strings_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings_in(item)
    else:
        yield str(value)


def test_nothing_of_the_machine_is_logged(offline_run: OfflineRun) -> None:
    shown = offline_run.recorded
    texts = [text for record in shown.records for text in strings_in(record)]
    files = [file for file in shown.folder.glob("files/**/*") if file.is_file()]
    files += shown.folder.glob("checkpoint/*")
    assert len(files) > 8
    texts += [f.read_bytes().decode(errors="replace") for f in files if f.name != "diff.patch"]
    secret = {str(offline_run.run_dir.parents[2]), str(Path.home()), str(CONF.parent)}
    for text in texts:
        assert not [place for place in secret if place in text], text[:300]
    assert not list(shown.folder.rglob("wandb-metadata.json"))


def test_paths_are_left_out_of_a_configuration() -> None:
    config = {
        "run_dir": "/home/me/runs",
        "data": {"path": "/data/cifar.tar.xz", "root": "data", "batch_size": 4},
        "callbacks": {"best": {"dirpath": "/x", "mode": "max"}},
        "logger": {"wandb": {"entity": "me"}},
        "mine": {"table": "/home/me/table.csv", "several": ["~/a", "b"], "at": "https://a.b/c"},
        "overrides": ["optimizer=sgd", "data.path=/data", "+mine.table='/home/me/t'", "+x=[/h,b]"],
        "choices": {"data": "folder"},
    }
    assert flat_config(config) == {
        "data": "folder",
        "data/batch_size": 4,
        "callbacks/best/mode": "max",
        "mine/table": "table.csv",
        "mine/several": ["a", "b"],
        "mine/at": "https://a.b/c",
        "overrides": ["optimizer=sgd"],
    }


# Which runs there are.


def test_a_resumed_run_is_one_wandb_run_without_a_row_twice_and_less_can_be_logged(
    tiny: Compose, tmp_path: Path
) -> None:
    less = [f"logger.wandb.log_{what}=false" for what in ("code", "images", "checkpoint")]
    train(tiny(*OFFLINE, *less))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    train(compose([f"resume={last}", "trainer.max_epochs=2"], tmp_path / "run"))
    first, second = map(recorded, run_folders())
    assert first.run["run_id"] == second.run["run_id"]
    assert second.run["resume"]
    assert first.run["display_name"] == second.run["display_name"]
    assert [row["epoch"] for row in first.rows] == [1]
    assert [row["epoch"] for row in second.rows] == [2]
    steps = [row["_step"] for row in (*first.rows, *second.rows)]
    assert steps == [row["step"] for row in read_rows(tmp_path / "run") if "val/acc" in row]

    assert not first.of("artifact")
    assert not (first.folder / "files" / "diff.patch").exists()
    assert "code/commit" not in first.config
    assert first.summary["test/acc"] is not None
    assert "target_accuracy" not in first.rows[0]  # there is none


def test_a_run_of_a_sweep_that_fails_to_start_is_in_its_group_and_leaves_no_wandb_run_open(
    tmp_path: Path,
) -> None:
    import wandb

    name = "sweep" * 46
    config = compose([*TINY, *OFFLINE], tmp_path / name / "0", sweep=name)
    with open_dict(config):
        wrong = {"_target_": "cifar_lightning.tracking.wandb.start_run", "finish_timeout": 0}
        config.logger.other = wrong
    with pytest.raises(UserError, match="finish_timeout"):
        train(config)
    assert wandb.run is None
    (folder,) = run_folders()
    shown = recorded(folder)
    assert shown.of("exit")
    assert shown.run["run_group"] == name[:100]
    assert shown.run["run_id"] == config.run_id[-100:]


def test_metrics_of_ones_own_are_curves_too(tmp_path: Path) -> None:
    logger = start_run(mode="offline", run_id="own")
    assert isinstance(logger, WandbRunLogger)
    for step in range(4):
        logger.log_metrics({"mine": float(step), "epoch": 0.0}, step)
    logger.log_metrics({"train/loss": 1.0, "val/acc": 0.5, "epoch": 1.0}, 2)
    logger.log_metrics({"test/acc": 0.6, "epoch": 1.0}, 2)
    logger.close()
    (folder,) = run_folders()
    shown = recorded(folder)
    assert [row["mine"] for row in shown.history if "mine" in row] == [0, 1, 2, 3]
    assert [row["val/acc"] for row in shown.rows] == [0.5]
    assert shown.summary["test/acc"] == 0.6
    assert not [row for row in shown.history if "test/acc" in row]


def test_the_viewer_is_named_at_the_end(offline_run: OfflineRun) -> None:
    # `recorded` has read the run with this viewer.
    assert f"wandb leet runs/wandb/{offline_run.recorded.folder.name}" in offline_run.output


# What W&B cannot do.


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and "W&B" in record.getMessage()
    ]


def test_wandb_that_fails_stops_no_training(
    tiny: Compose, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    def broken(self: object, *arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wandb.Run, "log", broken)
    metrics = train(tiny(*OFFLINE, "trainer.max_epochs=2"))
    assert metrics["test/acc"] is not None
    (said,) = warnings_in(caplog)  # once
    assert "No space left on device. The training continues" in said


def test_wandb_that_cannot_start_stops_no_training(
    tiny: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    metrics = train(tiny(*OFFLINE, f"logger.wandb.save_dir={tmp_path}/file/x"))
    assert metrics["test/acc"] is not None
    (said,) = warnings_in(caplog)
    assert said.startswith("W&B could not start an offline run, so this run has none")


def test_without_credentials_auto_is_offline_and_asks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    logger = start_run(mode="auto", save_dir="runs", run_id="auto")
    assert isinstance(logger, WandbRunLogger)
    assert logger.run.offline
    logger.close()
    assert "WANDB_MODE" not in os.environ  # nothing leaks into the next job
    assert not warnings_in(caplog)
    logger = start_run(mode="online", save_dir="runs", run_id="online")
    assert isinstance(logger, WandbRunLogger)
    assert logger.run.offline
    logger.close()
    assert "not logged in" in warnings_in(caplog)[0]


@pytest.mark.parametrize(("value", "folders"), [("dryrun", 1), ("offline", 1), ("disabled", 0)])
def test_auto_does_what_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, value: str, folders: int
) -> None:
    monkeypatch.setenv("WANDB_MODE", value)
    logger = start_run(mode="auto", run_id="mode")
    if logger is not None:
        logger.close()
    assert len(list(Path().glob("runs/wandb/offline-run-*"))) == folders


def test_a_folder_that_disappears_ends_no_training(caplog: pytest.LogCaptureFixture) -> None:
    logger = start_run(mode="offline", run_id="gone")
    assert isinstance(logger, WandbRunLogger)
    shutil.rmtree("runs")
    logger.close()
    assert len(warnings_in(caplog)) == 1


def test_values_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="finish_timeout must be above 0 seconds, not 0"):
        start_run(finish_timeout=0)
    with pytest.raises(UserError, match=r"should be 'auto', 'online', 'offline' or 'disabled'\."):
        run.check_config(compose(["logger=wandb", "logger.wandb.mode=on"]))


# Which code it is.


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A committed one, of the package's first lines."""
    package = tmp_path / "checkout" / "cifar_lightning"
    package.mkdir(parents=True)
    for name in ("__init__.py", "train.py"):
        (package / name).write_text((PACKAGE / name).read_text())
    (package.parent / "notes.txt").write_text("mine\n")
    (package.parent / ".gitignore").write_text("secret.py\n")
    git(package.parent, "init", "-q")
    commit(package.parent)
    return package.parent


def git(folder: Path, *arguments: str) -> str:
    name = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(
        ["git", "-C", folder, *name, *arguments], check=True, capture_output=True, text=True
    ).stdout


def commit(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "x")


def test_a_clean_checkout_has_a_commit_and_no_diff(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD").strip()
    (checkout / "notes.txt").write_text("changed\n")  # no code
    assert code_state(checkout / "cifar_lightning") == (head, b"")


def test_the_diff_makes_the_commit_what_it_was(checkout: Path, tmp_path: Path) -> None:
    package = checkout / "cifar_lightning"
    (package / "train.py").write_text("one = 2\n")
    (package / "new network.py").write_text("def f(): ...\n")
    (package / "secret.py").write_text("key\n")
    _, diff = code_state(package)
    assert b"secret" not in diff
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(checkout), str(clone))
    (tmp_path / "diff.patch").write_bytes(diff)
    git(clone, "apply", str(tmp_path / "diff.patch"))
    assert (clone / "cifar_lightning" / "train.py").read_text() == "one = 2\n"
    assert (clone / "cifar_lightning" / "new network.py").read_text() == "def f(): ...\n"


def test_of_a_larger_repository_only_the_code_is_in_the_diff(tmp_path: Path) -> None:
    template = tmp_path / "big" / "template"
    (template / "cifar_lightning").mkdir(parents=True)
    (template / "cifar_lightning" / "__init__.py").write_bytes(b"one = 1\r\ntwo = 2\r\n")
    (tmp_path / "big" / "pyproject.toml").write_text("mine\n")
    git(tmp_path / "big", "init", "-q")
    git(tmp_path / "big", "config", "diff.noprefix", "true")
    commit(tmp_path / "big")
    (tmp_path / "big" / ".env").write_text("key\n")
    (tmp_path / "big" / "pyproject.toml").write_text("changed\n")
    assert code_state(template / "cifar_lightning")[1] == b""
    (template / "cifar_lightning" / "__init__.py").write_bytes(b"one = 1\r\ntwo = 3\r\n")
    (template / "cifar_lightning" / "data.bin").write_bytes(b"\0\1")
    _, diff = code_state(template / "cifar_lightning")
    assert b"key" not in diff
    assert b"changed" not in diff
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(tmp_path / "big"), str(clone))
    (tmp_path / "diff.patch").write_bytes(diff)
    git(clone, "apply", "--directory=template", str(tmp_path / "diff.patch"))
    code = clone / "template" / "cifar_lightning"
    assert (code / "__init__.py").read_bytes() == b"one = 1\r\ntwo = 3\r\n"
    assert (code / "data.bin").read_bytes() == b"\0\1"


def test_what_is_installed_in_someone_elses_checkout_has_no_commit(checkout: Path) -> None:
    packages = checkout / ".venv" / "cifar_lightning"
    shutil.copytree(checkout / "cifar_lightning", packages)
    assert code_state(packages) == (None, b"")
    shutil.rmtree(checkout / ".git")
    assert code_state(checkout / "cifar_lightning") == (None, b"")
