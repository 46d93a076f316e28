"""What is tabulated: a model, its data, a runtime and a space small enough to measure every policy of it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from ...core.errors import SpecError
from ...core.names import describe_unknown
from ...core.seeds import derive_rng
from ...spaces.layer import Group
from ...spaces.policy import Policy
from ...spaces.space import GraphOptions, Space
from ...spaces.treatment import QUANTIZE_OPTIONS, Treatment

_NONE, _INT8 = Treatment(), QUANTIZE_OPTIONS["int8"]
_TERNARY = Treatment(binary="ternary", weight_dtype="int8", activation_dtype="int8")
_PLAIN = (_NONE, _INT8)


@dataclass(frozen=True)
class Choice:
    """One group and what it may choose from."""

    name: str
    #: what is treated alike; of a structure the layers that it names
    layers: tuple[str, ...]
    options: tuple[Treatment, ...]
    #: ``layers``, or one of `STRUCTURE_KINDS`
    kind: str = "layers"


@dataclass(frozen=True)
class TableRecipe:
    """How a table is made.

    >>> TABLE_RECIPES["resnet8-onnxruntime"].space.size
    4608
    """

    name: str
    #: ``module:callable`` of each, as in a spec
    model: str
    data: str
    runtime: str
    choices: tuple[Choice, ...]
    graph: GraphOptions = field(default_factory=GraphOptions)
    #: samples that are run at once where accuracy is measured; latency is always that of one
    accuracy_batch: int = 1

    @property
    def space(self) -> Space:
        """The space of which every policy is measured."""
        groups = tuple(Group(choice.name, choice.layers, choice.kind) for choice in self.choices)
        return Space(groups, tuple(choice.options for choice in self.choices), self.graph)

    @property
    def has_structures(self) -> bool:
        """Whether channels, heads or blocks are pruned."""
        return any(choice.kind != "layers" for choice in self.choices)

    def vectors(self) -> np.ndarray:
        """Returns (n_policies, n_dimensions) uint8, each policy once, in an order drawn by the recipe's name."""
        every = np.array(list(list_vectors(self.space)), np.uint8)
        shuffled: np.ndarray = derive_rng("tabulated", self.name).permutation(every)
        return shuffled


def list_vectors(space: Space) -> Iterator[tuple[int, ...]]:
    """Yields the vector of every policy of a space once: that which `Space.encode` gives."""
    seen: set[Policy] = set()
    for vector in product(*(range(size) for size in space.dimensions.values())):
        policy = space.decode(vector)
        if policy not in seen:
            seen.add(policy)
            yield tuple(int(entry) for entry in space.encode(policy))


def find_recipe(name: str) -> TableRecipe:
    """Returns the recipe of a table.

    Raises:
        SpecError: there is none of this name.
    """
    if name not in TABLE_RECIPES:
        raise SpecError(describe_unknown("table", name, TABLE_RECIPES))
    return TABLE_RECIPES[name]


def _each(options: tuple[Treatment, ...], *layers: str) -> tuple[Choice, ...]:
    return tuple(Choice(layer, (layer,), options) for layer in layers)


def _channels(layer: str, *layers: str, keep: tuple[float, ...]) -> Choice:
    """Channels that ``layer`` makes, pruned by magnitude."""
    options = (_NONE, *(Treatment(keep_channels=share) for share in keep))
    return Choice(f"channels:{layer}", (layer, *layers), options, "channels")


def _inner(block: int, *, keep: tuple[float, ...]) -> Choice:
    """The inner width of a transformer's block, pruned by magnitude."""
    return _channels(f"blocks.{block}.inner", keep=keep)


def _attention(*blocks: int) -> Choice:
    layers = tuple(f"blocks.{b}.attention.{part}" for b in blocks for part in ("query", "key", "value", "output"))
    return Choice("attention" + "".join(map(str, blocks)), layers, _PLAIN)


def _linears(option: Treatment) -> tuple[Choice, ...]:
    """The two linear layers of each block, alike."""
    return tuple(
        Choice(f"linears{b}", (f"blocks.{b}.inner", f"blocks.{b}.outer"), (_NONE, option)) for b in range(_N_BLOCKS)
    )


_N_BLOCKS = 4
_SHORTCUTS = ("layer2.0.downsample.0", "layer3.0.downsample.0")
_DIGITS = "trimtab.experiments.datasets:digits"

#: name → recipe
TABLE_RECIPES: dict[str, TableRecipe] = {
    recipe.name: recipe
    for recipe in (
        TableRecipe(
            name="resnet8-onnxruntime",
            model="trimtab.experiments.zoo:resnet8",
            data=_DIGITS,
            runtime="onnxruntime",
            choices=(
                *_each(_PLAIN, "conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2"),
                *_each(_PLAIN, "layer3.0.conv1", "layer3.0.conv2"),
                Choice("shortcuts", _SHORTCUTS, _PLAIN),
                _channels("layer2.0.conv2", "layer2.0.downsample.0", keep=(0.75,)),
                _channels("layer3.0.conv1", keep=(0.75, 0.625)),
                _channels("layer3.0.conv2", "layer3.0.downsample.0", keep=(0.75, 0.625)),
            ),
            graph=GraphOptions(quantized_ops=(("add", "pool"),)),
        ),
        TableRecipe(
            name="resnet8-openvino",
            model="trimtab.experiments.zoo:resnet8",
            data=_DIGITS,
            runtime="openvino",
            choices=(
                *_each(_PLAIN, "conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1"),
                *_each((_NONE, _INT8, _TERNARY), "layer2.0.conv2"),
                *_each(_PLAIN, "layer3.0.conv1"),
                *_each((_NONE, _INT8, _TERNARY), "layer3.0.conv2"),
                Choice("shortcuts", _SHORTCUTS, _PLAIN),
                _channels("layer3.0.conv1", keep=(0.75,)),
                _channels("layer3.0.conv2", "layer3.0.downsample.0", keep=(0.75,)),
            ),
            graph=GraphOptions(quantized_ops=(("add",),), precision=("float32", "bfloat16")),
        ),
        TableRecipe(
            name="vit-onnxruntime",
            model="trimtab.experiments.zoo:vit_digits",
            data=_DIGITS,
            runtime="onnxruntime",
            choices=(
                _attention(0, 1),
                _attention(2, 3),
                *_linears(QUANTIZE_OPTIONS["int8_dynamic"]),
                *(_inner(block, keep=(0.5, 0.125)) for block in range(_N_BLOCKS)),
            ),
            accuracy_batch=50,
        ),
        TableRecipe(
            name="vit-openvino",
            model="trimtab.experiments.zoo:vit_digits",
            data=_DIGITS,
            runtime="openvino",
            choices=(
                _attention(0, 1),
                _attention(2, 3),
                *_linears(_INT8),
                _inner(0, keep=(0.75, 0.5)),
                _inner(1, keep=(0.5, 0.125)),
                _inner(2, keep=(0.125,)),
                _inner(3, keep=(0.125,)),
            ),
            graph=GraphOptions(precision=("float32", "bfloat16")),
            accuracy_batch=50,
        ),
    )
}
