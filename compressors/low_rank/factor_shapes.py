"""The shapes of layers that stand for a layer of low rank, and what they cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...spaces.layer import Layer
from ..patches import Window

Form = Literal["linear", "channel", "spatial", "tucker"]

#: sides of an input whose size is not known: so large that its edges do not count
_LARGE_SIDE = 1 << 12


@dataclass(frozen=True, slots=True)
class LayerGeometry:
    """What low rank has to know of a layer besides its values."""

    name: str
    #: one of ``spaces.layer.LAYER_KINDS``
    kind: str
    #: as the graph stores it: (in, out) of a linear layer, (out, in / group, *kernel) of a convolution
    weight_shape: tuple[int, ...]
    #: how a convolution moves; None for other kinds
    window: Window | None = None
    #: sides of a convolution's input; empty where they are not known
    sides: tuple[int, ...] = ()

    @classmethod
    def of(cls, layer: Layer) -> "LayerGeometry":
        """Returns what a layer's entry tells: a convolution is taken to have one group and to move by one."""
        n_axes = max(len(layer.weight_shape) - 2, 0)
        if layer.kind not in ("conv", "depthwise_conv") or not n_axes:
            return cls(layer.name, layer.kind, layer.weight_shape)
        ones = (1,) * n_axes
        n_groups = layer.weight_shape[0] if layer.kind == "depthwise_conv" else 1
        window = Window(layer.weight_shape[2:], ones, ones, (), "SAME_UPPER", n_groups)
        return cls(layer.name, layer.kind, layer.weight_shape, window)

    @property
    def n_elements(self) -> int:
        """Elements of the weight."""
        return int(np.prod(self.weight_shape))


@dataclass(frozen=True, slots=True)
class FactorShape:
    """One of the layers that stand for a layer taken apart."""

    weight_shape: tuple[int, ...]
    #: how a convolution moves; None for a linear layer
    window: Window | None = None
    #: the axes along which it moves as the layer itself does; along the others it is one element wide
    axes: tuple[int, ...] = ()


def factor_shapes(geometry: LayerGeometry, form: Form, ranks: Sequence[int]) -> tuple[FactorShape, ...]:
    """Returns the layers that a form makes of a layer, in the order in which they are run.

    Args:
        geometry: the layer.
        form: ``linear``; ``channel``: k×k to few channels, then 1×1 (Zhang et al. 2016, "Accelerating very deep
            convolutional networks for classification and detection"); ``spatial``: k×1, then 1×k (Jaderberg et al.
            2014); ``tucker``: 1×1, k×k, 1×1 (Kim et al. 2016).
        ranks: channels between the layers: two for ``tucker``, else one.
    """
    shape, window = geometry.weight_shape, geometry.window
    if window is None:
        return FactorShape((shape[0], ranks[0])), FactorShape((ranks[0], shape[1]))
    n_out, n_in, *kernel = shape
    ones = (1,) * len(kernel)
    point = Window(ones, ones, ones, ((0, 0),) * len(kernel))
    axes = tuple(range(len(kernel)))
    if form == "channel":
        return FactorShape((ranks[0], n_in, *kernel), window, axes), FactorShape((n_out, ranks[0], *ones), point)
    if form == "spatial":
        down, across = window.along(0), window.along(1)
        return (
            FactorShape((ranks[0], n_in, *down.kernel), down, (0,)),
            FactorShape((n_out, ranks[0], *across.kernel), across, (1,)),
        )
    before, behind = ranks
    return (
        FactorShape((before, n_in, *ones), point),
        FactorShape((behind, before, *kernel), window, axes),
        FactorShape((n_out, behind, *ones), point),
    )


def count_elements(shapes: Sequence[FactorShape]) -> int:
    """Returns the elements of all weights together."""
    return sum(int(np.prod(shape.weight_shape)) for shape in shapes)


def count_places(geometry: LayerGeometry) -> tuple[int, int]:
    """Returns the positions of a convolution's input and output; (1, 1) for a linear layer.

    Where the input's sides are not known they are taken to be 4096, so that edges do not count.
    """
    if geometry.window is None:
        return 1, 1
    sides = _sides(geometry)
    return int(np.prod(sides)), int(np.prod(geometry.window.output_sides(sides)))


def count_macs(geometry: LayerGeometry, shapes: Sequence[FactorShape]) -> int:
    """Returns the multiply-accumulates of layers in a row in the place of this layer; see `count_places`."""
    sides, total = _sides(geometry), 0
    for shape in shapes:
        sides = shape.window.output_sides(sides) if shape.window is not None else sides
        total += int(np.prod(shape.weight_shape)) * int(np.prod(sides, dtype=np.int64))
    return total


def _sides(geometry: LayerGeometry) -> tuple[int, ...]:
    return geometry.sides or (_LARGE_SIDE,) * (len(geometry.window.kernel) if geometry.window is not None else 0)
