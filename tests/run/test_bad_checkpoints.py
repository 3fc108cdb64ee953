"""Damaged and malicious checkpoints: loaded, or refused in one message; none of them runs code.

test_checkpoint.py tests what a well-formed checkpoint may call.
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
from checkpoints import Bomb, Copies, changed, in_network
from conftest import TINY
from endings import altered, cases, ends_well, leftovers
from hypothesis import given
from hypothesis import strategies as st

from cifar_lightning import run
from cifar_lightning.checkpoints import io as checkpoint
from cifar_lightning.config.compose import compose
from cifar_lightning.errors import UserError
from cifar_lightning.run import resume
from cifar_lightning.system.memory import free_memory
from cifar_lightning.train import train

# A network of so few weights that a file of it is mostly structure.
SMALLEST = (
    *TINY,
    *("model=residual_dw_257k", "model.widths=[8,8,8]", "model.depths=[0,0,1]", "model.squeeze=2"),
    "target_accuracy=null",
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
def last(case: Callable[[], Path], trained: Path) -> Path:
    """A copy, whose content `changed` changes."""
    return Path(shutil.copy(trained, case()))


@pytest.fixture
def case(trained: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes a file's path for one case, in a copy of the run: hypothesis has many in a test."""

    def make() -> Path:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        for name in ("config.yaml", "metrics.csv"):
            shutil.copy(trained.parents[1] / name, folder)
        (folder / "checkpoints").mkdir()
        shutil.copy(trained.with_name("best.ckpt"), folder / "checkpoints")
        return folder / "checkpoints" / "last.ckpt"

    return make


RESUMED = compose()
RESUMED.overrides = []


def read_every_way(file: Path) -> None:
    """As evaluate, predict and export read it, and as a resume does."""
    message = ends_well(lambda: checkpoint.read_checkpoint(file))
    again = ends_well(lambda: run.rebuild(file))
    assert message is None or again == message
    config = copy.deepcopy(RESUMED)
    config.resume = str(file)
    ends_well(lambda: resume.resumed(config))
    assert not leftovers(file.parent)


@cases(40)
@given(data=st.data())
def test_any_altered_bytes_are_rebuilt_or_named(
    data: st.DataObject, trained: Path, case: Callable[[], Path]
) -> None:
    file = case()
    file.write_bytes(data.draw(altered(trained.read_bytes())))
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
    st.sampled_from([Bomb(), Copies()]),
    st.lists(st.integers(-3, 3), max_size=3),
    st.sampled_from(ODD_TENSORS),
)


def altered_at(content: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
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


@cases(15)
@given(data=st.data())
def test_any_altered_entry_is_rebuilt_or_named(
    data: st.DataObject, content: dict[str, Any], case: Callable[[], Path]
) -> None:
    group = data.draw(st.sampled_from([*content, "hyper_parameters", "hyper_parameters"]))
    place = data.draw(st.sampled_from(list(places_in(content[group], (group,)))))
    value = data.draw(st.one_of(st.just(REMOVED), odd_values))
    file = case()
    torch.save(altered_at(content, place, value), file)
    read_every_way(file)
    assert not Path("was_called").exists()


# ------------------------------------------------------------------------ more than it seems


def ten_times_ten(depth: int) -> list[Any]:
    content: list[Any] = []
    for _ in range(depth):
        content = [content] * 10
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda network: network.update(x=ten_times_ten(30)), "is from a version that this one"),
        (
            # Of 3 x 3 x width x width numbers of four bytes: too many for what is free.
            lambda network: network.update(
                widths=[math.isqrt(free_memory() // 30)] * 3, depths=[0, 0, 0]
            ),
            r"the network's weights would need .* GB of memory|can't allocate memory",
        ),
    ],
)
def test_a_small_checkpoint_that_would_fill_any_memory_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, last: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run.rebuild(changed(last, in_network(change)))


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


def test_weights_that_are_not_finite_are_named(last: Path, tmp_path: Path) -> None:
    name = next(iter(torch.load(last, weights_only=True)["state_dict"]))

    def spoil(content: dict[str, Any]) -> None:
        content["state_dict"][name].view(-1)[0] = math.inf

    changed(last, spoil)
    before = set(tmp_path.rglob("*"))
    resumed = compose([f"resume={last}"], tmp_path / "run")
    for read in (lambda: run.rebuild(last), lambda: train(resumed)):
        with pytest.raises(UserError, match=f"weights {name} are NaN or infinite"):
            read()
    assert set(tmp_path.rglob("*")) == before


# --------------------------------------------------------------------------------- resuming


STATE = ("callbacks", "loops", "lr_schedulers", "optimizer_states", "epoch", "global_step")


@pytest.mark.slow
@cases(15)
@given(data=st.data())
def test_any_altered_training_state_is_resumed_or_named(
    data: st.DataObject, content: dict[str, Any], case: Callable[[], Path]
) -> None:
    group = data.draw(st.sampled_from(STATE))
    place = data.draw(st.sampled_from(list(places_in(content[group], (group,))) or [(group,)]))
    value = data.draw(st.one_of(st.just(REMOVED), odd_values))
    file = case()
    torch.save(altered_at(content, place, value), file)
    run_dir = file.parents[1]
    config = compose([f"resume='{file}'", "trainer.max_epochs=2"], run_dir)
    message = ends_well(lambda: train(config))
    assert not leftovers(file.parent)
    assert (run_dir / "metrics.json").exists() == (message is None)
    assert not Path("was_called").exists()
