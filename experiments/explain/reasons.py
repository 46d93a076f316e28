"""Why a group has its treatment: one line, made of what is known and of nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...search.budget import Budget
from .outlook import Change, Difference
from .words import kilobytes, milliseconds, percent

#: a policy that keeps the budget less surely than this is said to miss it
_SURE = 0.5
#: other options that a line speaks of
_N_OTHERS = 2


@dataclass(frozen=True, slots=True)
class Option:
    """An option on offer for a group, in words, and what it makes of the policy."""

    words: str
    change: Change


@dataclass(frozen=True, slots=True)
class Case:
    """All that decides on a group."""

    #: in words
    chosen: str
    is_treated: bool
    #: what leaving the group as it is would make of the policy; None where that is not on offer, or chosen
    untouched: Change | None
    #: every option that is not chosen
    others: Sequence[Option]
    #: seconds of the whole model under the policy; None where they are not known
    latency_s: float | None
    #: bytes of the group's weights in the original
    size_bytes: int | None
    budget: Budget
    objective: str


def give_reason(case: Case) -> str:
    """Returns one line: what the treatment is worth, and what speaks against the others."""
    if not case.others:
        return f"nothing but {case.chosen} was on offer"
    treated = [o for o in case.others if o.change is not case.untouched]
    against = [_speak_against(case, option) for option in _most_tempting(case, treated)[:_N_OTHERS]]
    if not case.is_treated:
        return f"stays {case.chosen}: {'; '.join(against)}"
    if case.untouched is None:
        return f"leaving it as it is was not on offer; {'; '.join(against)}"
    return "; ".join([_speak_for(case, case.untouched), *against])


def _speak_for(case: Case, untouched: Change) -> str:
    """Says what would be lost without the treatment."""
    if untouched.failure:
        return f"{case.chosen}: without it the policy could not be had ({untouched.failure})"
    parts = [*_say_saved(case, untouched)]
    if untouched.drop is not None:
        parts.append(_say_drop(case, untouched.drop))
    if untouched.sureness < _SURE:
        parts.append(f"without it the budget would be kept with {percent(untouched.sureness)} only")
    return f"{case.chosen} {', '.join(parts)}{_say_source(untouched)}"


def _say_saved(case: Case, untouched: Change) -> list[str]:
    latency, size = untouched.latency_s, untouched.size_bytes
    saved: list[str] = []
    costs: list[str] = []
    if latency is not None:
        whole = "" if case.latency_s is None else f" of {milliseconds(case.latency_s + latency.value)}"
        (saved if latency.value >= 0 else costs).append(f"{milliseconds(abs(latency.value))}{whole}")
    if size:
        whole = "" if case.size_bytes is None else f" of {kilobytes(case.size_bytes)}"
        (saved if size > 0 else costs).append(f"{kilobytes(abs(size))}{whole}")
    said = [f"{verb} {' and '.join(what)}" for verb, what in (("saves", saved), ("costs", costs)) if what]
    return said if latency is not None else [*said, "changes the latency by an amount that is not known"]


def _say_drop(case: Case, without: Difference) -> str:
    """Says what the treatment costs in accuracy, where it is seen at all."""
    lost, limit = -without.value, case.budget.accuracy_drop
    if not without.is_clear or lost <= 0:
        room = "" if not limit else f" (± {percent(without.error)}; {percent(limit)} is allowed)"
        return f"costs no accuracy that can be told from chance{room}"
    share = "" if not limit else f" ({percent(lost / limit)} of the allowed drop)"
    return f"costs {percent(lost)} accuracy{share}"


def _speak_against(case: Case, option: Option) -> str:
    """Says why an option was not chosen."""
    change = option.change
    if change.failure:
        return f"{option.words} could not be had: {change.failure}"
    source = _say_source(change)
    if change.sureness < _SURE:
        return f"{option.words} would {_say_broken(case, change)}{source}"
    value, unit = _on_objective(case, change)
    if value is None:
        return f"what {option.words} would change is not known"
    if value.value > 0:
        return f"{option.words} would be {unit(value.value)}{_say_borders(case, change)}{source}"
    if not value.is_clear:
        return f"{option.words} would make no difference that can be told from chance{source}"
    better = "measured in the search, and not confirmed at its end" if change.trials else "it was not tried"
    return f"{option.words} is expected to be better by {_amount(case, -value.value)}, but {better}"


def _say_broken(case: Case, change: Change) -> str:
    drop, limit = change.drop, case.budget.accuracy_drop
    if drop is not None and limit is not None and drop.value > limit / 2:
        return f"cost {percent(drop.value)} more accuracy, where {percent(limit)} is allowed"
    latency, bound = change.latency_s, case.budget.latency_s
    if latency is not None and bound is not None and latency.value > 0:
        return f"be {milliseconds(latency.value)} slower, beyond the budget"
    return f"keep the budget with {percent(change.sureness)} only"


def _say_borders(case: Case, change: Change) -> str:
    if not change.converting or case.objective != "latency":
        return ""
    names = ", ".join(change.converting[:3])
    return f", for it would have to convert at the borders to {names}"


def _say_source(change: Change) -> str:
    return f" (measured: trial {change.trials[0]})" if change.trials else ""


def _most_tempting(case: Case, options: Sequence[Option]) -> list[Option]:
    """Sorts options: those that promise most for the objective first, those of which nothing is known last."""

    def key(option: Option) -> tuple[bool, float]:
        value, _ = _on_objective(case, option.change)
        return (value is None, 0.0 if value is None else value.value)

    return sorted(options, key=key)


def _on_objective(case: Case, change: Change) -> tuple[Difference | None, Callable[[float], str]]:
    """Returns how much the objective would grow, and how a person says that."""
    if case.objective == "latency":
        return change.latency_s, lambda worse: f"{milliseconds(worse)} slower"
    if case.objective == "accuracy":
        return change.drop, lambda worse: f"less accurate by {percent(worse)}"
    if case.objective == "size" and change.size_bytes is not None:
        return Difference(change.size_bytes, 0.0, is_measured=False), lambda worse: f"{kilobytes(worse)} larger"
    return None, str


def _amount(case: Case, value: float) -> str:
    return {"latency": milliseconds, "accuracy": percent, "size": kilobytes}[case.objective](value)
