"""Models of other shapes, and trained ones: pruning, low rank and recovery, exported and prepared like the original."""

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..core.errors import PolicyError
from ..core.files import short_digest
from ..core.seeds import derive_seed
from ..spaces.layer import Layer
from ..spaces.policy import Policy
from ..spaces.recovery import Recovery
from ..spaces.treatment import Treatment
from .kept_session import KeptSession
from .layer_inputs import LayerInputs
from .lazy_inputs import LazyInputs
from .onnx_stage import OnnxStage
from .prepared import PreparedModel, prepare_graph, prepare_model
from .source import ModelSource, TorchOrigin, export_module
from .trained_bank import TrainedBank
from .training import Training

if TYPE_CHECKING:
    from .recovery.data import TrainingData
    from .recovery.train import RecoverySession

_log = logging.getLogger(__name__)

_RANK_FIELDS = ("rank", "rank_by", "decomposition", "rank_error")
_PRUNE_FIELDS = ("keep_channels", "importance")
#: raised by hand when code that a trained model depends on changes
_VERSION = 2


@dataclass(frozen=True)
class Shape:
    """The part of a policy that decides shapes and float weights; equal shapes give equal models."""

    #: structure → treatment
    pruned: Mapping[str, Treatment]
    #: layer → its rank fields
    ranks: Mapping[str, Treatment]
    #: layer → everything behind the rank fields
    stored: Mapping[str, Treatment]
    recovery: Recovery

    @classmethod
    def of(cls, treatments: Mapping[str, Treatment], recovery: Recovery) -> "Shape":
        """Takes a policy's treatments apart; those of structures have a colon in their name."""
        ordered = sorted((name, t) for name, t in treatments.items() if t != Treatment())
        layers = {name: t for name, t in ordered if ":" not in name}
        ranks = {name: only(t, _RANK_FIELDS) for name, t in layers.items() if t.rank != 1.0}
        stored = {name: without(t, (*_RANK_FIELDS, *_PRUNE_FIELDS)) for name, t in layers.items()}
        pruned = {name: t for name, t in ordered if ":" in name}
        return cls(pruned, ranks, stored, recovery)

    @property
    def is_original(self) -> bool:
        """Whether the model goes into the ONNX stage as it is."""
        return not (self.pruned or self.ranks or self.recovery.trains)

    @cached_property
    def key(self) -> str:
        """A digest; what is stored how counts only where training has to see it."""
        parts = {**self.pruned, **self.ranks}
        if self.recovery.trains:
            parts = {**self.pruned, **{n: combine_fields(self.ranks.get(n), t) for n, t in self.stored.items()}}
        return Policy(parts or {"original": Treatment(keep_channels=0.5)}, recovery=self.recovery).id

    def remaining(self, layers: Sequence[Layer]) -> dict[str, Treatment]:
        """Returns layer → treatment for the ONNX stage, the factors of a layer treated as the layer was to be."""
        names = {layer.name for layer in layers}
        found: dict[str, Treatment] = {}
        for name, treatment in self.stored.items():
            if name in names:
                found[name] = treatment
            found.update(dict.fromkeys(factors_of(name, names), treatment))
        return found


def only(treatment: Treatment, names: Sequence[str]) -> Treatment:
    """Returns a treatment with the named fields alone."""
    return Treatment(**{name: getattr(treatment, name) for name in names})


def without(treatment: Treatment, names: Sequence[str]) -> Treatment:
    """Returns a treatment in which the named fields are at their default."""
    return Treatment(**{f.name: getattr(treatment, f.name) for f in fields(treatment) if f.name not in names})


def combine_fields(ranks: Treatment | None, stored: Treatment) -> Treatment:
    """Returns one treatment with the rank fields of the first and all others of the second."""
    return stored if ranks is None else replace(stored, **{name: getattr(ranks, name) for name in _RANK_FIELDS})


def factors_of(name: str, names: Iterable[str]) -> list[str]:
    """Returns the layers that a factorised layer became: ``fc`` → ``fc.0``, ``fc.1``; ``fc#2`` → ``fc.0#2`` …."""
    path, _, copy = name.partition("#")
    found = []
    for other in names:
        stem, _, number = other.partition("#")
        is_factor = stem.startswith(f"{path}.") and stem.removeprefix(f"{path}.") in ("0", "1", "2")
        if is_factor and number == copy:
            found.append(other)
    return found


@dataclass
class Shaper:
    """Makes models of other shapes from the original."""

    #: the ONNX stage of the original
    stage: OnnxStage
    training: Training | None

    def make(self, shape: Shape) -> PreparedModel:
        """Returns the prepared model of a shape.

        Raises:
            PolicyError: a structure, a rank or the recovery cannot be had; the message says why.
        """
        from .low_rank.graph_factors import factorise_graph

        original = self.stage.prepared
        fusions = tuple(original.variants)
        if not shape.pruned and not shape.recovery.trains:
            base = factorise_graph(original.base, shape.ranks, self._inputs_for(shape.ranks, self.stage.inputs()))
            return prepare_graph(base, ModelSource(b"", origin=None), original.calibration, fusions=fusions)
        source = self._trained(shape) if shape.recovery.trains else self._pruned(shape)
        prepared = prepare_model(source, original.calibration, fusions=fusions)
        if shape.ranks and not shape.recovery.trains:
            inputs = self._inputs_for(shape.ranks, LazyInputs(prepared))
            base = factorise_graph(prepared.base, _present(shape.ranks, prepared.layers), inputs)
            return prepare_graph(base, source, original.calibration, fusions=fusions)
        return prepared

    def open_session(self, shape: Shape) -> "RecoverySession":
        """Prunes and factorises, and returns the training that recovers what was lost; nothing is trained yet.

        Raises:
            PolicyError: there are no training data, or the shape cannot be had.
        """
        from .recovery.train import RecoveryPlan, RecoverySession

        training = self._need_training("recovery")
        student = self._shaped_module(shape)
        plan = RecoveryPlan(
            treatments=_of_modules(student, shape),
            recovery=shape.recovery,
            teachers=tuple(self._teachers(shape.recovery)),
            seed=derive_seed(training.seed, "recovery", shape.key),
            activation_codes=self.stage.scheme.activation_codes,
        )
        return RecoverySession(student, self._training_data("recovery"), plan)

    def open_training(self, shape: Shape) -> KeptSession | None:
        """Returns the training of a shape, where an interrupted one had come; None when the bank holds its model.

        Raises:
            PolicyError: there are no training data, or the shape cannot be had.
        """
        self._need_training("recovery")
        return None if self._load(shape) is not None else self._keep_session(shape)

    def export(self, recovered: Any) -> ModelSource:
        """Exports what a session ended with, or had come to, with what it learned of the rounding."""
        source = export_module(recovered.module, self._origin().example_inputs)
        return replace(
            source,
            learned_steps=recovered.learned_steps,
            learned_ranges=recovered.learned_ranges,
            learned_levels=recovered.learned_levels,
        )

    def adopt(self, shape: Shape, recovered: Any) -> ModelSource:
        """Exports what a session ended with, and keeps it for `make`."""
        source = self.export(recovered)
        return source if self._bank is None else self._bank.keep(self._bank_key(shape), source)

    def _trained(self, shape: Shape) -> ModelSource:
        self._need_training("recovery")
        if (known := self._load(shape)) is not None:
            return known
        session = self._keep_session(shape)
        session.advance(session.n_steps)
        return self.adopt(shape, session.finish())

    def _load(self, shape: Shape) -> ModelSource | None:
        return None if self._bank is None else self._bank.load(self._bank_key(shape))

    def _keep_session(self, shape: Shape) -> KeptSession:
        return KeptSession(lambda: self.open_session(shape), self._bank, self._bank_key(shape))

    def _pruned(self, shape: Shape) -> ModelSource:
        return export_module(self._prune(shape), self._origin().example_inputs)

    def _shaped_module(self, shape: Shape) -> Any:
        """Returns the module with structures pruned and layers factorised, untrained."""
        from .low_rank.module_factors import factorise_module

        module = self._prune(shape)
        if not shape.ranks:
            return module
        inputs: Mapping[str, LayerInputs] = {}
        if any(t.rank_error == "output" for t in shape.ranks.values()):
            source = export_module(module, self._origin().example_inputs)
            prepared = prepare_model(source, self.stage.prepared.calibration, fusions=("none",))
            inputs = self._inputs_for(shape.ranks, LazyInputs(prepared))
        paths = dict(module.named_modules())
        ranks = {name: treatment for name, treatment in shape.ranks.items() if name in paths}
        return factorise_module(module, ranks, inputs=inputs, example_inputs=self._origin().example_inputs)

    def _prune(self, shape: Shape) -> Any:
        from .pruning.prune import prune_structures

        module, found = self._origin().module, self.stage.prepared.found
        if not shape.pruned:
            return copy.deepcopy(module)
        if found is None:
            raise PolicyError(f"nobody looked whether {next(iter(shape.pruned))} can be pruned in this model")
        multiple = self.stage.scheme.channel_multiple
        losses = self._losses if self.training is not None else None
        return prune_structures(module, found, shape.pruned, multiple=multiple, losses=losses)

    def _losses(self, module: Any) -> Iterable[Any]:
        from .recovery.losses import iterate_losses

        return iterate_losses(module, self._training_data("this importance"))

    def _training_data(self, what: str) -> "TrainingData":
        from .recovery.data import TrainingData

        training = self._need_training(what)
        return TrainingData(training.inputs, training.labels, training.loss)

    def _inputs_for(
        self, ranks: Mapping[str, Treatment], inputs: Mapping[str, LayerInputs]
    ) -> Mapping[str, LayerInputs]:
        """Returns the statistics where some rank asks for them: collecting them runs the calibration data."""
        return inputs if any(t.rank_error == "output" for t in ranks.values()) else {}

    def _teachers(self, recovery: Recovery) -> list[Any]:
        if recovery.method != "distill":
            return []
        training = self._need_training("recovery")
        if not recovery.teachers:
            return [self._origin().module]
        return [training.teachers[name] for name in recovery.teachers]

    def _origin(self) -> TorchOrigin:
        origin = self.stage.prepared.origin
        if origin is None:
            raise PolicyError("pruning and recovery need the torch model, and this one was given as an .onnx file")
        return origin

    def _need_training(self, what: str) -> Training:
        if self.training is None:
            raise PolicyError(f"{what} needs training data, and there are none; give data with a train split")
        return self.training

    @cached_property
    def _bank(self) -> TrainedBank | None:
        training = self.training
        return None if training is None or training.folder is None else TrainedBank(training.folder)

    def _bank_key(self, shape: Shape) -> str:
        training = self._need_training("recovery")
        scheme = self.stage.scheme
        # how a target codes activations is seen by training only where they are quantised: else targets share models
        is_static = any(treatment.is_static for treatment in shape.stored.values())
        settings = [scheme.channel_multiple, scheme.activation_codes if is_static else ""]
        return short_digest([_VERSION, shape.key, training.digest, training.seed, settings])


def _of_modules(module: Any, shape: Shape) -> dict[str, Treatment]:
    """Returns module path → treatment that training has to see; layers without a module of their own are left out."""
    paths = dict(module.named_modules())
    found: dict[str, Treatment] = {}
    for name, treatment in shape.stored.items():
        path = name.partition("#")[0]
        for candidate in [path, *factors_of(path, paths)]:
            if hasattr(paths.get(candidate), "weight"):
                found[candidate] = treatment
    return found


def _present(ranks: Mapping[str, Treatment], layers: Sequence[Layer]) -> dict[str, Treatment]:
    names = {layer.name for layer in layers}
    return {name: treatment for name, treatment in ranks.items() if name in names}
