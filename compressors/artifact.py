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

    @property
    def size_bytes(self) -> int:
        """Bytes of the model as a file."""
        return len(self.model)

    @property
    def sha256(self) -> str:
        """Digest of the model's bytes."""
        return hashlib.sha256(self.model).hexdigest()
