"""How the parameters move."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ...core.errors import RunError

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
#: codebooks and steps move by about this share of their size in a step; for ResNet-20 in 4 values 0.001 to 0.01 all
#: got from 21.9 to 91.2 % ± 0.1 within an eighth of an epoch
_SPECIAL_RATE = 3e-3


@dataclass(frozen=True)
class Recipe:
    """The optimiser of a kind of model."""

    #: ``sgd`` or ``adamw``
    optimizer: str
    learning_rate: float
    weight_decay: float


#: convolutions with batch norm, layer norms (transformers), and everything else. ResNet-20 on Fashion-MNIST (92.1 %),
#: after half an epoch with binary weights and with 80 % zeros: SGD 0.02: 91.2 and 91.7 %, 0.05: 91.0 and 92.1 %,
#: 0.1: 90.5 %; AdamW 0.001: 91.0 and 91.7 %, 0.003: 91.0 %. Untreated or in int8, which have little to win back, it
#: gained 0.4 points at 0.02. The standard error of each is 0.4.
#: Transformers: the highest of those in Devlin et al., BERT (2019), appendix A.3; MiniLM with 60 % zeros
#: got worse in its first steps at four times that.
_RECIPES = {
    "batch_norm": Recipe("sgd", 0.02, 1e-4),
    "layer_norm": Recipe("adamw", 5e-5, 0.01),
    "none": Recipe("adamw", 1e-3, 0.0),
}


def choose_recipe(student: nn.Module) -> Recipe:
    """Returns how a model of this kind is trained, judged by its norms."""
    modules = list(student.modules())
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules):
        return _RECIPES["batch_norm"]
    has_layer_norm = any(isinstance(module, nn.LayerNorm) or "RMSNorm" in type(module).__name__ for module in modules)
    return _RECIPES["layer_norm" if has_layer_norm else "none"]


class Optimizers:
    """One optimiser for weights and one for codebooks and steps, which move in proportion to their size."""

    def __init__(self, student: nn.Module, special: Sequence[nn.Parameter], *, learning_rate: float | None) -> None:
        """Takes all parameters that are trained.

        Args:
            student: the network with everything that is to be trained inside.
            special: codebooks and steps, among its parameters.
            learning_rate: the highest for the weights; None chooses by the model.
        """
        recipe = choose_recipe(student)
        rate = recipe.learning_rate if learning_rate is None else learning_rate
        apart = {id(parameter) for parameter in special}
        self.weights = [p for p in student.parameters() if p.requires_grad and id(p) not in apart]
        self._made = _make(recipe, _decay_groups(student, self.weights, recipe.weight_decay), rate)
        if special:
            groups = [{"params": [p], "lr": _SPECIAL_RATE * float(p.detach().square().mean().sqrt())} for p in special]
            self._made.append(torch.optim.AdamW(groups, weight_decay=0.0, fused=True))
        self._peaks = [[float(group["lr"]) for group in made.param_groups] for made in self._made]

    def step(self, factor: float) -> None:
        """Moves everything at this share of the highest rates, and clears the gradients."""
        for made, peaks in zip(self._made, self._peaks, strict=True):
            for group, peak in zip(made.param_groups, peaks, strict=True):
                group["lr"] = factor * peak
            made.step()
            made.zero_grad(set_to_none=True)

    def tensors(self) -> Iterable[tuple[str, torch.Tensor]]:
        """Yields name and tensor of everything that is remembered between steps."""
        for number, made in enumerate(self._made):
            for place, parameter in enumerate(_parameters(made)):
                for name, value in made.state.get(parameter, {}).items():
                    if isinstance(value, torch.Tensor):
                        yield f"{number}/{place}/{name}", value

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes over what `tensors` gave: name → array.

        Raises:
            RunError: the names are those of other optimisers.
        """
        for made in self._made:
            made.state.clear()
        for key, array in arrays.items():
            number, place, name = key.split("/", 2)
            try:
                made = self._made[int(number)]
                parameter = _parameters(made)[int(place)]
            except (IndexError, ValueError) as error:
                raise RunError(f"the training state is that of another model: it holds optimizer/{key}") from error
            value = torch.from_numpy(array.copy())
            if value.shape == parameter.shape and value.ndim:  # in the parameter's own layout: fused kernels trust that
                value = torch.empty_like(parameter, requires_grad=False).copy_(value)
            made.state[parameter][name] = value.to(parameter.device)


def _make(recipe: Recipe, groups: list[dict[str, object]], rate: float) -> list[torch.optim.Optimizer]:
    if not groups:
        return []
    if recipe.optimizer == "sgd":
        return [torch.optim.SGD(groups, rate, momentum=0.9, nesterov=True, fused=True)]
    return [torch.optim.AdamW(groups, rate, fused=True)]


def _decay_groups(student: nn.Module, weights: Sequence[nn.Parameter], decay: float) -> list[dict[str, object]]:
    """Weights of norms and embeddings, and biases, do not decay."""
    spared = {
        id(parameter)
        for module in student.modules()
        if isinstance(module, (*_NORMS, nn.Embedding))
        for parameter in module.parameters()
    }
    shrinking = [p for p in weights if p.ndim > 1 and id(p) not in spared]
    chosen = {id(p) for p in shrinking}
    others = [p for p in weights if id(p) not in chosen]
    groups: list[dict[str, object]] = [
        {"params": shrinking, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}
    ]  # fmt: skip
    return [group for group in groups if group["params"]]


def _parameters(made: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in made.param_groups for parameter in group["params"]]
