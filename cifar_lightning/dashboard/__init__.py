"""Saves a dashboard for a W&B project: a workspace and a report.

python -m cifar_lightning.dashboard entity=me project=cifar-lightning
python -m cifar_lightning.dashboard dry_run=true
"""

from typing import Any

from omegaconf import DictConfig

from cifar_lightning.cli import entry


def dashboard(config: DictConfig) -> dict[str, Any]:
    """Save a workspace and a report with the same panels, or print what would be saved.

    Args:
        config: of conf/dashboard.yaml, as `config.compose.compose` gives it.

    Returns:
        The URLs of `workspace` and `report`; in a dry run, `panels.specification`.

    Raises:
        UserError: for a mistake that the user can fix, or if W&B refuses.
    """
    # Imported here, so that `--help` and a mistyped option are answered at once.
    import json
    import os
    from importlib.util import find_spec

    from cifar_lightning.config import validate
    from cifar_lightning.errors import UserError, how_to_install

    validate.check_keys(config, "dashboard")
    kinds = {"entity": str | None, "project": str, "url": str | None, "dry_run": bool}
    validate.check_values("", kinds, config)
    if find_spec("wandb_workspaces") is None:
        raise UserError(f"This needs wandb-workspaces: {how_to_install('dashboard')}")
    os.environ.pop("WANDB_MODE", None)  # it is meant for runs; a dashboard is always online
    if config.url is not None:
        os.environ["WANDB_BASE_URL"] = config.url  # read by all parts of W&B
    from cifar_lightning.dashboard import panels

    if config.dry_run:
        specification = panels.specification(config.project)
        print(json.dumps(specification, indent=2))
        return specification
    addresses = {}
    for name, address in panels.save(config.entity, config.project):
        print(f"{name:<11}{address}", flush=True)
        addresses[name] = address
    return addresses


main = entry("dashboard", dashboard)
