"""`resume_sweep=FOLDER`: resumes a sweep from the command line that its folder records."""

from collections.abc import Sequence
from pathlib import Path

from cifar_lightning.config.compose import key_of
from cifar_lightning.config.overrides import is_sweep, options_and_overrides, quoted, values_of
from cifar_lightning.errors import UserError
from cifar_lightning.tracking.run_folder import load_yaml, read_config_dir, read_sweep

FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")


def resume_sweep(arguments: Sequence[str]) -> list[str]:
    """Replace resume_sweep=FOLDER by the arguments that make Hydra resume the sweep there.

    Overrides typed beside it replace the sweep's overrides with the same keys. All others stay as
    recorded, including Hydra's own (`hydra/launcher=…`).

    Args:
        arguments: from `plain_arguments`.

    Raises:
        UserError: if the folder has no sweep, or an override names another folder.
    """
    if not (values := values_of("resume_sweep", arguments)):
        return [*arguments]
    others = [argument for argument in arguments if key_of(argument) != "resume_sweep"]
    value = values[-1]
    folder = Path(value).expanduser()
    if not value or not (folder / "multirun.yaml").is_file():
        raise UserError(
            f"resume_sweep={value} is not the folder of a sweep: it has no multirun.yaml. Example: "
            "resume_sweep=runs/train/<date>_<time>_sweep"
        )
    load_yaml(folder / "multirun.yaml")  # raises an error if it is damaged
    options, typed = options_and_overrides(others)
    if not is_sweep(options):
        options.insert(0, "--multirun")
    for override in typed:
        named = Path(override.partition("=")[2].strip("'\"")).expanduser()
        if key_of(override) in FOLDERS and named.resolve() != folder.resolve():
            raise UserError(
                f"{override}: resume_sweep={value} resumes the sweep in its folder. Leave "
                f"{key_of(override)} out. To continue in another folder, move this one first."
            )
    if not values_of("--config-dir", options) and (config_dir := read_config_dir(folder)):
        options.append(f"--config-dir={config_dir}")
    jobs = [o for o in read_sweep(folder) if key_of(o) not in {key_of(t) for t in typed}]
    left_out = {key_of(argument) for argument in typed}
    recorded = [o for o in read_sweep(folder, "hydra") if key_of(o) not in left_out]
    if "hydra/launcher" in left_out:  # another launcher has other options
        recorded = [o for o in recorded if not key_of(o).startswith("hydra.launcher.")]
    resume = [f"hydra.sweep.dir={quoted(str(folder))}", "hydra.sweeper.resume=true"]
    return [*options, *recorded, *jobs, *typed, *resume]
