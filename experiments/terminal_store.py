"""What a person sees of a policy store in the terminal."""

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..evaluators.measurement import Measurement
from .store.shelf import N_SHOWN_DIGITS, Shelf, Version

#: version's id → what its manifest promises, or what is damaged
Findings = Mapping[str, Measurement | str | None]


def print_shelf(console: Console, shelf: Shelf, findings: Findings) -> None:
    """Prints the versions of a model on a target, and what is damaged."""
    console.print(f"[bold]{escape(shelf.model)}[/bold] on {escape(shelf.target)}")
    table = Table("version", "stage", "published", "by", "run", "promises", "why")
    for version in shelf.versions:
        event = version.published
        table.add_row(
            version.short_id, shelf.stage(version), event.when, escape(event.who), escape(event.run),
            escape(_describe(findings.get(version.id))), escape(event.why),
        )  # fmt: skip
    console.print(table)
    damages = [*shelf.damages, *(found for found in findings.values() if isinstance(found, str))]
    for damage in damages:
        console.print(f"[red]damaged:[/red] {escape(damage)}", soft_wrap=True)


def print_history(console: Console, shelf: Shelf) -> None:
    """Prints every event, the earliest first."""
    table = Table(
        "when", "who", "did", "version", "why", title=f"history of {escape(shelf.model)}", title_justify="left"
    )
    for event in shelf.events.values():
        table.add_row(
            event.when, escape(event.who), event.action, event.version[:N_SHOWN_DIGITS], escape(event.why)
        )  # fmt: skip
    console.print(table)


def print_move(console: Console, shelf: Shelf, wanted: Version) -> None:
    """Says what is in production after a promotion or a return, and whether someone else was there at the same time."""
    now = shelf.production
    if now is None or now.id == wanted.id:
        console.print(f"in production: {escape(shelf.model)}@{wanted.short_id} on {escape(shelf.target)}")
        return
    last = list(shelf.events.values())[-1]
    console.print(f"{escape(last.who)} moved {escape(shelf.model)} at the same time; in production: "
                  f"{escape(shelf.model)}@{now.short_id}, not {wanted.short_id}", soft_wrap=True)  # fmt: skip


def _describe(found: Measurement | str | None) -> str:
    if isinstance(found, str):
        return "damaged"
    if found is None:
        return "–"
    parts = [
        f"{found.latency.median_s * 1e3:.3f} ms" if found.latency else "",
        f"{found.size_bytes / 1e6:.3f} MB" if found.size_bytes else "",
        f"accuracy {found.accuracy.mean:.4f}" if found.accuracy else "",
    ]
    return ", ".join(part for part in parts if part)
