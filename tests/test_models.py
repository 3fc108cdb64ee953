import pytest
import torch
from torch import Tensor, nn

from cifar_lightning.budget import count
from cifar_lightning.models import Airbench94, DilatedDW, initialise

# Kind, output shape, parameters, bias; the table of the network, row by row.
TABLE: list[tuple[type[nn.Module], tuple[int, ...], int, bool]] = [
    (nn.Conv2d, (32, 32, 32), 864, False),
    (nn.ReLU, (32, 32, 32), 0, False),
    (nn.BatchNorm2d, (32, 32, 32), 64, True),
    (nn.Conv2d, (64, 32, 32), 18_432, False),
    (nn.ReLU, (64, 32, 32), 0, False),
    (nn.BatchNorm2d, (64, 32, 32), 128, True),
    (nn.Conv2d, (64, 32, 32), 4_096, False),
    (nn.MaxPool2d, (64, 16, 16), 0, False),
    (nn.Conv2d, (128, 12, 12), 73_728, False),
    (nn.ReLU, (128, 12, 12), 0, False),
    (nn.BatchNorm2d, (128, 12, 12), 256, True),
    (nn.MaxPool2d, (128, 6, 6), 0, False),
    (nn.Conv2d, (128, 8, 8), 147_456, False),
    (nn.ReLU, (128, 8, 8), 0, False),
    (nn.BatchNorm2d, (128, 8, 8), 256, True),
    (nn.MaxPool2d, (128, 4, 4), 0, False),
    (nn.Conv2d, (128, 4, 4), 1_280, True),
    (nn.Conv2d, (64, 4, 4), 8_256, True),
    (nn.Conv2d, (64, 2, 2), 640, True),
    (nn.Conv2d, (32, 2, 2), 2_080, True),
    (nn.AdaptiveAvgPool2d, (32, 1, 1), 0, False),
    (nn.Conv2d, (10, 1, 1), 320, False),
]
# Row, kernel, padding, dilation, groups.
CONVOLUTIONS = [
    (0, 3, 1, 1, 1),
    (3, 3, 1, 1, 1),
    (6, 1, 0, 1, 1),
    (8, 3, 0, 2, 1),
    (12, 3, 2, 1, 1),
    (16, 3, 1, 1, 128),
    (17, 1, 0, 1, 1),
    (18, 3, 0, 1, 64),
    (19, 1, 0, 1, 1),
    (21, 1, 0, 1, 1),
]


def test_dilated_dw_is_the_table_row_by_row() -> None:
    network = DilatedDW()
    x = torch.zeros(2, 3, 32, 32)
    layers = list(network.layers)
    assert len(layers) == len(TABLE)
    for row, (layer, (kind, shape, parameters, bias)) in enumerate(
        zip(layers, TABLE, strict=True), start=1
    ):
        x = layer(x)
        assert type(layer) is kind, row
        assert x.shape[1:] == shape, row
        assert sum(p.numel() for p in layer.parameters()) == parameters, row
        assert (getattr(layer, "bias", None) is not None) == bias, row
    assert sum(p.numel() for p in network.parameters()) == 257_856


def test_dilated_dw_convolutions_have_the_tables_geometry() -> None:
    layers = list(DilatedDW().layers)
    for row, kernel, padding, dilation, groups in CONVOLUTIONS:
        conv = layers[row]
        assert isinstance(conv, nn.Conv2d)
        found = (conv.kernel_size, conv.padding, conv.dilation, conv.stride, conv.groups)
        assert found == (
            (kernel, kernel),
            (padding, padding),
            (dilation, dilation),
            (1, 1),
            groups,
        ), row


def test_dilated_dw_pools_as_the_original_at_32_pixels() -> None:
    network = DilatedDW().eval()
    original = nn.Sequential(*list(network.layers)[:20], nn.AvgPool2d(2), network.layers[21])
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(network(images), original(images).flatten(1))


@pytest.mark.parametrize("size", [24, 32, 48, 64])
def test_dilated_dw_takes_other_sizes_and_class_counts(size: int) -> None:
    network = DilatedDW(num_classes=3, image_size=size)
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 3)


def test_dilated_dw_refuses_images_that_are_too_small() -> None:
    with pytest.raises(ValueError, match="at least 24 x 24 pixels, not 23 x 23"):
        DilatedDW(image_size=23)


def correlated_images() -> Tensor:
    """[200, 3, 12, 12], neighbours and channels alike, as in photographs."""
    noise = torch.randn(200, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.avg_pool2d(noise, 5, stride=1)
    return smooth + smooth.mean(1, keepdim=True)


def test_airbench94_is_the_reference() -> None:
    network = Airbench94()
    budget = count(network)
    assert budget.parameters == 1_972_792
    # By hand: outputs a channel, times channels in and out, times the kernel's size.
    by_hand = 31**2 * 3 * 24 * 4  # whitening
    by_hand += 31**2 * 24 * 64 * 9 + 15**2 * 64 * 64 * 9
    by_hand += 15**2 * 64 * 256 * 9 + 7**2 * 256 * 256 * 9
    by_hand += 7**2 * 256 * 256 * 9 + 3**2 * 256 * 256 * 9
    assert budget.multiply_adds == by_hand + 256 * 10
    frozen = [n for n, p in network.named_parameters() if not p.requires_grad]
    assert "layers.0.weight" in frozen
    assert len(frozen) == 1 + 6  # the whitening filters, and the norms' scales
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_whitened_filters_respond_uncorrelated_with_equal_variance() -> None:
    network, images = DilatedDW(), correlated_images()
    initialise(network, images, whiten=0.5, dirac=False)
    weight = next(network.parameters())
    assert torch.equal(weight[16:], -weight[:16])
    responses = nn.functional.conv2d(images, weight[:16])  # [200, 16, 10, 10]
    covariance = responses.transpose(0, 1).flatten(1) @ responses.transpose(0, 1).flatten(1).T
    covariance /= 200 * 10 * 10
    assert torch.allclose(covariance, 0.25 * torch.eye(16), atol=0.01)


def test_dirac_passes_the_input_channels_on() -> None:
    network = DilatedDW()
    convolution = network.layers[3]
    assert isinstance(convolution, nn.Conv2d)
    random_filters = convolution.weight[32:].clone()
    initialise(network, correlated_images(), whiten=0, dirac=True)
    x = torch.rand(1, 32, 8, 8)
    assert torch.equal(convolution(x)[:, :32], x)
    assert torch.equal(convolution.weight[32:], random_filters)  # not all zero


@pytest.mark.parametrize(("whiten", "dirac", "changed"), [(0.5, False, [0]), (0, True, [3, 8, 12])])
def test_initialise_leaves_the_other_layers_alone(
    whiten: float, dirac: bool, changed: list[int]
) -> None:
    network = DilatedDW()
    before = {name: p.clone() for name, p in network.named_parameters()}
    initialise(network, correlated_images(), whiten=whiten, dirac=dirac)
    different = {n for n, p in network.named_parameters() if not torch.equal(p, before[n])}
    assert different == {f"layers.{row}.weight" for row in changed}


def test_initialise_takes_a_network_without_convolutions() -> None:
    linear = nn.Linear(432, 10)
    before = linear.weight.clone()
    initialise(nn.Sequential(nn.Flatten(), linear), correlated_images(), whiten=0.5, dirac=True)
    assert torch.equal(linear.weight, before)
