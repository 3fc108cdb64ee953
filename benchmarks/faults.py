"""Kills trainings, has them go on, and compares what comes out with one that nothing happened to.

    python benchmarks/faults.py

A chain is one run, which `resume=auto` takes up again after each fault: SIGKILL, SIGTERM or Ctrl-C,
at a random point of its start, a step, a validation, the writing of a checkpoint or of the decoded
images, or of the test. In between, all that is saved must be readable, and lost be nothing after
SIGTERM and Ctrl-C, and at most an epoch after SIGKILL. At the end, weights, optimizer, curves and
figures have to be those of the undisturbed run to the bit, and the W&B run one and the same. Then
disks of random sizes, which fill up at some time: the run ends in one message, and goes on
elsewhere.

The last lines are a table, and JSON; the exit code is 1 if anything was lost. In the environment:
KILLS (72) and DISKS (8), how many are tried, of which some come too late; SEED (0), of what is
drawn; CHAINS (2), how many run at once, with one thread each; FOLDER, a new one, to keep the runs.
"""

import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image

from cifar_lightning.checkpoints.io import read_checkpoint
from cifar_lightning.data import ShapesData, Splits
from cifar_lightning.errors import UserError
from cifar_lightning.run import devices
from cifar_lightning.tracking.run_folder import RunFolder, read_rows

KILLS = int(os.environ.get("KILLS", "72"))
DISKS = int(os.environ.get("DISKS", "8"))
SEED = int(os.environ.get("SEED", "0"))
CHAINS = int(os.environ.get("CHAINS", "2"))

STEPS_AN_EPOCH = 20
EPOCHS = 4
# Validated twice an epoch, with images that come again, a dozen seconds in all.
OPTIONS = (
    "data.batch_size=25",
    "data.val_size=100",
    "trainer.gpus=0",
    f"trainer.max_epochs={EPOCHS}",
    "trainer.val_check_interval=0.5",
    "callbacks=hard_examples",
    "callbacks.hard_examples.fraction=0.25",
    "target_accuracy=1.0",  # which is not reached
    "+callbacks.witness._target_=faults.Witness",
)
SHAPES = ("data=shapes", "data.train_size=500", "data.test_size=200", *OPTIONS)

BOARD = ("logger=default", "logger.wandb.mode=offline")

MOMENTS = ("start", "training", "validation", "checkpoint", "cache", "test")
SIGNALS = {signal.SIGKILL: "SIGKILL", signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
# By which a program ends that has said something to it; before and after, Python's own will do.
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
# Of metrics.json and metrics.csv: what a clock measured.
MEASURED = ("seconds", "images_per_s")
# Of a checkpoint's callbacks: places, and what Lightning neither restores nor reads.
NOT_COMPARED = ("dirpath", "best_k_models", "_path", "current_score")
# Of a checkpoint; the callbacks have the target, the best accuracy, the sums of gradient norms.
COMPARED = (
    *("state_dict", "optimizer_states", "lr_schedulers", "global_step"),
    *("callbacks", "fit_scores", "random_state"),
)
PATIENCE = 240  # seconds that no start of a run takes
MOMENT_FILE = "FAULTS_MOMENT"  # in the environment


class Witness(pl.Callback):
    """Tells the campaign what a training is about to do, in a file: the moment, and steps done."""

    def __init__(self) -> None:
        self._file = os.open(os.environ[MOMENT_FILE], os.O_WRONLY | os.O_CREAT)

    def _tell(self, moment: str, trainer: pl.Trainer) -> None:
        os.pwrite(self._file, f"{moment} {trainer.global_step}".ljust(40).encode(), 0)

    def on_train_batch_start(self, trainer: pl.Trainer, *others: Any) -> None:
        self._tell("training", trainer)

    def on_validation_start(self, trainer: pl.Trainer, *others: Any) -> None:
        self._tell("validation", trainer)

    def on_test_batch_start(self, trainer: pl.Trainer, *others: Any) -> None:
        self._tell("test", trainer)

    def on_test_end(self, trainer: pl.Trainer, *others: Any) -> None:
        self._tell("ending", trainer)


@dataclass
class Fault:
    """One that is planned.

    Attributes:
        moment: one of `MOMENTS`.
        number: the signal.
        wait: how many steps, validations, … go by before, or seconds of the start.
        injected: whether it came to it.
        problems: what was lost by it.
    """

    moment: str
    number: signal.Signals
    wait: float
    injected: bool = False
    problems: list[str] = field(default_factory=list)


@dataclass
class Chain:
    """A run with its faults, in a folder of its own, and the undisturbed run of its options."""

    folder: Path
    options: Sequence[str]
    reference: Path | None = None
    faults: Sequence[Fault] = ()

    @property
    def run_dir(self) -> Path | None:
        """The run's, once there is one; a start that was killed early leaves another."""
        found = sorted(self.folder.glob("runs/train/*/checkpoints"))
        return found[-1].parent if found else None

    def start(self) -> subprocess.Popen[bytes]:
        """The program, in a group of its own as on a terminal."""
        command = [sys.executable, "-m", "cifar_lightning.train", *self.options, "resume=auto"]
        with (self.folder / "output.txt").open("ab") as output:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment(self.folder),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # What a shell starts by & ignores Ctrl-C, and so would what this starts.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )


def environment(folder: Path) -> Mapping[str, str]:
    """Of a program in a folder: one thread, so that the machine has room for two."""
    own = {"OMP_NUM_THREADS": "1", MOMENT_FILE: str(folder / "moment")}
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return os.environ | own | {"PYTHONPATH": path.strip(os.pathsep), "WANDB_DIR": str(folder)}


def moment(folder: Path) -> tuple[str, int]:
    """What a training is at, and the steps it has done."""
    with contextlib.suppress(OSError, ValueError):
        name, steps = (folder / "moment").read_text().split()
        return name, int(steps)
    return "start", 0


def come_to(chain: Chain, fault: Fault, program: subprocess.Popen[bytes]) -> bool:
    """Wait for a fault's moment; returns whether it came before the program's end."""
    begun = time.monotonic()
    seen: set[Any] = set()
    while program.poll() is None:
        if time.monotonic() - begun > PATIENCE:
            program.kill()
            raise TimeoutError(f"{chain.folder}: a start took more than {PATIENCE} s")
        if fault.moment == "start":
            if time.monotonic() - begun > fault.wait:
                return True
        elif fault.moment in ("checkpoint", "cache"):
            place = "runs/train/*/checkpoints" if fault.moment == "checkpoint" else "data/cache"
            seen.update(chain.folder.glob(f"{place}/*.tmp"))
            # Their names are the same each time.
            if seen and moment(chain.folder)[1] >= fault.wait:
                return True
            seen.clear()
        else:
            name, steps = moment(chain.folder)
            if name == fault.moment:
                seen.add(steps)
                if len(seen) > fault.wait or name == "test":
                    return True
        time.sleep(0.0005)
    return False


def suffer(chain: Chain, fault: Fault) -> bool:
    """Start the run and have a fault happen; returns whether it came to it."""
    (chain.folder / "moment").unlink(missing_ok=True)
    program = chain.start()
    try:
        if not come_to(chain, fault, program):
            return False
        if fault.moment not in ("checkpoint", "cache"):
            time.sleep(random.Random(repr(fault)).uniform(0, 0.05))
        now, steps = moment(chain.folder)
        # As a terminal sends it, to the whole group.
        send = os.killpg if fault.number is signal.SIGINT else os.kill
        send(program.pid, fault.number)
        code = program.wait(timeout=PATIENCE)
    finally:
        program.kill()
    if code == 0:  # it came when all was done
        return False
    fault.injected = True
    outside = now in ("start", "ending") and code == -fault.number
    if code != CODES[fault.number] and not outside:
        fault.problems.append(f"exit code {code} in {now}")
    run_dir = chain.run_dir
    if run_dir is None:
        return True
    fault.problems += damage(run_dir)
    last = RunFolder(run_dir).last
    saved = read_checkpoint(last).global_step if last.is_file() and not fault.problems else 0
    told = fault.number is not signal.SIGKILL and now in ("training", "validation")
    if steps - saved > (0 if told else STEPS_AN_EPOCH):
        fault.problems.append(f"{steps - saved} steps lost in {now}")
    return True


def damage(run_dir: Path) -> list[str]:
    """What of a run's files cannot be read."""
    problems = []
    for file in run_dir.glob("checkpoints/*.ckpt"):
        try:
            read_checkpoint(file)
        except UserError as error:
            problems.append(str(error))
    try:
        read_rows(run_dir)
        if (run_dir / "metrics.json").is_file():
            json.loads((run_dir / "metrics.json").read_text())
    except ValueError as error:
        problems.append(f"{run_dir}: {error}")
    return problems


def differences(run_dir: Path, reference: Path) -> list[str]:
    """What of a finished run is not as in another one, to the bit."""
    found = []
    for name in ("best.ckpt", "last.ckpt"):
        one, other = (
            torch.load(folder / "checkpoints" / name, weights_only=True)
            for folder in (run_dir, reference)
        )
        for part in COMPARED:
            if not equal(unmeasured(one[part]), unmeasured(other[part])):
                found.append(f"{part} of {name}")
    rows, figures = (
        [unmeasured(row) for row in read_rows(folder)] for folder in (run_dir, reference)
    )
    if rows != figures:
        found.append("metrics.csv")
    one, other = (
        unmeasured(json.loads((folder / "metrics.json").read_text()))
        for folder in (run_dir, reference)
    )
    if one != other:
        found.append("metrics.json")
    pictures = {file.name for file in (reference / "figures").glob("*.png")}
    if pictures != {file.name for file in (run_dir / "figures").glob("*.png")}:
        found.append("figures")
    return found + [f"{file.name} left" for file in run_dir.rglob("*.tmp")]


def equal(one: Any, other: Any) -> bool:
    """To the bit, at any depth."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def unmeasured(content: Any) -> Any:
    """Figures without those of a clock, at any depth; and without what is not compared."""
    if isinstance(content, dict):
        left_out = (*MEASURED, *NOT_COMPARED)
        kept = {k: v for k, v in content.items() if not any(word in str(k) for word in left_out)}
        return {key: unmeasured(value) for key, value in kept.items()}
    return content


def finish(chain: Chain) -> list[str]:
    """Have a run finish; returns what is not as in the undisturbed one."""
    code = chain.start().wait(timeout=PATIENCE)
    if code or chain.run_dir is None:
        return [f"the last start ended with {code}"]
    return [] if chain.reference is None else differences(chain.run_dir, chain.reference)


def follow(chain: Chain) -> None:
    """Have all faults of a chain happen, the run finish, and compare it."""
    happened = [fault for fault in chain.faults if suffer(chain, fault)]
    problems = finish(chain)
    # A start that was killed before its first checkpoint is another run on W&B too.
    name = "" if chain.run_dir is None else chain.run_dir.name
    ids = {folder.name.rpartition(name)[2] for folder in chain.folder.glob(f"runs/wandb/*{name}*")}
    if len(ids) != 1:
        problems.append(f"{len(ids)} W&B runs")
    for fault in happened:
        # Of the faults together: none of them is known to be innocent.
        fault.problems += problems


def plan(draw: random.Random) -> list[list[Fault]]:
    """Faults by chain, five or so each: those of the cache first, those of the test last."""
    # A step, a validation, or a checkpoint after so many steps; of the start, seconds.
    latest = {"start": 6, "training": 15, "validation": 3, "checkpoint": 60, "cache": 0, "test": 0}
    kinds = [(name, number) for name in MOMENTS for number in SIGNALS]
    draw.shuffle(kinds)  # so that a few are of all kinds
    faults = []
    for index in range(KILLS):
        name, number = kinds[index % len(kinds)]
        wait = draw.uniform(0.5, latest[name]) if name == "start" else draw.randint(0, latest[name])
        faults.append(Fault(name, number, wait))
    draw.shuffle(faults)
    count = -(-KILLS // 5)
    order = {"cache": 0, "test": 2}
    return [
        sorted(faults[index::count], key=lambda fault: order.get(fault.moment, 1))
        for index in range(count)
    ]


def write_archive(path: Path) -> Path:
    """The shapes as class folders, for the runs that decode images."""
    parts: Splits = ShapesData(train_size=500, test_size=200).load()
    with tempfile.TemporaryDirectory() as place, tarfile.open(path, "w") as archive:
        for name, part in (("train", parts.train), ("test", parts.test)):
            for number, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
                file = Path(place, name, parts.classes[label], f"{number:05}.png")
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
        archive.add(place, arcname=".")
    return path


def fill_up(folder: Path, size: int, reference: Path) -> list[str] | None:
    """Train on a disk of so many bytes, then go on elsewhere.

    Returns:
        What was lost; None if the disk was large enough.
    """
    disk = folder / "disk"
    disk.mkdir(parents=True)
    place, options = shlex.quote(str(disk)), [*SHAPES, "logger=csv"]
    command = shlex.join([sys.executable, "-m", "cifar_lightning.train", *options])
    script = (
        f"mount -t tmpfs -o size={size} disk {place} && cd {place} && {command}; "
        f"code=$?; cp -r {place}/. {place}/../copy; exit $code"
    )
    # A mount name space of its own: no other process sees the disk, and it goes with the last one.
    ended = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    if ended.returncode == 0:
        return None
    problems = []
    if ended.returncode != 1 or ended.stderr.count("Error: The disk is full") != 1:
        problems.append(f"exit code {ended.returncode}: {ended.stderr[-300:]}")
    for run_dir in (folder / "copy").glob("runs/train/*"):
        problems += damage(run_dir)
    return problems or finish(Chain(folder / "copy", options, reference))


def undisturbed(folder: Path, options: Sequence[str]) -> Path:
    """The folder of a run that nothing happens to."""
    folder.mkdir()
    chain = Chain(folder, options)
    if finish(chain) or chain.run_dir is None:
        sys.exit(f"\nError: a run failed that nothing had happened to: {folder}/output.txt")
    return chain.run_dir


def campaign(folder: Path) -> tuple[list[Fault], list[list[str]]]:
    """All kills, and of each disk that filled up what was lost by it."""
    draw = random.Random(SEED)
    decoded = ("data=folder", f"data.path={write_archive(folder / 'shapes.tar')}", *OPTIONS, *BOARD)
    drawn = (*SHAPES, *BOARD)
    runs = {
        options: undisturbed(folder / name, options)
        for name, options in (("drawn", drawn), ("decoded", decoded))
    }
    chains = []
    for number, faults in enumerate(plan(draw)):
        options = decoded if any(fault.moment == "cache" for fault in faults) else drawn
        chains.append(Chain(folder / f"chain_{number}", options, runs[options], faults))
        chains[-1].folder.mkdir()
    with ThreadPoolExecutor(CHAINS) as threads:
        for number, _ in enumerate(threads.map(follow, chains)):
            print(f"chain {number + 1} of {len(chains)}", flush=True)
    # From room for nothing to room for all but the last of what a run writes.
    sizes = [int(2 ** draw.uniform(12, 22.5)) for _ in range(DISKS)]
    if subprocess.call(["sh", "-c", "unshare --map-root-user --mount true 2>/dev/null"]):
        print("No disks: this machine lets nobody mount one by unshare --mount.", flush=True)
        sizes = []
    disks = [fill_up(folder / f"disk_{n}", size, runs[drawn]) for n, size in enumerate(sizes)]
    faults = [fault for chain in chains for fault in chain.faults if fault.injected]
    return faults, [problems for problems in disks if problems is not None]


def main() -> None:
    """Run the campaign and print."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(os.environ.get("FOLDER", temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        faults, disks = campaign(folder)
    outcomes = [(f"{SIGNALS[fault.number]}, {fault.moment}", fault.problems) for fault in faults]
    outcomes += [("full disk", problems) for problems in disks]
    print("\n| fault | injected | survived | lost |\n|---|---|---|---|")
    names = [f"{name}, {at}" for at in MOMENTS for name in SIGNALS.values()]
    for name in (*names, "full disk", "all"):
        lost = [bool(problems) for kind, problems in outcomes if name in (kind, "all")]
        print(f"| {name} | {len(lost)} | {len(lost) - sum(lost)} | {sum(lost)} |")
    for kind, problems in outcomes:
        for problem in problems:
            print(f"lost: {kind}: {problem}")
    summary = {
        "injected": len(outcomes),
        "lost": sum(bool(problems) for _, problems in outcomes),
        "seed": SEED,
        "seconds": round(time.monotonic() - begun),
        "device": devices.device_name(torch.device("cpu")),
        "torch": torch.__version__,
    }
    print(f"\n{json.dumps(summary)}")
    sys.exit(1 if summary["lost"] else 0)


if __name__ == "__main__":
    main()
