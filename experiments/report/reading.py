"""A run folder as a report reads it: whatever is there by now, and what state the search is in."""

import fcntl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from ...core.errors import RunError
from ...evaluators.measurement import Measurement
from ...search.answer import Answer, answer
from ...search.budget import Budget
from ...search.knowledge import Knowledge
from ...search.record import Record
from ...spaces.space import Space
from ..budgets import resolve_budget
from ..finish import Row
from ..result_file import ResultFile
from ..run_folder import RunFolder
from ..spec import Spec
from ..spec_file import read_spec
from .journal_tail import JournalTail
from .price_record import PriceRecord, read_price_record

#: a journal that is this much younger than the result was gone on with after it; copying a folder shuffles seconds
_YOUNGER_S = 60.0


class Stage(StrEnum):
    """How far a search is."""

    #: the journal does not exist yet
    PREPARING = "preparing"
    SEARCHING = "searching"
    #: all trials are done; finalists are timed together and scored on the test split
    FINISHING = "finishing"
    ENDED = "ended"
    #: no process holds the journal, and there is no result that belongs to it
    STOPPED = "stopped"


@dataclass(frozen=True)
class Reading:
    """A run as it is now; parts that are not there yet are None or empty."""

    folder: RunFolder
    spec: Spec
    stage: Stage
    #: by id, as the search measured them
    searched: tuple[Record, ...] = ()
    #: the same, finalists with the measurement of the final rotation
    records: tuple[Record, ...] = ()
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    original: Measurement | None = None
    budget: Budget | None = None
    space: Space | None = None
    #: layer → (kind, weight shape), in the order of the graph
    layers: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    knowledge: Knowledge | None = None
    #: the final table
    rows: tuple[Row, ...] = ()
    winner: Record | None = None
    equals_uniform: bool = False
    prices: PriceRecord | None = None
    #: seconds from one trial to the next, as they were seen to come in; None where nobody watched
    pace_s: float | None = None

    @property
    def is_partial(self) -> bool:
        """Whether the search has not come to its end."""
        return self.stage is not Stage.ENDED

    @cached_property
    def answer(self) -> Answer | None:
        """What the records say by now; None before anything can be compared with the budget."""
        if self.budget is None or not self.records:
            return None
        return answer(self.records, self.budget, self.spec.objective)

    @cached_property
    def chosen(self) -> Record | None:
        """The policy that the page speaks of: the winner, else the best so far, else the nearest."""
        if self.winner is not None or self.answer is None:
            return self.winner
        return self.answer.best or self.answer.nearest

    @cached_property
    def n_samples(self) -> int:
        """The most samples on which a trial was scored: those with fewer could not win any more."""
        scores = [record.measurement.accuracy for record in self.records]
        return max((score.n for score in scores if score is not None), default=0)

    def row(self, label: str) -> Row | None:
        """Returns a row of the final table."""
        return next((row for row in self.rows if row.label == label), None)


def read_run(path: Path, tail: JournalTail | None = None, *, pace_s: float | None = None) -> Reading:
    """Reads a run folder; a search may be writing it.

    Args:
        path: the run's folder.
        tail: what was read of the journal before; only what came since is read.
        pace_s: see `Reading.pace_s`.

    Raises:
        SpecError: (or RunError) there is no run, or a file of it is damaged.
    """
    folder = RunFolder.open(path)
    spec = read_spec(folder.spec)
    tail = tail or JournalTail(folder.journal)
    tail.read()
    searched = tail.records
    original, space = folder.read_original(), folder.read_space()
    result = folder.read_result() or ResultFile()
    rows = _find_rows(folder, result, searched)
    finals = {row.record.id: row.final for row in rows}
    records = tuple(replace(r, measurement=finals.get(r.id, r.measurement)) for r in searched)
    return Reading(
        folder=folder,
        spec=spec,
        stage=_find_stage(folder, spec, len(searched), has_rows=bool(rows)),
        searched=searched,
        records=records,
        fingerprints=tail.fingerprints,
        original=original,
        budget=None if original is None else resolve_budget(spec, original),
        space=space,
        layers={layer.name: (layer.kind, layer.weight_shape) for layer in folder.read_layers()},
        knowledge=folder.read_knowledge(),
        rows=rows,
        winner=next((record for record in records if record.id == result.winner), None),
        equals_uniform=result.equals_uniform,
        prices=read_price_record(folder),
        pace_s=pace_s,
    )


def _find_rows(folder: RunFolder, result: ResultFile, records: Sequence[Record]) -> tuple[Row, ...]:
    by_id = {record.id: record for record in records}
    named = {row.trial for row in result.rows} | ({result.winner} if result.winner is not None else set())
    if missing := named - by_id.keys():
        raise RunError(
            f"{folder.result} names trials {sorted(missing)}, which the journal does not hold: one of the two is of "
            "another run; resume the run"
        )
    return tuple(Row(row.label, by_id[row.trial], row.final, row.test, row.is_feasible) for row in result.rows)


def _find_stage(folder: RunFolder, spec: Spec, n_records: int, *, has_rows: bool) -> Stage:
    if is_held(folder.journal):
        return Stage.FINISHING if n_records >= spec.search.trials else Stage.SEARCHING
    if not folder.journal.is_file():
        return Stage.PREPARING
    if not has_rows:
        return Stage.STOPPED
    younger_s = folder.journal.stat().st_mtime - folder.result.stat().st_mtime
    return Stage.STOPPED if younger_s > _YOUNGER_S else Stage.ENDED


def is_held(journal: Path) -> bool:
    """Whether a process of this machine holds a journal: a search that goes on."""
    try:
        with Path(f"{journal}.lock").open("rb") as file:
            # shared, and given back at once: looking hinders nobody
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
