"""Runs jobs on Ray: workers that compress and score, one device that measures.

A batch passes in three phases: first all jobs are compressed and scored by the workers in parallel; then, when the
workers are idle, the device measures one artifact after the other; then, when the device is idle, the workers score
what is worth it on the rest of the samples. Artifacts travel through Ray's object store from worker to device and to
another worker; the driver holds references only.
"""

import logging
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from ..compressors.artifact import Artifact
from ..core.environment import environment_defaults
from ..core.errors import MeasurementError, SpecError
from ..hw_profiles.latency import Latency
from .attempt import Attempt, Phases, Scored, require_device, run_rounds
from .ray_actors import HEALTH_GROUP, DeviceActor, WorkerActor
from .ray_crew import Crew, Role, Task
from .record import Status
from .worker_pool import BenchFactory, Job, Limits, Outcome

#: the custom Ray resource that marks the node, or the nodes, where latency may be measured
DEVICE_RESOURCE = "trimtab_device"

#: how long a cluster may take to accept a connection, in seconds
_PROBE_S = 10.0

#: Ray settings for the time of starting it; what the user has set wins
_RAY_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class RayPool:
    """The pool on a Ray cluster, or on a private Ray on this machine."""

    def __init__(
        self,
        factory: BenchFactory,
        limits: Limits,
        *,
        n_workers: int,
        address: str = "local",
        grace_s: float = 60.0,
    ) -> None:
        """Connects; the actors are started by the first `run`.

        Args:
            factory: sets up the benches inside the actors.
            limits: what one phase of a trial may use.
            n_workers: actors that compress and score.
            address: ``local``, ``auto``, ``host:port`` or ``ray://host:port``. When this process has connected to
                Ray already, that connection is used, and left open by `close`.
            grace_s: how long to wait for a node to come back when none is left for workers or device, in seconds.

        Raises:
            SpecError: the cluster does not answer, or offers no measuring device.
        """
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            _connect(address, n_workers)
        self.limits, self.n_workers, self.grace_s = limits, n_workers, grace_s
        try:
            _require_device(address)
            #: reference to the factory, which every node fetches once
            self.stored = ray.put(factory)
        except BaseException:
            self._leave()
            raise
        self._workers = Crew(_worker_role(self.stored, n_workers, grace_s), limits)
        self._device = Crew(_device_role(self.stored, grace_s), limits)
        self._is_closed = False

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Yields an outcome per job; see `WorkerPool.run`."""
        yield from run_rounds(jobs, Phases(self._score, self._measure, self._score_rest))

    def compare(self, artifacts: Sequence[Artifact]) -> list[Latency]:
        """Times artifacts together on the device; see `WorkerPool.compare`."""
        for _ in range(2):
            result = next(iter(self._device.run([Task(-1, (list(artifacts),), method="compare")])))
            if result.attempt.status is Status.COMPLETE:
                latencies: list[Latency] = ray.get(result.extra)
                return latencies
            require_device(result.attempt)
            if not result.attempt.is_transient:
                break
        raise MeasurementError(result.attempt.error)

    def release_workers(self) -> None:
        """Gives the workers' cores to something else; the next `run` starts workers anew."""
        self._workers.close()

    def close(self) -> None:
        """Ends the actors, and Ray where this pool started it; may be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        if ray.is_initialized():
            self._workers.close()
            self._device.close()
        self._leave()

    def _score(self, jobs: Sequence[Job]) -> Iterator[Scored[Any]]:
        by_id = {job.id: job for job in jobs}
        for result in self._workers.run([Task(job.id, (job,)) for job in jobs]):
            yield Scored(by_id[result.job_id], result.attempt, result.extra)

    def _measure(self, built: Sequence[Scored[Any]]) -> Iterator[tuple[Job, Attempt]]:
        by_id = {scored.job.id: scored.job for scored in built}
        tasks = [Task(s.job.id, (s.job, s.artifact, s.attempt.measurement)) for s in built]
        for result in self._device.run(tasks):
            yield by_id[result.job_id], result.attempt

    def _score_rest(self, measured: Sequence[Scored[Any]]) -> Iterator[tuple[Job, Attempt]]:
        by_id = {scored.job.id: scored.job for scored in measured}
        tasks = [Task(s.job.id, (s.job, s.artifact, s.attempt), method="score_rest") for s in measured]
        for result in self._workers.run(tasks):
            yield by_id[result.job_id], result.attempt

    def _leave(self) -> None:
        if self._owns_ray and ray.is_initialized():
            ray.shutdown()


def _connect(address: str, n_workers: int) -> None:
    if ":" in address:
        _probe(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        # logical cores: the workers and the device never compute at the same time, so one core is enough for all
        options |= {"num_cpus": n_workers, "resources": {DEVICE_RESOURCE: 1}, "include_dashboard": False}
    with environment_defaults(_RAY_ENVIRONMENT):
        try:
            ray.init(address=address, **options)
        except Exception as cause:  # Ray raises ConnectionError, RuntimeError, ValueError, TimeoutError and grpc's own
            raise SpecError(
                f"workers.address '{address}': Ray does not let this process in: {cause}; is the version of Ray the "
                "same there, and does this process have the cluster's token if it asks for one (Ray's token "
                "authentication)?"
            ) from cause


def _probe(address: str) -> None:
    """Asks whether anything listens there: Ray itself would take minutes to give up, and print meanwhile."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S).close()
    except (OSError, OverflowError) as cause:
        raise SpecError(f"workers.address '{address}': nothing answers there: {cause}; is Ray running?") from cause


def _require_device(address: str) -> None:
    if ray.cluster_resources().get(DEVICE_RESOURCE, 0) >= 1:
        return
    raise SpecError(
        f"no node of the Ray cluster at '{address}' may measure: none offers the resource {DEVICE_RESOURCE}; on the "
        f"machine whose latency counts, run: ray start --address=HOST:PORT --resources='{{\"{DEVICE_RESOURCE}\": 1}}'"
    )


def _worker_role(stored: Any, n_workers: int, grace_s: float) -> Role:
    actors = ray.remote(concurrency_groups={HEALTH_GROUP: 1})(WorkerActor)
    return Role(
        noun="worker",
        n_seats=n_workers,
        start=lambda: actors.options(num_cpus=1, scheduling_strategy="SPREAD").remote(stored),
        is_placeable=lambda: ray.cluster_resources().get("CPU", 0) >= 1,
        grace_s=grace_s,
    )


def _device_role(stored: Any, grace_s: float) -> Role:
    actors = ray.remote(concurrency_groups={HEALTH_GROUP: 1})(DeviceActor)
    return Role(
        noun="device",
        n_seats=1,
        # no cores of its own: the workers are idle while it measures
        start=lambda: actors.options(num_cpus=0, resources={DEVICE_RESOURCE: 1}).remote(stored),
        is_placeable=lambda: ray.cluster_resources().get(DEVICE_RESOURCE, 0) >= 1,
        grace_s=grace_s,
    )
