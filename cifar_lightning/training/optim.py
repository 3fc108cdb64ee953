"""The optimizer Muon with SGD, and learning-rate schedules."""

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Tensors = list[Tensor] | tuple[Tensor, ...]


class Muon(Optimizer):
    """Muon for the inner weight matrices and SGD for the rest, as one optimizer.

    One optimizer for both works with Lightning's automatic optimization, one schedule and the
    16-bit gradient scaler.

    Parameter groups: a dense weight has two or more dimensions and more than one input channel.
    Muon updates all dense weights but the first and the last. SGD updates these two and everything
    else: biases, norms, depthwise filters. So in a convolutional network Muon gets the dense and
    1x1 convolutions between the first layer and the last.

    Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024): the
    momentum of a weight [out, in, h, w], as a matrix [out, in * h * w], is replaced by the nearest
    orthogonal matrix. Before each update the weight is rescaled to norm sqrt(out), so that the
    learning rate is the size of a step relative to the weight. If a batch norm follows, rescaling
    does not change the network's outputs. If none does, as after the pointwise layers of
    `dilated_dw`, it fixes the norm of the weight.

    Args:
        params: all parameters of a network, in the order of its layers.
        lr: Muon's learning rate.
        momentum: Muon's Nesterov momentum.
        ns_steps: Newton-Schulz steps towards the orthogonal matrix.
        sgd_lr: SGD's learning rate.
        head_lr: SGD's learning rate for the last dense weight, the head's; None for `sgd_lr`.
        sgd_momentum: SGD's Nesterov momentum.
        weight_decay: SGD's, added to the gradient. With a `head_lr` it is scaled so that the head
            decays as fast as the other weights. Muon's weights have a fixed norm instead.

    Raises:
        ValueError: if a learning rate or the weight decay is negative, a momentum is not in [0, 1),
            or `ns_steps` is below 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.1,
        momentum: float = 0.85,
        ns_steps: int = 3,
        sgd_lr: float = 0.05,
        head_lr: float | None = None,
        sgd_momentum: float = 0.9,
        weight_decay: float = 5e-4,
    ) -> None:
        head_lr = sgd_lr if head_lr is None else head_lr
        for name, value in (
            ("lr", lr),
            ("sgd_lr", sgd_lr),
            ("head_lr", head_lr),
            ("weight_decay", weight_decay),
        ):
            if value < 0:
                raise ValueError(f"{name} must not be negative, not {value}")
        if ns_steps < 1:
            raise ValueError(f"ns_steps must be at least 1, not {ns_steps}")
        for name, value in (("momentum", momentum), ("sgd_momentum", sgd_momentum)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {value}")
        params = list(params)
        dense = [p for p in params if p.ndim >= 2 and p.shape[1] > 1]
        inner, head = dense[1:-1], dense[-1:] if head_lr != sgd_lr else []
        other_groups = {id(p) for p in (*inner, *head)}
        sgd = {"muon": False, "momentum": sgd_momentum}
        groups: list[dict[str, Any]] = [
            {"params": inner, "muon": True, "lr": lr, "momentum": momentum, "ns_steps": ns_steps},
            {
                "params": [p for p in params if id(p) not in other_groups],
                "lr": sgd_lr,
                "weight_decay": weight_decay,
                **sgd,
            },
            {
                "params": head,
                "lr": head_lr,
                "weight_decay": weight_decay * sgd_lr / head_lr if head_lr else 0.0,
                **sgd,
            },
        ]
        super().__init__([group for group in groups if group["params"]], {})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; returns the result of `closure`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            pairs = [(w, w.grad) for w in group["params"] if w.grad is not None]
            if pairs:
                weights, gradients = (list(tensors) for tensors in zip(*pairs, strict=True))
                (self._muon if group["muon"] else self._sgd)(weights, gradients, group)
        return loss

    # The `_foreach` functions, which torch.optim uses too, need fewer kernel launches on a GPU than
    # a loop over the tensors.

    def _muon(self, weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        directions = self._nesterov(weights, gradients, group["momentum"])
        steps = [
            orthogonalise(d.reshape(len(d), -1), group["ns_steps"]).view_as(d) for d in directions
        ]
        factors = torch._foreach_norm(weights)
        torch._foreach_clamp_min_(factors, 1e-7)  # 0 stays 0
        torch._foreach_reciprocal_(factors)
        torch._foreach_mul_(factors, [len(w) ** 0.5 for w in weights])
        torch._foreach_mul_(weights, factors)
        torch._foreach_add_(weights, steps, alpha=-group["lr"])

    def _sgd(self, weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        decayed = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
        directions = self._nesterov(weights, decayed, group["momentum"])
        torch._foreach_add_(weights, directions, alpha=-group["lr"])

    def _nesterov(self, weights: list[Tensor], gradients: Tensors, momentum: float) -> Tensors:
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        return torch._foreach_add(gradients, buffers, alpha=momentum)


def orthogonalise(matrix: Tensor, steps: int) -> Tensor:
    """Approximate the nearest orthogonal matrix by a quintic Newton-Schulz iteration.

    The coefficients (Jordan et al., 2024) trade exactness for speed: singular values end between
    about 0.7 and 1.2, which trains as well as 1.

    Args:
        matrix: [rows, columns], of any floating dtype.
        steps: number of iterations; 0 only scales the matrix to Frobenius norm 1.

    Returns:
        [rows, columns], of the same dtype.
    """
    # bf16 is fast on GPUs and exact enough here. On a CPU these small products hardly take time
    # beside the convolutions, and bf16 is slow on chips without instructions for it.
    x = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    x = x / (x.norm() + 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.T  # the smaller Gram matrix of the two
    for _ in range(steps):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    x = wide if x.shape[0] <= x.shape[1] else wide.T
    result: Tensor = x.to(matrix.dtype)
    return result


def linear_schedule(optimizer: Optimizer, total_steps: int, warmup: float = 0.1) -> LambdaLR:
    """Linear warm-up, then linear decay to 0.

    Args:
        optimizer: its learning rates are the peak of the schedule.
        total_steps: number of optimizer steps; the schedule is stepped after each.
        warmup: fraction of the steps with a rising rate, from 0 to below 1.

    Raises:
        ValueError: if `warmup` is not in [0, 1).
    """
    return _schedule(optimizer, total_steps, warmup, lambda done: 1 - done)


def cosine_schedule(optimizer: Optimizer, total_steps: int, warmup: float = 0.1) -> LambdaLR:
    """Linear warm-up, then cosine decay to 0 (Loshchilov and Hutter, "SGDR", 2017).

    `optimizer`, `total_steps` and `warmup` are as in `linear_schedule`.
    """
    return _schedule(
        optimizer, total_steps, warmup, lambda done: (1 + math.cos(math.pi * done)) / 2
    )


def constant_schedule(optimizer: Optimizer, total_steps: int, warmup: float = 0.0) -> LambdaLR:
    """Linear warm-up, then a constant rate.

    `optimizer`, `total_steps` and `warmup` are as in `linear_schedule`.
    """
    return _schedule(optimizer, total_steps, warmup, lambda done: 1.0)


def _schedule(
    optimizer: Optimizer, total_steps: int, warmup: float, decay: Callable[[float], float]
) -> LambdaLR:
    """Linear warm-up, then `decay`: maps the progress after the warm-up, 0 to 1, to a factor."""
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup must be at least 0 and below 1, not {warmup}")
    warmup_steps = round(warmup * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            # + 1, because a first step at rate 0 would change nothing.
            return (step + 1) / (warmup_steps + 1)
        return decay(min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps)))

    return LambdaLR(optimizer, factor)
