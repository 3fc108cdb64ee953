"""Train a network on CIFAR-10 to the target accuracy: `python -m cifar_lightning.train`.

The default recipe reaches 81.7 ± 0.2 % test accuracy (10 seeds, JPEG copy of CIFAR-10) in 4 epochs:
benchmarks/results/2026-11-23-stop-rule.md.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from cifar_lightning.cli import entry

if TYPE_CHECKING:
    from pytorch_lightning.callbacks import Callback


def train(config: DictConfig, callbacks: dict[str, "Callback"] | None = None) -> dict[str, Any]:
    """Train until a target, a limit or the last epoch; then test the best checkpoint once.

    Args:
        config: from `config.compose.compose`, or from the command line.
        callbacks: by name, in addition to those of the configuration.

    Returns:
        The content of `metrics.json` in the run folder.

    Raises:
        UserError: for a mistake that the user can fix.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint and the run's files are written.
        SystemExit: after SIGTERM, in the same way, with exit code 143.
    """
    # Imported here, so that `--help` and a mistyped option are answered at once.
    import pytorch_lightning as pl

    from cifar_lightning import run
    from cifar_lightning.checkpoints.io import read_checkpoint
    from cifar_lightning.checkpoints.record import check_free, record_of, write_record
    from cifar_lightning.checkpoints.trusted import arguments_to_resume
    from cifar_lightning.config.compose import overrides_of
    from cifar_lightning.run import devices, fit, resume
    from cifar_lightning.system.jobs import in_job_process
    from cifar_lightning.system.logs import open_log_file
    from cifar_lightning.tracking import console, results, run_logger
    from cifar_lightning.tracking.run_folder import RunFolder
    from cifar_lightning.training.callbacks import Interruption
    from cifar_lightning.training.module import network_of

    overrides, folder = overrides_of(config), RunFolder(Path(config.run_dir))
    if config.resume is None:
        check_free(folder)
    else:
        config = resume.resumed(config)
    run.check_config(config)
    config, data = run.build_data_or_rehearse(config)
    pl.seed_everything(config.seed, verbose=False)
    module, counts = run.build_module(config, data)
    console.show_network(
        network_of(module),
        config.choices.model,
        data.image_size,
        counts,
        config.budget,
        layers=not in_job_process(),
    )
    if config.get("teacher") is not None:
        run.add_distillation(config, module)
    callbacks = run.build_callbacks(config, data) | (callbacks or {})
    interruption = Interruption(folder.last, record_of(config)["callbacks"])
    trainer = run.build_trainer(config, callbacks, run.will_validate(config, data))
    with fit.quiet(), run.open_loggers(config, trainer) as open_run_loggers:
        console.show_start(config, data, trainer, callbacks)

        def begin() -> None:
            open_run_loggers()
            if trainer.is_global_zero:
                write_record(config, overrides)
            open_log_file(Path(config.run_dir))
            run_logger.log_start(trainer.loggers, config, counts, callbacks)

        finished = fit.fit(trainer, module, data, config, interruption, begin)
        to_test = fit.checkpoint_to_test(
            trainer, callbacks["best"], folder.last if finished else None
        )
        checkpoint = read_checkpoint(to_test) if to_test and trainer.is_global_zero else None
        finished = finished and fit.test(trainer, module, data, checkpoint)
        device = devices.device_name(trainer.strategy.root_device)
        validation = {} if checkpoint is None else checkpoint.validation
        metrics = results.collect(
            *(config, trainer, module, data, callbacks, counts, device),
            *(to_test, validation, finished),
        )
        if trainer.is_global_zero:
            plots = results.save_plots(config, module, data, metrics, finished)
            results.save(config, metrics)  # last: metrics.json marks a run as finished
            run_logger.log_end(trainer.loggers, metrics, plots, module, data, to_test)
            to_resume = [] if finished else arguments_to_resume(config)
            details = not in_job_process()
            console.show_result(config, metrics, trainer.loggers, to_resume, details)
        if not finished:
            interruption.exit_by_signal()
    if config.rehearse_without_data and config.choices.data == "shapes":
        console.banner(console.REHEARSAL, "This was a rehearsal")
    return metrics


def train_locked(config: DictConfig) -> dict[str, Any]:
    """Run `train` while holding the lock of the folder that it writes to."""
    from cifar_lightning.system import processes
    from cifar_lightning.system.locks import run_lock
    from cifar_lightning.tracking.run_folder import RunFolder

    folder = RunFolder(Path(config.run_dir))
    if config.resume is not None:  # given on the command line, or by an experiment or a sweep
        folder = RunFolder.to_resume(Path(config.resume).expanduser())
    if not processes.is_first():  # only the first process writes to the folder
        return train(config)
    with run_lock(folder.path):
        return train(config)


def prepare(arguments: list[str]) -> list[str]:
    """Register the sweeper, and translate `resume_sweep=` and `resume=` for Hydra."""
    from cifar_lightning.config.compose import PACKAGE, key_of
    from cifar_lightning.config.overrides import is_sweep, options_and_overrides
    from cifar_lightning.errors import UserError
    from cifar_lightning.tracking.resume_arguments import in_run_folder, resume_auto

    # sweep/ may have been deleted except for its __pycache__.
    if (PACKAGE / "sweep" / "__init__.py").is_file():
        from hydra.core.plugins import Plugins

        from cifar_lightning.sweep.resume import resume_sweep

        # Called before the plugin is imported: it executes the modules of all plugins it finds.
        plugins = Plugins.instance()
        from hydra_plugins.cifar_lightning_sweeper import GridSweeper

        # Hydra finds plugins by searching folders, so it misses that of an editable install.
        plugins.register(GridSweeper)
        arguments = resume_sweep(arguments)
    arguments = in_run_folder(resume_auto(arguments))
    outputs = [
        a for a in arguments if key_of(a) == "hydra.output_subdir" and not a.endswith("null")
    ]
    if outputs:
        raise UserError(
            f"{outputs[0]}: leave it out. Hydra's record is always .hydra/ in the run's folder."
        )
    if is_sweep(arguments):
        return arguments
    # Hydra would write its record before any check; the run writes it when it begins.
    options, overrides = options_and_overrides(arguments)
    return [*options, *overrides, "hydra.output_subdir=null"]


main = entry("train", train_locked, prepare)

if __name__ == "__main__":
    # Imported by name, because a sweep's job processes unpickle `train` by its module's name.
    from cifar_lightning.train import main as program

    program()
