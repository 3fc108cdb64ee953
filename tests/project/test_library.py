"""The package as a library: its public names, and docs/how-to/library.md."""

import inspect
import re
from pathlib import Path

import pytest
from PIL import Image

import cifar_lightning
from cifar_lightning.config.compose import CONF

PAGE = (CONF.parent / "docs/how-to/library.md").read_text()
EXAMPLES = re.findall(r"^## (.*?)\n\n```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
SMALLER = (
    "train_size=2500, val_size=500, batch_size=50",
    "train_size=1200, test_size=150, val_size=200, batch_size=25",
)

NAMES = sorted(cifar_lightning.__all__)


def test_the_page_names_what_is_public() -> None:
    page = (CONF.parent / "docs/reference/python.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == NAMES
    assert set(NAMES) <= set(dir(cifar_lightning))


def described(name: str) -> str:
    """A class's description with those of its bases, which it may refer to."""
    public = getattr(cifar_lightning, name)
    if not inspect.isclass(public):
        return inspect.getdoc(public) or ""
    ours = [c for c in public.__mro__ if c.__module__.startswith("cifar_lightning")]
    return " ".join(c.__doc__ or "" for c in ours)


@pytest.mark.parametrize("name", NAMES)
def test_each_public_name_says_what_it_takes(name: str) -> None:
    public = getattr(cifar_lightning, name)
    assert (inspect.getdoc(public) or "").splitlines()[0].endswith((".", ";"))
    if not issubclass(public if inspect.isclass(public) else int, Exception):
        for parameter in inspect.signature(public).parameters:
            assert re.search(rf"\b{parameter}\b", described(name)), parameter


def run_example(code: str, capsys: pytest.CaptureFixture[str]) -> str:
    code = code.replace(*SMALLER)
    exec(compile(code, "library.md", "exec"), {"__name__": "__main__"})
    return capsys.readouterr().out


# Lightning warns of what is no mistake here: see `quiet` in run/fit.py.
@pytest.mark.filterwarnings("default")
@pytest.mark.slow
@pytest.mark.parametrize("code", [EXAMPLES[0][1], EXAMPLES[1][1]], ids=["loop", "trainer"])
def test_the_examples_train(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_example(code, capsys)
    last = printed.splitlines()[-1]
    found = re.fullmatch(r"([\d.]+)% of the test images", last)
    assert found is not None, last
    assert float(found[1]) > 20  # of ten classes
    if "count_network(" in code:
        assert "NetworkCounts(parameters=257856, dilated=1, separable=2" in printed


def test_the_example_with_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    for number, colour in enumerate(("skyblue", "forestgreen")):
        Image.new("RGB", (60, 40), colour).save(tmp_path / "photos" / f"{number}.jpg")
    lines = run_example(EXAMPLES[2][1], capsys).splitlines()
    classes = "|".join(cifar_lightning.load("best_1m").classes)
    assert len(lines) == 2
    for number, line in enumerate(lines):
        assert re.fullmatch(rf"{number}\.jpg: ({classes}) \(\d+%\)", line)
