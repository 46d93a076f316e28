"""A searcher whose suggestions are a pure function of the problem, the seed and what was tried.

Its state is therefore nothing but what was tried: resuming is exact, and neither the order of verdicts within a batch
nor a broken batch can matter. What an algorithm learns it works out anew at every `ask`, which takes milliseconds.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ...core.seeds import derive_rng
from ...spaces.policy import Policy
from ..problem import Problem
from ..searcher import Suggestion, Verdict
from .tried import Tried

#: (problem, what was tried, seed) → the policies that the algorithm would try next, the first one first; what was tried
#: grows while it is read, and known policies among them are passed over
Propose = Callable[[Problem, Tried, int], Iterator[Policy]]

#: proposals in a row that may turn out known before the nearest unseen policy is taken instead
_N_PROPOSALS = 50


class ReplayingSearcher:
    """Suggests what ``propose`` yields and was not tried; never the same policy twice.

    >>> from trimtab.search.testing import small_problem
    >>> problem = small_problem()
    >>> searcher = ReplayingSearcher(problem, seed=0, propose=lambda *_: problem.space.neighbours(Policy({})))
    >>> [suggestion.id for suggestion in searcher.ask(2)]
    [0, 1]
    """

    def __init__(self, problem: Problem, *, seed: int, propose: Propose) -> None:
        self._problem = problem
        self._seed = seed
        self._propose = propose
        self._tried = Tried(problem.space)

    def ask(self, n: int) -> list[Suggestion]:
        """Returns up to n suggestions; fewer only when the space is exhausted."""
        tried = self._tried
        proposals = self._propose(self._problem, tried, self._seed)
        rng = derive_rng(self._seed, "nearest", tried.n_asks)
        found: list[Suggestion] = []
        while len(found) < n and not tried.is_exhausted:
            window = (policy for policy, _ in zip(proposals, range(_N_PROPOSALS), strict=False))
            policy = next((policy for policy in window if policy not in tried), None)
            found.append(tried.suggest(policy or tried.nearest_unseen(rng)))
        tried.n_asks += 1
        return found

    def tell(self, verdicts: Sequence[Verdict]) -> None:
        """Learns from verdicts on earlier suggestions, by id, in any order.

        Raises:
            RunError: a verdict's id is not open.
        """
        self._tried.tell(verdicts)

    def inject(self, policy: Policy, verdict: Verdict) -> None:
        """Learns from a policy that it did not suggest; one outside the space, or known, is left aside."""
        self._tried.inject(policy, verdict)

    def state_dict(self) -> dict[str, Any]:
        """Returns the whole state as JSON values."""
        return self._tried.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state that `state_dict` returned."""
        self._tried.load_state_dict(state)
