import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from trimtab.compressors.fusion import build_variants
from trimtab.compressors.graph import build_base_graph
from trimtab.compressors.quantization.activations import watched_values
from trimtab.compressors.quantization.calibration import collect_histograms
from trimtab.compressors.source import load_source
from trimtab.compressors.testing import random_inputs
from trimtab.experiments.architectures.convnext import ConvNeXt
from trimtab.hw_profiles.target import OPTION_KINDS
from trimtab.spaces.policy import GraphTreatment
from trimtab.spaces.treatment import QUANTIZE_OPTIONS

_LEVELS = ("none", "gelu", "attention", "full")


def _ops(content):
    return [node.op_type for node in onnx.load_model_from_string(content).graph.node]


@pytest.fixture(scope="module")
def variants(bases):
    return {name: build_variants(base, _LEVELS, random_inputs(name, 1)) for name, base in bases.items()}


def test_gelu_is_one_operator_afterwards(variants):
    models, _ = variants["transformer"]
    before, after = (_ops(ir.to_proto(models[level]).SerializeToString()) for level in ("none", "gelu"))
    assert ("Erf" in before, "Gelu" in before) == (True, False)
    assert ("Erf" in after, "Gelu" in after) == (False, True)


@pytest.mark.parametrize("level", ["gelu", "full"])
def test_a_fused_graph_computes_the_same(level, variants):
    inputs = random_inputs("transformer", 16, seed=8)
    want, got = (
        onnxruntime.InferenceSession(ir.to_proto(variants["transformer"][0][key]).SerializeToString()).run(None, inputs)
        for key in ("none", level)
    )
    np.testing.assert_allclose(got[0], want[0], rtol=1e-3, atol=1e-4)


def test_a_level_that_gives_an_earlier_graph_is_dropped_and_says_which(variants):
    models, dropped = variants["transformer"]
    assert set(models) == {"none", "gelu", "full"}
    # the attention of this model scales by a Div that the optimiser's patterns do not know
    assert dropped == {"attention": "it gives the same graph as 'gelu'"}


def test_gelu_is_fused_beside_layer_norms_over_channels_first():
    # without attention the optimiser has no number of heads, and it mistakes the norm for one over the last axis
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = ConvNeXt((1, 1, 1, 1), (8, 16, 32, 64), n_classes=10)
    sample = {"x": image[:1].numpy()}
    models, _ = build_variants(build_base_graph(load_source((model, {"x": image})), sample), _LEVELS, sample)
    before, after = (_ops(ir.to_proto(models[level]).SerializeToString()) for level in ("none", "gelu"))
    assert (before.count("Erf"), after.count("Gelu"), after.count("ReduceMean")) == (4, 4, before.count("ReduceMean"))


def test_a_convolutional_model_has_no_fusion(variants):
    models, dropped = variants["cnn"]
    assert set(models) == {"none"}
    assert dropped == dict.fromkeys(("gelu", "attention", "full"), "it gives the same graph as 'none'")


def test_only_the_levels_that_are_asked_for_are_tried(bases):
    models, dropped = build_variants(bases["transformer"], ("none",), random_inputs("transformer", 1))
    assert (set(models), dropped) == ({"none"}, {})


def test_the_base_graph_is_untouched_by_fusing(bases):
    before = ir.to_proto(bases["transformer"].model).SerializeToString()
    build_variants(bases["transformer"], _LEVELS, random_inputs("transformer", 1))
    assert ir.to_proto(bases["transformer"].model).SerializeToString() == before


@pytest.mark.parametrize("level", ["gelu", "full"])
@pytest.mark.parametrize("option", ["int8", "int8_dynamic", "int8_weight", "int4_weight", "float16"])
def test_fused_graphs_are_quantised_like_the_base(option, level, bases, pipeline):
    treatments = {
        layer.name: QUANTIZE_OPTIONS[option]
        for layer in bases["transformer"].layers
        if layer.kind in OPTION_KINDS[option]
    }
    inputs = random_inputs("transformer", 8, seed=8)
    builder = pipeline("transformer")
    contents = [builder.build(treatments, GraphTreatment(fusion=fusion)).model for fusion in ("none", level)]
    want, got = (onnxruntime.InferenceSession(content).run(None, inputs)[0] for content in contents)
    assert _ops(contents[0]) != _ops(contents[1])
    # a rounding error before a quantised value may move it to the next code
    assert np.abs(got - want).max() <= 0.02 * np.abs(want).max()


@pytest.mark.parametrize("level", ["none", "gelu", "full"])
def test_the_statistics_of_a_level_are_those_of_its_own_graph(level, variants, prepared):
    model = variants["transformer"][0][level]
    calibration = random_inputs("transformer", 8)
    samples = [{name: array[n : n + 1] for name, array in calibration.items()} for n in range(8)]
    fresh = collect_histograms(model, watched_values(model.graph), samples)
    kept = prepared["transformer"].statistics[level]
    assert set(kept) == set(fresh)
    for name, histogram in fresh.items():
        np.testing.assert_allclose(
            (kept[name].minimum, kept[name].maximum), (histogram.minimum, histogram.maximum), rtol=1e-4, atol=1e-5
        )


def test_large_constants_are_kept_once_for_all_levels(prepared):
    stored = [onnx.load_model_from_string(content) for content in prepared["transformer"].variants.values()]
    large = {tensor.name for model in stored for tensor in model.graph.initializer if np.prod(tensor.dims) > 1024}
    assert large <= set(prepared["transformer"].constants)
    for model in stored:
        assert all(not tensor.raw_data for tensor in model.graph.initializer if np.prod(tensor.dims) > 1024)


def test_a_level_that_changes_the_outputs_is_dropped(bases, monkeypatch):
    """A stand-in for a wrong pattern of the optimiser: its result with one constant changed."""
    from onnxruntime.transformers import optimizer

    right = optimizer.optimize_model

    def wrong(*args, **kwargs):
        fused = right(*args, **kwargs)
        bias = next(tensor for tensor in fused.model.graph.initializer if tensor.name == "head.bias")
        bias.CopyFrom(numpy_helper.from_array(np.full(3, np.nan, np.float32), "head.bias"))
        return fused

    monkeypatch.setattr(optimizer, "optimize_model", wrong)
    models, dropped = build_variants(bases["transformer"], ("gelu",), random_inputs("transformer", 1))
    assert set(models) == {"none"}
    assert dropped == {"gelu": "the fused graph gives other outputs"}


def test_a_level_on_which_the_optimiser_fails_is_dropped(bases, monkeypatch):
    from onnxruntime.transformers import optimizer

    def fail(*args, **kwargs):
        raise KeyError("pattern")

    monkeypatch.setattr(optimizer, "optimize_model", fail)
    _, dropped = build_variants(bases["transformer"], ("gelu",), random_inputs("transformer", 1))
    assert dropped == {"gelu": "the optimiser failed on this graph"}


def test_the_fused_graph_declares_the_domain_of_its_operators(variants):
    domains = {entry.domain for entry in ir.to_proto(variants["transformer"][0]["gelu"]).opset_import}
    assert "com.microsoft" in domains
    assert helper.make_opsetid("com.microsoft", 1).domain in domains
