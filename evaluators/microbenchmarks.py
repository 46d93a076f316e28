"""What a device can do, measured through its runtime: bandwidth, peak rates, and which options pay."""

import datetime
import itertools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from ..compressors.artifact import Artifact
from ..compressors.pipeline import Pipeline
from ..core.errors import MeasurementError, PolicyError
from ..hw_profiles.device_profile import Bandwidth, ContextFigure, DeviceProfile, PeakRate, Verdict
from ..hw_profiles.latency import Latency
from ..hw_profiles.profile import HardwareProfile
from ..hw_profiles.target import OPTION_KINDS, Capabilities, Target
from ..spaces.policy import GraphTreatment
from ..spaces.treatment import QUANTIZE_OPTIONS, Treatment
from .device import Device, Executable, build_device
from .latency import Clock, TimingSettings, measure_together
from .quietness import Quietness, require_quiet, run_null_test
from .sandwiches import CASES, Case, Sandwich, build_copy, build_layer, build_sandwich

_log = logging.getLogger(__name__)

Key = TypeVar("Key")

#: Noise costs accuracy here, not trust: every ratio carries its error, and an option pays only beyond it.
_BLOCK = TimingSettings(
    warm_up_runs=3, min_runs=8, max_runs=100, min_time_s=0.1, max_time_s=3.0,
    max_spread=3.0, max_uncertainty=3.0, max_drift=1.0,
)  # fmt: skip

#: bytes in and out of the largest copy, beyond the last-level cache of most processors
_LARGEST_COPY = 512 * 2**20

#: The options that are to be faster than none; ``float32`` is for the sake of the outputs.
_JUDGED = tuple(option for option in OPTION_KINDS if option != "float32")

#: large layers for peak rates
_LARGE = {"matmul": Case("linear", (2048, 2048), (1024,)), "conv": Case("conv", (256, 256, 3, 3), (28, 28))}

#: without these two, what pruning to any number of channels saves could only be guessed
_ODD = ((Case("conv", (61, 61, 3, 3), (28, 28)), Case("conv", (64, 64, 3, 3), (28, 28))),
        (Case("conv", (61, 61, 1, 1), (28, 28)), Case("conv", (64, 64, 1, 1), (28, 28))))  # fmt: skip
_SPARSE = (Case("linear", (768, 768), (128,), "2:4"), Case("linear", (768, 768), (128,)))


@dataclass(frozen=True)
class MicroSettings:
    """How much is measured, and with which clock."""

    #: the layers that are judged
    cases: tuple[Case, ...] = CASES
    #: how often each rotation is timed, each time in another order; least and largest ratio make the interval, with
    #: 97 % confidence for six
    n_blocks: int = 6
    timing: TimingSettings = _BLOCK
    quietness: Quietness = field(default_factory=Quietness)
    largest_copy_bytes: int = _LARGEST_COPY
    #: nanoseconds; ``time.process_time_ns`` leaves out what other processes take, and holds with one thread only
    clock: Clock = time.perf_counter_ns


@dataclass(frozen=True, slots=True)
class _Context:
    """What stands around a layer."""

    #: quantize option of the neighbours
    neighbours: str
    precision: str

    @property
    def label(self) -> str:
        kind = "float" if self.neighbours == "none" else self.neighbours
        return kind if self.precision == "float32" else f"{kind}, {self.precision}"


def measure_device(target: Target, settings: MicroSettings | None = None) -> DeviceProfile:
    """Measures the device of a target; takes less than a minute.

    Args:
        target: runtime, device, threads and batch size; the profile holds for these alone.
        settings: how much to measure.

    Raises:
        SpecError: the runtime is unknown or not installed.
        MeasurementError: the machine is too unquiet; the message has the figures.
    """
    settings = settings or MicroSettings()
    device = build_device(target)
    identity = device.identify()
    widening = _check_quiet(device, settings)
    bench = _Bench(device, settings, widening)
    return DeviceProfile(
        identity=identity,
        bandwidths=tuple(bench.measure_bandwidth(size, identity) for size in _copy_sizes(identity, settings)),
        peak_rates=tuple(bench.measure_peaks()),
        verdicts=tuple(bench.judge()),
        null_deviation=widening,
        measured_on=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def _check_quiet(device: Device, settings: MicroSettings) -> float:
    sandwich = build_sandwich(Case("conv", (64, 64, 3, 3), (56, 56)), device.target.batch_size)
    original = sandwich.pipeline(device.capabilities).build({}, GraphTreatment())
    test = run_null_test(device, original, sandwich.inputs, settings.timing, clock=settings.clock)
    _log.info(
        "the same model twice: %+.1f %% (%+.1f to %+.1f)", *(100 * x for x in (test.deviation, test.low, test.high))
    )
    return require_quiet(test, settings.quietness)


def _copy_sizes(identity: HardwareProfile, settings: MicroSettings) -> list[int]:
    """Bytes in and out: half of each cache but the first, 64 MiB, and the largest, ascending."""
    sizes = {size // 2 for _, size in identity.caches_bytes[1:] if size // 2 < settings.largest_copy_bytes / 4}
    sizes |= {min(64 * 2**20, settings.largest_copy_bytes), settings.largest_copy_bytes}
    return sorted(sizes)


def _level(size_bytes: int, identity: HardwareProfile) -> str:
    return next((name for name, capacity in identity.caches_bytes if size_bytes <= capacity), "memory")


class _Bench:
    """One device being measured."""

    def __init__(self, device: Device, settings: MicroSettings, widening: float) -> None:
        self._device = device
        self._settings = settings
        #: relative error that the unquiet machine adds to every ratio
        self._widening = widening

    # -- bandwidth and peak rates -----------------------------------------------------------------

    def measure_bandwidth(self, size_bytes: int, identity: HardwareProfile) -> Bandwidth:
        """Times one elementwise operator that reads half of the bytes and writes the other half."""
        n_floats = size_bytes // 8 // 1024 * 1024
        x = np.zeros((1, n_floats // 1024, 1024), np.float32)
        device = self._device
        if device.target.batch_size != 1:  # the batch is the size here
            device = build_device(replace(device.target, batch_size=1))
        executable = device.load(Artifact(build_copy(n_floats)))
        timing = replace(self._settings.timing, warm_up_runs=3, min_runs=5)
        latency = measure_together([executable], {"x": x}, timing, clock=self._settings.clock)[0]
        moved_bytes = 2 * x.nbytes
        rate = moved_bytes / latency.median_s
        return Bandwidth(_level(moved_bytes, identity), moved_bytes, rate, rate * latency.iqr_s / latency.median_s)

    def measure_peaks(self) -> Iterator[PeakRate]:
        """Times the large layers in every precision and integer option of the device."""
        timing = replace(self._settings.timing, warm_up_runs=3, min_runs=5)
        for operation, case in _LARGE.items():
            layer = build_layer(case, self._device.target.batch_size)
            loaded = dict(self._load_dtypes(layer, case))
            latencies = measure_together(list(loaded.values()), layer.inputs, timing, clock=self._settings.clock)
            work = 2.0 * layer.prepared.layers[0].macs * self._device.target.batch_size
            for dtype, latency in zip(loaded, latencies, strict=True):
                rate = work / latency.median_s
                yield PeakRate(operation, dtype, rate, rate * latency.iqr_s / latency.median_s)

    def _load_dtypes(self, layer: Sandwich, case: Case) -> Iterator[tuple[str, Executable]]:
        pipeline, capabilities = layer.pipeline(self._device.capabilities), self._device.capabilities
        name = layer.prepared.layers[0].name
        for precision in capabilities.precisions:
            yield precision, self._device.load(pipeline.build({}, GraphTreatment(precision=precision)))
        for option in ("int8", "int8_dynamic"):
            if capabilities.why_not(option, case.kind) is None:
                yield option, self._device.load(pipeline.build({name: QUANTIZE_OPTIONS[option]}, GraphTreatment()))

    # -- verdicts ---------------------------------------------------------------------------------

    def judge(self) -> list[Verdict]:
        """Returns the verdicts on all cases, those on sparsity and on odd channels at the end."""
        figures: dict[tuple[str, str, str], list[ContextFigure]] = {}
        for case in self._settings.cases:
            for option, found in self._judge_case(case).items():
                figures.setdefault((case.kind, case.variant, option), []).extend(found)
        for case, twin in _ODD:
            figures[case.kind, case.variant, "odd channels"] = self._compare(case, twin)
        figures[_SPARSE[0].kind, _SPARSE[0].variant, "sparsity 2:4"] = self._compare(*_SPARSE)
        return [Verdict(*key, tuple(found)) for key, found in figures.items()]

    def _judge_case(self, case: Case) -> dict[str, list[ContextFigure]]:
        """Times every option of a layer in every context, in one rotation; option → figures."""
        sandwich = build_sandwich(case, self._device.target.batch_size)
        pipeline = sandwich.pipeline(self._device.capabilities)
        options = [option for option in _JUDGED if self._device.capabilities.why_not(option, case.kind) is None]
        loaded: dict[tuple[_Context, str], Executable] = {}
        for context, option in itertools.product(_contexts(self._device.capabilities), options):
            try:
                artifact = _build(pipeline, sandwich, context, QUANTIZE_OPTIONS[option])
                loaded[context, option] = self._device.load(artifact)
            except (PolicyError, MeasurementError) as error:
                _log.warning("no verdict on %s for %s: %s", option, case.label, error)
        pairs = [((context, "none"), (context, option)) for context, option in loaded if option != "none"]
        blocks = self._time(loaded, sandwich)
        verdicts: dict[str, list[ContextFigure]] = {}
        for base, treated in pairs:
            figure = self._figure(treated[0], case, [(block[base], block[treated]) for block in blocks])
            verdicts.setdefault(treated[1], []).append(figure)
        return verdicts

    def _compare(self, case: Case, base: Case) -> list[ContextFigure]:
        """Times a layer against another one between equal neighbours, both in float and both in int8."""
        sandwiches = {one: build_sandwich(one, self._device.target.batch_size) for one in (base, case)}
        contexts = [context for context in _contexts(self._device.capabilities) if context.precision == "float32"]
        loaded = {}
        for one, sandwich in sandwiches.items():
            pipeline = sandwich.pipeline(self._device.capabilities)
            for context in contexts:
                artifact = _build(pipeline, sandwich, context, QUANTIZE_OPTIONS[context.neighbours])
                loaded[context, one] = self._device.load(artifact)
        blocks = self._time(loaded, sandwiches[base])
        return [
            self._figure(context, case, [(block[context, base], block[context, case]) for block in blocks])
            for context in contexts
        ]

    def _time(self, loaded: dict[Key, Executable], sandwich: Sandwich) -> list[dict[Key, Latency]]:
        """Times all in turns, in blocks of different order: equal kernels differ by up to 20 % by who ran before."""
        rng, names = np.random.default_rng(0), list(loaded)
        blocks = []
        for _ in range(self._settings.n_blocks):
            order = [names[position] for position in rng.permutation(len(names))]
            latencies = measure_together(
                [loaded[name] for name in order], sandwich.inputs, self._settings.timing, clock=self._settings.clock
            )
            blocks.append(dict(zip(order, latencies, strict=True)))
        return blocks

    def _figure(self, context: _Context, case: Case, pairs: Sequence[tuple[Latency, Latency]]) -> ContextFigure:
        """Sums up the blocks of (without, with): the median ratio, and half of what the blocks span as its error."""
        ratios = np.array([treated.median_s / base.median_s for base, treated in pairs])
        ratio, error = float(np.median(ratios)), float(np.ptp(ratios)) / 2
        none_s = float(np.median([base.median_s for base, _ in pairs]))
        widened = math.hypot(error, ratio * self._widening)
        return ContextFigure(context.label, case.label, *(float(f"{x:.4g}") for x in (ratio, widened, none_s)))


def _contexts(capabilities: Capabilities) -> list[_Context]:
    """Float and int8 neighbours; where the runtime picks another precision when nobody asks, int8 ones in that, too."""
    full, default = capabilities.precisions[0], capabilities.default_precision
    return [_Context("none", full), _Context("int8", full), *([_Context("int8", default)] if default != full else [])]


def _build(pipeline: Pipeline, sandwich: Sandwich, context: _Context, middle: Treatment) -> Artifact:
    treatments = dict.fromkeys(sandwich.neighbours, QUANTIZE_OPTIONS[context.neighbours])
    return pipeline.build({**treatments, "middle": middle}, GraphTreatment(precision=context.precision))
