import pytest
import torch
from torch import Tensor, nn

from cifar_lightning.errors import UserError
from cifar_lightning.models import DilatedDW
from cifar_lightning.models.budget import NetworkCounts, check_budget, count_network, train_tflop


def test_the_seed_network() -> None:
    counts = count_network(DilatedDW())
    assert counts == NetworkCounts(257_856, dilated=1, separable=2, multiply_adds=44_167_744)


def test_training_compute_is_counted_at_the_size_that_was_used() -> None:
    # 6 x 44.17 M x 45,000 images.
    assert train_tflop(DilatedDW(), {32: 45_000}) == pytest.approx(11.925, abs=0.001)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1))  # 216 multiply-adds a pixel
    expected = 6 * 216 * (24 * 24 * 1000 + 32 * 32 * 50) / 1e12
    assert train_tflop(network, {24: 1000, 32: 50}) == pytest.approx(expected)


def test_multiply_adds_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).append(nn.Linear(8, 10))
    assert count_network(network, 32).multiply_adds == 16 * 16 * 8 * 27 + 80


class Attention(nn.Module):
    """Self-attention over the image's pixels, each a token of four channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 4, 1)
        self.attention = nn.MultiheadAttention(4, num_heads=2, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)  # [N, H * W, 4]
        mixed: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return mixed


def test_multiply_adds_of_attention_by_hand() -> None:
    by_hand = 64 * 3 * 4 + 4 * 64 * 4 * 4  # embedding; queries, keys, values, output
    by_hand += 2 * 64 * 64 * 4  # products of queries and keys, and of these and values
    assert count_network(Attention(), 8).multiply_adds == by_hand


def test_counting_leaves_no_trace() -> None:
    network = DilatedDW().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    count_network(network)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("layers", "separable"),
    [
        ([nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1)], 1),
        # With a norm between, as in MobileNet.
        ([nn.Conv2d(3, 3, 3, groups=3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1)], 1),
        # A channel multiplier.
        ([nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(6, 4, 1)], 1),
        # Grouped but not depthwise.
        ([nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 4, 1)], 0),
        # Depthwise without a 1x1 behind.
        ([nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 4, 3)], 0),
        ([nn.Conv2d(3, 3, 3, groups=3)], 0),
    ],
)
def test_what_counts_as_separable(layers: list[nn.Module], separable: int) -> None:
    assert count_network(nn.Sequential(*layers)).separable == separable


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (NetworkCounts(1_000_001, 1, 1, 0), r"1,000,001 parameters, 1 more than budget.max_params"),
        (NetworkCounts(10, 0, 1, 0), "has 0 dilated convolutions, 1 fewer than budget.min_dil"),
        (
            NetworkCounts(10, 0, 0, 0),
            "0 depthwise separable convolutions, 1 fewer than budget.min_separable=1. Change the "
            "network, or lift the limit: budget.min_dilated=null budget.min_separable=null$",
        ),
    ],
)
def test_a_broken_limit_is_named_with_the_excess(counts: NetworkCounts, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_budget(counts)


def test_a_network_without_parameters_is_refused() -> None:
    with pytest.raises(UserError, match="the network has no parameters"):
        count_network(nn.Flatten())


@pytest.mark.parametrize("lifted", [None, 0])
def test_none_and_zero_lift_the_limits(lifted: int | None) -> None:
    check_budget(
        NetworkCounts(10**9, 0, 0, 0), max_params=lifted, min_dilated=lifted, min_separable=lifted
    )
