"""The pages that sum up a run or a multirun: report.html, report.md and report.csv."""

from cifar_lightning.reporting.write import write_report

__all__ = ["write_report"]
