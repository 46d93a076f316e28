"""What enters layers, against torch's unfold and hooks; weights as matrices, against torch's layers."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional
from trimtab.compressors.graph import build_base_graph
from trimtab.compressors.layer_inputs import collect_layer_inputs, weight_matrix, weight_of_matrix
from trimtab.compressors.patches import Window, cut_patches, spread
from trimtab.compressors.source import load_source
from trimtab.compressors.testing import random_inputs, small_cnn, small_transformer
from trimtab.core.errors import DataError, ModelError


def _samples(name, n):
    inputs = random_inputs(name, n)
    return [{key: array[i : i + 1] for key, array in inputs.items()} for i in range(n)]


def _hook(module, inputs):
    """Layer path → list of the tensors that entered it."""
    seen = {}
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear | nn.Conv2d):
            child.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, []).append(args[0]))
    with torch.no_grad():
        module(**{key: torch.from_numpy(array) for key, array in inputs.items()})
    return seen


def _unfold(images, conv):
    """(n_groups, n_patches, K) by torch."""
    columns = functional.unfold(images, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
    batch, _, n = columns.shape
    return columns.reshape(batch, conv.groups, -1, n).permute(1, 0, 3, 2).reshape(conv.groups, batch * n, -1).double()


def _check(inputs, rows):
    rows = rows.numpy()
    np.testing.assert_allclose(inputs.moments, np.einsum("gpk,gpl->gkl", rows, rows) / rows.shape[1], 1e-4, 1e-5)
    np.testing.assert_allclose(inputs.mean, rows.mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(inputs.peak, np.abs(rows).max(1), rtol=1e-4, atol=1e-5)


def test_what_enters_convolutions_is_what_torch_unfolds(bases):
    found = collect_layer_inputs(bases["cnn"].model, [layer.name for layer in bases["cnn"].layers], _samples("cnn", 4))
    seen = _hook(small_cnn(), random_inputs("cnn", 4))
    modules = dict(small_cnn().named_modules())
    assert set(found) == set(seen)
    for name in ("stem.0", "left.0", "depthwise.0", "point"):
        _check(found[name], _unfold(seen[name][0], modules[name]))
    _check(found["fc"], seen["fc"][0].double()[None])


def test_what_enters_linear_layers_is_what_torch_hooks_see(bases):
    base = bases["transformer"]
    found = collect_layer_inputs(base.model, [layer.name for layer in base.layers], _samples("transformer", 4))
    seen = _hook(small_transformer(), random_inputs("transformer", 4))
    assert set(found) == set(seen)  # the embedding has none
    for name, values in seen.items():  # ``twice`` is used twice and sums over both
        _check(found[name], torch.cat([value.reshape(1, -1, value.shape[-1]).double() for value in values], 1))


def test_layers_that_read_one_value_share_their_inputs(bases):
    found = collect_layer_inputs(
        bases["transformer"].model, ["query", "key", "value", "out"], _samples("transformer", 1)
    )
    assert found["query"] is found["key"] is found["value"]
    assert found["query"] is not found["out"]


def test_no_more_samples_are_run_than_asked_for(bases):
    samples = _samples("cnn", 3)
    few = collect_layer_inputs(bases["cnn"].model, ["fc"], samples, limit=2)["fc"]
    want = collect_layer_inputs(bases["cnn"].model, ["fc"], samples[:2])["fc"]
    np.testing.assert_array_equal(few.moments, want.moments)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_patches_are_those_of_torch(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    groups, width = draw(1, 3), draw(1, 3)
    conv = nn.Conv2d(
        groups * width, groups, (draw(1, 3), draw(1, 3)), (draw(1, 3), draw(1, 2)), (draw(0, 2), draw(0, 2)),
        (draw(1, 2), draw(1, 3)), groups,
    )  # fmt: skip
    images = torch.randn(2, groups * width, draw(7, 9), draw(7, 10))
    pads = tuple((side, side) for side in conv.padding)
    window = Window(conv.kernel_size, conv.stride, conv.dilation, pads, n_groups=groups)
    got, n_patches = cut_patches(images.numpy(), window, limit=10_000)
    np.testing.assert_array_equal(got, _unfold(images, conv).float().numpy())
    assert n_patches == got.shape[1]


@settings(deadline=None, max_examples=20)
@given(st.integers(5, 9), st.integers(1, 4), st.integers(1, 3), st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
def test_automatic_padding_is_that_of_the_runtime(side, kernel, stride, auto_pad):
    import onnxruntime

    rng = np.random.default_rng(0)
    weight = rng.normal(size=(2, 3, kernel, kernel)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], auto_pad=auto_pad, strides=[stride, stride])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    image = rng.normal(size=(1, 3, side, side)).astype(np.float32)
    want = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": image})[0]
    window = Window((kernel, kernel), (stride, stride), (1, 1), (), auto_pad)
    patches, _ = cut_patches(image, window, limit=10_000)
    got = patches @ weight_matrix(weight, n_groups=1, kind="conv").transpose(0, 2, 1)  # (1, places, outputs)
    np.testing.assert_allclose(got[0].T.reshape(want.shape), want, rtol=1e-4, atol=1e-4)


def test_of_a_large_image_a_part_stands_for_the_whole():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(x)

    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 2, 96, 96)).astype(np.float32)
    image[..., ::4] += 2  # stripes: a grid of places would see all of them, or none
    base = build_base_graph(load_source((Net(), {"x": torch.zeros(1, 2, 96, 96)})), {"x": image})
    found = collect_layer_inputs(base.model, ["conv"], [{"x": image}])["conv"]
    rows = _unfold(torch.from_numpy(image), Net().conv).numpy()
    whole = np.einsum("gpk,gpl->gkl", rows, rows) / rows.shape[1]
    # standard errors with 1,024 places: of a mean 1.3 / 32 = 0.04, of a second moment 3 / 32 = 0.1; four of each
    np.testing.assert_allclose(found.mean, rows.mean(1), atol=0.16)
    np.testing.assert_allclose(found.moments, whole, atol=0.4)


@given(st.integers(1, 500), st.integers(1, 500))
def test_a_spread_takes_different_places_and_no_more_than_asked(n, limit):
    places = spread(n, limit)
    assert len(set(places.tolist())) == len(places) <= limit
    assert places.min() >= 0 and places.max() < n
    if n <= limit:
        assert len(places) == n


def test_a_layer_that_is_not_there_is_refused(bases):
    with pytest.raises(ModelError, match=r"the model has no layer nothing; it has depthwise\.0, fc"):
        collect_layer_inputs(bases["cnn"].model, ["nothing"], _samples("cnn", 1))


def test_without_samples_it_says_so(bases):
    with pytest.raises(DataError, match="nothing enters layer fc"):
        collect_layer_inputs(bases["cnn"].model, ["fc"], [])


def test_inputs_that_are_not_finite_are_refused(bases):
    sample = {"x": np.full((1, 3, 16, 16), np.inf, np.float32)}
    with pytest.raises(ModelError, match=r"what enters layer stem\.0 is not finite"):
        collect_layer_inputs(bases["cnn"].model, ["stem.0"], [sample])


# -- weights as matrices --------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_patches_times_the_weight_matrix_are_the_convolution(groups):
    conv = nn.Conv2d(4, 8, 3, padding=1, stride=2, groups=groups, bias=False)
    images = torch.randn(2, 4, 9, 9)
    window = Window((3, 3), (2, 2), (1, 1), ((1, 1), (1, 1)), n_groups=groups)
    patches, _ = cut_patches(images.numpy(), window, limit=100)
    matrix = weight_matrix(conv.weight.detach().numpy(), n_groups=groups, kind="conv")
    got = patches @ matrix.transpose(0, 2, 1)  # (groups, batch × places, outputs / groups)
    got = got.reshape(groups, 2, 25, -1).transpose(1, 0, 3, 2).reshape(2, 8, 5, 5)
    np.testing.assert_allclose(got, conv(images).detach().numpy(), rtol=1e-4, atol=1e-5)


@given(st.sampled_from(["linear", "conv", "depthwise_conv", "embedding"]), st.integers(1, 3), st.integers(1, 3))
def test_a_matrix_becomes_its_weight_again(kind, groups, width):
    groups = groups if "conv" in kind else 1
    shape = (2 * groups, width, 3, 2) if "conv" in kind else (4, width)
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    matrix = weight_matrix(weight, n_groups=groups, kind=kind)
    assert matrix.shape[0] == groups
    np.testing.assert_array_equal(weight_of_matrix(matrix, shape, kind=kind), weight)


def test_the_matrix_of_a_linear_layer_has_outputs_as_rows():
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)  # (in, out)
    np.testing.assert_array_equal(weight_matrix(weight, n_groups=1, kind="linear"), weight.T[None])


def test_the_model_is_left_alone(bases):
    before = ir.to_proto(bases["cnn"].model).SerializeToString()
    collect_layer_inputs(bases["cnn"].model, ["fc", "left.0"], _samples("cnn", 1))
    assert ir.to_proto(bases["cnn"].model).SerializeToString() == before
