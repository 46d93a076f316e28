"""The window of a convolution, and the patches that it cuts out of its input."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from .graph import array_of, input_of

#: step of the golden-ratio sequence (Weyl): its multiples modulo 1 fill the interval evenly and follow no period of
#: an image's rows
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution moves over its input; one entry for each spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    #: zeros before and after each axis; empty where ``auto_pad`` decides
    pads: tuple[tuple[int, int], ...]
    #: ONNX's attribute: ``NOTSET``, ``VALID``, ``SAME_UPPER`` or ``SAME_LOWER``
    auto_pad: str = "NOTSET"
    n_groups: int = 1

    @property
    def reach(self) -> tuple[int, ...]:
        """Elements from the first to the last of a patch along each axis."""
        return tuple((size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True))

    def padding(self, sides: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Returns the zeros before and after each axis for an input of these sides.

        Source of SAME: ONNX, operator Conv, ``auto_pad``: the output has ceil(side / stride) elements.
        """
        if not self.auto_pad.startswith("SAME"):
            return self.pads or ((0, 0),) * len(self.kernel)
        padding = []
        for side, stride, reach in zip(sides, self.strides, self.reach, strict=True):
            total = max((-(-side // stride) - 1) * stride + reach - side, 0)
            less, more = total // 2, total - total // 2
            padding.append((less, more) if self.auto_pad == "SAME_UPPER" else (more, less))
        return tuple(padding)

    def output_sides(self, sides: Sequence[int]) -> tuple[int, ...]:
        """Returns the output's sides for an input of these sides."""
        padded = (side + sum(pad) for side, pad in zip(sides, self.padding(sides), strict=True))
        moves = zip(padded, self.reach, self.strides, strict=True)
        return tuple((side - reach) // stride + 1 for side, reach, stride in moves)

    def along(self, axis: int) -> "Window":
        """Returns the window that moves in the same way along one axis, and is one element wide along the others."""
        n_axes = len(self.kernel)
        kernel, strides, dilations = (
            tuple(entries[i] if i == axis else 1 for i in range(n_axes))
            for entries in (self.kernel, self.strides, self.dilations)
        )
        pads = tuple(pad if i == axis else (0, 0) for i, pad in enumerate(self.pads))
        return Window(kernel, strides, dilations, pads, self.auto_pad, self.n_groups)


def window_of(node: ir.Node) -> Window:
    """Returns the window of a Conv node whose weight is constant."""
    kernel = tuple(array_of(input_of(node, 1)).shape[2:])
    ones = (1,) * len(kernel)
    attributes = node.attributes
    auto_pad = attributes.get_string("auto_pad", "NOTSET") or "NOTSET"
    pads = tuple(attributes.get_ints("pads", ()) or ()) if auto_pad == "NOTSET" else ()
    half = len(pads) // 2
    return Window(
        kernel,
        tuple(attributes.get_ints("strides", ones) or ones),
        tuple(attributes.get_ints("dilations", ones) or ones),
        tuple(zip(pads[:half], pads[half:], strict=True)),
        auto_pad,
        attributes.get_int("group", 1) or 1,
    )


def cut_patches(images: np.ndarray, window: Window, *, limit: int) -> tuple[np.ndarray, int]:
    """Returns the patches that a convolution multiplies by its weight, and how many there are in all.

    Args:
        images: (batch, channels, *sides) float32.
        window: how the convolution moves.
        limit: the most patches of one image; of more, a part is taken that is spread evenly.

    Returns:
        (n_groups, batch × n_patches, channels / n_groups × kernel elements), ordered as the weight's last axes.
    """
    n_axes = len(window.kernel)
    padding = window.padding(images.shape[2:])
    padded = np.pad(images, ((0, 0), (0, 0), *padding)) if any(map(any, padding)) else images
    views = np.lib.stride_tricks.sliding_window_view(padded, window.reach, axis=tuple(range(2, 2 + n_axes)))
    steps = (1, 1, *window.strides, *window.dilations)
    views = views[tuple(slice(None, None, step) for step in steps)]  # (batch, channels, *places, *kernel)
    places = views.shape[2 : 2 + n_axes]
    n_places = int(np.prod(places))
    batch, channels = images.shape[:2]
    if n_places <= limit:
        patches = views.reshape(batch, channels, n_places, -1)
    else:
        chosen: tuple[Any, ...] = np.unravel_index(spread(n_places, limit), places)
        patches = views[(slice(None), slice(None), *chosen)]
    n_patches, width = patches.shape[2], channels // window.n_groups
    grouped = patches.reshape(batch, window.n_groups, width, n_patches, -1).transpose(1, 0, 3, 2, 4)
    return grouped.reshape(window.n_groups, batch * n_patches, -1), batch * n_places


def spread(n: int, limit: int) -> np.ndarray:
    """Returns at most ``limit`` different numbers below n, ascending, spread evenly; all of them where they fit."""
    if n <= limit:
        return np.arange(n)
    return np.unique((np.arange(1, limit + 1) * _GOLDEN % 1.0 * n).astype(np.int64))
