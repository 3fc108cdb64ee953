"""Which worker does which trial of a study that several share.

A study has `n_trials` trials, counted by their numbers, which storages hand out one by one. A trial
waits, or one worker has it, or it is done. A worker that dies leaves its trial running for ever, as
the storage sees it; the others put it back, so that it goes on under its number with the values
that were chosen for it.
"""

import hashlib
import secrets
import socket
import time
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

POLL_S = 1.0  # between two looks at others' trials


class TrialLost(Exception):
    """Another worker has the trial, because this one gave no sign of life for too long."""


class Claims:
    """What one worker knows of the others' trials.

    Whether a worker on this machine, or on one that shares the folder, still lives, a lock tells at
    once: it is free when its process has ended. Of others a trial's `heartbeat` tells: it is dead
    if that has not changed for `silence_s`.

    Args:
        study: the one shared.
        storage: that it is in.
        folder: of the search; who uses it, tells of its life by a lock in it.
        lock: a file that all share who share a file as storage: SQLite lets two read that a trial
            waits before one of them writes that it has it.
        n_trials: in all, over all workers and starts.
        silence_s: seconds without a heartbeat after which a worker is taken for dead.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: BaseStorage,
        folder: Path,
        lock: Path,
        n_trials: int,
        silence_s: float = 120.0,
    ) -> None:
        self._study = study
        self._storage = storage
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._n_trials = n_trials
        self._silence_s = silence_s
        self.heartbeat_s = silence_s / 4
        self._here = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
        self._name = f"{self._here}-{secrets.token_hex(8)}"
        self._workers = folder / "workers"
        self._workers.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(lock)
        self._alive = FileLock(self._workers / f"{self._name}.lock")
        self._alive.acquire()
        self._beats = 0
        # Of trials elsewhere: the heartbeat that was seen last, and since when.
        self._seen: dict[int, tuple[int, float]] = {}
        self._lives: set[int] = set()  # those whose heartbeat has changed since the first look

    def close(self) -> None:
        """Tell the others that this worker has no trial any more."""
        Path(self._alive.lock_file).unlink(missing_ok=True)
        self._alive.release()

    def workers_here(self) -> int:
        """Those alive on this machine that use this folder, this one among them."""
        files = self._workers.glob(f"{self._here}-*.lock")
        return sum(not self._is_free(file) for file in files)

    def next(self) -> int | None:
        """The number of a trial that is this worker's from now on.

        Waits for signs of life of those who have the last ones.

        Returns:
            None if nothing is left to be done here.
        """
        while True:
            with self._lock:
                trials = self._unfinished()
                for trial in trials:
                    if trial.state == TrialState.RUNNING and self._is_dead(trial):
                        self._put_back(trial.number)
                number = self._take()
            if number is not None or not (others := self._unfinished()):
                return number
            if all(self._is_known_to_live(trial) for trial in others):
                return None
            time.sleep(min(POLL_S, self.heartbeat_s))

    def beat(self, number: int) -> None:
        """Give a sign of life.

        Raises:
            TrialLost: if it was taken for dead.
        """
        trial = self._storage.get_trial(self._id(number))
        if trial.state != TrialState.RUNNING or trial.user_attrs.get("worker") != self._name:
            raise TrialLost
        self._beats += 1
        self._storage.set_trial_user_attr(self._id(number), "heartbeat", self._beats)

    def give_back(self, number: int) -> None:
        """Have a trial of this worker's that is not done wait for whoever takes it next."""
        if self._storage.get_trial(self._id(number)).user_attrs.get("worker") == self._name:
            self._put_back(number)

    def _put_back(self, number: int) -> None:
        try:
            self._storage.set_trial_state_values(self._id(number), TrialState.WAITING)
        except UpdateFinishedTrialError:
            return  # somebody was slow, not dead

    def _take(self) -> int | None:
        """Claim the first that waits; make one where none does and there may be more."""
        while True:
            for trial in self._unfinished():
                if trial.state == TrialState.WAITING and self._claim(trial.number):
                    return trial.number
            # With others at it too, there may be one too many; its number tells, and it waits
            # until somebody wants so many.
            if len(self._study.get_trials(deepcopy=False)) >= self._n_trials:
                return None
            self._study.enqueue_trial({})

    def _claim(self, number: int) -> bool:
        """Take a trial that waits; of several who try, the storage lets one."""
        try:
            claimed = self._storage.set_trial_state_values(self._id(number), TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False
        if claimed:
            self._storage.set_trial_user_attr(self._id(number), "worker", self._name)
            try:
                self.beat(number)
            except TrialLost:  # to one who took the trial's earlier worker for dead a moment later
                return False
        return claimed

    def _unfinished(self) -> list[FrozenTrial]:
        trials = self._study.get_trials(
            deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING)
        )
        return [trial for trial in trials if trial.number < self._n_trials]

    def _is_dead(self, trial: FrozenTrial) -> bool:
        file = self._workers / f"{trial.user_attrs.get('worker')}.lock"
        if file.exists():
            return self._is_free(file)
        beat = int(trial.user_attrs.get("heartbeat", 0))
        last, since = self._seen.get(trial.number, (None, 0.0))
        if beat == last:
            return time.monotonic() - since > self._silence_s
        if last is not None:
            self._lives.add(trial.number)
        self._seen[trial.number] = (beat, time.monotonic())
        return False

    def _is_known_to_live(self, trial: FrozenTrial) -> bool:
        """Whether nobody needs to wait for a running trial: its worker has given signs of life."""
        has_lock = (self._workers / f"{trial.user_attrs.get('worker')}.lock").exists()
        return trial.state == TrialState.RUNNING and (has_lock or trial.number in self._lives)

    def _is_free(self, file: Path) -> bool:
        if file == Path(self._alive.lock_file):
            return False
        try:
            with FileLock(file, timeout=0):
                return True
        except Timeout:
            return False

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
