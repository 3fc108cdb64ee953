"""What set-up installs: requirements.lock is whole, agrees with pyproject.toml, and is audited."""

import json
import re
import socket
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from test_makefile import make
from torchvision.ops import nms

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = (ROOT / "pyproject.toml").read_text()

# All that a lock may say: there is no room for an address, an option of pip or a local folder.
PIN = re.compile(r"([a-z0-9-]+==[^\s;@]+(?: ; [^;@]+)?) \\")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?")
ORIGIN = re.compile(r"    #(?: via)?(?: +[\w-]+(?: \(pyproject\.toml\))?)?")

# The lock is for all of them, with pins that hold for some alone; installed here is one.
PYTHONS = ("3.11", "3.12", "3.13")

# Malware, and a file of weights that runs code; its sister package was hit too.
BAD_RELEASES = {"pytorch-lightning": ("2.6.2", "2.6.3", "2.6.5"), "lightning": ("2.6.2", "2.6.3")}


def faults_of_form(lock: str) -> list[str]:
    """Lines that a lock should not have, and pins that any file of the right name would meet."""
    lines = lock.splitlines()
    foreign = [line for line in lines if not any(f.fullmatch(line) for f in (PIN, HASH, ORIGIN))]
    pairs = zip(lines, [*lines[1:], ""], strict=True)
    return foreign + [pin for pin, next_ in pairs if PIN.fullmatch(pin) and not HASH.match(next_)]


def applies(need: Requirement, python: str | None = None, extra: str = "") -> bool:
    """Whether its marker is met by a Python version or by this one, with an extra asked for."""
    environment = {"extra": extra}
    if python is not None:
        environment |= {"python_version": python, "python_full_version": f"{python}.0"}
    return need.marker is None or need.marker.evaluate(environment)


def pins(lock: str, python: str | None = None) -> list[tuple[str, Version]]:
    found = [Requirement(each[1]) for each in map(PIN.fullmatch, lock.splitlines()) if each]
    return [
        (pin.name, Version(specifier.version))
        for pin in found
        for specifier in pin.specifier
        if applies(pin, python)
    ]


def asked_for(project: str) -> list[str]:
    """What pyproject.toml names, with all its extras."""
    table = tomllib.loads(project)["project"]
    extras = table["optional-dependencies"].values()
    return [*table["dependencies"], *(need for extra in extras for need in extra)]


@cache
def asked_by(name: str, extra: str) -> list[str]:
    """What a package that is installed here asks for, by itself or by an extra."""
    needs = metadata.requires(name) or []
    return [need for need in needs if applies(Requirement(need), extra=extra)]


def asked_for_in_turn(needs: list[str]) -> list[str]:
    """These, and what the packages in them ask for, and so on."""
    queue, seen = [*needs], set[tuple[str, str]]()
    for text in queue:  # it grows
        need = Requirement(text)
        for asker in {(need.name, extra) for extra in ("", *need.extras)} - seen:
            seen.add(asker)
            queue += asked_by(*asker)
    return queue


def unmet(needs: list[str], lock: str, python: str | None = None) -> list[str]:
    """Needs that no pin meets, or for which two pins compete."""
    held = pins(lock, python)
    faults = []
    for need in map(Requirement, needs):
        versions = [version for name, version in held if name == canonicalize_name(need.name)]
        met = [need.specifier.contains(version, prereleases=True) for version in versions]
        if met != [True]:
            faults.append(f"{need}, but locked: {', '.join(map(str, versions)) or 'nothing'}")
    return faults


def unasked(needs: list[str], lock: str) -> list[str]:
    named = {canonicalize_name(Requirement(need).name) for need in needs}
    return [f"{name}, which nothing asks for" for name, _ in pins(lock) if name not in named]


def bad_releases(needs: list[str]) -> list[str]:
    return [
        f"{need} lets {release} in"
        for need in map(Requirement, needs)
        for release in BAD_RELEASES.get(need.name, ())
        if need.specifier.contains(release)
    ]


def without_a_reason(project: str) -> list[str]:
    """Needs whose line in pyproject.toml does not say what they are for."""
    return [
        f"{need} without a reason"
        for need in asked_for(project)
        if not re.search(rf'^    "{re.escape(need)}",  # \w', project, re.MULTILINE)
    ]


def installed_otherwise(lock: str) -> list[str]:
    found = {str(canonicalize_name(each.name)): each.version for each in metadata.distributions()}
    return [
        f"{name} {version} is locked, {found.get(name, 'nothing')} installed"
        for name, version in pins(lock)
        if name not in found or Version(found[name]) != version
    ]


def all_faults(project: str, lock: str) -> list[str]:
    needs = asked_for(project)
    all_needs = asked_for_in_turn(needs)
    return [
        *faults_of_form(lock),
        *(fault for python in PYTHONS for fault in unmet(needs, lock, python)),
        *unmet(all_needs, lock),
        *unasked(all_needs, lock),
        *bad_releases(needs),
        *without_a_reason(project),
        *installed_otherwise(lock),
    ]


def test_the_lock_is_whole_is_what_the_project_asks_for_and_is_what_is_installed() -> None:
    assert len(pins(LOCK)) > 100
    assert all_faults(PROJECT, LOCK) == []


def test_torchvision_has_its_operators_from_the_torch_beside_it() -> None:
    # What a pair that does not match loses, whatever their metadata say of each other.
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [5, 5, 6, 6]])
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]


def locked_at(name: str, version: str) -> Callable[[str], str]:
    return lambda lock: re.sub(rf"^{name}==[^\s;]+", f"{name}=={version}", lock, flags=re.MULTILINE)


def without(name: str) -> Callable[[str], str]:
    return lambda lock: re.sub(rf"^{name}==.*\n( .*\n)+", "", lock, flags=re.MULTILINE)


def with_(text: str) -> Callable[[str], str]:
    return lambda lock: f"{lock}{text}\n"


def without_the_hashes_of(name: str) -> Callable[[str], str]:
    return lambda lock: re.sub(
        rf"^({name}==.*\n)(    --hash.*\n)+", r"\1", lock, flags=re.MULTILINE
    )


A_HASH = f"    --hash=sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (locked_at("filelock", "3.19.0"), "filelock>=4, but locked: 3.19.0"),
        (locked_at("wandb", "0.32.0"), "wandb<0.32,>=0.31, but locked: 0.32.0"),
        (locked_at("pytorch-lightning", "2.6.5"), "but locked: 2.6.5"),
        # In the range of pyproject.toml, but too old for this torchvision.
        (locked_at("torch", "2.11.0"), ", but locked: 2.11.0"),
        (locked_at("pydantic-core", "2.0.0"), "but locked: 2.0.0"),
        (locked_at("idna", "3.10"), "idna 3.10 is locked"),
        (without("pytest"), "pytest>=9, but locked: nothing"),
        (without("psycopg-binary"), "psycopg-binary"),  # of psycopg's extra
        (with_(f"numpy==2.0.0 \\\n{A_HASH}"), "2.0.0"),
        (with_(f"left-pad==1.3.0 \\\n{A_HASH}"), "left-pad, which nothing asks for"),
        (without_the_hashes_of("torch"), f"torch=={metadata.version('torch')} \\"),
        (with_("six==1.17.0"), "six==1.17.0"),
        (with_("six==1.17.0 \\\n    --hash=md5:d41d8cd98f00b204e9800998ecf8427e"), "md5"),
        (with_("six==1.17.0 \\\n    --hash=sha256:00"), "six==1.17.0 \\"),
        (with_(f"six>=1.17.0 \\\n{A_HASH}"), "six>=1.17.0 \\"),
        (with_("--index-url https://example.org/simple"), "--index-url"),
        (with_("--find-links wheels"), "--find-links"),
        (with_("--trusted-host example.org"), "--trusted-host"),
        (with_("-e ."), "-e ."),
        (with_(f"six @ https://example.org/six-1.17.0.whl \\\n{A_HASH}"), "six @ https"),
        (with_("    # from https://example.org/simple"), "example.org"),
    ],
)
def test_a_damaged_lock_is_found(damage: Callable[[str], str], fault: str) -> None:
    assert any(fault in found for found in all_faults(PROJECT, damage(LOCK)))


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('"pytorch-lightning>=2.6.6,<2.7"', '"pytorch-lightning>=2.6,<2.7"', "lets 2.6.5 in"),
        ('"pillow>=12"', '"pillow>=99"', "pillow>=99, but locked"),
        ('"rich>=14"', '"rich>=14,<15"', "rich<15,>=14, but locked"),
        ('    "rich>=14",  # ', '    "rich>=14", #', "rich>=14 without a reason"),
        ('    "pytest>=9",  # tests', '    "pytest>=9",', "pytest>=9 without a reason"),
    ],
)
def test_a_project_that_its_lock_does_not_fit_is_found(old: str, new: str, fault: str) -> None:
    assert PROJECT.count(old) == 1
    assert any(fault in found for found in all_faults(PROJECT.replace(old, new), LOCK))


def audit(cache: Path, *options: str) -> tuple[int, str, str]:
    # With a cache of its own, as answers of yesterday would do for a service that is away.
    arguments = " ".join(["--cache-dir", str(cache), *options])
    ended = make(ROOT, "--silent", "audit", f"ARGS={arguments}")
    return ended.returncode, ended.stdout, ended.stderr


def test_without_an_answer_an_audit_fails_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as nobody:  # listens
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        code, output, error = audit(tmp_path)
    assert (code, output) == (2, "")
    said, by_make = error.splitlines()
    assert said.startswith("Error: nothing was audited. pip-audit's last words: ")
    assert by_make.startswith("make: ***")
    # Else an index that is up but has no such service passes for one that knows of no holes.
    assert " --strict " in make(ROOT, "--dry-run", "audit").stdout


@contextmanager
def advisories(of: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """The address of a service that answers as OSV's does, with these holes of these packages."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            holes = of.get(asked["package"]["name"])
            answer = json.dumps({"vulns": holes} if holes else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *_: object) -> None:  # noqa: A002
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_an_audit_passes_without_holes_and_fails_with_one_which_it_shows(tmp_path: Path) -> None:
    hole = {
        "id": "PYSEC-0000-1",
        "affected": [
            {
                "package": {"ecosystem": "PyPI", "name": "jinja2"},
                "ranges": [{"type": "ECOSYSTEM", "events": [{"fixed": "99.1"}]}],
            }
        ],
    }
    with advisories({}) as address:
        code, output, error = audit(tmp_path / "clean", "-s", "osv", "--osv-url", address)
    assert (code, error) == (0, "")
    assert output.endswith("No known vulnerabilities found\n")
    with advisories({"jinja2": [hole], "no-package-of-ours": [hole]}) as address:
        code, output, _ = audit(tmp_path / "hole", "-s", "osv", "--osv-url", address)
    assert code == 2
    assert "Found 1 known vulnerability in 1 package" in output
    assert re.search(r"jinja2 +\S+ +PYSEC-0000-1 +99\.1", output)
