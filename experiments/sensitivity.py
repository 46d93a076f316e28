"""How much each option of a space does to the model's output, before any trial."""

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from ..compressors.artifact import Artifact
from ..compressors.pipeline import Pipeline
from ..compressors.prepared import PreparedModel
from ..compressors.sensitivity.gradient import GradientMeter, OpenGradients
from ..compressors.sensitivity.output_error import relative_error
from ..compressors.sensitivity.segment_writer import SegmentWriter
from ..core.errors import MeasurementError, PolicyError, SpecError
from ..core.files import canonical_json
from ..core.names import describe_unknown
from ..evaluators.accuracy import run_split
from ..evaluators.dataset import Dataset, Split
from ..evaluators.device import Device
from ..spaces.policy import GraphTreatment, Policy
from ..spaces.rules import Dropped
from ..spaces.space import Space
from ..spaces.treatment import Treatment
from .preparation import digest_arrays
from .sensitivity_store import Outcome, SensitivityStore

_log = logging.getLogger(__name__)

METHODS = ("auto", "gradient", "divergence")

#: raised by hand when what a score says changes
_VERSION = 2
#: Samples are as many as take this many multiply-accumulates together, within bounds. Eight mails of MiniLM (1.4 · 10⁹
#: each) are scored within ten seconds by one core; a score of one layer differs by a tenth or two between eight and
#: thirty-two digits.
_N_MACS = 8e9
_N_SAMPLES = (8, 32)

#: position of a group in the space, and of one of its options
Pair = tuple[int, int]


class Subject(Protocol):
    """A model with its data, device and space: all that sensitivities depend on. A `Preparation` is one."""

    @property
    def space(self) -> Space:
        """The options that are measured."""
        ...

    @property
    def device(self) -> Device:
        """What runs the model, and says how activations become integers."""
        ...

    @property
    def dataset(self) -> Dataset:
        """Its calibration split is run."""
        ...

    @property
    def model(self) -> PreparedModel:
        """The model."""
        ...

    @property
    def pipeline(self) -> Pipeline:
        """Builds options of the space."""
        ...

    def build(self, policy: Policy) -> Artifact:
        """Builds the artifact of a policy of the space."""
        ...


@dataclass(frozen=True)
class Sensitivity:
    """The influence of every option on the output: E|Δz|² / E|z|² of the option alone, on calibration data.

    >>> from ..spaces.space import GraphOptions
    >>> space = Space((Group("fc", ("fc",)),), ((Treatment(), Treatment(weight_dtype="int8")),), GraphOptions())
    >>> Sensitivity(space, (np.array([0.0, 1e-5]),), (("", "gradient"),), (), 0.1, 1, 8).method
    'gradient'
    """

    #: without the options that are dropped
    space: Space
    #: per group of ``space``, (n_options,) float64 ≥ 0; 0 for the untouched layer
    scores: tuple[np.ndarray, ...]
    #: per group and option, ``gradient`` or ``divergence``; empty for the untouched layer
    methods: tuple[tuple[str, ...], ...]
    #: options that cannot be had, or whose influence is not finite
    dropped: tuple[Dropped, ...]
    #: wall clock
    seconds: float
    #: options that were measured now; the others were known
    n_measured: int
    n_samples: int

    @property
    def method(self) -> str:
        """How the options were measured, in words."""
        used = {method for methods in self.methods for method in methods if method}
        return " and ".join(sorted(used, reverse=True)) or "nothing to measure"

    def to_json(self) -> dict[str, Any]:
        """Returns group → option → score, and what was dropped."""
        groups = zip(self.space.groups, self.space.options, self.scores, strict=True)
        return {
            "method": self.method,
            "n_samples": self.n_samples,
            "seconds": self.seconds,
            "influence": {
                group.name: {o.label: float(s) for o, s in zip(options, scores, strict=True)}
                for group, options, scores in groups
            },
            "dropped": [{"layer": d.layer, "option": d.option, "reason": d.reason} for d in self.dropped],
        }


def measure_sensitivity(preparation: Subject, *, method: str = "auto") -> Sensitivity:
    """Scores every option of every group of a prepared spec; what was scored before is taken from the cache.

    ``gradient`` costs a pass forward and a few backward, and each option what its own layer costs; options of
    structures, and single options that have no finite gradient, are measured by divergence all the same.
    ``divergence`` builds and runs a model for each option on the spec's device. ``auto`` is ``gradient`` where the
    graph can be differentiated.

    Raises:
        SpecError: the method is unknown, ``gradient`` is not to be had, or a group loses all of its options.
        ModelError: the original's outputs are 0 throughout, or not finite.
    """
    if method not in METHODS:
        raise SpecError(describe_unknown("method of sensitivity", method, METHODS))
    start_s = time.perf_counter()
    bench = _Bench(preparation)
    found: dict[Pair, tuple[float, str]] = {}
    wanted = [
        (g, o) for g, options in enumerate(preparation.space.options) for o, option in enumerate(options)
        if option != Treatment()
    ]  # fmt: skip
    if method != "divergence":
        of_layers = [pair for pair in wanted if preparation.space.groups[pair[0]].kind == "layers"]
        outcomes = _measure_gradients(bench, of_layers, must=method == "gradient")
        found.update({pair: (score, "gradient") for pair, score in outcomes.items() if not isinstance(score, str)})
    outcomes = bench.fetch("divergence", [pair for pair in wanted if pair not in found])
    found.update({pair: (score, "divergence") for pair, score in outcomes.items() if not isinstance(score, str)})
    reasons = {pair: str(outcome) for pair, outcome in outcomes.items() if isinstance(outcome, str)}
    sensitivity = _assemble(bench, found, reasons, time.perf_counter() - start_s)
    _log.info(
        "the influence of %d options by %s, %d of them measured now, %.1f s",
        len(found), sensitivity.method, sensitivity.n_measured, sensitivity.seconds,
    )  # fmt: skip
    return sensitivity


def _measure_gradients(bench: "_Bench", pairs: Sequence[Pair], *, must: bool) -> dict[Pair, Outcome]:
    try:
        return bench.fetch("gradient", pairs)
    except MeasurementError as error:
        if must:
            raise SpecError(f"sensitivity by gradient is not to be had: {error}; use divergence") from error
        _log.info("sensitivity is measured by divergence: %s", error)
        return {}


def _assemble(
    bench: "_Bench", found: Mapping[Pair, tuple[float, str]], reasons: Mapping[Pair, str], seconds: float
) -> Sensitivity:
    space = bench.preparation.space
    kept = [[o for o in range(len(options)) if (g, o) not in reasons] for g, options in enumerate(space.options)]
    dropped = [Dropped(space.groups[g].name, space.options[g][o].label, why) for (g, o), why in reasons.items()]
    for group, entries in zip(space.groups, kept, strict=True):
        if not entries:
            why = "; ".join(f"{d.option}: {d.reason}" for d in dropped if d.layer == group.name)
            raise SpecError(f"layer {group.name}: none of its options can be had ({why}); offer others, such as none")
    return Sensitivity(
        space=Space(
            space.groups,
            tuple(tuple(options[o] for o in entries) for options, entries in zip(space.options, kept, strict=True)),
            space.graph,
        ),
        scores=tuple(
            np.array([found.get((g, o), (0.0, ""))[0] for o in entries], np.float64) for g, entries in enumerate(kept)
        ),
        methods=tuple(tuple(found.get((g, o), (0.0, ""))[1] for o in entries) for g, entries in enumerate(kept)),
        dropped=tuple(dropped),
        seconds=seconds,
        n_measured=bench.n_measured,
        n_samples=len(bench.samples),
    )


@dataclass
class _Bench:
    """Measures options of a space, each on its own; keeps what was measured."""

    preparation: Subject
    n_measured: int = field(default=0, init=False)

    def fetch(self, method: str, pairs: Sequence[Pair]) -> dict[Pair, Outcome]:
        """Returns the outcome of each pair: from the cache, or measured now.

        Raises:
            MeasurementError: the graph cannot be differentiated.
            ModelError: the original's outputs are 0 throughout, or not finite.
        """
        if not pairs:
            return {}
        store = SensitivityStore(self._circumstances(method))
        known = store.read()
        outcomes = {pair: known[key] for pair in pairs if (key := self._key(pair)) in known}
        missing: dict[int, list[int]] = {}
        for g, o in pairs:
            if (g, o) not in outcomes:
                missing.setdefault(g, []).append(o)
        measure = self._by_gradient if method == "gradient" else self._by_divergence
        for g, measured in zip(missing, measure(missing), strict=True):
            found = {(g, o): _judge(outcome) for o, outcome in zip(missing[g], measured, strict=True)}
            self.n_measured += len(found)
            outcomes |= found
            # what a device refuses today it may run tomorrow
            kept = {p: o for p, o in found.items() if method == "gradient" or not isinstance(o, str)}
            store.add({self._key(pair): outcome for pair, outcome in kept.items()})
        return outcomes

    @cached_property
    def samples(self) -> Split:
        """The calibration samples that are run, evenly spread."""
        calibration = self.preparation.dataset.calibration
        macs = max(1, sum(layer.macs for layer in self.preparation.model.layers))
        least, most = _N_SAMPLES
        n_samples = min(len(calibration), int(np.clip(_N_MACS / macs, least, most)))
        return calibration.take(np.linspace(0, len(calibration) - 1, n_samples).round().astype(int))

    @cached_property
    def _graph(self) -> GraphTreatment:
        """The graph-wide choices in which options are measured: those that decide how one layer is rounded."""
        default = self.preparation.space.default_graph
        return GraphTreatment(calibration=default.calibration, rounding=default.rounding)

    def _circumstances(self, method: str) -> dict[str, Any]:
        """Returns what every score depends on, budget and precision aside."""
        preparation, scheme = self.preparation, self.preparation.device.capabilities
        ways: dict[str, list[Any]] = {
            "gradient": [scheme.activation_codes, scheme.quantize_conv_outputs],
            "divergence": [preparation.device.identify().id],
        }
        return {
            "data": digest_arrays(preparation.dataset.calibration.inputs.items()),
            "method": [method, *ways[method]],
            "model": self._model_digest,
            "n_samples": len(self.samples),
            "version": _VERSION,
        }

    @cached_property
    def _model_digest(self) -> str:
        model = self.preparation.model
        graph = hashlib.sha256(model.variants["none"]).hexdigest()[:16]
        return f"{graph} {digest_arrays(model.constants.items())}"

    def _key(self, pair: Pair) -> str:
        group, option = self.preparation.space.groups[pair[0]], self.preparation.space.options[pair[0]][pair[1]]
        ranges = [self._graph.calibration] if option.is_static else []
        rounding = [self._graph.rounding] if option.is_quantized else []
        return canonical_json([list(group.members), option.to_json(), *ranges, *rounding])

    def _by_gradient(self, missing: Mapping[int, Sequence[int]]) -> Iterable[Sequence[Outcome]]:
        if not missing:
            return ()
        space = self.preparation.space
        writer = SegmentWriter(self.preparation.pipeline.stage, self._graph)
        meter = GradientMeter(writer, _gradients(), self.samples.inputs)
        wanted = [(space.groups[g].members, [space.options[g][o] for o in entries]) for g, entries in missing.items()]
        return meter.measure(wanted)

    def _by_divergence(self, missing: Mapping[int, Sequence[int]]) -> Iterator[Sequence[Outcome]]:
        for g, entries in missing.items():
            yield [self._diverge((g, o)) for o in entries]

    def _diverge(self, pair: Pair) -> Outcome:
        """Builds and runs the model that has this option and nothing else."""
        space = self.preparation.space
        policy = Policy({space.groups[pair[0]].name: space.options[pair[0]][pair[1]]}, self._graph)
        try:
            return relative_error(self._reference, self._run(policy))
        except (PolicyError, MeasurementError) as error:
            return str(error)

    @cached_property
    def _reference(self) -> list[np.ndarray]:
        return self._run(Policy({}))

    def _run(self, policy: Policy) -> list[np.ndarray]:
        device = self.preparation.device
        executable = device.load(self.preparation.build(policy))
        return run_split(executable, self.samples, batch_size=device.target.batch_size)


def _judge(outcome: Outcome) -> Outcome:
    """Returns a score only where it is one."""
    if isinstance(outcome, str) or np.isfinite(outcome):
        return outcome
    return f"its influence on the output must be finite, and it is {outcome}"


def _gradients() -> OpenGradients:
    try:
        from ..evaluators.torch_gradients import OutputGradients
    except ImportError as error:
        raise MeasurementError("torch is not installed; pip install 'trimtab[torch]'") from error
    return OutputGradients
