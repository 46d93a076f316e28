"""The policies with which a search starts: the solver's front, what another run found, a policy from another device."""

import logging
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import RunError, SpecError
from ..search.answer import rank_records
from ..search.front import known_front
from ..search.journal import read_records
from ..search.pareto import pareto_records
from ..search.problem import Problem
from ..search.record import Record
from ..spaces.fit_policy import fit_policy
from ..spaces.layer import Group
from ..spaces.policy import Policy
from .policy_file import load_policy
from .run_folder import RunFolder

_log = logging.getLogger(__name__)

#: policies of the solver's front, and of another run, that are tried
_N_FRONT, _N_RECORDS = 6, 6


def check_starts(names: tuple[str, ...]) -> None:
    """Makes sure that everything that ``search.start`` names is there and can be read.

    Raises:
        SpecError: it is not; no trial was started.
    """
    for name in names:
        if name == "front":
            continue
        path = Path(name)
        if path.is_dir():
            _read_run(path)
        elif path.is_file():
            load_policy(path)
        else:
            raise SpecError(f"search.start: '{name}' must be 'front', the folder of a run, or a policy.json; "
                            f"there is no such file")  # fmt: skip


def gather_starts(names: tuple[str, ...], problem: Problem) -> tuple[tuple[str, Policy], ...]:
    """Returns (label, policy) of the starts, each policy of the problem's space and once.

    A policy from elsewhere is fitted to the space: what is not on offer here is left out of it, with a line in the log.

    Raises:
        SpecError: something that is named cannot be read.
    """
    found: dict[Policy, str] = {}
    for name in names:
        for label, policy in _starts_of(name, problem):
            found.setdefault(policy, label)
    return tuple((label, policy) for policy, label in found.items())


def _starts_of(name: str, problem: Problem) -> Iterator[tuple[str, Policy]]:
    if name == "front":
        front = known_front(problem, _N_FRONT)
        if not front:
            _log.warning("search.start: front is empty: the influences of the options are not known")
        yield from ((f"front {number}", policy) for number, policy in enumerate(front, 1))
        return
    path = Path(name)
    if path.is_dir():
        for record in _best_of(_read_run(path), problem):
            label = f"{path.name} #{record.id}"
            yield label, _fit(problem, record.policy, label)
        return
    file = load_policy(path)
    yield path.name, _fit(problem, file.policy, path.name, file.groups)


def _read_run(path: Path) -> list[Record]:
    folder = RunFolder.open(path)
    try:
        return read_records(folder.journal)
    except RunError as error:
        raise SpecError(f"search.start: {error}") from error


def _best_of(records: list[Record], problem: Problem) -> list[Record]:
    """Returns the best by this problem's budget, then the rest of the trade-off, the fastest first.

    The numbers are those of the other run: they only choose, and every policy is measured anew.
    """
    ranked = rank_records(records, problem.budget, problem.objective)[: _N_RECORDS // 2]
    every = [*ranked, *pareto_records(records, problem.budget)]
    return list({record.id: record for record in every}.values())[:_N_RECORDS]


def _fit(problem: Problem, policy: Policy, label: str, groups: tuple[Group, ...] | None = None) -> Policy:
    fitted = fit_policy(problem.space, policy, groups)
    if fitted.lost:
        lost = "; ".join(fitted.lost[:5])
        _log.warning("search.start: %s is tried without what is not on offer here: %s", label, lost)
    return fitted.policy
