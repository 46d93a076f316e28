"""``python -m trimtab.experiments.tabulated.describe``: what the tabulated problems are like, a row for each."""

import numpy as np
from rich.console import Console
from rich.table import Table as Rows
from scipy.stats import spearmanr

from ...search.knowledge import Knowledge
from .tabulated_problem import PROBLEMS, TabulatedProblem, load_problem

_HEADINGS = (
    "problem", "policies", "groups × options", "feasible", "optimum", "best uniform", "fastest at all", "noise",
    "latency foreseen", "drop foreseen",
)  # fmt: skip


def main() -> None:
    """Prints the table."""
    rows = Rows(title="tabulated problems", title_justify="left")
    for heading in _HEADINGS:
        rows.add_column(heading, justify="left" if heading == "problem" else "right")
    for name in PROBLEMS:
        rows.add_row(*_describe(load_problem(name)))
    Console(width=200).print(rows)


def _describe(problem: TabulatedProblem) -> list[str]:
    table, optimum = problem.table, problem.optimum.objective
    options = [len(options) for options in table.space.options]
    complete = table.is_complete
    uniform = min(problem.regret([policy]) for _, policy in problem.baselines)
    unbound = problem.objectives[complete].min()
    unit = table.original.latency_s if problem.problem.objective == "latency" else table.original.size_bytes
    noise = table.noise
    return [
        problem.name,
        f"{len(table)}",
        f"{len(options)} × {min(options)}…{max(options)}",
        f"{(problem.violations[complete] == 0.0).mean():.1%}",
        f"{optimum / unit:.3f}x",
        f"+{uniform:.1%}",
        f"{unbound / optimum - 1.0:+.1%}",
        f"{noise.robust_deviation:.1%} ({noise.deviation:.1%}, {noise.n_pairs} pairs)",
        foreseen_latency(problem.problem.knowledge, problem),
        foreseen_drop(problem.problem.knowledge, problem),
    ]


def foreseen_latency(knowledge: Knowledge, problem: TabulatedProblem) -> str:
    """Returns how the prior latency goes with the tabulated one: r within what is priced, and its mean error."""
    table, n_groups = problem.table, len(problem.table.space.groups)
    priced, measured = [], []
    for entries, cost in knowledge.latency.items():
        rows = np.flatnonzero((table.vectors[:, n_groups:] == entries).all(axis=1) & table.is_complete)
        priced.append(cost.value(table.vectors[rows]))
        measured.append(table.columns["ratio"][rows])
    if not priced:
        return "–"
    foreseen, seen = np.concatenate(priced), np.concatenate(measured)
    error = float(np.abs(foreseen / seen - 1.0).mean())
    return f"r {np.corrcoef(foreseen, seen)[0, 1]:.3f}, {error:.1%} off ({len(seen) / len(table):.0%})"


def foreseen_drop(knowledge: Knowledge, problem: TabulatedProblem) -> str:
    """Returns the rank correlation of the summed influence with the tabulated drop."""
    table = problem.table
    if not knowledge.influence:
        return "–"
    summed = np.sum([scores[table.vectors[:, g]] for g, scores in enumerate(knowledge.influence)], axis=0)
    complete = table.is_complete
    return f"ρ {spearmanr(summed[complete], table.columns['drop'][complete]).statistic:.3f}"


if __name__ == "__main__":
    main()
