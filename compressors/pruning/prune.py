"""Structured pruning: blocks go first, then channels, heads and inner units of what is left."""

import math
from collections.abc import Mapping
from copy import deepcopy

import numpy as np
import torch
from torch import nn

from ...core.errors import PolicyError
from ...core.names import describe_unknown
from ...spaces.treatment import Treatment
from .blocks import Block, drop_blocks, is_inside
from .cuts import Coupling, clone_module, keep_units
from .importance import Losses, score_units
from .structures import FoundStructures, find_structures


def prune_module(
    module: nn.Module,
    example_inputs: Mapping[str, torch.Tensor],
    choices: Mapping[str, Treatment],
    *,
    multiple: int = 1,
    losses: Losses | None = None,
) -> nn.Module:
    """Returns a smaller copy of a module, in the module's train or eval mode.

    Importance is that of the units in the module as it is given, so the order of the choices does not matter, and equal
    units stay in the order in which they stand. A structure that starts in a dropped block goes with the block.

    Args:
        module: the model; it is left as it is.
        example_inputs: forward argument → (batch, …) tensor that the model accepts.
        choices: structure → ``keep_channels`` and ``importance``; other fields mean nothing here.
        multiple: what the target likes channel counts to be a multiple of, see `count_kept`.
        losses: yields the losses of a few batches, for the importances ``taylor`` and ``fisher``.

    Raises:
        PolicyError: a structure is unknown, cannot be pruned by that share or importance, or the result does not run.
        SpecError: torch-pruning is not installed.
    """
    if not choices:
        return deepcopy(module)
    found = find_structures(module, example_inputs)
    pruned = prune_structures(module, found, choices, multiple=multiple, losses=losses)
    _check_runs(pruned, example_inputs)
    return pruned


def prune_structures(
    module: nn.Module,
    found: FoundStructures,
    choices: Mapping[str, Treatment],
    *,
    multiple: int = 1,
    losses: Losses | None = None,
) -> nn.Module:
    """Prunes like `prune_module` with structures that were found before, in a module of the same architecture.

    Raises:
        PolicyError: a structure is unknown, or cannot be pruned by that share or importance.
        SpecError: torch-pruning is not installed.
    """
    blocks, couplings = _look_up(found, choices)
    gone = [block for block in blocks if choices[block.structure.name].keep_channels == 0.0]
    asked = [
        (coupling, choices[coupling.structure.name].importance)
        for coupling in couplings
        if _count(coupling, choices, multiple) < coupling.structure.n_units and not _goes_with(coupling, gone)
    ]
    scores = score_units(module, asked, losses=losses) if asked else []
    smaller = clone_module(module)
    drop_blocks(smaller, gone)
    kept = [
        (coupling, choose_units(score, _count(coupling, choices, multiple)))
        for (coupling, _), score in zip(asked, scores, strict=True)
    ]
    keep_units(smaller, kept)
    return deepcopy(smaller)


def count_kept(n_units: int, keep: float, *, multiple: int = 1) -> int:
    """Returns how many of the units stay: the multiple that comes nearest to the share, at least one multiple.

    Where ``n_units`` is no multiple, the largest power of two that divides it and is not above ``multiple`` counts
    instead; halves go to the even multiple.

    Args:
        n_units: units there are.
        keep: share that is to stay, above 0 and at most 1.
        multiple: at least 1.

    >>> count_kept(64, 0.4, multiple=8), count_kept(12, 0.5, multiple=8), count_kept(10, 0.1)
    (24, 8, 1)
    """
    step = multiple
    if n_units % multiple:
        step = math.gcd(n_units, 1 << (multiple.bit_length() - 1))
    return min(n_units, max(1, round(keep * n_units / step)) * step)


def choose_units(scores: np.ndarray, n_kept: int) -> np.ndarray:
    """Returns the units with the highest scores, in ascending order; of equal ones the first.

    Args:
        scores: (n_units,) float64.
        n_kept: how many.

    >>> choose_units(np.array([1.0, 3.0, 2.0, 3.0]), 2)
    array([1, 3])
    """
    return np.sort(np.argsort(-scores, kind="stable")[:n_kept])


def _look_up(found: FoundStructures, choices: Mapping[str, Treatment]) -> tuple[list[Block], list[Coupling]]:
    """Returns the chosen structures in the order in which they were found, whatever the order of the choices."""
    known = {structure.name: structure for structure in found.structures}
    for name, choice in choices.items():
        if name not in known:
            reason = dict(found.dropped).get(name)
            raise PolicyError(f"{name} cannot be pruned: {reason}" if reason else _unknown(name, known))
        keep = choice.keep_channels
        if known[name].kind == "block" and keep not in (0.0, 1.0):
            raise PolicyError(f"{name} is a block, which goes or stays as a whole; keep 0 or 1 of it, got {keep:g}")
        if known[name].kind != "block" and keep == 0.0:
            raise PolicyError(f"{name} cannot lose all its {known[name].n_units} units; keep a share above 0, got 0")
    blocks = [block for block in found.blocks if block.structure.name in choices]
    return blocks, [coupling for coupling in found.couplings if coupling.structure.name in choices]


def _unknown(name: str, known: Mapping[str, object]) -> str:
    return describe_unknown("structure", name, known)


def _count(coupling: Coupling, choices: Mapping[str, Treatment], multiple: int) -> int:
    """Returns how many units stay; a unit of several channels brings a part of the multiple with it."""
    structure = coupling.structure
    step = multiple // math.gcd(multiple, coupling.channels_per_unit)
    return count_kept(structure.n_units, choices[structure.name].keep_channels, multiple=step)


def _goes_with(coupling: Coupling, gone: list[Block]) -> bool:
    producers = coupling.structure.layers[: coupling.structure.n_producers]
    return all(any(is_inside(layer, block.path) for block in gone) for layer in producers)


def _check_runs(module: nn.Module, example_inputs: Mapping[str, torch.Tensor]) -> None:
    sample = {name: tensor[:1] for name, tensor in example_inputs.items()}
    try:
        with torch.no_grad():
            clone_module(module).eval()(**sample)
    except Exception as error:  # wrong shapes raise anything, in torch or in the model's code
        raise PolicyError(f"the pruned model does not run on the example inputs: {error!r:.200}") from error
