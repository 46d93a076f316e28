"""What a person sees in the terminal: progress, the final table, the verdict of a verification."""

import time
from collections.abc import Sequence
from itertools import zip_longest
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ..evaluators.measurement import Measurement
from ..search.answer import describe_relaxation
from ..search.budget import BOUNDS, Budget
from ..search.record import Record, Status
from ..spaces.options import TECHNIQUES, describe_option
from ..spaces.treatment import Treatment
from .finish import Row
from .launch import SearchResult
from .offer import find_size_only
from .preparation import Preparation
from .report.wording import write_megabytes, write_ms, write_percent, write_speed_up
from .verify import Verification


class TerminalObserver:
    """A progress bar with ETA and best-so-far; says nothing where the output is not a terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[best]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("preparing", total=None, best="")
        self._n_failed = self._n_stopped = 0
        self.started_s = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def on_start(self, n_planned: int, n_done: int) -> None:
        """Shows how many trials there will be, and how many are done already."""
        self._progress.update(self._task, description="searching", total=n_planned, completed=n_done)

    def on_record(self, record: Record, best: Record | None) -> None:
        """Moves the bar and shows the best so far."""
        self._n_failed += record.status is Status.FAILED
        self._n_stopped += record.status is Status.PRUNED
        text = "best so far: none within the budget"
        if best is not None:
            text = f"best so far: {_brief(best.measurement)} (trial {best.id})"
        if self._n_failed:
            text += f", {self._n_failed} failed"
        if self._n_stopped:
            text += f", {self._n_stopped} stopped early"
        self._progress.update(self._task, advance=1, best=text)

    def on_stop(self, reason: str) -> None:
        """Shows why the search ended."""
        self._progress.update(self._task, description=f"done ({reason})")


def say(console: Console, text: str) -> None:
    """Prints text as it is: names and paths are neither wrapped nor read as rich's markup."""
    console.print(text, soft_wrap=True, markup=False)


def print_result(console: Console, result: SearchResult) -> None:
    """Prints the final table, the answer, and what to do next."""
    console.print(_final_table(result.rows))
    for line in _energy_lines(result.rows):
        say(console, line)
    _print_answer(console, result)


def _final_table(rows: Sequence[Row]) -> Table:
    table = Table(title="timed together, in turns; accuracy in %", title_justify="left")
    has_energy = any(row.final.energy is not None for row in rows)
    energy_heading = ("energy mJ",) if has_energy else ()
    headings = ("", "latency ms", "speed-up", "validation", "test", "test drop", "size MB", *energy_heading, "budget")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("", "budget") else "right", no_wrap=True)
    for row in rows:
        label = row.label if row.label == "original" else f"{row.label} [dim]{_origin(row.record)}[/dim]"
        table.add_row(
            label,
            write_ms(row.final.latency),
            write_speed_up(row.final.latency),
            write_percent(row.final.accuracy),
            write_percent(row.test.accuracy),
            write_percent(row.test.accuracy_drop, sign="+"),
            write_megabytes(row.final.size_bytes),
            *([_energy(row.final)] if has_energy else []),
            "kept" if row.is_feasible else "[red]exceeded[/red]",
            style="bold" if row.label == "best policy" else None,
        )
    return table


def _energy(measurement: Measurement) -> str:
    energy = measurement.energy
    if energy is None:
        return "–"
    # the range of a table is that of its source, the same for all: it would look like noise here
    spread = f" ± {energy.iqr_j * 1e3:.2g}" if energy.is_measured else ""
    return f"{energy.joules * 1e3:.4g}{spread}"


def _energy_lines(rows: Sequence[Row]) -> list[str]:
    """Says once per source where the energies come from, and why from there."""
    found = dict.fromkeys((row.final.energy.source, row.final.energy.note) for row in rows if row.final.energy)
    return [f"energy from {source}" + (f" ({note})" if note else "") for source, note in found]


def _print_answer(console: Console, result: SearchResult) -> None:
    if not result.is_feasible:
        console.print("[bold]No policy keeps the budget.[/bold]")
        nearest = result.answer.nearest or result.answer.best
        if nearest is not None:
            say(console, f"nearest reachable: trial {nearest.id}, {_brief(nearest.measurement)}")
        for name, value in result.answer.relaxations.items():
            if value is not None:
                say(
                    console,
                    f"it would be kept with {describe_relaxation(name, value)} (now {_bound(result.budget, name)})",
                )
        for name, value in result.reachable.items():
            say(console, f"untried policies are believed to reach {describe_relaxation(name, value)}")
        say(console, f"run: {result.run}")
        return
    if result.equals_uniform:
        console.print("The best policy equals the best uniform one: nothing measurably faster was found.")
    if (text := _describe_promise(result)) is not None:
        say(console, text)
    say(console, f"policy:   {result.run / 'policy.json'}")
    say(console, f"artifact: {result.artifact}   check it: trimtab verify {result.artifact}")


def _describe_promise(result: SearchResult) -> str | None:
    """Returns promised against achieved for the winner; None where the table could promise nothing."""
    promised = result.promised
    achieved = next((row.final.latency for row in result.rows if row.label == "best policy"), None)
    if promised is None or achieved is None:
        return None
    gap = promised.median_s / achieved.median_s - 1.0
    return (
        f"promised by the kernel table: {promised.median_s * 1e3:.3f} ± {1.96 * promised.error_s * 1e3:.2g} ms (95 %), "
        f"achieved: {achieved.median_s * 1e3:.3f} ms, so the promise was {gap:+.1%} off"
    )


def _bound(budget: Budget, name: str) -> str:
    factor, unit = next((factor, unit) for bound, _, factor, unit in BOUNDS if bound == name)
    return f"{getattr(budget, name) * factor:.4g} {unit}".strip()


def _brief(measurement: Measurement) -> str:
    parts = []
    if measurement.latency is not None:
        ratio = f" ({measurement.latency.ratio:.2f}x)" if measurement.latency.ratio else ""
        parts.append(f"{measurement.latency.median_s * 1e3:.3f} ms{ratio}")
    if measurement.accuracy_drop is not None:
        parts.append(f"drop {100 * measurement.accuracy_drop.mean:+.2f} %")
    if measurement.size_bytes is not None:
        parts.append(f"{measurement.size_bytes / 1e6:.3f} MB")
    if measurement.energy is not None:
        parts.append(f"{measurement.energy.joules * 1e3:.4g} mJ")
    return ", ".join(parts) or "nothing measured"


def _origin(record: Record) -> str:
    origin = record.origin.removeprefix("baseline:").removeprefix("uniform ").removeprefix("untouched ")
    return f"{origin} #{record.id}"


def print_verification(console: Console, verification: Verification) -> None:
    """Prints promised against achieved, and the verdict."""
    table = Table()
    for heading in ("", "promised", "achieved", "verdict", "note"):
        table.add_column(heading)
    for check in verification.checks:
        verdict = "kept" if check.is_kept else "[red]broken[/red]"
        table.add_row(check.name, escape(check.promised), escape(check.achieved), verdict, escape(check.note))
    say(console, f"artifact {verification.folder}")
    console.print(table)
    console.print("every promise is kept" if verification.is_kept else "[red bold]a promise is broken[/red bold]")


def print_plan(console: Console, preparation: Preparation, n_baselines: int) -> None:
    """Prints layers, space, what fell away and why."""
    space, offer = preparation.space, preparation.offer
    offered = {layer: options for group, options in zip(space.groups, space.options, strict=True)
               for layer in group.layers if group.kind == "layers"}  # fmt: skip
    table = Table(title=f"{preparation.spec.name} on {preparation.device.target.name}", title_justify="left")
    for heading in ("layer", "kind", "weight", "parameters", "MACs", "options"):
        table.add_column(heading, justify="right" if heading in ("parameters", "MACs") else "left")
    for layer in preparation.model.layers:
        options = _describe_options(offered[layer.name])
        shape = "×".join(map(str, layer.weight_shape))
        table.add_row(escape(layer.name), layer.kind, shape, f"{layer.n_parameters:,}", f"{layer.macs:,}", options)
    console.print(table)
    _print_structures(console, preparation)
    graph = space.graph
    say(console, f"fusion: {', '.join(graph.fusion)} · calibration: {', '.join(graph.calibration)}")
    operators = ", ".join("+".join(ops) or "none" for ops in graph.quantized_ops)
    say(console, f"quantized ops: {operators} · precision: {', '.join(graph.precision)}")
    refinements = {"rounding": graph.rounding, "equalization": graph.equalization, "correction": graph.correction}
    say(console, " · ".join(f"{name}: {', '.join(values)}" for name, values in refinements.items()))
    say(console, f"recovery: {', '.join(recovery.label for recovery in graph.recovery)}")
    size_only = find_size_only(offer, preparation.device.capabilities.size_only)
    if size_only:
        say(console, f"size only: {', '.join(size_only)}: a smaller file, and no less time on this target")
    say(console, f"space: {space.size:.3g} policies, {n_baselines} of them baselines")
    dropped: dict[tuple[str, str], list[str]] = {}
    for drop in offer.dropped:
        dropped.setdefault((drop.option, drop.reason), []).append(drop.layer)
    for (option, reason), layers in dropped.items():
        shown = ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
        say(console, f"dropped: {option} on {shown}: {reason}")
    for name, reason in offer.dropped_graph:
        say(console, f"dropped: {name}: {reason}")
    say(console, preparation.profile_note)


def _describe_options(options: Sequence[Treatment]) -> str:
    """Returns what each technique offers; their combinations are on offer too."""
    parts = []
    for technique in TECHNIQUES:
        found = dict.fromkeys(describe_option(technique, option) for option in options)
        if set(found) != {"none"}:
            parts.append(f"{technique} {', '.join(found)}")
    return "; ".join(parts) or "none"


def _print_structures(console: Console, preparation: Preparation) -> None:
    """Prints what can be pruned, what is tied to it, what is on offer for it, and what cannot be pruned and why."""
    found, space = preparation.model.found, preparation.space
    if found is None:
        return
    from ..compressors.pruning.structures import describe_structures

    offered = {group.name: options for group, options in zip(space.groups, space.options, strict=True)}
    for line, structure in zip_longest(describe_structures(found), found.structures):
        name = None if structure is None else structure.name
        say(console, f"{line}: {_describe_options(offered[name])}" if name in offered else line)
