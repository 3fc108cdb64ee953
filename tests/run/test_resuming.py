"""`resume=auto`, and two processes at one run."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from conftest import TINY
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from omegaconf import OmegaConf, open_dict

from cifar_lightning.cli import resume_auto
from cifar_lightning.config.compose import ADDED, compose
from cifar_lightning.errors import UserError
from cifar_lightning.system.locks import run_lock
from cifar_lightning.train import main

TYPED = ("data=shapes", "optimizer.lr=0.05", "seed=3")


FIRST, SECOND, THIRD = (f"2026-01-0{day}_00-00-00-000000_x" for day in (1, 2, 3))


def begun(place: Path, typed: Sequence[str] = TYPED, name: str = FIRST) -> Path:
    """A run's folder as Hydra and a training leave it that was killed."""
    folder = place / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    (folder / ".hydra").mkdir()
    config = compose(typed)
    with open_dict(config):
        for key in ADDED:
            del config[key]
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    OmegaConf.save(list(typed), folder / ".hydra" / "overrides.yaml")
    return folder


RUNS = Path("runs/train")


def auto(*typed: str) -> Path | None:
    """The run that it is."""
    found = resume_auto([*typed, "resume=auto"])
    if found == [*typed]:
        return None
    assert found[:-1] == [*typed]
    return Path(found[-1].removeprefix("resume=")).parents[1]


def test_the_newest_run_that_was_typed_so_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert auto(*TYPED) is None
    assert capsys.readouterr().out == "resume=auto: no run to go on with, so this is a new one\n"
    older = begun(RUNS)
    newer = begun(RUNS, name=SECOND)
    begun(RUNS, ["data=shapes", "seed=3"], name=THIRD)
    assert auto(*TYPED) == newer
    assert capsys.readouterr().out == f"resume=auto: {newer}/checkpoints/last.ckpt\n"
    assert auto(*reversed(TYPED)) == newer
    assert auto("--cfg", "job", *TYPED) == newer
    assert auto(*TYPED, "model=dilated_dw") == newer  # the default
    assert auto(*TYPED, "seed=4") is None
    (RUNS / "latest").symlink_to("nowhere")
    assert resume_auto([*TYPED, "resume='auto'"])[-1] == f"resume={newer}/checkpoints/last.ckpt"
    (newer / "checkpoints" / "last.ckpt").unlink()
    assert auto(*TYPED) == older


def test_a_finished_run_does_not_go_on_and_an_interrupted_one_does() -> None:
    run = begun(RUNS)
    (run / "metrics.json").write_text('{"stopped_by": "interrupted", "epochs": 1.5}')
    assert auto(*TYPED) == run
    (run / "metrics.json").write_text('{"stopped_by": "max_epochs", "epochs": 4}')
    assert auto(*TYPED) is None


def test_a_run_that_another_process_works_on_is_left_to_it() -> None:
    older, newer = begun(RUNS), begun(RUNS, name=SECOND)
    with run_lock(newer):
        assert auto(*TYPED) == older
    assert auto(*TYPED) == newer


def test_a_run_that_was_resumed_with_other_values_is_another_one() -> None:
    run = begun(RUNS)
    again = run / ".hydra" / "resumed_2026-01-01_01-00-00-000000"
    again.mkdir()
    OmegaConf.save(["resume=x", "optimizer.lr=0.05"], again / "overrides.yaml")
    assert auto(*TYPED) == run
    OmegaConf.save(["resume=x", "trainer.max_epochs=9"], again / "overrides.yaml")
    assert auto(*TYPED) is None


@pytest.mark.usefixtures("_hydra")
def test_a_resume_that_was_refused_leaves_the_run_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = begun(RUNS) / "checkpoints" / "last.ckpt"
    typed = [f"resume={last.absolute()}", "optimizer.lr=0.5"]
    monkeypatch.setattr(sys, "argv", ["cifar-train", *typed])
    with pytest.raises(SystemExit, match="is not a checkpoint"):
        main()
    assert auto(*TYPED) == last.parents[1]
    assert not list(last.parents[1].glob(".hydra/resumed_*"))


def test_a_damaged_folder_is_passed_over() -> None:
    run, damaged = begun(RUNS), begun(RUNS, name=SECOND)
    (damaged / ".hydra" / "config.yaml").write_text("a: [")
    assert auto(*TYPED) == run
    (damaged / ".hydra" / "config.yaml").unlink()
    assert auto(*TYPED) == run


def test_it_is_looked_for_where_the_run_would_be(tmp_path: Path) -> None:
    place = ("hydra.run.dir=elsewhere/mine",)
    run = begun(Path("elsewhere"), [*TYPED, *place], name="mine")
    assert auto(*TYPED) is None
    assert auto(*TYPED, *place) == run
    assert auto(*TYPED, "hydra.run.dir='elsewhere/${now:%H}'") == run
    mine = tmp_path / "my conf" / "optimizer"
    mine.mkdir(parents=True)
    (mine / "mine.yaml").write_text("_target_: torch.optim.Adam\n_partial_: true\n")
    assert auto("--config-dir", str(mine.parent), "optimizer=mine") is None


def test_debugging_is_looked_for_where_its_runs_stand() -> None:
    typed = [*TYPED, "debug=fast"]
    begun(RUNS, typed, name=THIRD)
    run = begun(Path("runs/debug"), typed)
    begun(Path("runs/debug"), name=SECOND)
    assert auto(*typed) == run
    assert auto(*TYPED, "debug=profile") is None
    assert auto(*TYPED, "debug=null") is None
    assert auto(*typed, "hydra.run.dir='runs/train/${now:%H}'") == RUNS / THIRD


def test_a_sweep_goes_on_otherwise() -> None:
    with pytest.raises(UserError, match="resume_sweep=FOLDER"):
        resume_auto(["-m", "seed=1,2", "resume=auto"])
    assert resume_auto(["seed=1"]) == ["seed=1"]


@pytest.fixture
def _hydra() -> Iterator[None]:
    singletons = Singleton.get_state()
    yield
    Singleton.set_state(singletons)
    GlobalHydra.instance().clear()


@pytest.mark.usefixtures("_hydra")
def test_two_processes_do_not_train_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["cifar-train", *TINY, f"hydra.run.dir={tmp_path}/run"])
    with run_lock(tmp_path / "run"), pytest.raises(SystemExit) as ended:
        main()
    assert "Error: Another process works on this run, in " in str(ended.value.code)
    assert not (tmp_path / "run" / "metrics.csv").exists()
