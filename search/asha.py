"""Trials that train compete: the worse half of them is stopped early, by Ray Tune's ASHA.

Asynchronous successive halving: L. Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020,
algorithm 2, with η = 2. Of the jobs of a batch that train, each is scored after a quarter and after half of its
training; one that scores below the median of those that came as far before it ends there, as PRUNED. The others are
trained to their end, and are then scored and measured as everything else.

Which trial is stopped depends on which came first, and with several workers that is a matter of time: unlike any other
search, one with this scheduler need not propose the same for 1 and for 8 workers, nor when it is run again. A search
that is resumed replays its journal, and agrees with itself.
"""

import logging
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from filelock import FileLock, Timeout
from ray import exceptions, tune
from ray.tune.schedulers import ASHAScheduler
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..compressors.artifact import Artifact
from ..core.cache import cache_folder
from ..core.environment import environment_defaults
from ..core.errors import DeviceLostError, SpecError, TransientError
from ..evaluators.measurement import Measurement
from ..hw_profiles.latency import Latency
from .asha_trial import N_QUARTERS, RUNGS, Terms, TuneTrial
from .attempt import N_ATTEMPTS, Attempt
from .ray_crew import describe_cause
from .ray_pool import RayPool
from .record import Status
from .worker_pool import Job, Outcome

_log = logging.getLogger(__name__)

#: Tune neither prints, nor writes logs of its own, nor swallows Ctrl-C, nor moves to another folder
_TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
#: held while a race is on
_LOCK = "lock"
#: seconds within which a race takes its lock
_NEW_S = 60.0


class AshaPool:
    """A pool on Ray in which the jobs of a batch that train compete first.

    They train in processes of their own, as many at a time as there are workers, whose cores they take. A trial
    whose process dies goes on from its last checkpoint, once.
    """

    def __init__(self, pool: RayPool) -> None:
        """Takes over a pool, and closes it where it cannot be used.

        Raises:
            SpecError: the cluster's nodes have no cache in common: trained models and checkpoints lie there.
        """
        self._pool = pool
        try:
            _require_shared_cache()
        except BaseException:
            pool.close()
            raise

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Yields an outcome per job; see `WorkerPool.run`."""
        trained: dict[int, Attempt] = {}
        entrants = [job for job in jobs if job.policy.recovery.trains]
        if len(entrants) > 1:  # one alone has nobody to compete with
            self._pool.release_workers()
            trained = _race(self._pool, entrants)
        for job_id, attempt in trained.items():
            if attempt.status is not Status.COMPLETE:
                yield Outcome(job_id, attempt.status, Measurement(), attempt.cost_s, attempt.error)
        left = [job for job in jobs if job.id not in trained or trained[job.id].status is Status.COMPLETE]
        for outcome in self._pool.run(left):
            cost_s = trained[outcome.id].cost_s if outcome.id in trained else 0.0
            yield replace(outcome, cost_s=outcome.cost_s + cost_s)

    def compare(self, artifacts: Sequence[Artifact]) -> list[Latency]:
        """Times artifacts together on the device; see `WorkerPool.compare`."""
        return self._pool.compare(artifacts)

    def close(self) -> None:
        """Gives back every process and resource; may be called twice."""
        self._pool.close()


def _require_shared_cache() -> None:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    with _folder() as folder:
        look = ray.remote(num_cpus=0)(Path.is_dir)
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            if not ray.get(look.options(scheduling_strategy=there).remote(folder)):
                raise SpecError(
                    f"search.scheduler: asha needs a cache that all nodes share, and {node['NodeManagerHostname']} "
                    f"does not see {cache_folder()}; set TRIMTAB_CACHE to a shared folder, or search.scheduler: none"
                )


def _race(pool: RayPool, jobs: Sequence[Job]) -> dict[int, Attempt]:
    """Lets jobs train and compete; returns job → attempt, COMPLETE for those that are trained to their end."""
    with _folder() as folder, _undisturbed():
        terms = Terms({job.id: job for job in jobs}, pool.limits, folder)
        trainable = tune.with_parameters(TuneTrial, factory=pool.stored, terms=terms)
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space={"job": tune.grid_search([job.id for job in jobs])},
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                scheduler=ASHAScheduler(
                    time_attr="quarters", max_t=N_QUARTERS, grace_period=RUNGS[0], reduction_factor=2
                ),
                max_concurrent_trials=pool.n_workers,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.config["job"]),
            ),
            run_config=tune.RunConfig(
                name="race",
                storage_path=str(folder),
                failure_config=tune.FailureConfig(max_failures=N_ATTEMPTS - 1),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1, checkpoint_frequency=1),
                callbacks=[_Patience(pool.grace_s)],
                verbose=0,
            ),
        )
        return {int(Path(result.path).name): _judge(result, terms) for result in tuner.fit()}


def _judge(result: Any, terms: Terms) -> Attempt:
    """Says what became of a trial.

    Raises:
        SpecError: (or TransientError) the bench could not be set up.
        DeviceLostError: the device that scores is gone.
    """
    metrics = result.metrics or {}
    cost_s = float(metrics.get("time_total_s", 0.0))
    if result.error is not None:
        notice = terms.notice_of(int(Path(result.path).name))
        cause = getattr(result.error, "cause", None) or result.error
        text = describe_cause(cause)
        if isinstance(cause, DeviceLostError):
            raise DeviceLostError(text)
        if isinstance(result.error, exceptions.RayActorError):
            text = notice.read_text() if notice.exists() else f"the worker died: {text}"
        text = f"given up after {N_ATTEMPTS} attempts: {text}"
        return Attempt(Status.FAILED, Measurement(), cost_s, text)
    if "ended" not in metrics:
        share = metrics["quarters"] / N_QUARTERS
        score = metrics["score"]
        text = f"stopped after {share:.0%} of its training: a score of {score:.4g} is below the median so far"
        return Attempt(Status.PRUNED, Measurement(), cost_s, text)
    how, error = metrics["ended"]
    if how in ("spec", "transient"):
        raised = SpecError if how == "spec" else TransientError
        raise raised(f"the worker cannot be set up: {error}")
    status = Status.COMPLETE if how == "trained" else Status(how)
    return Attempt(status, Measurement(), cost_s, error)


class _Patience(tune.Callback):
    """Notes scores in the log, and gives up when the cluster offers no place for any trial."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._running_s = time.monotonic()

    def on_trial_result(self, *, trial: Any, result: dict[str, Any], **_: object) -> None:
        """Writes a line for each rung."""
        if "score" in result:
            _log.info(
                "trial %d scores %.4f after %d %% of its training",
                trial.config["job"],
                result["score"],
                100 * result["quarters"] // N_QUARTERS,
            )

    def on_step_begin(self, *, trials: list[Any], **_: object) -> None:
        """Looks whether anything runs.

        Raises:
            TransientError: nothing has for too long, and no node could take it.
        """
        if any(trial.status == "RUNNING" for trial in trials) or ray.cluster_resources().get("CPU", 0) >= 1:
            self._running_s = time.monotonic()
        elif time.monotonic() - self._running_s > self._grace_s:
            raise TransientError(
                f"no node offers a place for a worker any more, for {self._grace_s:g} s now; "
                "bring the node back, then resume"
            )


@contextmanager
def _folder() -> Iterator[Path]:
    """Makes a folder for one race, which every node of a cluster sees, and removes it afterwards."""
    races = cache_folder() / "races"
    races.mkdir(parents=True, exist_ok=True)
    for other in races.iterdir():
        _remove_leftover(other)
    with tempfile.TemporaryDirectory(dir=races, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with FileLock(folder / _LOCK):
            yield folder


def _remove_leftover(folder: Path) -> None:
    """Removes what a killed search left behind: a folder that nobody holds, and that was not made just now."""
    try:
        if time.time() - folder.stat().st_mtime > _NEW_S:
            with FileLock(folder / _LOCK, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
    except (Timeout, OSError):
        return  # a race is on, or another search removes it


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keeps Tune quiet, and takes back what it changes in this process: random states and a signal's handler."""
    state, numpy_state = random.getstate(), np.random.get_state()
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    handler = signal.getsignal(signal.SIGUSR1)
    try:
        with environment_defaults(_TUNE_ENVIRONMENT):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
        logger.setLevel(level)
        if signal.getsignal(signal.SIGUSR1) is not handler:  # Tune sets it in the main thread only
            signal.signal(signal.SIGUSR1, handler)
