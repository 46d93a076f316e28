"""Whole residual blocks: which of them can go, and the module that takes the place of one that went."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ...spaces.layer import Structure
from .couplings import tensors_in
from .cuts import LAYER_TYPES, Coupling, clone_module
from .trials import Probe, why_unusable

#: what may stand between a block's input and its output beside the layers: operations that keep channels apart
_PASSED = (
    "Add", "Relu", "LeakyRelu", "Elu", "Gelu", "Silu", "Mish", "Hardswish", "Hardtanh", "Clone", "Alias", "ToCopy",
    "NativeBatchNorm", "CudnnBatchNorm", "NativeLayerNorm", "FusedRmsNorm", "NativeDropout",
)  # fmt: skip


class PassThrough(nn.Module):
    """Stands where a block was and returns the block's first input, whatever else the block took.

    >>> PassThrough()(torch.ones(2), mask=None)
    tensor([1., 1.])
    """

    def __init__(self, *, in_tuple: bool = False) -> None:
        super().__init__()
        #: whether the block returned a tuple of one
        self.in_tuple = in_tuple

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The first input, as it is."""
        first = next(tensors_in([inputs, named]))
        return (first,) if self.in_tuple else first


@dataclass(frozen=True)
class Block:
    """A residual block that can be replaced by its input."""

    structure: Structure
    #: whether it returns a tuple of one
    in_tuple: bool

    @property
    def path(self) -> str:
        """The torch module path."""
        return self.structure.name.partition(":")[2]


def drop_blocks(module: nn.Module, blocks: Iterable[Block]) -> None:
    """Replaces blocks of a clone by modules that return their first input."""
    for block in blocks:
        try:
            gone = module.get_submodule(block.path)
        except AttributeError:  # it stood in a block that went before
            continue
        for owner in list(module.modules()):
            for name, child in list(owner._modules.items()):  # a child may have several names
                if child is gone:
                    setattr(owner, name, PassThrough(in_tuple=block.in_tuple))


def find_blocks(probe: Probe, couplings: Iterable[Coupling]) -> tuple[list[Block], list[tuple[str, str]]]:
    """Returns the residual blocks that can go, and (structure, reason) of those that cannot.

    Looked at are the members of ``nn.Sequential`` and ``nn.ModuleList``; of blocks in blocks, the innermost.

    Args:
        probe: the model to try it on.
        couplings: what else can be pruned, which has to work beside a dropped block too.
    """
    members = _members(probe.module)
    found: list[Block] = []
    refused: list[tuple[str, str]] = []
    couplings = list(couplings)
    for path, in_tuple in _residual_members(probe, members).items():
        if any(block.path.startswith(f"{path}.") for block in found):
            continue
        paths = [f"{path}.{name}" for name, m in members[path].named_modules() if isinstance(m, LAYER_TYPES)]
        block = Block(Structure(f"block:{path}", "block", tuple(paths), len(paths), 1), in_tuple)
        reason = _why_not(probe, block, couplings)
        if reason is None:
            found.append(block)
        else:
            refused.append((block.structure.name, reason))
    order = list(members)
    return sorted(found, key=lambda block: order.index(block.path)), refused


def _why_not(probe: Probe, block: Block, couplings: list[Coupling]) -> str | None:
    without = clone_module(probe.module)
    drop_blocks(without, [block])
    try:
        outputs = probe.run(without)
    except Exception as error:  # whatever the model's code does with the block raises
        return f"without it the model does not run: {type(error).__name__}: {str(error)[:160]}"
    if [o.shape for o in outputs] != [o.shape for o in probe.outputs]:
        return "without it the model's output would have another shape"
    shorter = replace(probe, module=without, outputs=outputs)
    for coupling in couplings:
        layers = coupling.structure.layers
        inside = [is_inside(layer, block.path) for layer in layers]
        if any(inside) and not all(inside[: coupling.structure.n_producers]):
            reason = why_unusable(shorter, coupling)
            if reason is not None:
                return f"without it {coupling.structure.name} cannot be pruned: {reason}"
    return None


def is_inside(layer: str, block: str) -> bool:
    """Whether a module path lies in a block, or is the block."""
    return layer == block or layer.startswith(f"{block}.")


def _members(module: nn.Module) -> dict[str, nn.Module]:
    """Returns path → module of everything in a Sequential or ModuleList that holds layers."""
    found: dict[str, nn.Module] = {}
    for path, owner in module.named_modules():
        if isinstance(owner, nn.Sequential | nn.ModuleList):
            for name, child in owner.named_children():
                if any(isinstance(m, LAYER_TYPES) for m in child.modules()):
                    found[f"{path}.{name}".lstrip(".")] = child
    return found


def _residual_members(probe: Probe, members: Mapping[str, nn.Module]) -> dict[str, bool]:
    """Returns path → whether it returns a tuple, for members that add to their input; inner ones first."""
    calls: dict[str, list[bool | None]] = {path: [] for path in members}
    hooks = [
        member.register_forward_hook(
            lambda _, args, named, out, path=path: calls[path].append(_adds_to_input(args, named, out)),
            with_kwargs=True,
        )
        for path, member in members.items()
    ]
    try:
        probe.module(**probe.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    inner_first = sorted(calls, key=lambda path: -path.count("."))
    return {path: bool(calls[path][0]) for path in inner_first if calls[path] and None not in calls[path]}


def _adds_to_input(args: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> bool | None:
    """Returns whether a block that adds to its first input returns a tuple; None where it does something else."""
    in_tuple = isinstance(output, tuple)
    y = output[0] if in_tuple and len(output) == 1 else output
    x = next(tensors_in([args, named]), None)
    if x is None or not isinstance(y, torch.Tensor) or x.shape != y.shape or x.grad_fn is None:
        return None
    return in_tuple if any(_paths_by_addition(y.grad_fn, x.grad_fn)) else None


def _paths_by_addition(start: Any, goal: Any) -> Iterator[bool]:
    """Yields, for each way from a block's output to its input past the layers, whether it holds an addition."""
    stack, seen = [(start, False)], set()
    while stack:
        node, is_added = stack.pop()
        if node is None or (node, is_added) in seen:
            continue
        seen.add((node, is_added))
        if node is goal:
            yield is_added
            continue
        operation = node.name().removeprefix("torch::autograd::").partition("Backward")[0]
        if operation in _PASSED:
            stack.extend((parent, is_added or operation == "Add") for parent, _ in node.next_functions)
