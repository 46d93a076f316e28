"""What enters the layers in training, as the artifact will represent it and as calibration counts it."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from torch import nn
from trimtab.compressors.layer_inputs import collect_layer_inputs
from trimtab.compressors.quantization.activations import activation_scale
from trimtab.compressors.quantization.calibration import Range
from trimtab.compressors.recovery.input_stages import DynamicInput, RoundedInput, SignedInput
from trimtab.compressors.recovery.input_statistics import collect_inputs
from trimtab.compressors.testing import random_inputs, small_cnn


def draw(*shape, shift=0.0, seed=0):
    values = np.random.default_rng(seed).normal(shift, 1.0, shape)
    return torch.from_numpy(values.astype(np.float32))


@pytest.mark.parametrize("codes", ["asymmetric", "symmetric", "symmetric_signed"])
@pytest.mark.parametrize("seen", [draw(100), draw(100).relu(), draw(100, shift=1.5)], ids=["signed", "relu", "shifted"])
def test_the_range_of_an_input_gives_the_artifact_the_step_that_was_learned(codes, seen) -> None:
    stage = RoundedInput(seen, codes)
    with torch.no_grad():
        stage.step.mul_(1.37)
    chosen = activation_scale(Range(*stage.range), codes)
    assert float(chosen.scale) == pytest.approx(float(stage.step.detach()), rel=1e-6)
    lowest = 0 if chosen.zero_point.dtype == np.uint8 else -127
    first, last = stage.edges.tolist()
    if seen.min() >= 0 and codes == "symmetric_signed":
        assert (first, last) == (-127, 127)
    assert lowest - int(chosen.zero_point) == first
    assert last - first == (255 if chosen.zero_point.dtype == np.uint8 else 254)


def test_the_first_step_of_an_input_errs_no_more_than_one_that_holds_all_values() -> None:
    seen = draw(2000).pow(3)
    step = float(RoundedInput(seen, "asymmetric").step.detach())
    widest = float(seen.max() - seen.min()) / 255
    first = -round(-float(seen.min()) / widest)

    def error(size):
        codes = np.clip(np.rint(seen.numpy() / size), first, first + 255)
        return np.square(codes * size - seen.numpy()).sum()

    assert error(step) <= error(widest)


@pytest.mark.parametrize("shift", [-3.0, 0.0, 5.0])
def test_dynamic_inputs_are_rounded_as_by_the_runtimes_own_operator(shift) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"]),
    ]
    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4, 50]) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph(nodes, "dynamic", value[:1], value[1:]), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 9
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = draw(4, 50, shift=shift)
    (expected,) = session.run(None, {"x": x.numpy()})
    np.testing.assert_allclose(DynamicInput()(x).numpy(), expected, atol=1e-5)


def test_nothing_but_zeros_stays_zero() -> None:
    zeros = torch.zeros(4, 3)
    for stage in (DynamicInput(), RoundedInput(zeros, "asymmetric"), RoundedInput(zeros, "symmetric_signed")):
        assert torch.equal(stage(zeros).detach(), zeros)


def test_the_two_values_of_a_binary_input_are_running_means_that_rest_in_evaluation() -> None:
    stage = SignedInput(torch.tensor([1.0, -3.0]))  # -1 ± 2
    low, high = -0.9 - 2.3, -0.9 + 2.3  # a tenth of the way to 0 ± 5
    assert stage(torch.tensor([[5.0, -5.0]])).tolist() == [[pytest.approx(high), pytest.approx(low)]]
    stage.eval()
    stage(torch.tensor([[100.0]]))
    assert stage.range == (pytest.approx(low), pytest.approx(high))


def test_the_two_values_of_what_leaves_a_relu_differ_by_its_side_of_the_mean() -> None:
    seen = torch.tensor([0.0, 0.0, 1.0, 3.0])
    assert SignedInput(seen).eval()(seen).tolist() == [0.0, 0.0, 2.0, 2.0]


def test_statistics_are_those_that_calibration_collects_from_the_graph(bases) -> None:
    inputs = random_inputs("cnn", 3)
    layers = ["stem.0", "depthwise.0", "point", "fc"]
    samples = [{"x": inputs["x"][i : i + 1]} for i in range(3)]
    expected = collect_layer_inputs(bases["cnn"].model, layers, samples)
    found = collect_inputs(small_cnn(), layers, {"x": torch.from_numpy(inputs["x"])})
    for layer in layers:
        for name in ("moments", "mean", "peak"):
            got, want = getattr(found[layer], name), getattr(expected[layer], name)
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4, err_msg=f"{layer} {name}")


def test_statistics_of_a_signal_are_those_of_an_image_one_pixel_high() -> None:
    signal = nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2)
    image = nn.Conv2d(4, 6, (1, 3), stride=(1, 2), padding=(0, 1), groups=2)
    x = draw(2, 4, 9)
    one = collect_inputs(nn.Sequential(signal), ["0"], {"input": x})["0"]
    other = collect_inputs(nn.Sequential(image), ["0"], {"input": x[:, :, None]})["0"]
    np.testing.assert_allclose(one.moments, other.moments, rtol=1e-5)
