"""A runtime on another machine, reached through its agent."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict

import numpy as np

from ...compressors.artifact import Artifact
from ...core.errors import MeasurementError, SpecError
from ...hw_profiles.profile import HardwareProfile
from ...hw_profiles.target import Target
from ..device import Executable
from ..latency import TimingSettings
from ..yardstick import Yardstick
from .believing import check_outputs, check_times, read_outputs
from .connection import AgentConnection, AgentRefusalError, Answer, Question
from .dispatch import Dispatch, distrust, explain, open_lease
from .identity import Description
from .wire import MAX_BATCHES, PROTOCOL, ArtifactName, Health, Order, Part, Settings, WireError, read_part

#: batches are sent together until they have so many bytes
_TOGETHER_BYTES = 4 * 2**20
#: how long to wait for whoever measures, in seconds
_LEASE_TIMEOUT_S = 600.0


class RemoteDevice:
    """The runtime that an agent offers; ``target.device`` of a spec is the agent's URL.

    The token is read from the environment of whichever process, see `connection`; it is never part of a spec.
    """

    def __init__(self, target: Target) -> None:
        """Asks the agent what it is.

        Raises:
            SpecError: the URL is none, the token is missing or refused, or the agent is of another version.
            DeviceLostError: nothing answers there.
        """
        self.address = target
        self.connection = AgentConnection(target.device)
        try:
            description = self._describe(target)
        except AgentRefusalError as error:
            raise SpecError(str(error)) from error
        self._profile = description.to_profile()
        self.target = self._profile.target
        self.capabilities = description.to_capabilities()

    def identify(self) -> HardwareProfile:
        """Returns what the agent said of its machine when it was first asked."""
        return self._profile

    def load(self, artifact: Artifact) -> "RemoteExecutable":
        """Sends an artifact, where it is not there yet, and has it loaded.

        Raises:
            MeasurementError: the runtime over there refuses the model.
            DeviceLostError: the agent cannot be reached.
        """
        executable = RemoteExecutable(self, artifact)
        executable.run_together([])
        return executable

    def measure_peak_memory(self, artifact: Artifact, inputs: Mapping[str, np.ndarray]) -> int:
        """Measures over there; see `DeviceElsewhere`.

        Raises:
            MeasurementError: it failed, or the number is not possible.
            DeviceLostError: the agent cannot be reached.
        """
        name = name_artifact(artifact)
        order = self.order("peak_memory", [name], inputs)
        dispatch = Dispatch(self.connection, order, list(inputs.values()), {name.sha256: artifact.model})
        with open_lease(self.connection, _LEASE_TIMEOUT_S) as lease:
            found = dispatch.carry_out(lease)
        n_bytes = int(found[0]) if len(found) == 1 and found[0].shape == () and found[0].dtype == np.int64 else 0
        if not 0 < n_bytes <= self._profile.memory_bytes:
            cause = MeasurementError(f"peak memory must lie within the machine's own, got {n_bytes} bytes")
            raise distrust(self.connection, cause)
        return n_bytes

    def order(
        self,
        kind: str,
        artifacts: Sequence[ArtifactName | None],
        inputs: Iterable[str],
        *,
        n_batches: int = 1,
        settings: TimingSettings | None = None,
    ) -> Order:
        """Returns an order for this device's threads and batch size.

        Raises:
            MeasurementError: agents do not take such orders.
        """
        try:
            return Order.model_validate({
                "kind": kind,
                "artifacts": tuple(artifacts),
                "threads": self.address.threads,
                "batch_size": self.address.batch_size,
                "inputs": tuple(inputs),
                "n_batches": n_batches,
                "settings": settings and Settings(**asdict(settings)),
            })  # fmt: skip
        except ValueError as error:
            raise MeasurementError(f"no agent takes such an order: {error}") from error

    def _describe(self, target: Target) -> Description:
        url = self.connection.url
        health = self._believe(Health, self.connection.ask(Question("GET", "/v1/health")))
        if health.protocol != PROTOCOL:
            raise SpecError(
                f"the agent at {url} speaks version {health.protocol}, this Trimtab version {PROTOCOL}; install the "
                f"same Trimtab on both machines"
            )
        query = f"threads={target.threads}&batch_size={target.batch_size}"
        description = self._believe(Description, self.connection.ask(Question("GET", f"/v1/capabilities?{query}")))
        if not description.is_for(target):
            raise SpecError(f"the agent at {url} describes another device than the one that was asked for")
        return description

    def _believe(self, kind: type[Part], answer: Answer) -> Part:
        url = self.connection.url
        if answer.status != 200:
            raise SpecError(f"the agent at {url} does not offer what the target asks for: {explain(answer)}")
        try:
            return read_part(kind, answer.body)
        except WireError as error:
            raise SpecError(f"what answers at {url} is no agent of this version: {error}") from error


class RemoteExecutable:
    """An artifact that is loaded over there; see `BatchedExecutable` and `TimedElsewhere`."""

    def __init__(self, device: RemoteDevice, artifact: Artifact) -> None:
        """Reads what the model declares.

        Raises:
            MeasurementError: the artifact is no ONNX model.
        """
        self.device, self.name = device, name_artifact(artifact)
        self.models = {self.name.sha256: artifact.model}
        self._declared = read_outputs(artifact.model)

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Runs one batch; see `Executable.run`.

        Raises:
            MeasurementError: the runtime fails, or the outputs are not those that the model declares.
            DeviceLostError: the agent cannot be reached.
        """
        return self.run_together([inputs])[0]

    def run_batches(self, batches: Iterable[Mapping[str, np.ndarray]]) -> Iterator[list[np.ndarray]]:
        """Runs batches, several in one request; see `BatchedExecutable`.

        Raises:
            MeasurementError: (or DeviceLostError) as in `run`.
        """
        waiting: list[Mapping[str, np.ndarray]] = []
        n_bytes = 0
        for batch in batches:
            waiting.append(batch)
            n_bytes += sum(array.nbytes for array in batch.values())
            if n_bytes >= _TOGETHER_BYTES or len(waiting) == MAX_BATCHES:
                yield from self.run_together(waiting)
                waiting, n_bytes = [], 0
        if waiting:
            yield from self.run_together(waiting)

    def run_together(self, batches: Sequence[Mapping[str, np.ndarray]]) -> list[list[np.ndarray]]:
        """Runs batches in one request; none: the artifact is only loaded.

        Raises:
            MeasurementError: (or DeviceLostError) as in `run`.
        """
        names = tuple(batches[0]) if batches else ()
        connection = self.device.connection
        order = self.device.order("run", [self.name], names, n_batches=len(batches))
        arrays = [batch[name] for batch in batches for name in names]
        found = Dispatch(connection, order, arrays, self.models).carry_out()
        n_outputs = len(self._declared)
        outputs = [found[start : start + n_outputs] for start in range(0, len(found), n_outputs)]
        try:
            if len(outputs) != len(batches):
                raise MeasurementError(f"{n_outputs} outputs of {len(batches)} batches were to come, got {len(found)}")
            for one in outputs:
                check_outputs(self._declared, one)
        except MeasurementError as error:
            raise distrust(connection, error) from error
        return outputs

    def time_with(
        self, others: Sequence[Executable], inputs: Mapping[str, np.ndarray], settings: TimingSettings
    ) -> np.ndarray:
        """Times this and others in turns over there; see `TimedElsewhere`.

        Raises:
            MeasurementError: it failed, or the times are not possible.
            DeviceLostError: the agent cannot be reached.
        """
        connection = self.device.connection
        peers = [self, *(self._require_peer(other) for other in others)]
        names = [None if peer is None else peer.name for peer in peers]
        models = {sha256: model for peer in peers if peer is not None for sha256, model in peer.models.items()}
        order = self.device.order("time", names, inputs, settings=settings)
        dispatch = Dispatch(connection, order, list(inputs.values()), models)
        with open_lease(connection, settings.lock_timeout_s) as lease:
            started_s = time.perf_counter()
            found = dispatch.carry_out(lease)
            elapsed_s = time.perf_counter() - started_s
        try:
            if len(found) != 1:
                raise MeasurementError(f"one array of times was to come, got {len(found)}")
            return check_times(found[0], len(peers), settings, elapsed_s=elapsed_s)
        except MeasurementError as error:
            raise distrust(connection, error) from error

    def _require_peer(self, other: Executable) -> "RemoteExecutable | None":
        """Returns another executable of the same device; None for the yardstick, which every agent has."""
        if isinstance(other, Yardstick):
            return None
        if not isinstance(other, RemoteExecutable) or other.device is not self.device:
            raise MeasurementError("only executables of one agent can be timed in turns there")
        return other


def name_artifact(artifact: Artifact) -> ArtifactName:
    """Returns how an artifact is called over there.

    Raises:
        MeasurementError: agents do not take such artifacts.
    """
    try:
        return ArtifactName(
            sha256=artifact.sha256,
            precision=artifact.precision,
            dynamic_activations=artifact.dynamic_activations,
            full_precision=artifact.full_precision,
        )
    except ValueError as error:
        raise MeasurementError(f"no agent takes such an artifact: {error}") from error
