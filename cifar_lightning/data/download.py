"""Gets one file from the first of several mirrors that gives it whole."""

import hashlib
import os
import re
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
ANSWER_SECONDS = 8.0
# The speed of a download is judged over this long, so that a hiccup is not taken for a stall.
WINDOW_SECONDS = 15.0
# Bytes/s below which another mirror is tried first: CIFAR-10 would take more than ten minutes.
BRISK = 250_000
# Bytes/s below which a download has stalled; a slow line at home is above it.
CRAWL = 1_000


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


class _WrongBytes(_Problem):
    def __init__(self, found: str, md5: str) -> None:
        super().__init__(f"the md5 of what it sent is {found}, not {md5}")


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
    part, fresh = (target.with_name(f"{target.name}.{kind}") for kind in ("part", "fresh"))
    fresh.unlink(missing_ok=True)  # of a start that was killed
    if part.exists() and _md5(part) == md5:
        return part.replace(target)
    own_files = [Path(mirror).expanduser() for mirror in mirrors if not _is_address(mirror)]
    problems: dict[str, _Problem] = {}
    found = _try_all(mirrors, part, md5, problems)
    if not found and part.exists() and any(type(p) is _WrongBytes for p in problems.values()):
        # What was added to the part did not suit it. If that was the part's fault, a download from
        # nothing succeeds; if not, the part is still there for the next start.
        found = _try_all(mirrors, fresh, md5, problems)
        (part if found == fresh else fresh).unlink(missing_ok=True)
    if found:
        return found if found in own_files else found.replace(target)
    lines = [f"  {mirror}: {problem}" for mirror, problem in problems.items()]
    if size := _size(part):
        lines.append(f"{size / 1e6:,.1f} MB are in {part}; another start goes on from there.")
    raise NoMirror("\n".join(lines))


def _try_all(
    mirrors: Sequence[str], part: Path, md5: str, problems: dict[str, _Problem]
) -> Path | None:
    """The file, or `part` when it is whole, or None with each mirror's problem noted."""
    problems.clear()
    answers: dict[str, Future[None]] = {}
    for mirror in mirrors:
        try:
            if not _is_address(mirror):
                return _checked(Path(mirror).expanduser(), md5)
            if not answers:
                answers = _ask([address for address in mirrors if _is_address(address)])
                deadline = time.monotonic() + ANSWER_SECONDS
            _wait_for(answers[mirror], deadline)
            _download(mirror, part, md5, least=BRISK)
            return part
        except _Problem as problem:
            problems[mirror] = problem
            if isinstance(problem, _TooSlow):
                say(f"  {problem.rate / 1000:,.0f} kB/s: looking for a faster mirror")
    slow = {mirror: p.rate for mirror, p in problems.items() if isinstance(p, _TooSlow)}
    for mirror in sorted(slow, key=lambda address: slow[address], reverse=True):
        try:
            _download(mirror, part, md5, least=CRAWL)
            return part
        except _Problem as problem:
            problems[mirror] = problem
    return None


def say(text: str) -> None:
    """Print one line as it is, however long."""
    get_console().print(escape(text), highlight=False, soft_wrap=True)


def _is_address(mirror: str) -> bool:
    return mirror.startswith(("http://", "https://"))


def _checked(file: Path, md5: str) -> Path:
    """A file that was there already, if it is the right one."""
    try:
        found = _md5(file)
    except FileNotFoundError:
        raise _Problem("there is no such file, and it is no http:// or https:// address") from None
    except OSError as error:
        raise _Problem(str(error.strerror)) from error
    if found != md5:
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
        except Exception as error:  # a thread that ends without an answer would be waited for
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
    if isinstance(error, requests.Timeout):
        return f"no answer within {ANSWER_SECONDS:g} s"
    at_proxy = "at the proxy: " if isinstance(error, requests.exceptions.ProxyError) else ""
    while True:
        inner = [getattr(error, "reason", None), *error.args, error.__cause__]
        wrapped = next((part for part in inner if isinstance(part, BaseException)), None)
        if wrapped is None:
            return at_proxy + (str(error) or type(error).__name__)
        error = wrapped


def _download(address: str, part: Path, md5: str, least: float) -> None:
    """Complete `part` from one mirror, and check it; wrong bytes are taken off again."""
    had = _size(part)
    while True:
        before = _size(part)
        try:
            is_whole = _receive(address, part, least)
        except _BrokenOff:
            if _size(part) > before:
                continue
            raise
        if (found := _md5(part)) == md5:
            return
        if is_whole or _size(part) == before:
            break
    if had:
        os.truncate(part, had)  # perhaps the mirror is at fault, and not what was there before
    else:
        part.unlink()
    raise _WrongBytes(found, md5)


def _receive(address: str, part: Path, least: float) -> bool:
    """Append to `part` what it lacks, from one connection; returns whether there is no more."""
    have = _size(part)
    # As stored: a server that calls a .gz file a compressed page would have it unpacked on arrival.
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={have}-"}
    timeout = (ANSWER_SECONDS, WINDOW_SECONDS)
    try:
        response = requests.get(address, headers=headers, stream=True, timeout=timeout)
    except requests.ReadTimeout:
        raise _BrokenOff(f"no answer within {WINDOW_SECONDS:g} s") from None
    except requests.RequestException as error:
        raise _BrokenOff(_reason(error)) from error
    with response:
        if response.status_code == 416 and have:
            return True
        if response.status_code not in (200, 206):
            raise _Problem(f"it answered {response.status_code} {response.reason}")
        first, total = _what_comes(response)
        if first > have:
            raise _Problem(f"it sent bytes from {first}, asked for those from {have}")
        host = urlsplit(response.url).hostname
        say(f"Downloading from {host}" + (f", going on at {have / 1e6:,.1f} MB" if have else ""))
        with part.open("ab") as file, _progress() as progress:
            task = progress.add_task("", total=total, completed=have)
            skip = have - first  # of a server that sends all, asked for the rest or not
            began, received = time.monotonic(), 0
            while block := _read(response):
                file.write(block[skip:])
                progress.advance(task, len(block[skip:]))
                skip = max(0, skip - len(block))
                received += len(block)
                if (elapsed := time.monotonic() - began) >= WINDOW_SECONDS:
                    if received < least * elapsed:
                        raise _TooSlow(received / elapsed)
                    began, received = time.monotonic(), 0
    return total is not None and _size(part) >= total


def _what_comes(response: requests.Response) -> tuple[int, int | None]:
    """The first byte of an answer and the size of the whole file, where the server tells it."""
    found = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status_code == 206 and found:
        return int(found[1]), int(found[2]) if found[2] != "*" else None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


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
