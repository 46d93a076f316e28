"""Low rank in torch: outputs and names as in the graph, and every way in which modules share or hide weights."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from trimtab.compressors.graph import build_base_graph
from trimtab.compressors.layer_inputs import collect_layer_inputs
from trimtab.compressors.low_rank.factorise import why_not_low_rank
from trimtab.compressors.low_rank.graph_factors import factorise_graph, geometries_of
from trimtab.compressors.low_rank.module_factors import factorise_module
from trimtab.compressors.source import load_source
from trimtab.compressors.testing import random_inputs, small_cnn, small_transformer
from trimtab.compressors.testing_models import TEST_MODELS, build_test_model
from trimtab.core.errors import PolicyError
from trimtab.spaces.treatment import Treatment

MODELS = {"cnn": small_cnn, "transformer": small_transformer}
LAYERS = {
    "cnn": ("stem.0", "left.0", "right.0", "point", "fc"),
    "transformer": ("key", "query", "value", "out", "up", "down", "twice", "head"),
}
HALF = Treatment(rank=0.5)


def _run_graph(base, inputs):
    content = ir.to_proto(base.model).SerializeToString()
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def _run_module(module, inputs):
    with torch.no_grad():
        return module(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()


class _Net(nn.Module):
    """One layer behind a name."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize("by", ["weight", "output"])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_names_are_those_of_the_graph(bases, name, by):
    inputs = random_inputs(name, 4, seed=1)
    statistics = collect_layer_inputs(bases[name].model, LAYERS[name], [random_inputs(name, 8)])
    treatments = dict.fromkeys(LAYERS[name], Treatment(rank=0.6, rank_error=by))
    graph = factorise_graph(bases[name], treatments, statistics)
    module = factorise_module(MODELS[name](), treatments, inputs=statistics)
    np.testing.assert_allclose(_run_module(module, inputs), _run_graph(graph, inputs), atol=1e-5)
    exported = build_base_graph(load_source(module), random_inputs(name, 1))
    assert {layer.name: layer for layer in exported.layers} == {layer.name: layer for layer in graph.layers}


@pytest.mark.parametrize("name", TEST_MODELS)
def test_networks_with_every_kind_of_coupling_go_through(name):
    module = build_test_model(name)
    rng = np.random.default_rng(0)
    inputs = {key: value[:1].numpy() for key, value in module.example_inputs.items()}
    inputs = {k: rng.normal(size=v.shape).astype(v.dtype) if v.dtype == np.float32 else v for k, v in inputs.items()}
    base, treatment = build_base_graph(load_source(module), inputs), Treatment(rank=0.6)
    geometries = geometries_of(base)
    treatments = {name: treatment for name, g in geometries.items() if why_not_low_rank(g, treatment) is None}
    graph, factored = factorise_graph(base, treatments, {}), factorise_module(module, treatments)
    assert len(treatments) > 3
    np.testing.assert_allclose(_run_module(factored, inputs), _run_graph(graph, inputs), atol=1e-5)
    exported = build_base_graph(load_source(factored), inputs)
    assert {layer.name for layer in exported.layers} == {layer.name for layer in graph.layers}


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_a_convolution_that_has_the_rank_gives_the_same_outputs(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    kernel, mode = (draw(2, 3), draw(2, 3)), data.draw(st.sampled_from(["zeros", "reflect", "circular", "replicate"]))
    is_same = kernel == (3, 3) and data.draw(st.booleans())
    padding = "same" if is_same else (draw(0, 2), draw(0, 2))
    stride = (1, 1) if is_same else (draw(1, 2), draw(1, 2))
    form = data.draw(st.sampled_from(["channel", "spatial"]))
    conv = nn.Conv2d(10, 12, kernel, stride, padding, (draw(1, 2), draw(1, 2)), padding_mode=mode)
    rng = np.random.default_rng(draw(0, 99))
    parts = {
        "channel": lambda: np.einsum("rikl,or->oikl", rng.normal(size=(2, 10, *kernel)), rng.normal(size=(12, 2))),
        "spatial": lambda: np.einsum(
            "riy,orx->oiyx", rng.normal(size=(2, 10, kernel[0])), rng.normal(size=(12, 2, kernel[1]))
        ),
    }
    conv.weight.data = torch.from_numpy(parts[form]().astype(np.float32))
    x = torch.randn(2, 10, draw(9, 12), draw(9, 12))
    treatment = Treatment(rank=0.45, decomposition=form)
    module = factorise_module(_Net(conv), {"layer": treatment}, example_inputs=(x,))
    assert len(module.layer) == 2
    want = conv(x).detach().numpy()
    np.testing.assert_allclose(module(x).detach().numpy(), want, atol=2e-5 * np.abs(want).max())


def test_sound_is_taken_apart_by_channels():
    conv = nn.Conv1d(8, 12, 5, stride=2, padding=3, dilation=2)
    factors = torch.randn(2, 8, 5), torch.randn(12, 2)
    conv.weight.data = torch.einsum("rik,or->oik", *factors)
    x = torch.randn(2, 8, 30)
    module = factorise_module(_Net(conv), {"layer": HALF}, example_inputs=x)
    assert [type(part) for part in module.layer] == [nn.Conv1d, nn.Conv1d]
    np.testing.assert_allclose(module(x).detach(), conv(x).detach(), atol=1e-4)


def test_the_module_that_was_given_and_torchs_random_state_are_left_alone():
    module = small_cnn().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    factored = factorise_module(module, dict.fromkeys(LAYERS["cnn"], HALF))
    assert torch.equal(torch.get_rng_state(), state)
    assert before.keys() == module.state_dict().keys()
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())
    assert all(child.training for child in factored.modules())


def test_factors_train():
    module = factorise_module(small_transformer(), {"up": HALF})
    module(**module.example_inputs).sum().backward()
    assert all(part.weight.grad.abs().sum() > 0 for part in module.up)
    assert module.up[0].bias is None
    assert torch.equal(module.up[1].bias, small_transformer().up.bias)


def test_a_frozen_weight_in_double_precision_stays_so():
    layer = nn.Linear(16, 16).double().requires_grad_(False)
    module = factorise_module(_Net(layer), {"layer": HALF}, example_inputs=torch.zeros(1, 16, dtype=torch.float64))
    assert all(part.weight.dtype == torch.float64 and not part.weight.requires_grad for part in module.layer)


def test_without_ranks_the_copy_is_equal():
    module = factorise_module(small_cnn(), {"fc": Treatment(weight_dtype="int8")})
    inputs = random_inputs("cnn", 2)
    np.testing.assert_array_equal(_run_module(module, inputs), _run_module(small_cnn(), inputs))


# -- shared weights -------------------------------------------------------------------------------


class _Twins(nn.Module):
    """One module under two names, and a third with the same weight and a bias of its own."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second = self.first
        self.third = nn.Linear(16, 16)
        self.third.weight = self.first.weight

    def forward(self, x):
        return self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))


def test_modules_that_share_a_weight_share_its_factors():
    twins = _Twins()
    module = factorise_module(twins, {"first": HALF}, example_inputs=torch.zeros(1, 16))
    assert module.first is module.second
    assert module.third[0].weight is module.first[0].weight
    assert module.third[1].weight is module.first[1].weight
    assert torch.equal(module.third[1].bias, twins.third.bias)
    again = factorise_module(twins, {"first": HALF, "third": HALF}, example_inputs=torch.zeros(1, 16))
    x = torch.randn(3, 16)
    assert torch.equal(module(x), again(x))


def test_modules_that_share_a_weight_cannot_differ():
    with pytest.raises(PolicyError, match="layers first and third share their weight; give both the same low_rank"):
        factorise_module(_Twins(), {"first": HALF, "third": Treatment(rank=0.4)})


def test_a_weight_tied_to_an_embedding_is_refused():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.out = nn.Embedding(20, 16), nn.Linear(16, 20)
            self.out.weight = self.words.weight

    with pytest.raises(PolicyError, match="layer out: its weight is also that of words, of the class Embedding"):
        factorise_module(Tied(), {"out": HALF})


# -- refusals -------------------------------------------------------------------------------------


def test_classes_without_low_rank_are_refused():
    attention = _Net(nn.MultiheadAttention(16, 2))
    with pytest.raises(PolicyError, match=r"layer layer\.out_proj: .* class NonDynamicallyQuantizableLinear"):
        factorise_module(attention, {"layer.out_proj": HALF})
    normed = _Net(nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)))
    with pytest.raises(PolicyError, match=r"layer layer: .* class ParametrizedLinear"):
        factorise_module(normed, {"layer": HALF})


def test_a_module_that_is_not_there_is_refused():
    with pytest.raises(PolicyError, match="the torch model has no module tokens#2"):
        factorise_module(small_transformer(), {"tokens#2": HALF})


def test_groups_are_refused():
    with pytest.raises(PolicyError, match=r"layer depthwise\.0: low rank exists for convolutions of one group"):
        factorise_module(small_cnn(), {"depthwise.0": HALF})


def test_a_model_that_reads_the_weight_by_itself_is_refused():
    class Reader(_Net):
        def forward(self, x):
            return nn.functional.linear(x, self.layer.weight)

    with pytest.raises(PolicyError, match="the model does not run with layers of low rank, maybe because it reads"):
        factorise_module(Reader(nn.Linear(16, 16)), {"layer": HALF}, example_inputs=torch.zeros(1, 16))


# -- batch norms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_behind_a_convolution_counts(affine):
    net = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16, affine=affine), nn.ReLU()).eval()
    nn.init.uniform_(net[1].running_var, 0.01, 4.0)
    if affine:
        nn.init.uniform_(net[1].weight, -2.0, 2.0)
        with torch.no_grad():
            net[1].weight[3] = 0.0  # a channel that a training has switched off
    inputs = {"input": np.random.default_rng(0).normal(size=(2, 8, 9, 9)).astype(np.float32)}
    base = build_base_graph(load_source((net, {"input": torch.zeros(1, 8, 9, 9)})), {"input": inputs["input"][:1]})
    graph = factorise_graph(base, {base.layers[0].name: HALF}, {})
    module = factorise_module(net, {"0": HALF}, example_inputs={"input": torch.zeros(1, 8, 9, 9)})
    np.testing.assert_allclose(_run_module(module, inputs), _run_graph(graph, inputs), atol=1e-4)
