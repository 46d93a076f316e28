import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quant_utils
from trimtab.compressors.quantization.activations import activation_scale
from trimtab.compressors.quantization.calibration import Range
from trimtab.compressors.weights.quantized_weights import quantize_blocks, quantize_values, quantize_weight, raise_scale
from trimtab.compressors.weights.treated_weight import TreatedWeight


def _weights(shape):
    """Channels of very different size, one of them zero, one with a single outlier."""
    rng = np.random.default_rng(7)
    weight = rng.normal(size=shape).astype(np.float32) * np.geomspace(1e-6, 30, shape[0]).reshape(
        -1, *[1] * (len(shape) - 1)
    )
    weight[1] = 0
    weight[2].flat[0] = 99
    return weight.astype(np.float32)


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (5, 7)])
def test_a_tensor_is_rounded_as_onnxruntime_rounds_it(shape):
    weight = _weights(shape)
    zero, scale, codes = quant_utils.quantize_data(weight, TensorProto.INT8, True)
    made = quantize_weight(weight, axis=None)
    assert zero == 0
    assert (made.scale.dtype, made.codes.dtype, made.axis) == (np.float32, np.int8, None)
    assert made.scale == scale
    np.testing.assert_array_equal(made.codes, codes)


@pytest.mark.parametrize(("shape", "axis"), [((8, 3, 3, 3), 0), ((5, 7), 1), ((5, 7), 0)])
def test_each_channel_is_rounded_as_onnxruntime_rounds_it(shape, axis):
    weight = _weights(shape)
    made = quantize_weight(weight, axis=axis)
    for channel in range(shape[axis]):
        _, scale, codes = quant_utils.quantize_data(weight.take(channel, axis), TensorProto.INT8, True)
        assert made.scale[channel] == scale
        np.testing.assert_array_equal(made.codes.take(channel, axis), codes)


def test_a_weight_of_zeros_has_scale_one():
    made = quantize_weight(np.zeros((3, 2), np.float32), axis=0)
    np.testing.assert_array_equal(made.scale, np.ones(3, np.float32))
    assert not made.codes.any()


def _unpack(made, n_inputs, n_outputs):
    """Reads the operator's specification element by element: nibbles low first, zero point 2^(bits-1)."""
    bits, size = made.bits, made.block_size
    n_blocks = -(-n_inputs // size)
    scales = made.scales.reshape(n_outputs, n_blocks)
    weight = np.zeros((n_inputs, n_outputs), np.float32)
    for k in range(n_inputs):
        for n in range(n_outputs):
            position = k % size
            byte = int(made.codes[n, k // size, position * bits // 8])
            code = (byte >> 4 * (position % 2)) & 15 if bits == 4 else byte
            weight[k, n] = (code - 2 ** (bits - 1)) * scales[n, k // size]
    return weight


_SHAPES = [(64, 6, 32), (40, 5, 16), (33, 3, 32), (7, 4, 16)]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("n_inputs", "n_outputs", "block_size"), _SHAPES)
def test_blocks_lose_at_most_half_a_step(bits, n_inputs, n_outputs, block_size):
    weight = _weights((n_outputs, n_inputs)).T
    made = quantize_blocks(weight, bits=bits, block_size=block_size)
    n_blocks = -(-n_inputs // block_size)
    assert made.codes.shape == (n_outputs, n_blocks, block_size * bits // 8)
    assert made.scales.shape == (n_outputs * n_blocks,)
    steps = np.repeat(np.abs(made.scales.reshape(n_outputs, n_blocks)), block_size, 1)[:, :n_inputs].T
    # the extreme element is exact; the one code that is missing on the other side costs up to a whole step
    error = np.abs(_unpack(made, n_inputs, n_outputs) - weight)
    assert (error <= steps * (1 + 1e-5)).all()
    inside = np.abs(weight) <= steps * (2 ** (bits - 1) - 1)
    assert (error[inside] <= steps[inside] * (0.5 + 1e-4)).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_the_extreme_element_of_a_block_is_kept_exactly(bits):
    weight = np.random.default_rng(0).normal(size=(32, 9)).astype(np.float32)
    kept = _unpack(quantize_blocks(weight, bits=bits, block_size=32), 32, 9)
    extreme = np.abs(weight).argmax(0)
    np.testing.assert_allclose(kept[extreme, range(9)], weight[extreme, range(9)], rtol=1e-6)


def test_blocks_of_zeros_stay_zero():
    made = quantize_blocks(np.zeros((32, 2), np.float32), bits=4, block_size=32)
    assert not _unpack(made, 32, 2).any()


@pytest.mark.parametrize("accuracy_level", [0, 1])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("n_inputs", "n_outputs", "block_size"), _SHAPES)
def test_onnxruntime_multiplies_by_the_weight_that_the_blocks_stand_for(
    bits, n_inputs, n_outputs, block_size, accuracy_level
):
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(n_inputs, n_outputs)).astype(np.float32)
    made = quantize_blocks(weight, bits=bits, block_size=block_size)
    node = helper.make_node(
        "MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft", K=n_inputs, N=n_outputs, bits=bits,
        block_size=block_size, accuracy_level=accuracy_level,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, n_inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, n_outputs])],
        [numpy_helper.from_array(made.codes, "codes"), numpy_helper.from_array(made.scales, "scales")],
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=8)
    x = rng.normal(size=(4, n_inputs)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = x @ _unpack(made, n_inputs, n_outputs)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-4, atol=1e-4)


# -- activations ----------------------------------------------------------------------------------

_RANGES = [(-1.7, 3.1), (0.0, 6.0), (-2.5, 0.0), (0.3, 4.0), (-0.1, 1e6), (0.0, 0.0), (-1e-42, 1e-42), (-3e38, 2e38)]


def _by_onnxruntime(low, high, dtype, *, symmetric):
    lowest, highest = quant_utils.get_qmin_qmax_for_qType(dtype, symmetric=symmetric)
    return quant_utils.compute_scale_zp(np.float32(low), np.float32(high), lowest, highest, symmetric)


@pytest.mark.parametrize(("low", "high"), _RANGES)
def test_asymmetric_scales_are_those_of_onnxruntime(low, high):
    zero, scale = _by_onnxruntime(low, high, TensorProto.UINT8, symmetric=False)
    made = activation_scale(Range(low, high), "asymmetric")
    assert (made.scale, made.zero_point, made.zero_point.dtype) == (scale, zero, np.uint8)


@pytest.mark.parametrize(("low", "high"), _RANGES)
def test_signed_symmetric_scales_are_those_of_onnxruntime(low, high):
    zero, scale = _by_onnxruntime(low, high, TensorProto.INT8, symmetric=True)
    made = activation_scale(Range(low, high), "symmetric_signed")
    assert (made.scale, made.zero_point, made.zero_point.dtype) == (scale, zero, np.int8)


@pytest.mark.parametrize(("low", "high"), _RANGES)
def test_symmetric_codes_are_unsigned_where_nothing_is_negative(low, high):
    made = activation_scale(Range(low, high), "symmetric")
    assert made == activation_scale(Range(low, high), "symmetric_signed" if low < 0 else "asymmetric")
    assert made.zero_point == 0


# -- few values -----------------------------------------------------------------------------------


def _treated(scale=None):
    """Six outputs in two groups with codebooks of very different size."""
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.choice([-0.5, 0.1, 2.0], (3, 8)), rng.choice([-1e-3, 4e-3], (3, 8))])
    return TreatedWeight(values.astype(np.float32), scale, 0, "coded")


def test_few_values_are_rounded_by_the_largest_of_their_codebook():
    treated, groups = _treated(), np.array([0, 0, 0, 1, 1, 1])
    made = quantize_values(treated, groups=groups)
    np.testing.assert_allclose(made.scale, np.repeat(np.float32([2 / 127, 4e-3 / 127]), 3), rtol=1e-6)
    expected = {-0.5: -32, 0.1: 6, 2.0: 127, -1e-3: -32, 4e-3: 127}
    for value, code in expected.items():
        assert set(made.codes[treated.values == np.float32(value)]) == {code}
    assert np.abs(made.array - treated.array).max() <= 1 / 127


def test_signs_are_codes_of_one():
    treated = TreatedWeight(np.float32([[1, -1], [-1, -1]]), np.float32([0.25, 3.0]), 0, "coded")
    made = quantize_values(treated, step=1.0)
    np.testing.assert_array_equal(made.codes, [[1, -1], [-1, -1]])
    np.testing.assert_array_equal(made.scale, treated.scale)
    np.testing.assert_array_equal(made.array, treated.array)


def test_a_negative_scale_turns_the_codes():
    scale = np.float32([1, -2, 1, -1, 0.5, 3])
    upright, turned = quantize_values(_treated()), quantize_values(_treated(scale))
    np.testing.assert_allclose(turned.scale, upright.scale * np.abs(scale), rtol=1e-6)
    np.testing.assert_array_equal(turned.codes, upright.codes * np.sign(scale)[:, None])
    np.testing.assert_array_equal(turned.groups, scale < 0)


def test_one_scale_stands_for_all_outputs_where_it_can():
    assert quantize_values(_treated(), is_shared=True).scale.shape == ()
    assert quantize_values(_treated(np.full(6, 2, np.float32)), is_shared=True).axis is None
    assert quantize_values(_treated(np.arange(1, 7, dtype=np.float32)), is_shared=True).scale.shape == (6,)


@pytest.mark.parametrize("axis", [None, 1])
def test_raising_a_scale_rounds_anew_what_it_is_for_and_nothing_else(axis):
    weight = _weights((5, 7))
    stored = quantize_weight(weight, axis=axis)
    floor = np.zeros(7, np.float32)
    floor[3] = 4 * stored.scale.max()
    made = raise_scale(stored, weight, floor)
    rounded = np.clip(np.rint(weight / made.scale), -127, 127)
    np.testing.assert_array_equal(made.codes, rounded)
    if axis is None:
        assert made.scale == floor[3]
    else:
        np.testing.assert_array_equal(np.delete(made.codes, 3, 1), np.delete(stored.codes, 3, 1))
        np.testing.assert_array_equal(made.scale != stored.scale, floor > 0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("n_inputs", "n_outputs", "block_size"), _SHAPES)
def test_blocks_unpack_to_what_the_specification_says(bits, n_inputs, n_outputs, block_size):
    made = quantize_blocks(_weights((n_outputs, n_inputs)).T, bits=bits, block_size=block_size)
    np.testing.assert_array_equal(made.unpack(n_inputs), _unpack(made, n_inputs, n_outputs))


def test_a_rounding_sees_outputs_as_rows_and_the_scale_of_each_weight():
    seen = []

    def spy(rows, scales, limits):
        seen.append((rows.shape, np.broadcast_to(scales, rows.shape).shape, limits))
        return np.zeros(rows.shape)

    weight = _weights((8, 3, 3, 3))
    assert not quantize_weight(weight, axis=0, rounding=spy).codes.any()
    quantize_weight(weight[..., 0, 0].T, axis=None, outputs=1, rounding=spy)
    assert not quantize_blocks(weight[..., 0, 0].T, bits=4, block_size=16, rounding=spy).unpack(3).any()
    assert seen == [((8, 27), (8, 27), (-127, 127)), ((8, 3), (8, 3), (-127, 127)), ((8, 3), (8, 3), (-8, 7))]
