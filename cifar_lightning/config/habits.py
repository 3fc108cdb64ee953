"""Names that people know from other projects, and what they are here."""

import difflib
import re
from collections.abc import Sequence

from cifar_lightning.config.compose import PACKAGE

# Keys and groups of conf/, each with other names for it. The last word of a typed name counts.
OTHER_NAMES = {
    # optimisation
    "optimizer.lr": "learning_rate base_lr init_lr initial_lr max_lr",
    "optimizer.weight_decay": "wd l2",
    "scheduler.warmup": "warmup_epochs warmup_steps warmup_iters warmup_ratio num_warmup_steps",
    "trainer.gradient_clip_val": "clip clip_grad clip_grad_norm clip_norm grad_clip gradient_clip "
    "gradient_clipping max_grad_norm",
    "trainer.accumulate_grad_batches": "accum accumulation_steps accumulate_grad grad_accum "
    "grad_accum_steps gradient_accumulation_steps",
    "loss.label_smoothing": "label_smoothing smoothing label_smooth",
    "cutmix": "cutmix_alpha cutmix_prob",
    "augment.cutout": "cutout_size random_erasing reprob",
    # length of the training
    "trainer.max_epochs": "epoch epochs n_epochs num_epochs num_train_epochs total_epochs",
    "trainer.max_steps": "steps num_steps total_steps max_iters iterations num_iterations",
    "trainer.check_val_every_n_epoch": "eval_every eval_freq eval_interval val_every val_freq "
    "val_interval",
    "trainer.log_every_n_steps": "log_every log_freq log_interval logging_steps print_freq",
    "trainer.enable_progress_bar": "progress progress_bar progress_bar_refresh_rate tqdm",
    "target_accuracy": "target target_acc",
    # devices
    "trainer.gpus": "cuda device devices gpu gpu_id gpu_ids n_gpu n_gpus ngpus num_devices "
    "num_gpus",
    "trainer.num_nodes": "n_nodes nnodes nodes",
    "trainer.strategy": "ddp distributed distributed_backend",
    "trainer.precision": "dtype",
    "trainer.compile": "torch_compile use_compile",
    "seed": "manual_seed random_seed random_state rng_seed seed_everything",
    # data
    "data.batch_size": "batch batchsize bs mini_batch_size per_device_train_batch_size "
    "train_batch_size",
    "batch_size": "batch batchsize bs eval_batch_size",
    "data.val_size": "train_val_split train_val_test_split val_fraction val_ratio val_split "
    "valid_size valid_split validation_size validation_split",
    "data.path": "data_dir data_folder data_path data_root dataset_dir dataset_path dataset_root "
    "folder path",
    "data.root": "data_dir data_folder data_path data_root dataset_dir dataset_path dataset_root",
    # files
    "resume": "checkpoint checkpoint_path ckpt ckpt_path load_from restore_from "
    "resume_checkpoint resume_from resume_from_checkpoint resume_path",
    "checkpoint": "checkpoint_path ckpt ckpt_path load_from model model_path path pretrained "
    "resume weights",
    "hydra.run.dir": "default_root_dir exp_dir log_dir logdir out_dir outdir output output_dir "
    "results_dir run_dir save_dir task_name work_dir workdir",
    "output": "out out_dir output_dir output_file output_path save_dir save_path",
    "images": "files folder image image_path img input inputs path",
    "run": "folder path run_dir run_folder",
    # W&B
    "logger.wandb.project": "project project_name wandb_project",
    "logger.wandb.entity": "entity team wandb_entity",
    "logger.wandb.name": "exp_name experiment_name name run_name wandb_name",
    "logger.wandb.tags": "tags wandb_tags",
    "logger.wandb.group": "group wandb_group",
    "logger.wandb.mode": "wandb_mode",
    # searches
    "callbacks.best.monitor": "metric optimized_metric",
    "n_trials": "max_trials num_trials trials",
    "study": "study_name",
    "storage": "db storage_url",
    # groups
    "data": "data_name datamodule dataset dataset_name",
    "augment": "aug augmentation augmentations transform transforms",
    "model": "arch architecture backbone model_name net network",
    "init": "initialisation initialization weight_init",
    "optimizer": "opt optim optimizer_name",
    "scheduler": "lr_schedule lr_scheduler sched schedule",
    "experiment": "cfg config exp recipe",
}
# Names of what does not exist here, or exists in another form: a key or a group, and the answer,
# which is only for commands that have this key or group.
ANSWERS = {
    "num_workers workers n_workers num_worker pin_memory persistent_workers prefetch_factor": (
        "data.batch_size",
        "All images are in memory, and whole batches are augmented on the device: there are no "
        "workers to set",
    ),
    "amp bf16 fp16 fp32 half mixed_precision use_amp": (
        "trainer.precision",
        "trainer.precision=16-mixed, bf16-mixed or 32-true sets the precision",
    ),
    "dropout dropout_rate drop drop_rate drop_path": (
        "model",
        "The networks here have no dropout; docs/extend.md adds a network",
    ),
    "mixup mixup_alpha": (
        "cutmix",
        "There is no mixup; cutmix=0.5 mixes half of the images by CutMix",
    ),
    "beta beta1 beta2 betas adam_beta1 adam_beta2": (
        "optimizer",
        "optimizer=adamw +optimizer.betas=[0.9,0.95] sets AdamW's; of muon and sgd it is "
        "optimizer.momentum=0.9",
    ),
    "path folder": (
        "data",
        "data=folder data.path=DIRECTORY_OR_ARCHIVE reads images in class folders",
    ),
    "wandb use_wandb log_wandb": (
        "logger",
        "logger=wandb logs to W&B, logger.wandb.mode=offline logs offline, logger=csv not at all",
    ),
    "tensorboard use_tensorboard mlflow use_mlflow trackio use_trackio": (
        "logger",
        "logger=tensorboard, logger=mlflow and logger=trackio log there, "
        "logger=[default,tensorboard] to TensorBoard and W&B",
    ),
    "train do_train": (
        "resume",
        "A run always trains; python -m cifar_lightning.evaluate tests a checkpoint",
    ),
    "test do_test": (
        "trainer.limit_test_batches",
        "A run tests its best checkpoint; trainer.limit_test_batches=0 turns that off",
    ),
    "eval evaluate test_only eval_only": (
        "resume",
        "python -m cifar_lightning.evaluate checkpoint=PATH tests a checkpoint",
    ),
    "patience early_stop early_stopping": (
        "callbacks",
        "Early stopping is a callback of Lightning's: "
        "+callbacks.stop._target_=pytorch_lightning.callbacks.EarlyStopping "
        "+callbacks.stop.monitor=val/loss +callbacks.stop.patience=3",
    ),
    "ema ema_decay use_ema": (
        "callbacks",
        "The average of the weights is a callback of Lightning's: "
        "+callbacks.ema._target_=pytorch_lightning.callbacks.EMAWeightAveraging",
    ),
    "pretrained pretrained_weights weights": (
        "resume",
        "A run begins with new weights; resume=CHECKPOINT continues a run",
    ),
    "image_size img_size resize num_classes n_classes": (
        "model",
        "A run takes the image size and the number of classes from its data; data=folder "
        "data.image_size=32 resizes images",
    ),
    "cpu no_cuda use_cpu": ("trainer.gpus", "trainer.gpus=0 uses the CPU"),
    "auto_lr_find lr_find": ("optimizer.lr", "optimizer.lr=0.05,0.1,0.2 -m tries learning rates"),
    "dry_run smoke_test": ("debug", "debug=fast runs three batches of everything"),
    "profile": ("debug", "debug=profile measures where the time goes"),
    "overfit": ("debug", "debug=overfit trains on the same batches in every epoch"),
    "multirun sweep": (
        "optimizer.lr",
        "-m runs a job for each value, as in optimizer.lr=0.05,0.1 -m",
    ),
    "hparams_search n_trials study_name": (
        "optimizer",
        "A search is another command: python -m cifar_lightning.search n_trials=20",
    ),
}
# What to do instead of an option that a group does not have.
INSTEAD = {
    "data": "Other images, in class folders, are data=folder data.path=DIRECTORY_OR_ARCHIVE.",
    "model": "docs/extend.md adds a network.",
    "optimizer": "For another optimizer of PyTorch, such as Adam, type optimizer=adamw "
    "optimizer._target_=torch.optim.Adam.",
    "scheduler": "docs/extend.md adds parts of your own.",
    "augment": "docs/extend.md adds an augmentation.",
    "trainer": "trainer.gpus=1 trains on a GPU, trainer.gpus=0 on the CPU.",
    "logger": "Several are logger=[tensorboard,mlflow]; +logger.NAME._target_=CLASS adds another "
    "logger of Lightning's.",
    "callbacks": "+callbacks.NAME._target_=CLASS adds a callback.",
    "debug": "debug=fast runs three batches of everything.",
    "hydra/sweeper": "python -m cifar_lightning.search searches with Optuna.",
}
CUTOFF = 0.7  # similarity of two names, from 0 to 1


def suggestion(name: str, known: Sequence[str]) -> str:
    """What to type instead of a name, as the end of a message; empty if nothing is near.

    Args:
        name: as it was typed.
        known: groups and keys of the command.
    """
    keys, answer = meant(name, known)
    return f" {answer}." if answer else question(keys)


def meant(name: str, known: Sequence[str]) -> tuple[list[str], str]:
    """The keys that a name may mean, most often one or none, or an answer in place of them.

    Args:
        name: as it was typed.
        known: groups and keys of the command.
    """
    last = _last_word(name)
    keys = [
        key
        for key, others in OTHER_NAMES.items()
        if key in known and key != name and last in others.split()
    ]
    if keys:
        return keys, ""
    for others, (about, answer) in ANSWERS.items():
        if about in known and last in others.split() and commands_are_there(answer):
            return [], answer
    return near(name, known), ""


def commands_are_there(text: str) -> bool:
    """Whether the package has the commands that a text names; a tool may have been deleted."""
    names = re.findall(r"cifar_lightning\.(\w+)", text)
    return all((PACKAGE / name / "__main__.py").is_file() for name in names)


def near(name: str, known: Sequence[str]) -> list[str]:
    """The nearest known names, three at most.

    They are compared by their last words, as `lr` in `optimizer.lr`; among equals, one of the same
    group comes first.
    """
    scores = {}
    for key in known:
        is_hidden = _last_word(key).startswith("_") and not _last_word(name).startswith("_")
        if is_hidden or key == name:  # nobody means _target_
            continue
        likeness = difflib.SequenceMatcher(None, _last_word(name), _last_word(key)).ratio()
        if likeness >= CUTOFF:
            same_group = key.rpartition(".")[0] == name.rpartition(".")[0]
            depth = abs(key.count(".") - name.count("."))
            scores[key] = likeness + 0.1 * same_group - 0.06 * depth
    best = sorted(scores, key=lambda key: -scores[key])[:3]
    return [key for key in best if scores[key] > scores[best[0]] - 0.11]


def question(names: Sequence[str]) -> str:
    """Ask for these names, as the end of a message; empty for none."""
    return f" Did you mean {' or '.join(names)}?" if names else ""


def _last_word(name: str) -> str:
    return name.rpartition(".")[2].lower().replace("-", "_")
