"""Checkpoints of any kind: they are rebuilt, or one message says why not, and nothing of them runs.

What a well-formed configuration in a checkpoint may call and evaluate: test_checkpoint.py.
"""

import copy
import math
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from checkpoints import Bomb, changed, in_config
from conftest import TINY
from endings import cases, ends_well, leftovers
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cifar_lightning import run
from cifar_lightning.checkpoints import io as checkpoint
from cifar_lightning.config.compose import compose
from cifar_lightning.errors import UserError
from cifar_lightning.evaluate import evaluate
from cifar_lightning.export import export
from cifar_lightning.predict import predict
from cifar_lightning.report import report
from cifar_lightning.run import resume
from cifar_lightning.system.memory import free_memory
from cifar_lightning.train import train

# A network of so few weights that a file of it is mostly structure.
SMALLEST = (
    *TINY,
    *("model=residual_dw_257k", "model.widths=[8,8,8]", "model.depths=[0,0,1]", "model.squeeze=2"),
    *("target_accuracy=null", "callbacks.gradient_norm=null"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(compose(SMALLEST, folder))
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def content(trained: Path) -> dict[str, Any]:
    return dict(torch.load(trained, weights_only=True))


@pytest.fixture
def last(trained: Path, tmp_path: Path) -> Path:
    """A copy, whose content `changed` changes."""
    return Path(shutil.copy(trained, tmp_path))


TYPED = compose(SMALLEST, "run")
TYPED.overrides = []


def read_every_way(file: Path) -> None:
    """As evaluate, predict and export read it, and as a resume does, which then goes on with it."""
    message = ends_well(lambda: checkpoint.read_checkpoint(file))
    again = ends_well(lambda: run.rebuild(file))
    assert message is None or again == message
    config = copy.deepcopy(TYPED)
    config.resume = str(file)
    ends_well(lambda: resume.resumed(config))
    assert not leftovers(file.parent)


def saved(content: object, folder: Path) -> Path:
    """For one case: hypothesis has many in a test, which has one tmp_path."""
    file = Path(tempfile.mkdtemp(dir=folder), "last.ckpt")
    torch.save(content, file)
    return file


@cases(100)
@given(data=st.data())
def test_any_altered_bytes_are_rebuilt_or_named(
    data: st.DataObject, trained: Path, tmp_path: Path
) -> None:
    whole = bytearray(trained.read_bytes())
    # Half of the cases where the structure is and not the weights: at the beginning and the end.
    places = st.one_of(
        st.integers(0, len(whole) - 1),
        st.integers(0, 20_000),
        st.integers(len(whole) - 20_000, len(whole) - 1),
    )
    kind = data.draw(st.sampled_from(["cut", "flip", "flip", "overwrite", "swap"]))
    if kind == "cut":
        del whole[data.draw(places) :]
    for _ in range(data.draw(st.integers(1, 3)) if kind == "flip" else 0):
        whole[data.draw(places)] ^= data.draw(st.integers(1, 255))
    if kind in ("overwrite", "swap"):
        start = data.draw(places)
        with_what = data.draw(st.binary(min_size=1, max_size=64))
        whole[start : start + (len(with_what) if kind == "overwrite" else 0)] = with_what
    file = Path(tempfile.mkdtemp(dir=tmp_path), "last.ckpt")
    file.write_bytes(whole)
    read_every_way(file)


def places_in(content: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys and positions that lead to everything in nested dictionaries and lists."""
    if above:
        yield above
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from places_in(value, (*above, key))


ODD_TENSORS = (
    torch.tensor(math.nan),
    torch.full((3,), math.inf),
    torch.zeros(0),
    torch.zeros(1).expand(10**6, 10**6),  # of four bytes
    torch.zeros(2, dtype=torch.complex64),
    torch.tensor([True]),
)
odd_values = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 10**6, 10**20, -(10**12), 0.5, math.nan, math.inf]),
    st.sampled_from(["", "画\n\x1b[31m", "${seed}", "${nowhere}", "x" * 5000, "os.system"]),
    st.builds(lambda: {}),
    st.builds(lambda: []),
    st.builds(lambda: {"_target_": "os.mkdir", "path": "was_called"}),
    st.builds(lambda: [[]]),
    st.lists(st.integers(-3, 3), max_size=3),
    st.sampled_from(ODD_TENSORS),
)


def altered(content: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy with something else at a place, or with nothing there."""
    result = copy.deepcopy(content)
    *above, last = place
    parent: Any = result
    for key in above:
        parent = parent[key]
    if value is REMOVED:
        del parent[last]
    else:
        parent[last] = value
    return result


REMOVED = object()


@cases(200)
@given(data=st.data())
def test_any_altered_entry_is_rebuilt_or_named(
    data: st.DataObject, content: dict[str, Any], tmp_path: Path
) -> None:
    group = data.draw(st.sampled_from([*content, "hyper_parameters", "hyper_parameters"]))
    place = data.draw(st.sampled_from(list(places_in(content[group], (group,)))))
    value = data.draw(st.one_of(st.just(REMOVED), odd_values))
    read_every_way(saved(altered(content, place, value), tmp_path))
    assert not Path("was_called").exists()


KEYS = ("callbacks", "hyper_parameters", "loops", "state_dict", "global_step", "x", 5)


@cases(40)
@given(value=st.one_of(odd_values, st.dictionaries(st.sampled_from(KEYS), odd_values)))
def test_any_other_file_of_pytorchs_is_named(value: Any, tmp_path: Path) -> None:
    file = saved(value, tmp_path)
    read_every_way(file)
    with pytest.raises(UserError, match="is not a checkpoint of cifar-lightning"):
        checkpoint.read_checkpoint(file)


# ------------------------------------------------------------------------ more than it seems


def ten_times_ten(depth: int) -> list[Any]:
    content: list[Any] = []
    for _ in range(depth):
        content = [content] * 10
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(x=ten_times_ten(30)), "more than 1,000,000 characters"),
        (
            lambda config: config.update(
                {f"x{i}": f"${{x{i + 1}}}" * 10 for i in range(30)} | {"x30": "x"}
            ),
            "references in its configuration would make more than 1,000,000 characters",
        ),
        (
            lambda config: config.update(
                {f"x{i}": [f"${{x{i + 1}}}"] * 10 for i in range(30)} | {"x30": "x"}
            ),
            "references in its configuration would make more than 1,000,000 characters",
        ),
        (
            lambda config: config.update(x={f"x{i}": f"${{.x{i + 1}}}" * 9 for i in range(30)}),
            "references in its configuration would make more than 1,000,000 characters",
        ),
        (
            # Of 3 x 3 x width x width numbers of four bytes: too many for what is free.
            lambda config: config["model"].update(
                widths=[math.isqrt(free_memory() // 30)] * 3, depths=[0, 0, 0]
            ),
            r"the network's weights would need .* GB of memory|can't allocate memory",
        ),
        (
            lambda config: config["model"].update(depths=[10**9, 0, 0]),
            "the network has more than 10,000 weight tensors",
        ),
    ],
)
def test_a_small_checkpoint_that_would_fill_any_memory_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, last: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run.rebuild(changed(last, in_config(change)))


def test_references_to_references_stay_possible(last: Path) -> None:
    chain = {"a": "${b}/x", "b": "${c.d}", "c": {"d": "${.e}", "e": "${seed}"}}
    changed(last, in_config(lambda config: config.update(chain)))
    assert run.rebuild(last)[1].a == "0/x"


def test_a_checkpoint_that_unpacks_to_more_than_it_has_is_refused(
    last: Path, tmp_path: Path
) -> None:
    changed(last, lambda content: content.update(more=torch.zeros(10**7)))
    packed = tmp_path / "packed.ckpt"
    with zipfile.ZipFile(last) as whole, zipfile.ZipFile(packed, "w") as archive:
        for info in whole.infolist():
            archive.writestr(info.filename, whole.read(info), zipfile.ZIP_DEFLATED)
    assert "more" in torch.load(packed, weights_only=True)  # PyTorch takes it
    with pytest.raises(UserError, match=r"packed\.ckpt is not a checkpoint .* it unpacks to"):
        run.rebuild(packed)


# ------------------------------------------------------------------------ no finite numbers


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_named_by_every_command(
    value: float, last: Path, tmp_path: Path
) -> None:
    name = next(iter(torch.load(last, weights_only=True)["state_dict"]))

    def spoil(content: dict[str, Any]) -> None:
        content["state_dict"][name].view(-1)[0] = value

    changed(last, spoil)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for command, name_of_config, more in (
        (evaluate, "evaluate", []),
        (export, "export", ["format=safetensors"]),
        (predict, "predict", [f"images={tmp_path}/a.png"]),
        (train, "train", [*SMALLEST, f"teacher={last}"]),
        (train, "train", [f"resume={last}"]),
    ):
        typed = [] if command is train else [f"checkpoint={last}"]
        config = compose([*typed, *more], tmp_path / "run", name_of_config)
        before = set(tmp_path.rglob("*"))
        with pytest.raises(UserError, match=f"{name} of its weights is not all finite"):
            command(config)
        assert set(tmp_path.rglob("*")) == before


# ------------------------------------------------------------------------- going on with it


def go_on(file: Path) -> str | None:
    """How it ends to go on from a checkpoint for an epoch."""

    def work() -> None:
        config = compose(
            [*SMALLEST, "trainer.max_epochs=2", f"resume='{file}'"], file.parent / "run"
        )
        config.overrides = ["trainer.max_epochs=2"]
        train(config)

    message = ends_well(work)
    assert not leftovers(file.parent)
    assert (file.parent / "run" / "metrics.json").exists() == (message is None)
    return message


STATE = ("callbacks", "loops", "lr_schedulers", "optimizer_states", "epoch", "global_step")


@cases(20)
@given(data=st.data())
def test_any_altered_training_state_is_gone_on_from_or_named(
    data: st.DataObject, content: dict[str, Any], tmp_path: Path
) -> None:
    group = data.draw(st.sampled_from(STATE))
    place = data.draw(st.sampled_from(list(places_in(content[group], (group,))) or [(group,)]))
    value = data.draw(st.one_of(st.just(REMOVED), odd_values))
    go_on(saved(altered(content, place, value), tmp_path))
    assert not Path("was_called").exists()


# -------------------------------------------------------------------------- strangers' files


def test_code_in_a_teacher_is_not_run(last: Path) -> None:
    torch.save(torch.load(last, weights_only=True) | {"more": Bomb()}, last)
    with pytest.raises(UserError, match=r"last\.ckpt is not a checkpoint of cifar-lightning"):
        train(compose([*SMALLEST, f"teacher={last}"], "run"))
    assert not Path("was_called").exists()
    torch.load(last, weights_only=False)  # it would have been
    assert Path("was_called").is_dir()


def test_what_a_teacher_wants_to_call_is_not_called(last: Path) -> None:
    call = {"_target_": "os.mkdir", "path": "was_called"}
    changed(last, in_config(lambda config: config.update(model=call)))
    with pytest.raises(UserError, match=r"wants to call 'os\.mkdir' in model"):
        train(compose([*SMALLEST, f"teacher={last}"], "run"))
    assert not Path("was_called").exists()
    instantiate(call)  # it would have been
    assert Path("was_called").is_dir()


@pytest.mark.parametrize("name", ["config.yaml", "overrides.yaml", "hydra.yaml"])
def test_code_in_a_runs_folder_is_not_run_by_a_report_of_it(
    name: str, trained: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained.parents[1], tmp_path / "run"))
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text("[]")
    code = "!!python/object/apply:os.mkdir [was_called]\n"
    (folder / ".hydra" / name).write_text(code)
    assert ends_well(lambda: report(compose([f"run={folder}"], config_name="report"))) is None
    assert (folder / "report.html").is_file()
    assert not Path("was_called").exists()
    yaml.unsafe_load(code)  # it would have been
    assert Path("was_called").is_dir()
