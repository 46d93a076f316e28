"""The sensitivities of an applied policy on the weights that it is applied to."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ...compressors.artifact import Artifact
from ...compressors.pipeline import Pipeline
from ...compressors.prepared import PreparedModel
from ...evaluators.dataset import Dataset
from ...evaluators.device import Device
from ...spaces.policy import Policy
from ...spaces.space import GraphOptions, Space
from ...spaces.treatment import Treatment
from ..policy_file import PolicyFile
from ..sensitivity import measure_sensitivity
from .evidence import Evidence


@dataclass(frozen=True)
class AppliedModel:
    """A model to which a policy is applied, as `measure_sensitivity` wants it: each group offers its treatment."""

    file: PolicyFile
    device: Device
    dataset: Dataset
    pipeline: Pipeline

    @property
    def model(self) -> PreparedModel:
        """The model."""
        return self.pipeline.prepared

    @cached_property
    def space(self) -> Space:
        """Each treated group, as it is and with its treatment, under the graph-wide choices of the search's scores."""
        evidence, treatments = self.file.evidence or Evidence(), dict(self.file.policy.groups)
        return Space(
            self.file.groups,
            tuple((Treatment(), treatments[group.name]) for group in self.file.groups),
            GraphOptions(calibration=(evidence.calibration,), rounding=(evidence.rounding,)),
        )

    def build(self, policy: Policy) -> Artifact:
        """Builds the artifact of a policy of the space; see `Pipeline.build`."""
        return self.pipeline.build(self.space.layer_treatments(policy), policy.graph, policy.recovery)


def measure_treatments(applied: AppliedModel) -> tuple[dict[str, float], Mapping[str, str]]:
    """Returns group → what its treatment alone does to the output, and group → why that cannot be told.

    Raises:
        ModelError: the original's outputs are 0 throughout, or not finite.
    """
    found = measure_sensitivity(applied)
    lost = {drop.layer: drop.reason for drop in found.dropped}
    scores = zip(found.space.groups, found.scores, strict=True)
    return {group.name: float(values[1]) for group, values in scores if group.name not in lost}, lost
