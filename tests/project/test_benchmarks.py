"""The benchmarks run and print their line of JSON; the values are not checked."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from PIL import Image

from cifar_lightning.config.compose import CONF
from cifar_lightning.data.shapes import SHAPES
from cifar_lightning.tracking.run_folder import RunFolder

SMALL = [option for option in TINY if not option.startswith(("logger", "trainer.max_epochs"))]


def last_line(script: str, *options: str, **environment: str) -> dict[str, Any]:
    ended = subprocess.run(
        [sys.executable, str(CONF.parent / "benchmarks" / script), *SMALL, *options],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    return dict(json.loads(ended.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_throughput_compares_pipelines_and_settings() -> None:
    settings = {"BATCH_SIZES": "25", "PRECISIONS": "32-true", "SETTING_ROUNDS": "1"}
    images = {"IMAGES": "50", "SETTING_IMAGES": "50"}
    summary = last_line("throughput.py", ROUNDS="1", WORKERS="1", **images, **settings)
    for pipeline in ("alone", "bare", "conventional"):
        rate = summary[f"{pipeline}_images_per_s"]
        assert summary[f"ratio_vs_{pipeline}"] == pytest.approx(
            summary["images_per_s"] / rate, rel=0.01
        )
    measured = summary["settings"]
    assert [(s["batch_size"], s["compile"]) for s in measured] == [(25, False), (25, True)]
    for s in measured:
        tflops = s["images_per_s"] * 6 * 44_167_744 / 1e12
        assert s["share_of_peak"] == pytest.approx(tflops / s["peak_tflops"], rel=0.05)
    assert [s["compile_seconds"] > 0 for s in measured if s["compile"]] == [True]


@pytest.mark.slow
def test_time_to_target_measures_each_recipe_once(tmp_path: Path) -> None:
    environment = {
        "EXPERIMENTS": "default,conventional",
        "SEEDS": "0",
        "CONVENTIONAL_EPOCHS": "2",
        "WORKERS": "1",
        "FOLDER": str(tmp_path / "results"),
    }
    options = ("trainer.max_epochs=1", "target_accuracy=null", "data.train_size=400")
    first = last_line("time_to_target.py", *options, **environment)
    assert [r["experiment"] for r in first["recipes"]] == ["default", "conventional"]
    default, conventional = first["recipes"]
    assert (default["seeds"], default["train_images"]) == (1, 350)
    assert conventional["train_images"] == 2 * 256
    runs = (tmp_path / "results" / "runs.jsonl").read_text()
    assert len(runs.splitlines()) == 2
    for line in runs.splitlines():
        figures = json.loads(line)
        seconds, accuracy = figures["curve"][-1]
        assert seconds == pytest.approx(figures["train_seconds"], rel=0.01)
        assert accuracy == pytest.approx(figures["val/acc"], abs=1e-5)
    with Image.open(tmp_path / "results" / "time_to_target.png") as picture:
        assert picture.size == (960, 540)
    assert (tmp_path / "results" / "table.md").read_text().count("\n| ") == 2
    # A second start finds everything measured.
    assert last_line("time_to_target.py", *options, **environment) == first
    assert (tmp_path / "results" / "runs.jsonl").read_text() == runs


@pytest.mark.slow
def test_the_cold_start_ends_at_the_first_training_step(tmp_path: Path) -> None:
    benchmark = runpy.run_path(str(CONF.parent / "benchmarks" / "cold_start.py"))
    program = (sys.executable, "-c", benchmark["UNTIL_THE_FIRST_STEP"])
    options = (*SMALL, "logger=csv", f"hydra.run.dir={tmp_path}")
    assert benchmark["seconds"]("first step", *program, *options, folder=CONF.parent) > 0
    assert (tmp_path / "config.yaml").exists()
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.slow
def test_the_stop_rule_is_judged_for_all_weights_and_margins() -> None:
    summary = last_line("stop_rule.py", "trainer.max_epochs=2", SEEDS="0,1")
    rules = summary["rules"]
    assert len(rules) == 3 * 4 * 5
    assert {rule["weights"] for rule in rules} == {"last", "average 0.95", "average 0.98"}
    assert all(0 <= rule["kept"] <= 1 for rule in rules)


@pytest.mark.slow
def test_scaling_compares_one_process_with_two() -> None:
    options = ("trainer.max_epochs=1", "data.batch_size=50")  # which two devices can share
    only_one = {"COMPARISONS": "processes", "ROUNDS": "1"}  # a third of the programs to start
    found = last_line("scaling.py", *options, **only_one)["processes"]
    assert found["ratio"] == pytest.approx(found["2"] / found["1"], rel=0.1)
    assert found["2"] > 0


@pytest.mark.slow
def test_wandb_is_compared_with_none() -> None:
    summary = last_line("wandb_overhead.py", ROUNDS="2")
    for name in ("norm", "wandb"):
        low, high = summary[f"range_{name}"]
        assert 0 < low <= summary[f"ratio_{name}"] <= high
        assert summary[f"{name}_seconds_beside"] > 0


@pytest.mark.slow
def test_networks_are_compared_and_interrupted_runs_are_resumed(tmp_path: Path) -> None:
    environment = {
        "EXPERIMENTS": "best_dilated_dw,best_257k",
        "SEEDS": "0",
        "ROUNDS": "1",
        "FOLDER": str(tmp_path / "results"),
    }
    options = ("trainer.max_epochs=1",)
    first = last_line("pareto.py", *options, **environment)
    assert [n["experiment"] for n in first["networks"]] == ["best_257k", "best_dilated_dw"]
    for network in first["networks"]:
        assert (network["seeds"], network["epochs"]) == (1, 1)
        assert network["train_images_per_s"] > 0
    assert [n["params"] for n in first["networks"]] == [256_014, 257_856]
    with Image.open(tmp_path / "results" / "pareto.png") as picture:
        assert picture.size == (960, 540)
    assert (tmp_path / "results" / "table.md").read_text().count("\n| ") == 2
    figures = json.loads((tmp_path / "results" / "best_dilated_dw_0.json").read_text())
    assert (figures["classes"], figures["image_size"]) == ([*SHAPES], 32)
    # A second start needs only the figures of a finished run, and resumes an unfinished one.
    results = tmp_path / "results"
    shutil.rmtree(results / "best_257k_0")
    (results / "best_dilated_dw_0.json").unlink()
    (results / "best_dilated_dw_0" / "metrics.json").unlink()
    second = last_line("pareto.py", *options, **environment)
    for key in ("test/acc", "test/acc_flip", "train_tflop"):
        assert [n[key] for n in second["networks"]] == [n[key] for n in first["networks"]]
    assert len(RunFolder(results / "best_dilated_dw_0").starts()) == 2
    assert not (results / "best_257k_0").exists()


@pytest.mark.parametrize("params", [20_000, 40_000_000])
def test_a_network_of_any_size_is_in_the_picture(params: int) -> None:
    pareto = runpy.run_path(str(CONF.parent / "benchmarks" / "pareto_picture.py"))
    own = {"experiment": "own", "params": params, "test/acc": 0.5}
    (axes,) = pareto["picture"]([own], "data=cifar10", sorted(pareto["CIFAR10"])).axes
    for x, y in ((params, 0.5), *pareto["PUBLISHED"].values()):
        assert axes.get_xlim()[0] < x < axes.get_xlim()[1]
        assert axes.get_ylim()[0] < y < axes.get_ylim()[1]
    assert "own" in [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(
    ("experiment", "other", "message"),
    [
        ("sgd", {"data": "cifar10"}, "other_0.json is of data=cifar10, not shapes, and one table"),
        ("sgd", {"classes": ["flat", "steep"]}, "is of classes=['flat', 'steep'], not ['bar',"),
        ("tinny", {}, "There is no experiment=tinny."),
    ],
)
def test_runs_that_do_not_fit_the_table_are_refused_before_training(
    experiment: str,
    other: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fits = {"data": "shapes", "classes": [*SHAPES], "image_size": 32}
    (tmp_path / "other_0.json").write_text(json.dumps(fits | other))
    benchmarks = CONF.parent / "benchmarks"
    monkeypatch.syspath_prepend(benchmarks)
    monkeypatch.setenv("EXPERIMENTS", experiment)
    monkeypatch.setenv("FOLDER", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["pareto.py", "data=shapes"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(benchmarks / "pareto.py"), run_name="__main__")
    assert message in f"{end.value}{capsys.readouterr().err}"
    assert end.value.code != 0
    assert [path.name for path in tmp_path.iterdir()] == ["other_0.json"]


@pytest.mark.slow
def test_dilated_depthwise_convolutions_are_compared_with_pytorchs_own() -> None:
    measured = last_line("depthwise.py", ROUNDS="2")["milliseconds"]
    assert [(m["channels"], m["size"]) for m in measured] == [(64, 16), (128, 8)]
    layers = ("pytorch", "ours", "undilated", "undilated 5x5", "undilated 7x7")
    assert all(m[name] > 0 for m in measured for name in layers)
