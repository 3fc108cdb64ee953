"""The package as a library: its public names, their types, and docs/library.md."""

import inspect
import re
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from PIL import Image

import cifar_lightning
from cifar_lightning.config.compose import CONF

PAGE = (CONF.parent / "docs" / "library.md").read_text()
EXAMPLES = re.findall(r"^## (.*?)\n\n```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
SMALLER = (
    "train_size=2500, val_size=500, batch_size=50",
    "train_size=1200, test_size=150, val_size=200, batch_size=25",
)

NAMES = sorted(cifar_lightning.__all__)


def test_the_page_names_what_is_public() -> None:
    assert sorted(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == NAMES
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


def test_the_page_has_three_examples() -> None:
    assert len(EXAMPLES) == 3


def run_example(code: str, capsys: pytest.CaptureFixture[str]) -> str:
    code = code.replace(*SMALLER)
    exec(compile(code, "library.md", "exec"), {"__name__": "__main__"})
    return capsys.readouterr().out


# Lightning warns of what is no mistake here: see training.quiet.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("code", [code for _, code in EXAMPLES[:2]], ids=["loop", "trainer"])
def test_the_examples_train(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_example(code, capsys)
    last = printed.splitlines()[-1]
    found = re.fullmatch(r"([\d.]+)% of the test images", last)
    assert found is not None, last
    assert float(found[1]) > 20  # of ten classes
    if "count(" in code:
        assert "Budget(parameters=257856, dilated=1, separable=2" in printed


def test_the_example_with_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    for number, colour in enumerate(("skyblue", "forestgreen")):
        Image.new("RGB", (60, 40), colour).save(tmp_path / "photos" / f"{number}.jpg")
    lines = run_example(EXAMPLES[2][1], capsys).splitlines()
    classes = "|".join(cifar_lightning.load("best_1m").classes)
    assert len(lines) == 2
    for number, line in enumerate(lines):
        assert re.fullmatch(rf"{number}\.jpg: ({classes}) \(\d+%\)", line)


@pytest.mark.slow
@pytest.mark.parametrize("marked", [True, False])
def test_a_type_checker_sees_the_types_where_the_package_is_installed(
    marked: bool, tmp_path: Path
) -> None:
    # Copied, not installed from this checkout: there the types would be found in any case.
    venv.create(tmp_path / "env", with_pip=False)
    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    shutil.copytree(Path(cifar_lightning.__file__).parent, packages / "cifar_lightning")
    if not marked:
        (packages / "cifar_lightning" / "py.typed").unlink()
    file = tmp_path / "of_a_user.py"
    file.write_text(
        "from cifar_lightning import Muon, load, nonsense\n"
        'reveal_type(load("best_dilated_dw"))\n'
        'Muon([], lr="high")\n'
    )
    ended = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-executable", tmp_path / "env/bin/python", file],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    if marked:
        assert (
            'Revealed type is "cifar_lightning.checkpoints.pretrained.Pretrained"' in ended.stdout
        )
        assert 'has no attribute "nonsense"' in ended.stdout
        assert 'Argument "lr" to "Muon" has incompatible type "str"' in ended.stdout
    else:
        assert "missing library stubs or py.typed marker" in ended.stdout
