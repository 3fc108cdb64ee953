"""What of Lightning a run does not take, and what to use instead."""

from typing import Any

# Arguments of the Trainer that a run sets itself: the value, and what to use instead.
FIXED_ARGUMENTS: dict[str, tuple[Any, str]] = {
    "barebones": (False, "debug=profile measures where the time goes"),
    "callbacks": (None, "+callbacks.NAME._target_=CLASS adds a callback"),
    "default_root_dir": (None, "hydra.run.dir=FOLDER is the run's folder"),
    "enable_autolog_hparams": (True, "every logger gets the whole configuration anyway"),
    "enable_checkpointing": (True, "a run tests its best checkpoint and resumes from its last one"),
    "fast_dev_run": (False, "debug=fast runs three batches of everything"),
    "limit_predict_batches": (None, "the command that predicts is cifar_lightning.predict"),
    "logger": (None, "logger=csv leaves W&B out, +logger.NAME._target_=CLASS adds a logger"),
    "model_registry": (None, "logger=wandb uploads the best checkpoint as an artifact"),
    "overfit_batches": (0, "debug=overfit trains on the same batches in every epoch"),
    "reload_dataloaders_every_n_epochs": (0, "each epoch has a new order of the images anyway"),
    "use_distributed_sampler": (False, "the data module shares each batch among the devices"),
}

# Lightning's callbacks that do not work here, by class, and why or what to use instead.
UNSUPPORTED_CALLBACKS: dict[str, str] = {
    "BackboneFinetuning": "it needs a LightningModule with a `backbone`, which Classifier is not",
    "BaseFinetuning": "it is a base class: name your own, with freeze_before_training",
    "BasePredictionWriter": "the command that predicts is cifar_lightning.predict",
    "BatchSizeFinder": "data.batch_size=N sets the batch size",
    "Callback": "it is a base class, which does nothing",
    "Checkpoint": "it is a base class, which does nothing",
    "LearningRateFinder": "optimizer.lr=0.05,0.1,0.2 -m tries learning rates",
    "ModelPruning": "it does not take weights in the memory layout channels_last",
    "OnExceptionCheckpoint": "a run always saves last.ckpt, which resume= reads",
    "ProgressBar": "it is a base class: name RichProgressBar or TQDMProgressBar",
    "StochasticWeightAveraging": "it validates its average only after max_epochs, in an epoch "
    "whose images it counts without learning from them; WeightAveraging and EMAWeightAveraging "
    "validate, save and test theirs",
}


def refusal(key: str) -> str | None:
    """The message for an argument of the Trainer that a run sets itself; None for other keys.

    Args:
        key: as it was typed, with or without `trainer.`.
    """
    name = key.removeprefix("trainer.")
    if name not in FIXED_ARGUMENTS:
        return None
    return f"{key} is not used here: {FIXED_ARGUMENTS[name][1]}."
