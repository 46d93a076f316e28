"""result.json of a run: its final table and its winner, as numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..evaluators.measurement import Measurement


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One line of the final table."""

    #: ``original``, ``runtime default``, ``best uniform`` or ``best policy``
    label: str
    #: the record's id
    trial: int
    #: why the policy was proposed, see `Record.origin`
    origin: str
    is_feasible: bool
    #: timed together with the other rows; accuracy on validation
    final: Measurement
    #: accuracy and drop on the test split
    test: Measurement

    def to_json(self) -> dict[str, Any]:
        """Returns the row as JSON values."""
        return {
            "label": self.label,
            "trial": self.trial,
            "origin": self.origin,
            "feasible": self.is_feasible,
            "final": self.final.to_json(),
            "test": self.test.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ResultRow":
        """Reads what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: the value is something else.
        """
        return cls(
            label=str(value["label"]),
            trial=int(value["trial"]),
            origin=str(value["origin"]),
            is_feasible=bool(value["feasible"]),
            final=Measurement.from_json(value["final"]),
            test=Measurement.from_json(value["test"]),
        )


@dataclass(frozen=True, slots=True)
class ResultFile:
    """What a search ended with; without anything, what there is before that.

    >>> ResultFile.from_json(ResultFile(winner=3).to_json()).winner
    3
    """

    rows: tuple[ResultRow, ...] = ()
    #: the winner's id; None when nothing keeps the budget
    winner: int | None = None
    #: the winner is the best uniform policy, or as fast as it within the spread
    equals_uniform: bool = False

    def row(self, label: str) -> ResultRow | None:
        """Returns the row with a label; None where the table has none."""
        return next((row for row in self.rows if row.label == label), None)

    def finals(self) -> dict[int, Measurement]:
        """Returns trial → its measurement in the final rotation, which replaces the search's own."""
        return {row.trial: row.final for row in self.rows}

    def to_json(self) -> dict[str, Any]:
        """Returns the content of the file."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "winner": self.winner,
            "equals_uniform": self.equals_uniform,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ResultFile":
        """Reads what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: the value is something else.
        """
        return cls(
            rows=tuple(ResultRow.from_json(row) for row in value["rows"]),
            winner=None if value["winner"] is None else int(value["winner"]),
            equals_uniform=bool(value["equals_uniform"]),
        )
