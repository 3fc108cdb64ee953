"""Helper for bad input: work ends in success, or in one message with no half-written files."""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from cifar_lightning.config.messages import MISTAKES, explain

LONGEST_MESSAGE = 3000  # characters: a screen, where the names in it are long


def cases(count: int) -> settings:
    """So many generated cases, the same in every run, however long one takes."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        # Files are made for each case, in a folder of its own below the test's.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def ends_well(work: Callable[[], object], config_name: str = "train") -> str | None:
    """The message that the command would end in; None of a success.

    Any other exception than those that the command line explains is the test's failure.
    """
    with warnings.catch_warnings(action="ignore"):  # as in the command, where none is an error
        try:
            work()
        except MISTAKES as error:
            message = explain(error, config_name)
        else:
            return None
    assert message.strip()
    assert "\n\n" not in message.strip(), message  # one paragraph
    assert "Traceback" not in message
    assert "weights_only" not in message  # PyTorch's advice to trust a file
    assert len(message) <= LONGEST_MESSAGE, message
    # Names may hold line ends, and commands to the terminal.
    assert all(c.isprintable() or c == "\n" for c in message), repr(message)
    return message


def leftovers(folder: Path) -> list[Path]:
    """What a file is called while it is being written, as `atomic_write` and the downloads do."""
    endings = (".tmp", ".part", ".unpacking")
    return [file for file in folder.rglob("*") if file.name.endswith(endings)]


def fresh_folder() -> Path:
    """For one case: hypothesis has many in a test, which has one tmp_path."""
    return Path(tempfile.mkdtemp(dir=Path.cwd()))


# Bytes, as a file system has them: also such as are no UTF-8.
ODD_NAMES = (".hidden", "画像", "u\u0308", "x" * 200, "[a]", "*", "train", "0", "a=b, c")
odd_names = st.one_of(
    st.sampled_from([b" ", b"-rf", b"~", b"'", b'"', b"a\nb", b"\x1b[31m", b"\xff\xfe", b"${x}"]),
    st.sampled_from([name.encode() for name in ODD_NAMES]),
    st.binary(min_size=1, max_size=6).map(lambda name: name.translate(None, b"/\0")),
).filter(lambda name: name not in (b"", b".", b".."))


@st.composite
def altered(draw: st.DrawFn, content: bytes) -> bytes:
    """As it is, empty, cut off, with bytes changed, or something else."""
    kind = draw(st.sampled_from(["as it is", "empty", "cut", "flipped", "other"]))
    if kind == "cut":
        return content[: draw(st.integers(0, len(content) - 1))]
    if kind == "flipped":
        flipped = bytearray(content)
        for _ in range(draw(st.integers(1, 3))):
            flipped[draw(st.integers(0, len(content) - 1))] ^= draw(st.integers(1, 255))
        return bytes(flipped)
    other = {"as it is": content, "empty": b""}
    return other[kind] if kind in other else draw(st.binary(max_size=40))
