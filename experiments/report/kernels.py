"""What the runtime really executes, before and after, and what each kernel takes by the table of the device."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from .figures import Figure, hover
from .price_record import PricedKernel
from .reading import Reading
from .wording import NOTHING, Column, Line, Table, write_microseconds

#: kinds of kernels that the picture shows, the dearest
_MOST_KINDS = 14


@dataclass(frozen=True)
class Kernels:
    """Two graphs side by side; or why they are not there."""

    figure: Figure | None = None
    kinds: Table | None = None
    before: Table | None = None
    after: Table | None = None
    notes: tuple[str, ...] = ()


@dataclass
class _Total:
    n: int = 0
    seconds: float = 0.0
    #: whether any of them has a price
    is_priced: bool = False


@dataclass
class _Kind:
    name: str
    before: _Total = field(default_factory=_Total)
    after: _Total = field(default_factory=_Total)


def compare_kernels(reading: Reading) -> Kernels:
    """Compares the original's kernels with the chosen policy's."""
    prices = reading.prices
    if prices is None:
        when = "when the search ends" if reading.is_partial else "at the end of a search; resume the run to repeat it"
        return Kernels(notes=(f"Not available: the kernels are noted {when}.",))
    notes = [f"Not available: {prices.note}."] if prices.note else []
    if not prices.before:
        return Kernels(notes=tuple(notes) or ("Not available: nothing was noted.",))
    has_prices = any(kernel.seconds is not None for kernel in (*prices.before, *prices.after))
    kinds = _sort_into_kinds(prices.before, prices.after)
    title = "after" if prices.trial is None else f"policy #{prices.trial}"
    notes += [_say_total(kernels, name) for name, kernels in (("original", prices.before), (title, prices.after))
              if has_prices and kernels]  # fmt: skip
    if has_prices:
        notes.append("Kernels are timed one by one, in their places: a whole inference takes longer, since the runtime "
                     "works between them.")  # fmt: skip
    return Kernels(
        figure=_draw(kinds, title) if has_prices else None,
        kinds=_tabulate_kinds(kinds, title),
        before=_list_kernels(prices.before, "The original, kernel by kernel, in the order of execution"),
        after=_list_kernels(prices.after, f"{title.capitalize()}, kernel by kernel, in the order of execution")
        if prices.after
        else None,
        notes=tuple(notes),
    )


def kind_of(kernel: PricedKernel) -> str:
    """Returns the operator without its domain, and the dtype of what enters it."""
    dtype = kernel.inputs[0].partition("[")[0] if kernel.inputs else ""
    return f"{kernel.op.rpartition('.')[2]} {dtype}".strip()


def _sort_into_kinds(before: Sequence[PricedKernel], after: Sequence[PricedKernel]) -> list[_Kind]:
    kinds: dict[str, _Kind] = {}
    for kernels, side in ((before, "before"), (after, "after")):
        for kernel in kernels:
            name = kind_of(kernel)
            total: _Total = getattr(kinds.setdefault(name, _Kind(name)), side)
            total.n += 1
            total.seconds += kernel.seconds or 0.0
            total.is_priced |= kernel.seconds is not None
    return sorted(kinds.values(), key=lambda kind: -max(kind.before.seconds, kind.after.seconds))


def _draw(kinds: Sequence[_Kind], title: str) -> Figure:
    shown = list(reversed(kinds[:_MOST_KINDS]))
    bars = [
        {
            "type": "bar", "orientation": "h", "name": name, "y": [_tick(kind.name) for kind in shown],
            "x": [1e6 * getattr(kind, side).seconds for kind in shown], "marker": {"color": color},
            "hoverinfo": "text", "textposition": "none",
            "hovertext": [hover(kind.name, [name, _say(getattr(kind, side))]) for kind in shown],
        }
        for name, side, color in ((title, "after", "--searched"), ("original", "before", "--muted"))
    ]  # fmt: skip
    layout = {
        "barmode": "group",
        "bargap": 0.35,
        "xaxis": {"title": {"text": "time in all kernels of the kind, µs"}, "rangemode": "tozero"},
        "yaxis": {"automargin": True, "ticks": "", "showgrid": False},
        "legend": {"traceorder": "reversed"},
    }
    return Figure(
        id="kernels",
        alt=f"Bar chart of the time in each kind of kernel, in the original and in {title}. The table lists the same.",
        views={"": {"data": bars, "layout": layout}},
        height=max(260, 90 + 42 * len(shown)),
    )


def _tick(text: str) -> str:
    import html

    return html.escape(text if len(text) <= 34 else text[:33] + "…")


def _say(total: _Total) -> str:
    return f"{total.n} kernels, {write_microseconds(total.seconds)} µs"


def _say_total(kernels: Sequence[PricedKernel], name: str) -> str:
    total_s = sum(kernel.seconds or 0.0 for kernel in kernels)
    predicted_s = sum(kernel.seconds or 0.0 for kernel in kernels if kernel.source != "table")
    text = f"{name.capitalize()}: {len(kernels)} kernels, {write_microseconds(total_s)} µs in all"
    if predicted_s > 0.0:
        text += f", {predicted_s / total_s:.0%} of it predicted from similar kernels"
    return f"{text}."


def _tabulate_kinds(kinds: Sequence[_Kind], title: str) -> Table:
    columns = (Column("kernel", False), Column("original: n"), Column("µs"), Column(f"{title}: n"), Column("µs"),
               Column("change µs"))  # fmt: skip
    lines = tuple(
        Line((
            kind.name, *_cells(kind.before), *_cells(kind.after),
            _change(kind),
        ))
        for kind in kinds
    )  # fmt: skip
    return Table("Time by kind of kernel", columns, lines)


def _cells(total: _Total) -> tuple[str, str]:
    return (str(total.n) if total.n else NOTHING, write_microseconds(total.seconds if total.is_priced else None))


def _change(kind: _Kind) -> str:
    if not (kind.before.is_priced or kind.after.is_priced):
        return NOTHING
    return f"{round(1e6 * (kind.after.seconds - kind.before.seconds), 2) + 0.0:+.2f}"


def _list_kernels(kernels: Sequence[PricedKernel], caption: str) -> Table:
    columns = (Column("node", False), Column("kernel", False), Column("reads", False), Column("writes", False),
               Column("µs"), Column("from", False))  # fmt: skip
    lines = tuple(
        Line((
            kernel.name or NOTHING, f"{kernel.op.rpartition('.')[2]} {kernel.implementation}".strip(),
            ", ".join(text for text in kernel.inputs if not text.endswith("!")), ", ".join(kernel.outputs),
            write_microseconds(kernel.seconds, kernel.standard_error_s), kernel.source or NOTHING,
        ))
        for kernel in kernels
    )  # fmt: skip
    return Table(caption, columns, lines)
