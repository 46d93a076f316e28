"""The influence of every layer from the gradients of the outputs, and what a treatment changes within the layer.

To first order in the change Δy of a layer's output, the outputs z of the model change by Δz = J Δy. Of a direction u,
the gradient g = Jᵀu is known from one backward pass for all layers at once, and u·Δz = g·Δy: the sum over all elements
and positions of one sample, *before* it is squared, since the errors of the positions meet in z. Over directions with
E uuᵀ = 1, E (g·Δy)² = E|Δz|². Uses of one weight, and layers that are tied, are treated together: their g·Δy are added
before they are squared, too. Δy itself is no approximation: the layer computes with what really entered it, as the
artifact would (`SegmentWriter`), so that rounding, clipping and the Relu behind it are seen as they are.

Squared gradients times squared errors, element by element (HAWQ-V2, Dong et al. 2020, with the Fisher information for
the Hessian) would take the errors of all elements for independent; what low rank or binarising leaves is not.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx_ir as ir

from ...core.errors import DataError, ModelError, PolicyError
from ...core.seeds import derive_rng
from ...spaces.treatment import Treatment
from ..graph import iterate_outputs
from ..prepared import one_by_one
from .output_error import N_DIRECTIONS, draw_directions, output_energies
from .segment import Segment, find_segments
from .segment_writer import SegmentWriter

#: what is kept of the calibration data at a time; models with more are gone through in several passes
MAX_KEPT_BYTES = 512 * 1024**2

#: layers that are treated together, and what is to be tried on them
Wanted = Sequence[tuple[tuple[str, ...], Sequence[Treatment]]]
#: a score, or why there is none
Outcome = float | str


class Differentiate(Protocol):
    """Runs one sample forward, and backward for each direction."""

    def __call__(
        self, inputs: Mapping[str, np.ndarray], directions: Sequence[Sequence[np.ndarray]]
    ) -> list[dict[str, np.ndarray]]:
        """Returns per direction: value name → gradient of Σ_outputs u·z, in the value's shape.

        Args:
            inputs: model input name → (1, …) array.
            directions: per direction, an array in the shape of each output.
        """
        ...


#: (float graph, names of inner values) → what differentiates its outputs with respect to them
OpenGradients = Callable[[ir.Model, Sequence[str]], Differentiate]


@dataclass
class GradientMeter:
    """Scores treatments of layers on calibration samples."""

    writer: SegmentWriter
    open_gradients: OpenGradients
    #: model input name → (n_samples, …) array
    samples: Mapping[str, np.ndarray]
    max_kept_bytes: int = MAX_KEPT_BYTES
    _feeds: list[dict[str, np.ndarray]] = field(init=False)

    def __post_init__(self) -> None:
        self._feeds = one_by_one(self.samples)

    def measure(self, wanted: Wanted) -> Iterator[list[Outcome]]:
        """Yields for each entry, in order, the relative error E|Δz|² / E|z|² of each of its treatments.

        A score may come out infinite or NaN, where a gradient is.

        Raises:
            ModelError: the outputs are 0 or not finite on the samples.
            MeasurementError: the graph cannot be differentiated.
        """
        segments = find_segments(self.writer.base.model.graph)
        groups = [[segment for layer in layers for segment in segments[layer]] for layers, _ in wanted]
        position = 0
        for chunk in self._chunks(groups):
            seen = self._see(chunk)
            for group in chunk:
                yield [self._score(group, treatment, seen) for treatment in wanted[position][1]]
                position += 1

    def _chunks(self, groups: Sequence[list[Segment]]) -> Iterator[list[list[Segment]]]:
        """Yields groups, as many at a time as fit into memory together."""
        first = self._run(_values_of(segment for group in groups for segment in group), self._feeds[:1])[0]
        chunk: list[list[Segment]] = []
        n_bytes = 0
        for group in groups:
            # the gradients of a few directions beside each value
            size = (1 + N_DIRECTIONS) * len(self._feeds) * sum(first[name].nbytes for name in _values_of(group))
            if chunk and n_bytes + size > self.max_kept_bytes:
                yield chunk
                chunk, n_bytes = [], 0
            chunk.append(group)
            n_bytes += size
        if chunk:
            yield chunk

    def _see(self, chunk: Sequence[Sequence[Segment]]) -> list["_Seen"]:
        """Runs the float graph on all samples, forward and backward."""
        segments = [segment for group in chunk for segment in group]
        outputs = [str(value.name) for value in self.writer.base.model.graph.outputs]
        values = self._run([*_values_of(segments), *outputs], self._feeds)
        energies = output_energies([[of_sample[name] for of_sample in values] for name in outputs])
        differentiate = self.open_gradients(self.writer.base.model, list({one.output: None for one in segments}))
        seen = []
        for position, (sample, of_sample) in enumerate(zip(self._feeds, values, strict=True)):
            rng = derive_rng("sensitivity", position)
            directions = draw_directions([of_sample[name] for name in outputs], energies, rng)
            seen.append(_Seen(of_sample, differentiate(sample, directions.vectors), directions.weight))
        return seen

    def _run(self, names: Sequence[str], feeds: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """Returns value name → array for each sample; inputs of the model are taken as they are."""
        computed = [name for name in dict.fromkeys(names) if name not in feeds[0]]
        rows = iterate_outputs(self.writer.base.model, computed, feeds)
        return [{**feed, **dict(zip(computed, row, strict=True))} for feed, row in zip(feeds, rows, strict=True)]

    def _score(self, group: Sequence[Segment], treatment: Treatment, seen: Sequence["_Seen"]) -> Outcome:
        """Returns the relative error, or what refuses the treatment."""
        changes = [np.zeros(len(sample.gradients)) for sample in seen]
        for segment in group:
            feeds = [{name: sample.values[name] for name in segment.inputs} for sample in seen]
            try:
                model = self.writer.write(segment, treatment, feeds)
                rows = iterate_outputs(model, [str(model.graph.outputs[0].name)], feeds)
                for change, (treated,), sample in zip(changes, rows, seen, strict=True):
                    change += _project(treated, segment, sample)
            except (PolicyError, ModelError, DataError) as error:
                return str(error)
        with np.errstate(all="ignore"):
            errors = [sample.weight * np.square(change).sum() for change, sample in zip(changes, seen, strict=True)]
            return float(np.mean(errors))


@dataclass(frozen=True)
class _Seen:
    """What one sample shows: the values of the float graph, and their gradients for each direction."""

    values: Mapping[str, np.ndarray]
    gradients: Sequence[Mapping[str, np.ndarray]]
    #: of the squares of all directions
    weight: float


def _values_of(segments: Iterable[Segment]) -> list[str]:
    """Returns the names of what enters and leaves them, each once."""
    return list(dict.fromkeys(name for segment in segments for name in (*segment.inputs, segment.output)))


def _project(treated: np.ndarray, segment: Segment, sample: _Seen) -> np.ndarray:
    """Returns (n_directions,) float64: g·Δy of one use of a layer."""
    with np.errstate(all="ignore"):  # what is not finite is the caller's to judge
        change = (treated - sample.values[segment.output]).ravel()
        products = [np.dot(gradients[segment.output].ravel(), change) for gradients in sample.gradients]
    return np.array(products, np.float64)
