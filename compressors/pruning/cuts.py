"""Taking channels out of a module: which of them go together, and the tensors and sizes that follow."""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import nn

from ...spaces.layer import Structure

_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
_NORMS_PER_CHANNEL = (nn.modules.batchnorm._NormBase,)  # batch and instance norms
#: norms that see all channels at once: taking one out is not the same as making it zero
NORMS_OVER_CHANNELS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
#: modules whose channels can be taken out
CUTTABLE = (*_CONVOLUTIONS, *_NORMS_PER_CHANNEL, *NORMS_OVER_CHANNELS, nn.Linear, nn.Embedding, nn.PReLU)
#: modules that are layers of a policy
LAYER_TYPES = (*_CONVOLUTIONS, nn.Linear, nn.Embedding)


#: what stands for one side of a module, or for a bare parameter: its identity, and the side
_Key = tuple[int, str]
#: where a tensor is held: module path, name
_Slot = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Use:
    """One side of a module, or a bare parameter, with channels that belong to the units of a structure."""

    #: of the module; of the parameter where it belongs to no module that is known
    path: str
    #: ``out`` or ``in``; a norm and a depthwise convolution have the side ``out`` only
    side: str
    #: (n_channels,) int64: the unit to which each channel belongs; -1: to none
    unit_of: np.ndarray


@dataclass(frozen=True, eq=False)
class Coupling:
    """A structure with all places where its units stand; the first use is the producer that names it."""

    structure: Structure
    uses: tuple[Use, ...]
    #: (module path, attribute, amount for each unit) of the numbers that its code reads: heads, and their total width
    counts: tuple[tuple[str, str, int], ...] = ()

    @property
    def channels_per_unit(self) -> int:
        """How many channels of the first producer go with one unit: several for heads and grouped convolutions."""
        return int((self.uses[0].unit_of >= 0).sum()) // self.structure.n_units


def clone_module(module: nn.Module) -> nn.Module:
    """Returns a copy that shares all tensors with the original: cutting it replaces them and changes none."""
    shared = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    copy: nn.Module = deepcopy(module, shared)
    return copy


def keep_units(module: nn.Module, kept: Iterable[tuple[Coupling, np.ndarray]]) -> None:
    """Takes all other units out of a clone; places that the module no longer has are skipped.

    Args:
        module: from `clone_module`.
        kept: couplings, each with (n_kept,) int64 units that stay. Units keep their order.
    """
    targets = _Targets(module)
    masks: dict[_Key, np.ndarray] = {}
    for coupling, units in kept:
        for use in coupling.uses:
            key = targets.key_of(use)
            if key is not None:
                mask = masks.setdefault(key, np.ones(len(use.unit_of), bool))
                mask &= (use.unit_of < 0) | np.isin(use.unit_of, units)
        for path, attribute, amount in coupling.counts:
            if path in targets.modules:
                setattr(targets.modules[path], attribute, len(units) * amount)
    targets.select({key: np.flatnonzero(mask) for key, mask in masks.items()})


def permute_units(module: nn.Module, coupling: Coupling, order: np.ndarray) -> None:
    """Puts the units of a clone in another order, which leaves what it computes as it was.

    Args:
        module: from `clone_module`.
        coupling: its units must have equally many channels in each place.
        order: (n_units,) int64: the unit that comes to stand in each place.
    """
    targets = _Targets(module)
    selected: dict[_Key, np.ndarray] = {}
    for use in coupling.uses:
        key = targets.key_of(use)
        if key is None:
            continue
        places = np.flatnonzero(use.unit_of >= 0)
        by_unit = places[np.argsort(use.unit_of[places], kind="stable")].reshape(len(order), -1)
        index = np.arange(len(use.unit_of))
        index[by_unit] = by_unit[order]
        selected[key] = index
    targets.select(selected)


def zero_units(module: nn.Module, coupling: Coupling, gone: np.ndarray) -> None:
    """Makes the parameters of some units zero in a clone, wherever they stand.

    Args:
        module: from `clone_module`.
        coupling: the structure.
        gone: (n_gone,) int64 units.
    """
    targets = _Targets(module)
    for use in coupling.uses:
        key = targets.key_of(use)
        if key is not None:
            targets.clear(key, np.flatnonzero(np.isin(use.unit_of, gone)))


def find_tied_conflict(module: nn.Module, coupling: Coupling) -> str | None:
    """Returns the path of a module whose shared parameter would change without the module's part in the coupling."""
    targets = _Targets(module)
    wanted: dict[_Slot, dict[int, list[int]]] = {}
    for use in coupling.uses:
        key = targets.key_of(use)
        for slot, axis, index in targets.slots_of(key, use.unit_of) if key is not None else ():
            wanted.setdefault(slot, {})[axis] = index.tolist()
    owners: dict[int, list[_Slot]] = {}
    for path, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(id(parameter), []).append((path, name))
    for slots in owners.values():
        parts = [wanted.get(slot) for slot in slots]
        if any(part != parts[0] for part in parts):
            return next(path for (path, _), part in zip(slots, parts, strict=True) if part is None or part != parts[0])
    return None


class _Targets:
    """The places of a module by path, and the tensors behind the channels of each."""

    def __init__(self, module: nn.Module) -> None:
        self.modules: dict[str, nn.Module] = dict(module.named_modules())
        self._paths = {id(owner): path for path, owner in self.modules.items()}
        self._bare: dict[int, tuple[str, str]] = {}

    def key_of(self, use: Use) -> _Key | None:
        """Returns what stands for the place of a use; None where the module does not have it."""
        found = self.modules.get(use.path)
        if found is not None:
            return (id(found), use.side) if isinstance(found, CUTTABLE) else None
        path, _, name = use.path.rpartition(".")
        parameter = getattr(self.modules.get(path), name, None)
        if not isinstance(parameter, nn.Parameter):
            return None
        self._bare[id(parameter)] = (path, name)
        return id(parameter), use.side

    def slots_of(self, key: _Key, channels: np.ndarray) -> Iterator[tuple[_Slot, int, np.ndarray]]:
        """Yields (slot, axis, what ``channels`` says of that axis).

        Args:
            key: from `key_of`.
            channels: (n,) in the order of the channels, equally much of each group of a grouped convolution: where
                the weight holds the channels of one group only, those of the first stand for all.
        """
        if key[0] in self._bare:
            path, name = self._bare[key[0]]
            yield (path, name), channel_axis(getattr(self.modules[path], name)), channels
            return
        path = self._paths[key[0]]
        for name, axis, n_groups in _tensors_of(self.modules[path], key[1]):
            yield (path, name), axis, channels[: len(channels) // n_groups]

    def select(self, selected: Mapping[_Key, np.ndarray]) -> None:
        """Keeps the given channels of each place, in the given order, and sets the sizes of the modules."""
        axes: dict[int, dict[int, np.ndarray]] = {}
        tensors: dict[int, torch.Tensor] = {}
        for key, index in selected.items():
            for slot, axis, part in self.slots_of(key, index):
                tensor = self._get(slot)
                axes.setdefault(id(tensor), {})[axis] = part
                tensors[id(tensor)] = tensor
        for (identity, side), index in selected.items():
            if identity not in self._bare:
                _resize(self.modules[self._paths[identity]], side, len(index))
        self._replace({key: _select(tensor, axes[key]) for key, tensor in tensors.items()})

    def clear(self, key: _Key, index: np.ndarray) -> None:
        """Makes the parameters of the given channels zero."""
        for slot, axis, part in self.slots_of(key, index):
            tensor = self._get(slot)
            if isinstance(tensor, nn.Parameter):
                cleared = tensor.detach().index_fill(axis, torch.from_numpy(part).to(tensor.device), 0.0)
                self._replace({id(tensor): _like(tensor, cleared)})

    def _get(self, slot: _Slot) -> torch.Tensor:
        return getattr(self.modules[slot[0]], slot[1])

    def _replace(self, replaced: Mapping[int, torch.Tensor]) -> None:
        """Puts new tensors in all places of the old ones, so that what was shared stays shared."""
        for owner in self.modules.values():
            held = chain(
                owner.named_parameters(recurse=False, remove_duplicate=False),
                owner.named_buffers(recurse=False, remove_duplicate=False),
            )
            for name, tensor in list(held):
                if id(tensor) in replaced:
                    setattr(owner, name, replaced[id(tensor)])


def channel_axis(parameter: torch.Tensor) -> int:
    """Returns the axis of a bare parameter's channels: the last one that has more than one entry.

    >>> channel_axis(torch.zeros(1, 8, 1, 1))
    1
    """
    return max((axis for axis, size in enumerate(parameter.shape) if size > 1), default=0)


def n_channel_groups(module: object) -> int:
    """Returns how many equal groups of channels a module treats apart, each of which must lose equally many."""
    if isinstance(module, nn.GroupNorm):
        return int(module.num_groups)
    if isinstance(module, _CONVOLUTIONS) and not is_depthwise(module):
        return int(module.groups)
    return 1


def is_depthwise(module: object) -> bool:
    """Whether a module is a convolution that keeps all channels apart, so that its inputs go with its outputs."""
    if not isinstance(module, nn.Module) or not isinstance(module, _CONVOLUTIONS):
        return False
    return bool(1 < module.groups == module.in_channels == module.out_channels)


def _tensors_of(module: nn.Module, side: str) -> Iterator[tuple[str, int, int]]:
    """Yields (tensor name, axis, groups that share that axis) for one side of a module."""
    if isinstance(module, _CONVOLUTIONS):
        is_first = (side == "out") != module.transposed or is_depthwise(module)  # a transposed one is (in, out / group)
        found = [("weight", 0, 1)] if is_first else [("weight", 1, module.groups)]
        found += [("bias", 0, 1)] if side == "out" else []
    elif isinstance(module, nn.Linear):
        found = [("weight", 0, 1), ("bias", 0, 1)] if side == "out" else [("weight", 1, 1)]
    elif isinstance(module, nn.Embedding):
        found = [("weight", 1, 1)]
    else:
        found = [(name, 0, 1) for name in ("weight", "bias", "running_mean", "running_var")]
    yield from (slot for slot in found if getattr(module, slot[0], None) is not None)


def _resize(module: nn.Module, side: str, n: int) -> None:
    if is_depthwise(module):
        module.in_channels = module.out_channels = module.groups = n
        return
    for kinds, out, into in _SIZES:
        if isinstance(module, kinds):
            name = out if side == "out" else into
            setattr(module, name, (n,) if name == "normalized_shape" else n)
            return


#: types → the attribute with the size of each side
_SIZES: tuple[tuple[tuple[type, ...], str, str], ...] = (
    (_CONVOLUTIONS, "out_channels", "in_channels"),
    ((nn.Linear,), "out_features", "in_features"),
    ((nn.Embedding,), "embedding_dim", "embedding_dim"),
    (_NORMS_PER_CHANNEL, "num_features", "num_features"),
    ((nn.LayerNorm, nn.RMSNorm), "normalized_shape", "normalized_shape"),
    ((nn.GroupNorm,), "num_channels", "num_channels"),
    ((nn.PReLU,), "num_parameters", "num_parameters"),
)


def _select(tensor: torch.Tensor, axes: Mapping[int, np.ndarray]) -> torch.Tensor:
    smaller = tensor.detach()
    for axis, index in axes.items():
        if index.max(initial=0) >= tensor.shape[axis]:  # on a GPU, torch would not raise but break off
            raise ValueError(f"channel {index.max()} is asked of {tensor.shape[axis]}")
        smaller = smaller.index_select(axis, torch.from_numpy(index).to(tensor.device))
    return _like(tensor, smaller)


def _like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
