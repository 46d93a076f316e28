"""A training inside a Ray Tune trial: rung by rung, with a checkpoint at each, and never beyond its limits."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
from ray import tune
from safetensors.numpy import load_file, save_file

from ..core.errors import TransientError
from .attempt import failed_attempt
from .ray_actors import resident_bytes, setup_failure
from .worker_pool import BenchFactory, Job, Limits, TrialTraining, Workbench

#: quarters of a training after which its score is compared; with a reduction factor of 2 there are no others
RUNGS = (1, 2)
#: quarters of a whole training
N_QUARTERS = 4
#: how often time and memory are looked at, in seconds
_TICK_S = 1.0

_CHECKPOINT = "checkpoint.safetensors"
#: beside the state of the training in a checkpoint
_RUNG, _N_DONE = "trial/rung", "trial/n_done"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Terms:
    """What every trial of a race is given."""

    #: id → job
    jobs: Mapping[int, Job]
    limits: Limits
    #: where a trial that is stopped for exceeding them says so
    notices: Path

    def notice_of(self, job_id: int) -> Path:
        """Returns the file in which a trial's excess stands, if there was one."""
        return self.notices / f"{job_id}.excess"


class TuneTrial(tune.Trainable):
    """One trial after the other; each step goes on to the next rung and reports ``quarters`` and ``score`` there.

    The last report is ``done`` and has (how, cause) under ``ended``: ``trained``, ``spec`` or ``transient`` (the bench
    cannot be set up), or the `Status` of a failure. Only a `TransientError` leaves a step: Tune then starts the trial
    again, as after the death of its process.
    """

    def setup(self, config: dict[str, Any], *, factory: BenchFactory, terms: Terms) -> None:
        """Sets up a bench in this process, and opens the first training."""
        self._terms = terms
        self._bench: Workbench | None = None
        self._watch: _Watch | None = None
        self._training: TrialTraining | None = None
        #: how the trial ended, and why
        self._ended: tuple[str, str] | None = None
        #: the rung that was reported last; 0 before the first
        self._rung = 0
        try:
            self._bench = factory.workbench()
        except Exception as error:
            self._ended = setup_failure(error)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Opens the training of another trial, which goes on from where it was interrupted."""
        bench = self._bench
        if bench is None:
            return True
        self.cleanup()
        job = self._terms.jobs[new_config["job"]]
        self._job_id, self._rung, self._ended, self._training = job.id, 0, None, None
        self._watch = _Watch(self._terms.limits, self._terms.notice_of(job.id))
        self._training = self._guard(lambda: bench.open_training(job.policy))
        return True

    def step(self) -> dict[str, Any]:
        """Trains up to the next rung, or to the end behind the last one."""
        score = None if self._ended else self._guard(self._go_on)
        if score is not None:
            return {"quarters": self._rung, "score": score}
        self.cleanup()
        self._training = None
        return {"ended": self._ended or ("trained", ""), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes the state of the training as arrays."""
        arrays = {} if self._training is None else self._training.state_dict()
        n_done = 0 if self._training is None else self._training.n_done
        arrays |= {_RUNG: np.array(self._rung), _N_DONE: np.array(n_done)}
        arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        save_file(arrays, Path(checkpoint_dir) / _CHECKPOINT)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Goes on from a checkpoint, unless the training was found further on than that."""
        arrays = load_file(Path(checkpoint_dir) / _CHECKPOINT)
        self._rung = int(arrays.pop(_RUNG))
        n_done = int(arrays.pop(_N_DONE))
        if self._training is not None and n_done > self._training.n_done:
            self._training.load_state_dict(arrays)

    def cleanup(self) -> None:
        """Ends the watch."""
        if self._watch is not None:
            self._watch.stop()

    def _go_on(self) -> float | None:
        """Trains and returns the score at a rung; None at the end."""
        training = self._training
        if training is None:  # the model is there already, or needs no training
            return None
        for rung in RUNGS:
            goal = -(-training.n_steps * rung // N_QUARTERS)
            # a training that was interrupted at a rung is still compared there
            if rung > self._rung and training.n_done <= goal:
                training.advance(goal - training.n_done)
                self._rung = rung
                return training.score()
        training.advance(training.n_steps - training.n_done)
        training.finish()
        return None

    def _guard(self, work: Callable[[], T]) -> T | None:
        """Does some work; a failure for which the policy is to blame ends the trial."""
        try:
            return work()
        except TransientError:
            raise
        except Exception as error:
            attempt = failed_attempt(self._job_id, error, 0.0)
            self._ended = (attempt.status.value, attempt.error)
            return None


class _Watch:
    """Ends this process when it exceeds its limits: Tune itself would wait for ever."""

    def __init__(self, limits: Limits, notice: Path) -> None:
        self._limits = limits
        self._notice = notice
        self._start_s = time.monotonic()
        self._stopped = threading.Event()
        if limits.timeout_s is not None or limits.memory_bytes is not None:
            threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        """Looks away from now on."""
        self._stopped.set()

    def _run(self) -> None:
        tick_s = min(_TICK_S, (self._limits.timeout_s or _TICK_S) / 4)
        while not self._stopped.wait(tick_s):
            excess = self._limits.excess(time.monotonic() - self._start_s, resident_bytes())
            if excess is not None:
                self._notice.write_text(excess)
                ray.kill(ray.get_runtime_context().current_actor)
                return
