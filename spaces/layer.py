"""Layers and groups: what a policy speaks about."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..core.files import short_digest

#: every kind of layer that can be treated
LAYER_KINDS = ("conv", "depthwise_conv", "linear", "embedding")


@dataclass(frozen=True, slots=True)
class Layer:
    """One weight and the nodes that use it."""

    #: the torch module path where it is known (``layer1.0.conv1``), else the name of the ONNX weight or node
    name: str
    #: one of `LAYER_KINDS`
    kind: str
    #: shape of the weight as the graph stores it
    weight_shape: tuple[int, ...]
    #: shape of the output of the first use; -1 where it depends on the input
    output_shape: tuple[int, ...]
    #: elements of the weight and of the bias
    n_parameters: int
    #: multiply-accumulates for one sample
    macs: int

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {**asdict(self), "weight_shape": list(self.weight_shape), "output_shape": list(self.output_shape)}


#: every kind of structure that can be pruned
STRUCTURE_KINDS = ("channels", "heads", "block")


@dataclass(frozen=True, slots=True)
class Structure:
    """Channels, heads or a block that go or stay together, as the dependencies of the graph tell."""

    #: the kind, a colon, and the module that names it: ``channels:layer1.0.conv1``
    name: str
    #: one of `STRUCTURE_KINDS`
    kind: str
    #: torch module paths of all layers that change shape (or go); those that produce the channels first
    layers: tuple[str, ...]
    #: how many of the layers, from the first on, produce what is pruned
    n_producers: int
    #: channels, heads or inner units; 1 for a block
    n_units: int


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that must be treated alike, because the runtime or a shared weight ties them; or a structure."""

    name: str
    layers: tuple[str, ...]
    #: ``layers``, or one of `STRUCTURE_KINDS`: then only pruning is on offer, and a layer stands in other groups too
    kind: str = "layers"

    @property
    def members(self) -> tuple[str, ...]:
        """What a treatment of the group treats: its layers, or the structure itself."""
        return self.layers if self.kind == "layers" else (self.name,)


def fingerprint_layers(layers: tuple[Layer, ...]) -> str:
    """Returns a digest of names, kinds and weight shapes: equal after retraining, different after surgery."""
    return short_digest(layers_to_json(layers))


def layers_to_json(layers: Sequence[Layer]) -> list[list[Any]]:
    """Returns what files keep of layers: names, kinds and weight shapes."""
    return [[layer.name, layer.kind, list(layer.weight_shape)] for layer in layers]


def layers_from_json(content: Any) -> tuple[Layer, ...]:
    """Reads what `layers_to_json` wrote; what a file does not keep is empty or 0.

    Raises:
        TypeError: (or ValueError) it is something else.
    """
    return tuple(Layer(str(name), str(kind), tuple(int(n) for n in shape), (), 0, 0) for name, kind, shape in content)
