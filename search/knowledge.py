"""What is known of a space before any trial: prices, influences on the output, bytes.

Computed once per model, data and target (`experiments/knowledge.py`), kept in the run's folder, and given to every
searcher. Nothing in it depends on the budget.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core.errors import RunError
from .solver.additive_cost import AdditiveCost

#: entries of the graph-wide choices of a vector, in their order in the space
GraphEntries = tuple[int, ...]


@dataclass(frozen=True)
class Knowledge:
    """Everything is relative to the original, so that it fits any machine of the same kind; parts may be missing.

    >>> Knowledge().is_empty
    True
    """

    #: graph-wide choices → latency as a multiple of the original's; those that are not in it are not priced
    latency: Mapping[GraphEntries, AdditiveCost] = field(default_factory=dict)
    #: per group, (n_options,) float64 ≥ 0: what the option alone does to the output, E|Δz|² / E|z|² or an equivalent;
    #: 0 for the untouched layer. Empty where it is not known
    influence: tuple[np.ndarray, ...] = ()
    #: bytes of the artifact; None where they are not known
    size_bytes: AdditiveCost | None = None
    #: bytes alive at each moment of an inference: the largest is the peak; empty where they are not known
    activation_bytes: tuple[AdditiveCost, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known."""
        return not (self.latency or self.influence or self.size_bytes or self.activation_bytes)

    def price(self, setting: GraphEntries) -> AdditiveCost | None:
        """Returns the latency in a setting of the graph-wide choices, or in the known one that is most like it.

        None where no latency is known.
        """
        if not self.latency:
            return None
        best = max(self.latency, key=lambda known: sum(a == b for a, b in zip(known, setting, strict=True)))
        return self.latency[best]

    def to_json(self) -> dict[str, Any]:
        """Returns the parts as JSON values."""
        return {
            "latency": [[list(entries), cost.to_json()] for entries, cost in self.latency.items()],
            "influence": [scores.tolist() for scores in self.influence],
            "size_bytes": None if self.size_bytes is None else self.size_bytes.to_json(),
            "activation_bytes": [cost.to_json() for cost in self.activation_bytes],
        }

    @classmethod
    def from_json(cls, value: Any) -> "Knowledge":
        """Reads what `to_json` wrote.

        Raises:
            RunError: the value is not knowledge.
        """
        try:
            size = value["size_bytes"]
            return cls(
                latency={tuple(map(int, entries)): AdditiveCost.from_json(cost) for entries, cost in value["latency"]},
                influence=tuple(np.array(scores, float) for scores in value["influence"]),
                size_bytes=None if size is None else AdditiveCost.from_json(size),
                activation_bytes=tuple(AdditiveCost.from_json(cost) for cost in value["activation_bytes"]),
            )
        except (KeyError, TypeError, ValueError) as cause:
            raise RunError(f"not the knowledge of a run: {cause!r}") from cause
