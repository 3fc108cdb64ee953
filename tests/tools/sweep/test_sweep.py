"""Sweeps (`-m`): what happens when jobs end in different ways, and how a sweep is resumed."""

import io
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import programs
import pytest
from conftest import TINY
from filelock import FileLock
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from programs import finish, hydra_restored, only, read_json, wait_for

from cifar_lightning.errors import UserError
from cifar_lightning.sweep import jobs as sweep_jobs
from cifar_lightning.sweep.resume import resume_sweep
from cifar_lightning.system.counted import counted
from cifar_lightning.tracking.run_folder import RunFolder, read_rows
from cifar_lightning.train import main

# Before a test imports the sweeper: the first instance executes the plugins' modules anew.
Plugins.instance()


def make_run(folder: Path, overrides: Sequence[str], finished: bool = True) -> None:
    """A run's folder as a sweep leaves it."""
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create([*overrides]), folder / ".hydra" / "overrides.yaml")
    if finished:
        (folder / "metrics.json").write_text('{"epochs": 1, "stopped_by": "max_epochs"}')


# Which jobs are missing


def test_a_new_sweep_takes_no_folder_that_has_runs(tmp_path: Path) -> None:
    jobs = [["seed=0"], ["seed=1"]]
    for folder in (tmp_path, tmp_path / "none yet"):  # the jobs' names are Hydra's to choose
        assert sweep_jobs.missing_jobs(folder, jobs, resume=False) == [(None, job) for job in jobs]
    make_run(tmp_path / "0", ["seed=0"])
    with pytest.raises(UserError, match=rf"has runs already\. resume_sweep={tmp_path} resumes"):
        sweep_jobs.missing_jobs(tmp_path, jobs, resume=False)


def test_what_is_not_finished_keeps_its_folder_whatever_the_order_of_its_overrides(
    tmp_path: Path,
) -> None:
    make_run(tmp_path / "0", ["seed=0", "optimizer=sgd"])
    make_run(tmp_path / "1", ["seed=1", "optimizer=sgd"], finished=False)
    make_run(tmp_path / "deeper" / "7", ["seed=7", "optimizer=sgd"], finished=False)
    jobs = [["optimizer=sgd", f"seed={seed}"] for seed in (7, 1, 0)]
    assert sweep_jobs.missing_jobs(tmp_path, jobs, resume=True) == [
        ("deeper/7", jobs[0]),
        ("1", jobs[1]),
    ]
    assert sweep_jobs.missing_jobs(tmp_path, jobs[2:], resume=True) == []


def test_a_sweep_can_grow_around_the_folders_that_it_has(tmp_path: Path) -> None:
    make_run(tmp_path / "0", ["seed=5"])
    make_run(tmp_path / "2", ["seed=9"], finished=False)
    jobs = [[f"seed={seed}"] for seed in (1, 5, 2, 9, 3)]
    missing = sweep_jobs.missing_jobs(tmp_path, jobs, resume=True)
    assert missing == [("1", jobs[0]), ("3", jobs[2]), ("2", jobs[3]), ("4", jobs[4])]


def test_of_a_job_without_a_first_step_is_said_that_it_took_none(tmp_path: Path) -> None:
    """As after Ctrl-C while its data is read."""
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- seed=0\n")
    run = RunFolder(tmp_path).read()
    assert run.status == "not finished"
    assert run.reason.startswith(
        "it has not trained a step: it is starting, or was stopped before; it"
    )


def test_an_interrupted_run_and_one_that_trained_on_after_its_figures_are_missing(
    tmp_path: Path,
) -> None:
    for name, stopped_by in (("0", "interrupted"), ("1", "max_epochs"), ("2", "target")):
        make_run(tmp_path / name, [f"seed={name}"])
        metrics = {"epochs": 1, "stopped_by": stopped_by}
        (tmp_path / name / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "1" / "metrics.csv").write_text("epoch,step\n1.0,5\n2.0,10\n")
    missing = sweep_jobs.missing_jobs(tmp_path, [[f"seed={n}"] for n in range(3)], resume=True)
    assert [name for name, _ in missing] == ["0", "1"]


def test_few_compositions_check_every_value() -> None:
    jobs = [[f"seed={s}", f"optimizer={o}"] for o in ("muon", "sgd") for s in range(3)]
    assert sweep_jobs.with_each_value(jobs) == [jobs[0], jobs[1], jobs[2], jobs[3]]
    assert sweep_jobs.with_each_value([]) == []


def test_joblib_runs_as_many_jobs_at_once_as_there_are() -> None:
    pytest.importorskip("joblib")
    assert sweep_jobs.jobs_at_once({}, 5) is None
    assert [sweep_jobs.jobs_at_once({"n_jobs": n}, 3) for n in (4, 2)] == [3, 2]
    assert 1 <= (sweep_jobs.jobs_at_once({"n_jobs": -1}, 10_000) or 0) <= (os.cpu_count() or 1)
    with pytest.raises(
        UserError, match=r"hydra\.launcher\.n_jobs=0 is invalid: it is a number of jobs"
    ):
        sweep_jobs.jobs_at_once({"n_jobs": 0}, 3)


# resume_sweep=DIR

LAUNCHER = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
JOBS = ("seed=0,1", "+x=${now:%Y}")


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A sweep's folder, with what Hydra records of how it was started."""
    folder = tmp_path / "a sweep"
    folder.mkdir()
    hydra = ["hydra.mode=MULTIRUN", *LAUNCHER, "hydra.sweep.dir=x", "hydra.sweeper.resume=true"]
    sources = [
        {"path": "here", "schema": "file", "provider": "main"},
        {"path": "/further", "schema": "file", "provider": "command-line"},
    ]
    content = {
        "overrides": {"hydra": hydra, "task": [*JOBS]},
        "runtime": {"config_sources": sources},
    }
    OmegaConf.save(OmegaConf.create({"hydra": content}), folder / "multirun.yaml")
    return folder


def test_other_commands_are_left_alone() -> None:
    typed = ["-m", "seed=0,1", "hydra.sweep.dir=x"]
    assert resume_sweep(typed) == typed


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ([], [*LAUNCHER, *JOBS]),
        (["--multirun"], [*LAUNCHER, *JOBS]),
        (["--config-dir=moved"], ["--config-dir=moved", *LAUNCHER, *JOBS]),
        # The same sweep on another launcher.
        (["hydra.launcher.n_jobs=1"], [LAUNCHER[0], *JOBS, "hydra.launcher.n_jobs=1"]),
        (["hydra/launcher=basic"], [*JOBS, "hydra/launcher=basic"]),
        # A larger sweep, with the other options as before.
        (["seed=0,1,2"], [*LAUNCHER, JOBS[1], "seed=0,1,2"]),
    ],
)
def test_a_sweep_is_resumed_as_it_was_typed_but_for_what_is_typed_again(
    recorded: Path, typed: list[str], expected: list[str]
) -> None:
    if "--config-dir=moved" not in typed:
        expected = ["--config-dir=/further", *expected]
    resumed = [
        "--multirun",
        *expected,
        f"hydra.sweep.dir='{recorded}'",
        "hydra.sweeper.resume=true",
    ]
    assert resume_sweep([f"resume_sweep={recorded}", *typed]) == resumed
    assert resume_sweep([*typed, f"resume_sweep='{recorded}'"]) == resumed


@pytest.mark.parametrize("value", ["", "none", "."])
def test_a_folder_without_a_sweep_is_named(value: str) -> None:
    with pytest.raises(
        UserError, match=rf"resume_sweep={re.escape(value)} is not the folder of a sweep"
    ):
        resume_sweep([f"resume_sweep={value}"])


def test_a_damaged_record_of_a_sweep_is_named(recorded: Path) -> None:
    (recorded / "multirun.yaml").write_text("hydra: [")
    with pytest.raises(UserError, match=r"multirun\.yaml cannot be read"):
        resume_sweep([f"resume_sweep={recorded}"])


@pytest.mark.parametrize("key", ["hydra.sweep.dir", "hydra.sweep.subdir", "hydra.run.dir"])
def test_a_sweep_is_resumed_in_its_folder_alone(recorded: Path, key: str) -> None:
    with pytest.raises(UserError, match=rf"{key}=x: resume_sweep=.* resumes the sweep in its fol"):
        resume_sweep([f"resume_sweep={recorded}", "-m", f"{key}=x"])
    resumed = resume_sweep([f"resume_sweep={recorded}", f"hydra.sweep.dir='{recorded}'"])
    assert resumed[-2] == f"hydra.sweep.dir='{recorded}'"


# Real sweeps


# What ends it, and what the table says of it.
ENDS = {
    "raise": "a fault of the callback",
    "kill": "Its process was ended by SIGKILL, perhaps by the system because memory ran out.",
    "diverge": "The loss became NaN or infinite: step 8, in epoch 2 (learning rate ",
}

TWO_EPOCHS = (
    *TINY,
    "trainer.max_epochs=2",
    "target_accuracy=null",
    "callbacks.nan.every_n_steps=1",
    "+callbacks.crash._target_=crash.Crash",
)


def start(*typed: str, cwd: Path | None = None, **environment: str) -> programs.Program:
    """`python -m cifar_lightning.train`, with the callback to be imported."""
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path)} | environment
    return programs.start("train", *typed, cwd=cwd, env=env)


def train_here(*typed: str) -> tuple[str | int, str]:
    """`python -m cifar_lightning.train` in this process, for what its jobs print is not looked at.

    The process that they are forked from serves all tests.

    Returns:
        The exit code, or the message of a mistake; and what else was printed here.
    """
    code: str | int = 0
    said = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        hydra_restored(),
        redirect_stdout(said),
        redirect_stderr(said),
    ):
        patch.setattr(sys, "argv", ["train", *typed])
        try:
            main()
        except SystemExit as ending:
            code = ending.code or 0
    return code, said.getvalue()


def by_setting(folder: Path, key: str) -> dict[str, Path]:
    """The folders of a sweep's runs by an override of theirs."""
    found = {}
    for file in folder.glob("*/.hydra/overrides.yaml"):
        (value,) = re.findall(rf"^- \+?{re.escape(key)}=(.*)$", file.read_text(), re.MULTILINE)
        found[value] = file.parent.parent
    return found


def figures(run: Path) -> dict[str, Any]:
    metrics = read_json(run / "metrics.json")
    return {k: metrics[k] for k in ("val/acc", "test/acc", "test/loss", "epochs", "train_images")}


@dataclass(frozen=True)
class Broken:
    """A sweep that has run, all jobs but one of which failed.

    Attributes:
        place: where it was started.
        folder: of the sweep.
        code: that it ended with.
        said: what it printed.
    """

    place: Path
    folder: Path
    code: int | None
    said: str


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Broken:
    place = tmp_path_factory.mktemp("broken")
    how = f"+callbacks.crash.how=none,{','.join(ENDS)}"
    program = start("-m", *TWO_EPOCHS, how, "+callbacks.crash.number=${hydra:job.num}", cwd=place)
    said = finish(program)
    return Broken(place, only("runs/train/*_sweep", place), program.returncode, said)


@pytest.mark.slow
def test_however_jobs_end_the_others_run_and_a_table_names_the_causes(broken: Broken) -> None:
    assert broken.code == 1
    runs = by_setting(broken.folder, "callbacks.crash.how")
    assert set(runs) == {"none", *ENDS}
    assert [how for how, run in runs.items() if (run / "metrics.json").exists()] == ["none"]
    names = {OmegaConf.load(run / "config.yaml").sweep for run in runs.values()}
    assert names == {broken.folder.name}  # one group on W&B
    said = broken.said
    for how, cause in ENDS.items():
        assert f"failed: run {runs[how].name} (callbacks.crash.how={how}): {cause}" in said
    assert "4 runs: 1 finished, 3 failed." in said
    assert "The best run is run 0 (callbacks.crash.how=none, seed=0)" in said
    assert said.count("Traceback") == 1  # of the fault; the others are none, or the user's to fix
    assert "RuntimeError: a fault of the callback" in said
    assert f"report     {broken.folder}/report.html\n" in said
    assert "The loss became NaN or infinite" in (broken.folder / "report.html").read_text()
    folder = broken.folder.relative_to(broken.place)
    assert f"python -m cifar_lightning.train resume_sweep={folder}\n" in said


@pytest.mark.slow
def test_a_sweep_is_resumed_where_it_was_broken_off_and_grows(
    broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(broken.place)
    runs = by_setting(broken.folder, "callbacks.crash.how")
    before = {file: file.stat().st_mtime_ns for file in runs["none"].rglob("*") if file.is_file()}
    first = {how: read_rows(runs[how]) for how in ENDS}
    began = {how: (runs[how] / ".hydra" / "config.yaml").stat().st_mtime_ns for how in ENDS}
    Path("fixed").touch()
    code, said = train_here(f"resume_sweep={broken.folder}")
    assert code == 0, said
    assert "Launching 3 jobs locally" in said
    assert "4 runs: 4 finished." in said
    assert "resume     " not in said
    assert before == {file: file.stat().st_mtime_ns for file in before}
    for how in ENDS:
        assert figures(runs[how]) == figures(runs["none"]), how  # as if never broken off
        rows = read_rows(runs[how])
        assert [row["epoch"] for row in rows if "lr" in row] == [1.0, 2.0]
        assert len(first[how]) == 1
        assert rows[0] == first[how][0]  # its seconds too: the first epoch was not trained again
        assert len(RunFolder(runs[how]).starts()) == 2
        assert (runs[how] / ".hydra" / "config.yaml").stat().st_mtime_ns == began[how]

    # A new sweep does not take the folder.
    code, _ = train_here("-m", *TWO_EPOCHS, "seed=1", f"hydra.sweep.dir={broken.folder}")
    has_runs = f"{broken.folder} has runs already. resume_sweep={broken.folder} resumes them"
    assert f"Error: {has_runs}" in str(code)

    larger = ["+callbacks.crash.how=none,raise,new", "+callbacks.crash.number=${hydra:job.num}"]
    code, said = train_here(*TWO_EPOCHS, *larger, f"resume_sweep={broken.folder}")
    assert code == 0, said
    assert "Launching 1 jobs locally" in said
    assert "5 runs: 5 finished." in said
    assert by_setting(broken.folder, "callbacks.crash.how") == runs | {"new": broken.folder / "4"}
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_a_resume_that_would_lose_jobs_is_refused(recorded: Path) -> None:
    content = {"overrides": {"hydra": [], "task": ["seed=0,1,2"]}}
    record = recorded / "multirun.yaml"
    OmegaConf.save(OmegaConf.create({"hydra": content}), record)
    before = record.read_bytes()
    make_run(recorded / "0", ["seed=0"])
    make_run(recorded / "1", ["seed=1"], finished=False)
    for typed in ("seed=0,3", "cutmix=0.5"):
        code, _ = train_here(f"resume_sweep={recorded}", typed)
        assert f"The sweep in {recorded} would lose 2 unfinished jobs, such as seed=1. Ov" in str(
            code
        )
        assert "may only add jobs: to add a value, type all values, such as seed=0" in str(code)
        assert "To change a value, start a new sweep with -m." in str(code)
        assert record.read_bytes() == before
    sweep_jobs.check_none_is_lost(recorded, [["seed=0"], ["seed=1"]], [["seed=1"], ["seed=3"]])


@pytest.mark.slow
def test_a_job_that_another_process_works_on_is_left_alone(tmp_path: Path) -> None:
    for number in "01":
        typed = [f"seed={number}", *TINY]
        as_hydra_records = [option.replace("=false", "=False") for option in typed]
        make_run(tmp_path / "s" / number, as_hydra_records, finished=number == "1")
        (tmp_path / "s" / number / "train.log").write_text("as it was\n")
    options = ["hydra.sweep.dir=s", "hydra.sweeper.resume=true", "seed=0,1", *TINY]
    with FileLock(tmp_path / "s" / "0" / ".lock"):
        code, said = train_here("-m", *options)
    assert code == 1
    assert said.count(f"Another process is working on the run in {tmp_path}/s/0.") == 1
    assert "not finished: run 0 (seed=0)" in said
    assert (tmp_path / "s" / "0" / "train.log").read_text() == "as it was\n"
    assert not (tmp_path / "s" / "0" / "checkpoints").exists()


def test_a_job_that_is_refused_leaves_its_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "s" / "0").mkdir(parents=True)
    (tmp_path / "s" / "0" / "config.yaml").write_text("mine: 1\n")
    code, said = train_here("-m", *TINY, "seed=0", "hydra.sweep.dir=s")
    assert code == 1
    assert "config.yaml is not the record of a run" in said
    assert [file.name for file in (tmp_path / "s" / "0").iterdir()] == ["config.yaml"]


@pytest.mark.slow
def test_the_command_for_more_seeds_trains_only_the_new_ones() -> None:
    code, said = train_here("-m", *TINY, "optimizer.lr=0.01,0.02", "seed=0", "hydra.sweep.dir=s")
    assert not code
    first = {file: file.stat().st_mtime_ns for file in Path("s").glob("*/metrics.json")}
    (command,) = re.findall(
        r"^more seeds .*python -m cifar_lightning\.train (.*)$", said, re.MULTILINE
    )
    assert command == "resume_sweep=s seed=0,1,2,3,4"
    code, said = train_here(*shlex.split(command))
    assert not code
    assert "10 runs: 10 finished." in said
    assert {file: file.stat().st_mtime_ns for file in first} == first
    assert len(first) == 2


@pytest.mark.slow
def test_two_jobs_do_not_share_a_folder(tmp_path: Path) -> None:
    code, said = train_here("-m", *TINY, "seed=1,2", "hydra.sweep.subdir=same")
    assert code == 1
    assert f"{tmp_path}/runs/train" in said
    assert "same has a run already, which was not changed. It is of another job with the" in said
    assert read_json(only("runs/train/*/same/metrics.json"))["seed"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_sweep_in_order(tmp_path: Path, number: signal.Signals) -> None:
    options = [option for option in TINY if "max_epochs" not in option]
    long = ["trainer.max_epochs=500", "target_accuracy=null"]
    program = start("-m", *options, *long, "seed=0,1")
    first = "runs/train/*_sweep/0/checkpoints/last.ckpt"
    wait_for(lambda: list(tmp_path.glob(first)), program)
    program.send_signal(number)
    time.sleep(0.1)
    program.send_signal(number)  # as `timeout` sends it: to the process, then to its group
    said = finish(program)
    assert program.returncode == 128 + number, said
    folder = only("runs/train/*_sweep", tmp_path)
    assert read_json(folder / "0" / "metrics.json")["stopped_by"] == "interrupted"
    assert "interrupted: run 0 (seed=0): stopped by Ctrl-C or SIGTERM" in said
    assert "not started: 1 job\n" in said
    assert f"resume_sweep={folder.relative_to(tmp_path)}\n" in said
    assert said.count("resume     ") == 1  # not also that of the job
    assert "Traceback" not in said
    assert not (folder / "1").exists()


@pytest.mark.slow
def test_joblib_runs_jobs_side_by_side_with_their_share_of_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # which would decide
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    how = "+callbacks.crash.how=none,kill"
    program = start("-m", *TWO_EPOCHS, *launcher, how)
    said = finish(program)
    assert program.returncode == 1
    runs = by_setting(only("runs/train/*_sweep", tmp_path), "callbacks.crash.how")
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert read_json(runs["none"] / "metrics.json")["device"].endswith(
        f", {counted(share, 'thread')}"
    )
    for how in runs:
        assert "epoch 1/2" in (runs[how] / "output.log").read_text()
        assert read_rows(runs[how])
    assert "epoch 1/2" not in said
    # The second one began before the first one ended.
    begun = (runs["kill"] / ".hydra" / "overrides.yaml").stat().st_mtime
    assert begun < (runs["none"] / "metrics.json").stat().st_mtime
    assert f"finished   {runs['none']}\n" in said
    assert f"failed     {runs['kill']}\n" in said
    assert f"failed: run 1 (callbacks.crash.how=kill): {ENDS['kill']}" in said


# SLURM: commands of these names, which do with their own machine what SLURM does with a cluster.

SBATCH = '''#!{python}
"""Runs the array that a script asks for, one job after the other, and again what is requeued."""
import os, re, subprocess, sys
from pathlib import Path

# A copy, as SLURM keeps one: submitit renames its file once it has the number of the job.
text = Path(sys.argv[1]).read_text()
script = Path({log!r})
script.write_text(text)
print("Submitted batch job 77", flush=True)
if os.fork():
    os._exit(0)
null = os.open(os.devnull, os.O_RDWR)
for stream in range(3):
    os.dup2(null, stream)
last = int(re.search(r"#SBATCH --array=0-(\\d+)%", text)[1])
for task in range(last + 1):
    requeued = Path({place!r}, f"requeue_77_{{task}}")
    while True:
        requeued.unlink(missing_ok=True)
        slurm = {{
            "SLURM_JOB_ID": f"{{78 + task}}",
            "SLURM_ARRAY_JOB_ID": "77",
            "SLURM_ARRAY_TASK_ID": f"{{task}}",
            "SLURM_JOB_NAME": "train",
            "SLURM_NTASKS": "1",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_NODEID": "0",
            "SLURM_JOB_NUM_NODES": "1",
        }}
        subprocess.run(["bash", script], env=os.environ | slurm)
        if not requeued.exists():
            break
'''

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do
    case $1 in
        --output) output=${2//%A_%a/77_$SLURM_ARRAY_TASK_ID}; output=${output//%t/0}; shift;;
        --error) shift;;
    esac
    shift
done
mkdir -p "${output%/*}"  # submitit does it too, but perhaps later than a job that need not queue
exec "$@" >>"$output" 2>&1
"""

SCONTROL = """#!/bin/bash
touch {place}/requeue_$2
"""

SACCT = """#!/bin/bash
echo 'JobID|State|NodeList'
echo '77|RUNNING|here'
"""


def make_cluster(place: Path) -> Path:
    """A folder for PATH."""
    programs = place / "slurm"
    programs.mkdir()
    script = str(place / "submitted.sh")
    for name, text in {
        "sbatch": SBATCH.format(python=sys.executable, log=script, place=str(place)),
        "srun": SRUN,
        "scontrol": SCONTROL.format(place=place),
        "sacct": SACCT,
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return programs


@pytest.mark.slow
def test_slurm_gets_one_array_whose_jobs_are_requeued_and_resumed(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    cluster = make_cluster(tmp_path)
    program = start(
        "-m",
        *TWO_EPOCHS,
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.partition=gpu",
        "hydra.launcher.cpus_per_task=1",
        "hydra.launcher.timeout_min=30",
        "hydra.launcher.qos=low",
        "+callbacks.crash.how=preempt,kill",
        PATH=f"{cluster}:{os.environ['PATH']}",
    )
    said = finish(program)
    script = (tmp_path / "submitted.sh").read_text()
    options = re.findall(r"^#SBATCH --(\S+)$", script, re.MULTILINE)
    assert {
        "partition=gpu",
        "qos=low",
        "gpus-per-node=1",
        "cpus-per-task=1",
        "mem=16GB",
        "time=30",
        "nodes=1",
        "ntasks-per-node=1",
        "array=0-1%2",
        "signal=USR2@120",
        "requeue",
        "job-name=train",
        "open-mode=append",
    } <= set(options)
    assert not {o.partition("=")[0] for o in options} & {"account", "constraint", "error"}
    assert program.returncode == 1
    assert "2 runs: 1 finished, 1 failed." in said
    assert f"failed: run 1 (callbacks.crash.how=kill): {ENDS['kill']}" in said
    assert (tmp_path / "preempted").exists()
    preempted = by_setting(only("runs/train/*_sweep", tmp_path), "callbacks.crash.how")["preempt"]
    assert [row["epoch"] for row in read_rows(preempted) if "lr" in row] == [1.0, 2.0]
    assert read_json(preempted / "metrics.json")["device"].endswith(", 1 thread")
    assert "Warning" not in said


@pytest.mark.slow
@pytest.mark.filterwarnings(
    r"ignore:\s*'hydra/launcher/submitit_slurm' is validated"
)  # as cli does
def test_what_cannot_be_run_is_said_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = train_here("-m", "trainer.max_epoch=1,2", *TINY)
    assert "Error: There is no 'trainer.max_epoch'" in str(code)
    assert "Did you mean trainer.max_epochs" in str(code)
    assert not list(tmp_path.glob("runs/train/*/0"))

    code, said = train_here("-m", *TINY[:-1], "trainer=ddp_sim", "seed=0,1")
    assert code == 1
    assert "failed: run 0 (seed=0): A job of a sweep (-m) trains on one device" in said
    assert "hydra/launcher=joblib" in said
    assert "hydra/launcher=submitit_slurm" in said
    assert "2 runs: 2 failed." in said
    assert "Traceback" not in said

    path = os.environ["PATH"].split(":")
    without = [folder for folder in path if not Path(folder, "srun").exists()]
    monkeypatch.setenv("PATH", ":".join(without))
    code, said = train_here("-m", *TINY, "hydra/launcher=submitit_slurm", "seed=0,1")
    assert 'Error: hydra/launcher: Could not detect "srun"' in str(code)
    assert "not started: 2 jobs" in said


@pytest.mark.slow
def test_the_configuration_for_slurm_takes_overrides() -> None:
    pytest.importorskip("submitit")
    options = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu"]
    more = ["hydra.launcher.exclude=node7", "+hydra.launcher.additional_parameters.nice=9"]
    ended = programs.run_command("train", *options, *more, "--cfg", "hydra")
    assert ended.returncode == 0, ended.stderr
    launcher = OmegaConf.create(ended.stdout).hydra.launcher
    assert (launcher.partition, launcher.exclude) == ("gpu", "node7")
    assert launcher.additional_parameters == {"requeue": True, "nice": 9}
    assert (launcher.gpus_per_node, launcher.cpus_per_gpu) == (1, None)
    assert "Warning" not in ended.stderr
