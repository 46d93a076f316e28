"""Figures as plotly.js reads them: plain JSON, whose colours are names that the page's style resolves.

A value of a key that ends in ``color`` may be ``--name``: the script replaces it by the style's variable of that name,
anew whenever light becomes dark. What a file said is escaped: plotly reads texts as a subset of HTML.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: characters of one line of a hover text
_MAX_LINE = 90


@dataclass(frozen=True)
class Figure:
    """One figure; with several views a person chooses between them."""

    id: str
    #: what is to be seen, for those who do not
    alt: str
    #: label → {data, layout}
    views: Mapping[str, Mapping[str, Any]]
    caption: str = ""
    #: pixels on a wide screen
    height: int = 420

    def to_json(self) -> dict[str, Any]:
        """Returns what the script draws."""
        return {"height": self.height, "views": [{"label": label, **view} for label, view in self.views.items()]}


@dataclass
class Cloud:
    """Points that share a look and an entry of the legend."""

    name: str
    color: str
    symbol: str
    size: int = 9
    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    x_errors: list[float | None] = field(default_factory=list)
    y_errors: list[float | None] = field(default_factory=list)

    def add(self, x: float, y: float, text: str, errors: tuple[float | None, float | None] = (None, None)) -> None:
        """Adds a point with its hover text and the standard errors of x and y."""
        self.x.append(x)
        self.y.append(y)
        self.texts.append(text)
        self.x_errors.append(errors[0])
        self.y_errors.append(errors[1])

    def to_json(self, **more: Any) -> dict[str, Any]:
        """Returns a trace of plotly.js."""
        width = 2 if self.symbol.endswith("-open") else 1
        trace: dict[str, Any] = {
            "type": "scatter",
            "mode": "markers",
            "name": self.name,
            "x": self.x,
            "y": self.y,
            "hoverinfo": "text",
            "hovertext": self.texts,
            "marker": {
                "color": self.color,
                "symbol": self.symbol,
                "size": self.size,
                "line": {"width": width, "color": self.color if width == 2 else "--surface"},
            },
        }
        for axis, errors in (("error_x", self.x_errors), ("error_y", self.y_errors)):
            if any(error is not None for error in errors):
                trace[axis] = {"type": "data", "array": errors, "color": self.color, "thickness": 1, "width": 0}
        return {**trace, **more}


def hover(title: str, lines: Sequence[str]) -> str:
    """Returns a hover text: a bold title over lines; what is too long for one line is cut off."""
    short = [line if len(line) <= _MAX_LINE else line[: _MAX_LINE - 1] + "…" for line in (title, *lines)]
    first, *rest = [html.escape(line) for line in short]
    return "<br>".join([f"<b>{first}</b>", *rest])


def horizontal(y: float, name: str, color: str) -> dict[str, Any]:
    """Returns a labelled line across the figure."""
    return {
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "layer": "below",
        "line": {"color": color, "width": 1.5, "dash": "dash"},
        "label": {"text": html.escape(name), "textposition": "end", "font": {"color": color, "size": 11},
                  "yanchor": "bottom"},
    }  # fmt: skip


def vertical(x: float, name: str, color: str) -> dict[str, Any]:
    """Returns a labelled line from top to bottom."""
    return {
        "type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": x, "x1": x, "layer": "below",
        "line": {"color": color, "width": 1.5, "dash": "dash"},
        "label": {"text": html.escape(name), "textposition": "end", "textangle": 0, "xanchor": "right",
                  "yanchor": "top", "font": {"color": color, "size": 11}},
    }  # fmt: skip
