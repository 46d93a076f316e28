"""Influence by gradients: the closed form of linear networks, what artifacts really do, and what cannot be had."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from scipy.stats import spearmanr
from torch import nn
from trimtab.compressors.graph import run_with_outputs
from trimtab.compressors.onnx_stage import OnnxStage
from trimtab.compressors.pipeline import Pipeline
from trimtab.compressors.prepared import one_by_one, prepare_model
from trimtab.compressors.sensitivity.gradient import GradientMeter
from trimtab.compressors.sensitivity.output_error import draw_directions, relative_error
from trimtab.compressors.sensitivity.segment import find_segments
from trimtab.compressors.sensitivity.segment_writer import SegmentWriter
from trimtab.compressors.source import load_source
from trimtab.compressors.testing import random_inputs, run_artifact
from trimtab.core.errors import MeasurementError, ModelError
from trimtab.evaluators.torch_gradients import OutputGradients
from trimtab.experiments import datasets
from trimtab.experiments.resnet import ResNet
from trimtab.experiments.training import Schedule, train_classifier
from trimtab.hw_profiles.target import OPTION_KINDS, TECHNIQUE_KINDS
from trimtab.spaces.options import combine, parse_option
from trimtab.spaces.policy import GraphTreatment
from trimtab.spaces.treatment import QUANTIZE_OPTIONS

N_SAMPLES = 6
#: errors below this are small; the gradient then is right within this factor (1.05 was seen on ResNet-8)
SMALL, FACTOR = 1e-3, 2.0
OPTIONS = (
    "quantize int8", "quantize int8_dynamic", "quantize int4_weight", "cluster 5 group sensitivity",
    "binarize ternary activations", "sparsify 2:4 wanda", "low_rank 0.5", "low_rank 0.6 + quantize int8",
)  # fmt: skip
TRAINED_OPTIONS = (
    "quantize int8", "quantize int4_weight", "low_rank 0.5", "cluster 4", "binarize ternary",
)  # fmt: skip
LAYERS = {
    "cnn": ("left.0", "right.0", "depthwise.0", "point", "fc"),
    "transformer": ("tokens", "value", "down", "twice", "head"),
}


def parse(text):
    return combine([parse_option(*part.split(" ", 1)) for part in text.split(" + ")])


def suits(text, layer):
    words = [part.split(" ", 1) for part in text.split(" + ")]
    kinds = [OPTION_KINDS[o] if t == "quantize" else TECHNIQUE_KINDS[t] for t, o in words]
    is_signs = text.endswith("activations") and layer.kind == "embedding"
    return all(layer.kind in known for known in kinds) and not is_signs


def make_meter(prepared, scheme, samples, **how):
    return GradientMeter(SegmentWriter(OnnxStage(prepared, scheme), GraphTreatment()), OutputGradients, samples, **how)


class TwoLayers(nn.Module):
    """z = (x A + a) B, with nothing between that bends."""

    def __init__(self, n_outputs, *, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(32, 64), nn.Linear(64, n_outputs, bias=False)
        self.example_inputs = {"x": torch.zeros(2, 32)}

    def forward(self, x):
        return self.second(self.first(x))


def prepare_linear(n_outputs):
    model = TwoLayers(n_outputs)
    x = np.random.default_rng(0).normal(size=(40, 32)).astype(np.float32)
    weights = [model.first.weight, model.first.bias, model.second.weight]
    return prepare_model(load_source(model), {"x": x}), x, [w.detach().numpy().astype(np.float64).T for w in weights]


def round_channels(weight):
    """int8, a scale for each output: (in, out)."""
    scale = np.abs(weight).max(0) / 127
    return np.round(weight / scale) * scale


def truncate(weight, share):
    left, values, right = np.linalg.svd(weight, full_matrices=False)
    rank = int(share * weight.size / sum(weight.shape))
    return (left[:, :rank] * values[:rank]) @ right[:rank]


@pytest.fixture(scope="module")
def scheme(schemes):
    return schemes["onnxruntime"]


@pytest.mark.parametrize(
    ("text", "compress"),
    [("quantize int8_weight", round_channels), ("low_rank 0.5", lambda weight: truncate(weight, 0.5))],
)
def test_in_a_linear_network_scores_are_the_closed_form(text, compress, scheme):
    prepared, x, (a, bias, b) = prepare_linear(5)
    energy = np.square((x @ a + bias) @ b).sum()
    expected = [
        np.square(x @ (compress(a) - a) @ b).sum() / energy,
        np.square((x @ a + bias) @ (compress(b) - b)).sum() / energy,
    ]
    meter = make_meter(prepared, scheme, {"x": x})
    found = list(meter.measure([(("first",), [parse(text)]), (("second",), [parse(text)])]))
    np.testing.assert_allclose(np.ravel(found), expected, rtol=1e-3)


def test_layers_that_are_treated_alike_meet_before_they_are_squared(scheme):
    prepared, x, (a, bias, b) = prepare_linear(5)
    small_a, small_b = round_channels(a) - a, round_channels(b) - b
    change = x @ small_a @ b + (x @ a + bias) @ small_b
    expected = np.square(change).sum() / np.square((x @ a + bias) @ b).sum()
    ((found,),) = make_meter(prepared, scheme, {"x": x}).measure(
        [(("first", "second"), [parse("quantize int8_weight")])]
    )
    assert found == pytest.approx(expected, rel=1e-3)


def test_random_directions_are_right_on_average(scheme):
    prepared, x, (a, bias, b) = prepare_linear(200)
    expected = np.square(x @ (truncate(a, 0.5) - a) @ b).sum() / np.square((x @ a + bias) @ b).sum()
    ((found,),) = make_meter(prepared, scheme, {"x": x}).measure([(("first",), [parse("low_rank 0.5")])])
    # 160 squares of a normal: a standard error of sqrt(2 / 160) = 0.11
    assert found == pytest.approx(expected, rel=0.4)


def test_directions_see_every_error_whole():
    rng = np.random.default_rng(0)
    z, error = (
        [rng.normal(size=(1, 4)), rng.normal(size=(1, 2, 3))],
        [rng.normal(size=(1, 4)), rng.normal(size=(1, 2, 3))],
    )
    drawn = draw_directions(z, [2.0, 5.0], rng)
    seen = sum(sum(float((u * e).sum()) for u, e in zip(vector, error, strict=True)) ** 2 for vector in drawn.vectors)
    expected = (np.square(error[0]).sum() / 2.0 + np.square(error[1]).sum() / 5.0) / 2
    assert drawn.weight * seen == pytest.approx(expected, rel=1e-5)


def run_singly(artifact, samples):
    """Dynamic ranges are those of one sample."""
    return [
        np.concatenate(arrays) for arrays in zip(*(run_artifact(artifact, s) for s in one_by_one(samples)), strict=True)
    ]


def compare(prepared, scheme, *, names=None, texts=OPTIONS):
    """Scores and divergences, both (n,), of every option on every layer that can take it."""
    samples = {key: array[:N_SAMPLES] for key, array in prepared.calibration.items()}
    layers = [layer for layer in prepared.layers if names is None or layer.name in names]
    wanted = [((layer.name,), [parse(text) for text in texts if suits(text, layer)]) for layer in layers]
    scores = list(make_meter(prepared, scheme, samples).measure(wanted))
    pipeline = Pipeline(prepared, scheme)
    reference = run_singly(pipeline.build({}, GraphTreatment()), samples)
    pairs = []
    for ((layer,), treatments), row in zip(wanted, scores, strict=True):
        for treatment, score in zip(treatments, row, strict=True):
            if isinstance(score, str):
                assert "low rank" in score  # the factors would be larger than the layer
                continue
            artifact = pipeline.build({layer: treatment}, GraphTreatment())
            pairs.append((score, relative_error(reference, run_singly(artifact, samples))))
    return np.array(pairs).T


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_scores_are_what_artifacts_do_to_the_output(name, sources, scheme):
    prepared = prepare_model(sources[name], random_inputs(name, 8))
    scores, divergences = compare(prepared, scheme, names=LAYERS[name])
    assert len(scores) >= 30
    assert spearmanr(scores, divergences)[0] > 0.95
    ratios = (scores / divergences)[divergences < SMALL]
    assert 0.9 < np.median(ratios) < 1.1
    assert (np.maximum(ratios, 1 / ratios) < FACTOR).mean() > 0.9


@pytest.mark.slow
def test_trained_scores_rank_as_artifacts_do(scheme):
    """ResNet-8 after one pass over a thousand digits: one option of each technique on every layer."""
    train, n_seen = datasets.digits().train, 1024
    images, labels = train.inputs["x"][:n_seen], train.labels[:n_seen]
    model = train_classifier(lambda: ResNet(1), images, labels, Schedule(n_epochs=1, batch_size=32))
    model.example_inputs = {"x": torch.zeros(2, 1, 28, 28)}
    prepared = prepare_model(load_source(model), {"x": images[:64]})
    scores, divergences = compare(prepared, scheme, texts=TRAINED_OPTIONS)
    assert len(scores) >= 40
    assert spearmanr(scores, divergences)[0] > 0.9  # 0.99 was seen
    ratios = (scores / divergences)[divergences < SMALL]
    assert len(ratios) >= 10
    assert (np.maximum(ratios, 1 / ratios) < FACTOR).all()


def test_little_memory_changes_nothing(prepared, scheme):
    samples = {key: array[:2] for key, array in prepared["cnn"].calibration.items()}
    wanted = [((layer.name,), [parse("cluster 16")]) for layer in prepared["cnn"].layers]
    whole = list(make_meter(prepared["cnn"], scheme, samples).measure(wanted))
    assert list(make_meter(prepared["cnn"], scheme, samples, max_kept_bytes=1).measure(wanted)) == whole


def test_what_cannot_be_written_says_why(prepared, scheme):
    samples = {key: array[:1] for key, array in prepared["cnn"].calibration.items()}
    meter = make_meter(prepared["cnn"], scheme, samples)
    ((found,),) = meter.measure([(("depthwise.0",), [parse("low_rank 0.5")])])
    assert "depthwise.0: low rank exists for convolutions of one group" in found


def test_what_leaves_a_segment_is_quantised_as_in_the_whole_graph(prepared, scheme):
    """The layer's own output has 256 values at most; in a graph of its own it would be the exact output."""
    writer = SegmentWriter(OnnxStage(prepared["cnn"], scheme), GraphTreatment())
    (segment,) = find_segments(writer.base.model.graph)["left.0"]
    feeds = [{segment.inputs[0]: np.random.default_rng(0).random((1, 8, 16, 16)).astype(np.float32)}]
    model = writer.write(segment, QUANTIZE_OPTIONS["int8"], feeds)
    ((found,),) = run_with_outputs(model, [str(model.graph.outputs[0].name)], feeds)
    assert found.size == 2048
    assert len(np.unique(found)) <= 256


def test_a_segment_ends_behind_bias_and_relu(bases):
    segments = find_segments(bases["cnn"].model.graph)
    assert [node.op_type for node in segments["stem.0"][0].nodes] == ["Conv", "Relu"]
    assert [node.op_type for node in segments["fc"][0].nodes] == ["MatMul", "Add"]
    assert len(find_segments(bases["transformer"].model.graph)["twice"]) == 2


def test_gradients_are_those_of_torch(sources, bases):
    inputs = random_inputs("cnn", 1)
    model = bases["cnn"].model
    (end,) = (segment.output for segment in find_segments(model.graph)["point"])
    u = np.array([[1.0, -2.0, 0.5, 0.0, 3.0]], np.float32)
    found = OutputGradients(model, [end])(inputs, [[u]])[0][end]
    module = sources["cnn"].origin.module
    # behind the last Relu: mean over 16 × 16 places, then fc
    expected = (torch.from_numpy(u) @ module.fc.weight.detach() / 256).reshape(1, 16, 1, 1).expand(1, 16, 16, 16)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-9)


def build_model(nodes, outputs, initializers=()):
    graph = helper.make_graph(
        nodes, "graph", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])], outputs,
        [numpy_helper.from_array(array, name) for name, array in initializers],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ir.from_proto(onnx.load_from_string(model.SerializeToString()))


def test_a_model_of_whole_numbers_has_no_gradient():
    outputs = [helper.make_tensor_value_info("y", TensorProto.INT64, None)]
    model = build_model([helper.make_node("ArgMax", ["x"], ["y"], axis=1)], outputs)
    with pytest.raises(MeasurementError, match="float32 throughout"):
        OutputGradients(model, [])


def test_a_value_that_is_not_computed_has_no_gradient():
    model = build_model([helper.make_node("Relu", ["x"], ["y"])], [helper.make_tensor_value_info("y", 1, None)])
    with pytest.raises(MeasurementError, match="computes no value 'h'"):
        OutputGradients(model, ["h"])


def test_the_relative_error_is_the_mean_over_the_outputs():
    before = [np.array([[3.0, 4.0], [0.0, 5.0]]), np.array([[1.0], [1.0]]), np.zeros((2, 2))]
    after = [before[0] + 1.0, before[1] * 2.0, np.ones((2, 2))]
    # 4 / 50 and 2 / 2; the third is 0 throughout and says nothing
    assert relative_error(before, after) == pytest.approx((4 / 50 + 1.0) / 2)


@pytest.mark.parametrize(
    ("array", "words"),
    [(np.zeros((2, 3)), "outputs are 0"), (np.full((2, 3), np.nan), "output 0 of the model is not finite")],
)
def test_outputs_that_tell_nothing_are_refused(array, words):
    with pytest.raises(ModelError, match=words):
        relative_error([array], [np.ones((2, 3))])


def test_an_error_that_is_not_finite_comes_out_as_it_is():
    assert not np.isfinite(relative_error([np.ones((1, 2))], [np.array([[np.inf, 1.0]])]))


def test_dynamic_ranges_count_where_the_runtime_finds_them_itself(prepared, schemes):
    samples = {key: array[:2] for key, array in prepared["transformer"].calibration.items()}
    wanted = [(("up",), [QUANTIZE_OPTIONS["int8_dynamic"]])]
    found = [
        next(make_meter(prepared["transformer"], schemes[runtime], samples).measure(wanted))
        for runtime in ("openvino", "onnxruntime")  # which writes a weight, and which writes operators
    ]
    assert found[0] == found[1]
