"""A policy from another space, device or run, as this space can have it."""

from dataclasses import dataclass, replace

from .layer import Group
from .policy import GraphTreatment, Policy
from .space import GraphOptions, Space, spread_groups
from .treatment import Treatment


@dataclass(frozen=True, slots=True)
class FittedPolicy:
    """A policy of the space, and what of the other one it could not keep."""

    policy: Policy
    #: in words, one for each treatment or choice that is not on offer here
    lost: tuple[str, ...]


def fit_policy(space: Space, policy: Policy, groups: tuple[Group, ...] | None = None) -> FittedPolicy:
    """Returns the policy of a space that is closest to one of another space.

    A treatment that a group does not offer is left out; a graph-wide choice that is not on offer becomes the default.

    Args:
        space: that the result must lie in.
        policy: of another space over the same layers.
        groups: of that other space, where they may be others than here; a group here takes a treatment that all of its
            layers had there.
    """
    treatments = dict(policy.groups) if groups is None else _by_group(space, policy, groups)
    names = {group.name for group in space.groups}
    lost = [f"{name}: there is no such group" for name in treatments if name not in names]
    chosen: dict[str, Treatment] = {}
    for group, options in zip(space.groups, space.options, strict=True):
        treatment = treatments.get(group.name, Treatment())
        if treatment in options:
            chosen[group.name] = treatment
            continue
        chosen[group.name] = Treatment() if Treatment() in options else options[0]
        lost.append(f"{group.name}: {treatment.label} is not on offer")
    as_it_is = Policy(chosen, policy.graph, policy.recovery)
    if space.contains(as_it_is):  # choices without effect need not be on offer
        return FittedPolicy(as_it_is, tuple(lost))
    graph, lost_choices = _fit_graph(space.graph, policy.graph)
    recovery = policy.recovery
    if recovery not in space.graph.recovery:
        recovery = space.graph.recovery[0]
        lost_choices.append(f"recovery: {policy.recovery.label} is not on offer")
    return FittedPolicy(Policy(chosen, graph, recovery), (*lost, *lost_choices))


def _by_group(space: Space, policy: Policy, groups: tuple[Group, ...]) -> dict[str, Treatment]:
    by_layer = spread_groups(groups, policy)
    found = {}
    for group in space.groups:
        treatments = {by_layer.get(member, Treatment()) for member in group.members}
        if len(treatments) == 1:
            found[group.name] = treatments.pop()
    return found


def _fit_graph(offered: GraphOptions, graph: GraphTreatment) -> tuple[GraphTreatment, list[str]]:
    lost, kept = [], graph
    for name in ("fusion", "calibration", "precision", "rounding", "equalization", "correction"):
        if getattr(graph, name) not in getattr(offered, name):
            lost.append(f"{name}: {getattr(graph, name)} is not on offer")
            kept = replace(kept, **{name: getattr(offered, name)[0]})
    if graph.quantized_ops not in {tuple(sorted(set(ops))) for ops in offered.quantized_ops}:
        lost.append(f"quantized_ops: {'+'.join(graph.quantized_ops) or 'none'} is not on offer")
        kept = replace(kept, quantized_ops=offered.quantized_ops[0])
    return kept, lost
