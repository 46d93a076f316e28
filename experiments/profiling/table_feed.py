"""Every search teaches the kernel table of its device."""

import logging
import time
from collections import Counter
from dataclasses import dataclass, field

from ...compressors.artifact import Artifact
from ...core.cache import cache_folder
from ...core.errors import MeasurementError, SpecError, TableError, TransientError
from ...evaluators.kernel_timing import SteadyTimer, find_usual_s
from ...hw_profiles.kernels.kernel import KernelTiming
from ...hw_profiles.kernels.kernel_table import GraphObservation, KernelTable
from ...hw_profiles.kernels.shipped import open_table, user_table_path
from ...hw_profiles.kernels.table_file import update_table
from ...hw_profiles.kernels.table_identity import TableIdentity
from ...hw_profiles.latency import Latency

_log = logging.getLogger(__name__)

#: runs in which a trial's kernels are timed: a tenth or so of the time that its latency takes
_RUNS = 10
#: seconds between writes: rewriting a table of thousands of kernels takes half a second
_WRITE_EVERY_S = 5.0


@dataclass
class TableFeed:
    """Times the kernels of what a search measures and puts them into the user's table; it never fails a trial."""

    timer: SteadyTimer
    #: the untouched model
    original: Artifact
    #: names the model in tables
    model: str
    #: names the search in tables
    source: str
    _waiting: list[tuple[str, Latency, tuple[KernelTiming, ...]]] = field(default_factory=list)
    _is_settled: bool = False
    _written_s: float = field(default_factory=time.monotonic)

    def add(self, artifact: Artifact, latency: Latency) -> None:
        """Times the kernels of an artifact that was just measured; it is written a few seconds later at most.

        Args:
            artifact: what was measured.
            latency: its latency, timed in turns with the original.
        """
        if not self._is_settled:
            self._settle()
        try:
            timings = self.timer.time_kernels(artifact, runs=_RUNS)
            self._waiting.append((f"{self.source} {artifact.sha256[:8]}", self.timer.steady(latency), timings))
        except MeasurementError as error:
            _log.info("the kernels of a trial could not be timed: %s", error)
        if time.monotonic() - self._written_s > _WRITE_EVERY_S:
            self.write()

    def _settle(self) -> None:
        """Brings all times to the speed of what the table holds already, where it knows the original."""
        self._is_settled = True
        device = self.timer.device
        try:
            table = open_table(TableIdentity.of(device.identify()), cache_folder())
        except TableError as error:
            _log.warning("the kernel table is not read: %s", error)
            return
        self.timer.usual_s = find_usual_s(device, self.original, table, model=self.model)

    def write(self) -> None:
        """Puts what waits into the user's table; where that fails, the log says why and the search goes on."""
        self._written_s = time.monotonic()
        if not self._waiting:
            return
        identity = TableIdentity.of(self.timer.device.identify())
        try:
            update_table(user_table_path(identity, cache_folder()), self._enter, identity=identity)
            self._waiting.clear()
        except (SpecError, TransientError) as error:
            _log.warning("the kernel table was not written: %s", error)

    def _enter(self, table: KernelTable) -> None:
        for source, latency, timings in self._waiting:
            table.add(timings, source)
            kernels = Counter(timing.kernel for timing in timings)
            table.add_graph(GraphObservation.of(kernels, latency, model=self.model, source=source), kernels)
