"""The answer in plain words: what was promised, what came out, what it saves, and whether the budget is kept."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ...core.errors import TrimtabError
from ...evaluators.measurement import Measurement
from ...search.answer import Answer
from ...search.budget import BOUNDS, Budget, pessimistic
from ...search.knowledge import Knowledge
from ...search.problem import Problem
from ...search.record import Record
from ..finish import Row
from ..pareto import answer_problem
from .reading import Reading, Stage
from .wording import (
    NOTHING,
    QUANTITIES,
    Column,
    Line,
    Table,
    bound_label,
    write_bound,
    write_brief,
    write_megabytes,
    write_ms,
    write_origin,
    write_percent,
    write_speed_up,
)

#: half the width of a 95 % interval in standard errors
_Z95 = 1.96


@dataclass(frozen=True, slots=True)
class Tile:
    """One number that matters, large."""

    label: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What stands at the top of the page."""

    headline: str
    #: ``kept``, ``broken`` or ``open``
    verdict: str
    sentences: tuple[str, ...]
    tiles: tuple[Tile, ...]
    #: each bound of the budget and what it was compared with
    bounds: Table | None
    #: the terminal's final table
    final: Table | None
    final_note: str = ""


def conclude(reading: Reading) -> Conclusion:
    """Draws the conclusion of a run, finished or not."""
    winner, original = reading.row("best policy"), reading.row("original")
    final = _final_table(reading) if reading.rows else None
    if reading.is_partial:
        return _conclude_partial(reading, final)
    if winner is None:
        return _conclude_unreached(reading, final)
    return Conclusion(
        headline=_headline(reading, winner),
        verdict="kept" if _keeps_on_test(winner, reading.budget) else "broken",
        sentences=tuple(_sentences(reading, winner, original)),
        tiles=_tiles(winner, original),
        bounds=_bounds_table(reading, winner.final, winner.test),
        final=final,
        final_note=_final_note(reading),
    )


def _conclude_partial(reading: Reading, final: Table | None) -> Conclusion:
    found, budget = reading.answer, reading.budget
    state = {
        Stage.PREPARING: "The search has not tried anything yet.",
        Stage.SEARCHING: "The search is still going on; what follows is what is known so far.",
        Stage.FINISHING: "All trials are done; the finalists are being timed together and scored on the test split.",
        Stage.STOPPED: "The search has stopped before its end, or its result is just being written: no process holds "
        "its journal. What follows is what is known so far.",
    }[reading.stage]
    sentences, verdict = [state], "open"
    headline = "Nothing measured yet"
    best = None if found is None else found.best or found.nearest
    if found is not None and budget is not None and best is not None:
        headline = "Best so far is policy" if found.best else "Nothing keeps the budget so far; nearest is policy"
        lost = f"{write_percent(best.measurement.accuracy_drop, sign='+')} points lost"
        headline += f" #{best.id}{_gains(reading, best.measurement, lost)}"
        sentences.append(f"It was tried as {write_origin(best)}: {write_brief(best.measurement, budget)}.")
        sentences.append(
            "These are the search's own measurements: the finalists have not been timed together, and nothing was "
            "scored on the test split yet."
        )
        bounds = _bounds_table(reading, best.measurement, None)
    else:
        bounds = None
    if reading.stage is Stage.STOPPED:
        sentences.append(f"Go on with: trimtab resume {reading.folder.path}")
    return Conclusion(headline, verdict, tuple(sentences), (), bounds, final, _final_note(reading) if final else "")


def _conclude_unreached(reading: Reading, final: Table | None) -> Conclusion:
    found, budget = reading.answer, reading.budget
    sentences = [f"None of the {len(reading.records)} policies that were tried keeps every bound."]
    nearest = None if found is None else found.nearest or found.best
    if nearest is not None and budget is not None:
        sentences.append(f"Nearest: policy #{nearest.id} ({write_origin(nearest)}), "
                         f"{write_brief(nearest.measurement, budget)}.")  # fmt: skip
    if found is not None and budget is not None:
        sentences += _relaxations(found, budget)
    for name, value in _reachable(reading).items():
        sentences.append(f"Policies that were not tried are believed to reach {bound_label(name)} "
                         f"{write_bound(name, value)} within the other bounds.")  # fmt: skip
    return Conclusion(
        headline="No policy keeps the budget",
        verdict="broken",
        sentences=tuple(sentences),
        tiles=(),
        bounds=None if nearest is None else _bounds_table(reading, nearest.measurement, None),
        final=final,
        final_note=_final_note(reading),
    )


def _relaxations(found: Answer, budget: Budget) -> Iterator[str]:
    for name, value in found.relaxations.items():
        if value is not None:
            now = write_bound(name, getattr(budget, name))
            yield f"It would be kept with {bound_label(name)} {write_bound(name, value)} (now {now})."
    if not any(value is not None for value in found.relaxations.values()):
        yield "No single bound, raised alone, would do: more than one of them is out of reach."


def _reachable(reading: Reading) -> Mapping[str, float]:
    if reading.space is None or reading.budget is None:
        return {}
    problem = Problem(reading.space, reading.budget, reading.spec.objective, reading.knowledge or Knowledge())
    try:
        return answer_problem(problem, reading.records).reachable
    except TrimtabError:  # nothing was measured: there is nothing to believe
        return {}


def _headline(reading: Reading, winner: Row) -> str:
    where = "keeps the budget" if _keeps_on_test(winner, reading.budget) else "keeps the budget on validation only"
    lost = write_percent(winner.test.accuracy_drop, sign="+")
    return f"Policy #{winner.record.id} {where}{_gains(reading, winner.final, f'{lost} points lost on test')}"


def _gains(reading: Reading, measurement: Measurement, lost: str) -> str:
    """Returns what a policy gains, the objective first, as the end of a headline; nothing where nothing is known."""
    latency, size = measurement.latency, measurement.size_bytes
    first = None if reading.original is None else reading.original.size_bytes
    gains = {
        "latency": f"{1 / latency.ratio:.2f}× as fast" if latency and latency.ratio else "",
        "size": f"{first / size:.2f}× smaller" if size and first else "",
        "accuracy": lost,
    }
    objective = reading.spec.objective
    order = [objective, *(name for name in ("latency", "size") if name != objective)]
    said = " and ".join([gains[name] for name in order if gains.get(name)][:2])
    if not said:
        return ""
    return f": {said} than the original" if said.endswith("smaller") else f": {said}, against the original"


def _drop_on_test(winner: Row, budget: Budget) -> float | None:
    """Returns what is compared with the bound on the test split; None without a bound or a score."""
    drop = winner.test.accuracy_drop
    return None if drop is None or budget.accuracy_drop is None else pessimistic(drop, budget.confidence)


def _keeps_on_test(winner: Row, budget: Budget | None) -> bool:
    worst = None if budget is None else _drop_on_test(winner, budget)
    return budget is None or worst is None or worst <= (budget.accuracy_drop or 0.0)


def _sentences(reading: Reading, winner: Row, original: Row | None) -> Iterator[str]:
    spec, budget = reading.spec, reading.budget
    yield (
        f"It is the best of {len(reading.records)} policies tried on {spec.target.to_target().name}, "
        f"where {QUANTITIES[spec.objective].label} was minimised within the budget."
    )
    if original is not None:
        yield from _against(winner, original, "the original")
    yield (
        f"Accuracy is {write_percent(winner.final.accuracy)} % on validation, which the search saw, and "
        f"{write_percent(winner.test.accuracy)} % on test, which it did not: there the drop against the original is "
        f"{write_percent(winner.test.accuracy_drop, sign='+')} points."
    )
    if budget is not None and (worst := _drop_on_test(winner, budget)) is not None:
        bound = write_bound("accuracy_drop", budget.accuracy_drop or 0.0)
        verdict = "is kept too" if _keeps_on_test(winner, budget) else "is NOT kept"
        yield (
            f"On test the bound of {bound} {verdict}: with its margin ({budget.confidence:.0%}, one-sided) the drop "
            f"counts as {100 * worst:.2f} points."
        )
    if reading.equals_uniform:
        yield "It equals the best uniform policy: nothing measurably faster was found."
    elif (uniform := reading.row("best uniform")) is not None:
        yield from _against(winner, uniform, f"the best uniform policy ({write_origin(uniform.record)})")
    if (promised := describe_promise(reading, winner)) is not None:
        yield promised


def _against(winner: Row, other: Row, name: str) -> Iterator[str]:
    parts = []
    a, b = winner.final.latency, other.final.latency
    if a is not None and b is not None:
        parts.append(f"{_change(a.median_s, b.median_s, 'time')} ({b.median_s * 1e3:.3f} → {a.median_s * 1e3:.3f} ms, "
                     f"timed together)")  # fmt: skip
    size, first = winner.final.size_bytes, other.final.size_bytes
    if size and first:
        parts.append(f"{_change(size, first, 'space')} ({first / 1e6:.3f} → {size / 1e6:.3f} MB)")
    if parts:
        yield f"Against {name} it takes {' and '.join(parts)}."


def _change(after: float, before: float, noun: str) -> str:
    share = after / before - 1.0
    if abs(share) < 0.005:
        return f"as much {noun}"
    return f"{abs(share):.0%} {'less' if share < 0 else 'more'} {noun}"


def describe_promise(reading: Reading, winner: Row) -> str | None:
    """Returns promised against achieved for the winner, as the terminal does; None where nothing was promised."""
    latency = winner.final.latency
    promises = reading.prices.promises if reading.prices else None
    promise = (promises or {}).get(winner.record.id)
    if promise is None or latency is None or latency.reference_s is None or latency.source != "measured":
        return None
    promised_s, error_s = promise.ratio * latency.reference_s, promise.standard_error * latency.reference_s
    gap = promised_s / latency.median_s - 1.0
    return (
        f"The kernel table had promised {promised_s * 1e3:.3f} ± {_Z95 * error_s * 1e3:.2g} ms (95 %); "
        f"{latency.median_s * 1e3:.3f} ms were achieved, so the promise was {gap:+.1%} off."
    )


def _tiles(winner: Row, original: Row | None) -> tuple[Tile, ...]:
    latency, size = winner.final.latency, winner.final.size_bytes
    tiles = [
        Tile("latency", f"{latency.median_s * 1e3:.3f} ms", f"{write_speed_up(latency)} the original's speed")
        if latency else None,
        Tile("file", f"{size / 1e6:.3f} MB", _size_note(size, original)) if size else None,
        Tile("accuracy on test", f"{100 * winner.test.accuracy.mean:.2f} %",
             f"± {100 * winner.test.accuracy.standard_error:.2f}, on {winner.test.accuracy.n} samples")
        if winner.test.accuracy else None,
        Tile("lost on test", f"{100 * winner.test.accuracy_drop.mean:+.2f} points",
             f"± {100 * winner.test.accuracy_drop.standard_error:.2f}, paired")
        if winner.test.accuracy_drop else None,
    ]  # fmt: skip
    return tuple(tile for tile in tiles if tile is not None)


def _size_note(size: int, original: Row | None) -> str:
    first = None if original is None else original.final.size_bytes
    return "" if not first else f"{first / size:.2f}× smaller than {first / 1e6:.3f} MB"


def _bounds_table(reading: Reading, validation: Measurement, test: Measurement | None) -> Table | None:
    """Lists each bound, what was compared with it, and how much is left."""
    budget = reading.budget
    if budget is None:
        return None
    lines = []
    for name, *_ in BOUNDS:
        bound = getattr(budget, name)
        if bound is None:
            continue
        value = budget.value_of(name, validation)
        is_kept = value is not None and value <= bound
        on_test = NOTHING
        if name == "accuracy_drop" and test is not None and test.accuracy_drop is not None:
            on_test = write_bound(name, pessimistic(test.accuracy_drop, budget.confidence))
        shown = NOTHING if value is None else write_bound(name, value)
        room = NOTHING if value is None or not bound else f"{1 - value / bound:+.0%}"
        lines.append(Line((bound_label(name), write_bound(name, bound), shown, on_test, room,
                           "kept" if is_kept else "exceeded"), "" if is_kept else "bad"))  # fmt: skip
    columns = (Column("bound", False), Column("at most"), Column("counts as, validation"), Column("counts as, test"),
               Column("room left"), Column("", False))  # fmt: skip
    return Table("The budget", columns, tuple(lines)) if lines else None


def _final_table(reading: Reading) -> Table:
    has_energy = any(row.final.energy is not None for row in reading.rows)
    columns = [Column("", False), Column("latency ms"), Column("speed-up"), Column("validation %"), Column("test %"),
               Column("test drop"), Column("size MB")]  # fmt: skip
    if has_energy:
        columns.append(Column("energy mJ"))
    columns.append(Column("budget", False))
    lines = []
    for row in reading.rows:
        energy = [] if not has_energy else [_energy(row.final)]
        tone = "winner" if row.label == "best policy" else ""
        lines.append(Line((
            _label(row.label, row.record), write_ms(row.final.latency), write_speed_up(row.final.latency),
            write_percent(row.final.accuracy), write_percent(row.test.accuracy),
            write_percent(row.test.accuracy_drop, sign="+"), write_megabytes(row.final.size_bytes), *energy,
            "kept" if row.is_feasible else "exceeded",
        ), tone))  # fmt: skip
    return Table("Timed together, in turns", tuple(columns), tuple(lines))


def _label(label: str, record: Record) -> str:
    if label == "original":
        return label
    return f"{label} · {write_origin(record).removeprefix('uniform ').removeprefix('untouched ')} #{record.id}"


def _energy(measurement: Measurement) -> str:
    energy = measurement.energy
    if energy is None:
        return NOTHING
    return f"{energy.joules * 1e3:.4g}" + (f" ± {energy.iqr_j * 1e3:.2g}" if energy.is_measured else "")


def _final_note(reading: Reading) -> str:
    sources = dict.fromkeys(
        f"Energy from {row.final.energy.source}" + (f" ({row.final.energy.note})" if row.final.energy.note else "")
        for row in reading.rows
        if row.final.energy
    )
    parts = ["Latency: median ± interquartile range. Accuracy and drop: ± one standard error.", *sources]
    return " ".join(part if part.endswith(".") else f"{part}." for part in parts)
