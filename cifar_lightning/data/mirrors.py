"""Gets one file from the first of several mirrors that gives it whole."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import requests

from cifar_lightning.data import download
from cifar_lightning.data.download import (
    Problem,
    TooSlow,
    WrongBytes,
    complete,
    md5_of,
    reason_of,
    say,
    size_of,
)

# Bytes/s below which another mirror is tried first: CIFAR-10 would take more than ten minutes.
BRISK = 250_000
# Bytes/s below which a download has stalled; a slow line at home is above it.
CRAWL = 1_000


class NoMirror(Exception):
    """No mirror gave the file; the message has a line for each that was tried."""


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
    if part.exists() and md5_of(part) == md5:
        return part.replace(target)
    own_files = [Path(mirror).expanduser() for mirror in mirrors if not _is_address(mirror)]
    problems: dict[str, Problem] = {}
    found = _try_all(mirrors, part, md5, problems)
    if not found and part.exists() and any(type(p) is WrongBytes for p in problems.values()):
        # What was added to the part did not suit it. If that was the part's fault, a download from
        # nothing succeeds; if not, the part is still there for the next start.
        found = _try_all(mirrors, fresh, md5, problems)
        (part if found == fresh else fresh).unlink(missing_ok=True)
    if found:
        return found if found in own_files else found.replace(target)
    lines = [f"  {mirror}: {problem}" for mirror, problem in problems.items()]
    if size := size_of(part):
        lines.append(f"{size / 1e6:,.1f} MB are in {part}; another start goes on from there.")
    raise NoMirror("\n".join(lines))


def _try_all(
    mirrors: Sequence[str], part: Path, md5: str, problems: dict[str, Problem]
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
                deadline = time.monotonic() + download.ANSWER_SECONDS
            _wait_for(answers[mirror], deadline)
            complete(mirror, part, md5, least=BRISK)
            return part
        except Problem as problem:
            problems[mirror] = problem
            if isinstance(problem, TooSlow):
                say(f"  {problem.rate / 1000:,.0f} kB/s: looking for a faster mirror")
    slow = {mirror: p.rate for mirror, p in problems.items() if isinstance(p, TooSlow)}
    for mirror in sorted(slow, key=lambda address: slow[address], reverse=True):
        try:
            complete(mirror, part, md5, least=CRAWL)
            return part
        except Problem as problem:
            problems[mirror] = problem
    return None


def _is_address(mirror: str) -> bool:
    return mirror.startswith(("http://", "https://"))


def _checked(file: Path, md5: str) -> Path:
    """A file that was there already, if it is the right one."""
    try:
        found = md5_of(file)
    except FileNotFoundError:
        raise Problem("there is no such file, and it is no http:// or https:// address") from None
    except OSError as error:
        raise Problem(str(error.strerror)) from error
    if found != md5:
        raise Problem(f"its md5 is {found}, not {md5}")
    return file


def _ask(addresses: Sequence[str]) -> dict[str, "Future[None]"]:
    """Ask all hosts at once whether they are there, so that many dead ones cost no more than one.

    In daemon threads: looking up a host's name can hang far beyond any time-out.
    """
    answers: dict[str, Future[None]] = {address: Future() for address in addresses}

    def ask(address: str, answer: "Future[None]") -> None:
        try:
            # Any answer will do: what it says is the download's business.
            requests.head(address, timeout=download.ANSWER_SECONDS).close()
            answer.set_result(None)
        except Exception as error:  # a thread that ends without an answer would be waited for
            answer.set_exception(Problem(reason_of(error)))

    for item in answers.items():
        threading.Thread(target=ask, args=item, daemon=True).start()
    return answers


def _wait_for(answer: "Future[None]", deadline: float) -> None:
    try:
        answer.result(max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        raise Problem(f"no answer within {download.ANSWER_SECONDS:g} s") from None
