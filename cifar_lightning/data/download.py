"""Downloads one file from one address, and goes on where a download broke off."""

import hashlib
import os
import re
import time
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


class Problem(Exception):
    """Why one address did not give the file."""


class TooSlow(Problem):
    """It sends; `rate` is how many bytes/s."""

    def __init__(self, rate: float) -> None:
        super().__init__(f"it sent {rate / 1000:,.0f} kB/s, which is as good as nothing")
        self.rate = rate


class BrokenOff(Problem):
    """The connection ended early, or there was none."""


class WrongBytes(Problem):
    """All has arrived, and it is another file."""

    def __init__(self, found: str, md5: str) -> None:
        super().__init__(f"the md5 of what it sent is {found}, not {md5}")


def complete(address: str, part: Path, md5: str, least: float) -> None:
    """Complete `part` from one address, and check it; wrong bytes are taken off again.

    Args:
        address: of the whole file.
        part: its first bytes, as far as they are here; it need not exist.
        md5: of the whole file, in hexadecimal.
        least: bytes/s below which it is given up.

    Raises:
        Problem: says why the file is not whole.
        OSError: if it cannot be written.
    """
    had = size_of(part)
    while True:
        before = size_of(part)
        try:
            is_whole = _receive(address, part, least)
        except BrokenOff:
            if size_of(part) > before:
                continue
            raise
        if (found := md5_of(part)) == md5:
            return
        if is_whole or size_of(part) == before:
            break
    if had:
        os.truncate(part, had)  # perhaps the mirror is at fault, and not what was there before
    else:
        part.unlink()
    raise WrongBytes(found, md5)


def _receive(address: str, part: Path, least: float) -> bool:
    """Append to `part` what it lacks, from one connection; returns whether there is no more."""
    have = size_of(part)
    # As stored: a server that calls a .gz file a compressed page would have it unpacked on arrival.
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={have}-"}
    timeout = (ANSWER_SECONDS, WINDOW_SECONDS)
    try:
        response = requests.get(address, headers=headers, stream=True, timeout=timeout)
    except requests.ReadTimeout:
        raise BrokenOff(f"no answer within {WINDOW_SECONDS:g} s") from None
    except requests.RequestException as error:
        raise BrokenOff(reason_of(error)) from error
    with response:
        if response.status_code == 416 and have:
            return True
        if response.status_code not in (200, 206):
            raise Problem(f"it answered {response.status_code} {response.reason}")
        first, total = _what_comes(response)
        if first > have:
            raise Problem(f"it sent bytes from {first}, asked for those from {have}")
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
                        raise TooSlow(received / elapsed)
                    began, received = time.monotonic(), 0
    return total is not None and size_of(part) >= total


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
        raise TooSlow(0.0) from None
    except urllib3.exceptions.HTTPError as error:
        raise BrokenOff(f"the connection broke off: {reason_of(error)}") from error


def _progress() -> Progress:
    return Progress(
        TextColumn("  "),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        transient=True,
    )


def reason_of(error: BaseException) -> str:
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


def say(text: str) -> None:
    """Print one line as it is, however long."""
    get_console().print(escape(text), highlight=False, soft_wrap=True)


def md5_of(file: Path) -> str:
    """A file's checksum, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "md5").hexdigest()


def size_of(file: Path) -> int:
    """A file's bytes; 0 where there is none."""
    return file.stat().st_size if file.exists() else 0
