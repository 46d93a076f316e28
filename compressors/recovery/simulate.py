"""A network that computes with its layers as they will be stored, while what is behind them learns."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from ...core.errors import PolicyError
from ...spaces.treatment import Treatment
from ..layer_inputs import LayerInputs
from ..weights.cluster import GROUP_CHANNELS, cluster_weight
from ..weights.sparsify import choose_kept
from .input_stages import DynamicInput, RoundedInput, SignedInput
from .schedules import gradual_sparsity, is_mask_due
from .weight_stages import BlockRounding, LearnedRounding, Mask, SharedValues, Signs

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)
#: name of the submodule that represents a layer's input
_INPUT = "trimtab_input"


def simulated_part(treatment: Treatment, *, quantization_aware: bool) -> Treatment:
    """Returns the treatment with those fields alone that training has to see."""
    part = {
        name: getattr(treatment, name)
        for name in ("clusters", "cluster_scope", "cluster_weighting", "binary", "sparsity", "pattern", "saliency")
    }
    if treatment.weight_dtype in ("int8", "int4") and quantization_aware:
        for name in ("weight_dtype", "activation_dtype", "activation_range", "granularity"):
            part[name] = getattr(treatment, name)
    if treatment.activation_dtype == "binary":
        part["activation_dtype"] = "binary"
    return Treatment(**part)


class Simulation:
    """Puts treatments into a network, in place, and takes the result out."""

    def __init__(
        self,
        student: nn.Module,
        treatments: Mapping[str, Treatment],
        *,
        inputs: Mapping[str, LayerInputs],
        gradual: bool,
        codes: str,
    ) -> None:
        """Treats the weights; `watch` treats what enters the layers.

        Args:
            student: the network; it is changed.
            treatments: module path → treatment, as `simulated_part` returns it.
            inputs: module path → what enters it, where its treatment goes by that.
            gradual: whether sparsity starts at 0.
            codes: codes of static int8 activations: ``asymmetric``, ``symmetric`` or ``symmetric_signed``.

        Raises:
            PolicyError: a module is missing, cannot be treated, or shares its weight with one treated otherwise.
        """
        self._student = student
        self._codes = codes
        self._gradual = gradual
        self._modules = {
            path: _find(student, path, treatment) for path, treatment in treatments.items() if treatment != Treatment()
        }
        self._treatments = {path: treatments[path] for path in self._modules}
        #: module path → the stages of its weight; modules that share a weight share them
        self._stages: dict[str, list[nn.Module]] = {}
        self._share_stages(inputs)

    def _share_stages(self, inputs: Mapping[str, LayerInputs]) -> None:
        first: dict[int, str] = {}
        weights = {path: module.weight for path, module in self._modules.items()}
        for path, weight in weights.items():
            other = first.setdefault(id(weight), path)
            if other == path:
                self._stages[path] = self._treat_weight(path, weight, inputs.get(path))
            elif _of_weight(self._treatments[path]) != _of_weight(self._treatments[other]):
                raise PolicyError(f"layers {other} and {path} share a weight and must be treated alike")
            else:
                self._stages[path] = self._stages[other]

    def _treat_weight(self, path: str, weight: nn.Parameter, inputs: LayerInputs | None) -> list[nn.Module]:
        stages = _make_stages(self._treatments[path], weight, inputs, self._modules[path])
        if any(isinstance(stage, SharedValues) for stage in stages):
            weight.requires_grad_(False)  # its codebook learns instead
        owners = [
            (module, name)
            for module in list(self._student.modules())
            for name, parameter in list(module._parameters.items())
            if parameter is weight
        ]
        for owner, name in owners:
            for stage in stages:
                parametrize.register_parametrization(owner, name, stage, unsafe=True)
        return stages

    def watch(self, run: Callable[[], object]) -> None:
        """Represents what enters the layers as they will see it, from what a batch brings.

        Layers that read one value share its representation, as they do in the artifact.

        Args:
            run: runs the student on a batch.
        """
        kinds = {path: kind for path, t in self._treatments.items() if (kind := _input_kind(t)) is not None}
        if not kinds:
            return
        known: list[tuple[tuple[object, ...], torch.Tensor, nn.Module]] = []
        hooks = []
        for path, kind in kinds.items():

            def start(module: nn.Module, inputs: Any, kind: str = kind) -> None:
                if not hasattr(module, _INPUT):
                    module.add_module(_INPUT, _shared(known, inputs[0], kind, self._codes))

            hooks.append(self._modules[path].register_forward_pre_hook(start))
            self._modules[path].register_forward_pre_hook(_represent)
        with torch.no_grad():
            run()
        for hook in hooks:
            hook.remove()

    def before_step(self, step: int, n_steps: int) -> None:
        """Moves gradual sparsity on."""
        if not self._gradual or not is_mask_due(step, n_steps):
            return
        done = set()
        for path, stages in self._stages.items():
            for place, stage in enumerate(stages):
                if isinstance(stage, Mask) and id(stage) not in done:
                    done.add(id(stage))
                    with torch.no_grad():
                        weight = latent = self._modules[path].parametrizations.weight.original
                        for before in stages[:place]:
                            weight = before(weight)
                    sparsity = gradual_sparsity(step, n_steps, self._treatments[path].sparsity)
                    stage.choose(weight, sparsity, ties=latent)

    @property
    def is_fine(self) -> bool:
        """Whether values are rounded to 8 bits, which would drown in the rounding of bfloat16, whose numbers have 8."""
        coarse = (LearnedRounding, RoundedInput, DynamicInput, BlockRounding)
        return any(isinstance(module, coarse) for module in self._student.modules())

    def special_parameters(self) -> list[nn.Parameter]:
        """Returns codebooks and steps, which move in proportion to their size."""
        found: dict[int, nn.Parameter] = {}
        for module in self._student.modules():
            if isinstance(module, SharedValues):
                found[id(module.codebook)] = module.codebook
            elif isinstance(module, LearnedRounding | RoundedInput):
                found[id(module.step)] = module.step
        return list(found.values())

    def learned_steps(self) -> dict[str, np.ndarray]:
        """Returns module path → (n_outputs,) float32 steps of its int8 weight."""
        steps = {}
        for path, stages in self._stages.items():
            for stage in stages:
                if isinstance(stage, LearnedRounding):
                    n_outputs = len(self._modules[path].weight)
                    steps[path] = stage.step.detach().expand(n_outputs).cpu().numpy().copy()
        return steps

    def learned_ranges(self) -> dict[str, tuple[float, float]]:
        """Returns module path → range of its int8 input."""
        return self._ranges_of(RoundedInput)

    def learned_levels(self) -> dict[str, tuple[float, float]]:
        """Returns module path → the two values of its binary input."""
        return self._ranges_of(SignedInput)

    def _ranges_of(self, kind: type[nn.Module]) -> dict[str, tuple[float, float]]:
        stages = {path: getattr(module, _INPUT, None) for path, module in self._modules.items()}
        return {path: stage.range for path, stage in stages.items() if isinstance(stage, kind)}

    def bake(self, original: nn.Module) -> nn.Module:
        """Returns a copy of a module with the student's weights as they will be stored, in eval mode.

        Args:
            original: the student before it was treated.
        """
        baked = copy.deepcopy(original)
        with torch.no_grad():
            for path, module in baked.named_modules():
                trained = self._student.get_submodule(path)
                for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                    if tensor is not None:
                        tensor.copy_(getattr(trained, name))
        return baked.eval()


def _find(student: nn.Module, path: str, treatment: Treatment) -> nn.Module:
    modules = dict(student.named_modules())
    if path not in modules:
        raise PolicyError(f"the model to be trained has no module {path}")
    module = modules[path]
    if not isinstance(module, _KINDS):
        kinds = ", ".join(kind.__name__ for kind in _KINDS)
        raise PolicyError(f"layer {path}: training can treat {kinds}, got {type(module).__name__}")
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        raise PolicyError(f"layer {path}: its weight is computed by a parametrisation; remove that before compressing")
    if treatment.granularity.startswith("block") and not isinstance(module, nn.Linear | nn.Embedding):
        raise PolicyError(f"layer {path}: block-wise weights exist for linear layers only")
    return module


def _of_weight(treatment: Treatment) -> tuple[object, ...]:
    return tuple(value for name, value in sorted(treatment.to_json().items()) if not name.startswith("activation"))


def _make_stages(
    treatment: Treatment, weight: nn.Parameter, inputs: LayerInputs | None, module: nn.Module
) -> list[nn.Module]:
    stages: list[nn.Module] = []
    dense = treated = weight.detach().cpu().numpy()
    device = weight.device
    if treatment.clusters:
        treated = cluster_weight(dense, treatment, axis=0, inputs=inputs).array
        group = len(dense) if treatment.cluster_scope == "tensor" else GROUP_CHANNELS
        stages.append(SharedValues(treated, group=group, has_zeros=treatment.sparsity > 0))
    elif treatment.binary != "none":
        stages.append(Signs(treatment.binary))
    if treatment.sparsity:
        kept = choose_kept(treated, treatment, axis=0, inputs=inputs, ties=dense)
        stages.append(Mask(torch.from_numpy(kept), treatment, inputs))
    # few values have codes of their own, and a table is not trained for its rounding
    if not (treatment.clusters or treatment.binary != "none" or isinstance(module, nn.Embedding)):
        if treatment.granularity.startswith("block"):
            block_size = int(treatment.granularity.removeprefix("block"))
            stages.append(BlockRounding(bits=4 if treatment.weight_dtype == "int4" else 8, block_size=block_size))
        elif treatment.weight_dtype == "int8":
            stages.append(LearnedRounding(weight.cpu(), is_per_tensor=treatment.granularity == "tensor"))
    return [stage.to(device) for stage in stages]


def _input_kind(treatment: Treatment) -> str | None:
    if treatment.activation_dtype == "int8":
        return treatment.activation_range
    return "binary" if treatment.activation_dtype == "binary" else None


def _shared(
    known: list[tuple[tuple[object, ...], torch.Tensor, nn.Module]], x: torch.Tensor, kind: str, codes: str
) -> nn.Module:
    """Returns the stage of a value, made at first sight; values are kept, so that none takes the place of another."""
    key = (x.data_ptr(), x._version, tuple(x.shape), x.stride(), kind)
    for other, _, stage in known:
        if other == key:
            return stage
    seen = x.detach().float().flatten()
    known.append((key, x, _make_input_stage(kind, seen, codes)))
    return known[-1][2]


def _make_input_stage(kind: str, seen: torch.Tensor, codes: str) -> nn.Module:
    if kind == "static":
        return RoundedInput(seen, codes)
    return SignedInput(seen) if kind == "binary" else DynamicInput()


def _represent(module: nn.Module, inputs: Any) -> Any:
    stage = getattr(module, _INPUT, None)  # none where the layer runs in training mode only, which the artifact lacks
    return inputs if stage is None else (stage(inputs[0]), *inputs[1:])
