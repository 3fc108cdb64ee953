"""The search space, in Hydra's grammar for overrides."""

from collections.abc import Mapping
from typing import Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from cifar_lightning.errors import UserError

Space = dict[str, BaseDistribution]

EXAMPLES = "choice(a,b), range(1,5), interval(0.1,1), int(interval(1,8)), tag(log, interval(…))"


def parse_space(params: Mapping[str, Any]) -> Space:
    """The distribution of each parameter.

    Args:
        params: by key or group of the configuration of training, its possible values:
            `choice(a,b)` or `a,b`; `range(start,stop,step)`, without `stop`; `interval(low,high)`,
            or `int(interval(low,high))` for integers. `tag(log, …)` around a range or an interval
            samples on a logarithmic scale.

    Raises:
        UserError: if a parameter has no such values, or if there is no parameter.
    """
    space = {}
    for key, text in params.items():
        try:
            override = OverridesParser.create().parse_override(f"{key}={text}")
            space[key] = _distribution(override)
        except (HydraException, ValueError) as error:
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise UserError(
                f"search.params: {key}: {text} cannot be searched: {reason}. As in {EXAMPLES}."
            ) from None
    if not space:
        raise UserError("search.params is empty: there is nothing to search.")
    return space


def _distribution(override: Override) -> BaseDistribution:
    value: Any = override.value()
    is_log = "log" in getattr(value, "tags", ())
    if override.is_choice_sweep():
        choices = [*override.sweep_string_iterator()]
        if is_log or len(set(choices)) < len(choices):
            raise ValueError("a choice has no log scale, and each value once")
        return CategoricalDistribution(choices)
    if isinstance(value, RangeSweep):
        if not (values := [*value.range()]):
            raise ValueError("the range is empty")
        low, high, step = values[0], values[-1], value.step
        if is_log and not (isinstance(low, int) and step == 1):
            raise ValueError("a range on a log scale needs integers and steps of 1")
        if isinstance(low, int) and isinstance(step, int):
            return IntDistribution(low, high, log=is_log, step=step)
        return FloatDistribution(low, high, log=is_log, step=step)
    if isinstance(value, IntervalSweep):
        kind = IntDistribution if isinstance(value.start, int) else FloatDistribution
        return kind(value.start, value.end, log=is_log)  # type: ignore[arg-type]
    raise ValueError("it is a single value")


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """A value for each parameter, from the study's sampler."""
    values: dict[str, Any] = {}
    for key, d in space.items():
        if isinstance(d, FloatDistribution):
            values[key] = trial.suggest_float(key, d.low, d.high, step=d.step, log=d.log)
        elif isinstance(d, IntDistribution):
            values[key] = trial.suggest_int(key, d.low, d.high, step=d.step, log=d.log)
        elif isinstance(d, CategoricalDistribution):
            values[key] = trial.suggest_categorical(key, d.choices)
    return values


def as_overrides(params: Mapping[str, Any]) -> list[str]:
    """Parameters as overrides, numbers rounded to four significant digits."""
    return [
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in params.items()
    ]


def examples(space: Space) -> dict[str, Any]:
    """A value for each parameter, to check that a trial can be configured at all."""
    return {
        key: d.choices[0] if isinstance(d, CategoricalDistribution) else d.low  # type: ignore[attr-defined]
        for key, d in space.items()
    }
