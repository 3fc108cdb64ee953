import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Bomb, changed, in_config
from conftest import TINY
from omegaconf import DictConfig

from cifar_lightning import run
from cifar_lightning.checkpoints import io as checkpoint
from cifar_lightning.checkpoints import trusted
from cifar_lightning.config.compose import CONF, compose
from cifar_lightning.errors import UserError
from cifar_lightning.run import resume
from cifar_lightning.train import train

Compose = Callable[..., DictConfig]


def test_a_resumed_configuration_is_the_checkpoints_with_overrides_on_top(
    tiny: Compose, tmp_path: Path
) -> None:
    train(tiny("optimizer.lr=0.07", "seed=5"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    typed = ["trainer.max_epochs=9", "scheduler=cosine", "target_accuracy=0.5", f"resume={last}"]
    config = resume.resumed(compose_only(tiny, typed))
    assert (config.optimizer.lr, config.seed, config.data.train_size) == (0.07, 5, 200)
    assert config.trainer.max_epochs == 9
    assert config.scheduler._target_ == "cifar_lightning.training.optim.cosine_schedule"
    assert config.choices.scheduler == "cosine"
    before = run.rebuild(last)[1]
    assert config.run_id == before.run_id != compose_only(tiny, typed).run_id  # one run on W&B
    # What depends on an override follows it.
    assert config.run_dir == str(tmp_path / "other")
    assert config.callbacks.best.dirpath == str(tmp_path / "other" / "checkpoints")
    assert config.callbacks.target.target == 0.5


def compose_only(tiny: Compose, typed: list[str]) -> DictConfig:
    """As typed after the command, without the options that make the tests' runs tiny."""
    config = tiny(*typed, run_dir="other")
    config.overrides = typed
    return config


def test_what_a_checkpoint_decides_may_be_typed_as_it_was(tiny: Compose, trained: Path) -> None:
    typed = [f"resume={trained}", *TINY, "seed=0", "model=dilated_dw"]
    config = resume.resumed(compose_only(tiny, typed))
    assert (config.data.train_size, config.seed) == (200, 0)


@pytest.mark.parametrize(
    "key",
    [
        "experiment=sgd",
        "optimizer=sgd",
        "optimizer.lr=1",
        "seed=1",
        "data.split_seed=1",
        "data.val_size=60",
        "trainer=ddp",
        "~callbacks.target",
    ],
)
def test_what_a_checkpoint_decides_cannot_be_overridden(
    tiny: Compose, trained: Path, key: str
) -> None:
    typed = [f"resume={trained}", key]
    with pytest.raises(UserError, match=f"leave {key.partition('=')[0]}= out"):
        resume.resumed(compose_only(tiny, typed))


def test_a_checkpoint_of_the_middle_of_an_epoch_is_refused(tiny: Compose, tmp_path: Path) -> None:
    train(tiny("trainer.val_check_interval=0.5", "target_accuracy=0.0"))
    typed = [f"resume={tmp_path}/run/checkpoints/best.ckpt"]
    with pytest.raises(UserError, match=r"saved in the middle of an epoch.*Take last\.ckpt"):
        resume.resumed(compose_only(tiny, typed))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(compose(TINY, folder / "run"))
    return folder / "run" / "checkpoints" / "best.ckpt"


@pytest.fixture
def best(trained: Path, tmp_path: Path) -> Path:
    """A checkpoint, whose content `changed` changes."""
    return Path(shutil.copy(trained, tmp_path))


def nested(depth: int) -> Any:
    content: dict[str, Any] = {}
    for _ in range(depth):
        content = {"x": content}
    return content


CONF_TARGET = "cifar_lightning.models.DilatedDW"
SHELL = {"_target_": "os.system", "command": "touch was_called"}


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(model=SHELL),
        lambda config: config["optimizer"].update(_target_="subprocess.run"),
        lambda config: config["model"].update(num_classes=SHELL),
        lambda config: config["augment"].update(flip=[[SHELL]]),
        # By way of this package, and by interpolation.
        lambda config: config["model"].update(
            _target_="cifar_lightning.config.overrides.os.system"
        ),
        lambda config: config["model"].update(
            _target_="cifar_lightning.system.atomic.atomic_write"
        ),
        # A target of conf/, where conf/ does not call it.
        lambda config: config.update(model=config["callbacks"]["best"]),
        lambda config: config["model"].update(num_classes={"_target_": CONF_TARGET}),
        lambda config: config.update(model="${data}"),
        # A target that is yet to be put together.
        lambda config: config["model"].update(_target_="${trainer._target_}"),
        lambda config: config["model"].update(_target_=["os.system"]),
        lambda config: config["model"].update(_target_={"os": "system"}),
        lambda config: config["model"].update(_target_=[]),
    ],
)
def test_what_a_checkpoint_wants_to_call_is_not_called(
    change: Callable[[dict[str, Any]], object], best: Path, tmp_path: Path, tiny: Compose
) -> None:
    refused(best, change, r"wants to call .*so it was not called", tmp_path, tiny)


def refused(
    best: Path,
    change: Callable[[dict[str, Any]], object],
    message: str,
    tmp_path: Path,
    tiny: Compose,
) -> None:
    changed(best, in_config(change))
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        run.rebuild(best)
    with pytest.raises(UserError, match=message):
        resume.resumed(compose_only(tiny, [f"resume={best}"]))
    assert set(tmp_path.iterdir()) == before


def test_callbacks_of_ones_own_are_no_matter_of_an_evaluation_and_can_be_typed_again(
    best: Path, tiny: Compose
) -> None:
    mine = {"_target_": "my.Callback"}
    changed(best, in_config(lambda config: config["callbacks"].update(mine=mine)))
    assert "callbacks" not in run.rebuild(best)[1]
    with pytest.raises(UserError, match=r"wants to call 'my\.Callback' in callbacks"):
        resume.resumed(compose_only(tiny, [f"resume={best}"]))
    typed = [f"resume={best}", "+callbacks.mine.monitor=my.Callback"]
    with pytest.raises(UserError, match=r"wants to call 'my\.Callback' in callbacks"):
        resume.resumed(compose_only(tiny, typed))
    typed = [f"resume={best}", "+callbacks.mine._target_=my.Callback"]
    assert resume.resumed(compose_only(tiny, typed)).callbacks.mine == mine


def test_a_profiler_of_ones_own_is_no_matter_of_an_evaluation_and_can_be_typed_again(
    best: Path, tiny: Compose
) -> None:
    mine = {"_target_": "my.Profiler"}
    changed(best, in_config(lambda config: config["trainer"].update(profiler=mine)))
    trainer = run.rebuild(best)[1].trainer
    assert "profiler" not in trainer
    assert trainer.precision == "auto"
    with pytest.raises(UserError, match=r"wants to call 'my\.Profiler' in trainer"):
        resume.resumed(compose_only(tiny, [f"resume={best}"]))
    typed = [f"resume={best}", "+trainer.profiler._target_=my.Profiler"]
    assert resume.resumed(compose_only(tiny, typed)).trainer.profiler == mine
    changed(best, in_config(lambda config: config["trainer"].update(plugins=[mine])))
    with pytest.raises(UserError, match=r"wants to call 'my\.Profiler' in trainer"):
        run.rebuild(best)


def test_a_resumed_run_writes_to_its_own_folder(best: Path, tiny: Compose, tmp_path: Path) -> None:
    place = tmp_path / "home"
    changed(best, in_config(lambda config: config["callbacks"]["best"].update(dirpath=str(place))))
    with pytest.raises(UserError, match=r"wants callbacks\.best to write to .*home, outside of"):
        resume.resumed(compose_only(tiny, [f"resume={best}"]))
    changed(best, in_config(lambda config: config["callbacks"].update(odd={"dirpath": 5})))
    with pytest.raises(UserError, match=r"wants callbacks\.(best|odd) to write"):
        resume.resumed(compose_only(tiny, [f"resume={best}"]))
    changed(best, in_config(lambda config: config["callbacks"].update(odd="a text")))
    typed = [f"resume={best}", f"callbacks.best.dirpath={place}"]
    assert resume.resumed(compose_only(tiny, typed)).callbacks.best.dirpath == str(place)


def test_a_resumed_profile_is_written_to_the_runs_folder(
    best: Path, tiny: Compose, tmp_path: Path
) -> None:
    place = tmp_path / "home"
    profiler = {
        "_target_": "pytorch_lightning.profilers.SimpleProfiler",  # conf/debug/profile.yaml's
        "dirpath": "${run_dir}",
        "filename": "profile",
    }
    changed(best, in_config(lambda config: config["trainer"].update(profiler=profiler)))
    resumed = resume.resumed(compose_only(tiny, [f"resume={best}"]))
    assert resumed.trainer.profiler.dirpath == str(tmp_path / "other")
    profiler["dirpath"] = str(place)
    changed(best, in_config(lambda config: config["trainer"].update(profiler=profiler)))
    with pytest.raises(UserError, match=r"wants trainer\.profiler to write to .*home, outside of"):
        resume.resumed(compose_only(tiny, [f"resume={best}"]))
    typed = [f"resume={best}", f"+trainer.profiler.dirpath={place}"]
    assert resume.resumed(compose_only(tiny, typed)).trainer.profiler.dirpath == str(place)
    changed(best, in_config(lambda config: config["trainer"].update(profiler="simple")))
    assert resume.resumed(compose_only(tiny, [f"resume={best}"])).trainer.profiler == "simple"


@pytest.mark.parametrize("content", ["# @package _global_\n", "", "a: ["])
def test_a_file_of_conf_without_content_is_no_matter_and_a_broken_one_is_named(
    best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(content)
    monkeypatch.setattr(trusted, "CONF", tmp_path / "conf")
    trusted._known_targets.cache_clear()
    try:
        if content != "a: [":
            assert run.rebuild(best)[0].image_size == 32
        else:
            with pytest.raises(UserError, match=r"mine\.yaml cannot be read"):
                run.rebuild(best)
    finally:
        trusted._known_targets.cache_clear()


def test_what_a_checkpoint_could_not_keep_is_refused_before_the_training(tiny: Compose) -> None:
    with pytest.raises(UserError, match=r"'\$\{x\}' holds \$\{, which a checkpoint cannot keep"):
        train(tiny(r"+mine='\${x}'"))


MAKES_FOLDER = "{oc.create:{_target_:os.mkdir,path:was_called}}"


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["model"].update(_target_="${oc.decode:os.system}"),
        lambda config: config.update(model="${oc.create:{_target_:os.system,command:'touch x'}}"),
        lambda config: config["model"].update(x=f"${MAKES_FOLDER}"),
        # Evaluated when it is read once more, in Hydra's instantiate.
        lambda config: config["model"].update(x=f"\\${MAKES_FOLDER}"),
        lambda config: config["model"].update(x=f"\\\\\\${MAKES_FOLDER}"),
        lambda config: config.update(a="$", b=MAKES_FOLDER) or config["model"].update(x="${a}${b}"),
        # A target that changes once the number of classes is known.
        lambda config: (
            config.update(n10="os.mkdir", n99="cifar_lightning.models.DilatedDW")
            or config["model"].update(
                num_classes=99,
                x="${oc.create:{_target_:${oc.select:n${.num_classes}},path:was_called}}",
            )
        ),
        lambda config: config.update(seed="${oc.env:HOME}"),
        lambda config: config["data"].update(mirrors=("http://x/${oc.env:HOME}",)),
        lambda config: config["model"].update(x=((f"${MAKES_FOLDER}",),)),
    ],
)
def test_what_a_checkpoint_wants_to_evaluate_is_not_evaluated(
    change: Callable[[dict[str, Any]], object], best: Path, tmp_path: Path, tiny: Compose
) -> None:
    refused(best, change, r"wants to evaluate .*so it was not read", tmp_path, tiny)


def test_a_checkpoint_holds_what_was_evaluated_at_its_training(
    tiny: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEP", "0.07")
    train(
        tiny("optimizer.lr='${oc.decode:${oc.env:STEP}}'", "trainer.max_epochs=${seed}", "seed=1")
    )
    monkeypatch.delenv("STEP")
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert run.rebuild(best)[1].optimizer.lr == 0.07
    resumed = resume.resumed(compose_only(tiny, [f"resume={best}"]))
    resumed.seed = 3
    assert resumed.trainer.max_epochs == 3


def test_code_in_a_checkpoint_is_not_run(best: Path) -> None:
    content = torch.load(best, weights_only=True)
    torch.save(content | {"more": Bomb()}, best)
    with pytest.raises(UserError, match="is not a checkpoint of cifar-lightning"):
        run.rebuild(best)
    assert not Path("was_called").exists()
    torch.load(best, weights_only=False)  # it would have been
    assert Path("was_called").is_dir()


def test_a_network_of_ones_own_is_rebuilt_once_a_configuration_names_it(
    best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = "cifar_lightning.models.dilated_dw.DilatedDW"  # conf/ has a shorter name for it
    changed(best, in_config(lambda config: config["model"].update(_target_=target)))
    with pytest.raises(UserError, match=r"name it there, as a network in conf/model/NAME\.yaml"):
        run.rebuild(best)
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(f"_target_: {target}\n")
    monkeypatch.setattr(trusted, "CONF", tmp_path / "conf")
    trusted._known_targets.cache_clear()
    try:
        assert run.rebuild(best)[0].image_size == 32
    finally:
        trusted._known_targets.cache_clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content["state_dict"].popitem(),
            r"its weights do not fit .*DilatedDW as it is here .*Missing key",
        ),
        (
            lambda content: content["hyper_parameters"]["data_facts"]["classes"].pop(),
            r"its weights do not fit .*size mismatch",
        ),
        (
            lambda content: (
                content["hyper_parameters"].update(version="9.9.9")
                or content["hyper_parameters"]["config"]["model"].update(width=3)
            ),
            r"cannot be rebuilt \(written by cifar-lightning 9\.9\.9; this is .*unexpected keyword",
        ),
        (
            lambda content: content["hyper_parameters"]["config"].pop("optimizer"),
            "its configuration has no optimizer",
        ),
        (
            lambda content: content["hyper_parameters"]["config"].update(model=5),
            "its configuration has no model",
        ),
        (
            lambda content: content["hyper_parameters"]["config"].update(data=None),
            "its configuration has no data",
        ),
        (
            lambda content: content["hyper_parameters"]["config"].update(choices={}),
            "does not say which model and data",
        ),
        (
            lambda content: content["hyper_parameters"]["config"].update(x=nested(400)),
            "its configuration cannot be read",
        ),
        (
            lambda content: content["hyper_parameters"]["config"].pop("label_smoothing"),
            "cannot be rebuilt .*label_smoothing",
        ),
        (
            lambda content: content["hyper_parameters"]["data_facts"].update(mean=[0.5, 0.5]),
            "of a version that this one .* does not know",
        ),
        (
            lambda content: content["hyper_parameters"].pop("data_facts"),
            "of a version that this one .* does not know",
        ),
        (
            lambda content: content["hyper_parameters"]["data_facts"].update(mean="grey"),
            "of a version that this one .* does not know",
        ),
        (
            lambda content: content["hyper_parameters"]["config"].update(seed="${nowhere}"),
            "its configuration cannot be read: .*nowhere",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named_in_one_message(
    change: Callable[[dict[str, Any]], object], message: str, best: Path
) -> None:
    changed(best, change)
    with pytest.raises(UserError, match=f"best.ckpt.*{message}"):
        run.rebuild(best)


def test_checkpoints_from_before_versions_were_written_down_are_read(best: Path) -> None:
    changed(best, lambda content: content["hyper_parameters"].pop("version"))
    assert checkpoint.read_checkpoint(best).version == "0.1.0"
    assert run.rebuild(best)[0].classes[0] == "bar"


def test_a_checkpoint_of_an_earlier_version_is_not_resumed_but_named(
    best: Path, tiny: Compose
) -> None:
    changed(best, in_config(lambda config: config.pop("rehearse_without_data")))
    with pytest.raises(UserError, match=r"an earlier version .* has no rehearse_without_data"):
        resume.resumed(compose_only(tiny, [f"resume={best}"]))
    assert run.rebuild(best)[0].image_size == 32


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"hello")
    torch.save({"weights": torch.ones(1)}, tmp_path / "y.ckpt")
    torch.save(torch.ones(3), tmp_path / "tensor.ckpt")
    for name, message in (
        ("x.ckpt", "is not a checkpoint of cifar-lightning"),
        ("y.ckpt", "is not a checkpoint of cifar-lightning"),
        ("tensor.ckpt", "is not a checkpoint of cifar-lightning"),
        ("z.ckpt", "there is no such file"),
    ):
        with pytest.raises(UserError, match=message):
            checkpoint.read_checkpoint(tmp_path / name)
