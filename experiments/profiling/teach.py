"""Small random networks, measured kernel by kernel: what a device does with shapes that no profiled model has."""

import logging
from collections.abc import Callable, Iterator

import numpy as np

from ...compressors.pipeline import Pipeline
from ...compressors.prepared import PreparedModel, prepare_model
from ...compressors.source import ModelSource
from ...core.errors import MeasurementError, ModelError, PolicyError
from ...evaluators.device import KernelDevice
from ...evaluators.kernel_timing import SteadyTimer
from ...hw_profiles.kernels.kernel import KernelTiming
from ...spaces.policy import GraphTreatment
from ...spaces.treatment import QUANTIZE_OPTIONS, Treatment
from .calibration_nets import synthetic_networks

_log = logging.getLogger(__name__)

#: runs in which each network's kernels are timed
_RUNS = 12
#: options that change which kernels run, and their share of layers is drawn per network
_OPTIONS = ("int8", "int8_dynamic")
_N_POLICIES = 3


def time_random_networks(
    device: KernelDevice, n_networks: int, *, seed: int, report: Callable[[int, int], None]
) -> Iterator[tuple[str, tuple[KernelTiming, ...]]]:
    """Yields (name, timings of all kernels), one per network and policy: float32, and mixtures.

    Args:
        device: where.
        n_networks: how many networks.
        seed: the same seed gives the same networks and policies.
        report: told after every network: (done, of how many).
    """
    rng = np.random.default_rng(seed)
    for position, source in enumerate(synthetic_networks(rng, n_networks)):
        try:
            yield from _time_network(device, f"random network {seed}.{position}", source, rng)
        except (ModelError, PolicyError, MeasurementError) as error:
            _log.info("a random network was left out: %s", error)
        report(position + 1, n_networks)


def _time_network(
    device: KernelDevice, name: str, source: ModelSource, rng: np.random.Generator
) -> Iterator[tuple[str, tuple[KernelTiming, ...]]]:
    batch = source.sample
    prepared = prepare_model(source, batch)
    pipeline = Pipeline(prepared, device.capabilities)
    original = device.load(pipeline.build({}, GraphTreatment()))
    timer = SteadyTimer(device, original, batch)
    for number in range(_N_POLICIES):
        treatments = {} if number == 0 else _draw(prepared, device, rng)
        precision = device.capabilities.precisions[number % min(2, len(device.capabilities.precisions))]
        artifact = pipeline.build(treatments, GraphTreatment(precision=precision))
        yield f"{name}.{number}", timer.time_kernels(artifact, runs=_RUNS)


def _draw(prepared: PreparedModel, device: KernelDevice, rng: np.random.Generator) -> dict[str, Treatment]:
    share = rng.random()
    found = {}
    for layer in prepared.layers:
        offered = [option for option in _OPTIONS if device.capabilities.why_not(option, layer.kind) is None]
        if offered and rng.random() < share:
            found[layer.name] = QUANTIZE_OPTIONS[str(rng.choice(offered))]
    return found
