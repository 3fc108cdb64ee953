import numpy as np
import pytest
import torch
from layer_stats import layers_of, plot_costs, plot_fields, sensitivity
from torch import Tensor, nn

from cifar_lightning import count_network, load
from cifar_lightning.models import DilatedDW
from cifar_lightning.tracking.saliency import kind_of


def test_the_layers_of_the_seed_network() -> None:
    found = {layer.name: layer for layer in layers_of(DilatedDW())}
    assert list(found) == [f"layers.{number}" for number in range(22)]
    dilated = found["layers.8"]
    assert (dilated.kind, dilated.output) == ("conv 3x3 dilation 2", (128, 12, 12))
    assert (dilated.parameters, dilated.multiply_adds) == (73_728, 73_728 * 12 * 12)
    assert (found["layers.16"].kind, found["layers.16"].parameters) == ("depthwise 3x3", 1280)
    assert found["layers.15"].kind == "MaxPool2d"


def test_receptive_fields_grow_by_kernel_dilation_and_stride() -> None:
    # A 3x3 kernel adds 2 x dilation x the pixels from one unit to the next; a pool of 2 one of
    # these, and doubles them.
    sees = [layer.sees for layer in layers_of(DilatedDW())]
    assert sees[:4] == [3, 3, 3, 5]
    assert sees[6:9] == [5, 6, 6 + 2 * 2 * 2]
    assert sees[11:13] == [14 + 2, 16 + 2 * 4]
    assert sees[15:17] == [24 + 2 * 1, 32]  # 26 + 2 * 8 would be more than the image
    first = layers_of(DilatedDW())[0]
    assert first.field == (15, 18)  # around row 16


@pytest.mark.parametrize("name", ["best_dilated_dw", "best_257k", "best_1m"])
def test_the_layers_add_up_to_what_the_budget_counts(name: str) -> None:
    network = load(name).network
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found, counts = layers_of(network), count_network(network)
    assert sum(layer.parameters for layer in found) == counts.parameters
    assert sum(layer.multiply_adds for layer in found) == counts.multiply_adds
    assert not any(layer.kind == "Sequential" for layer in found)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_what_comes_after_a_mean_sees_the_whole_image() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2, bias=False)
    )
    assert [(x.sees, x.output) for x in layers_of(network, 12)] == [
        (1, (4, 12, 12)),
        (12, (4, 1, 1)),
        (12, (4,)),
        (12, (2,)),
    ]


class Weighted(nn.Module):
    """Its one unit in the middle has the gradient 1 on the pixel above, and 3 on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 2, 3, padding=1)
        with torch.no_grad():
            self.first.bias.fill_(-1000)  # type: ignore[union-attr]  # nothing gets past the ReLU
            self.first.weight.zero_()
            self.first.weight[:, :, 0, 1] = torch.tensor([[1.0], [-1.0]])
            self.first.weight[:, :, 1, 1] = torch.tensor([[3.0], [3.0]])

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.first(images)
        return maps.relu_()


def test_sensitivity_is_the_size_of_the_gradient_over_all_channels() -> None:
    images = torch.randn(400, 3, 8, 8)
    network = Weighted().train()
    seen = sensitivity(network, images, "first")
    expected = torch.zeros(8, 8)
    expected[3, 4], expected[4, 4] = 1 / 3, 1
    assert torch.allclose(seen, expected, atol=0.05)
    assert network.training
    assert not network.first._forward_hooks
    assert network.first.weight.grad is None


def test_what_a_layer_is_sensitive_to_is_in_its_receptive_field() -> None:
    network = DilatedDW().eval()
    (dilated,) = (x for x in layers_of(network) if "dilation" in x.kind)
    first, after = dilated.field
    seen = sensitivity(network, torch.randn(8, 3, 32, 32), dilated.name)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[first:after, first:after] = True
    assert seen[~inside].max() == 0
    assert (seen[inside] > 0).float().mean() > 0.9
    assert seen.max() == 1


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Conv2d(8, 8, 3, groups=8), "depthwise 3x3"),
        (nn.Conv2d(8, 8, 3, groups=8, dilation=2), "depthwise 3x3 dilation 2"),
        (nn.Conv2d(8, 8, (1, 3)), "conv 1x3"),
        (nn.Conv2d(8, 4, 1), "pointwise 1x1"),
        (nn.ReLU(), "ReLU"),
    ],
)
def test_kinds_of_layers(layer: nn.Module, kind: str) -> None:
    assert kind_of(layer) == kind


def test_costs_are_shares_of_the_whole_the_first_layer_on_top() -> None:
    (axes,) = plot_costs([("conv", 100, 900), ("head", 300, 100)], "").axes
    widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert widths == [[0.25, 0.75], [0.9, 0.1]]
    bottom, top = axes.get_ylim()
    assert bottom > top
    assert [label.get_text() for label in axes.get_yticklabels()] == ["conv", "head"]


def test_fields_are_maps_with_the_receptive_field_around_them() -> None:
    values = np.zeros((8, 8), dtype=np.float32)
    values[3, 4] = 1
    (axes,) = plot_fields([("trained", [(values, (2, 7))])], ["layer 1"], "").axes
    assert np.array_equal(np.asarray(axes.images[0].get_array()), values)
    (frame,) = axes.patches
    assert frame.get_bbox().bounds == (1.5, 1.5, 5, 5)  # type: ignore[attr-defined]
    assert (axes.get_title(), axes.get_ylabel()) == ("layer 1", "trained")
