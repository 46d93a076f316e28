"""Uniform random search without repetition: the baseline that every other algorithm has to beat."""

from collections.abc import Iterator

from ...core.seeds import derive_rng
from ...spaces.policy import Policy
from ..problem import Problem
from .replaying_searcher import ReplayingSearcher
from .tried import Tried


def build_random(problem: Problem, *, seed: int) -> ReplayingSearcher:
    """Makes a search that draws every choice uniformly.

    >>> from trimtab.search.testing import small_problem
    >>> len(build_random(small_problem(), seed=0).ask(3))
    3
    """
    return ReplayingSearcher(problem, seed=seed, propose=_propose)


def _propose(problem: Problem, tried: Tried, seed: int) -> Iterator[Policy]:
    rng = derive_rng(seed, "ask", tried.n_asks)
    while True:
        yield problem.space.sample(rng)
