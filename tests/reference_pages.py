import re

from cifar_lightning.config.compose import CONF

REFERENCE = CONF.parent / "docs" / "reference"


def first_column(page: str, heading: str) -> list[str]:
    """The words in backticks in the first column of a section's tables.

    Args:
        page: a file in docs/reference/.
        heading: of the section, with its number signs.
    """
    text = "\n" + (REFERENCE / page).read_text()
    assert f"\n{heading}\n" in text, f"{page} has no section {heading}"
    level = heading.partition(" ")[0]
    section = re.split(rf"^#{{1,{len(level)}}} ", text.partition(f"\n{heading}\n")[2], flags=re.M)[
        0
    ]
    cells = re.findall(r"^\| (`[^|]*?) \|", section, re.M)
    return [word for cell in cells for word in re.findall(r"`([^`]+)`", cell)]
