"""Low rank in a torch module: layers become sequences, so that what follows can train the factors."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ...core.errors import PolicyError
from ...spaces.treatment import Treatment
from ..layer_inputs import LayerInputs
from ..patches import Window
from .factor_shapes import FactorShape, LayerGeometry
from .factorise import Factors, factorise

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def factorise_module(
    module: nn.Module,
    treatments: Mapping[str, Treatment],
    *,
    inputs: Mapping[str, LayerInputs] | None = None,
    example_inputs: Any = None,
) -> nn.Module:
    """Returns a copy in which layers are taken apart: ``fc`` becomes a sequence of ``fc.0``, ``fc.1`` (and ``fc.2``).

    Modules that share a weight share its factors. The bias stays with the last factor. The factors are those of
    `factorise_graph`, which sees batch norms merged into convolutions: one that follows a convolution when the example
    inputs are run counts in the error.

    Args:
        module: the model; it is left alone.
        treatments: module path → treatment, of which only the fields of low rank count.
        inputs: module path → what enters it; read for ``rank_error: output``.
        example_inputs: forward argument → tensor, or the tensors in the order of the arguments; None takes the
            module's attribute ``example_inputs``. Without any, convolutions are taken to read large images, and batch
            norms are not seen.

    Raises:
        PolicyError: a layer is not there, is of a class without low rank, shares its weight with one, or cannot be
            taken apart; or the model does not run any more, for it reads the weight of a layer by itself.
    """
    result = copy.deepcopy(module)
    targets = _find_targets(result, treatments)
    if not targets:
        return result
    examples = _arguments(getattr(module, "example_inputs", None) if example_inputs is None else example_inputs)
    views = _observe(result, [target.layer for target in targets], examples) if examples is not None else {}
    for target in targets:
        view = views.get(target.layer, _View())
        seen = None  # statistics may be collected when they are first asked for
        if inputs is not None and target.treatment.rank_error == "output":
            seen = inputs.get(target.name)
        _replace(result, target, _factorise(target, view, seen), view)
    if examples is not None:
        _check_runs(result, examples)
    return result


@dataclass
class _Target:
    """A layer to take apart, and every module that has its weight."""

    name: str
    layer: nn.Module
    treatment: Treatment
    owners: list[nn.Module]


@dataclass
class _View:
    """What the example inputs show of a convolution."""

    #: of its input; empty where they are not known
    sides: tuple[int, ...] = ()
    #: (n_outputs,) float64: what the batch norm behind it multiplies
    scale: np.ndarray | None = None


def _find_targets(module: nn.Module, treatments: Mapping[str, Treatment]) -> list[_Target]:
    """Returns the layers, each weight once."""
    modules = dict(module.named_modules(remove_duplicate=False))
    found: dict[int, _Target] = {}
    for name, treatment in treatments.items():
        if treatment.rank == 1.0:
            continue
        layer = modules.get(name)
        if layer is None:
            raise PolicyError(f"the torch model has no module {name}; leave low_rank out for it")
        if type(layer) not in (nn.Linear, *_CONVOLUTIONS):
            raise PolicyError(
                f"layer {name}: low rank replaces modules of the classes Linear, Conv1d and Conv2d, and this is of the "
                f"class {type(layer).__name__}; leave low_rank out for it"
            )
        known = found.setdefault(id(layer.weight), _Target(name, layer, treatment, _owners(modules, name)))
        if known.treatment != treatment:
            raise PolicyError(f"layers {known.name} and {name} share their weight; give both the same low_rank")
    return list(found.values())


def _owners(modules: Mapping[str, nn.Module], name: str) -> list[nn.Module]:
    """Returns the modules that have the weight of this one as a parameter."""
    layer = modules[name]
    owners = {
        child: other
        for other, child in modules.items()
        if any(parameter is layer.weight for parameter in child.parameters(recurse=False))
    }
    for owner, other in owners.items():
        if type(owner) is not type(layer) or _move(owner) != _move(layer):
            raise PolicyError(
                f"layer {name}: its weight is also that of {other}, of the class {type(owner).__name__}, which cannot "
                "use its factors; leave low_rank out for it"
            )
    return list(owners)


def _move(layer: nn.Module) -> tuple[object, ...]:
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    return tuple(getattr(layer, name, None) for name in names)


def _arguments(example_inputs: Any) -> tuple[list[Any], dict[str, Any]] | None:
    """Returns the example inputs as positional and named arguments."""
    if example_inputs is None:
        return None
    if isinstance(example_inputs, Mapping):
        return [], dict(example_inputs)
    return list(example_inputs) if isinstance(example_inputs, tuple | list) else [example_inputs], {}


def _run(module: nn.Module, examples: tuple[list[Any], dict[str, Any]]) -> None:
    """Runs the module as it would be used, and leaves its modes as they were."""
    modes = {child: child.training for child in module.modules()}
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    module.eval()
    try:
        with torch.no_grad():
            module(*(value.to(device) for value in examples[0]), **{k: v.to(device) for k, v in examples[1].items()})
    finally:
        for child, mode in modes.items():
            child.training = mode


def _check_runs(module: nn.Module, examples: tuple[list[Any], dict[str, Any]]) -> None:
    try:
        _run(module, examples)
    except Exception as error:  # models raise anything
        raise PolicyError(
            f"the model does not run with layers of low rank, maybe because it reads a weight itself: {error!r}; "
            "leave low_rank out for that layer"
        ) from error


def _observe(
    module: nn.Module, layers: list[nn.Module], examples: tuple[list[Any], dict[str, Any]]
) -> dict[nn.Module, _View]:
    """Runs the examples and returns what they show of the convolutions among these layers."""
    views: dict[nn.Module, _View] = {}
    outputs: list[tuple[torch.Tensor, nn.Module]] = []

    def note_output(layer: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        views.setdefault(layer, _View(tuple(args[0].shape[-len(layer.kernel_size) :])))
        outputs.append((output, layer))

    def note_norm(norm: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        for output, layer in outputs:
            if args[0] is output:
                views[layer].scale = _scale_of(norm)

    convolutions = [layer for layer in layers if isinstance(layer, _CONVOLUTIONS)]
    with _hooks() as handles:
        handles += [layer.register_forward_hook(note_output) for layer in convolutions]
        norms = [child for child in module.modules() if isinstance(child, _NORMS)]
        handles += [norm.register_forward_pre_hook(note_norm) for norm in norms]
        _run(module, examples)
    return views


@contextmanager
def _hooks() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def _scale_of(norm: nn.Module) -> np.ndarray | None:
    """Returns what a batch norm multiplies in use: (n_channels,) float64; None where it takes the batch's own."""
    if norm.running_var is None:
        return None
    scale = 1.0 / np.sqrt(norm.running_var.double().cpu().numpy() + norm.eps)
    return scale if norm.weight is None else np.asarray(scale * norm.weight.detach().double().cpu().numpy())


def _factorise(target: _Target, view: _View, inputs: LayerInputs | None) -> Factors:
    weight = target.layer.weight.detach().float().cpu().numpy()
    if isinstance(target.layer, nn.Linear):
        geometry = LayerGeometry(target.name, "linear", weight.T.shape)
        return factorise(weight.T, target.treatment, geometry, inputs=inputs)
    if view.scale is not None:
        weight = (weight * view.scale.reshape(-1, *(1,) * (weight.ndim - 1))).astype(np.float32)
    window, sides = _window_of(target.layer, view.sides)
    kind = "depthwise_conv" if window.n_groups > 1 and weight.shape[1] == 1 else "conv"
    geometry = LayerGeometry(target.name, kind, weight.shape, window, sides)
    return factorise(weight, target.treatment, geometry, inputs=inputs)


def _window_of(layer: nn.Module, sides: tuple[int, ...]) -> tuple[Window, tuple[int, ...]]:
    """Returns the window and the sides of what it moves over; what is not zeros is padded before, as in the graph."""
    window = Window(layer.kernel_size, layer.stride, layer.dilation, (), n_groups=layer.groups)
    if layer.padding == "same":
        pads = tuple(((reach - 1) // 2, reach // 2) for reach in window.reach)
    else:
        pads = tuple((0, 0) if layer.padding == "valid" else (side, side) for side in layer.padding)
    if layer.padding_mode != "zeros":
        sides = tuple(side + sum(pad) for side, pad in zip(sides, pads, strict=False))
        pads = ((0, 0),) * len(pads)
    return Window(window.kernel, window.strides, window.dilations, pads, n_groups=layer.groups), sides


def _replace(module: nn.Module, target: _Target, factors: Factors, view: _View) -> None:
    """Puts sequences in the place of all owners of the weight."""
    arrays = [weight.T if isinstance(target.layer, nn.Linear) else weight for weight in factors.weights]
    if view.scale is not None:
        scale = view.scale.reshape(-1, *(1,) * (arrays[-1].ndim - 1))
        arrays[-1] = np.divide(arrays[-1], scale, out=np.zeros_like(arrays[-1], np.float64), where=scale != 0)
    own = target.layer.weight
    weights = [
        nn.Parameter(torch.tensor(array, dtype=own.dtype, device=own.device), requires_grad=own.requires_grad)
        for array in arrays
    ]
    replaced = {owner: _sequence(owner, weights, factors.shapes) for owner in target.owners}
    for path, child in list(module.named_modules(remove_duplicate=False)):
        if child in replaced:
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, replaced[child])


def _sequence(owner: nn.Module, weights: list[nn.Parameter], shapes: tuple[FactorShape, ...]) -> nn.Sequential:
    parts = []
    for weight, shape in zip(weights, shapes, strict=True):
        part = _part(owner, weight, shape)
        part.weight = weight
        parts.append(part)
    parts[-1].bias = owner.bias
    return nn.Sequential(*parts).train(owner.training)


def _part(owner: nn.Module, weight: nn.Parameter, shape: FactorShape) -> nn.Module:
    """Returns a module without values: on the device ``meta``, so that nothing is drawn for them."""
    n_out, n_in, *kernel = weight.shape
    if isinstance(owner, nn.Linear):
        return nn.Linear(n_in, n_out, bias=False, device="meta")
    stride, dilation = (
        tuple(entry if i in shape.axes else 1 for i, entry in enumerate(entries))
        for entries in (owner.stride, owner.dilation)
    )
    padding: Any = owner.padding
    if not isinstance(padding, str):
        padding = tuple(side if i in shape.axes else 0 for i, side in enumerate(padding))
    return type(owner)(
        n_in,
        n_out,
        tuple(kernel),
        stride,
        padding,
        dilation,
        bias=False,
        padding_mode=owner.padding_mode if shape.axes else "zeros",
        device="meta",
    )
