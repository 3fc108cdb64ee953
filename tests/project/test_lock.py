"""requirements.lock has exact versions and hashes, and matches pyproject.toml."""

import re
import socket
import tomllib
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from test_makefile import make

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
CONTENT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = CONTENT["project"]
EXTRAS = PROJECT["optional-dependencies"]
DEV = CONTENT["dependency-groups"]["dev"]
OWN = {f"cifar-lightning[{extra}]" for extra in EXTRAS}
NEEDS = [
    *PROJECT["dependencies"],
    *chain(*EXTRAS.values()),
    *(need for need in DEV if need not in OWN),
]

# All that a lock may say: there is no room for an address, an option of pip or a local folder.
ENTRY = re.compile(
    r"[a-z0-9-]+==[^\s;@]+(?: ; [^;@\n]+)? \\\n"
    r"(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+"
    r"(?:    #(?: via)?(?: +[\w-]+(?: \(pyproject\.toml:dev\))?)?\n)*"
)
# That this project itself is left out, uv says at the end.
END = "\n# The following packages were excluded from the output:\n# cifar-lightning\n"


def test_the_lock_holds_exact_versions_with_hashes_and_nothing_else() -> None:
    assert len(ENTRY.findall(LOCK)) > 100
    assert ENTRY.sub("", LOCK) == END


def test_the_lock_is_what_the_project_asks_for_and_what_is_installed() -> None:
    pins = [Requirement(line.strip(" \\")) for line in LOCK.splitlines() if "==" in line]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    versions = {pin.name: Version(next(iter(pin.specifier)).version) for pin in here}
    assert len(versions) == len(here)
    for need in map(Requirement, NEEDS):
        assert need.specifier.contains(versions[canonicalize_name(need.name)]), need
    for name, version in versions.items():
        assert Version(metadata.version(name)) == version, name


def test_uv_sync_installs_the_extras_of_every_tool_from_this_project() -> None:
    assert set(DEV) >= OWN
    # Never from a package index, where anyone may publish a package of this name.
    assert CONTENT["tool"]["uv"]["sources"]["cifar-lightning"] == {"workspace": True}


def test_releases_of_lightning_that_are_malware_or_run_code_of_a_checkpoint_are_shut_out() -> None:
    (lightning,) = (need for need in map(Requirement, NEEDS) if need.name == "pytorch-lightning")
    for release in ("2.6.2", "2.6.3", "2.6.5"):
        assert not lightning.specifier.contains(release)


def test_without_an_answer_an_audit_fails_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as nobody:  # listens
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        # A cache of its own, as answers of yesterday would do for a service that is away.
        ended = make(ROOT, "--silent", "audit", f"ARGS=--cache-dir {tmp_path}")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("Error: nothing was audited. pip-audit's last words: ")
    # Else an index that is up but has no such service passes for one without vulnerabilities.
    assert " --strict " in make(ROOT, "--dry-run", "audit").stdout
