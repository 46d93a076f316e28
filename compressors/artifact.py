"""The deployable model, in memory."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Artifact:
    """One ONNX model and how its runtime must be set to keep its promise."""

    #: a serialised ONNX model, weights inside
    model: bytes
    #: the precision in which the runtime executes what stays floating point
    precision: str = "float32"
    #: whether the runtime should quantise the activations of weight-compressed layers itself
    dynamic_activations: bool = False
    #: layers that compute in float32 although ``precision`` is a lower one. The weight of layer L is a constant of the
    #: graph named ``L.weight``, or ``L.weight_…`` where it is stored in parts or as codes; the device finds the
    #: convolution or matrix product that reads it
    full_precision: tuple[str, ...] = ()

    @property
    def mixes_precisions(self) -> bool:
        """Whether some floating-point layers are to compute in another precision than the rest."""
        return bool(self.full_precision) and self.precision != "float32"

    @property
    def size_bytes(self) -> int:
        """Bytes of the model as a file."""
        return len(self.model)

    @property
    def sha256(self) -> str:
        """Digest of the model's bytes."""
        return hashlib.sha256(self.model).hexdigest()
