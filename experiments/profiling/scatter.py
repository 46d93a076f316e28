"""A picture of prices against measurements."""

import importlib.util
from pathlib import Path

import numpy as np

from ...core.errors import SpecError

#: (n,) prices, (n,) standard errors of the prices, (n,) measurements; all in seconds
Comparison = tuple[np.ndarray, np.ndarray, np.ndarray]


def check_matplotlib() -> None:
    """Makes sure that pictures can be drawn, before anything is measured.

    Raises:
        SpecError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise SpecError("matplotlib is not installed; pip install 'trimtab[profile]'")


def draw_scatter(path: Path, comparison: Comparison, *, title: str) -> None:
    """Writes a PNG: measured latency against price with its 95 % error bar, and the band of ±10 %."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    priced, errors, measured = (1e3 * np.asarray(values) for values in comparison)
    figure = Figure(figsize=(6, 6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    low, high = 0.93 * min(priced.min(), measured.min()), 1.07 * max(priced.max(), measured.max())
    line = np.array([low, high])
    axes.fill_between(line, 0.9 * line, 1.1 * line, color="tab:blue", alpha=0.12, label="±10 %")
    axes.plot(line, line, color="tab:blue", linewidth=1)
    axes.errorbar(measured, priced, yerr=1.96 * errors, fmt="o", markersize=4, color="black", elinewidth=0.8)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal", title=title)
    axes.set_xlabel("measured latency, ms")
    axes.set_ylabel("price, ms (bars: 95 %)")
    axes.legend(loc="upper left")
    figure.savefig(path)
