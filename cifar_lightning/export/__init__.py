"""Exports a checkpoint to a file that runs without this package, and checks it against PyTorch.

python -m cifar_lightning.export checkpoint=runs/train/…/checkpoints/best.ckpt format=onnx

This takes 15 s on two cores. The ONNX file of the default network has 1.08 MB;
benchmarks/results/2026-11-24-export.md compares its latency with PyTorch's.
"""

import importlib
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf

from cifar_lightning.cli import entry

# The packages that each format needs, from the extra `export`.
NEEDS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "pt2": (),
    "safetensors": (),  # always installed, load(NAME) needs it
}


def export(config: DictConfig) -> dict[str, Any]:
    """Write a checkpoint's classifier in another format.

    Args:
        config: of conf/export.yaml, as `config.compose.compose` gives it.

    Returns:
        `checkpoint`, `format` and `output`. `bytes` and `checkpoint_bytes`: file sizes.
        `largest_difference` between the logits of the file and of PyTorch, and the `tolerance`.
        `images`: number of images compared; `images_of`: `validation`, `train` (if there are no
        validation images) or `noise` (if the run's data cannot be used on this machine). Except for
        safetensors, which holds no graph: latencies in milliseconds for batches of 1 and 256,
        `eager_ms_1` and `eager_ms_256` of PyTorch, `file_ms_1` and `file_ms_256` of the file, and
        the number of CPU `threads`.

    Raises:
        UserError: for a mistake that the user can fix, or if the file's logits differ from
            PyTorch's by more than `tolerance`. The file is not kept then.
    """
    _check(config)
    # Imported here, so that `--help` and a mistyped option are answered at once.
    import torch
    from pydantic import Field
    from rich import get_console

    from cifar_lightning import run
    from cifar_lightning.checkpoints.io import find_checkpoint
    from cifar_lightning.config import validate
    from cifar_lightning.errors import UserError
    from cifar_lightning.export import formats, verify
    from cifar_lightning.run.devices import keep_freed_memory
    from cifar_lightning.system.atomic import atomic_write

    validate.check_keys(config, "export")
    tolerance = Annotated[float, Field(ge=0, allow_inf_nan=False)]
    validate.check_values("", {"tolerance": tolerance}, config)
    if "data" in config:
        validate.check_part("data", OmegaConf.to_container(config.data, resolve=True))
    kind = config.format
    checkpoint = find_checkpoint(config.checkpoint)
    output = Path(config.output or checkpoint.with_suffix(f".{kind}")).expanduser()
    if output.absolute() == checkpoint.absolute():
        raise UserError(f"output={output} is the checkpoint itself.")
    validate.check_folder(f"output={output}", output.parent)
    classifier, info = run.rebuild(checkpoint)
    try:
        images, images_of = verify.real_images(run.rebuild_data(config, checkpoint, info)[0])
    except UserError:  # the check can use random images instead
        if "data" in config:
            raise
        images, images_of = verify.noise(info.image_size), "noise"
    network = run.make_network(info.network)

    keep_freed_memory()
    with get_console().status("Exporting, and checking the file against PyTorch"):
        with verify.export_errors(f"{info.model} cannot be exported to {kind}"):
            metadata = verify.describe(info)
            content = formats.make_file(kind, classifier, metadata)
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(output) as file:
            file.write(content)
            file.flush()
            with verify.export_errors(f"The {kind} file of {info.model} does not run"):
                run_file = formats.run_file(kind, Path(file.name), network)
                difference = verify.largest_difference(run_file, classifier, images)
            if not difference <= config.tolerance:  # NaN too
                raise UserError(
                    f"The logits of the {kind} file differ from PyTorch's by up to "
                    f"{difference:.1e}, more than tolerance={config.tolerance:.1e}. "
                    f"The file was not kept: {output}"
                )
        result = {
            "checkpoint": str(checkpoint),
            "format": kind,
            "output": str(output),
            "bytes": len(content),
            "checkpoint_bytes": checkpoint.stat().st_size,
            "largest_difference": difference,
            "tolerance": config.tolerance,
            "images": len(images),
            "images_of": images_of,
        }
        if kind != "safetensors":  # it has no graph of its own to time
            runs: dict[str, formats.Runner] = {"eager": classifier, "file": run_file}
            result |= verify.latencies(runs, images)
            result["threads"] = torch.get_num_threads()
    verify.show(result, classifier)
    return result


def _check(config: DictConfig) -> None:
    """Check format, output and packages before torch is imported."""
    from cifar_lightning.errors import UserError, how_to_install

    kind, output = config.format, config.output
    if kind not in NEEDS:
        raise UserError(f"format={kind} is unknown: choose one of {', '.join(NEEDS)}.")
    if output is not None and not str(output).endswith(f".{kind}"):
        raise UserError(
            f"output={output}: the name of a file with format={kind} must end in .{kind}."
        )
    for name in NEEDS[kind]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"format={kind} needs {name}, which cannot be imported here: {error}. "
                f"{how_to_install('export')}"
            ) from error


main = entry("export", export)
