"""What is said of a policy: the answer, then a row for each layer with the reason for its treatment."""

from dataclasses import asdict, dataclass
from typing import Any

from ...evaluators.measurement import Measurement
from ...search.budget import BOUNDS, Budget
from ..policy_file import PolicyFile
from .notebook import show_explanation


@dataclass(frozen=True, slots=True)
class Alternative:
    """One treatment on offer for a group, everything else as in the policy; None where a number is not known."""

    #: in words
    treatment: str
    is_chosen: bool
    #: seconds that the whole model is expected to take with it
    latency_s: float | None
    #: expected accuracy drop of the whole model with it, on validation
    accuracy_drop: float | None
    #: probability, 0 to 1, that the whole model keeps the budget with it
    sureness: float | None
    #: what it alone does to the output: E|Δz|² / E|z|²
    sensitivity: float | None
    #: bytes of the group's weights with it
    size_bytes: int | None
    #: trials that differ from the policy in nothing but this
    trials: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerRow:
    """What happens to one group, what that is worth, and why; None where a number is not known.

    Latencies are those of the whole model: a layer's own time has no meaning where its neighbours decide what it has to
    convert. So ``latency_before_s - latency_after_s`` is what the treatment saves.
    """

    group: str
    layers: tuple[str, ...]
    #: the kinds of its layers, or of the structure
    kind: str
    #: in words; ``float32`` where the group is left as it is
    treatment: str
    is_treated: bool
    #: seconds that the whole model is expected to take with this group left as it is and all else as in the policy
    latency_before_s: float | None
    #: seconds that the whole model is expected to take under the policy
    latency_after_s: float | None
    #: what the treatment alone does to the output, E|Δz|² / E|z|²; of an untouched group: what the gentlest treatment
    #: on offer would do
    sensitivity: float | None
    #: bytes of the weights, as the original stores them
    size_before_bytes: int | None
    #: bytes of the weights under the policy
    size_after_bytes: int | None
    #: one line: why this treatment and not another
    reason: str
    #: every treatment on offer, the chosen one among them; empty where the space is not known
    alternatives: tuple[Alternative, ...] = ()

    @property
    def latency_saved_s(self) -> float | None:
        """Seconds that the treatment is expected to save."""
        if self.latency_before_s is None or self.latency_after_s is None:
            return None
        return self.latency_before_s - self.latency_after_s


@dataclass(frozen=True)
class Explanation:
    """A policy, what it promises and where it comes from, and a row for each group.

    >>> from trimtab.hw_profiles.target import Target
    >>> from trimtab.spaces.policy import Policy
    >>> file = PolicyFile(Policy({}), (), (), Target("onnxruntime"), {}, {"run": "digits"})
    >>> Explanation(file, rows=()).to_json()["origin"]
    {'run': 'digits'}
    """

    policy: PolicyFile
    #: in the order of the space, or of the model's layers
    rows: tuple[LayerRow, ...]
    #: what was measured of the policy; the accuracy is that of the test split where it was scored there
    promise: Measurement | None = None
    #: the original's measurement in the same search
    original: Measurement | None = None
    #: what the search had to keep
    budget: Budget | None = None
    #: what the search minimised
    objective: str | None = None
    #: what happens to the graph as a whole, and after compression, one line each
    graph: tuple[str, ...] = ()
    #: where the numbers come from, and what is not known, one line each
    notes: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        """Shows the explanation in a notebook."""
        return show_explanation(self)

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON values; what is not known is null."""
        budget = self.budget
        return {
            "policy": self.policy.policy.to_json(),
            "target": self.policy.target.to_json(),
            "origin": dict(self.policy.origin),
            "promise": None if self.promise is None else self.promise.to_json(),
            "original": None if self.original is None else self.original.to_json(),
            "budget": None if budget is None else {name: getattr(budget, name) for name, *_ in BOUNDS},
            "objective": self.objective,
            "graph": list(self.graph),
            "rows": [asdict(row) for row in self.rows],
            "notes": list(self.notes),
        }
