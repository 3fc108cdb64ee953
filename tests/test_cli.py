import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cifar_lightning.cli import compose, prepare_arguments
from cifar_lightning.errors import UserError


def command(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cifar_lightning.train", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | (env or {}),
        timeout=120,
    )


def composed_path(typed: str) -> str:
    return str(compose(prepare_arguments([f"data.path={typed}", "data=folder"])).data.path)


@pytest.mark.parametrize(
    "path",
    [
        "plain/path.tar.xz",
        "with space/a b.zip",
        "lr=0.1/x",
        "a(1)/b[2]/c{3}",
        "it's",
        "back\\slash'quote",
        "Bücher/画像",
        "~/data",
        "trailing\\",
        "\\'\\\\'x\\\\",
    ],
)
def test_paths_need_no_quotes(path: str) -> None:
    assert composed_path(path) == path


def test_quoted_paths_stay_as_they_are() -> None:
    assert composed_path("'a b'") == "a b"
    assert composed_path('"a b"') == "a b"


def test_a_comma_makes_a_sweep_unless_such_a_file_exists(tmp_path: Path) -> None:
    assert prepare_arguments(["data.path=a,b"]) == ["data.path=a,b"]
    (tmp_path / "a,b").touch()
    assert prepare_arguments(["data.path=a,b"]) == ["data.path='a,b'"]


def test_other_options_are_left_to_hydra() -> None:
    typed = ["-m", "seed=1,2", "trainer.gpus=[0,1]", "experiment=x"]
    assert prepare_arguments(typed) == typed


def test_a_resumed_run_goes_on_in_its_folder(tmp_path: Path) -> None:
    checkpoint = tmp_path / "a run" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    prepared = prepare_arguments([f"resume={checkpoint}"])
    assert f"hydra.run.dir='{tmp_path}/a run'" in prepared
    assert any(argument.startswith("hydra.output_subdir=.hydra/resumed_") for argument in prepared)
    moved = tmp_path / "last.ckpt"
    moved.touch()
    assert prepare_arguments([f"resume={moved}"]) == [f"resume={moved}"]


def test_a_missing_checkpoint_is_named_at_once() -> None:
    with pytest.raises(UserError, match=r"resume=none\.ckpt: there is no such file"):
        prepare_arguments(["resume=none.ckpt"])


def test_compose_tells_the_options_the_folder_and_the_name(tmp_path: Path) -> None:
    config = compose(["optimizer=sgd"], tmp_path / "2026_run")
    assert config.choices.optimizer == "sgd"
    assert config.choices.model == "dilated_dw"
    assert config.run_dir == str(tmp_path / "2026_run")
    assert re.fullmatch("2026_run-[0-9a-f]{6}", config.run_id)
    job = compose([], tmp_path / "2026 sweep" / "3")
    assert re.fullmatch("2026-sweep-3-[0-9a-f]{6}", job.run_id)


MESSAGES: list[tuple[Sequence[str], Sequence[str]]] = [
    (["modle=dilated_dw"], ["There is no 'modle'", "Did you mean model"]),
    (
        ["model=dilated_wd"],
        [
            "There is no model=dilated_wd. The options of model: dilated_dw.",
            "Did you mean dilated_dw?",
        ],
    ),
    (
        ["trainer.max_epoch=3"],
        ["There is no 'trainer.max_epoch'", "Did you mean trainer.max_epochs", "+KEY=VALUE"],
    ),
    (["max_epochs=3"], ["There is no 'max_epochs'", "trainer.max_epochs"]),
    (["optimizer=sgd", "optimizer.lrr=3"], ["There is no 'optimizer.lrr'", "optimizer.lr"]),
    (["data.path=x"], ["There is no 'data.path'", "It belongs to data=folder"]),
    (["data=shapes", "data.trainsize=9"], ["There is no 'data.trainsize'", "data.train_size"]),
    (["seed=(1"], ["seed=(1"]),
    (["resume=none.ckpt"], ["resume=none.ckpt: there is no such file"]),
    (["data=shapes", "augment.flip=up"], ["augment: flip must be none, random", "'up'"]),
    (["data=shapes", "trainer.gpus=99"], ["trainer.gpus=99, but this machine has"]),
    (["data=shapes", "trainer.max_epochs=0"], ["trainer.max_epochs=0 is not a count from 1"]),
    (["data=shapes", "seed=null"], ["seed=None is not an integer"]),
    (["data=shapes", "data.batch_size=0"], ["data.batch_size=0 is not from 1 to 4500"]),
    (["data=shapes", "optimizer.lr=-1"], ["optimizer: lr must not be negative, not -1"]),
    (["data=shapes", "scheduler.warmup=2"], ["scheduler: warmup must be at least 0 and below 1"]),
    (["data=shapes", "augment.shift=40"], ["augment: max_shift must be from 0 to 31, not 40"]),
    (["data=shapes", "target_accuracy=80"], ["target_accuracy=80 is not a number from 0 to 1"]),
    (
        ["data=shapes", "data.val_size=abc"],
        ["data.val_size=abc of 5000 training images", "a fraction such as 0.1"],
    ),
    (["data=shapes", "data.batch_size=2.5"], ["data.batch_size=2.5 is not from 1 to 4500"]),
    (["data=shapes", "budget.max_params=abc"], ["budget: "]),
    (["data=shapes", "label_smoothing=2"], ["label_smoothing must be from 0 to 1, not 2"]),
    (["data=shapes", "data.val_size=0"], ["data.val_size=0", "target_accuracy=null"]),
    (
        ["data=shapes", "budget.max_params=1000"],
        ["257,856 parameters, 256,856 more than budget.max_params=1,000"],
    ),
    (["data=folder", "data.path=no where"], ["no where: there is no such file"]),
]


@pytest.mark.parametrize(("typed", "expected"), MESSAGES, ids=lambda x: "_".join(x[:2])[:40])
def test_a_mistake_ends_in_one_message_and_exit_code_1(
    typed: Sequence[str], expected: Sequence[str]
) -> None:
    ended = command(*typed)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert ended.stderr.startswith("\nError: ")  # nothing of Hydra's before it
    assert ended.stderr.count("Error: ") == 1
    for part in expected:
        assert part in ended.stderr
    assert not list(Path.cwd().rglob("metrics.json"))


def test_the_traceback_is_there_for_who_asks() -> None:
    ended = command("modle=dilated_dw", env={"HYDRA_FULL_ERROR": "1"})
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


def test_help_and_config_load_no_torch() -> None:
    for arguments in (["--help"], ["--cfg", "job"]):
        program = (
            f"import sys; sys.argv[1:] = {arguments!r}\n"
            "import atexit; atexit.register(lambda: print('torch' in sys.modules))\n"
            "from cifar_lightning.train import main; main()"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
        )
        assert ended.returncode == 0, ended.stderr
        assert "dilated_dw" in ended.stdout or "DilatedDW" in ended.stdout
        assert ended.stdout.endswith("False\n")
