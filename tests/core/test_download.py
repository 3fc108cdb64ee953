"""The official files, from downloads by real, often faulty, servers to the first batch."""

import hashlib
import http.server
import pickle
import re
import socket
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoints import Bomb
from conftest import TINY
from data_sets import OFFICIAL_CLASSES, OFFICIAL_FILES, OFFICIAL_PIXELS, archive_of, write_folder
from filelock import FileLock
from programs import wait_for
from torchvision.datasets import CIFAR10

from cifar_lightning.config.compose import compose
from cifar_lightning.data import Cifar10Data, cifar10, download
from cifar_lightning.data.download import DownloadError
from cifar_lightning.errors import DataUnavailable
from cifar_lightning.train import train

ARCHIVE = archive_of(OFFICIAL_FILES)  # about 450 kB that no compression makes smaller
MD5 = hashlib.md5(ARCHIVE).hexdigest()


@pytest.fixture(autouse=True)
def _our_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our small archive takes the place of the official one."""
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in OFFICIAL_FILES.items()}
    monkeypatch.setattr(CIFAR10, "train_list", [(n, md5[n]) for n in md5 if "data" in n])
    monkeypatch.setattr(CIFAR10, "test_list", [("test_batch", md5["test_batch"])])
    monkeypatch.setitem(CIFAR10.meta, "md5", md5["batches.meta"])
    monkeypatch.setattr(CIFAR10, "tgz_md5", MD5)
    monkeypatch.setattr(cifar10, "ARCHIVE_SIZE", len(ARCHIVE))


class Server(http.server.ThreadingHTTPServer):
    """Mirrors, good and bad, by path; `requests` are the path and first byte of each download."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, int]] = []
        self.closing = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no fault here."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        kind = self.path[1:]
        first = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
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
        if kind == "portal":  # asks for a log-in, whatever one wants
            content = b"<html>" + b" log in " * 5000
        if kind.startswith("whole") or kind == "portal":  # knows no ranges
            first = 0
            self.send_response(200)
        else:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(ARCHIVE)}")
        if kind == "page":
            self.send_header("Content-Encoding", "gzip")
        if not kind.startswith("unsized"):
            self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        # Some break off after so many bytes.
        ends = {"breaks": 100_000, "drops": 10_000, "silent": 0, "trickle": 0}
        end = ends.get(re.sub("whole-|unsized-", "", kind), len(content))
        self.wfile.write(content[first : first + end])
        if kind == "silent":
            self.server.closing.wait(30)
        while kind == "trickle" and not self.server.closing.wait(0.05):
            self.wfile.write(b"x")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.closing.set()
        running.shutdown()


def get(folder: Path, *mirrors: str) -> Path:
    return download.download(mirrors, folder / "archive", MD5, len(ARCHIVE))


def get_whole(folder: Path, *mirrors: str) -> None:
    assert get(folder, *mirrors) == folder / "archive"
    assert [path.name for path in folder.iterdir()] == ["archive"]  # no partial file is left
    assert (folder / "archive").read_bytes() == ARCHIVE


GOOD = ["good", "whole-good", "redirect", "page", "unsized", "breaks"]


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("there", [0, 250_000])
def test_the_archive_arrives_byte_for_byte_and_what_is_there_is_not_downloaded_again(
    tmp_path: Path, server: Server, kind: str, there: int
) -> None:
    if there:
        (tmp_path / "archive.part").write_bytes(ARCHIVE[:there])
    get_whole(tmp_path, server.url(kind))
    firsts = [first for _, first in server.requests]
    if kind == "breaks":
        assert firsts == list(range(there, len(ARCHIVE), 100_000))
    else:
        assert {*firsts} == {there}


def test_a_download_is_resumed_at_the_next_start_and_at_another_mirror(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    # Breaks off, and knows nothing of ranges, so it never gets further.
    with pytest.raises(DownloadError, match=r"lost[\s\S]*0\.1 MB are in .*archive\.part"):
        get(tmp_path, server.url("whole-breaks"))
    # Breaks off again and again: ten connections are enough.
    get_whole(tmp_path, *map(server.url, ("503", "drops", "good")))
    assert "Downloading from 127.0.0.1, resuming at 0.1 MB\n" in capsys.readouterr().out
    assert server.requests[-11:-1] == [("drops", 100_000 + 10_000 * i) for i in range(10)]
    assert server.requests[-1] == ("good", 200_000)
    with pytest.raises(DownloadError, match="it closed the connection before the file was whole"):
        download.download([server.url("unsized-drops")], tmp_path / "b", MD5, len(ARCHIVE))


@pytest.mark.parametrize("kind", ["portal", "404"])
def test_a_bad_mirror_does_not_cost_what_is_there(
    tmp_path: Path, server: Server, kind: str
) -> None:
    (tmp_path / "archive.part").write_bytes(ARCHIVE[:200_000])
    with pytest.raises(DownloadError, match=r"0\.2 MB are in"):
        get(tmp_path, server.url(kind))
    assert (tmp_path / "archive.part").read_bytes() == ARCHIVE[:200_000]


@pytest.mark.parametrize("size", [1000, len(ARCHIVE), len(ARCHIVE) + 5])
def test_a_partial_file_of_something_else_does_no_harm(
    tmp_path: Path, server: Server, size: int
) -> None:
    (tmp_path / "archive.part").write_bytes(b"x" * size)
    get_whole(tmp_path, server.url("good"))
    (tmp_path / "archive").rename(tmp_path / "archive.part")
    get_whole(tmp_path, "http://127.0.0.1:9/x")  # nothing is missing


@pytest.mark.parametrize(("kind", "seconds"), [("silent", "SILENT"), ("trickle", "MIRROR")])
def test_a_mirror_that_sends_nothing_or_takes_for_ever_is_left(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, kind: str, seconds: str
) -> None:
    monkeypatch.setattr(download, f"{seconds}_SECONDS", 0.3)
    get_whole(tmp_path, server.url(kind), server.url("good"))


def test_what_each_mirror_did_is_told(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "SILENT_SECONDS", 1.0)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,  # takes the question, never answers
        socket.create_server(("127.0.0.1", 0)) as taken,
    ):
        mute, closed = (f"http://127.0.0.1:{s.getsockname()[1]}/x" for s in (silent, taken))
        taken.close()
        expected = {
            server.url("404"): "it answered 404 Not Found",
            server.url("wrong"): f"{hashlib.md5(ARCHIVE[::-1]).hexdigest()}, not {MD5}",
            server.url("portal"): f"its file has 40,006 bytes, not {len(ARCHIVE):,}",
            mute: "it sent nothing for 1 s",
            closed: "Connection refused",
            "http://no-such-host.invalid/x": "",  # what a resolver says is its own
            "ftp://nobody/x": "no such file, and not an http:// or https:// address",
            str(tmp_path): "Is a directory",
        }
        with pytest.raises(DownloadError) as raised:
            get(tmp_path, *expected)
    lines = str(raised.value).splitlines()
    for line, (mirror, reason) in zip(lines, expected.items(), strict=True):
        assert line.startswith(f"  {mirror}: ")
        assert reason in line
        assert "object at 0x" not in line
    assert not list(tmp_path.iterdir())


def test_your_own_mirror_goes_first_as_an_address_or_a_file(tmp_path: Path, server: Server) -> None:
    own = tmp_path / "my copy, 1=1.tar.gz"
    own.write_bytes(ARCHIVE)
    for mirror in (str(own), server.url("redirect")):
        root = tmp_path / str(len(mirror))
        Cifar10Data(root, mirror=mirror, mirrors=[server.url("good")]).prepare_data()
        assert (root / "cifar-10-batches-py/test_batch").read_bytes()
    assert [kind for kind, _ in server.requests] == ["redirect", "good"]
    assert own.read_bytes() == ARCHIVE


def test_an_own_file_with_another_checksum_is_not_taken(tmp_path: Path) -> None:
    own = tmp_path / "own.tar.gz"
    own.write_bytes(ARCHIVE + b"x")
    with pytest.raises(DataUnavailable, match=rf"own\.tar\.gz: its md5 is \w+, not {MD5}"):
        Cifar10Data(tmp_path / "root", mirror=own, mirrors=[]).prepare_data()
    assert not (tmp_path / "root" / "cifar-10-batches-py").exists()
    assert own.exists()


# ------------------------------------------------------------------ from download to batch


def ready(root: Path, *mirrors: str) -> Cifar10Data:
    data = Cifar10Data(root, mirrors=mirrors, batch_size=4, val_size=10)
    data.prepare_data()
    data.setup()
    return data


def test_the_official_files_are_read_as_they_are_and_once(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "cifar-10-batches-py" / "my notes"
    mine.parent.mkdir()
    mine.write_text("mine")
    ready(tmp_path, server.url("good"))
    assert mine.read_text() == "mine"
    read: list[str] = []
    read_bytes = Path.read_bytes

    def watched(path: Path) -> bytes:
        read.append(path.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", watched)
    data = ready(tmp_path)  # once there, no mirror is needed
    assert sorted(read) == sorted(OFFICIAL_FILES)
    pixels = torch.from_numpy(OFFICIAL_PIXELS).view(150, 3, 32, 32)
    assert torch.equal(data.train.images, pixels[:100])
    assert torch.equal(data.test.images, pixels[100:])
    assert data.train.labels.tolist() == [0, 1, 2, 3, 4] * 20
    assert data.classes == tuple(OFFICIAL_CLASSES)


def test_a_whole_run_from_the_download_on(tmp_path: Path, server: Server) -> None:
    options = [option for option in TINY if not option.startswith("data")]
    mirrors = f"data.mirrors=[{server.url('404')},{server.url('breaks')}]"
    options += ["data=cifar10", mirrors, "data.root=files", "data.batch_size=30"]
    metrics = train(compose([*options, "data.val_size=10", "target_accuracy=null"], tmp_path))
    assert metrics["data"] == "cifar10"
    assert metrics["test/acc"] is not None


@pytest.mark.parametrize(
    ("name", "change"),
    [("data_batch_3", "missing"), ("test_batch", "truncated"), ("batches.meta", "altered")],
)
def test_an_unfit_file_is_unpacked_again_or_named(
    tmp_path: Path, server: Server, name: str, change: str
) -> None:
    ready(tmp_path, server.url("good"))
    file = tmp_path / "cifar-10-batches-py" / name
    content = file.read_bytes()

    def spoil() -> None:
        if change == "missing":
            file.unlink()
        else:
            file.write_bytes(content[:-1] + (b"" if change == "truncated" else b"x"))

    spoil()
    ready(tmp_path)  # the archive is still there
    assert file.read_bytes() == content
    spoil()
    (tmp_path / "cifar-10-python.tar.gz").unlink()
    what = "missing" if change == "missing" else "damaged"
    with pytest.raises(DataUnavailable) as raised:
        ready(tmp_path)
    message = str(raised.value)
    assert f"cifar-10-batches-py is incomplete: {name} is {what}." in message
    assert "data.mirrors is empty" in message


def test_no_data_and_no_mirror_end_in_the_ways_out(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable) as raised:
        ready(tmp_path / "nowhere")
    message = str(raised.value)
    assert message.startswith(f"CIFAR-10 is not in {tmp_path}/nowhere.")
    for way in ("data.mirror=", "data.root=", "data=folder data.path=", "data=shapes"):
        assert way in message


def test_of_runs_that_start_together_one_downloads(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[Cifar10Data] = []
    with FileLock(tmp_path / "cifar-10-python.tar.gz.lock"):
        starts = [
            threading.Thread(target=lambda: ended.append(ready(tmp_path, server.url("good"))))
            for _ in range(4)
        ]
        for start in starts:
            start.start()
        said = "Another run is downloading CIFAR-10 to"
        wait_for(lambda: said in capsys.readouterr().out)
    for start in starts:
        start.join()
    assert len(ended) == 4
    assert len(server.requests) == 1


def test_no_half_of_the_files_is_ever_there(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract = tarfile.TarFile.extractall

    def full_disk(archive: tarfile.TarFile, path: Path, **options: object) -> None:
        extract(archive, path, members=archive.getmembers()[:3], filter="data")
        assert not list((tmp_path / "cifar-10-batches-py").glob("*"))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extractall", full_disk)
    with pytest.raises(OSError, match="No space left"):
        ready(tmp_path, server.url("good"))
    kept = {"cifar-10-python.tar.gz", "cifar-10-python.tar.gz.lock"}
    assert {path.name for path in tmp_path.iterdir()} <= kept


@pytest.mark.parametrize("place", ["folder", "archive", "mirror"])
def test_code_in_the_official_files_is_not_run(tmp_path: Path, place: str) -> None:
    payload = pickle.dumps({"data": Bomb(), "labels": [0]})
    files = {**OFFICIAL_FILES, "data_batch_1": payload}
    root, own = tmp_path / "root", tmp_path / "own.tar.gz"
    if place == "folder":
        write_folder(root / "cifar-10-batches-py", files)
    else:
        archive = own if place == "mirror" else root / "cifar-10-python.tar.gz"
        archive.parent.mkdir(exist_ok=True)
        archive.write_bytes(archive_of(files))
    data = Cifar10Data(root, mirror=own if place == "mirror" else None, mirrors=[])
    with pytest.raises(DataUnavailable, match="What you can do"):
        data.prepare_data()
    with pytest.raises(DataUnavailable, match="What you can do"):
        data.setup()
    assert not Path("was_called").exists()
    pickle.loads(payload)  # it would have been
    assert Path("was_called").is_dir()
