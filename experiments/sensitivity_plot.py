"""A picture of the influence of every option of every layer on the output."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .profiling.scatter import check_matplotlib
from .sensitivity import Sensitivity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: of a picture, in inches
_ROW, _COLUMN, _LEAST_WIDTH = 0.2, 0.5, 6.0
#: options that are drawn; combinations are the last
_MAX_COLUMNS = 18
#: with more cells than this, numbers in them cannot be read
_MAX_NUMBERS = 400
#: colours span at most this range below the largest influence
_SPAN = 1e-10


def draw_sensitivity(path: Path, sensitivity: Sensitivity, *, title: str) -> None:
    """Writes a PNG: a row for each layer, a column for each option, the colour of a cell on a logarithmic scale.

    Raises:
        SpecError: matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, every, whole = tabulate(sensitivity)
    columns, grid = every[:_MAX_COLUMNS], whole[:, :_MAX_COLUMNS]
    width = max(_LEAST_WIDTH, 2.5 + _COLUMN * len(columns) + 0.07 * max(map(len, names), default=0))
    height = 1.6 + _ROW * max(len(names), 4) + 0.06 * max(map(len, columns), default=0)
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title)
    _fill(figure, axes, grid)
    notes = ["numbers: log10 of the influence"] if grid.size <= _MAX_NUMBERS else []
    notes += [f"{len(every) - len(columns)} more combinations are not drawn"] if len(every) > len(columns) else []
    axes.set_xlabel("; ".join(notes), fontsize=8)
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(length=0)
    figure.savefig(path)


def tabulate(sensitivity: Sensitivity) -> tuple[list[str], list[str], np.ndarray]:
    """Returns group names, option labels and (n_groups, n_labels) float64 scores, NaN where an option is not on offer.

    Groups and labels that have nothing but the untouched layer are left out. What combines fewer techniques comes
    first, then what more groups offer.
    """
    space = sensitivity.space
    offers = Counter(option.label for options in space.options for option in options if option.label != "none")
    columns = sorted(offers, key=lambda label: (label.count(" + "), -offers[label]))
    rows = [g for g, options in enumerate(space.options) if any(option.label != "none" for option in options)]
    grid = np.full((len(rows), len(columns)), np.nan)
    for row, g in enumerate(rows):
        for option, score in zip(space.options[g], sensitivity.scores[g], strict=True):
            if option.label != "none":
                grid[row, columns.index(option.label)] = score
    return [space.groups[g].name for g in rows], columns, grid


def _fill(figure: Any, axes: "Axes", grid: np.ndarray) -> None:
    from matplotlib.colors import LogNorm

    positive = grid[grid > 0]
    high = float(positive.max()) if positive.size else 1.0
    low = max(float(positive.min()) if positive.size else 0.1, high * _SPAN)
    norm = LogNorm(low, high if high > low else 10 * low)
    axes.set_facecolor("0.9")  # what is not on offer
    shown = np.where(np.isnan(grid), np.nan, np.maximum(grid, low))
    image = axes.imshow(np.ma.masked_invalid(shown), norm=norm, cmap="viridis", aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="E|Δz|² / E|z|² of the option alone (grey: not on offer)")
    if grid.size > _MAX_NUMBERS:
        return
    for (row, column), score in np.ndenumerate(grid):
        if not np.isnan(score):
            is_dark = score < (low * high) ** 0.5
            text = f"{round(np.log10(score), 1) + 0.0:.1f}" if score > 0 else "0"  # -0.0 + 0.0 is 0.0
            axes.text(
                column, row, text, ha="center", va="center", fontsize=6, color="white" if is_dark else "black"
            )  # fmt: skip
