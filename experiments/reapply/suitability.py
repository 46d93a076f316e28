"""Whether a policy still suits: what its treatments do to these weights, and the accuracy that it keeps on them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...evaluators.measurement import Estimate
from ...search.budget import pessimistic
from ..policy_file import PolicyFile
from .drift import AppliedModel, measure_treatments
from .evidence import Evidence

NOT_CHECKED = "not checked"

#: A treatment is warned of where it changes the output this many times as much as at the search …
FACTOR = 3.0
#: … and what it adds is more than this share of what all treatments of the policy did together at the search. Scores of
#: single layers differ by up to a factor of 8 between trainings that differ in their seed alone, but what the layer
#: added there was never more than 0.32 of the whole (docs/adr/0020).
SHARE = 1.0


@dataclass(frozen=True, slots=True)
class Drift:
    """What one treatment does to the output: on the weights that the policy was found for, and on these."""

    group: str
    #: E|Δz|² / E|z|² of the treatment alone
    before: float
    after: float
    #: whether it is so much more that the choice has to be made anew
    is_material: bool

    @property
    def factor(self) -> float | None:
        """How many times as much; None where it was nothing before."""
        return self.after / self.before if self.before > 0 else None


@dataclass(frozen=True)
class Suitability:
    """What the checks of an applied policy found; what could not be checked says why.

    >>> Suitability().warnings
    ()
    """

    #: treated groups, in the order of the policy; empty where they were not checked
    drifts: tuple[Drift, ...] = ()
    #: why sensitivities were not checked; empty where they were
    drift_note: str = ""
    #: treated group → why its treatment has no finite influence on these weights
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    #: on the test split
    accuracy_drop: Estimate | None = None
    #: what the drop, with its margin, had to stay below
    allowed_drop: float | None = None
    #: one-sided confidence of that margin
    confidence: float = 0.8
    #: why the accuracy was not checked; empty where it was
    accuracy_note: str = ""

    @property
    def keeps_accuracy(self) -> bool | None:
        """Whether the drop keeps its bound, tested as the search does; None where that was not checked."""
        if self.accuracy_note or self.accuracy_drop is None or self.allowed_drop is None:
            return None
        return pessimistic(self.accuracy_drop, self.confidence) <= self.allowed_drop

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user has to act upon, one line each."""
        return tuple(self._warn())

    @property
    def suits(self) -> bool:
        """Whether nothing that was checked speaks against the policy."""
        return not self.warnings

    def _warn(self) -> Iterator[str]:
        if self.keeps_accuracy is False and self.accuracy_drop is not None and self.allowed_drop is not None:
            drop = self.accuracy_drop
            yield (
                f"the policy no longer keeps its accuracy: on these weights it drops by {100 * drop.mean:.2f} ± "
                f"{100 * drop.standard_error:.2f} %, where the search allowed {100 * self.allowed_drop:.2f} %; "
                f"search anew"
            )
        for drift in self.drifts:
            if drift.is_material:
                times = "from nothing" if drift.factor is None else f"{drift.factor:.1f} times as much as"
                yield (
                    f"{drift.group}: its treatment changes the output {times} on the weights that the policy was found "
                    f"for ({drift.before:.1e} → {drift.after:.1e}); leave it untreated, or search anew"
                )
        for group, reason in self.unmeasured.items():
            yield f"{group}: its treatment cannot be had on these weights: {reason}"

    def to_json(self) -> dict[str, Any]:
        """Returns the findings as JSON values."""
        drop = self.accuracy_drop
        return {
            "suits": self.suits,
            "warnings": list(self.warnings),
            "drifts": [
                {"group": d.group, "before": d.before, "after": d.after, "factor": d.factor, "material": d.is_material}
                for d in self.drifts
            ],
            "drift_note": self.drift_note,
            "unmeasured": dict(self.unmeasured),
            "accuracy_drop": None if drop is None else drop.to_json(),
            "allowed_drop": self.allowed_drop,
            "keeps_accuracy": self.keeps_accuracy,
            "accuracy_note": self.accuracy_note,
        }


def compare_sensitivities(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[Drift, ...]:
    """Compares the scores of treatments on old and on new weights.

    Args:
        before: group → score at the search.
        after: group → score now; groups that stand in both are compared.
    """
    whole = sum(before.values())
    return tuple(
        Drift(
            group,
            before[group],
            after[group],
            is_material=after[group] > FACTOR * before[group] and after[group] - before[group] > SHARE * whole,
        )
        for group in before
        if group in after
    )


def check_suitability(applied: AppliedModel | None, file: PolicyFile, drop: Estimate | None) -> Suitability:
    """Compares what is seen on these weights with what the search knew.

    Args:
        applied: the model and the data; None without data.
        file: the policy in the names of this model.
        drop: on the test split; None without data.

    Raises:
        ModelError: the original's outputs are 0 throughout, or not finite.
    """
    evidence = file.evidence
    if applied is None:
        note = f"{NOT_CHECKED}: that needs data (--data)"
        return Suitability(drift_note=note, accuracy_note=note)
    if evidence is None:
        note = f"{NOT_CHECKED}: the policy does not hold what its search knew, for an earlier version wrote it"
        return Suitability(drift_note=note, accuracy_drop=drop, accuracy_note=note)
    limit, accuracy_note = _allowed_drop(evidence)
    found = Suitability(
        accuracy_drop=drop, allowed_drop=limit, confidence=evidence.confidence, accuracy_note=accuracy_note
    )
    if not evidence.sensitivity:
        return replace(found, drift_note=f"{NOT_CHECKED}: the search did not measure sensitivities")
    after, lost = measure_treatments(applied)
    return replace(found, drifts=compare_sensitivities(evidence.sensitivity, after), unmeasured=lost)


def _allowed_drop(evidence: Evidence) -> tuple[float | None, str]:
    """Returns what the drop has to stay below; None with the reason where nothing says so."""
    if evidence.allowed_drop is not None:
        return evidence.allowed_drop, ""
    drop = evidence.accuracy_drop
    if drop is None:
        return None, f"{NOT_CHECKED}: the policy holds neither the drop of the search nor a bound for it"
    # without a bound: no worse than at the search, as far as its own uncertainty lets one tell
    return drop.mean + 2 * drop.standard_error, ""
