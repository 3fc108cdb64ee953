"""Machine-specific paths in a configuration."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Keys of conf/data/ for the location of the images, which differs between machines.
DATA_PATHS = ("path", "root", "mirror", "mirrors", "cache_dir")
# Last parts of other keys for paths, or for what belongs to them.
RUN_PATHS = ("dirpath", "logger", "resume", "run_dir", "run_id", "save_dir", "teacher")
# A path from the root or a home folder, at the start of a text or in it, as in sqlite:////home/…
ABSOLUTE = re.compile(r"(^|[\s='\"\[{(,])(/|~|file:)|:///")


def without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out a configuration's paths; of other absolute paths only the last part is kept.

    Args:
        config: nested dictionaries of primitives and lists.
    """
    left_out = (*DATA_PATHS, *RUN_PATHS)
    kept = {key: _without_paths(value) for key, value in config.items() if key not in left_out}
    if isinstance(config.get("overrides"), list):
        kept["overrides"] = [text for text in config["overrides"] if not sets_path(text)]
    return kept


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_paths(value)
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and ABSOLUTE.search(value):
        return Path(value).name
    return value


def sets_path(override: str) -> bool:
    """Whether an override sets a path, or what belongs to one."""
    keys = override.lstrip("+~").partition("=")[0].split(".")
    return not {*keys}.isdisjoint((*DATA_PATHS, *RUN_PATHS)) or bool(ABSOLUTE.search(override))
