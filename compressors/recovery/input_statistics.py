"""What enters the layers of a torch model, where the choice of weights depends on it."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ..layer_inputs import LayerInputs

#: rows or patches of one sample that are looked at
_MAX_ROWS = 1024


def collect_inputs(
    student: nn.Module, paths: Collection[str], batch_inputs: Mapping[str, torch.Tensor]
) -> dict[str, LayerInputs]:
    """Runs a batch and returns module path → what enters it, as `LayerInputs` counts it.

    Args:
        student: the network, whose mode is left alone.
        paths: linear layers and convolutions.
        batch_inputs: argument of ``forward`` → (batch, …) tensor.
    """
    seen: dict[str, list[torch.Tensor]] = {path: [] for path in paths}
    hooks = []
    for path in paths:

        def keep(module: nn.Module, inputs: Any, path: str = path) -> None:
            seen[path].append(_rows(module, inputs[0]))

        hooks.append(student.get_submodule(path).register_forward_pre_hook(keep))
    try:
        with torch.no_grad():
            student(**batch_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {path: _summarise(torch.cat(parts, 1)) for path, parts in seen.items() if parts}


def _rows(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Returns (n_groups, n_rows, K) float32."""
    if isinstance(module, nn.Linear):
        return _spread(x.detach().float().reshape(1, -1, x.shape[-1]), len(x))
    x = functional.pad(x.detach().float(), module._reversed_padding_repeated_twice)
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    if x.ndim == 3:
        x, kernel, stride, dilation = x[:, :, None], (1, *kernel), (1, *stride), (1, *dilation)
    patches = functional.unfold(x, kernel, dilation=dilation, stride=stride)  # (batch, channels · kernel, places)
    n_samples, _, n_places = patches.shape
    grouped = patches.reshape(n_samples, module.groups, -1, n_places)
    return _spread(grouped.permute(1, 0, 3, 2).reshape(module.groups, n_samples * n_places, -1), n_samples)


def _spread(rows: torch.Tensor, n_samples: int) -> torch.Tensor:
    """Takes rows at equal distances, where there are many."""
    limit = _MAX_ROWS * n_samples
    if rows.shape[1] <= limit:
        return rows
    return rows[:, torch.linspace(0, rows.shape[1] - 1, limit).long().to(rows.device)]


def _summarise(rows: torch.Tensor) -> LayerInputs:
    n_rows = max(1, rows.shape[1])
    moments = torch.matmul(rows.transpose(1, 2), rows).double() / n_rows
    peak = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(rows.shape[0], rows.shape[2])
    arrays: list[np.ndarray] = [t.double().cpu().numpy() for t in (moments, rows.double().mean(1), peak)]
    return LayerInputs(*arrays)
