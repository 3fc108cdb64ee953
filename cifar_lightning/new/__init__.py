"""Begins a project of one's own: a copy of the template with a name of its own and fewer tools.

python -m cifar_lightning.new dir=../mynet tools=evaluate,report
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cifar_lightning.cli import entry


def new(config: DictConfig) -> Path:
    """Copy this checkout to a new git repository, rename the package, and leave tools out.

    Args:
        config: of conf/new.yaml, as `config.compose.compose` gives it.

    Returns:
        The new project's folder.

    Raises:
        UserError: for a mistake that the user can fix; nothing has been written then.
    """
    # Imported here, so that `--help` and a mistyped option are answered at once.
    from omegaconf import OmegaConf
    from rich import get_console

    from cifar_lightning.config import validate
    from cifar_lightning.config.compose import CONF
    from cifar_lightning.errors import UserError
    from cifar_lightning.new import check, project
    from cifar_lightning.new.parts import read_parts

    validate.check_keys(config, "new")
    kinds = {"dir": str, "name": str | None, "tools": list[str], "weights": bool}
    if config.dir is None:
        raise UserError("dir=FOLDER is missing, the new project's: dir=../mynet, for example.")
    values: Any = OmegaConf.to_container(config)
    validate.check_values("", kinds, values)
    template, folder = CONF.parent, Path(config.dir).resolve()
    check.check_template(template)
    check.check_folder(folder, template)
    name = folder.name if config.name is None else config.name
    check.check_name(name, template)
    tools = check.chosen_tools([*config.tools], read_parts(template), config.weights)
    project.write(template, folder, name, tools, config.weights)
    lines = [
        f"project    {folder}",
        f"tools      {', '.join(tools) or 'none'}",
        f"next       cd {folder} && make setup && make test",
    ]
    for line in lines:  # without markup, because a folder may be called [red]
        get_console().print(line, markup=False, highlight=False, soft_wrap=True)
    return folder


def tools_as_list(arguments: list[str]) -> list[str]:
    """`tools=A,B` as Hydra's grammar has it, `tools=[A,B]`."""
    return [
        f"tools=[{argument.removeprefix('tools=')}]"
        if argument.startswith("tools=") and not argument.startswith("tools=[")
        else argument
        for argument in arguments
    ]


main = entry("new", new, tools_as_list)
