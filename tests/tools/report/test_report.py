"""The report of a run and of a sweep, as files and as pages in a browser."""

import csv
import json
import math
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from checkpoints import changed_record
from conftest import TINY, not_installed
from omegaconf import OmegaConf
from playwright.sync_api import Browser, Dialog, Page, sync_playwright
from programs import read_json

from cifar_lightning.config.compose import compose
from cifar_lightning.config.overrides import prepare_arguments
from cifar_lightning.errors import UserError
from cifar_lightning.evaluate import evaluate
from cifar_lightning.report import many_runs, report
from cifar_lightning.report.commands import train_command
from cifar_lightning.report.one_run import content_of
from cifar_lightning.report.write import find_folders, write_comparison
from cifar_lightning.tracking import evaluation_tables
from cifar_lightning.tracking.run_folder import Run, RunFolder, find_folder, run_folders
from cifar_lightning.tracking.seeds import best_run, groups_of, summary
from cifar_lightning.train import train

HOSTILE = '"><script>alert("run")</script><img src=x onerror=alert(1)>|`x`'


def write(folder: Path) -> Path:
    return report(OmegaConf.create({"run": str(folder), "open": False}))


FAILURE = "optimizer: lr must not be negative, not -1"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multirun of two seeds, 0 and 2, and two jobs that failed, 1 and 3.

    The second seed is a copy of the first one's run with a better accuracy.
    """
    folder = tmp_path_factory.mktemp("many") / "2026-11-24_04-00-00-000000_sweep"
    typed = [*TINY, "target_accuracy=0.001", "target_confidence=0.5"]
    train(compose([*typed, "seed=3", "optimizer.lr=0.02"], folder / "0"))
    other = shutil.copytree(folder / "0", folder / "2")
    start = {"time": "2026-11-24", "overrides": [*typed, "seed=4", "optimizer.lr=0.02"]}
    changed_record(other, lambda record: record.update(starts=[start]))
    change_metrics(other, seed=4, **{"val/acc": 0.5, "test/acc": 0.25})
    for name, seed in (("1", 3), ("3", 4)):
        overrides = [*typed, f"seed={seed}", "optimizer.lr=-1"]
        (folder / name / ".hydra").mkdir(parents=True)
        (folder / name / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))
        line = f"2026-11-24 04:34:31,918 ERROR cifar_lightning.cli: {FAILURE}\n"
        (folder / name / "train.log").write_text(line)
    task = [*typed, "seed=3,4", "optimizer.lr=0.02,-1"]
    record = {"hydra": {"overrides": {"task": task, "hydra": []}}}
    (folder / "multirun.yaml").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def trained(swept: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that reached its target and was evaluated."""
    folder = tmp_path_factory.mktemp("one") / "2026-11-24_04-02-06-075450_a run"
    shutil.copytree(swept / "0", folder)
    checkpoint = f"checkpoint='{folder}/checkpoints/best.ckpt'"
    evaluate(compose([checkpoint, "trainer.gpus=0"], config_name="evaluate"))
    (folder / "figures").mkdir()
    for name in ("filters", "learning_curves"):  # any picture: drawing these takes long
        shutil.copy(folder / "evaluation" / "mistakes.png", folder / "figures" / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def one_report(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with its report, which no test changes."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("report") / trained.name)
    write(folder)
    return folder


@pytest.fixture(scope="module")
def many_report(swept: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The multirun with its report, which no test changes."""
    folder = shutil.copytree(swept, tmp_path_factory.mktemp("report") / swept.name)
    write(folder)
    return folder


@pytest.fixture
def one(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run without its curves, which take most of a page's time."""
    folder = shutil.copytree(trained, tmp_path / trained.name)
    (folder / "metrics.csv").unlink()
    return folder


@pytest.fixture
def many(swept: Path, tmp_path: Path) -> Path:
    return shutil.copytree(swept, tmp_path / swept.name)


def metrics_of(folder: Path) -> dict[str, Any]:
    return read_json(folder / "metrics.json")


def change_metrics(folder: Path, **changes: Any) -> None:
    (folder / "metrics.json").write_text(json.dumps(metrics_of(folder) | changes))


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def error_of(metrics: dict[str, Any]) -> float:
    """Standard error of the test accuracy in points."""
    tested = [1.0] * round(metrics["test/acc"] * metrics["test_images"])
    tested += [0.0] * (metrics["test_images"] - len(tested))
    return 100 * float(statistics.pstdev(tested)) / math.sqrt(len(tested))


def test_the_page_of_a_run_says_what_it_found(one_report: Path) -> None:
    html = (one_report / "report.html").read_text().replace("\xa0", " ")
    metrics = metrics_of(one_report)
    results = read_json(one_report / "evaluation" / "evaluation.json")
    for text in (
        "dilated_dw on shapes, seed 3",
        f"Test accuracy {metrics['test/acc']:.2%} (standard error {error_of(metrics):.2f} points), "
        f"validation accuracy {metrics['val/acc']:.2%}.",
        "It reached its target of 0.1% after 1 epoch",
        "these are not CIFAR-10 results",
        "reached: epoch 1,",
        "target on validation 0.1%",
        metrics["device"],
        "target_confidence: 0.5",  # of the configuration
        "Confusion matrix",
        "most often taken for",
        "averaged with mirror image",
        f"{results['test/top2_flip']:.2%}",
        "corruption, by strength",
    ):
        assert text in html, text
    # The curves are drawn anew.
    assert html.count("<img ") == len({path.name for path in one_report.glob("*/*.png")}) - 1
    assert len(html) < 2e6
    (row,) = rows_of(one_report / "report.csv")
    assert float(row["test/acc"]) == metrics["test/acc"]
    assert (row["seed"], row["status"], row["data"]) == ("3", "finished", "shapes")


def test_nothing_in_a_page_comes_from_elsewhere(one_report: Path, many_report: Path) -> None:
    for folder in (one_report, many_report):
        html = (folder / "report.html").read_text()
        assert set(re.findall(r'(?:src|href|url\()\s*=?\s*["\']?([a-z]+:)', html)) <= {"data:"}


def test_markdown_has_the_same_and_its_pictures_exist(one_report: Path, many_report: Path) -> None:
    text = (one_report / "report.md").read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(pictures) == len({path.name for path in one_report.glob("*/*.png")})
    assert all((one_report / picture).is_file() for picture in pictures)
    assert f"    {train_command(RunFolder(one_report).read().overrides)}\n" in text
    text = (many_report / "report.md").read_text()
    (picture,) = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert (many_report / picture).stat().st_size > 1000
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "\n| [3](3/) | -1 |" in text


def test_a_multirun_names_the_best_and_sums_up_over_seeds(many_report: Path) -> None:
    html = (many_report / "report.html").read_text()
    metrics = {name: metrics_of(many_report / name) for name in "02"}
    best = max(metrics, key=lambda name: metrics[name]["val/acc"])
    assert f"The best run is run {best} (optimizer.lr=" in html
    (row,) = re.findall(
        r'<tr class="best" data-run="(run-\d)">.*?<a href=[^>]*>(\d)</a>', html, re.DOTALL
    )
    assert row[1] == best
    runs = [f.read() for f in run_folders(many_report)]
    (axes,) = many_runs.chart(runs, groups_of(runs)).axes
    widths = {line.get_gid(): line.get_linewidth() for line in axes.lines if line.get_gid()}
    assert max(widths, key=lambda gid: widths[gid]) == row[0]

    accuracies = [100 * metrics[name]["test/acc"] for name in "02"]
    mean, sd = statistics.mean(accuracies), statistics.stdev(accuracies)
    assert f"{mean:.2f} ± {sd:.2f}%" in html
    rows = rows_of(many_report / "report.csv")
    assert [row["run"] for row in rows] == list("0123")
    assert [row["optimizer.lr"] for row in rows] == ["0.02", "-1"] * 2
    assert [float(r["test/acc"]) for r in rows if r["test/acc"]] == [
        metrics[name]["test/acc"] for name in metrics
    ]
    assert "-m cifar_lightning.train -m data=shapes" in html
    assert "optimizer.lr=0.02,-1" in html
    for number in (1, 3):
        assert f"<b>Run {number}</b>, failed: {FAILURE}" in html
    assert "4 runs: 2 finished, 2 failed." in html


def test_runs_that_are_not_finished_are_listed_with_the_reason_and_not_counted(many: Path) -> None:
    log = many / "1" / "train.log"
    log.write_text(
        "2026-11-24 04:34:30,918 INFO a.b: fine\n"
        "2026-11-24 04:34:31,918 ERROR cifar_lightning.cli: The network <breaks> the budget.\n"
        "Change it.\n"
        "HYDRA_FULL_ERROR=1 shows where it was raised.\n"
        "Traceback (most recent call last):\n"
        '  File "x.py", line 1\n'
        "2026-11-24 04:34:32,918 ERROR wandb.sdk: no network\n"
    )
    (many / "3" / "train.log").unlink()
    change_metrics(many / "0", stopped_by="interrupted", **{"test/acc": None, "val/acc": 1.0})
    # A name between dollar signs would be a formula, or an error, in the picture.
    formula = {"time": "2026-11-25", "overrides": ["model=$\\foo$"]}
    changed_record(many / "2", lambda record: record.update(starts=[formula]))
    html = write(many).read_text()
    assert "$\\foo$" in html
    assert "<b>Run 1</b>, failed: The network &lt;breaks&gt; the budget.\nChange it.</li>" in html
    assert "<b>Run 3</b>, not finished: it has not trained a step: it is starting, or was" in html
    assert "<b>Run 0</b>, interrupted: stopped by Ctrl-C or SIGTERM" in html
    assert "4 runs: 1 finished, 1 interrupted, 1 failed, 1 not finished." in html
    assert "The best run is run 2" in html
    (many / "0" / "metrics.csv").unlink()
    page = write(many / "0").read_text()
    assert "Interrupted after " in page
    assert "Not tested" in page
    for metrics in many.glob("*/metrics.json"):
        metrics.unlink()
    runs = [folder.read() for folder in run_folders(many)]
    assert "No run is finished" in summary(runs, groups_of(runs))[0]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.json", "{"),
        ("metrics.json", "[1]"),
        ("metrics.json", '{"a": 1}'),
        ("metrics.json", '{"epochs": 1, "val/acc": "x", "stopped_by": "max_epochs"}'),
        ("metrics.csv", "epoch\n<img src=x onerror=alert(1)>\n"),
        ("metrics.csv", "epoch,step,val/acc\n1,6\n"),
        ("evaluation/evaluation.json", ""),
        ("evaluation/evaluation.json", '{"data": "shapes", "robustness": 3}'),
        ("config.yaml", "a: ["),
    ],
)
def test_a_damaged_file_is_named_and_left_out(one: Path, file: str, content: str) -> None:
    (one / file).write_text(content)
    html = write(one).read_text()
    assert f"{Path(file).name} cannot be read: " in html
    assert "<img src=x" not in html


def test_an_evaluation_says_what_it_was_of(one: Path) -> None:
    file = one / "evaluation" / "evaluation.json"
    assert "trained and tested on" not in write(one).read_text()
    file.write_text(json.dumps(read_json(file) | {"data": "folder", "checkpoint": "/x/last.ckpt"}))
    html = write(one).read_text()
    assert "Measured on data=folder; the run was trained and tested on data=shapes." in html
    assert "<dt>checkpoint</dt><dd>last.ckpt</dd>" in html


def test_a_run_whose_test_images_have_other_shares_of_classes_says_so(one: Path) -> None:
    said = "validation accuracy does not predict test accuracy"
    assert said not in write(one).read_text()
    change_metrics(one, label_shift=0.4)
    assert said in write(one).read_text()


def test_what_is_no_report_is_not_overwritten(one: Path) -> None:
    for name in ("report.html", "report.md", "report.csv"):
        before = {file: file.stat().st_mtime_ns for file in one.iterdir()}
        (one / name).write_text("what I think of it")
        with pytest.raises(UserError, match=rf"{name} is not an earlier report"):
            write(one)
        (one / name).unlink()
        assert {file: file.stat().st_mtime_ns for file in one.iterdir()} == before
    write(one)
    write(one)


def test_a_run_that_has_only_begun_is_reported_again(tmp_path: Path) -> None:
    (tmp_path / "begun" / ".hydra").mkdir(parents=True)
    (tmp_path / "begun" / ".hydra" / "overrides.yaml").write_text("[]")
    assert write(tmp_path / "begun") == write(tmp_path / "begun")


def test_a_run_without_a_record_of_what_was_typed_claims_no_command(one: Path) -> None:
    (one / "config.yaml").unlink()
    page = write(one)
    for text in (page.read_text(), page.with_suffix(".md").read_text()):
        assert "Not recorded." in text
        assert "cifar_lightning.train" not in text


def test_a_run_that_goes_on_is_not_what_it_was_before(one: Path) -> None:
    again = {"time": "2026-11-25 00:00:00.000000", "overrides": []}
    changed_record(one, lambda record: record["starts"].append(again))
    log = one / "train.log"
    log.write_text("2026-11-24 23:59:59,999 ERROR cifar_lightning.cli: Before.\n")
    assert RunFolder(one).read().status == "not finished"  # its metrics.json is of the first start
    # The test's row has the whole epoch, where the training ended in the middle of one.
    change_metrics(one, epochs=0.333333, resumes=1)
    curves = one / "metrics.csv"
    curves.write_text("epoch,test/acc\n0.33333334,\n1,0.5\n")
    assert RunFolder(one).read().status == "finished"
    with curves.open("a") as file:
        file.write("0.66666667,\n")
    assert RunFolder(one).read().status == "not finished"
    with log.open("a") as file:
        file.write("2026-11-25 00:00:01,000 ERROR cifar_lightning.cli: After.\n")
    assert (RunFolder(one).read().status, RunFolder(one).read().reason) == ("failed", "After.")


def test_a_run_without_an_evaluation_says_how_to_make_one(one: Path) -> None:
    shutil.rmtree(one / "evaluation")
    checkpoint = shlex.quote(f"checkpoint={one}/checkpoints/best.ckpt")
    html = write(one).read_text()
    assert f"python -m cifar_lightning.evaluate {checkpoint}".replace("'", "&#39;") in html
    assert "This command adds accuracy by class, calibration" in html
    # What the run's own test has plotted is not missing.
    shutil.copy(one / "figures" / "filters.png", one / "figures" / "class_accuracies.png")
    page = write(one)
    for text in (page.read_text(), page.with_suffix(".md").read_text()):
        assert "This command adds calibration, accuracy under corruptions and" in text


def test_a_picture_has_a_title_and_how_to_read_it(one: Path) -> None:
    shutil.copy(one / "figures" / "filters.png", one / "figures" / "my_own.png")
    page = write(one)
    for text in (page.read_text(), page.with_suffix(".md").read_text()):
        assert "grey is a weight of 0, lighter is positive" in text
        assert "My own" in text
    assert "<figcaption><b>My own</b></figcaption>" in page.read_text()


def test_the_same_time_is_shown_once(one: Path) -> None:
    change_metrics(one, seconds_to_target=7.25, train_seconds=7.25)
    assert write(one).read_text().count("<b>7.2 s</b>") == 1
    change_metrics(one, train_seconds=8.5)
    html = write(one).read_text()
    assert "<b>7.2 s</b><span>training to the target" in html
    assert "<b>8.5 s</b><span>training, without validation" in html


def test_what_was_typed_is_typed_again() -> None:
    typed = ["data=folder", "data.path=a b/[1],c'd=e", "seed=1", "+trainer.x='y z'"]
    typed += ["logger.wandb.notes=é: it's 5 %", "logger.wandb.name='plain'", "tags=[a,b]"]
    prepared = prepare_arguments(typed)
    assert shlex.split(train_command(prepared))[3:] == typed
    sweep = ["data.path=a,b", "resume=gone.ckpt"]
    assert shlex.split(train_command(sweep, multirun=True))[3:] == ["-m", *sweep]
    assert shlex.split(train_command(typed[:1], "a b"))[3:] == ["--config-dir", "a b", typed[0]]


def test_what_configurations_came_from_is_in_the_command(one: Path, many: Path) -> None:
    runtime = {"config_sources": [{"path": "/my conf", "provider": "command-line"}]}
    record: dict[str, Any] = {"hydra": {"runtime": runtime}}
    (one / ".hydra").mkdir()
    (one / ".hydra" / "hydra.yaml").write_text(json.dumps(record))
    text = write(one).with_suffix(".md").read_text()
    assert "cifar_lightning.train --config-dir '/my conf' data=" in text
    params = ["hydra.mode=MULTIRUN", 'hydra.sweeper.params={seed:"1,2"}', "hydra.sweep.dir=x"]
    record["hydra"]["overrides"] = {"hydra": params, "task": ["seed=3"]}
    (many / "multirun.yaml").write_text(json.dumps(record))
    command = f"train -m --config-dir '/my conf' '{params[1]}' seed=3\n"
    assert command in write(many).with_suffix(".md").read_text()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"stopped_by": "max_time", "epochs_to_target": None, "epochs": 2, "test/acc": 0.04},
            "It did not reach its target of 5% in 2 epochs, and ended at trainer.max_time.",
        ),
        (
            {"epochs_to_target": None, "test/acc": 0.05, "target_val_acc": 0.061},
            "Its test accuracy reached its target of 5%, but its validation accuracy did not reach "
            "6.10%, at which training stops.",
        ),
        (
            {"epochs_to_target": None, "test/acc": 0.05, "target_val_acc": None},
            "Its test accuracy reached its target of 5%. It ",
        ),
        (
            {"stopped_by": "early_stopping", "monitor": "val/loss", "monitor_value": 2.5},
            "The checkpoint was chosen by val/loss: 2.5.",
        ),
        (
            {"stopped_by": "max_epochs", "epochs_to_target": 1, "seconds_to_target": 2.0},
            "It reached its target of 5% after 1 epoch and 2.0 s of training. "
            "It ended after its last epoch.",
        ),
        (
            {"checkpoint": "last.ckpt", "monitor": None, "val/acc": None},
            "no validation. The last checkpoint was tested.",
        ),
        ({"test/acc": None, "val/acc": 0.5}, "Not tested, validation accuracy 50.00%."),
    ],
)
def test_the_page_says_how_the_training_ended_and_what_was_tested(
    changes: dict[str, Any], sentence: str, one: Path
) -> None:
    changed_record(one, lambda record: record.update(target_accuracy=0.05))
    change_metrics(one, **changes)
    assert sentence in " ".join(content_of(RunFolder(one).read())["sentences"])


def test_a_resumed_run_shows_both_commands(one: Path) -> None:
    last = one / "checkpoints" / "last.ckpt"
    overrides = prepare_arguments(["trainer.max_epochs=9", "target_accuracy=null"])
    again = {"time": "2026-11-25 00:00:00", "overrides": [f"resume='{last}'", *overrides]}
    changed_record(one, lambda record: record["starts"].append(again))
    changed_record(one, lambda record: record.update(target_accuracy=None))
    change_metrics(one, resumes=1)
    html = write(one).read_text()
    assert "It was resumed in the same folder with:" in html
    assert "trainer.max_epochs=9 target_accuracy=null" in html
    assert RunFolder(one).read().settings["trainer.max_epochs"] == "9"
    assert "The run had no target" in html


def a_run(name: str, *overrides: str, **metrics: Any) -> Run:
    figures = {"data": "cifar10", "test/acc": 0.5} | metrics
    figures = {key.replace("_", "/"): value for key, value in figures.items()}
    return Run(Path(name), name, "finished", "", list(overrides), metrics=figures)


def test_runs_are_grouped_by_everything_but_the_seed() -> None:
    runs = [
        a_run("0", "optimizer=sgd", "seed=0", "data=x", val_acc=0.70, test_acc=0.9),
        a_run("1", "seed=0", "optimizer=muon", "data=x", val_acc=0.80),
        a_run("2", "optimizer=sgd", "seed=1", "data=x", val_acc=0.72, test_acc=0.9),
        a_run("3", "data=x", "optimizer=muon", "seed=1", val_acc=0.84),
        a_run("4", "data=x", val_acc=None),
    ]
    groups = groups_of(runs)
    assert [group.name for group in groups] == ["optimizer=muon", "optimizer=sgd", "the defaults"]
    assert [[run.name for run in group.members] for group in groups] == [
        ["1", "3"],
        ["0", "2"],
        ["4"],
    ]
    assert groups[0].format_mean("val/acc") == "82.00 ± 2.83%"
    assert best_run(runs) is runs[3]  # though the test accuracy of others is better
    text = " ".join(summary(runs, groups))
    assert (
        "It is 11.00 points above optimizer=sgd, within the noise of the seeds (95% interval -1.71"
        in text
    )
    assert "never by test accuracy" in text


def test_one_seed_has_no_standard_deviation() -> None:
    runs = [a_run("0", "lr=1", val_acc=0.81), a_run("1", "lr=2", val_acc=0.80)]
    assert groups_of(runs)[0].format_mean("val/acc") == "81.00%"
    assert "±" not in " ".join(summary(runs, groups_of(runs)))


def test_without_validation_or_over_several_data_none_is_the_best() -> None:
    blind = [a_run("0", "seed=0", val_acc=None), a_run("1", "seed=1", val_acc=None)]
    assert "none is chosen as the best" in summary(blind, groups_of(blind))[0]
    mixed = [a_run("0", val_acc=0.9, data="shapes"), a_run("1", val_acc=0.5, data="folder")]
    assert "different data (folder, shapes)" in summary(mixed, groups_of(mixed))[0]


def test_the_newest_run_or_multirun_is_the_one(many: Path, one: Path) -> None:
    with pytest.raises(UserError, match="There is no run in"):
        find_folder(None)
    Path("runs/train").mkdir(parents=True)
    sweep = shutil.copytree(many, "runs/train/2026-11-24_05-00-00-000000_sweep")
    single = shutil.copytree(one, "runs/train/2026-11-24_04-59-59-000000_x")
    Path("runs/train/2026-11-25_00-00-00-000000_empty").mkdir()
    os.utime(single)  # as a report does
    assert find_folder(None) == Path(sweep)
    assert [folder.path.name for folder in run_folders(Path(sweep))] == list("0123")
    earlier = Path(sweep, "0", "before_2026-11-29_10-00-00-123456", ".hydra")
    earlier.mkdir(parents=True)
    (earlier / "overrides.yaml").write_text("[]")
    assert [folder.path.name for folder in run_folders(Path(sweep))] == list("0123")


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("nowhere", "run=nowhere: there is no such folder"),
        ("file", "run=file is a file"),
        ("empty", "run=empty is not a run's folder: it has none of .hydra/overrides.yaml"),
    ],
)
def test_what_is_no_run_is_named(run: str, message: str) -> None:
    Path("file").touch()
    Path("empty").mkdir()
    with pytest.raises(UserError, match=re.escape(message)):
        find_folder(run)


@pytest.mark.parametrize("typed", ["run=a/one,many", "run=[a/one, many]", "run=['a/one','many']"])
def test_runs_in_several_folders_are_compared_in_a_new_one(
    typed: str, one: Path, many: Path
) -> None:
    Path("a").mkdir()
    shutil.copytree(one, "a/one")
    shutil.copytree(many, "many")
    page = report(compose(prepare_arguments([typed]), config_name="report"))
    assert re.fullmatch(r"runs/compare/[\d_-]+", str(page.parent.relative_to(Path.cwd())))
    html = page.read_text()
    assert "<h1>Comparison of 5 runs</h1>" in html
    names = [row["run"] for row in rows_of(page.with_suffix(".csv"))]
    assert names == ["a/one", *(f"many/{number}" for number in range(4))]
    links = re.findall(r'<td[^>]*>(?:<svg.*?</svg>)?\s*<a href="(.*?)"', html, re.DOTALL)
    assert len(links) == 5
    assert all((page.parent / link).is_dir() for link in links)
    assert not Path("many/report.html").exists()
    said = "A setting left empty was not typed"
    assert said not in html
    starts = [{"time": "2026-11-24", "overrides": ["seed=3"]}]
    changed_record(Path("a/one"), lambda record: record.update(starts=starts))
    assert said in write_comparison(find_folders("a/one,many")).read_text()
    assert ">Trained and tested on generated images" in html
    change_metrics(Path("a/one"), data="folder")
    mixed = write_comparison(find_folders("a/one,many")).read_text()
    assert ">Some runs were trained and tested on generated images" in mixed
    assert 'class="best"' not in mixed
    assert "the best configuration" not in mixed


def test_each_of_several_folders_is_checked_and_a_name_may_have_a_comma(one: Path) -> None:
    shutil.copytree(one, "a,b")
    assert find_folders("a,b") == [Path("a,b")]
    shutil.copytree(one, "c")
    assert find_folders("c,c") == [Path("c"), Path("c")]
    assert "Comparison of 1 run<" in write_comparison([Path("c"), Path("c")]).read_text()
    for typed, wrong in (("c,nowhere", "nowhere"), ("[]", r"\[\]"), (",", ",")):
        with pytest.raises(UserError, match=f"run={wrong}: there is no such folder"):
            find_folders(typed)


def test_without_a_browser_the_page_is_named(
    one: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []

    def open_page(url: str) -> bool:
        opened.append(url)
        return has_browser

    monkeypatch.setattr("webbrowser.open", open_page)
    for has_browser in (False, True):
        page = report(compose([f"run='{one}'", "open=true"], config_name="report"))
        output = capsys.readouterr().out
        assert f"report     {page}\n" in output
        assert ("browser    none could be opened" in output) is not has_browser
    assert opened == [page.as_uri()] * 2


def test_the_command_loads_no_torch(one: Path) -> None:
    program = (
        "import sys\nfrom cifar_lightning.report import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program, f"run={one}"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.stdout.splitlines() == [f"report     {one}/report.html", "False"], ended.stderr


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; module-wide, because its event loop would be in the way of others."""
    chromium = shutil.which("chromium")
    if chromium is None:
        not_installed("Chromium opens the pages in these tests: apt-get install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page; in the end there must have been no error, no dialog and no request."""
    faults: list[str] = []
    context = browser.new_context()

    def dismissed(dialog: Dialog) -> None:
        faults.append(dialog.message)
        dialog.dismiss()

    def open_page(path: Path, width: int = 1280, scheme: Any = "light") -> Page:
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", dismissed)
        page.on("request", lambda r: faults.append(r.url) if r.url[:5] not in ALLOWED else None)
        page.goto(path.as_uri())
        return page

    yield open_page
    context.close()
    assert faults == []


ALLOWED = ("file:", "data:")


def column(page: Page, table: str, number: int) -> list[str]:
    cells = page.locator(f"[aria-label='{table}'] tbody td:nth-child({number})")
    return [text.strip() for text in cells.all_inner_texts()]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (375, "dark")])
def test_pages_render_at_any_width(
    one_report: Path, many_report: Path, visit: Callable[..., Page], width: int, scheme: str
) -> None:
    for folder in (one_report, many_report):
        page = visit(folder / "report.html", width, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
        assert all(widths)
        assert len(widths) == (5 if folder == one_report else 0)
        charts = page.locator(".charts svg")
        assert charts.count() == 2
        assert all((box := chart.bounding_box()) and box["height"] > 200 for chart in charts.all())
        paper, ink = (
            page.evaluate(f"getComputedStyle(document.body).{name}")
            for name in ("backgroundColor", "color")
        )
        brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink)]
        assert brightness == sorted(brightness, reverse=scheme == "light")


@pytest.mark.slow
def test_a_click_sorts_by_value_and_another_turns_the_order(
    many: Path, visit: Callable[..., Page]
) -> None:
    for name, rate in zip("02", (10_000.0, 900.0), strict=True):
        change_metrics(many / name, images_per_s=rate)
    page = visit(write(many))
    table = page.get_by_role("region", name="Metrics of all runs")
    heading = table.get_by_role("columnheader", name="images/s")
    assert column(page, "Metrics of all runs", 1) == list("0123")
    heading.get_by_role("button").click()
    assert column(page, "Metrics of all runs", 1) == list("2013")  # what has none stays last
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert column(page, "Metrics of all runs", 1) == list("0213")
    assert heading.get_attribute("aria-sort") == "descending"
    table.get_by_role("button", name="optimizer.lr").click()
    assert heading.get_attribute("aria-sort") == "none"
    assert column(page, "Metrics of all runs", 2) == ["-1", "-1", "0.02", "0.02"]


@pytest.mark.slow
def test_pointing_at_a_run_shows_its_curve_alone(
    many_report: Path, visit: Callable[..., Page]
) -> None:
    page = visit(many_report / "report.html")
    row = page.locator("[aria-label='Metrics of all runs'] tbody tr").nth(0)
    row.hover()
    assert page.locator("g.faint").count() == 2  # another run in two charts
    shown = page.locator(f"g[id$='-{row.get_attribute('data-run')}']:not(.faint)")
    assert shown.count() == 2
    page.locator("h1").hover()
    assert page.locator("g.faint").count() == 0


@pytest.mark.slow
def test_hostile_text_stays_text(one: Path, many: Path, visit: Callable[..., Page]) -> None:
    for folder, run in ((one, one), (many, many / "0")):
        change_metrics(run, device=HOSTILE, model=HOSTILE)
        changed_record(run, lambda record: record.update(x=HOSTILE))
        changed_record(run, lambda record: record["starts"][0]["overrides"].append(f"x={HOSTILE}"))
        page = visit(write(folder))
        assert HOSTILE in page.locator("main").inner_text()
        assert page.locator("main script, main img[src=x]").count() == 0
        markdown = (folder / "report.md").read_text()
        text = "\n".join(line for line in markdown.splitlines() if not line.startswith("    "))
        assert "<script" not in text.replace("\\<", "")


def test_a_class_is_taken_for_another_one() -> None:
    table = evaluation_tables.by_class(
        {"test/acc_by_class": {"a": 0.7, "b": 1.0}, "confusion_matrix": [[7, 3], [0, 4]]}
    )
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["a", "70.00%", "b", "30.00%"],
        ["b", "100.00%", "", ""],
    ]


@pytest.mark.parametrize("name", ["config.yaml", ".hydra/config.yaml", ".hydra/overrides.yaml"])
def test_code_in_a_runs_folder_is_not_run(name: str, one: Path) -> None:
    if name.startswith(".hydra"):
        (one / "config.yaml").unlink()
    code = "!!python/object/apply:os.mkdir [was_called]\n"
    (one / ".hydra").mkdir()
    (one / name).write_text(code)
    assert write(one).is_file()
    assert not Path("was_called").exists()
    yaml.unsafe_load(code)  # it would have been
    assert Path("was_called").is_dir()
