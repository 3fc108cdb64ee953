import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from cifar_lightning.models import DilatedDW
from cifar_lightning.training.optim import (
    Muon,
    constant_schedule,
    cosine_schedule,
    linear_schedule,
    orthogonalise,
)


def test_muon_gets_the_inner_dense_and_pointwise_convolutions() -> None:
    network = DilatedDW()
    names = {id(p): name for name, p in network.named_parameters()}
    muon, sgd = Muon(network.parameters()).param_groups
    assert [names[id(p)] for p in muon["params"]] == [
        f"layers.{row}.weight" for row in (3, 6, 8, 12, 17, 19)
    ]
    assert len(muon["params"]) + len(sgd["params"]) == len(names)
    assert (muon["lr"], sgd["lr"]) == (0.1, 0.05)


def test_the_norm_of_a_weight_counts_only_where_no_batch_norm_follows() -> None:
    torch.manual_seed(0)
    network = DilatedDW()
    images = torch.randn(64, 3, 32, 32)
    with torch.no_grad():
        logits = network(images)
        for row in (3, 6, 8, 12, 17, 19):  # Muon's
            doubled = copy.deepcopy(network)
            doubled.get_parameter(f"layers.{row}.weight").mul_(2)
            change = (doubled(images) - logits).norm() / logits.norm()
            assert (change > 0.1) == (row in (17, 19)), (row, change)


def test_the_head_may_learn_faster_and_decays_as_fast_as_the_rest() -> None:
    network = DilatedDW()
    groups = Muon(network.parameters(), sgd_lr=0.1, head_lr=0.4, weight_decay=0.02).param_groups
    _, sgd, head = groups
    (weight,) = head["params"]
    assert weight is network.layers[21].weight
    assert all(weight is not other for other in sgd["params"])
    assert (sgd["lr"], head["lr"]) == (0.1, 0.4)
    assert head["lr"] * head["weight_decay"] == pytest.approx(sgd["lr"] * sgd["weight_decay"])


def test_muon_serves_a_network_with_nothing_between_first_and_last() -> None:
    network = nn.Linear(3, 2)
    (group,) = Muon(network.parameters()).param_groups
    assert not group["muon"]
    assert len(group["params"]) == 2


def test_the_sgd_part_is_torchs_sgd() -> None:
    ours, theirs = nn.Linear(6, 4), nn.Linear(6, 4)
    theirs.load_state_dict(ours.state_dict())
    optimizers = [
        Muon(ours.parameters(), sgd_lr=0.1, sgd_momentum=0.9, weight_decay=0.01),
        torch.optim.SGD(
            theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True
        ),
    ]
    for step in range(5):
        images = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        for network, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            network(images).square().mean().backward()
            optimizer.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)
    assert torch.allclose(ours.bias, theirs.bias, atol=1e-6)


def test_a_muon_step_by_hand() -> None:
    weights = [torch.randn(4, 3, 3, 3), torch.randn(5, 4, 3, 3), torch.randn(2, 5, 1, 1)]
    parameters = [nn.Parameter(w.clone()) for w in weights]
    optimizer = Muon(parameters, lr=0.1, momentum=0.8, ns_steps=3)
    gradients = [torch.randn(5, 4, 3, 3) for _ in range(2)]
    buffer, expected = torch.zeros(5, 4, 3, 3), weights[1].clone()
    for gradient in gradients:
        parameters[1].grad = gradient.clone()
        optimizer.step()
        buffer = 0.8 * buffer + gradient
        update = orthogonalise((gradient + 0.8 * buffer).view(5, -1), 3).view(5, 4, 3, 3)
        expected = expected * 5**0.5 / expected.norm() - 0.1 * update
    assert torch.allclose(parameters[1], expected, atol=1e-6)
    assert torch.equal(parameters[0], weights[0])  # no gradient, no step


@pytest.mark.parametrize("shape", [(32, 288), (64, 64), (100, 20)])
def test_orthogonalise_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrix, 5))
    assert values.max() < 1.3
    assert values.median() > 0.65
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    exact = left @ right
    alignment = (orthogonalise(matrix, 5) * exact).sum() / exact.norm() ** 2
    assert 0.7 < alignment < 1.2


def test_zero_gradients_do_not_become_nan() -> None:
    assert torch.equal(orthogonalise(torch.zeros(4, 6), 3), torch.zeros(4, 6))


def test_a_weight_that_starts_at_zero_trains() -> None:
    weights = [nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.zeros(4, 4))]
    optimizer = Muon([*weights, nn.Parameter(torch.randn(4, 4))])
    weights[1].grad = torch.randn(4, 4)
    optimizer.step()
    assert weights[1].isfinite().all()
    assert weights[1].norm() > 0


def test_muon_trains_with_a_gradient_scaler() -> None:
    network = DilatedDW(image_size=24)
    optimizer = Muon(network.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    images, labels = torch.randn(16, 3, 24, 24), torch.arange(16) % 10
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -0.1}, "lr must not be negative, not -0.1"),
        ({"sgd_lr": -1.0}, "sgd_lr must not be negative"),
        ({"head_lr": -1.0}, "head_lr must not be negative"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"momentum": 1.0}, r"momentum must be at least 0 and below 1, not 1.0"),
        ({"sgd_momentum": -0.5}, "sgd_momentum must be at least 0"),
    ],
)
def test_muon_refuses_values_out_of_range(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Muon([nn.Parameter(torch.ones(2))], **arguments)  # type: ignore[arg-type]


Schedule = Callable[[torch.optim.Optimizer, int, float], LambdaLR]


def rates(schedule: Schedule, steps: int, warmup: float) -> Tensor:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=2.0)
    scheduler = schedule(optimizer, steps, warmup)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return torch.tensor([*seen, optimizer.param_groups[0]["lr"]])


@pytest.mark.parametrize("schedule", [linear_schedule, cosine_schedule, constant_schedule])
def test_schedules_warm_up_in_a_straight_line_to_the_full_rate(schedule: Schedule) -> None:
    assert torch.allclose(rates(schedule, 100, 0.1)[:11], torch.linspace(2 / 11, 2, 11))


def test_schedules_end_where_they_should() -> None:
    linear, cosine = rates(linear_schedule, 100, 0.1), rates(cosine_schedule, 100, 0.1)
    assert torch.allclose(linear[10:], torch.linspace(2, 0, 91))
    assert (linear[55], cosine[55]) == pytest.approx((1.0, 1.0), abs=1e-6)
    assert cosine[25] > linear[25]
    assert cosine[100] == pytest.approx(0, abs=1e-6)
    assert torch.equal(rates(constant_schedule, 100, 0.0), torch.full((101,), 2.0))


@pytest.mark.parametrize("warmup", [-0.1, 1.0])
def test_schedules_refuse_a_warmup_out_of_range(warmup: float) -> None:
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        rates(linear_schedule, 10, warmup)
