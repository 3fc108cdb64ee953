"""Sentences on how a run ended: its accuracy, and whether it reached its target."""

from collections.abc import Mapping
from math import sqrt
from typing import Any

from cifar_lightning.system.counted import counted
from cifar_lightning.tracking.tables import percent, plain, seconds

# By `stopped_by` in metrics.json.
ENDINGS = {
    "target": "stopped there",
    "max_epochs": "ended after its last epoch",
    "max_steps": "ended at trainer.max_steps",
    "max_time": "ended at trainer.max_time",
    "early_stopping": "was stopped by EarlyStopping",
    "pruned": "was pruned by its search",
    "callback": "was stopped by a callback",
}


def conclusion(metrics: Mapping[str, Any], target: float | None) -> list[str]:
    """Sentences on a run that is over.

    Args:
        metrics: of `metrics.json`.
        target: test accuracy from 0 to 1; None without one.
    """
    interrupted = metrics.get("stopped_by") == "interrupted"
    sentences = [f"Interrupted after {counted(metrics['epochs'], 'epoch')}."] if interrupted else []
    sentences.append(_accuracy(metrics))
    if metrics.get("label_shift") is not None:
        sentences.append(
            "The shares of the classes differ between training and test images, so validation "
            "accuracy does not predict test accuracy."
        )
    if metrics.get("checkpoint") == "last.ckpt" and metrics.get("test/acc") is not None:
        sentences.append("The last checkpoint was tested.")
    elif metrics.get("monitor") != "val/acc" and metrics.get("monitor_value") is not None:
        value = plain(metrics["monitor_value"])
        sentences.append(f"The checkpoint was chosen by {metrics['monitor']}: {value}.")
    return [*sentences, *_target(metrics, target)]


def _accuracy(metrics: Mapping[str, Any]) -> str:
    test, val = metrics.get("test/acc"), metrics.get("val/acc")
    on_test = "Not tested" if test is None else f"Test accuracy {percent(test)}"
    images = metrics.get("test_images")
    if test is not None and images is not None:  # older runs have not noted it
        on_test += f" (standard error {100 * sqrt(test * (1 - test) / images):.2f} points)"
    on_val = "no validation" if val is None else f"validation accuracy {percent(val)}"
    return f"{on_test}, {on_val}."


def _target(metrics: Mapping[str, Any], target: float | None) -> list[str]:
    stopped_by = str(metrics.get("stopped_by"))
    ended = ENDINGS.get(stopped_by, f"was stopped by {stopped_by}")
    interrupted = stopped_by == "interrupted"
    if target is None:
        return [] if interrupted else [f"The run had no target, and {ended}."]
    aim, epochs = f"its target of {100 * target:g}%", metrics.get("epochs_to_target")
    if epochs is None and interrupted:
        return [f"It had not reached {aim}."]
    test = metrics.get("test/acc")
    if epochs is None and test is not None and test >= target:
        reached = f"Its test accuracy reached {aim}"
        threshold = metrics.get("target_val_acc")
        if metrics.get("val/acc") is not None and threshold is not None:
            reached += (
                f", but its validation accuracy did not reach {percent(threshold)}, at which "
                "training stops"
            )
        return [f"{reached}.", f"It {ended}."]
    if epochs is None:
        return [f"It did not reach {aim} in {counted(metrics['epochs'], 'epoch')}, and {ended}."]
    took = f"{counted(epochs, 'epoch')} and {seconds(metrics['seconds_to_target'])} of training"
    reached = f"It reached {aim} after {took}."
    if test is not None and test < target:
        reached = (
            f"Its validation accuracy reached the threshold for {aim} after {took}, but its test "
            "accuracy is below the target."
        )
    return [reached] if stopped_by == "target" or interrupted else [reached, f"It {ended}."]
