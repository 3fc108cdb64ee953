"""Checks of arguments against signatures; test_cli.py checks the messages."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn

from cifar_lightning.config.validate import check_arguments
from cifar_lightning.errors import UserError


def example(
    count: int = 1,
    rate: float | Tensor = 0.1,
    size: int | float = 1,
    path: Path | None = None,
    kind: Literal["a", "b"] = "a",
    pair: tuple[float, float] = (0.9, 0.99),
    blocks: Sequence[nn.Module] = (),
    dropout: float = None,  # type: ignore[assignment]  # noqa: RUF013  # as many write it
) -> None:
    """Has the annotations that people write."""


@pytest.mark.parametrize(
    "values",
    [
        {"count": 3, "rate": 1, "size": 2.5},
        {"size": 2},
        {"path": "a/b", "kind": "b"},
        {"path": None, "dropout": None},
        {"pair": [0.8, 0.9]},
        {"blocks": [{"_target_": "x"}]},
    ],
)
def test_what_fits_passes(values: dict[str, Any]) -> None:
    check_arguments("example", example, values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 1.5}, r"example\.count=1\.5 should be a valid integer\."),
        ({"count": True}, r"example\.count=true should be a valid integer\."),
        ({"count": None}, r"example\.count=null should be a valid integer\."),
        ({"count": "3"}, "should be a valid integer"),
        ({"rate": "fast"}, r"example\.rate=fast should be a valid number\."),
        ({"kind": "c"}, "should be 'a' or 'b'"),
        ({"pair": [1, "x"]}, "should be a valid number"),
        ({"blocks": "x"}, r"should be a list, as in \[a,b\]"),
        ({"cuont": 3}, r"example has no such argument\. Did you mean example\.count"),
    ],
)
def test_what_does_not_fit_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_arguments("example", example, values)


def test_annotations_that_nobody_can_read_leave_the_names_checked() -> None:
    def odd(size: "the size of it" = 3) -> None:  # type: ignore[valid-type]  # noqa: F722
        """Annotated for people."""

    check_arguments("odd", odd, {"size": "any"})
    with pytest.raises(UserError, match=r"odd\.sise: .* no such argument. Did you mean odd\.size"):
        check_arguments("odd", odd, {"sise": 3})


def test_real_signatures_take_their_own_defaults() -> None:
    check_arguments("sgd", torch.optim.SGD, {"lr": 1, "nesterov": True, "momentum": 0.9})
    check_arguments("adamw", torch.optim.AdamW, {"betas": [0.9, 0.95], "fused": None})
    check_arguments("trainer", Trainer, {"max_epochs": 3, "val_check_interval": 1, "devices": [0]})
