"""What in a configuration is a place on this machine, and so not for others."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Keys of conf/data/ that say where images lie: another machine has other ones.
PLACES = ("path", "root", "mirror", "mirrors", "cache_dir")
# Last parts of the other keys that hold places, or what belongs to them.
OF_THE_RUN = ("dirpath", "logger", "resume", "run_dir", "run_id", "save_dir", "teacher")
# A path from the root or of a home, at the start of a text or within it, as in sqlite:////home/…
ABSOLUTE = re.compile(r"(^|[\s='\"\[{(,])(/|~|file:)|:///")


def without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without places; of other absolute paths the last part stays.

    Args:
        config: nested dictionaries of primitives and lists.
    """
    left_out = (*PLACES, *OF_THE_RUN)
    kept = {key: _without_places(value) for key, value in config.items() if key not in left_out}
    if isinstance(config.get("overrides"), list):
        kept["overrides"] = [text for text in config["overrides"] if not names_a_place(text)]
    return kept


def _without_places(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_places(value)
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    if isinstance(value, str) and ABSOLUTE.search(value):
        return Path(value).name
    return value


def names_a_place(override: str) -> bool:
    """Whether an override, as typed, names a place, or what belongs to one."""
    keys = override.lstrip("+~").partition("=")[0].split(".")
    return not {*keys}.isdisjoint((*PLACES, *OF_THE_RUN)) or bool(ABSOLUTE.search(override))
