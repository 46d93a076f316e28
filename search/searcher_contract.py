"""What every `Searcher` must do; a new algorithm is tested by adding its factory to one list.

Each check takes a factory(problem, *, seed) and raises AssertionError with the sentence that is broken.
"""

import itertools
import json
from collections.abc import Callable, Sequence

from ..core.errors import RunError
from ..spaces.policy import Policy
from ..spaces.space import Space
from .searcher import Searcher, Suggestion, Verdict, give_verdict
from .testing import fake_measurement, policy_of, small_problem, small_space, synthetic_problem, with_truth

SearcherFactory = Callable[..., Searcher]


def judge(space: Space, suggestion: Suggestion) -> Verdict:
    """Returns the verdict of the synthetic problem on a suggestion."""
    return give_verdict(synthetic_problem(space), suggestion.id, fake_measurement(space, suggestion.policy))


def run_synthetic(searcher: Searcher, space: Space, *, n_trials: int, batch_size: int = 4) -> float:
    """Returns the lowest latency within the budget after a search, in seconds; infinity when none kept it."""
    best_s = float("inf")
    n_done = 0
    while n_done < n_trials and (suggestions := searcher.ask(min(batch_size, n_trials - n_done))):
        verdicts = [judge(space, suggestion) for suggestion in suggestions]
        searcher.tell(verdicts)
        n_done += len(verdicts)
        feasible = [v.objectives[0] for v in verdicts if v.violation == 0.0 and v.objectives]
        best_s = min([best_s, *feasible])
    return best_s


def check_is_deterministic(factory: SearcherFactory) -> None:
    """Equal seeds give equal suggestions; different seeds do not."""
    space = small_space()
    first, second, other = (_trace(factory(synthetic_problem(space), seed=seed), space) for seed in (0, 0, 1))
    _expect(first == second, "equal seeds must give equal suggestions")
    _expect(first != other, "another seed must give other suggestions")


def check_stays_in_the_space(factory: SearcherFactory) -> None:
    """Every suggestion can be made from the space."""
    space = small_space()
    trace = _trace(factory(synthetic_problem(space), seed=0), space)
    strays = [policy for policy in trace if not space.contains(policy)]
    _expect(not strays, f"suggestions must lie in the space, got {strays}")


def check_never_repeats(factory: SearcherFactory) -> None:
    """No two suggestions are equivalent policies."""
    space = small_space()
    trace = _trace(factory(synthetic_problem(space), seed=0), space)
    _expect(len(set(trace)) == len(trace), "no policy may be suggested twice")


def check_asks_are_prefixes(factory: SearcherFactory) -> None:
    """A larger batch begins with the suggestions of a smaller one, so that a search can be extended."""
    space = small_space()
    small, large = factory(synthetic_problem(space), seed=0), factory(synthetic_problem(space), seed=0)
    for searcher in (small, large):
        _warm_up(searcher, space)
    _expect(large.ask(4)[:2] == small.ask(2), "ask(4) must begin with what ask(2) gives")


def check_order_of_tell_is_irrelevant(factory: SearcherFactory) -> None:
    """Telling a batch backwards, or in pieces, changes nothing."""
    space = small_space()
    orders: list[Callable[[list[Verdict]], list[list[Verdict]]]] = [
        lambda verdicts: [verdicts],
        lambda verdicts: [verdicts[::-1]],
        lambda verdicts: [[verdict] for verdict in verdicts[::-1]],
    ]
    traces = []
    for split in orders:
        searcher = factory(synthetic_problem(space), seed=0)
        trace: list[Policy] = []
        for _ in range(4):
            suggestions = searcher.ask(4)
            trace += [suggestion.policy for suggestion in suggestions]
            for verdicts in split([judge(space, suggestion) for suggestion in suggestions]):
                searcher.tell(verdicts)
        traces.append(trace)
    _expect(traces[0] == traces[1] == traces[2], "the order of the verdicts must not change the next suggestions")


def check_takes_failures(factory: SearcherFactory) -> None:
    """Failed trials, stopped ones, and trials of unknown violation, do not stop the search."""
    space = small_space()
    searcher = factory(synthetic_problem(space), seed=0)
    for batch in range(4):
        suggestions = searcher.ask(4)
        _expect(len(suggestions) == 4, "failures must not reduce the number of suggestions")
        hopeless = [Verdict(suggestions[0].id, None, 0.0), Verdict(suggestions[1].id, None, float("inf"))]
        unknown = [Verdict(s.id, judge(space, s).objectives, float("inf")) for s in suggestions[2:]]
        searcher.tell(hopeless + unknown if batch else [Verdict(s.id, None, 0.0) for s in suggestions])


def check_refuses_unknown_ids(factory: SearcherFactory) -> None:
    """A verdict on something that was not suggested is an error."""
    try:
        factory(small_problem(), seed=0).tell([Verdict(10_000, None, 0.0)])
    except RunError:
        return
    raise AssertionError("a verdict on an unknown id must raise RunError")


def check_resumes_between_batches(factory: SearcherFactory) -> None:
    """A restored searcher continues as the original would, after a whole batch."""
    _check_resume(factory, n_told=4)


def check_resumes_within_a_batch(factory: SearcherFactory) -> None:
    """A restored searcher continues as the original would, with half a batch told before and half after."""
    _check_resume(factory, n_told=2)


def check_exhausts_a_tiny_space(factory: SearcherFactory) -> None:
    """A space of eight policies gives exactly eight suggestions, then none."""
    space = small_space(n_groups=3, n_options=2)
    searcher = factory(synthetic_problem(space), seed=0)
    trace = _trace(searcher, space)
    _expect(len(trace) == len(set(trace)) == space.size == 8, f"8 policies must be suggested, got {len(trace)}")
    _expect(searcher.ask(1) == [], "an exhausted space must give no suggestion")


def check_never_suggests_what_was_injected(factory: SearcherFactory) -> None:
    """Injected policies count as known, successful, failed or outside the space."""
    space = small_space(n_groups=2, n_options=3)
    searcher = factory(synthetic_problem(space), seed=0)
    known = [policy_of(space, [i, j]) for i in range(3) for j in range(2)]
    for position, policy in enumerate(known):
        verdict = judge(space, Suggestion(0, policy))
        searcher.inject(policy, verdict if position else Verdict(0, None, verdict.violation))
    searcher.inject(Policy({"elsewhere": space.options[0][1]}), Verdict(0, (1.0, 1.0, 1.0), 0.0))
    trace = _trace(searcher, space)
    _expect(len(trace) == space.size - len(known), f"3 policies are left to suggest, got {len(trace)}")
    _expect(not set(trace) & set(known), "injected policies must not be suggested")


def check_learns_from_what_was_injected(factory: SearcherFactory) -> None:
    """Injected results reach the model: they change what is suggested."""
    space = small_space(n_groups=6)
    blank, taught = factory(synthetic_problem(space), seed=0), factory(synthetic_problem(space), seed=0)
    source = factory(synthetic_problem(space), seed=1)
    for suggestion in source.ask(40):
        verdict = judge(space, suggestion)
        taught.inject(suggestion.policy, verdict)
        blank.inject(suggestion.policy, Verdict(0, None, 0.0))
    _expect(blank.ask(8) != taught.ask(8), "injected results must change the suggestions")


def check_goes_on_from_given_starts(factory: SearcherFactory) -> None:
    """Where good policies are given at the start, the first suggestions resemble them."""
    space = small_space(n_groups=12)
    searcher = factory(synthetic_problem(space), seed=0)
    best = policy_of(space, [1] * 12)
    for i, policy in enumerate([best, *itertools.islice(space.neighbours(best), 15)]):
        searcher.inject(policy, Verdict(0, (float(i), float(i), float(i)), 0.0))
    suggested = [suggestion.policy for suggestion in searcher.ask(8)]
    n_shared = [sum(best[group.name] == policy[group.name] for group in space.groups) for policy in suggested]
    # policies at random share 3 of 12 in the mean, at a standard deviation of 1.5
    _expect(sum(n_shared) >= 8 * 6, f"suggestions must resemble the starts, they share {n_shared} of 12 choices")


def check_uses_knowledge(factory: SearcherFactory) -> None:
    """Knowing the truth, it finds better policies with the same trials."""
    problem = small_problem(n_groups=8, n_options=5)
    means = []
    for given in (problem, with_truth(problem)):
        best_s = [run_synthetic(factory(given, seed=seed), given.space, n_trials=28) for seed in range(3)]
        means.append(sum(best_s) / len(best_s))
    _expect(means[1] < means[0], f"knowledge must help, got {means[1]:.5f} s with it and {means[0]:.5f} s without")


#: kept by every searcher
SEARCHER_CHECKS: tuple[Callable[[SearcherFactory], None], ...] = (
    check_is_deterministic,
    check_stays_in_the_space,
    check_never_repeats,
    check_asks_are_prefixes,
    check_order_of_tell_is_irrelevant,
    check_takes_failures,
    check_refuses_unknown_ids,
    check_resumes_between_batches,
    check_resumes_within_a_batch,
    check_exhausts_a_tiny_space,
    check_never_suggests_what_was_injected,
)


def _check_resume(factory: SearcherFactory, *, n_told: int) -> None:
    space = small_space()
    original = factory(synthetic_problem(space), seed=0)
    _warm_up(original, space)
    verdicts = [judge(space, suggestion) for suggestion in original.ask(4)]
    original.tell(verdicts[:n_told])
    restored = factory(synthetic_problem(space), seed=0)
    restored.load_state_dict(json.loads(json.dumps(original.state_dict())))
    for searcher in (original, restored):
        searcher.tell(verdicts[n_told:])
    _expect(_trace(original, space, 2) == _trace(restored, space, 2), "a restored searcher must continue exactly")


def _warm_up(searcher: Searcher, space: Space) -> None:
    """Brings a searcher past its random start: baselines, then batches of which some trials fail."""
    for policy in (policy_of(space, [choice] * 4) for choice in range(3)):
        verdict = judge(space, Suggestion(0, policy))
        searcher.inject(policy, verdict)
    for _ in range(2):
        suggestions = searcher.ask(5)
        searcher.tell([Verdict(suggestions[0].id, None, 0.0)])
        searcher.tell([judge(space, suggestion) for suggestion in suggestions[1:]])


def _trace(searcher: Searcher, space: Space, n_batches: int = 4) -> list[Policy]:
    trace: list[Policy] = []
    for _ in range(n_batches):
        suggestions: Sequence[Suggestion] = searcher.ask(4)
        trace += [suggestion.policy for suggestion in suggestions]
        searcher.tell([judge(space, suggestion) for suggestion in suggestions])
    return trace


def _expect(condition: bool, sentence: str) -> None:
    if not condition:
        raise AssertionError(sentence)
