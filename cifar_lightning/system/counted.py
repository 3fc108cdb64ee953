"""Counts with their nouns."""


def counted(number: float, noun: str) -> str:
    """A count with its noun: `1 image`, `2,048 images`, `0.7143 epochs`."""
    digits = f"{number:,}" if isinstance(number, int) else f"{number:,.4g}"
    return f"{digits} {noun}{'' if number == 1 else 's'}"
