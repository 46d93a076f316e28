"""Trying what torch-pruning proposes: a structure is offered only if taking units out of it does what it should."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .couplings import tensors_in
from .cuts import NORMS_OVER_CHANNELS, Coupling, clone_module, keep_units, permute_units, zero_units

#: largest difference, relative to the largest output, that counts as rounding
_TOLERANCES = {torch.float64: 1e-7, torch.float32: 1e-4}


@dataclass(frozen=True, eq=False)
class Probe:
    """A copy of the model in the highest precision in which it runs, one sample, and the outputs."""

    module: nn.Module
    #: forward argument → (1, …) tensor
    inputs: Mapping[str, torch.Tensor]
    outputs: tuple[torch.Tensor, ...]
    #: largest relative difference that counts as rounding
    tolerance: float

    def run(self, module: nn.Module) -> tuple[torch.Tensor, ...]:
        """Returns the outputs of a changed copy."""
        return _run(module, self.inputs)

    def agrees(self, got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...]) -> bool:
        """Whether outputs are equal but for rounding; NaN equals nothing."""
        return _shapes(got) == _shapes(want) and all(
            bool((a - b).abs().max() <= self.tolerance * b.abs().max().clamp(min=1e-30))
            for a, b in zip(got, want, strict=True)
            if a.is_floating_point() and a.numel()
        )


def make_probe(module: nn.Module, example_inputs: Mapping[str, torch.Tensor]) -> Probe:
    """Copies the model, in double precision where it runs in that.

    Args:
        module: the model; it is left as it is.
        example_inputs: forward argument → (batch, …) tensor.

    Raises:
        Exception: whatever the model raises on its example inputs.
    """
    try:
        return _copy_in(torch.float64, module, example_inputs)
    except Exception:  # forward code that names float32 raises anything in another precision
        return _copy_in(torch.float32, module, example_inputs)


def _copy_in(dtype: torch.dtype, module: nn.Module, example_inputs: Mapping[str, torch.Tensor]) -> Probe:
    copy = deepcopy(module).eval().to(dtype)
    for parameter in copy.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    inputs = {name: _sample(tensor, dtype) for name, tensor in example_inputs.items()}
    outputs = _run(copy, inputs)
    if not all(bool(output.isfinite().all()) for output in outputs):  # the noise may not suit the model
        inputs = {name: tensor[:1].to(inputs[name].dtype) for name, tensor in example_inputs.items()}
        outputs = _run(copy, inputs)
    return Probe(copy, inputs, outputs, _TOLERANCES[dtype])


def why_unusable(probe: Probe, coupling: Coupling) -> str | None:
    """Takes half of the units out of a copy and returns what is wrong with that, or None.

    The rest must compute what the whole computes with those units at zero. Where a norm sees all channels at once, that
    does not hold; there, units put in another order must leave the outputs as they were.

    Args:
        probe: the model to try it on.
        coupling: the structure.
    """
    n_units = coupling.structure.n_units
    order = np.random.default_rng(n_units).permutation(n_units)
    kept = np.sort(order[: (n_units + 1) // 2])
    smaller = clone_module(probe.module)
    try:
        keep_units(smaller, [(coupling, kept)])
        got = probe.run(smaller)
    except Exception as error:  # wrong shapes raise anything, in torch or in the model's code
        return f"without some of them the model does not run: {_first_line(error)}"
    if _shapes(got) != _shapes(probe.outputs):
        return "the model's output would have another shape"
    paths = dict(probe.module.named_modules())
    if any(isinstance(paths.get(use.path), NORMS_OVER_CHANNELS) for use in coupling.uses):
        moved = clone_module(probe.module)
        try:
            permute_units(moved, coupling, _unlike_identity(order))
            is_sound = probe.agrees(probe.run(moved), probe.outputs)
        except ValueError:  # units of unequal sizes
            is_sound = False
        return None if is_sound else "they cannot change places without changing what the model computes"
    emptied = clone_module(probe.module)
    zero_units(emptied, coupling, np.setdiff1d(order, kept))
    if not probe.agrees(got, probe.run(emptied)):
        return "without some of them the model computes something else than with those at zero"
    return None


def _unlike_identity(order: np.ndarray) -> np.ndarray:
    return np.roll(order, 1) if (order == np.arange(len(order))).all() else order


def _run(module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return tuple(tensors_in(module(**inputs)))


def _sample(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns one sample; where a float input says nothing (all values equal), noise in its place."""
    sample = tensor[:1]
    if not sample.is_floating_point():
        return sample
    if bool((sample == sample.flatten()[0]).all()):
        noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(0))
        return noise.to(sample.device, dtype)
    return sample.to(dtype)


def _shapes(outputs: tuple[torch.Tensor, ...]) -> list[torch.Size]:
    return [output.shape for output in outputs]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]:.160}"
