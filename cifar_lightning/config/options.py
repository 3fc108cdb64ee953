"""The options of a command line, as --multirun, told apart from its overrides."""

import re
from collections.abc import Collection, Sequence
from itertools import dropwhile
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from cifar_lightning.config.habits import OTHER_NAMES
from cifar_lightning.config.messages import unknown_option
from cifar_lightning.errors import UserError

# Hydra's options that are refused, and what to use instead.
REFUSED_OPTIONS = {
    "config_name": "a command has its own configuration. experiment=NAME takes that of a recipe",
    "config_path": "--config-dir=FOLDER adds a folder of configurations",
    "experimental_rerun": "report prints the command of a run; resume=CHECKPOINT resumes it",
}
# How argparse's messages about an option begin, and what is said instead.
FAULTS = {
    "expected one argument": "needs a value",
    "ignored explicit argument": "takes no value",
    "invalid choice": "is job, hydra or all",  # only --cfg has choices
}
# Before these keys, which are read before Hydra reads them, + and ++ mean nothing.
PLUS = re.compile(r"^\++(?=(resume|resume_sweep|hydra\.(mode|output_subdir|(run|sweep)\.dir))=)")
# `-lr` is no option; Hydra's parser would take `-momentum` for `-m`.
LONG_AFTER_ONE_DASH = re.compile(r"-(?!c(job|hydra|all)$)[A-Za-z][\w-]{2,}(=.*)?", re.DOTALL)


def plain_arguments(arguments: Sequence[str], config_name: str) -> list[str]:
    """Hydra's options as single words, without abbreviations, and then the overrides.

    So `-cd FOLDER` is `--config-dir=FOLDER`, and `--mult` is `--multirun`.

    Args:
        arguments: of the command line.
        config_name: the command's file in conf/, whose keys a message may suggest.

    Raises:
        UserError: if there is no such option, its value is missing, or it is refused.
    """
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]  # argparse's would print its usage
    hydras = vars(parser.parse_args([])).keys()
    unknown = [text for text in arguments if _is_no_option(text, hydras)]
    if not unknown:
        parsed, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        # Some versions of argparse name only a part of what was typed, which has nothing after it.
        _, *after = dropwhile(lambda text: text != unknown[0], [*arguments, unknown[0]])
        raise UserError(unknown_option(unknown[0], after, config_name))
    typed = vars(parsed)
    overrides = [PLUS.sub("", override) for override in typed.pop("overrides")]
    given = {name: value for name, value in typed.items() if value not in (None, False)}
    for name in given.keys() & REFUSED_OPTIONS.keys():
        option = name.replace("_", "-")
        raise UserError(f"--{option} is not used here: {REFUSED_OPTIONS[name]}.")
    options = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in given.items()
    ]
    return [*options, *overrides]


def _is_no_option(text: str, hydras: Collection[str]) -> bool:
    """Whether Hydra's parser would take an option of another program for one of its own."""
    if LONG_AFTER_ONE_DASH.fullmatch(text):
        return True
    name = text.partition("=")[0].removeprefix("--").replace("-", "_")
    if not text.startswith("--") or name in hydras:
        return False
    # --experiment is no abbreviation of --experimental-rerun.
    return any(name in (key, *others.split()) for key, others in OTHER_NAMES.items())


def _refuse(message: str) -> NoReturn:
    option, _, fault = message.removeprefix("argument ").partition(": ")
    for beginning, words in FAULTS.items():
        if fault.startswith(beginning):
            raise UserError(f"{option} {words}. --help says what can be typed.")
    raise UserError(f"{message}. --help says what can be typed.")
