"""A device without a runtime here: a board file says what it fuses, a table what its kernels take."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from ..compressors.artifact import Artifact
from ..core.errors import MeasurementError, SpecError
from ..hw_profiles.boards.board import Board, load_board
from ..hw_profiles.kernels.kernel import Between, KernelTiming, LoweredGraph, do_nothing
from ..hw_profiles.latency import Latency
from ..hw_profiles.prices.price_list import PriceList
from ..hw_profiles.prices.pricing import GraphPrice, GraphPricer, MeasuredGraph
from ..hw_profiles.profile import HardwareProfile
from ..hw_profiles.target import Target
from .lut_lowering import lower_by_rule
from .onnxruntime_device import OnnxRuntimeDevice, OnnxRuntimeExecutable

_log = logging.getLogger(__name__)


class LutDevice:
    """Computes with ONNX Runtime, so that accuracies are real, and states what the board's table says of the time.

    The target's device is the path of a board file (docs/lut-format.md). In another precision than float32 the price
    is that of the precision, while the outputs are those of float32.
    """

    def __init__(self, target: Target) -> None:
        """Reads the board file and its table.

        Raises:
            SpecError: (or TableError) they are missing or damaged, or were made for another number of threads.
        """
        if target.device == "cpu":
            raise SpecError("runtime lut needs a board file: target: {runtime: lut, device: path/to/board.yaml}")
        self.board = load_board(Path(target.device))
        _check_threads(self.board, target)
        _check_operators(self.board, target.device)
        # workers may have another current folder
        self.target = replace(target, device=str(Path(target.device).resolve()))
        self.capabilities = self.board.capabilities
        # one thread, so that sums are added in one order
        self._runtime = OnnxRuntimeDevice(Target("onnxruntime", "cpu", 1, target.batch_size))
        self._has_warned = False

    def identify(self) -> HardwareProfile:
        """Returns what the file says; its version is a digest of the file and the table."""
        return HardwareProfile(self.board.name, (), 1, 0, self.target.runtime, self.board.digest, self.target)

    def load(self, artifact: Artifact) -> "LutExecutable":
        """Loads an artifact; see `Device.load`.

        Raises:
            MeasurementError: ONNX Runtime refuses the model, or the board does not offer its precision.
        """
        if artifact.precision not in self.capabilities.precisions:
            known = ", ".join(self.capabilities.precisions)
            raise MeasurementError(f"{self.board.name} runs in: {known}; got an artifact for {artifact.precision}")
        if artifact.mixes_precisions:
            raise MeasurementError(f"{self.board.name} is priced with all that is floating point in one precision")
        return LutExecutable(self._runtime.load(replace(artifact, precision="float32")), self, artifact)

    def lower(self, artifact: Artifact) -> LoweredGraph:
        """Returns the kernels that the declared rule makes of an artifact.

        Raises:
            MeasurementError: the model cannot be read, or a shape in it is not known.
        """
        return lower_by_rule(
            artifact.model, self.board.rule, batch_size=self.target.batch_size, precision=artifact.precision
        ).graph

    def time_kernels(
        self, artifact: Artifact, inputs: Mapping[str, np.ndarray], *, runs: int = 20, between: Between = do_nothing
    ) -> list[KernelTiming]:
        """Refuses: there is nothing to time here.

        Raises:
            MeasurementError: always.
        """
        del artifact, inputs, runs, between
        raise MeasurementError(
            f"{self.board.name} is known by its table alone ({self.target.device}): nothing can be timed on it here; "
            f"measure kernels on the device and import them with: trimtab table import-csv"
        )

    def price(self, artifact: Artifact) -> GraphPrice:
        """Returns what one inference is expected to take; logs a warning once when too much of it is predicted.

        Raises:
            MeasurementError: as in `lower`.
        """
        graph, board = self.lower(artifact), self.board
        found = self._pricer.price(graph)
        seconds = found.seconds + _constant_s(board, len(graph.steps))
        error_s = found.standard_error_s
        if board.error is not None:
            # predicted kernels are less certain than whoever declared the error could know
            error_s = max(board.error * seconds, error_s if found.unseen_share else 0.0)
        if found.unseen_share > board.max_predicted_share and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "%.0f %% of the time on %s is predicted, because its table does not hold those kernels (more than the "
                "%.0f %% of max_predicted_share); add them to the table: %s",
                100 * found.unseen_share, board.name, 100 * board.max_predicted_share, self._name_unseen(graph),
            )  # fmt: skip
        return GraphPrice(seconds, error_s, found.unseen_share)

    def _name_unseen(self, graph: LoweredGraph) -> str:
        unseen = [kernel for kernel in graph.counts if kernel not in self.board.table]
        shown = [str(kernel.to_json()) for kernel in unseen[:3]]
        return "; ".join(shown) + (f" and {len(unseen) - 3} more" if len(unseen) > 3 else "")

    @cached_property
    def _pricer(self) -> GraphPricer:
        board, table = self.board, self.board.table
        measured = []
        for graph in table.graphs:
            counts = {kernel: n for name, n in graph.counts if (kernel := table.kernel(name)) is not None}
            rest_s = graph.latency_s - _constant_s(board, sum(counts.values()))
            if len(counts) == len(graph.counts) and rest_s > 0:
                measured.append(MeasuredGraph(counts, rest_s, graph.model))
        return GraphPricer(PriceList(table), measured)


class LutExecutable:
    """Computes with ONNX Runtime and states a price; see `trimtab.evaluators.latency.SelfTiming`."""

    def __init__(self, executable: OnnxRuntimeExecutable, device: LutDevice, artifact: Artifact) -> None:
        self._executable, self._device, self._artifact = executable, device, artifact

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Runs one batch; see `Executable.run`."""
        return self._executable.run(inputs)

    @cached_property
    def price(self) -> GraphPrice:
        """What one inference is expected to take; computed when first asked for.

        Raises:
            MeasurementError: as in `LutDevice.price`.
        """
        return self._device.price(self._artifact)

    @property
    def simulated_latency_s(self) -> float:
        """Seconds for one batch."""
        return self.price.seconds

    @property
    def stated_latency(self) -> Latency:
        """The price as a latency: from the table, or from the model where some of it is predicted."""
        source = "model" if self.price.unseen_share > 0 else "table"
        return Latency(self.price.seconds, 0.0, 1, source=source, standard_error_s=self.price.standard_error_s)


def _constant_s(board: Board, n_kernels: int) -> float:
    return board.inference_s + n_kernels * board.kernel_s


def _check_threads(board: Board, target: Target) -> None:
    threads = board.table.identity.settings.get("threads")
    if threads is not None and threads != target.threads:
        raise SpecError(
            f"the table of {board.name} is for {threads} threads, the target says {target.threads}; set target.threads "
            f"to {threads}"
        )


def _check_operators(board: Board, where: str) -> None:
    """Refuses misspelt operators: they would match nothing, silently."""
    known = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    for name in sorted(board.rule.operators):
        if name in known or "." in name:
            continue
        near = get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else "write other domains out, such as com.microsoft.Gelu"
        raise SpecError(f"board {where}: fusion: ONNX has no operator '{name}'; {hint}")
