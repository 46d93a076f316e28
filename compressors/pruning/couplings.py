"""Which channels go together, as the dependency graph of torch-pruning tells; proposals that are still to be tried."""

import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ...core.errors import SpecError
from ...spaces.layer import Structure
from .cuts import CUTTABLE, LAYER_TYPES, Coupling, Use, n_channel_groups

#: attributes from which the code of an attention module may read its number of heads
HEAD_COUNTS = ("n_heads", "num_heads", "num_attention_heads", "n_head", "nhead", "heads")
#: attributes that hold the width of one head
_HEAD_WIDTHS = ("head_dim", "head_width", "attention_head_size")
#: attributes that hold heads × width of a head
_TOTAL_WIDTHS = ("all_head_size", "inner_dim")


@dataclass(frozen=True)
class Proposals:
    """What torch-pruning would prune together."""

    couplings: tuple[Coupling, ...]
    #: (structure, reason) of what cannot be taken apart
    refused: tuple[tuple[str, str], ...]


def load_torch_pruning() -> Any:
    """Returns the module ``torch_pruning``.

    Raises:
        SpecError: it is not installed.
    """
    try:
        return importlib.import_module("torch_pruning")
    except ImportError as error:
        raise SpecError("torch-pruning is not installed, and pruning needs it; pip install 'trimtab[torch]'") from error


def propose_couplings(module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Proposals:
    """Traces the module and returns its coupled channels, in the order in which they are computed.

    Args:
        module: in eval mode; its parameters require grad. It is left as it is.
        inputs: forward argument → tensor.

    Raises:
        SpecError: torch-pruning is not installed.
    """
    tp = load_torch_pruning()
    try:
        roots = _layers_in_order(module, inputs)
        graph = tp.DependencyGraph().build_dependency(
            module, dict(inputs), verbose=False, output_transform=_differentiable
        )
    except Exception as error:  # forward code and tracing raise anything
        return Proposals((), (("channels", f"torch-pruning cannot trace the model: {error!r:.200}"),))
    tracer = _Tracer(tp, graph, module, roots)
    couplings: list[Coupling] = []
    refused = [(f"heads:{path}", _WHY_NOT_MHA) for path, m in tracer.paths.items() if _is_mha(m)]
    for path in roots:
        found = tracer.couple(path)
        if isinstance(found, Coupling):
            couplings.append(found)
        elif found is not None:
            refused.append((f"channels:{path}", found))
    return Proposals(tuple(couplings), tuple(refused))


_WHY_NOT_MHA = (
    "nn.MultiheadAttention ties heads times their width to the width of its input; "
    "write query, key and value as Linear layers whose code reads the number of heads from n_heads"
)


def _is_mha(module: object) -> bool:
    return isinstance(module, nn.MultiheadAttention)


def _differentiable(outputs: Any) -> list[torch.Tensor]:
    return [tensor for tensor in tensors_in(outputs) if tensor.grad_fn is not None]


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yields the tensors in nested tuples, lists and mappings, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (tensor for part in value.values() for tensor in tensors_in(part))
    elif isinstance(value, tuple | list):
        yield from (tensor for part in value for tensor in tensors_in(part))


def _layers_in_order(module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> list[str]:
    """Runs the module and returns the paths of its layers as they are first called."""
    called: dict[str, None] = {}
    hooks = [
        layer.register_forward_hook(lambda *_, path=path: called.setdefault(path))
        for path, layer in module.named_modules()
        if isinstance(layer, LAYER_TYPES)
    ]
    try:
        with torch.no_grad():
            module(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return list(called)


class _Tracer:
    """Reads coupled channels off a dependency graph; every channel goes to the first structure that has it."""

    def __init__(self, tp: Any, graph: Any, module: nn.Module, roots: list[str]) -> None:
        self._tp, self._graph = tp, graph
        self.paths: dict[str, nn.Module] = dict(module.named_modules())
        self._rank = {path: rank for rank, path in enumerate(roots)}
        self._names: dict[int, str] = {id(found): path for path, found in self.paths.items()}
        for path, owner in self.paths.items():
            # the weight of a norm that torch-pruning does not know counts as the norm
            is_known = isinstance(owner, CUTTABLE)
            for name, parameter in owner.named_parameters(recurse=False):
                self._names.setdefault(id(parameter), path if is_known else f"{path}.{name}".lstrip("."))
        self._taken: dict[str, np.ndarray] = {}

    def couple(self, path: str) -> Coupling | str | None:
        """Returns the coupling of a layer's outputs, why there is none, or None where other couplings have them all."""
        root = self.paths[path]
        if root not in self._graph.module2node:
            return "the model's output does not depend on it through operations that torch-pruning follows"
        pruner = self._graph.get_pruner_of_module(root)
        n_channels = pruner.get_out_channels(root)
        taken = self._taken.setdefault(path, np.zeros(n_channels, bool))
        if taken.all():
            return None
        try:
            group = self._graph.get_pruning_group(root, pruner.prune_out_channels, list(range(n_channels)))
            uses = self._read_uses(group)
        except Exception as error:  # operations that torch-pruning takes for others break its index maps
            uses = f"torch-pruning cannot follow its channels: {error!r:.160}"
        if isinstance(uses, str):
            taken[:] = True
            return uses
        uses, n_units = self._number_units(uses, n_channels)
        self._take(uses)
        if n_units < 2:
            return "all its channels go together" if n_units else "its channels go with others that cannot be pruned"
        return Coupling(self._describe(path, uses, n_units), tuple(uses))

    def _read_uses(self, group: Any) -> list[Use] | str:
        """Returns the uses with units numbered as the channels of the root, or why they cannot be had."""
        known = self._tp.ops.OPTYPE
        dummies = (known.CONCAT, known.SPLIT, known.ELEMENTWISE, known.RESHAPE, known.UNBIND, known.EXPAND,
                   known.SLICE, known.OUTPUT, known.CUSTOMIZED)  # fmt: skip
        uses: list[Use] = []
        for item in group:
            dep, target = item.dep, item.dep.target
            if target.type in dummies:
                continue
            path = self._names.get(id(target.module))
            if path is None or _is_mha(target.module) or target.type == known.LSTM:
                return _WHY_NOT_MHA if _is_mha(target.module) else f"the channels of {target.name} cannot be taken out"
            pruner = self._graph.get_pruner_of_module(target.module)
            is_into = dep.handler == pruner.prune_in_channels != pruner.prune_out_channels
            pruner.pruning_dim = target.pruning_dim
            n = (pruner.get_in_channels if is_into else pruner.get_out_channels)(target.module)
            if n is None:  # PReLU with one parameter for all channels
                continue
            units = np.full(n, -1, np.int64)
            index = np.array(item.idxs, np.int64)
            if None in item.root_idxs or index.max(initial=0) >= n:
                return f"torch-pruning loses track of the channels at {path}"
            units[index] = item.root_idxs
            uses.append(Use(path, "in" if is_into else "out", units))
        return uses

    def _number_units(self, uses: list[Use], n_channels: int) -> tuple[list[Use], int]:
        """Joins channels that can only go together, leaves out those of other structures, and counts the rest."""
        parent = np.arange(n_channels)

        def find(unit: int) -> int:
            while parent[unit] != unit:
                unit = parent[unit]
            return int(unit)

        for use in uses:
            n_groups = n_channel_groups(self.paths.get(use.path))
            if n_groups > 1:
                for members in use.unit_of.reshape(n_groups, -1).T:  # equal places of all groups
                    for unit in members[members >= 0]:
                        low, high = sorted((find(members.max()), find(unit)))
                        parent[high] = low
        label = np.array([find(unit) for unit in range(n_channels)])
        gone = [label[use.unit_of[mask]] for use in uses if (mask := self._taken_in(use)).any()]
        kept = np.setdiff1d(label, np.concatenate([np.zeros(0, np.int64), *gone]))
        number = np.full(n_channels + 1, -1)  # the last one is for channels of no unit
        number[:-1][np.isin(label, kept)] = np.searchsorted(kept, label[np.isin(label, kept)])
        renumbered = [replace(use, unit_of=number[use.unit_of]) for use in uses]
        return [use for use in renumbered if (use.unit_of >= 0).any()], len(kept)

    def _taken_in(self, use: Use) -> np.ndarray:
        taken = self._taken.get(use.path) if use.side == "out" else None
        return np.zeros(len(use.unit_of), bool) if taken is None else taken & (use.unit_of >= 0)

    def _take(self, uses: Iterable[Use]) -> None:
        for use in uses:
            if use.side == "out" and isinstance(self.paths.get(use.path), LAYER_TYPES):
                taken = self._taken.setdefault(use.path, np.zeros(len(use.unit_of), bool))
                taken |= use.unit_of >= 0

    def _describe(self, path: str, uses: list[Use], n_units: int) -> Structure:
        layers = [use for use in uses if isinstance(self.paths.get(use.path), LAYER_TYPES)]
        rank = lambda name: (name != path, self._rank.get(name, len(self._rank)))  # noqa: E731 - two uses, one line
        producers = sorted({use.path for use in layers if use.side == "out"}, key=rank)
        readers = sorted({use.path for use in layers if use.side == "in"} - set(producers), key=rank)
        return Structure(f"channels:{path}", "channels", (*producers, *readers), len(producers), n_units)


def as_heads(coupling: Coupling, module: nn.Module) -> Coupling | None:
    """Returns the coupling of query, key, value and output as one of whole heads; None where none are told.

    Args:
        coupling: of channels, each a unit.
        module: whose attributes tell the number of heads.
    """
    structure, n_channels = coupling.structure, coupling.structure.n_units
    if len(coupling.uses[0].unit_of) != n_channels:
        return None
    producers = structure.layers[: structure.n_producers]
    found = _find_owner(dict(module.named_modules()), producers, n_channels)
    if found is None:
        return None
    path, attributes, n_heads = found
    width = n_channels // n_heads
    owner = module.get_submodule(path)
    totals = [name for name in _TOTAL_WIDTHS if getattr(owner, name, None) == n_channels]
    counts = (*((path, name, 1) for name in attributes), *((path, name, width) for name in totals))
    uses = tuple(replace(use, unit_of=np.where(use.unit_of < 0, -1, use.unit_of // width)) for use in coupling.uses)
    described = replace(structure, name=f"heads:{path or producers[0]}", kind="heads", n_units=n_heads)
    return Coupling(described, uses, counts)


def _find_owner(
    modules: Mapping[str, nn.Module], producers: tuple[str, ...], n_channels: int
) -> tuple[str, list[str], int] | None:
    """Returns the nearest module around the producers that tells heads: path, attributes to set, number of heads."""
    path = _common_parent(producers)
    while True:
        owner = modules[path]
        counts = {name: n for name in HEAD_COUNTS if (n := _divisor(owner, name, n_channels))}
        widths = [n_channels // n for name in _HEAD_WIDTHS if (n := _divisor(owner, name, n_channels))]
        if counts or widths:
            n_heads = next(iter(counts.values())) if counts else widths[0]
            return path, [name for name, n in counts.items() if n == n_heads], n_heads
        if not path:
            return None
        path = path.rpartition(".")[0]


def _divisor(owner: nn.Module, name: str, n_channels: int) -> int:
    """Returns an attribute that divides the channels into several equal parts of several channels; 0 for all else."""
    value = getattr(owner, name, None)
    if isinstance(value, int) and 1 < value < n_channels and n_channels % value == 0:
        return value
    return 0


def _common_parent(paths: tuple[str, ...]) -> str:
    parents = [path.split(".")[:-1] for path in paths]
    shared = 0
    while all(len(parts) > shared and parts[shared] == parents[0][shared] for parts in parents):
        shared += 1
    return ".".join(parents[0][:shared])
