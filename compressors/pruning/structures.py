"""What of a torch module can be pruned: channels, attention heads and blocks that go or stay together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ...spaces.layer import Structure
from .blocks import Block, find_blocks
from .couplings import HEAD_COUNTS, as_heads, propose_couplings
from .cuts import Coupling, find_tied_conflict
from .trials import Probe, make_probe, why_unusable

#: layers that a line names before it only counts them
_N_SHOWN = 4


@dataclass(frozen=True)
class FoundStructures:
    """What can be pruned, and what cannot; picklable, and good for every module of the same architecture."""

    couplings: tuple[Coupling, ...]
    blocks: tuple[Block, ...]
    #: (structure, reason) of what cannot be pruned
    dropped: tuple[tuple[str, str], ...]

    @cached_property
    def structures(self) -> tuple[Structure, ...]:
        """Channels and heads in the order in which they are computed, then blocks."""
        return (*(found.structure for found in self.couplings), *(found.structure for found in self.blocks))


#: module → (its shapes, what was found): finding takes seconds, and every policy of a model needs the same
_FOUND: WeakKeyDictionary[nn.Module, tuple[object, FoundStructures]] = WeakKeyDictionary()


def find_structures(module: nn.Module, example_inputs: Mapping[str, torch.Tensor]) -> FoundStructures:
    """Finds what can be pruned; each structure was tried on a copy, in eval mode.

    What is found is kept with the module for as long as that lives and its shapes stay.

    Args:
        module: the model; it is left as it is.
        example_inputs: forward argument → (batch, …) tensor that the model accepts.

    Raises:
        SpecError: torch-pruning is not installed.
    """
    shapes = [(name, tuple(tensor.shape)) for name, tensor in (*module.named_parameters(), *example_inputs.items())]
    known = _FOUND.get(module)
    if known is not None and known[0] == shapes:
        return known[1]
    found = _find(module, example_inputs)
    _FOUND[module] = (shapes, found)
    return found


def describe_structures(found: FoundStructures) -> Iterator[str]:
    """Yields one line for each structure (what makes its channels → what reads them), then why others were dropped."""
    per_unit = {c.structure.name: c.channels_per_unit for c in found.couplings if c.structure.kind == "channels"}
    for structure in found.structures:
        producers, readers = structure.layers[: structure.n_producers], structure.layers[structure.n_producers :]
        tail = f" → {_shorten(readers)}" if readers else ""
        width = per_unit.get(structure.name, 1)
        count = "whole" if structure.kind == "block" else f"{structure.n_units} {structure.kind}"
        count = f"{structure.n_units} × {width} channels" if width > 1 else count
        yield f"{structure.name}, {count}: {_shorten(producers)}{tail}"
    for name, reason in found.dropped:
        yield f"{name}: not on offer: {reason}"


def _shorten(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_N_SHOWN])
    return f"{shown} … ({len(names)} layers)" if len(names) > _N_SHOWN else shown


def _find(module: nn.Module, example_inputs: Mapping[str, torch.Tensor]) -> FoundStructures:
    try:
        probe = make_probe(module, example_inputs)
    except Exception as error:  # forward code raises anything
        return FoundStructures((), (), (("channels", f"the model does not run on its example inputs: {error!r:.200}"),))
    proposals = propose_couplings(probe.module, probe.inputs)
    dropped = list(proposals.refused)
    couplings: list[Coupling] = []
    for proposal in proposals.couplings:
        usable, reason = _try(probe, proposal)
        if usable is not None:
            couplings.append(usable)
        else:
            dropped.append((proposal.structure.name, reason))
    blocks, refused = find_blocks(probe, couplings)
    return FoundStructures(tuple(couplings), tuple(blocks), (*dropped, *refused))


def _try(probe: Probe, proposal: Coupling) -> tuple[Coupling | None, str]:
    """Returns the coupling as it can be pruned, channel by channel or else by heads; None with the reason."""
    tied = find_tied_conflict(probe.module, proposal)
    if tied is not None:
        return None, f"{tied} shares a weight with it and would change too"
    reason = why_unusable(probe, proposal)
    if reason is None:
        return proposal, ""
    heads = as_heads(proposal, probe.module)
    if heads is None:
        names = ", ".join(HEAD_COUNTS[:3])
        is_attention = proposal.structure.n_producers >= 3 and "other shape" not in reason
        hint = f"; if these are attention heads, let their module read their number from one of {names}"
        return None, reason + (hint if is_attention else "")
    by_heads = why_unusable(probe, heads)
    if by_heads is None:
        return heads, ""
    return None, f"{reason}; as {heads.structure.n_units} heads: {by_heads}"
