"""Gets one file from the first of several mirrors that gives it whole."""

import hashlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from urllib.parse import urlsplit

import requests
import urllib3
from rich import get_console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

# A host that has not answered by then is as good as none, and people wait for the message.
ANSWER_SECONDS = 6.0
# The speed of a download is judged over this long, so that a hiccup is not taken for a stall.
WINDOW_SECONDS = 15.0
# Bytes/s below which another mirror is tried first: CIFAR-10 would take more than ten minutes.
BRISK = 250_000
# Bytes/s below which a download has stalled; a slow line at home is above it.
CRAWL = 1_000
# Connections to one mirror in a row that break off.
ATTEMPTS = 5


class NoMirror(Exception):
    """No mirror gave the file; the message has a line for each that was tried."""


class _Problem(Exception):
    """Why one mirror did not give the file."""


class _TooSlow(_Problem):
    def __init__(self, rate: float) -> None:
        super().__init__(f"it sent {rate / 1000:,.0f} kB/s, which is as good as nothing")
        self.rate = rate


class _BrokenOff(_Problem):
    pass


def fetch_file(mirrors: Sequence[str], target: Path, md5: str) -> Path:
    """The file with this checksum: a mirror that is a file itself, or `target`, downloaded.

    What arrives is kept in `<target>.part`. A download that breaks off goes on from there, at the
    next mirror or the next start too, because all mirrors hold the same bytes. Slow mirrors are
    left for when no other is there.

    Args:
        mirrors: addresses, or paths of files, in the order to try them.
        target: where a download goes; its folder exists.
        md5: of the whole file, in hexadecimal.

    Raises:
        NoMirror: if none gives the file.
        OSError: if the file cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    problems: dict[str, str] = {}
    rates: dict[str, float] = {}
    answers = _ask([mirror for mirror in mirrors if _is_address(mirror)])
    deadline = time.monotonic() + ANSWER_SECONDS
    for mirror in mirrors:
        try:
            if not _is_address(mirror):
                return _checked(Path(mirror).expanduser(), md5)
            _wait_for(answers[mirror], deadline)
            _download(mirror, part, md5, least=BRISK)
            return part.replace(target)
        except _TooSlow as slow:
            rates[mirror] = slow.rate
            say(f"  {slow.rate / 1000:,.0f} kB/s: looking for a faster mirror")
        except _Problem as problem:
            problems[mirror] = str(problem)
    for mirror in sorted(rates, key=lambda address: rates[address], reverse=True):
        try:
            _download(mirror, part, md5, least=CRAWL)
            return part.replace(target)
        except _Problem as problem:
            problems[mirror] = str(problem)
    lines = [f"  {mirror}: {problem}" for mirror, problem in problems.items()]
    if size := _size(part):
        lines.append(f"{size / 1e6:,.1f} MB are in {part}; another start goes on from there.")
    raise NoMirror("\n".join(lines))


def say(text: str) -> None:
    """Print one line as it is, however long."""
    get_console().print(escape(text), highlight=False, soft_wrap=True)


def _is_address(mirror: str) -> bool:
    return urlsplit(mirror).scheme in ("http", "https")


def _checked(file: Path, md5: str) -> Path:
    """A file that was there already, if it is the right one."""
    if not file.is_file():
        raise _Problem("there is no such file, and it is no http:// or https:// address")
    if (found := _md5(file)) != md5:
        raise _Problem(f"its md5 is {found}, not {md5}")
    return file


def _md5(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "md5").hexdigest()


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _ask(addresses: Sequence[str]) -> dict[str, "Future[None]"]:
    """Ask all hosts at once whether they are there, so that many dead ones cost no more than one.

    In daemon threads: looking up a host's name can hang far beyond any time-out.
    """
    answers: dict[str, Future[None]] = {address: Future() for address in addresses}

    def ask(address: str, answer: "Future[None]") -> None:
        try:
            # Any answer will do: what it says is the download's business.
            requests.head(address, timeout=ANSWER_SECONDS).close()
            answer.set_result(None)
        except (requests.RequestException, ValueError) as error:
            answer.set_exception(_Problem(_reason(error)))

    for item in answers.items():
        threading.Thread(target=ask, args=item, daemon=True).start()
    return answers


def _wait_for(answer: "Future[None]", deadline: float) -> None:
    try:
        answer.result(max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        raise _Problem(f"no answer within {ANSWER_SECONDS:g} s") from None


def _reason(error: BaseException) -> str:
    """The innermost of the errors that requests wraps one in another: what really happened."""
    while True:
        inner = [getattr(error, "reason", None), *error.args, error.__cause__]
        wrapped = next((part for part in inner if isinstance(part, BaseException)), None)
        if wrapped is None:
            break
        error = wrapped
    if isinstance(error, TimeoutError | urllib3.exceptions.TimeoutError):
        return f"no answer within {ANSWER_SECONDS:g} s"
    return str(error) or type(error).__name__


def _download(address: str, part: Path, md5: str, least: float) -> None:
    """Complete `part` from one mirror, and check it."""
    for _ in range(ATTEMPTS):
        before = _size(part)
        try:
            _receive(address, part, least)
        except _BrokenOff:
            if _size(part) > before:
                continue
            raise
        if (found := _md5(part)) == md5:
            return
        part.unlink()
        if not before:  # else what was there before may have been wrong: once more, from nothing
            raise _Problem(f"the md5 of what it sent is {found}, not {md5}")
    raise _BrokenOff(f"the connection broke off {ATTEMPTS} times")


def _receive(address: str, part: Path, least: float) -> None:
    """Append to `part` what it lacks, from one connection."""
    have = _size(part)
    # As stored: a server that calls a .gz file a compressed page would have it unpacked on arrival.
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={have}-"}
    timeout = (ANSWER_SECONDS, WINDOW_SECONDS)
    try:
        response = requests.get(address, headers=headers, stream=True, timeout=timeout)
    except requests.RequestException as error:
        raise _BrokenOff(_reason(error)) from error
    with response:
        if response.status_code == 416 and have:
            return  # there is no more: whole or wrong, the checksum will tell
        if response.status_code not in (200, 206):
            raise _Problem(f"it answered {response.status_code} {response.reason}")
        if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0  # it sends all of it, asked for the rest or not
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else None
        host = urlsplit(response.url).hostname
        say(f"Downloading from {host}" + (f", going on at {have / 1e6:,.1f} MB" if have else ""))
        with part.open("r+b" if have else "wb") as file, _progress() as progress:
            file.seek(have)
            task = progress.add_task("", total=total, completed=have)
            began, received = time.monotonic(), 0
            while block := _read(response):
                file.write(block)
                progress.advance(task, len(block))
                received += len(block)
                if (elapsed := time.monotonic() - began) >= WINDOW_SECONDS:
                    if received < least * elapsed:
                        raise _TooSlow(received / elapsed)
                    began, received = time.monotonic(), 0


def _read(response: requests.Response) -> bytes:
    """What has arrived, without waiting for more; nothing at the end."""
    try:
        return bytes(response.raw.read1(2**18, decode_content=False))
    except urllib3.exceptions.ReadTimeoutError:
        raise _TooSlow(0.0) from None
    except urllib3.exceptions.HTTPError as error:
        raise _BrokenOff(f"the connection broke off: {_reason(error)}") from error


def _progress() -> Progress:
    return Progress(
        TextColumn("  "),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        transient=True,
    )
