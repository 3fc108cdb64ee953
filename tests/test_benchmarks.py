"""That the benchmarks run and end in their line of JSON; what they measure is not looked at."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from conftest import TINY

from cifar_lightning.cli import CONF

SMALL = [option for option in TINY if not option.startswith(("logger", "trainer.max_epochs"))]


def last_line(script: str, *options: str, **environment: str) -> dict[str, Any]:
    ended = subprocess.run(
        [sys.executable, str(CONF.parent / "benchmarks" / script), *SMALL, *options],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    return dict(json.loads(ended.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_throughput_compares_three_pipelines() -> None:
    summary = last_line("throughput.py", ROUNDS="1", STEPS="2", WORKERS="1")
    for pipeline in ("bare", "conventional"):
        rate = summary[f"{pipeline}_images_per_s"]
        assert summary[f"ratio_vs_{pipeline}"] == pytest.approx(
            summary["images_per_s"] / rate, rel=0.01
        )


@pytest.mark.slow
def test_the_stop_rule_is_judged_for_all_weights_and_margins() -> None:
    summary = last_line("stop_rule.py", "trainer.max_epochs=2", SEEDS="0,1")
    rules = summary["rules"]
    assert len(rules) == 3 * 4 * 5
    assert {rule["weights"] for rule in rules} == {"last", "average 0.95", "average 0.98"}
    assert all(0 <= rule["kept"] <= 1 for rule in rules)
