"""What ``trimtab apply`` looks like in a terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .apply import Applied
from .reapply.suitability import Suitability

#: lines of a mapping that are shown; a policy of hundreds of layers is printed in full with --json
_N_LINES = 60


def print_applied(console: Console, applied: Applied) -> None:
    """Prints which layer is which, the artifact, and whether the policy still suits."""
    lines = applied.matching.lines
    if lines:
        _say(console, f"layers, the policy's → this model's ({len(applied.matching.pairs)} matched):")
    for line in lines[:_N_LINES]:
        _say(console, f"  {line}")
    if len(lines) > _N_LINES:
        _say(console, f"  and {len(lines) - _N_LINES} more; --json and the log give all")
    for note in applied.notes:
        _say(console, note)
    _print_suitability(console, applied.suitability)
    if not applied.is_written:
        console.print("[red bold]the policy no longer suits; no artifact was written (--strict)[/red bold]")
        return
    _say(console, f"artifact: {applied.folder}   {_describe(applied)}")


def _describe(applied: Applied) -> str:
    latency, size = applied.promise.latency, applied.promise.size_bytes
    ratio = "" if latency is None or not latency.ratio else f" ({latency.ratio:.2f}x of the original)"
    speed = [] if latency is None else [f"{latency.median_s * 1e3:.3f} ms{ratio}"]
    return ", ".join([*speed, *([] if size is None else [f"{size / 1e6:.3f} MB"])])


def _print_suitability(console: Console, found: Suitability) -> None:
    if any(drift.is_material for drift in found.drifts):
        console.print(_drift_table(found))
    if found.drift_note == found.accuracy_note and found.drift_note:
        _say(console, f"sensitivities and accuracy: {found.drift_note}")
    else:
        _say(console, f"sensitivities: {found.drift_note or _describe_drifts(found)}")
        _say(console, f"accuracy: {found.accuracy_note or _describe_drop(found)}")
    for warning in found.warnings:
        console.print(f"[red bold]warning:[/red bold] {escape(warning)}", soft_wrap=True)


def _drift_table(found: Suitability) -> Table:
    table = Table(title="what the treatments do to the output, E|Δz|² / E|z|²", title_justify="left")
    for heading in ("group", "at the search", "on these weights", "factor", ""):
        table.add_column(heading, justify="left" if heading in ("group", "") else "right")
    for drift in found.drifts:
        factor = "–" if drift.factor is None else f"{drift.factor:.2g}"
        verdict = "[red]too much[/red]" if drift.is_material else ""
        table.add_row(escape(drift.group), f"{drift.before:.1e}", f"{drift.after:.1e}", factor, verdict)
    return table


def _describe_drifts(found: Suitability) -> str:
    before, after = sum(d.before for d in found.drifts), sum(d.after for d in found.drifts)
    if not before:
        return "nothing to compare"
    return (
        f"all treatments together change the output {after / before:.2f} times as much as on the weights that the "
        f"policy was found for"
    )


def _describe_drop(found: Suitability) -> str:
    drop, limit = found.accuracy_drop, found.allowed_drop
    if drop is None or limit is None:
        return "not known"
    verdict = "kept" if found.keeps_accuracy else "broken"
    return (
        f"a drop of {100 * drop.mean:.2f} ± {100 * drop.standard_error:.2f} % on the test split, "
        f"{100 * limit:.2f} % is allowed: {verdict}"
    )


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, markup=False)
