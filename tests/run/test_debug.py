"""conf/debug/: what each of these runs does."""

from pathlib import Path

import pytest
from conftest import TINY

from cifar_lightning import compose
from cifar_lightning.config.comments import read_conf
from cifar_lightning.config.compose import CONF
from cifar_lightning.errors import UserError
from cifar_lightning.run.resume import resumed
from cifar_lightning.train import train

# As TINY, but for what the options under test say themselves, the logger too.
SMALL = [o for o in TINY if o not in ("logger=csv", "trainer.max_epochs=1")]


def test_a_smoke_run_leaves_all_that_a_run_leaves_and_can_be_resumed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [
        *SMALL,
        "debug=fast",
        "plots=true",
        "experiment=sgd",
        "data.batch_size=20",
        "data.val_size=100",
    ]
    config = compose(options)
    assert config.trainer.max_epochs == 1  # the experiment's 10 are not the last word
    run_dir = Path(config.run_dir)
    assert run_dir.parent == Path.cwd() / "runs" / "debug"
    metrics = train(config)
    assert "batches of 20, 3 per epoch" in capsys.readouterr().out
    assert metrics["train_images"] == 3 * 20
    assert metrics["val/acc"] is not None
    assert metrics["test/acc"] is not None
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "figures/filters.png"):
        assert (run_dir / name).is_file()
    resume = f"resume={run_dir}/checkpoints/last.ckpt"
    again = compose([resume, "trainer.max_epochs=2", "plots=false"], run_dir)
    assert resumed(again).choices.debug == "fast"
    assert train(again)["epochs"] == 2
    with pytest.raises(
        UserError,
        match=r"takes debug from the checkpoint: leave it out\. What another debug would set",
    ):
        resumed(compose(["debug=profile", resume], run_dir))


def test_a_profile_says_how_long_the_steps_took(tmp_path: Path) -> None:
    train(compose([*SMALL, "debug=profile", "trainer.limit_train_batches=2"], tmp_path))
    (line,) = [
        line
        for line in (tmp_path / "fit-profile.txt").read_text().splitlines()
        if "run_training_batch" in line
    ]
    assert line.split("|")[3].split() == ["2"]


@pytest.mark.parametrize("option", sorted(file.stem for file in (CONF / "debug").glob("*.yaml")))
def test_debugging_stays_away_from_results_and_says_what_it_is_for(option: str) -> None:
    config = compose([f"debug={option}"])
    assert config.choices.debug == option
    assert config.choices.logger == "csv"
    assert config.target_accuracy is None
    shown = read_conf(CONF / "debug" / f"{option}.yaml")
    assert shown.examples == [f"python -m cifar_lightning.train debug={option}"]
    assert shown.about
