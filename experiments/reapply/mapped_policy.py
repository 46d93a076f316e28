"""A policy put into the names of another model, by a matching of their layers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ...compressors.prepared import PreparedModel
from ...core.errors import PolicyError
from ...spaces.layer import Group, Structure
from ...spaces.policy import Policy
from ...spaces.recovery import Recovery
from ...spaces.rules import tie_layers
from ..policy_file import PolicyFile
from .matching import Matching


@dataclass(frozen=True)
class MappedPolicy:
    """A policy that names the layers of a model, and that model with the structures that it prunes."""

    file: PolicyFile
    model: PreparedModel
    #: what became of treatments that do not go on as they were, one line each
    notes: tuple[str, ...] = ()


def map_policy(file: PolicyFile, model: PreparedModel, matching: Matching) -> MappedPolicy:
    """Puts a policy into the names of a model; activation ranges keep their old names, see `range_order`.

    Raises:
        PolicyError: members of a group do not belong together in this model, what it prunes is not there, or nothing
            of it is left.
    """
    treated = [group for group in file.groups if group.name in dict(file.policy.groups)]
    layer_groups = _map_layer_groups([group for group in treated if group.kind == "layers"], model, matching)
    structures, model, notes = _map_structures([group for group in treated if group.kind != "layers"], model, matching)
    renamed = {**layer_groups, **structures}
    if treated and not renamed:
        raise PolicyError("no layer that the policy treats has a partner in this model; search anew for it")
    treatments = dict(file.policy.groups)
    policy = Policy(
        {new.name: treatments[old] for old, new in renamed.items()},
        file.policy.graph,
        _map_recovery(file.policy.recovery, matching.pairs),
    )
    names = {old: new.name for old, new in renamed.items()}
    mapped = replace(
        file,
        policy=policy,
        groups=tuple(renamed.values()),
        layers=model.layers,
        evidence=None if file.evidence is None else file.evidence.renamed(names),
    )
    dropped = [f"{group.name}: its treatment falls away" for group in treated if group.name not in renamed]
    return MappedPolicy(mapped, model, (*notes, *dropped))


def _map_layer_groups(groups: Sequence[Group], model: PreparedModel, matching: Matching) -> dict[str, Group]:
    """Returns the group of this model for each group that has layers here.

    Raises:
        PolicyError: one is tied in another way here.
    """
    ties = tie_layers(model.layers)
    found: dict[str, Group] = {}
    for group in groups:
        partners = [matching.pairs[name] for name in group.layers if name in matching.pairs]
        here = [tie for tie in ties if set(tie.layers) & set(partners)]
        if len(here) > 1:
            raise PolicyError(f"group {group.name} treats {', '.join(group.layers)} alike; in this model "
                              f"{' and '.join(partners)} no longer belong together; search anew for it")  # fmt: skip
        if here and set(here[0].layers) != set(partners):
            raise PolicyError(f"group {group.name} treats {', '.join(group.layers)}; in this model "
                              f"{', '.join(here[0].layers)} belong together; search anew for it")  # fmt: skip
        if here:
            found[group.name] = here[0]
    return found


def _map_structures(
    groups: Sequence[Group], model: PreparedModel, matching: Matching
) -> tuple[dict[str, Group], PreparedModel, tuple[str, ...]]:
    """Returns the structure of this model for each that the policy prunes, and the model with its structures.

    Raises:
        PolicyError: one is missing or ties other layers here.
    """
    if not groups:
        return {}, model, ()
    if model.origin is None:
        raise PolicyError("the policy prunes, which needs the torch model; --model must be module:callable")
    from ...compressors.pruning.structures import find_structures

    structures = find_structures(model.origin.module, model.origin.example_inputs)
    found: dict[str, Group] = {}
    notes: list[str] = []
    for group in groups:
        partners = {matching.pairs[name] for name in group.layers if name in matching.pairs}
        if not partners:
            continue
        structure = _find_structure(group, partners, structures.structures, matching)
        found[group.name] = Group(structure.name, structure.layers, structure.kind)
        more = [name for name in structure.layers if name not in partners]
        notes += [f"{group.name} prunes {', '.join(more)} too: new layers that go with it"] if more else []
    return found, replace(model, found=structures), tuple(notes)


def _find_structure(group: Group, partners: set[str], structures: Iterable[Structure], matching: Matching) -> Structure:
    """Returns the structure that holds the partners, and beside them nothing but new layers."""
    of_kind = [structure for structure in structures if structure.kind == group.kind]
    fit = [
        structure for structure in of_kind
        if partners <= set(structure.layers) and set(structure.layers) - partners <= set(matching.added)
    ]  # fmt: skip
    if len(fit) == 1:
        return fit[0]
    exact = [structure for structure in fit if set(structure.layers) == partners]
    if len(exact) == 1:
        return exact[0]
    near = next((structure for structure in of_kind if partners & set(structure.layers)), None)
    here = "cannot be pruned" if near is None else f"ties {', '.join(near.layers)}"
    raise PolicyError(f"the policy prunes {group.name} with {', '.join(group.layers)}; in this model it {here}")


def _map_recovery(recovery: Recovery, pairs: Mapping[str, str]) -> Recovery:
    """Puts the modules whose outputs are distilled into the names of this model; other teachers keep theirs."""
    own_teacher = not recovery.teachers
    features = tuple(
        (pairs.get(student, student), pairs.get(teacher, teacher) if own_teacher else teacher)
        for student, teacher in recovery.features
    )
    return replace(recovery, features=features)
