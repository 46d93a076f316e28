"""Laws of matching: a model finds itself whatever its layers are called, and pairs keep kind and shape."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from trimtab.experiments.reapply.alignment import align
from trimtab.experiments.reapply.matching import match_layers
from trimtab.spaces.layer import LAYER_KINDS, Layer

SHAPES = ((8, 8), (8, 16), (16, 8))
NAMES = st.text("abcdefgh", min_size=1, max_size=6)


@st.composite
def models(draw):
    """The layers of a model, under names that no other model of this draw has."""
    n = draw(st.integers(1, 12))
    kinds = draw(st.lists(st.sampled_from(LAYER_KINDS), min_size=n, max_size=n))
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=n, max_size=n))
    return [Layer(f"old{i}", kind, shape, (), 0, 0) for i, (kind, shape) in enumerate(zip(kinds, shapes, strict=True))]


@given(models(), st.data())
def test_a_random_renaming_is_found_again(model, data):
    names = data.draw(st.lists(NAMES, min_size=len(model), max_size=len(model), unique=True))
    renamed = [Layer(name, layer.kind, layer.weight_shape, (), 0, 0) for name, layer in zip(names, model, strict=True)]
    found = match_layers(model, renamed, match="renamed")
    assert dict(found.pairs) == {layer.name: name for layer, name in zip(model, names, strict=True)}


@given(models(), models())
def test_pairs_are_of_one_kind_and_no_partner_is_taken_twice(model, other):
    have = [Layer(f"new{layer.name}", layer.kind, layer.weight_shape, (), 0, 0) for layer in other]
    found = match_layers(model, have, match="changed")
    kinds = {layer.name: layer.kind for layer in have}
    assert all(kinds[found.pairs[layer.name]] == layer.kind for layer in model if layer.name in found.pairs)
    assert len(set(found.pairs.values())) == len(found.pairs)
    settled = [*found.pairs, *found.missing, *found.ambiguous]
    assert sorted(settled) == sorted(layer.name for layer in model)
    assert sorted([*found.pairs.values(), *found.added]) == sorted(layer.name for layer in have)


def best_sum(table):
    """The largest sum of pairs in their order, by trying all ways."""
    n, m = table.shape
    if not n or not m:
        return 0.0
    without = max(best_sum(table[1:]), best_sum(table[:, 1:]))
    return max(without, table[0, 0] + best_sum(table[1:, 1:]))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
@example(2, 2, 4204)  # [[0.9, 3.4], [3.3, 2.0]]: the two largest cross each other
def test_sure_pairs_belong_to_the_best_of_all_ways(n, m, seed):
    table = np.random.default_rng(seed).uniform(0.5, 5.0, (n, m)).round(1)
    found = align(table.tolist(), may_skip=True)
    best = best_sum(table)
    for i, j in found.pairs.items():
        through = best_sum(table[:i, :j]) + table[i, j] + best_sum(table[i + 1 :, j + 1 :])
        assert abs(through - best) < 0.1 + 1e-9
    if not found.ambiguous:
        assert abs(sum(table[i, j] for i, j in found.pairs.items()) - best) < 0.1 * (n + 1)
