"""Formats of exported files: how to write and run each.

A file is made in memory, as bytes, so that an exporter that fails leaves no file behind. No file
contains a path of this machine.
"""

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifar_lightning.checkpoints.pretrained import read_weights, with_weights
from cifar_lightning.training.module import Classifier

Runner = Callable[[Tensor], Tensor]
"""Maps images uint8 [N, 3, H, W] to logits float32 [N, classes]."""

# The oldest opset that PyTorch's exporter writes; newer runtimes read it too.
OPSET = 18


class Deployed(nn.Module):
    """A copy of a classifier's normalisation and network, to export.

    Args:
        classifier: to copy.
        memory_format: of the network's input.
    """

    def __init__(self, classifier: Classifier, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.classifier = copy.deepcopy(classifier).eval().requires_grad_(False)
        # The exporters need contiguous weights.
        self.classifier.network.to(memory_format=torch.contiguous_format)
        self.memory_format = memory_format

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of images uint8 [N, 3, H, W]."""
        inputs = self.classifier.normalise(images).contiguous(memory_format=self.memory_format)
        logits: Tensor = self.classifier.network(inputs)
        return logits


def _program(classifier: Classifier, memory_format: torch.memory_format) -> Any:
    """The graph of a classifier, for any batch size."""
    size = classifier.image_size
    # Two images: with one, the exporter would fix the batch size at 1.
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    batch = {"images": {0: torch.export.Dim("batch")}}
    with torch.no_grad():
        deployed = Deployed(classifier, memory_format)
        program = torch.export.export(deployed, (example,), dynamic_shapes=batch)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it contains paths of this machine
    return program


def onnx_file(classifier: Classifier, metadata: dict[str, Any]) -> bytes:
    """An ONNX model: input `images` uint8 [batch, 3, H, W], output `logits` [batch, classes]."""
    import onnx

    # Not channels_last: ONNX has no such format, and would insert a gather.
    program = torch.onnx.export(
        _program(classifier, torch.contiguous_format),
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes={"images": {0: "batch"}},
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None  # None only without dynamo
    model = program.model_proto
    onnx.helper.set_model_props(model, _as_text(metadata))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def run_onnx(file: Path) -> Runner:
    """A function that runs an ONNX file in onnxruntime, with as many CPU threads as PyTorch."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file.read_bytes(), options, ["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(logits)

    return run


def pt2_file(classifier: Classifier, metadata: dict[str, Any]) -> bytes:
    """A `torch.export` program, with the metadata as JSON in its extra file `metadata.json`."""
    content = io.BytesIO()
    program = _program(classifier, torch.channels_last)
    torch.export.save(program, content, extra_files={"metadata.json": json.dumps(metadata)})
    return content.getvalue()


def safetensors_file(classifier: Classifier, metadata: dict[str, Any]) -> bytes:
    """The network's weights by name, without a graph."""
    from safetensors.torch import save

    # Copies: the format supports neither strides nor shared weights.
    weights = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in classifier.network.state_dict().items()
    }
    return save(weights, _as_text(metadata))


def make_file(kind: str, classifier: Classifier, metadata: dict[str, Any]) -> bytes:
    """The content of an exported file, as bytes.

    Args:
        kind: `onnx`, `pt2` or `safetensors`.
        classifier: float32, on the CPU.
        metadata: primitives; onnx and safetensors store values other than text as JSON.
    """
    make = {"onnx": onnx_file, "pt2": pt2_file, "safetensors": safetensors_file}[kind]
    return make(classifier, metadata)


def run_file(kind: str, file: Path, network: nn.Module) -> Runner:
    """A function that runs a file; weights without a graph are loaded into `network`, in place."""
    if kind == "onnx":
        return run_onnx(file)
    if kind == "pt2":
        return torch.export.load(io.BytesIO(file.read_bytes())).module()
    return with_weights(network, *read_weights(file))


def _as_text(metadata: dict[str, Any]) -> dict[str, str]:
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
