import numpy as np
import pytest
from torch import nn
from trimtab.compressors.edges import edges_of_graph, find_edges
from trimtab.compressors.graph import build_base_graph
from trimtab.compressors.prepared import prepare_model
from trimtab.compressors.source import load_source
from trimtab.compressors.testing import random_inputs, small_cnn, small_transformer
from trimtab.spaces.layer import Group
from trimtab.spaces.rules import tie_layers

_MODELS = {"cnn": small_cnn, "transformer": small_transformer}


@pytest.fixture(scope="module")
def found():
    """Model name → (pairs, chains) of group names."""
    result = {}
    for name, make in _MODELS.items():
        prepared = prepare_model(load_source(make()), random_inputs(name, 2))
        groups = tie_layers(prepared.layers)
        edges = find_edges(prepared, groups)
        assert len(edges.labels) == len(groups)
        named = [[frozenset(groups[g].name for g in edge) for edge in part] for part in (edges.pairs, edges.chains)]
        result[name] = named
    return result


def test_convolutions_are_adjacent_along_the_data_and_over_one_addition(found):
    pairs, _ = found["cnn"]
    direct = [("stem.0", "left.0"), ("left.0", "right.0"), ("depthwise.0", "point"), ("point", "fc")]
    over_the_addition = [("stem.0", "depthwise.0"), ("right.0", "depthwise.0")]
    joined_by_it = [("stem.0", "right.0")]
    # what the addition brings together is read by left.0 above it and by depthwise.0 below
    siblings = [("left.0", "depthwise.0")]
    expected = [frozenset(pair) for pair in (*direct, *over_the_addition, *joined_by_it, *siblings)]
    assert set(pairs) == set(expected)
    assert set(pairs[: len(direct)]) == {frozenset(pair) for pair in direct}, "the nearest come first"


def test_chains_run_through_the_data_without_additions(found):
    assert set(found["cnn"][1]) == {
        frozenset({"stem.0", "left.0", "right.0"}),
        frozenset({"depthwise.0", "point", "fc"}),
    }


def test_query_key_and_value_share_what_quantises_their_input(found):
    pairs, _ = found["transformer"]
    assert {frozenset(pair) for pair in (("query", "key"), ("query", "value"), ("key", "value"))} <= set(pairs)


def test_linear_layers_of_a_transformer_are_adjacent_along_the_data(found):
    pairs, _ = found["transformer"]
    expected = [("tokens", "query"), ("value", "out"), ("out", "up"), ("up", "down"), ("twice", "head")]
    assert {frozenset(pair) for pair in expected} <= set(pairs)


def test_layers_far_apart_have_no_edge(found):
    pairs, _ = found["transformer"]
    assert frozenset({"query", "head"}) not in pairs
    assert frozenset({"tokens", "down"}) not in pairs


def test_a_group_has_no_edge_to_itself():
    base = build_base_graph(load_source(small_cnn()), random_inputs("cnn", 1))
    groups = (Group("all", tuple(layer.name for layer in base.layers)),)
    assert edges_of_graph(base.model.graph, groups).pairs == ()


def test_a_residual_stream_ends_after_one_addition():
    class Stream(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))

        def forward(self, x):
            for block in self.blocks:
                x = x + block(x).relu()
            return x

    x = np.ones((1, 8), np.float32)
    import torch

    source = load_source((Stream().eval(), {"x": torch.from_numpy(x)}))
    base = build_base_graph(source, {"x": x})
    edges = edges_of_graph(base.model.graph, tie_layers(base.layers))
    assert all(second - first <= 2 for first, second in edges.pairs)
    assert {(i, i + 1) for i in range(5)} <= set(edges.pairs)
