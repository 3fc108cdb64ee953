"""The official files: from real servers that do what servers do, to the first batch."""

import hashlib
import http.server
import io
import pickle
import re
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rich
import torch
from conftest import TINY
from filelock import FileLock
from rich.console import Console
from torchvision.datasets import CIFAR10

from cifar_lightning.config.compose import compose
from cifar_lightning.data import Cifar10Data, download
from cifar_lightning.data.mirrors import NoMirror, fetch_file
from cifar_lightning.errors import DataUnavailable
from cifar_lightning.train import train

PIXELS = np.random.default_rng(0).integers(0, 256, (150, 3072), dtype=np.uint8)
CLASSES = ["airplane", "automobile", "bird", "cat", "deer"]


def official_files() -> dict[str, bytes]:
    """A small data set in the official layout: 20 images a training batch, 50 test images."""

    def batch(pixels: object, count: int) -> bytes:
        return pickle.dumps({"data": pixels, "labels": [i % 5 for i in range(count)]})

    files = {
        f"data_batch_{i + 1}": batch(PIXELS[20 * i : 20 * i + 20], 20)
        for i in range(len(CIFAR10.train_list))
    }
    files["test_batch"] = batch(PIXELS[100:], 50)
    files["batches.meta"] = pickle.dumps({"label_names": CLASSES})
    return files


def archive_of(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


FILES = official_files()
ARCHIVE = archive_of(FILES)  # about 450 kB that no compression makes smaller
MD5 = hashlib.md5(ARCHIVE).hexdigest()


@pytest.fixture(autouse=True)
def _our_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision is told that our small archive is the official one."""
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in FILES.items()}
    monkeypatch.setattr(CIFAR10, "train_list", [(n, md5[n]) for n in FILES if "data" in n])
    monkeypatch.setattr(CIFAR10, "test_list", [("test_batch", md5["test_batch"])])
    monkeypatch.setitem(CIFAR10.meta, "md5", md5["batches.meta"])
    monkeypatch.setattr(CIFAR10, "tgz_md5", MD5)


class Server(http.server.ThreadingHTTPServer):
    """Mirrors, good and bad, by path; `requests` are the path and first byte of each download."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, int]] = []
        self.sent = 0
        self.closing = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no fault here."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        kind = self.path[1:]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        self.server.requests.append((kind, first))
        if kind in ("404", "503"):
            self.send_error(int(kind))
            return
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", "/good")
            self.end_headers()
            return
        content = ARCHIVE[::-1] if kind.endswith("wrong") else ARCHIVE
        if first >= len(content):
            self.send_error(416)
            return
        if kind == "portal":  # asks for a log-in, whatever one wants
            first, content = 0, b"<html>" + b" log in " * 5000
        if kind == "capped":  # sends no more than this in one answer
            content = content[: first + 100_000]
        if kind.startswith("whole") or kind == "portal":  # knows no ranges
            first = 0
            self.send_response(200)
        else:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(ARCHIVE)}")
        if kind == "page":
            self.send_header("Content-Encoding", "gzip")
        if kind != "unsized":
            self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        self.send(kind.removeprefix("whole-"), content[first:])

    def send(self, kind: str, content: bytes) -> None:
        pause = 0.0
        if kind == "breaks":
            content = content[:100_000]
        elif kind == "silent":
            content = content[:1000]
        elif kind == "slow":
            pause = 0.05  # 10,000 bytes each time: 200 kB/s
        elif kind == "trickle":
            pause, content = 0.05, content[:100]
        size = {"slow": 10_000, "trickle": 1}.get(kind, 100_000)
        for start in range(0, len(content), size):
            self.wfile.write(content[start : start + size])
            self.server.sent += len(content[start : start + size])
            if pause and self.server.closing.wait(pause):
                return
        if kind in ("silent", "trickle"):
            self.server.closing.wait(30)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.closing.set()
        running.shutdown()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "WINDOW_SECONDS", 1.0)


def fetched(folder: Path, *mirrors: str) -> bytes:
    file = fetch_file(mirrors, folder / "archive", MD5)
    assert file == folder / "archive"
    assert [path.name for path in folder.iterdir()] == ["archive"]  # no part is left
    return file.read_bytes()


@pytest.mark.parametrize(
    "kind", ["good", "whole-good", "redirect", "page", "unsized", "slow", "breaks", "capped"]
)
def test_the_archive_arrives_byte_for_byte(tmp_path: Path, server: Server, kind: str) -> None:
    assert fetched(tmp_path, server.url(kind)) == ARCHIVE


def test_a_download_that_broke_off_goes_on_from_there(tmp_path: Path, server: Server) -> None:
    assert fetched(tmp_path, server.url("breaks")) == ARCHIVE
    firsts = [first for _, first in server.requests]
    assert firsts == list(range(0, len(ARCHIVE), 100_000))
    assert server.sent == len(ARCHIVE)


def test_it_goes_on_at_the_next_start_and_at_another_mirror(tmp_path: Path, server: Server) -> None:
    # Breaks off, and knows nothing of ranges, so it never gets further.
    with pytest.raises(NoMirror, match=r"broke off[\s\S]*0\.1 MB are in .*archive\.part"):
        fetch_file([server.url("whole-breaks")], tmp_path / "archive", MD5)
    assert fetched(tmp_path, server.url("503"), server.url("good")) == ARCHIVE
    assert server.requests[-1] == ("good", 100_000)


@pytest.mark.parametrize("kind", ["good", "whole-good", "unsized", "capped"])
def test_what_is_there_is_not_downloaded_twice(tmp_path: Path, server: Server, kind: str) -> None:
    (tmp_path / "archive.part").write_bytes(ARCHIVE[:250_000])
    assert fetched(tmp_path, server.url(kind)) == ARCHIVE
    firsts = [first for _, first in server.requests]
    assert firsts == sorted(firsts)
    assert firsts[0] == 250_000  # and never again from nothing


@pytest.mark.parametrize("kind", ["portal", "wrong", "whole-wrong", "404"])
def test_a_bad_mirror_does_not_cost_what_is_there(
    tmp_path: Path, server: Server, kind: str
) -> None:
    (tmp_path / "archive.part").write_bytes(ARCHIVE[:200_000])
    with pytest.raises(NoMirror, match=r"0\.2 MB are in"):
        fetch_file([server.url(kind)], tmp_path / "archive", MD5)
    assert [path.name for path in tmp_path.iterdir()] == ["archive.part"]
    assert (tmp_path / "archive.part").read_bytes() == ARCHIVE[:200_000]
    server.sent = 0
    assert fetched(tmp_path, server.url(kind), server.url("good")) == ARCHIVE
    assert server.requests[-1] == ("good", 200_000)


@pytest.mark.parametrize("kind", ["good", "whole-good"])
@pytest.mark.parametrize("size", [1000, len(ARCHIVE), len(ARCHIVE) + 5])
def test_a_part_of_something_else_does_no_harm(
    tmp_path: Path, server: Server, kind: str, size: int
) -> None:
    (tmp_path / "archive.part").write_bytes(b"x" * size)
    assert fetched(tmp_path, server.url(kind)) == ARCHIVE


def test_a_part_that_is_whole_already_is_taken(tmp_path: Path, server: Server) -> None:
    (tmp_path / "archive.part").write_bytes(ARCHIVE)
    assert fetched(tmp_path, server.url("good")) == ARCHIVE
    assert not server.requests


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["silent", "trickle"])
def test_a_stalled_download_is_given_up_for_the_next_mirror(
    tmp_path: Path, server: Server, kind: str
) -> None:
    assert fetched(tmp_path, server.url(kind), server.url("good")) == ARCHIVE
    with pytest.raises(NoMirror, match=r"kB/s, which is as good as nothing"):
        fetch_file([server.url(kind)], tmp_path / "other", MD5)


@pytest.mark.usefixtures("impatient")
def test_a_slow_mirror_is_left_for_when_there_is_no_other(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetched(tmp_path, server.url("slow"), server.url("good")) == ARCHIVE
    assert [kind for kind, _ in server.requests] == ["slow", "good"]
    assert "looking for a faster mirror" in capsys.readouterr().out
    (tmp_path / "archive").unlink()
    server.requests.clear()
    assert fetched(tmp_path, server.url("slow"), server.url("404")) == ARCHIVE
    assert [kind for kind, _ in server.requests] == ["slow", "404", "slow"]


def test_each_try_says_from_where_and_shows_its_progress(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(rich, "_console", terminal)
    fetched(tmp_path, server.url("404"), server.url("slow"))
    assert isinstance(terminal.file, io.StringIO)
    shown = terminal.file.getvalue()
    assert "Downloading from 127.0.0.1" in shown
    assert "━" in shown
    assert re.search(r"\d+(\.\d+)?/\d+(\.\d+)? kB", shown)
    assert re.search(r"\d kB/s", shown)


def test_what_each_mirror_did_is_told(tmp_path: Path, server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}/x"
    mirrors = [
        server.url("404"),
        server.url("wrong"),
        closed,
        "http://no-such-host.invalid/x",
        "nonsense",
        "ftp://nobody/x",
        str(tmp_path),
    ]
    with pytest.raises(NoMirror) as raised:
        fetch_file(mirrors, tmp_path / "archive", MD5)
    lines = str(raised.value).splitlines()
    assert [line.split(": ")[0].strip() for line in lines] == mirrors
    expected = (
        "it answered 404 Not Found",
        f"the md5 of what it sent is {hashlib.md5(ARCHIVE[::-1]).hexdigest()}, not {MD5}",
        "Connection refused",
        "",  # what a resolver says is its own; that it is no traceback is looked at below
        "there is no such file, and it is no http:// or https:// address",
        "there is no such file, and it is no http:// or https:// address",
        "Is a directory",
    )
    for line, part in zip(lines, expected, strict=True):
        assert part in line
        assert "object at 0x" not in line
    assert not list(tmp_path.iterdir())


def test_hosts_that_never_answer_are_asked_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "ANSWER_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the question, never answers
        mirrors = [f"http://127.0.0.1:{silent.getsockname()[1]}/{i}" for i in range(8)]
        began = time.monotonic()
        with pytest.raises(NoMirror) as raised:
            fetch_file(mirrors, tmp_path / "archive", MD5)
    assert str(raised.value).count("no answer within 1 s") == 8
    assert time.monotonic() - began < 4  # not eight times as long


def test_your_own_mirror_goes_first_as_an_address_or_a_file(tmp_path: Path, server: Server) -> None:
    own = tmp_path / "my copy, 1=1.tar.gz"
    own.write_bytes(ARCHIVE)
    for mirror in (str(own), server.url("redirect")):
        root = tmp_path / str(len(mirror))
        data = Cifar10Data(root, mirror=mirror, mirrors=[server.url("good")], batch_size=5)
        data.prepare_data()
        assert (root / "cifar-10-batches-py" / "data_batch_1").read_bytes() == FILES["data_batch_1"]
    assert [kind for kind, _ in server.requests] == ["redirect", "good"]
    assert own.read_bytes() == ARCHIVE


def test_an_own_file_with_another_checksum_is_not_taken(tmp_path: Path, server: Server) -> None:
    own = tmp_path / "own.tar.gz"
    own.write_bytes(ARCHIVE + b"x")
    with pytest.raises(DataUnavailable, match=rf"own\.tar\.gz: its md5 is \w+, not {MD5}"):
        Cifar10Data(tmp_path / "root", mirror=own, mirrors=[]).prepare_data()
    assert not (tmp_path / "root" / "cifar-10-batches-py").exists()
    assert own.exists()


# ------------------------------------------------------------------ from download to batch


def cifar10(root: Path, *mirrors: str) -> Cifar10Data:
    data = Cifar10Data(root, mirrors=mirrors, batch_size=4, val_size=10)
    data.prepare_data()
    data.setup()
    return data


def test_the_official_files_are_read_as_they_are(tmp_path: Path, server: Server) -> None:
    data = cifar10(tmp_path / "a" / "b", server.url("good"))
    pixels = torch.from_numpy(PIXELS).view(150, 3, 32, 32)
    assert torch.equal(data.train.images, pixels[:100])
    assert torch.equal(data.test.images, pixels[100:])
    assert data.train.labels.tolist() == [0, 1, 2, 3, 4] * 20
    assert data.classes == tuple(CLASSES)
    cifar10(tmp_path / "a" / "b")  # once there, no mirror is needed
    assert len(server.requests) == 1


def test_a_whole_run_from_the_download_on(tmp_path: Path, server: Server) -> None:
    options = [option for option in TINY if not option.startswith("data")]
    config = compose(
        [
            *options,
            "data=cifar10",
            f"data.mirrors=[{server.url('404')},{server.url('breaks')}]",
            "data.root=files",
            "data.batch_size=30",
            "data.val_size=10",
            "target_accuracy=null",
        ],
        tmp_path / "run",
    )
    metrics = train(config)
    assert metrics["data"] == "cifar10"
    assert metrics["train_tflop"] == pytest.approx(6 * 44_167_744 * 90 / 1e12, rel=1e-3)
    assert metrics["test/acc"] is not None


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("change", ["missing", "truncated", "altered"])
def test_an_unfit_file_is_unpacked_again_or_named(
    tmp_path: Path, server: Server, name: str, change: str
) -> None:
    cifar10(tmp_path, server.url("good"))
    file = tmp_path / "cifar-10-batches-py" / name
    content = file.read_bytes()

    def spoil() -> None:
        if change == "missing":
            file.unlink()
        else:
            file.write_bytes(content[:-1] + (b"" if change == "truncated" else b"x"))

    spoil()
    cifar10(tmp_path)  # the archive is still there
    assert file.read_bytes() == content
    spoil()
    (tmp_path / "cifar-10-python.tar.gz").unlink()
    what = "missing" if change == "missing" else "damaged"
    with pytest.raises(DataUnavailable) as raised:
        cifar10(tmp_path)
    message = str(raised.value)
    assert f"cifar-10-batches-py is not whole: {name} is {what}." in message
    assert "data.mirrors is empty" in message
    assert "data.mirror=FILE" in message
    cifar10(tmp_path, server.url("good"))
    assert file.read_bytes() == content


def test_no_data_and_no_mirror_end_in_the_ways_out(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable) as raised:
        cifar10(tmp_path / "nowhere")
    message = str(raised.value)
    assert message.startswith(f"CIFAR-10 is not in {tmp_path}/nowhere.")
    for way in ("data.mirror=", "data.root=", "data=folder data.path=", "data=shapes"):
        assert way in message


def test_of_runs_that_start_together_one_downloads(tmp_path: Path, server: Server) -> None:
    sets: list[Cifar10Data] = []
    starts = [
        threading.Thread(target=lambda: sets.append(cifar10(tmp_path, server.url("slow"))))
        for _ in range(4)
    ]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert len(sets) == 4
    assert len(server.requests) == 1


def test_a_run_that_waits_for_another_says_so(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    with FileLock(tmp_path / "cifar-10-python.tar.gz.lock"):
        waiting = threading.Thread(target=cifar10, args=(tmp_path, server.url("good")))
        waiting.start()
        time.sleep(2)
        assert "Another run is putting CIFAR-10 into" in capsys.readouterr().out
    waiting.join()
    assert len(server.requests) == 1


def test_other_files_beside_the_official_ones_are_kept(tmp_path: Path, server: Server) -> None:
    mine = tmp_path / "cifar-10-batches-py" / "my notes"
    mine.parent.mkdir()
    mine.write_text("mine")
    cifar10(tmp_path, server.url("good"))
    assert mine.read_text() == "mine"


def test_no_half_of_the_files_is_ever_there(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "cifar-10-batches-py"
    extract = tarfile.TarFile.extractall

    def full_disk(archive: tarfile.TarFile, path: Path, **options: object) -> None:
        extract(archive, path, members=archive.getmembers()[:3], filter="data")
        assert not list(place.glob("*"))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extractall", full_disk)
    with pytest.raises(OSError, match="No space left"):
        cifar10(tmp_path, server.url("good"))
    assert {path.name for path in tmp_path.iterdir()} <= {
        "cifar-10-python.tar.gz",
        "cifar-10-python.tar.gz.lock",
    }
