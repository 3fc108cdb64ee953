"""Bad input of each kind on the real command line; other files test more cases in one process.

These are test_bad_config.py, test_image_folder.py and test_bad_checkpoints.py.
"""

from pathlib import Path

import pytest
import torch
from checkpoints import Bomb
from data_sets import bomb, data_set, write_folder, write_zip
from programs import one_message, run_command
from test_bad_config import SMALL

from cifar_lightning.config.compose import CONF

FOLDER = ("data=folder", "data.batch_size=1", "data.val_size=0", "target_accuracy=null")
DEEP = ("model=residual_dw_257k", "model.depths=[1000000000,0,0]")

CASES: list[tuple[str, list[str], str]] = [
    ("train", [*SMALL, "data.train_size=1000000000000"], "GB of memory"),
    ("train", [*SMALL, *DEEP], "more than 10,000 weight tensors"),
    ("train", [*SMALL, "seed='\x1b[31m'"], "seed=\N{REPLACEMENT CHARACTER}[31m should be"),
    ("train", [*SMALL, "~trainer.precision"], "trainer.precision cannot be removed"),
    ("train", [*FOLDER, "data.path=half.zip"], "is damaged or not an archive"),
    ("train", [*FOLDER, "data.path=bomb.tgz"], "unpacks to more than 100 times its size"),
    ("train", [*FOLDER, "data.path=set"], "a\N{REPLACEMENT CHARACTER}.png cannot be read"),
    ("train", ["data=cifar10", "data.root=r", "data.mirrors=[]", "data.mirror=x.gz"], "md5 is"),
    ("train", ["resume=half.ckpt"], "is not in its run's folder"),
    ("evaluate", ["checkpoint=half.ckpt"], "is not a checkpoint of cifar-lightning"),
    ("export", ["checkpoint=bomb.ckpt", "format=pt2"], "is not a checkpoint of"),
    ("predict", ["checkpoint=bomb.ckpt", "images=set"], "is not a checkpoint of"),
    ("report", ["run=set"], "is not a run's folder"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "typed", "expected"),
    [case for case in CASES if (CONF / f"{case[0]}.yaml").exists()],
    ids=lambda x: "_".join(x)[:40] if isinstance(x, list) else None,
)
def test_bad_input_ends_the_command_with_one_message_and_nothing_written(
    name: str, typed: list[str], expected: str, tmp_path: Path
) -> None:
    files = data_set()
    write_folder(tmp_path / "set", {**files, "train/cat/a\x1b.png": b"x"})
    whole = write_zip(tmp_path / "half.zip", files).read_bytes()
    (tmp_path / "half.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bomb.tgz").write_bytes(bomb("name"))
    (tmp_path / "x.gz").write_bytes(b"x")
    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.ckpt")
    (tmp_path / "half.ckpt").write_bytes((tmp_path / "bomb.ckpt").read_bytes()[:300])
    before = {*tmp_path.rglob("*")}
    ended = run_command(name, *typed)
    assert expected in one_message(ended)
    written = {file.name for file in {*tmp_path.rglob("*")} - before if file.is_file()}
    # What was typed, and the locks of two folders.
    known = {"config.yaml", "hydra.yaml", "overrides.yaml", "train.log"}
    assert {file for file in written - known if not file.endswith(".lock")} == set()
