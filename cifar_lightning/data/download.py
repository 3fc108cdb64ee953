"""Downloads a file from the first mirror that works, and resumes partial downloads."""

import hashlib
import re
import time
from collections.abc import Sequence
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
    TimeRemainingColumn,
    TransferSpeedColumn,
)

CONNECT_SECONDS = 8.0
SILENT_SECONDS = 15.0  # after which a mirror that sends nothing is given up
MIRROR_SECONDS = 3600.0  # after which a mirror is given up in any case
CONNECTIONS = 10  # at most to one mirror, each after the previous one was lost
BLOCK = 2**18  # bytes


class DownloadError(Exception):
    """A file could not be downloaded; the message says why, one line per mirror."""


def download(mirrors: Sequence[str], target: Path, md5: str, size: int) -> Path:
    """Download a file whose size and checksum are known, unless it exists already.

    A partial download is kept in `<target>.part`. The next mirror, or the next run, resumes from
    there, because all mirrors have the same bytes.

    Args:
        mirrors: URLs, or paths of files, in the order to try them.
        target: path to download to; its folder exists, and no other process writes there now.
        md5: of the whole file, in hexadecimal.
        size: of the whole file, in bytes.

    Returns:
        `target`, or the path of a local file that served as the mirror.

    Raises:
        DownloadError: if no mirror has the file; the message has one line per mirror.
        OSError: if the file cannot be written.
    """
    if target.exists() and _md5_of(target) == md5:
        return target
    partial = target.with_name(f"{target.name}.part")
    problems = []
    for mirror in mirrors:
        try:
            if not mirror.startswith(("http://", "https://")):
                return _local_copy(Path(mirror).expanduser(), md5)
            _download_from(mirror, partial, md5, size)
            return partial.replace(target)
        except DownloadError as error:
            problems.append(f"  {mirror}: {error}")
    if have := _size_of(partial):
        problems.append(
            f"{have / 1e6:,.1f} MB are in {partial}; the next start resumes from there."
        )
    raise DownloadError("\n".join(problems))


def _local_copy(file: Path, md5: str) -> Path:
    try:
        found = _md5_of(file)
    except FileNotFoundError:
        raise DownloadError("no such file, and not an http:// or https:// address") from None
    except OSError as error:
        raise DownloadError(str(error.strerror)) from error
    if found != md5:
        raise DownloadError(f"its md5 is {found}, not {md5}")
    return file


def _download_from(address: str, partial: Path, md5: str, size: int) -> None:
    """Complete `partial` from one mirror and check its md5; delete it if that is wrong."""
    if _size_of(partial) > size:
        partial.unlink()
    resumed = _size_of(partial) > 0
    deadline = time.monotonic() + MIRROR_SECONDS
    problem = ""
    for _ in range(CONNECTIONS):
        before = _size_of(partial)
        if before < size:
            try:
                _receive(address, partial, size, deadline)
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                problem = _reason(error)
        if _size_of(partial) == size:
            if (found := _md5_of(partial)) == md5:
                return
            partial.unlink()
            if not resumed:
                raise DownloadError(f"the md5 of what it sent is {found}, not {md5}")
            resumed = False  # the earlier part may be damaged: start from the first byte
        elif _size_of(partial) == before:
            break
    raise DownloadError(problem or "it closed the connection before the file was whole")


def _receive(address: str, partial: Path, size: int, deadline: float) -> None:
    """Append the missing bytes to `partial`, as far as one connection sends them."""
    have = _size_of(partial)
    # Otherwise a .gz file that is sent as a compressed page would be unpacked.
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={have}-"}
    timeout = (CONNECT_SECONDS, SILENT_SECONDS)
    with requests.get(address, headers=headers, stream=True, timeout=timeout) as response:
        if response.status_code not in (200, 206):
            raise DownloadError(f"it answered {response.status_code} {response.reason}")
        skip = have  # if the server ignores the range and sends the whole file
        total = response.headers.get("Content-Length")
        if response.status_code == 206:
            sent = re.match(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if not sent or int(sent[1]) != have:
                raise DownloadError(f"it did not resume at byte {have}")
            skip, total = 0, sent[2]
        if total is not None and int(total) != size:
            raise DownloadError(f"its file has {int(total):,} bytes, not {size:,}")
        resumed = f", resuming at {have / 1e6:,.1f} MB" if have else ""
        say(f"Downloading from {urlsplit(response.url).hostname}{resumed}")
        columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
        with partial.open("ab") as file, Progress(*columns, transient=True) as progress:
            task = progress.add_task("", total=size, completed=have)
            while have < size and (block := response.raw.read1(BLOCK, decode_content=False)):
                new = block[skip:][: size - have]
                skip = max(0, skip - len(block))
                file.write(new)
                have += len(new)
                progress.update(task, completed=have)
                if time.monotonic() > deadline:
                    raise DownloadError(f"it took more than {MIRROR_SECONDS:g} s")


def _reason(error: BaseException) -> str:
    """Describe an error of requests by the innermost error that it wraps."""
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_SECONDS:g} s"
    if isinstance(error, requests.ReadTimeout | urllib3.exceptions.ReadTimeoutError):
        return f"it sent nothing for {SILENT_SECONDS:g} s"
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return "the connection was lost"
    while True:
        wrapped = (getattr(error, "reason", None), *error.args, error.__cause__)
        inner = next((e for e in wrapped if isinstance(e, Exception)), None)
        if inner is None:
            break
        error = inner
    return str(error) or type(error).__name__


def say(text: str) -> None:
    """Print one line without markup, highlighting or line breaks."""
    get_console().print(escape(text), highlight=False, soft_wrap=True)


def _md5_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "md5").hexdigest()


def _size_of(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
