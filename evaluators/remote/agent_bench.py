"""The agent's runtime: artifacts by their digest, loaded ones kept for a while, one piece of work at a time."""

import hashlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from ...compressors.artifact import Artifact
from ...core.errors import MeasurementError, SpecError, TrimtabError
from ...hw_profiles.target import Target
from ..device import Device, DeviceElsewhere, Executable, build_device
from ..latency import SelfTiming, pin_cores, time_together
from ..memory import measure_peak_memory
from ..testing import example_artifact
from ..yardstick import Yardstick
from .wire import MAX_ARTIFACT_BYTES, ArtifactName, Order

_log = logging.getLogger(__name__)

#: models that stay loaded; the original is used by every order, so it stays longest
_MAX_LOADED = 8
_MAX_DEVICES = 8

Kept = TypeVar("Kept")


class UnknownArtifactError(TrimtabError):
    """An order names an artifact that is not here (any more): it has to be sent again."""


class RecentlyUsed(Generic[Kept]):
    """A mapping that forgets what was used longest ago.

    >>> kept = RecentlyUsed(2)
    >>> for name in "abc": kept.put(name, name.upper())
    >>> kept.get("a"), kept.get("c")
    (None, 'C')
    """

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self._kept: OrderedDict[Any, tuple[Kept, float]] = OrderedDict()

    def get(self, key: Any) -> Kept | None:
        """Returns what was put under a key; None when it is not there (any more)."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: Any, value: Kept, weight: float = 1.0) -> None:
        """Keeps a value; the oldest go until all weights fit the capacity, the new one stays in any case."""
        self._kept[key] = (value, weight)
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and sum(one for _, one in self._kept.values()) > self.capacity:
            self._kept.popitem(last=False)


class AgentBench:
    """Loads, runs and times what orders name; call `add` and `execute` from one thread."""

    def __init__(self, runtime: str, place: str, *, cache_bytes: int = MAX_ARTIFACT_BYTES) -> None:
        """Makes sure that the runtime works here.

        Args:
            runtime: what is offered, as a spec names it.
            place: the device of a target, such as ``cpu``.
            cache_bytes: artifacts that are kept take so many bytes at most.

        Raises:
            SpecError: the runtime is not here, does not work, or is nothing that can be timed.
        """
        self._runtime, self._place = runtime, place
        self._models: RecentlyUsed[bytes] = RecentlyUsed(cache_bytes)
        self._devices: RecentlyUsed[Device] = RecentlyUsed(_MAX_DEVICES)
        self._loaded: RecentlyUsed[Executable] = RecentlyUsed(_MAX_LOADED)
        self._cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        self._lock = threading.Lock()
        device = self.device(1, 1)
        try:
            executable = device.load(example_artifact())
        except MeasurementError as error:
            raise SpecError(f"the runtime {runtime} does not work here: {error}") from error
        if isinstance(device, DeviceElsewhere) or isinstance(executable, SelfTiming):
            raise SpecError(f"an agent offers a runtime of its own machine that can be timed; {runtime} is none")

    def device(self, threads: int, batch_size: int) -> Device:
        """Returns the device with these settings.

        Raises:
            SpecError: it cannot be had.
        """
        target = Target(self._runtime, self._place, threads, batch_size)
        with self._lock:
            device = self._devices.get(target)
            if device is None:
                device = build_device(target)
                self._devices.put(target, device)
            return device

    def knows(self, sha256: str) -> bool:
        """Whether an artifact is here."""
        return self._models.get(sha256) is not None

    def add(self, sha256: str, model: bytes) -> None:
        """Keeps an artifact.

        Raises:
            MeasurementError: it is another one, no ONNX model, or one that reads other files.
        """
        if hashlib.sha256(model).hexdigest() != sha256:
            raise MeasurementError(f"the model's sha256 is not {sha256}; send it again")
        check_self_contained(model)
        self._models.put(sha256, model, len(model))

    def execute(self, order: Order, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Carries out an order; returns the arrays of its answer.

        ``run`` gives every output of every batch; ``time`` (rounds, artifacts) float64 seconds; ``peak_memory`` one
        int64 number of bytes.

        Raises:
            UnknownArtifactError: an artifact is not here.
            MeasurementError: the runtime refuses a model or fails.
            SpecError: the order asks for what does not go together.
        """
        batches = _split_batches(order, arrays)
        if self._cores:
            os.sched_setaffinity(0, self._cores)
        pin_cores(order.threads)
        if order.kind == "time":
            return [self._time(order, batches[0])]
        if order.kind == "peak_memory":
            artifact = self._artifact(order.artifacts[0])
            target = self.device(order.threads, order.batch_size).target
            return [np.array(measure_peak_memory(target, artifact, batches[0]), dtype=np.int64)]
        executable = self._load(order, order.artifacts[0])
        return [array for batch in batches for array in executable.run(batch)]

    def _time(self, order: Order, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        if order.settings is None:
            raise SpecError("an order to time needs its settings")
        executables: list[Executable] = [
            Yardstick() if name is None else self._load(order, name) for name in order.artifacts
        ]
        return time_together(executables, batch, order.settings.to_settings())

    def _artifact(self, name: ArtifactName | None) -> Artifact:
        if name is None:
            raise SpecError("the yardstick can only be timed")
        model = self._models.get(name.sha256)
        if model is None:
            raise UnknownArtifactError(name.sha256)
        return Artifact(model, name.precision, name.dynamic_activations, name.full_precision)

    def _load(self, order: Order, name: ArtifactName | None) -> Executable:
        key = (name, order.threads, order.batch_size)
        executable = self._loaded.get(key)
        if executable is None:
            executable = self.device(order.threads, order.batch_size).load(self._artifact(name))
            self._loaded.put(key, executable)
        return executable


def check_self_contained(model: bytes) -> None:
    """Makes sure that loading a model reads no file beside it.

    Raises:
        MeasurementError: it is no ONNX model, or it names other files.
    """
    try:
        proto = onnx.load_model_from_string(model)
    except DecodeError as error:
        raise MeasurementError(f"the bytes are no ONNX model: {error}") from error
    if not proto.graph.node:
        raise MeasurementError("the bytes are no ONNX model: there is no operator in it")
    waiting: list[Any] = [proto]
    while waiting:
        message = waiting.pop()
        if isinstance(message, onnx.TensorProto) and (
            message.data_location == onnx.TensorProto.EXTERNAL or message.external_data
        ):
            raise MeasurementError("a model must hold all its weights; this one names other files (external data)")
        if isinstance(message, onnx.NodeProto) and message.op_type == "EPContext":
            raise MeasurementError("a model must not hold what was compiled for a device (EPContext)")
        waiting += _parts_of(message)


def _parts_of(message: Any) -> list[Any]:
    """Returns the messages inside a message of protobuf."""
    found = []
    for field, value in message.ListFields():
        if field.message_type is not None:
            found += [value] if hasattr(value, "ListFields") else list(value)
    return found


def _split_batches(order: Order, arrays: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Returns the batches: input name → array.

    Raises:
        SpecError: the numbers of inputs, batches and arrays do not fit.
    """
    n_batches = order.n_batches if order.kind == "run" else 1
    n_inputs = len(order.inputs)
    if len(arrays) != n_batches * n_inputs or (n_batches and not n_inputs) or len(set(order.inputs)) != n_inputs:
        raise SpecError(
            f"{n_batches} batches of {n_inputs} different inputs need as many arrays, got {len(arrays)} arrays"
        )
    return [
        dict(zip(order.inputs, arrays[start : start + n_inputs], strict=True))
        for start in range(0, len(arrays), n_inputs or 1)
    ]
