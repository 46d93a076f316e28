"""What decides which channels, heads and inner units stay: five criteria, higher for what matters more."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import nn

from ...core.errors import PolicyError
from ...spaces.treatment import GRADIENT_IMPORTANCES
from .couplings import load_torch_pruning
from .cuts import Coupling, Use, is_depthwise

#: yields the loss of a few batches of a module, each with its graph
Losses = Callable[[nn.Module], Iterable[torch.Tensor]]


def score_units(
    module: nn.Module, asked: Sequence[tuple[Coupling, str]], *, losses: Losses | None = None
) -> list[np.ndarray]:
    """Returns for each coupling (n_units,) float64 scores; a unit of several channels has the sum of theirs.

    Each score is the mean over the layers in which the unit stands, of which embeddings and depthwise convolutions have
    no vote:

    - ``magnitude``: the squares of the weights (Li et al., https://arxiv.org/abs/1608.08710, with p = 2 over all layers
      of a group as in Fang et al., https://arxiv.org/abs/2301.12900).
    - ``bn_scale``: |γ| of the batch norms (Liu et al., https://arxiv.org/abs/1708.06519).
    - ``geometric_median``: the sum of the distances to all filters of the layer; the least is the filter nearest to
      their geometric median (He et al., https://arxiv.org/abs/1811.00250, "Filter Pruning via Geometric Median").
    - ``taylor``: Σ |w · ∂L/∂w|, the first-order criterion with |·| for the square (Molchanov et al.,
      https://arxiv.org/abs/1906.10771).
    - ``fisher``: Σ w² · mean (∂L/∂w)²: the saliency of optimal brain damage (LeCun et al. 1989) with the diagonal of
      the empirical Fisher matrix in place of the Hessian's; over batches where the losses are those of batches.

    Args:
        module: the model before anything is taken out; it is left as it is.
        asked: couplings of this module, each with its criterion.
        losses: for ``taylor`` and ``fisher``; called with a copy of the module in eval mode.

    Raises:
        PolicyError: a criterion needs losses or a batch norm and has none, or gives no finite scores.
        SpecError: torch-pruning is not installed.
    """
    gradients = [name for _, name in asked if name in GRADIENT_IMPORTANCES]
    copy, means = (None, {}) if not gradients else _differentiate(module, gradients[0], losses)
    scores: list[np.ndarray] = []
    for coupling, criterion in asked:
        if criterion == "geometric_median":
            found = _distances_to_others(module, coupling)
        elif criterion in GRADIENT_IMPORTANCES and copy is not None:
            for parameter, gradient in zip(copy.parameters(), means[criterion], strict=True):
                parameter.grad = gradient
            found = _ask_torch_pruning(copy, coupling, criterion)
        else:
            found = _ask_torch_pruning(module, coupling, criterion)
        scores.append(_check(found, coupling, criterion))
    return scores


def _check(scores: np.ndarray | None, coupling: Coupling, criterion: str) -> np.ndarray:
    name = coupling.structure.name
    if scores is None:
        needs = "a batch norm with a scale" if criterion == "bn_scale" else "a convolution or linear layer"
        raise PolicyError(f"importance {criterion} needs {needs}, and {name} has none; choose another importance")
    if not np.isfinite(scores).all():
        raise PolicyError(f"importance {criterion} of {name} is not finite; look for NaN in the weights or the losses")
    return scores


def _ask_torch_pruning(module: nn.Module, coupling: Coupling, criterion: str) -> np.ndarray | None:
    tp = load_torch_pruning()
    kinds = tp.importance
    measure = {
        "magnitude": lambda: kinds.GroupMagnitudeImportance(p=2, normalizer=None),
        "bn_scale": lambda: kinds.BNScaleImportance(normalizer=None),
        "taylor": lambda: kinds.GroupTaylorImportance(normalizer=None),
        # it reads the mean of the squared gradients from .grad; its own sum over samples keeps only the last of them
        "fisher": lambda: kinds.GroupHessianImportance(normalizer=None),
    }[criterion]()
    group = _make_group(tp, module, coupling)
    try:
        found = measure(group)
    except (IndexError, RuntimeError) as error:  # it knows no grouped transposed convolutions
        name = coupling.structure.name
        raise PolicyError(f"importance {criterion} cannot be had for {name}: {error!r:.160}") from error
    return None if found is None else found[: coupling.structure.n_units].double().cpu().numpy()


def _make_group(tp: Any, module: nn.Module, coupling: Coupling) -> Any:
    """Returns torch-pruning's group of a coupling; what it calls root indices are units, so it sums over channels."""
    modules = dict(module.named_modules())
    group = tp.dependency.Group()
    # the first one decides how many scores there are, so it must hold all units
    for use in sorted(coupling.uses, key=lambda use: len(np.unique(use.unit_of[use.unit_of >= 0])), reverse=True):
        target = modules.get(use.path)
        node = None if target is None else tp.dependency.Node(target, None, use.path)
        pruner = None if node is None else tp.pruner.function.PrunerBox.get(node.type)
        if pruner is None:  # a bare parameter or a norm unknown to torch-pruning, in which no criterion looks
            continue
        change = pruner.prune_out_channels if use.side == "out" else pruner.prune_in_channels
        channels = np.flatnonzero(use.unit_of >= 0)
        group.add_dep(tp.dependency.Dependency(change, change, source=node, target=node), channels.tolist())
        group[len(group) - 1].root_idxs = use.unit_of[channels].tolist()
    return group


def _distances_to_others(module: nn.Module, coupling: Coupling) -> np.ndarray | None:
    """Sums each filter's distances to all filters of its layer; torch-pruning's own takes those of squared weights."""
    modules = dict(module.named_modules())
    producers = [use for use in coupling.uses if use.side == "out"]
    filters = [(use, _filters(modules.get(use.path), use)) for use in producers]
    total, n_layers = np.zeros(coupling.structure.n_units), 0
    for use, rows in filters:
        if rows is not None:
            distances = torch.cdist(rows, rows).sum(1).cpu().numpy()
            np.add.at(total, use.unit_of[use.unit_of >= 0], distances)
            n_layers += 1
    return total / n_layers if n_layers else None


def _filters(target: object, use: Use) -> torch.Tensor | None:
    """Returns (n_channels of the structure, n_weights) float64."""
    if not isinstance(target, nn.modules.conv._ConvNd | nn.Linear) or is_depthwise(target):
        return None
    weight = target.weight
    if getattr(target, "transposed", False):  # (in, out / group, *kernel)
        apart = weight.reshape(target.groups, -1, *weight.shape[1:]).transpose(1, 2)
        weight = apart.reshape(target.out_channels, -1)
    rows: torch.Tensor = weight.detach().flatten(1).double()
    return rows[torch.from_numpy(np.flatnonzero(use.unit_of >= 0)).to(rows.device)]


def _differentiate(
    module: nn.Module, criterion: str, losses: Losses | None
) -> tuple[nn.Module, Mapping[str, list[torch.Tensor]]]:
    """Returns a copy, and per criterion the mean of the gradients or of their squares for each of its parameters.

    Raises:
        PolicyError: there are no losses.
    """
    if losses is None:
        raise PolicyError(f"importance {criterion} needs training data; give data with a train split")
    copy = deepcopy(module).eval()
    parameters = list(copy.parameters())
    trained = [p.requires_grad_(True) for p in parameters if p.is_floating_point()]
    sums = {name: {id(p): torch.zeros_like(p) for p in parameters} for name in GRADIENT_IMPORTANCES}
    n_losses = 0
    with torch.enable_grad():
        for loss in losses(copy):
            found = torch.autograd.grad(loss, trained, allow_unused=True)
            for parameter, gradient in zip(trained, found, strict=True):
                if gradient is not None:
                    sums["taylor"][id(parameter)] += gradient
                    sums["fisher"][id(parameter)] += gradient.square()
            n_losses += 1
    if n_losses == 0:
        raise PolicyError(f"importance {criterion} needs training data, and the losses yield none")
    return copy, {name: [found[id(p)] / n_losses for p in parameters] for name, found in sums.items()}
