import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import TINY
from programs import hydra_restored, run_command

from cifar_lightning.config.compose import CONF, compose
from cifar_lightning.config.overrides import prepare_arguments
from cifar_lightning.errors import UserError
from cifar_lightning.train import main

Message = Callable[..., str]


def options(group: str) -> list[str]:
    """Of a group, in order: a checkout may have some of its own."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed_path(typed: str) -> str:
    return str(compose(prepare_arguments([f"data.path={typed}", "data=folder"])).data.path)


@pytest.mark.parametrize(
    "path",
    [
        "plain/path.tar.xz",
        "with space/a b.zip",
        "lr=0.1/x",
        "a(1)/b[2]/c{3}",
        "[1].png",
        "it's",
        "back\\slash'quote",
        "Bücher/画像",
        "2024",
        "true",
        "http://host/a?b=1&c={2}",
        "trailing\\",
        "\\'\\\\'x\\\\",
    ],
)
def test_paths_need_no_quotes(path: str) -> None:
    assert composed_path(path) == path


def test_quoted_paths_stay_as_they_are() -> None:
    assert composed_path("'a b'") == "a b"
    assert composed_path('"a b"') == "a b"


def test_a_home_folder_is_found() -> None:
    assert composed_path("~/data") == str(Path.home() / "data")


def test_a_comma_makes_a_sweep_where_one_is_typed_and_no_such_file_exists(tmp_path: Path) -> None:
    assert prepare_arguments(["data.path=a,b"]) == ["data.path='a,b'"]
    for multirun in ("-m", "--multirun"):
        assert prepare_arguments([multirun, "data.path=a,b"]) == [multirun, "data.path=a,b"]
    (tmp_path / "a,b").touch()
    assert prepare_arguments(["-m", "data.path=a,b"]) == ["-m", "data.path='a,b'"]


def test_a_file_without_a_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "b.png").touch()
    with pytest.raises(UserError, match=r"b\.png: expected KEY=VALUE"):
        prepare_arguments(["images=a.png", "b.png"])
    # The value of one of Hydra's own options may be a file's name.
    assert prepare_arguments(["--config-dir", str(tmp_path)]) == ["--config-dir", str(tmp_path)]


def test_other_options_are_left_to_hydra() -> None:
    typed = ["-m", "seed=1,2", "trainer.gpus=[0,1]", "experiment=x", "resume=null"]
    assert prepare_arguments(typed) == typed


def test_compose_tells_the_options_the_folder_and_the_name(tmp_path: Path) -> None:
    config = compose(["optimizer=sgd"], tmp_path / "2026_run")
    assert config.choices.optimizer == "sgd"
    assert config.choices.model == "dilated_dw"
    assert config.run_dir == str(tmp_path / "2026_run")
    assert re.fullmatch("2026_run-[0-9a-f]{6}", config.run_id)
    job = compose([], tmp_path / "2026 sweep" / "3")
    assert re.fullmatch("2026-sweep-3-[0-9a-f]{6}", job.run_id)


def test_a_composed_run_has_its_folder_where_a_typed_one_has(tmp_path: Path) -> None:
    assert Path(compose().run_dir).parent == tmp_path / "runs" / "train"
    assert Path(compose(["debug=fast"]).run_dir).parent == tmp_path / "runs" / "debug"


def test_no_experiment_may_be_typed() -> None:
    assert prepare_arguments(["experiment=null", "seed=1"]) == ["seed=1"]


FEW = [option for option in TINY if option.startswith("data")]  # 150 training images

# What is typed, and what the message says of it. With a word for the reader: would you know what to
# do now?
MESSAGES: list[tuple[Sequence[str], Sequence[str]]] = [
    # names
    (["modle=dilated_dw"], ["There is no 'modle'", "Did you mean model"]),
    (
        ["model=dilated_wd"],
        [
            f"There is no model=dilated_wd. The options of model: {', '.join(options('model'))}.",
            "Did you mean dilated_dw?",
        ],
    ),
    (["experiment=sdg"], ["The options of experiment: ", "Did you mean sgd?"]),
    (
        ["trainer.max_epoch=3"],
        ["There is no 'trainer.max_epoch'", "Did you mean trainer.max_epochs", "+KEY=VALUE"],
    ),
    (["max_epochs=3"], ["There is no 'max_epochs'", "trainer.max_epochs"]),
    (["optimizer=sgd", "optimizer.lrr=3"], ["There is no 'optimizer.lrr'", "optimizer.lr"]),
    (["data.path=x"], ["There is no 'data.path'", "It belongs to data=folder"]),
    (["data=shapes", "data.trainsize=9"], ["There is no 'data.trainsize'", "data.train_size"]),
    (
        ["+trainer.max_step=3"],
        ["trainer.max_step: Trainer has no such argument. Did you mean trainer.max_steps"],
    ),
    (["+optimizer.beta=3"], ["optimizer.beta: Muon has no such argument."]),
    (["optimizer._target_=torch.optim.SGDD"], ["optimizer._target_=torch.optim.SGDD: ", "SGDD"]),
    (["model._target_=no.such.Network"], ["model._target_=no.such.Network: No module named 'no'"]),
    (["seed=(1"], ["seed=(1"]),
    (["seed", "=1"], ["=1: no space belongs before the equals sign"]),
    (["seed=1,2"], ["Ambiguous value for argument 'seed=1,2'", "--multirun"]),
    # kinds
    (["optimizer.lr=abc"], ["optimizer.lr=abc should be a valid number."]),
    (["optimizer=sgd", "optimizer.lr=null"], ["optimizer.lr=null should be a valid number."]),
    (["trainer.compile=perhaps"], ["trainer.compile=perhaps should be a valid boolean."]),
    (["trainer.deterministic=5"], ["=5 should be a valid boolean or 'warn'."]),
    (["augment.flip=up"], ["augment.flip=up should be 'none', 'random' or 'alternating'."]),
    (["budget.max_params=1e5x"], ["budget.max_params=1e5x should be a valid number."]),
    (["trainer.max_epochs=null"], ["trainer.max_epochs=null is not a count from 1"]),
    (
        ["experiment=null,sgd", "-m"],
        [f"needs an option: {', '.join(options('experiment'))}."],
    ),
    (
        ["augment=null"],
        [f"augment=null: this group needs an option: {', '.join(options('augment'))}."],
    ),
    (["budget=null"], ["budget=null is neither an option nor a group of keys."]),
    (["callbacks.best=null"], ["callbacks.best cannot be removed"]),
    (
        ["callbacks.last.dirpath=/x"],
        ["last.dirpath=/x is not a folder in the run's", "leave it out"],
    ),
    (["callbacks.nan=false"], ["callbacks.nan has no _target_", "false"]),
    (["+callbacks.mine.x=1"], ["callbacks.mine has no _target_, the class or function to call"]),
    (["data.mirrors=x"], ["data.mirrors=x should be a list, as in [a,b]."]),
    (["data.val_size=abc"], ["data.val_size=abc should be a valid integer or a valid number."]),
    (["seed=true"], ["seed=true should be a valid integer."]),
    (["target_accuracy=80%"], ["target_accuracy=80% should be a valid number."]),
    (["cutmix=1.5"], ["cutmix=1.5 is not from 0 to 1, as 0.5."]),
    (["plots=no"], ["plots=no should be a valid boolean."]),
    (["~plots"], ["plots cannot be removed"]),
    (
        ["+budget.max_param=3"],
        ["budget.max_param: check has no such argument. Did you mean budget.max_params"],
    ),
    (["rehearse_without_data=2"], ["rehearse_without_data=2 should be a valid boolean."]),
    # ranges
    ([*FEW, "optimizer.lr=-1"], ["optimizer: lr must not be negative, not -1"]),
    ([*FEW, "optimizer.momentum=1"], ["momentum must be at least 0 and below 1, not 1"]),
    ([*FEW, "scheduler.warmup=2"], ["scheduler: warmup must be at least 0 and below 1"]),
    ([*FEW, "augment.shift=40"], ["augment: max_shift must be from 0 to 31, not 40"]),
    ([*FEW, "label_smoothing=2"], ["label_smoothing must be from 0 to 1, not 2"]),
    ([*FEW, "target_accuracy=80"], ["target_accuracy=80 is not from 0 to 1, as 0.8"]),
    (["target_confidence=1"], ["target_confidence=1 is not from 0.5 to below 1, as 0.9."]),
    ([*FEW, "callbacks.nan.every_n_steps=0"], ["every_n_steps must be at least 1"]),
    ([*FEW, "trainer.gpus=99"], ["trainer.gpus=99, but this machine has"]),
    (
        [*FEW, "trainer.gpus=[7,8]"],
        ["trainer.gpus=[7, 8] names a GPU", "this machine has"],
    ),
    ([*FEW, "trainer.gpus=two"], ["is not auto, a count from 0, or a list as in [0,2]"]),
    ([*FEW, "trainer.max_epochs=0"], ["trainer.max_epochs=0 is not a count from 1"]),
    ([*FEW, "trainer.num_nodes=2"], ["num_nodes=2, but this process was started alone"]),
    ([*FEW, "trainer.val_check_interval=0"], ["val_check_interval=0 is not above 0"]),
    ([*FEW, "trainer.val_check_interval=nan"], ["val_check_interval=nan is not above 0"]),
    ([*FEW, "trainer.val_check_interval=2.5"], ["2.5", "[0.0, 1.0] or an int"]),
    ([*FEW, "trainer.precision=8"], ["trainer: Precision 8 is invalid", "bf16-mixed"]),
    ([*FEW, "data.train_size=3"], ["data: train_size must be at least 10, not 3"]),
    ([*FEW, "data.image_size=0"], ["data: image_size must be at least 8, not 0"]),
    ([*FEW, "data.batch_size=0"], ["data.batch_size=0 is not from 1 to 150"]),
    ([*FEW, "data.batch_size=9999"], ["is not from 1 to 150, the number of training"]),
    ([*FEW, "data.val_size=0"], ["data.val_size=0", "target_accuracy=null"]),
    ([*FEW, "data.val_size=-2"], ["data.val_size=-2 of 200", "a fraction such as 0.1"]),
    (
        [*FEW, "budget.max_params=1000"],
        ["257,856 parameters, 256,856 more than budget.max_params=1,000", "null"],
    ),
    ([*FEW, "budget.min_dilated=9"], ["8 fewer than budget.min_dilated=9"]),
    # files
    (["resume=none.ckpt"], ["resume=none.ckpt: there is no such file"]),
    (["resume=."], ["resume=. is a folder. Name a checkpoint, such as checkpoints/last.ckpt"]),
    (["resume="], ["resume= names no file or folder"]),
    ([f"resume={__file__}"], ["test_cli.py is not in its run's folder", "config.yaml"]),
    (
        ["data.mirrors=[http://127.0.0.1:9/x.tar.gz]", "data.root=none"],
        [
            "http://127.0.0.1:9/x.tar.gz: [Errno 111] Connection refused",
            "data=folder data.path=",
            "data=shapes",
        ],
    ),
    (["data=folder", "data.path="], ["data.path= names no file or folder"]),
    (["data=folder", "data.path=no where"], ["no where: there is no such file"]),
    (["data=folder", f"data.path={__file__}"], ["test_cli.py is damaged or not an archive"]),
    (
        ["data=folder", f"data.path={CONF}"],
        ["conf holds no images for train and test. Expected: train/<class>/* and test/<class>/*."],
    ),
    (
        ["data.root=/proc/x", "data.mirrors=[]"],
        ["No such file or directory (/proc/x)", "data."],
    ),
    (["hydra.run.dir=/proc/x"], ["No such file or directory (/proc/x)", "hydra.run.dir=FOLDER"]),
    (
        [f"hydra.run.dir={__file__}/x"],
        ["A file is where a folder is needed", "hydra.run.dir=FOLDER"],
    ),
    # divergence
    (
        [*TINY, "optimizer.lr=nan"],
        ["The loss became NaN or infinite: step 2, in epoch 1", "optimizer.lr"],
    ),
]


@pytest.fixture
def message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Message:
    """What the command ends with: the program itself, in this process to spare its start."""

    def run_here(*typed: str) -> str:
        monkeypatch.setattr(sys, "argv", ["cifar-train", *typed])
        with hydra_restored(), pytest.raises(SystemExit) as ended:
            main()
        assert capsys.readouterr().err == ""  # nothing of Hydra's before it
        assert isinstance(ended.value.code, str)  # which is exit code 1
        return ended.value.code

    return run_here


@pytest.mark.parametrize(("typed", "expected"), MESSAGES, ids=lambda x: x[-1][:60])
def test_a_mistake_ends_in_one_message(
    typed: Sequence[str], expected: Sequence[str], message: Message
) -> None:
    said = message(*typed)
    assert said.startswith("\nError: ")
    assert said.count("Error: ") == 1
    for part in expected:
        assert part in said
    assert not list(Path.cwd().rglob("metrics.json"))


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["modle=dilated_dw"], "Error: There is no 'modle'"),
        (["--hlep"], "unrecognized arguments: --hlep"),
    ],
)
def test_a_mistake_has_exit_code_1_and_no_traceback(typed: Sequence[str], expected: str) -> None:
    ended = run_command("train", *typed)
    assert ended.returncode == 1
    assert expected in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_traceback_is_there_for_who_asks() -> None:
    ended = run_command("train", "modle=dilated_dw", env=os.environ | {"HYDRA_FULL_ERROR": "1"})
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


def test_help_configuration_and_mistyped_names_load_no_torch() -> None:
    for arguments, says in (
        (["--help"], "Powered by Hydra"),
        (["--cfg", "job"], "DilatedDW"),
        (["modle=x"], "There is no 'modle'"),
    ):
        program = (
            f"import sys; sys.argv[1:] = {arguments!r}\n"
            "import atexit; atexit.register(lambda: print('torch' in sys.modules))\n"
            "from cifar_lightning.train import main; main()"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
        )
        assert says in ended.stdout + ended.stderr
        assert ended.stdout.endswith("False\n")
