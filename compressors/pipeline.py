"""From a policy to an artifact: first the shapes (and training), then storage and quantisation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ..core.errors import PolicyError
from ..hw_profiles.target import Capabilities
from ..spaces.policy import GraphTreatment
from ..spaces.recovery import Recovery
from ..spaces.treatment import Treatment
from .artifact import Artifact
from .onnx_stage import OnnxStage
from .prepared import PreparedModel
from .shaping import Shape, Shaper
from .training import Training
from .weights.accounting import account_weights

#: models of other shapes that are kept at a time
_N_KEPT = 4


@dataclass
class Pipeline:
    """Builds artifacts; keeps what several policies share: graphs, ranges, treated weights, models of other shapes."""

    prepared: PreparedModel
    scheme: Capabilities
    #: what recovery and gradient-based importance need; None: policies that need it are refused
    training: Training | None = None
    _shaped: dict[str, OnnxStage] = field(default_factory=dict)

    def build(
        self, treatments: Mapping[str, Treatment], graph: GraphTreatment, recovery: Recovery | None = None
    ) -> Artifact:
        """Builds the artifact of a policy.

        Args:
            treatments: name → treatment of layers and structures; those that are missing stay as they are.
            graph: what happens to the graph as a whole.
            recovery: what is trained; None trains nothing.

        Raises:
            PolicyError: the policy names a layer, a structure, a fusion or a treatment that this model does not have.
        """
        shape = self.shape_of(treatments, recovery)
        stage = self.stage_of(shape)
        return stage.write(shape.remaining(stage.prepared.layers), graph)

    def account(self, treatments: Mapping[str, Treatment], recovery: Recovery | None = None) -> int:
        """Returns the bytes that the policy's weights take in the file, from shapes and treatments alone.

        Raises:
            PolicyError: as `build`.
        """
        shape = self.shape_of(treatments, recovery)
        prepared = self.stage_of(shape).prepared
        stored = shape.remaining(prepared.layers)
        return account_weights(prepared.layers, stored, output_scales=prepared.output_scales)

    def shape_of(self, treatments: Mapping[str, Treatment], recovery: Recovery | None = None) -> Shape:
        """Returns what a policy does to shapes and weights before the ONNX stage.

        Raises:
            PolicyError: a name is not known.
        """
        self._check_names(treatments)
        return Shape.of(treatments, recovery or Recovery())

    @cached_property
    def stage(self) -> OnnxStage:
        """The ONNX stage of the original's shapes."""
        return OnnxStage(self.prepared, self.scheme)

    @cached_property
    def shaper(self) -> Shaper:
        """What makes models of other shapes."""
        return Shaper(self.stage, self.training)

    def stage_of(self, shape: Shape) -> OnnxStage:
        """Returns the ONNX stage of a shape; the model of that shape is made, and trained, on first use.

        Raises:
            PolicyError: the shape cannot be had for this model.
        """
        if shape.is_original:
            return self.stage
        stage = self._shaped.pop(shape.key, None) or OnnxStage(self.shaper.make(shape), self.scheme)
        while len(self._shaped) >= _N_KEPT:
            del self._shaped[next(iter(self._shaped))]
        self._shaped[shape.key] = stage  # at the end: those that were not used for longest go first
        return stage

    def _check_names(self, treatments: Mapping[str, Treatment]) -> None:
        known = {layer.name for layer in self.prepared.layers} | {s.name for s in self.prepared.structures}
        unknown = sorted(set(treatments) - known)
        if unknown:
            raise PolicyError(f"the model has no layer {', '.join(unknown)}")
