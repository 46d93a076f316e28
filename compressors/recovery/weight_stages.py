"""Parametrisations: a module's weight as its treatment leaves it, seen through which the latent weight learns."""

import numpy as np
import torch
from torch import nn

from ...spaces.treatment import Treatment
from ..layer_inputs import LayerInputs
from ..weights.sparsify import choose_kept
from .straight_through import RoundBlocks, RoundChannels, SignWeight, TakeValues

#: largest code of an int8 weight, as in `quantize_weight`
MAX_CODE = 127


class SharedValues(nn.Module):
    """Values that many weights share; they learn, and which weight takes which stays."""

    codebook: nn.Parameter
    index: torch.Tensor
    is_free: torch.Tensor

    def __init__(self, values: np.ndarray, *, group: int, has_zeros: bool) -> None:
        """Reads the codebooks off a clustered weight.

        Args:
            values: (n_outputs, …) float32, few different numbers in each group.
            group: outputs that share a codebook.
            has_zeros: whether the value 0 stays 0.
        """
        super().__init__()
        codebooks, indices, n_before = [], [], 0
        for start in range(0, len(values), group):
            found, inverse = np.unique(values[start : start + group], return_inverse=True)
            codebooks.append(found)
            indices.append(inverse.reshape(values[start : start + group].shape) + n_before)
            n_before += len(found)
        codebook = torch.from_numpy(np.concatenate(codebooks))
        self.codebook = nn.Parameter(codebook)
        self.register_buffer("index", torch.from_numpy(np.concatenate(indices).astype(np.int64)))
        self.register_buffer("is_free", (codebook != 0) if has_zeros else torch.ones_like(codebook, dtype=torch.bool))

    def forward(self, _weight: torch.Tensor) -> torch.Tensor:
        """Returns the weight that the codebook makes; the one that it was read off does not count any more."""
        taken: torch.Tensor = TakeValues.apply(torch.where(self.is_free, self.codebook, 0.0), self.index)
        return taken


class Signs(nn.Module):
    """A binary or ternary weight."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """(n_outputs, …) → the same shape."""
        signs: torch.Tensor = SignWeight.apply(weight, self.form)
        return signs


class Mask(nn.Module):
    """A sparse weight; zeros have no gradient."""

    kept: torch.Tensor

    def __init__(self, kept: torch.Tensor, treatment: Treatment, inputs: LayerInputs | None) -> None:
        """Starts with a mask.

        Args:
            kept: the shape of the weight, bool.
            treatment: what `choose` aims for.
            inputs: what enters the layer, where that decides which weights stay.
        """
        super().__init__()
        self.register_buffer("kept", kept)
        self._treatment = treatment
        self._inputs = inputs

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """(n_outputs, …) → the same shape."""
        return torch.where(self.kept, weight, 0.0)

    def choose(self, weight: torch.Tensor, sparsity: float, *, ties: torch.Tensor) -> None:
        """Chooses anew which weights stay; those that were zero may come back.

        Args:
            weight: (n_outputs, …) before the mask.
            sparsity: share of zeros; a pattern comes as near as it can without exceeding its own.
            ties: the shape of the weight; what decides between equal ones.
        """
        aim = _at_level(self._treatment, sparsity)
        if aim is None:
            self.kept.fill_(True)
            return
        dense, latent = weight.detach().cpu().numpy(), ties.detach().cpu().numpy()
        self.kept.copy_(torch.from_numpy(choose_kept(dense, aim, axis=0, inputs=self._inputs, ties=latent)))


def _at_level(treatment: Treatment, sparsity: float) -> Treatment | None:
    """Returns the treatment with fewer zeros; None where that leaves all weights."""
    if treatment.pattern == "unstructured":
        return Treatment(sparsity=sparsity, saliency=treatment.saliency) if sparsity > 0 else None
    n, m = (int(part) for part in treatment.pattern.split(":"))
    kept = max(n, m - int(sparsity * m + 1e-9))
    return Treatment(pattern=f"{kept}:{m}", saliency=treatment.saliency) if kept < m else None


class LearnedRounding(nn.Module):
    """An int8 weight with a learned step for each output, or one for all."""

    step: nn.Parameter

    def __init__(self, weight: torch.Tensor, *, is_per_tensor: bool) -> None:
        """Chooses the first steps for a weight: (n_outputs, …)."""
        super().__init__()
        rows = weight.detach().flatten(1)
        self.step = nn.Parameter(first_step(rows.reshape(1, -1) if is_per_tensor else rows, MAX_CODE))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """(n_outputs, …) → the same shape."""
        rounded: torch.Tensor = RoundChannels.apply(weight, self.step, MAX_CODE)
        return rounded


def first_step(rows: torch.Tensor, limit: int) -> torch.Tensor:
    """Returns (n,) steps to start from: of max|w| / limit and 2 mean|w| / sqrt(limit) the one with less error.

    The second is that of Esser et al. (2020), section 2.1.

    Args:
        rows: (n, k).
        limit: the codes run from -limit to limit.
    """
    largest = rows.abs().amax(1) / limit
    typical = 2 * rows.abs().mean(1) / limit**0.5
    errors = [_rounding_error(rows, step, limit) for step in (largest, typical)]
    step = torch.where(errors[1] < errors[0], typical, largest)
    return torch.where(step > 0, step, 1.0)


def _rounding_error(rows: torch.Tensor, step: torch.Tensor, limit: int) -> torch.Tensor:
    along = torch.where(step > 0, step, 1.0)[:, None]
    return (torch.round(rows / along).clamp(-limit, limit) * along - rows).square().sum(1)


class BlockRounding(nn.Module):
    """A linear weight in int4 or int8 blocks; their scales follow the weight."""

    def __init__(self, *, bits: int, block_size: int) -> None:
        super().__init__()
        self.bits = bits
        self.block_size = block_size

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """(n_outputs, n_inputs) → the same shape."""
        rounded: torch.Tensor = RoundBlocks.apply(weight, self.bits, self.block_size)
        return rounded
