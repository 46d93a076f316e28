"""Policies that were not tried yet, close to those that were."""

from collections.abc import Iterable, Set

from ...spaces.policy import Policy
from ...spaces.space import Space


def find_unseen(space: Space, seen: Set[Policy], starts: Iterable[Policy]) -> Policy | None:
    """Returns the first neighbour of ``starts``, in their order, that is not in ``seen``; None if there is none.

    Every policy of a space is linked to every other by single changes. So when ``starts`` are all the policies
    of the space that were seen, and there is at least one, None means that the space is exhausted.
    """
    for start in starts:
        for neighbour in space.neighbours(start):
            if neighbour not in seen:
                return neighbour
    return None
