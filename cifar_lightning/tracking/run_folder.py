"""A run's folder: the paths of its files, and the run's status, configuration and metrics."""

import csv
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf

from cifar_lightning.config.compose import key_of
from cifar_lightning.errors import UserError
from cifar_lightning.system.natural import natural_key

RUNS = Path("runs/train")
# Overrides that say that a command is a sweep, and where.
OF_A_SWEEP = ("hydra.mode", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweeper.resume")
# `interrupted`: by Ctrl-C or SIGTERM. `failed`: with an error in its log. `not finished`: it is
# still running, was killed, or failed without an error in its log.
STATUSES = ("finished", "interrupted", "failed", "not finished")
MAX_YAML = 1_000_000  # bytes; the record of a run has about ten thousand
# Metrics that must be numbers or null; `epochs` must be a number.
NUMBERS = ("epochs", "resumes", "val/acc", "test/acc", "epochs_to_target", "seconds_to_target")
SET_ASIDE = re.compile(r"(^|/)before_\d{4}-\d\d-\d\d_[\d-]+$")
LOG_LINE = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) ([A-Z]+) ([\w.]+): (.*)$")


@dataclass(frozen=True)
class Run:
    """A run, as `RunFolder.read` reads it from its folder.

    Attributes:
        folder: of the run.
        name: of the folder; for a job of a sweep, its path below the sweep's folder.
        status: one of `STATUSES`.
        reason: why it is not finished; empty if it is.
        overrides: of its first start.
        resumed: the overrides of each resume.
        config: the text of its recorded configuration.
        choices: the option of each group of conf/; empty if not recorded.
        target: test accuracy from 0 to 1; None if it had no target, or if that is not known.
        max_epochs: as recorded; None if that is not known.
        metrics: content of `metrics.json`; empty before the run has ended.
        rows: of `metrics.csv`.
        evaluation: content of `evaluation/evaluation.json`; empty if there is none.
        problems: a sentence for each file that could not be read.
        recorded: whether its overrides were recorded.
    """

    folder: Path
    name: str
    status: str
    reason: str
    overrides: list[str] = field(default_factory=list)
    resumed: list[list[str]] = field(default_factory=list)
    config: str = ""
    choices: dict[str, str] = field(default_factory=dict)
    target: float | None = None
    max_epochs: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, float]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    recorded: bool = True

    @property
    def settings(self) -> dict[str, str]:
        """The overrides by key; those of a resume replace earlier ones."""
        found = {}
        for override in (o for some in (self.overrides, *self.resumed) for o in some):
            key, _, value = override.lstrip("+").partition("=")
            if key != "resume":
                found[key] = value
        return found

    @property
    def seed(self) -> Any:
        """The seed from its metrics, or else its overrides; None if neither has it."""
        return self.metrics.get("seed", self.settings.get("seed"))

    def curve(self, name: str, against: str = "epoch") -> list[tuple[float, float]]:
        """Points (x, y) of two columns of `metrics.csv`, from the rows that have both."""
        return [(row[against], row[name]) for row in self.rows if name in row and against in row]


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, which need not exist yet.

    Attributes:
        path: of the folder.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The checkpoint of the last complete epoch, or of the step at which training ended."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint that the callback `best` has chosen."""
        return self.checkpoints / "best.ckpt"

    @property
    def config(self) -> Path:
        """The run's recorded configuration, which a resume reads."""
        return self.path / "config.yaml"

    @property
    def metrics_json(self) -> Path:
        """The results, written when the run has ended."""
        return self.path / "metrics.json"

    @property
    def figures(self) -> Path:
        """The folder of the run's plots."""
        return self.path / "figures"

    @property
    def evaluation(self) -> Path:
        """The folder in which `evaluate` writes its results for `best`."""
        return self.path / "evaluation"

    @property
    def started(self) -> datetime | None:
        """Start time of the run, from the folder's name; None if the name has no time."""
        found = re.match(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}", self.path.absolute().name)
        return datetime.strptime(found[0], "%Y-%m-%d_%H-%M-%S-%f") if found else None

    @property
    def start_time(self) -> datetime:
        """Start time of the run, from the folder's name, or else its modification time."""
        return self.started or datetime.fromtimestamp(self.path.stat().st_mtime)

    @classmethod
    def of(cls, checkpoint: Path) -> "RunFolder":
        """The run folder of a checkpoint: two levels up, above `checkpoints/`."""
        return cls(checkpoint.absolute().parent.parent)

    @classmethod
    def to_resume(cls, checkpoint: Path) -> "RunFolder":
        """The run folder of a checkpoint to resume from.

        Raises:
            UserError: if the checkpoint does not exist, or is not in its run folder.
        """
        if checkpoint.is_dir():
            advice = shlex.quote(f"resume={cls(checkpoint).last}")
            raise UserError(f"resume={checkpoint} is a folder. Name a checkpoint, as in {advice}.")
        if str(checkpoint) == "auto":  # in an experiment, or composed by a program
            raise UserError("resume=auto works only on the command line.")
        if not checkpoint.is_file():
            raise UserError(f"resume={checkpoint}: there is no such file.")
        folder = cls.of(checkpoint)
        if not folder.config.is_file():
            raise UserError(
                f"resume={checkpoint} is not in its run's folder: {folder.path} has no "
                "config.yaml, the record of the run's configuration. evaluate, predict and export "
                "work with a checkpoint in any folder."
            )
        return folder

    def is_run(self) -> bool:
        """Whether the folder contains files of a run."""
        marks = (".hydra/overrides.yaml", "metrics.json", "metrics.csv")
        return any((self.path / mark).is_file() for mark in marks)

    def read(self, name: str | None = None) -> Run:
        """Read the run; missing files are skipped, and each damaged one is added to `problems`.

        Args:
            name: to show; None for the folder's name.
        """
        problems: list[str] = []
        metrics = _read_metrics(self.metrics_json, problems)
        try:
            rows = read_rows(self.path)
        except (OSError, ValueError) as error:
            rows = []
            problems.append(f"metrics.csv cannot be read: {error}")
        # A run that failed before its first step has only Hydra's record.
        hydra = self.path / ".hydra"
        file = self.config if self.config.is_file() else hydra / "config.yaml"
        record = _read_yaml(file, problems)
        starts = _starts(record)
        typed = [start["overrides"] for start in starts]
        status, reason = _status_of(self.path, metrics, rows, starts)
        target, choices = _at(record, "target_accuracy"), _at(record, "choices")
        max_epochs = _at(record, "trainer", "max_epochs")
        choices = sorted(choices.items(), key=str) if isinstance(choices, dict) else []
        return Run(
            folder=self.path,
            name=name or self.path.absolute().name,
            status=status,
            reason=reason,
            recorded=bool(starts) or (hydra / "overrides.yaml").is_file(),
            overrides=typed[0] if typed else _texts(_read_yaml(hydra / "overrides.yaml", problems)),
            resumed=typed[1:],
            config=file.read_text("utf-8", "replace") if file.is_file() else "",
            choices={str(group): str(option) for group, option in choices if option},
            target=float(target) if type(target) in (int, float) else None,
            max_epochs=float(max_epochs) if type(max_epochs) in (int, float) else None,
            metrics=metrics,
            rows=rows,
            evaluation=_read_json(self.evaluation / "evaluation.json", problems),
            problems=problems,
        )

    def record(self) -> Any:
        """The recorded configuration, with unresolved interpolations; None if it cannot be read."""
        return _read_yaml(self.config, [])

    def starts(self) -> list[dict[str, Any]]:
        """The `time` and the `overrides` of the run's start and of each resume."""
        return _starts(_read_yaml(self.config, []))


def find_folder(path: str | None) -> Path:
    """The folder of a run or sweep that a user names; None for the newest in runs/train/.

    Raises:
        UserError: if the folder does not exist, or has no run in it.
    """
    if path is None:
        found = [f for f in RUNS.glob("*") if RunFolder(f).is_run() or run_folders(f)]
        if not found:
            raise UserError(f"There is no run in {RUNS.absolute()}. Name its folder: run=FOLDER.")
        return max(found, key=lambda folder: RunFolder(folder).start_time)
    folder = Path(path).expanduser()
    example = f"run={RUNS}/<date>_<time>_<name>"
    if not folder.is_dir():
        wrong = " is a file" if folder.exists() else ": there is no such folder"
        raise UserError(f"run={path}{wrong}. Name the folder of a run. Example: {example}")
    if not RunFolder(folder).is_run() and not run_folders(folder):
        raise UserError(
            f"run={path} is not a run's folder: it has none of .hydra/overrides.yaml, "
            f"metrics.json and metrics.csv, and no run is below it. Example: {example}"
        )
    return folder


def run_folders(folder: Path) -> list[RunFolder]:
    """The run folders below a folder, such as a sweep's, in natural order: 2 before 10.

    Runs that `write_record` has set aside are left out: another run has taken their folder.
    """
    found = {file.parent.parent for file in folder.glob("**/.hydra/overrides.yaml")}
    found |= {file.parent for file in folder.glob("**/metrics.json")}
    names = {str(run.relative_to(folder)): run for run in found - {folder}}
    return [RunFolder(names[n]) for n in sorted(names, key=natural_key) if not SET_ASIDE.search(n)]


def read_rows(folder: str | Path) -> list[dict[str, float]]:
    """The rows of a run's `metrics.csv`, without blank cells; empty if there is no such file.

    Raises:
        ValueError: if a cell is not a number, or a row has more or fewer cells than the header.
    """
    file = Path(folder) / "metrics.csv"
    if not file.exists():
        return []
    with file.open(newline="") as opened:
        heading, *rows = list(csv.reader(opened)) or [[]]
    # `strict` raises an error for a row that was cut off.
    return [
        {key: float(cell) for key, cell in zip(heading, row, strict=True) if cell != ""}
        for row in rows
        if row
    ]


def read_sweep(folder: Path, kind: str = "task") -> list[str]:
    """The overrides that a sweep was started with, without its folder; empty if not recorded.

    Args:
        folder: of the sweep.
        kind: `task` for the overrides of its jobs, `hydra` for Hydra's, such as the launcher.
    """
    found = _texts(_at(_read_yaml(folder / "multirun.yaml", []), "hydra", "overrides", kind))
    return [override for override in found if key_of(override) not in OF_A_SWEEP]


def read_config_dir(folder: Path) -> str | None:
    """The --config-dir that a run or a sweep was started with; None if there was none."""
    files = (folder / "multirun.yaml", folder / ".hydra" / "hydra.yaml")
    record = next((_read_yaml(file, []) for file in files if file.is_file()), None)
    sources = _at(record, "hydra", "runtime", "config_sources")
    for source in sources if isinstance(sources, list) else []:
        if _at(source, "provider") == "command-line":
            return str(_at(source, "path"))
    return None


def load_yaml(file: Path) -> Any:
    """The content of a YAML file of a run; the file need not be trusted.

    Interpolations are not resolved: `${hydra:job.num}` has a value only within the run.

    Raises:
        FileNotFoundError: if the file does not exist.
        UserError: if it cannot be read, is larger than `MAX_YAML`, or has aliases: a few aliases
            can expand to more values than fit into memory.
    """
    try:
        if file.stat().st_size > MAX_YAML:
            raise ValueError(f"it has more than {MAX_YAML:,} bytes")
        text = file.read_text(encoding="utf-8")
        if "*" in text and any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("it has aliases (*NAME), which the record of a run never has")
        return OmegaConf.to_container(OmegaConf.load(file))
    except FileNotFoundError:
        raise
    except Exception as error:  # PyYAML and OmegaConf have no common base class
        raise UserError(f"{file} cannot be read: {str(error).partition(chr(10))[0]}") from error


def _read_yaml(file: Path, problems: list[str]) -> Any:
    try:
        return load_yaml(file)
    except FileNotFoundError:
        return None
    except UserError as error:
        problems.append(str(error).replace(str(file), file.name, 1))
        return None


def _at(content: Any, *keys: str) -> Any:
    """The value below nested keys; None if there is none."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _texts(content: Any) -> list[str]:
    return [str(text) for text in content] if isinstance(content, list) else []


def _starts(record: Any) -> list[dict[str, Any]]:
    found = _at(record, "starts")
    return [
        {"time": str(start.get("time")), "overrides": _texts(start["overrides"])}
        for start in (found if isinstance(found, list) else [])
        if isinstance(_at(start, "overrides"), list)
    ]


def _read_json(file: Path, problems: list[str]) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, TypeError, ValueError) as error:
        problems.append(f"{file.name} cannot be read: {error}")
        return {}


def _read_metrics(file: Path, problems: list[str]) -> dict[str, Any]:
    metrics = _read_json(file, problems)
    for key in NUMBERS if metrics else ():
        value = metrics.get(key)
        if not isinstance(value, int | float) and (value is not None or key == "epochs"):
            problems.append(f"{file.name} cannot be read: {key} is {value!r}, not a number")
            return {}
    return metrics


def _status_of(
    folder: Path,
    metrics: dict[str, Any],
    rows: Sequence[dict[str, float]],
    starts: Sequence[dict[str, Any]],
) -> tuple[str, str]:
    """One of `STATUSES`, and the reason if it is not `finished`."""
    # Rows are float32, metrics are rounded: allow a small difference below.
    trained = max((row.get("epoch", 0) for row in rows if "test/acc" not in row), default=0)
    is_of_last_start = len(starts[1:]) <= (metrics.get("resumes") or 0)
    if metrics and is_of_last_start and trained <= metrics["epochs"] + 1e-4:
        if metrics.get("stopped_by") == "interrupted":
            return "interrupted", "stopped by Ctrl-C or SIGTERM"
        return "finished", ""
    since = starts[-1]["time"] if starts else ""
    for log in folder.glob("*.log"):
        if error := _last_error(log.read_text("utf-8", "replace").splitlines(), since):
            return "failed", error
    # Only the run's own files: a report in the folder may be newer.
    names = (".hydra", "config.yaml", "metrics.csv", "train.log", "checkpoints")
    times = [(folder / name).stat().st_mtime for name in names if (folder / name).exists()]
    last = datetime.fromtimestamp(max(times, default=folder.stat().st_mtime))
    # A run writes its record just before its first step.
    began = starts or rows or metrics
    state = (
        "it is still running, failed or was killed"
        if began
        else "it has not trained a step: it is starting, or was stopped before"
    )
    return "not finished", f"{state}; it last wrote a file at {last:%F %T}"


def _last_error(lines: Sequence[str], since: str) -> str:
    """The last error in a run's log since a time, without its traceback; empty if there is none."""
    message: list[str] = []
    within = False
    for line in lines:
        if found := LOG_LINE.match(line):
            # Other libraries' errors, such as W&B's, do not end a training.
            time, level, name, text = found.groups()
            within = level == "ERROR" and name.startswith("cifar_lightning")
            within = within and re.sub(r"\D", "", time) >= re.sub(r"\D", "", since)[:17]  # ms
            message = [text] if within else message
        elif line.startswith("Traceback"):
            within = False
        elif within and not line.startswith("HYDRA_FULL_ERROR=1 "):  # a hint for the terminal
            message.append(line)
    return "\n".join(message).strip()
