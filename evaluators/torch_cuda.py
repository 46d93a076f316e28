"""A translated model on a CUDA GPU, replayed as a CUDA graph."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..core.errors import MeasurementError
from .graph_inputs import GraphInput, check_inputs
from .torch_operators import Tensor

_log = logging.getLogger(__name__)

#: Runs before a capture, as https://docs.pytorch.org/docs/stable/notes/cuda.html asks: libraries set themselves up.
_RUNS_BEFORE_CAPTURE = 3

#: Input shapes that are kept captured; each has its own memory.
_MOST_CAPTURES = 4

_Shapes = tuple[tuple[int, ...], ...]


class CudaExecutable:
    """A translated model on the GPU; `time_once` times it there, see `trimtab.evaluators.latency.DeviceTiming`."""

    def __init__(self, call: Callable[..., Any], expected: Sequence[GraphInput]) -> None:
        self._call = call
        self._expected = expected
        self._captures: dict[_Shapes, _Capture] = {}
        #: the arrays whose content lies on the GPU since `time_once`
        self._resident: tuple[np.ndarray, ...] = ()

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Runs one batch, copies included; see `Executable.run`.

        Raises:
            MeasurementError: the inputs are others than the model's, or PyTorch fails; the message carries its words.
        """
        with self._named_errors():
            capture = self._load(inputs)
            capture.replay()
            # a copy to the host waits for the GPU
            return [output.cpu().numpy() for output in capture.outputs]

    def time_once(self, inputs: Mapping[str, np.ndarray]) -> float:
        """Runs one batch that lies on the GPU already; returns the seconds between two events around it.

        Raises:
            MeasurementError: as `run`.
        """
        arrays = tuple(inputs.values())
        is_resident = len(arrays) == len(self._resident) and all(map(_is_same, arrays, self._resident))
        with self._named_errors():
            capture = self._captures[self._shapes(inputs)] if is_resident else self._load(inputs)
            self._resident = arrays
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            capture.replay()
            end.record()
            end.synchronize()
            elapsed_ms: float = start.elapsed_time(end)
        return elapsed_ms / 1e3

    def _shapes(self, inputs: Mapping[str, np.ndarray]) -> _Shapes:
        return tuple(inputs[value.name].shape for value in self._expected)

    def _load(self, inputs: Mapping[str, np.ndarray]) -> "_Capture":
        """Copies a batch to where the capture of its shapes reads it."""
        check_inputs(self._expected, inputs)
        self._resident = ()
        sources = [torch.from_numpy(np.array(inputs[value.name])) for value in self._expected]
        shapes = self._shapes(inputs)
        if shapes not in self._captures:
            if len(self._captures) >= _MOST_CAPTURES:
                del self._captures[next(iter(self._captures))]
            self._captures[shapes] = _Capture(self._call, [source.to("cuda") for source in sources])
        capture = self._captures[shapes]
        for place, source in zip(capture.inputs, sources, strict=True):
            place.copy_(source)
        return capture

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        # cuDNN's own TF32 is on unless someone says otherwise, and would not be the precision that was asked for
        try:
            with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                yield
        except MeasurementError:
            raise
        except Exception as error:  # PyTorch raises many types, and its compiler more
            raise MeasurementError(f"torch fails to run the model: {error}") from error


class _Capture:
    """A CUDA graph for inputs of fixed shapes; where the model cannot be captured, the model itself."""

    def __init__(self, call: Callable[..., Any], inputs: list[Tensor]) -> None:
        self.inputs = inputs
        self._call = call
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_RUNS_BEFORE_CAPTURE):
                self.outputs = call(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph: Any = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph):
                self.outputs = call(*inputs)
        except RuntimeError as error:  # an operator that reads from the GPU while it runs
            _log.info("the model runs without a CUDA graph: %s", error)
            torch.cuda.synchronize()
            self._graph = None

    def replay(self) -> None:
        """Runs the model once on what lies in ``inputs``; does not wait for it."""
        if self._graph is None:
            self.outputs = self._call(*self.inputs)
        else:
            self._graph.replay()


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    return one is other
