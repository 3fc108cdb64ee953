import pytest
import torch
from torch import Tensor, nn

from cifar_lightning.models import Airbench94, DilatedDW, ResidualDW, ResNet20, initialise
from cifar_lightning.models.blocks import Depthwise, Residual, SqueezeExcitation
from cifar_lightning.models.budget import count_network

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


def test_dilated_dw_pools_as_the_original_at_32_pixels() -> None:
    network = DilatedDW().eval()
    original = nn.Sequential(*list(network.layers)[:20], nn.AvgPool2d(2), network.layers[21])
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(network(images), original(images).flatten(1))


def correlated_images() -> Tensor:
    """[200, 3, 12, 12], neighbours and channels alike, as in photographs."""
    noise = torch.randn(200, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.avg_pool2d(noise, 5, stride=1)
    return smooth + smooth.mean(1, keepdim=True)


def test_airbench94_is_the_reference() -> None:
    network = Airbench94()
    counts = count_network(network)
    assert counts.parameters == 1_972_792
    # By hand: outputs a channel, times channels in and out, times the kernel's size.
    by_hand = 31**2 * 3 * 24 * 4  # whitening
    by_hand += 31**2 * 24 * 64 * 9 + 15**2 * 64 * 64 * 9
    by_hand += 15**2 * 64 * 256 * 9 + 7**2 * 256 * 256 * 9
    by_hand += 7**2 * 256 * 256 * 9 + 3**2 * 256 * 256 * 9
    assert counts.multiply_adds == by_hand + 256 * 10
    frozen = [n for n, p in network.named_parameters() if not p.requires_grad]
    assert "layers.0.weight" in frozen
    assert len(frozen) == 1 + 6  # the whitening filters, and the norms' scales
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_resnet20_is_the_reference() -> None:
    network = ResNet20()
    counts = count_network(network)
    assert counts.parameters == 272_474
    # By hand: outputs a channel, times channels in and out, times the kernel's size.
    by_hand = 32**2 * (3 * 16 * 9 + 6 * 16 * 16 * 9)
    by_hand += 16**2 * (16 * 32 * 9 + 5 * 32 * 32 * 9 + 16 * 32)
    by_hand += 8**2 * (32 * 64 * 9 + 5 * 64 * 64 * 9 + 32 * 64)
    assert counts.multiply_adds == by_hand + 64 * 10
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


@pytest.mark.parametrize(("size", "dilation"), [(16, 1), (16, 2), (12, 3), (7, 2), (9, 3)])
def test_depthwise_trains_as_pytorchs_own_convolution(size: int, dilation: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = Depthwise(6, dilation).double().train()
    maps = torch.randn(2, 6, size, size, generator=generator, dtype=torch.double)
    results = []
    for forward in (layer, super(Depthwise, layer).forward):
        x = maps.clone().requires_grad_()
        y = forward(x)
        (dx, dw) = torch.autograd.grad((y * y).sum(), (x, layer.weight))
        results.append((y, dx, dw))
    for ours, theirs in zip(*results, strict=True):
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs)


def test_depthwise_keeps_channels_last() -> None:
    maps = torch.randn(2, 8, 16, 16).to(memory_format=torch.channels_last)
    out = Depthwise(8, dilation=2).train()(maps)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_a_residual_adds_what_its_layers_make() -> None:
    maps = torch.tensor([-3.0, 1.0, 2.0]).view(1, 3, 1, 1)
    double = nn.Conv2d(3, 3, 1, groups=3, bias=False)
    nn.init.constant_(double.weight, 2.0)
    assert Residual([double])(maps).flatten().tolist() == [0.0, 3.0, 6.0]


def test_squeeze_excitation_weighs_channels_by_their_means() -> None:
    layer = SqueezeExcitation(4, 2)
    maps = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    assert layer.squeeze.bias is not None
    assert layer.excite.bias is not None
    means = maps.mean((2, 3))  # [3, 4]
    squeezed = (means @ layer.squeeze.weight.flatten(1).T + layer.squeeze.bias).relu()
    weights = (squeezed @ layer.excite.weight.flatten(1).T + layer.excite.bias).sigmoid()
    assert torch.allclose(layer(maps), maps * weights[:, :, None, None], atol=1e-6)


def test_residual_dw_has_stages_of_halved_maps_and_dilated_separable_blocks() -> None:
    network = ResidualDW(num_classes=7, widths=(8, 16, 24), depths=(1, 0, 2), squeeze=4)
    shapes = []
    for block in network.modules():
        if isinstance(block, Residual):
            block.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape)))
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert shapes == [(2, 8, 32, 32), (2, 24, 8, 8), (2, 24, 8, 8)]
    counts = count_network(network)
    assert (counts.dilated, counts.separable) == (3, 6)
    assert counts.parameters == sum(
        [
            8 * 3 * 9 + 16 * 8 * 9 + 24 * 16 * 9,  # stem and what begins the other stages
            2 * (8 + 16 + 24),  # their norms
            2 * (8 * 9 + 8 * 8 + 2 * 8) + (8 * 2 + 2) + (2 * 8 + 8),  # the first stage's block
            2 * (2 * (24 * 9 + 24 * 24 + 2 * 24) + (24 * 6 + 6) + (6 * 24 + 24)),
            7 * 24 + 7,
        ]
    )


def test_residual_dw_257k_has_no_more_parameters_than_the_seed_network() -> None:
    assert count_network(ResidualDW()).parameters == 256_014 < 257_856


def test_residual_dw_without_squeeze_is_convolutions_and_norms() -> None:
    assert not any(isinstance(m, SqueezeExcitation) for m in ResidualDW(squeeze=None).modules())


def test_residual_dw_wants_a_depth_for_each_width() -> None:
    with pytest.raises(ValueError, match="widths and depths must be equally long, not 3 and 2"):
        ResidualDW(widths=(8, 16, 24), depths=(1, 2))
