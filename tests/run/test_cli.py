import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
import pytest
import pytorch_lightning as pl
from conftest import TINY, exist
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from programs import hydra_restored, run_command

from cifar_lightning.config.compose import CONF, compose
from cifar_lightning.config.messages import explain
from cifar_lightning.config.options import plain_arguments
from cifar_lightning.config.overrides import check_folders, prepare_arguments
from cifar_lightning.errors import UserError
from cifar_lightning.train import main

Message = Callable[..., str]


def options(group: str) -> list[str]:
    """Of a group, in order: a checkout may have some of its own."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def read_by_hydra(*typed: str) -> Override:
    """The override that Hydra reads from what is made of what was typed."""
    *_, prepared = prepare_arguments(typed)
    return OverridesParser.create().parse_override(prepared)


def path_for_hydra(typed: str) -> object:
    return read_by_hydra(f"data.path={typed}").value()


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
    assert path_for_hydra(path) == path


def test_quotes_and_a_home_folder_mean_what_they_mean_to_a_shell() -> None:
    assert path_for_hydra("'a b'") == path_for_hydra('"a b"') == "a b"
    assert path_for_hydra("~/data") == str(Path.home() / "data")


def test_a_comma_makes_a_sweep_where_one_is_typed_and_no_such_file_exists(tmp_path: Path) -> None:
    assert prepare_arguments(["data.path=a,b"]) == ["data.path='a,b'"]
    for multirun in ("--multirun", "hydra.mode='Multirun'"):
        assert prepare_arguments([multirun, "data.path=a,b"]) == [multirun, "data.path=a,b"]
    # But there is one folder for a sweep.
    assert prepare_arguments(["--multirun", "hydra.sweep.dir=a, b"])[1] == "hydra.sweep.dir='a, b'"
    (tmp_path / "a,b").touch()
    assert prepare_arguments(["--multirun", "data.path=a,b"])[1] == "data.path='a,b'"


@pytest.mark.parametrize(
    "text",
    [
        "50%",
        "é",
        "{epoch}-{step}",
        "{epoch:02d}-{val/loss:.2f}",
        "epoch={epoch}",
        "it's 5 %, or 6",
        "#1; (a & b",
        "two\nlines",
        "foo(bar)",
        "é of seed ${seed}",
    ],
)
def test_a_text_needs_no_quotes(text: str) -> None:
    assert read_by_hydra(f"logger.wandb.notes={text}").value() == text


def test_texts_in_a_list_or_a_sweep_need_no_quotes() -> None:
    assert read_by_hydra("logger.wandb.tags=[é, a=b,c,3]").value() == ["é", "a=b", "c", 3]
    swept = read_by_hydra("--multirun", "logger.wandb.notes=é,a=b,c,3")
    assert [*swept.sweep_string_iterator()] == ["'é'", "'a=b'", "c", "3"]


def test_what_hydra_reads_stays_as_it_is() -> None:
    typed = [
        "seed=1,2",
        "a=choice(x,y)",
        "b=range(1,3)",
        "c=${d}",
        "e={f:[1]}",
        "+g='1'",
        "~h",
        "i=",
    ]
    assert prepare_arguments(["--multirun", *typed]) == ["--multirun", *typed]


@pytest.mark.parametrize(
    ("typed", "plain"),
    [
        ("-m seed=1,2", "--multirun seed=1,2"),
        ("--run -cjob seed=1", "--cfg=job --run seed=1"),
        ("seed=1,2 --mult ~x", "--multirun seed=1,2 ~x"),
        ("seed=1 -cd mine a=b", "--config-dir=mine seed=1 a=b"),
        ("--config-d mine -c job -p optimizer", "--cfg=job --package=optimizer --config-dir=mine"),
        ("-sc query=bash", "--shell-completion query=bash"),
        ("+resume=x ++hydra.run.dir=y ++seed=1", "resume=x hydra.run.dir=y ++seed=1"),
        ("logger.wandb.notes=a+resume=b", "logger.wandb.notes=a+resume=b"),
    ],
)
def test_options_are_known_by_any_of_their_names(typed: str, plain: str) -> None:
    assert plain_arguments(typed.split(), "train") == plain.split()
    assert plain_arguments(plain.split(), "train") == plain.split()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("seed=1 --config-dir", "--config-dir/-cd needs a value."),
        ("--cfg job=3", "--cfg/-c is job, hydra or all."),
        ("-mz", "--multirun/-m takes no value."),
        ("--c job", "ambiguous option: --c could match --cfg"),
    ],
)
def test_what_is_wrong_with_an_option_is_said_in_few_words(typed: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}.* --help says what can be typed"):
        plain_arguments(typed.split(), "train")


@pytest.mark.parametrize(
    ("command", "typed", "advice"),
    [
        (
            "predict",
            "b c.png",
            "As in: 'images=b c.png'. For several images, images='photos/*.png'",
        ),
        ("report", ".", "As in: run=.."),
        ("evaluate", "best.ckpt", "As in: checkpoint=best.ckpt."),
        ("train", "best.ckpt", "As in: resume=best.ckpt."),
        ("dashboard", "best.ckpt", "or ~KEY to remove one."),
        ("train", "none.ckpt", "or ~KEY to remove one."),
    ],
)
def test_a_path_without_a_key_is_told_its_key(command: str, typed: str, advice: str) -> None:
    for name in ("b c.png", "best.ckpt"):
        Path(name).touch()
    message = explain(OverrideParseException(override=typed, message=""), command)
    assert message.startswith(f"{typed} cannot be read: expected KEY=VALUE")
    assert advice in message
    assert ("As in" in message) is ("As in" in advice)


def test_other_options_are_left_to_hydra() -> None:
    typed = ["-m", "seed=1,2", "trainer.gpus=[0,1]", "experiment=x", "resume=null"]
    assert prepare_arguments(typed) == typed
    assert prepare_arguments(["experiment=null", "seed=1"]) == ["seed=1"]  # the default


def test_compose_tells_the_options_the_folder_and_the_name(tmp_path: Path) -> None:
    config = compose(["optimizer=sgd"], tmp_path / "2026_run")
    assert config.choices.optimizer == "sgd"
    assert config.choices.model == "dilated_dw"
    assert config.run_dir == str(tmp_path / "2026_run")
    assert re.fullmatch("2026_run-[0-9a-f]{6}", config.run_id)
    job = compose([], tmp_path / "2026 sweep" / "3")
    assert re.fullmatch("2026-sweep-3-[0-9a-f]{6}", job.run_id)


def test_a_part_of_another_class_than_its_options_has_the_name_of_its_class() -> None:
    typed = ["optimizer._target_=torch.optim.Adagrad", "model._target_=mine.Net", "data=shapes"]
    config = compose([*typed, "callbacks=[mirror,hard_examples]"])
    named = [config.choices[group] for group in ("optimizer", "model", "scheduler", "data")]
    assert named == ["Adagrad", "Net", "linear", "shapes"]
    if exist("logger=wandb"):
        assert config.logger.wandb.tags[0] == "Net"
        assert config.logger.wandb.name.startswith("Net optimizer._target_=torch.optim.Adagrad ")
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        folder = hydra.compose("train", typed, return_hydra_config=True).hydra.run.dir
    assert folder.endswith("_Net")


def test_a_composed_run_has_its_folder_where_a_typed_one_has(tmp_path: Path) -> None:
    assert Path(compose().run_dir).parent == tmp_path / "runs" / "train"
    assert Path(compose(["debug=fast"]).run_dir).parent == tmp_path / "runs" / "debug"


# What is typed, and what the message says of it; test_bad_config has those for values.
MESSAGES: list[tuple[Sequence[str], Sequence[str]]] = [
    # names
    (["modle=dilated_dw"], ["There is no 'modle'", "Did you mean module or model"]),
    (
        ["model=dilated_wd"],
        [
            f"There is no model=dilated_wd. The options of model: {', '.join(options('model'))}.",
            "Did you mean dilated_dw?",
        ],
    ),
    (["data=../my.zip"], ["There is no data=../my.zip.", "data=folder data.path=DIRECTORY_OR"]),
    (["data=my/photos/"], ["There is no data=my/photos/.", "data=folder data.path=DIRECTORY_OR"]),
    (["-m", "data=my/photos,shapes"], ["There is no data=my/photos.", "data=folder data.path="]),
    (["+experiment=my/own"], ["There is no experiment=my/own.", "experiment: airbench94, best"]),
    (
        ["trainer.max_epoch=3"],
        ["There is no 'trainer.max_epoch'", "Did you mean trainer.max_epochs", "+KEY=VALUE"],
    ),
    (["max_epochs=3"], ["There is no 'max_epochs'", "trainer.max_epochs"]),
    (["optimizer=sgd", "optimizer.lrr=3"], ["There is no 'optimizer.lrr'", "optimizer.lr"]),
    (["seed=1", "--cfg", "job", "optimizer.lrr=3"], ["There is no 'optimizer.lrr'"]),
    (["data.path=x"], ["There is no 'data.path'", "It belongs to data=folder"]),
    (["budget={max_params:null,foo:2}"], ["There is no 'budget.foo' in the configuration."]),
    (["callbacks.best={foo:1}"], ["There is no 'callbacks.best.foo' in the configuration."]),
    (
        ["-m", "seed=1,2", "hydra.launcher.n_jobs=2"],
        ["no 'hydra.launcher.n_jobs' in the configuration. It belongs to hydra/launcher=joblib"],
    ),
    # grammar
    (["seed=(1"], ["seed=(1 should be a valid integer."]),
    (["seed", "=1"], ["=1: no space belongs before the equals sign"]),
    (["seed", "+=1"], ["+=1: no space belongs before the equals sign"]),
    (["seed=1,2"], ["seed=1,2 has several values: -m runs a job with each.", "\"seed='1,2'\""]),
    (["seed=range(1,3)"], ["seed=range(1,3) has several values: -m runs a job with each."]),
    (["seed"], ["seed cannot be read: expected KEY=VALUE"]),
    (["é=1"], ["é=1: é is not the name of a key"]),
    (["~é"], ["~é cannot be read: expected KEY=VALUE"]),
    (["data.root='a"], ["data.root='a: the quote is not closed", "\"data.root='\\'a'\""]),
    (["data.mirrors=['é',(]"], ["cannot be read. Put quotes around text", "=['50 %','a=b']"]),
    (["-m", "seed=choice(é,1)"], ["seed=choice(é,1) cannot be read. Put quotes around text"]),
    (["data.root=${"], ["data.root='${': ${ begins a reference to another key"]),
    (["data.root=a\0b"], ["data.root=a\N{REPLACEMENT CHARACTER}b: it has a NUL character"]),
    (["hydra.run.dir=a\0b"], ["it has a NUL character"]),
    *(
        ([f"hydra.job.chdir={value}"], [f"hydra.job.chdir={value} would make paths relative to"])
        for value in ("true", "'True'", "1", "yes", "on")
    ),
    (["--experimental-rerun", "x"], ["--experimental-rerun is not used here: report prints"]),
    (["--config-name=report"], ["--config-name is not used here: a command has its own"]),
    (["-m", "seed=1", "hydra.run.dir=mine"], ["hydra.run.dir is not used here: hydra.sweep.dir"]),
    (["+hydra.sweep.dir=mine"], ["hydra.sweep.dir is not used here: without -m, hydra.run.dir="]),
    (
        ["-m", "seed=1", "hydra.sweeper.max_batch_size=0"],
        ["max_batch_size=0 is invalid: it must be at least 1."],
    ),
    *(
        (
            [typed, "trainer.max_epochs=3,4", "resume=last.ckpt"],
            ["resume_sweep=FOLDER resumes a sweep"],
        )
        for typed in ("--mult", "--m", "hydra.mode='MULTIRUN'", "++hydra.mode=MULTIRUN")
    ),
    (["hydra.run.dir=" + "x" * 300], ["The name is longer than the file system allows"]),
    (["x" * 300], ["x cannot be read: expected KEY=VALUE"]),
    (["--shell-completion", "seed=1"], ["Expecting one subcommand from "]),
    (["--resolve"], ["The --resolve flag can only be used in conjunction with --cfg or --help."]),
    (["--cfg", "job", "--resolve"], ["${run_dir} is known only to a run: leave --resolve out."]),
    (
        ["-m", "seed=1", "hydra.sweeper.params={resume: x}"],
        ["resume= resumes one run; resume_sweep=FOLDER resumes a sweep."],
    ),
    (["--cfg", "job", "-m"], ["Only one of --run, --multirun, --cfg, "]),
    (
        ["experiment=null,sgd", "-m"],
        [f"needs an option: {', '.join(options('experiment'))}."],
    ),
    *(
        ([typed], [f"{typed}: this group needs an option"])
        for typed in (
            "experiment=[a,b]",
            "data=[1]",
            "scheduler=[nan]",
            "hydra/launcher=[1]",
            "data=",
            "~data=1",
            "augment=/",
            "data@x=null",
        )
    ),
    (["callbacks=[mirrors]"], ["There is no callbacks=mirrors. ", "Did you mean mirror?"]),
    (["search=lr_augment"], ["There is no 'search' in the configuration."]),
    (["~model"], ["model cannot be removed. Choose another option."]),
    (
        ["augment=null"],
        [f"augment=null: this group needs an option: {', '.join(options('augment'))}."],
    ),
    (["optimizer.lr=abc"], ["optimizer.lr=abc should be a valid number."]),
    # files
    (["resume=none.ckpt"], ["resume=none.ckpt: there is no such file"]),
    (["resume=."], ["is a folder. Name a checkpoint, as in resume=checkpoints/last.ckpt."]),
    (["++resume=none.ckpt"], ["resume=none.ckpt: there is no such file"]),
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
    (
        ["data=folder", f"data.path={CONF}"],
        ["conf holds no images for train and test. Expected: train/<class>/* and test/<class>/*."],
    ),
    (
        ["data.root=/proc/x", "data.mirrors=[]"],
        ["No folder or file can be made in /proc (/proc/x). hydra.run.dir=FOLDER puts", "data."],
    ),
    (
        ["hydra.run.dir=/proc/x"],
        ["No folder or file can be made in /proc (/proc/x). hydra.run.dir"],
    ),
    (
        ["+callbacks.x={_target_:pytorch_lightning.callbacks.ModelCheckpoint,dirpath:/proc/x}"],
        ["callbacks.x.dirpath=/proc/x: nothing can be written to /proc."],
    ),
    (
        [f"hydra.run.dir={__file__}/x"],
        ["A file is where a folder is needed", "hydra.run.dir=FOLDER"],
    ),
    # divergence
    (
        [*TINY, "optimizer.lr=1e30"],
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
    of_sweep = re.search(r"hydra\.(sweeper|launcher)\.", " ".join(typed))
    if of_sweep and not (CONF / "hydra" / "sweeper").is_dir():
        pytest.skip("the sweep was deleted")
    said = message(*typed)
    assert said.startswith("\nError: ")
    assert said.count("Error: ") == 1
    for part in expected:
        assert part in said
    assert not re.search(r"hydra\.cc|Exception|viable|\n\n", said.strip())
    assert not list(Path.cwd().rglob("metrics.json"))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("seed=1", "There is no 'seed' in the configuration."),
        ("hydra.run.dir=mine", "hydra.run.dir is not used here: evaluate writes to output=PATH."),
    ],
)
def test_a_command_advises_what_it_has(
    typed: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = pytest.importorskip("cifar_lightning.evaluate", reason="evaluate was deleted")
    monkeypatch.setattr(sys, "argv", ["cifar-evaluate", typed])
    with hydra_restored(), pytest.raises(SystemExit, match=re.escape(message)) as ended:
        evaluate.main()
    assert "+KEY" not in str(ended.value)
    assert not [*Path().iterdir()]


@pytest.mark.parametrize(
    ("command", "typed", "advice"),
    [
        (
            "report",
            "hydra.run.dir=x",
            "report writes to the folder of run=PATH, or for several to runs/compare/",
        ),
        ("dashboard", "hydra.run.dir=x", "dashboard writes no files"),
        ("search", "hydra.sweep.dir=x", "hydra.run.dir=FOLDER is the search's folder"),
    ],
)
def test_each_command_says_where_its_files_go(command: str, typed: str, advice: str) -> None:
    key = typed.removesuffix("=x")
    with pytest.raises(UserError, match=rf"^{key} is not used here: {advice}\.$"):
        check_folders([typed], command)


def test_a_terminal_whose_encoding_has_no_such_character_gets_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    printed = io.BytesIO()
    typed = ["cifar-train", "--cfg", "job", "+callbacks.mine.notes=画", "-p", "callbacks.mine"]
    monkeypatch.setattr(sys, "argv", typed)
    monkeypatch.setattr(sys, "stdout", terminal := io.TextIOWrapper(printed, "latin-1"))
    with hydra_restored():
        main()
    terminal.flush()
    assert b"notes: ?" in printed.getvalue()


class Failing(pl.Callback):
    """Fails in the training."""

    def on_train_batch_end(self, *_: object) -> None:
        raise RuntimeError("a fault of mine")


def test_the_log_of_a_run_says_why_it_failed(
    message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = message(*TINY, "target_accuracy=null", "optimizer.lr=1e30", "hydra.run.dir=mistaken")
    log = Path("mistaken/train.log").read_text()
    assert said.removeprefix("\nError: ") in log
    assert "Traceback" not in log
    fails = f"+callbacks.mine._target_={__name__}.Failing"
    monkeypatch.setattr(sys, "argv", ["cifar-train", *TINY, fails, "hydra.run.dir=faulty"])
    with hydra_restored(), pytest.raises(RuntimeError):
        main()
    log = Path("faulty/train.log").read_text()
    assert "RuntimeError: a fault of mine\nTraceback" in log


def test_the_traceback_is_there_for_who_asks_alone() -> None:
    for full_error in ("0", "1"):
        env = os.environ | {"HYDRA_FULL_ERROR": full_error}
        ended = run_command("train", "modle=dilated_dw", env=env)
        assert ended.returncode == 1
        assert ("Traceback" in ended.stderr) is (full_error == "1")
        assert ("Error: There is no 'modle'" in ended.stderr) is (full_error == "0")


def test_help_that_nobody_reads_is_no_error() -> None:
    command = [sys.executable, "-m", "cifar_lightning.train", "--help"]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout is not None
    program.stdout.close()
    assert program.communicate()[1] == b""
    assert program.returncode == 0
    closed = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], stderr=subprocess.PIPE)
    assert (closed.returncode, closed.stderr) == (0, b"")


def test_a_training_whose_output_nobody_reads_trains_to_its_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    typed = [*TINY, "target_accuracy=null", "hydra.run.dir=unread"]
    monkeypatch.setattr(sys, "argv", ["cifar-train", *typed])
    with os.fdopen(writing, "w") as unread, monkeypatch.context() as patch, hydra_restored():
        patch.setattr(sys, "stdout", unread)
        main()
    assert Path("unread/metrics.json").is_file()
    assert capsys.readouterr().err == ""  # also none of a log that could not be printed


def test_help_configuration_mistyped_names_and_completion_load_no_torch() -> None:
    program = (
        "import os, sys\n"
        "from hydra.core.global_hydra import GlobalHydra\n"
        "from cifar_lightning.train import main\n"
        "for arguments in (['--help'], ['--cfg', 'job'], ['modle=x'], ['-sc', 'query=bash']):\n"
        "    os.environ['COMP_LINE'] = 'cifar-train optimizer=s'\n"
        "    sys.argv[1:] = arguments\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as ending:\n"
        "        print(ending)\n"
        "    GlobalHydra.instance().clear()\n"
        "print('torch' in sys.modules)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    for expected in ("Main keys", "DilatedDW", "There is no 'modle'", "optimizer=sgd"):
        assert expected in ended.stdout
    assert ended.stdout.endswith("False\n")


OWN_NETWORK = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self, num_classes):
        layers = [nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*layers, nn.Linear(8, num_classes))
"""
LIFTED = ("budget.min_dilated=null", "budget.min_separable=null")


@pytest.mark.slow
def test_a_console_script_and_its_jobs_find_modules_of_the_working_folder(tmp_path: Path) -> None:
    script = tmp_path / "bin" / "cifar-train"
    script.parent.mkdir()
    script.write_text(  # as installers do
        "import sys\nfrom cifar_lightning.train import main\n"
        "if __name__ == '__main__':\n    sys.exit(main())\n"
    )
    Path("ours.py").write_text(OWN_NETWORK)
    typed = [*TINY, *LIFTED, "model._target_=ours.Net", "~model.image_size", "-m", "seed=0,1"]
    sweep = subprocess.run([sys.executable, script, *typed], capture_output=True, text=True)
    assert "2 runs: 2 finished." in sweep.stdout, sweep.stderr
    # Python has an option for those who do not want it.
    safe = subprocess.run(
        [sys.executable, "-P", script, *typed[:-2]], capture_output=True, text=True
    )
    assert safe.stderr.endswith("Error: model._target_=ours.Net: No module named 'ours'.\n")


def test_a_network_in_a_conf_of_ones_own_is_evaluated_by_the_command_that_its_run_prints() -> None:
    pytest.importorskip("cifar_lightning.evaluate", reason="evaluate was deleted")
    Path("ours.py").write_text(OWN_NETWORK)
    Path("conf/model").mkdir(parents=True)
    Path("conf/model/ours.yaml").write_text("_target_: ours.Net\nnum_classes: 10\n")
    own = ("model=ours", "--config-dir=conf", "hydra.run.dir=run")
    trained = run_command("train", *TINY, *LIFTED, *own)
    (printed,) = re.findall(r"-m cifar_lightning\.evaluate (.*)", trained.stdout)
    assert printed == "checkpoint=run/checkpoints/best.ckpt --config-dir conf"
    evaluated = run_command("evaluate", *printed.split(), "robustness=false")
    assert evaluated.returncode == 0, evaluated.stderr
