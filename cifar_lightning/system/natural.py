"""Natural sort order of names."""

import re


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key that compares numbers by value: 2.png comes before 10.png."""
    pieces = re.split(r"(\d+)", name)  # text and digits alternate
    return [(int(piece) if piece.isdecimal() else -1, piece) for piece in pieces]
