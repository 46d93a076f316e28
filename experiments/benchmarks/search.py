"""``make bench-search``: every searcher on problems whose best policy is known, many seeds, without luck.

Regret after 10, 25, 50 and 100 evaluations, and the hypervolume; the untouched model and the uniform policies are
evaluations, too, and come first, as in every search. ``plain nsga2`` is Optuna's NSGA-II as a user would call it: its
own population of 50, all objectives, the budget as constraints, no baselines, and policies that it proposes twice are
evaluated twice.

Results are kept in the cache, one file for each problem, searcher and seed, and are not computed again.
"""

import argparse
import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ...core.cache import cache_folder
from ...core.errors import MeasurementError, PolicyError
from ...core.files import write_json
from ...search.searcher import Verdict, build_searcher, give_verdict
from ...spaces.policy import Policy
from ..tabulated.synthetic import SyntheticProblem, SyntheticShape, make_synthetic
from ..tabulated.tabulated_problem import PROBLEMS, TABLE_FOLDER, TabulatedProblem, load_problem

SEARCHERS = (
    "auto", "evolution", "greedy", "policy_gradient", "cmaes", "tpe", "nsga2", "nsga3", "gp", "random", "plain nsga2"
)  # fmt: skip
#: evaluations after which the regret is told
AFTER = (10, 25, 50, 100)
_BATCH = 4
#: modules of `search/` that run and keep trials, which tabulated ones are not
_RUNS_TRIALS = re.compile("pool|ray|asha|attempt|journal|controller|contract|testing|crew")
#: a Gaussian process of Optuna takes seconds a suggestion: fewer seeds, and half as many evaluations
_DEAR, _DEAR_SEEDS, _DEAR_EVALUATIONS = "gp", 5, 50
#: synthetic problems beside the tabulated ones: name → shape
SYNTHETIC = {
    "synthetic-12": SyntheticShape(n_groups=12, n_options=3, seed=1),
    "synthetic-40": SyntheticShape(n_groups=40, n_options=4, seed=2),
    "synthetic-40-blind": SyntheticShape(n_groups=40, n_options=4, seed=2, is_informed=False),
}

AnyProblem = TabulatedProblem | SyntheticProblem


@dataclass(frozen=True)
class Run:
    """One searcher on one problem with one seed."""

    problem: str
    searcher: str
    seed: int

    @property
    def n_evaluations(self) -> int:
        """Policies that are evaluated at the most."""
        return _DEAR_EVALUATIONS if self.searcher == _DEAR else AFTER[-1]


@cache
def find_problem(name: str) -> AnyProblem:
    """Loads a tabulated problem, or makes a synthetic one."""
    return make_synthetic(SYNTHETIC[name]) if name in SYNTHETIC else load_problem(name)


def evaluate(run: Run) -> dict[str, Any]:
    """Searches; returns regret after each evaluation, the hypervolume where there is one, and the seconds."""
    warnings.simplefilter("ignore")
    problem = find_problem(run.problem)
    started_s = time.perf_counter()
    trace = list(_plain_nsga2(problem, run) if run.searcher == "plain nsga2" else _trace(problem, run))
    seconds = time.perf_counter() - started_s
    volume = problem.relative_hypervolume(trace) if isinstance(problem, TabulatedProblem) else None
    # infinite regret has no JSON: nothing feasible is known yet
    regrets = [float(r) if np.isfinite(r) else None for r in problem.regrets(trace)]
    return {"regrets": regrets, "hypervolume": volume, "seconds": seconds, "n_baselines": len(problem.baselines)}


def _trace(problem: AnyProblem, run: Run) -> Iterator[Policy]:
    searcher = build_searcher(run.searcher, problem.problem, seed=run.seed)
    n_done = 0
    for _, policy in problem.baselines:
        searcher.inject(policy, _judge(problem, policy, 0))
        n_done += 1
        yield policy
    while n_done < run.n_evaluations:
        suggestions = searcher.ask(min(_BATCH, run.n_evaluations - n_done))
        if not suggestions:
            return
        searcher.tell([_judge(problem, suggestion.policy, suggestion.id) for suggestion in suggestions])
        n_done += len(suggestions)
        yield from (suggestion.policy for suggestion in suggestions)


def _judge(problem: AnyProblem, policy: Policy, number: int) -> Verdict:
    try:
        return give_verdict(problem.problem, number, problem.measure(policy))
    except (PolicyError, MeasurementError):
        return Verdict(number, None, 0.0)


def _plain_nsga2(problem: AnyProblem, run: Run) -> Iterator[Policy]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = problem.problem.space
    violations: dict[int, float] = {}
    n_objectives = len(_judge(problem, Policy({}), 0).objectives or ())
    sampler = optuna.samplers.NSGAIISampler(
        seed=run.seed, constraints_func=lambda trial: (violations.get(trial.number, 1e3),)
    )
    study = optuna.create_study(directions=["minimize"] * n_objectives, sampler=sampler)
    for _ in range(run.n_evaluations):
        trial = study.ask()
        policy = space.decode([trial.suggest_categorical(name, range(n)) for name, n in space.dimensions.items()])
        verdict = _judge(problem, policy, trial.number)
        violations[trial.number] = min(verdict.violation, 1e3)
        if verdict.objectives is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, list(verdict.objectives))
        yield policy


def main() -> None:
    """Runs what is missing and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problems", nargs="*", default=[*PROBLEMS, *SYNTHETIC])
    parser.add_argument("--searchers", nargs="*", default=list(SEARCHERS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--again", action="store_true", help="compute what is kept, too")
    arguments = parser.parse_args()
    console = Console(width=150)
    for name in arguments.problems:
        runs = {
            searcher: [Run(name, searcher, s) for s in range(_n_seeds(searcher, arguments.seeds))]
            for searcher in arguments.searchers
        }
        missing = [run for group in runs.values() for run in group if arguments.again or not _path(run).exists()]
        with ProcessPoolExecutor(arguments.processes) as pool:
            for run, found in zip(missing, pool.map(evaluate, missing), strict=True):
                _path(run).parent.mkdir(parents=True, exist_ok=True)
                write_json(_path(run), found)
        console.print(_table(name, {searcher: [_read(run) for run in group] for searcher, group in runs.items()}))


def _n_seeds(searcher: str, n_seeds: int) -> int:
    return min(n_seeds, _DEAR_SEEDS) if searcher == _DEAR else n_seeds


def _table(name: str, found: dict[str, list[dict[str, Any]]]) -> Table:
    problem = find_problem(name)
    title = f"{name}: {problem.problem.space.size:.4g} policies, regret in %, median (90th percentile)"
    table = Table(title=title, title_justify="left")
    for heading in ("searcher", "seeds", *(f"after {n}" for n in AFTER), "to 1 %", "hypervolume", "s"):
        table.add_column(heading, justify="left" if heading == "searcher" else "right")
    for searcher, runs in found.items():
        regrets = np.array([_padded(run["regrets"]) for run in runs])
        cells = [_cell(regrets[:, n], n < len(runs[0]["regrets"])) for n in AFTER]
        volumes = [run["hypervolume"] for run in runs if run["hypervolume"] is not None]
        seconds = float(np.median([run["seconds"] for run in runs]))
        volume = f"{np.median(volumes):.3f}" if volumes else "–"
        table.add_row(searcher, str(len(runs)), *cells, _evaluations_to(regrets, 0.01), volume, f"{seconds:.1f}")
    return table


def _padded(regrets: Sequence[float | None]) -> np.ndarray:
    values = [np.inf if regret is None else regret for regret in regrets]
    return np.array(values + [values[-1]] * (AFTER[-1] + 1 - len(values)))


def _cell(regrets: np.ndarray, is_known: bool) -> str:
    if not is_known:
        return "–"
    # no interpolation: between a number and infinity there is nothing
    median, high = (np.quantile(regrets, share, method="higher") for share in (0.5, 0.9))
    return f"{100 * median:.1f} ({100 * high:.1f})"


def _evaluations_to(regrets: np.ndarray, goal: float) -> str:
    """Returns the evaluations after which the median regret is no more than a goal."""
    reached = np.flatnonzero(np.median(regrets, axis=0) <= goal)
    return str(int(reached[0])) if len(reached) else f"> {AFTER[-1]}"


def _path(run: Run) -> Path:
    folder = cache_folder() / "bench-search" / _digest(run.problem) / run.problem / run.searcher.replace(" ", "-")
    return folder / f"{run.seed}.json"


@cache
def _digest(problem: str) -> str:
    """Digest of the searchers' sources and of the table: what other code found, or found elsewhere, is not believed."""
    root = Path(__file__).parents[2]
    sources = [path for path in sorted((root / "search").rglob("*.py")) if not _RUNS_TRIALS.search(path.stem)]
    table = [] if problem in SYNTHETIC else [TABLE_FOLDER / f"{PROBLEMS[problem].table}.npz"]
    digest = hashlib.sha256()
    for path in (*sources, *table):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _read(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_path(run).read_text())
    return found


if __name__ == "__main__":
    main()
