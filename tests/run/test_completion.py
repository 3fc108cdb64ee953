"""Shell completion in a real bash, fish and zsh."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import not_installed

from cifar_lightning.config.compose import CONF

BIN = Path(sys.executable).parent

# Bash's own steps at a Tab: the function that is registered for the command, told the line, says
# what the last word could become.
TAB = """
LINE={line!r}
eval "$({command} -sc install=bash)"
COMP_LINE=$LINE COMP_POINT=${{#LINE}}
read -r -a COMP_WORDS <<< "$LINE"
case "$LINE" in *" ") COMP_WORDS+=("");; esac
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
function=$(complete -p {command} | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function {command} "${{COMP_WORDS[COMP_CWORD]}}" ""
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def tab(line: str, shell: str = "bash") -> list[str]:
    """What a shell offers for a line."""
    command = line.split()[0]
    ended = subprocess.run(
        [shell, "-c", TAB.format(line=line, command=command)],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
        timeout=120,
    )
    assert ended.stderr == ""
    return ended.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("cifar-train -m seed=0,1 opti", ["optimizer.", "optimizer="]),
        ("cifar-train optimizer=sgd optimizer.nest", ["optimizer.nesterov="]),
        # What is not right yet says nothing.
        ("cifar-train seed=[ opti", []),
    ],
)
def test_a_tab_offers_what_may_come(line: str, offered: list[str]) -> None:
    assert tab(line) == offered


def needs(shell: str) -> None:
    if shutil.which(shell) is None:
        not_installed(f"{shell} is asked here: apt-get install {shell}")


def test_fish_offers_the_same() -> None:
    needs("fish")
    ended = subprocess.run(
        ["fish", "-c", "cifar-train -sc install=fish | source; complete -C 'cifar-train debug='"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
    )
    options = sorted(path.stem for path in (CONF / "debug").glob("*.yaml"))
    assert ended.stdout.split() == [f"debug={option}" for option in options], ended.stderr


def test_zsh_has_it_from_bash() -> None:
    needs("zsh")
    ended = subprocess.run(
        [
            *("zsh", "-f", "-c"),
            "autoload -Uz compinit bashcompinit; compinit -u -D; bashcompinit\n"
            'eval "$(cifar-train -sc install=bash)"\n'
            # As bashcompinit has it called.
            "ask() { emulate -L sh; hydra_bash_completion; }\n"
            "COMP_LINE='cifar-train debug=' COMP_CWORD=1; ask; print $COMPREPLY",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
    )
    assert "debug=profile" in ended.stdout, ended.stderr
