"""What is packed comes back bit for bit: from the graph, on both runtimes, folded or not."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import openvino
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from trimtab.compressors.weights.packing import Coded, Content, Masked, digits_per_byte, pack
from trimtab.compressors.weights.unpacking import ConstantWriter

DTYPES = (np.float32, np.float16, np.int8)
_INF = float("inf")


@st.composite
def arrays(draw):
    """An array with few values or many zeros, its axis of outputs, and which outputs may share a codebook."""
    shape = tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=4).filter(lambda s: np.prod(s) <= 20_000)))
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = (rng.normal(size=draw(st.integers(1, 300))) * 50).astype(dtype)
    if dtype is not np.int8:
        values[:4] = np.resize(draw(st.lists(st.sampled_from([0.0, -0.0, _INF, 1e-7]), max_size=4)) or [1.0], 4)[
            : len(values)
        ]
    array = rng.choice(values, size=shape)
    array[rng.random(shape) < draw(st.sampled_from([0.0, 0.5, 0.9]))] = 0
    axis = draw(st.integers(0, len(shape) - 1))
    groups = draw(st.none() | st.just(rng.integers(0, 3, shape[axis])))
    if groups is not None:  # each group has values of its own
        steps = np.expand_dims(groups, tuple(i for i in range(len(shape)) if i != axis))
        array = (array * (steps + 1).astype(dtype)).astype(dtype)
    return array, axis, groups


def model_of(name_to_packed):
    """Returns a model: x → x, with one more output for each packed constant."""
    x = ir.Value(name="x", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
    copy = ir.node("Identity", [x])
    copy.outputs[0].name, copy.outputs[0].type = "y", x.type
    graph = ir.Graph([x], [copy.outputs[0]], nodes=[copy], opset_imports={"": 17}, name="constants")
    writer = ConstantWriter(graph)
    for name, packed in name_to_packed.items():
        copy = ir.node("Identity", [writer.write(name, packed)])
        graph.append(copy)
        copy.outputs[0].name = f"{name}_out"
        graph.outputs.append(copy.outputs[0])
    return ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString()


def run_onnxruntime(model, level):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.zeros(1, np.float32)})[1:]


def run_openvino(model):
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled({"x": np.zeros(1, np.float32)})
    return [results[n] for n in range(1, len(compiled.outputs))]


def bits_of(array):
    return array.view(f"u{array.itemsize}")


@given(arrays(), st.sampled_from(["coded", "grouped", "masked", "masked_coded"]))
def test_unpacking_gives_back_every_bit_in_onnxruntime(case, form):
    array, axis, groups = case
    assume(form in content_of(array, axis, groups).forms)
    model = model_of({"constant": pack(array, axis=axis, groups=groups, form=form)})
    for level in (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    ):
        (got,) = run_onnxruntime(model, level)
        assert (got.dtype, got.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(bits_of(got), bits_of(array))


@given(arrays())
def test_packing_takes_the_bytes_that_it_says_and_no_more_than_the_array(case):
    array, axis, groups = case
    packed = pack(array, axis=axis, groups=groups)
    assert stored_bytes(packed) <= array.nbytes


def stored_bytes(packed):
    if isinstance(packed, Coded):
        return packed.packed.nbytes + packed.codebook.nbytes + (0 if packed.offsets is None else packed.offsets.nbytes)
    if isinstance(packed, Masked):
        return packed.bits.nbytes + packed.starts.nbytes + stored_bytes(packed.values)
    return packed.nbytes


def sample(form, dtype, shape):
    """An array that is smallest in the given form."""
    rng = np.random.default_rng(5)
    many = (rng.normal(size=shape) * 40).astype(dtype)
    zeros = rng.random(shape) < 0.9
    if form == "masked":
        return np.where(zeros, dtype(0), many), None
    few = rng.choice(np.array([-4, -3, -1, 1, 2, 3, 5], dtype), size=shape)
    if form == "coded":
        return few, None
    if form == "masked_coded":
        return np.where(zeros, dtype(0), few), None
    groups = np.arange(shape[0]) * 4 // shape[0]
    return few * (1 + groups).astype(dtype).reshape(-1, *[1] * (len(shape) - 1)), groups


@pytest.mark.parametrize("shape", [(64, 17, 3, 3), (127, 80), (17, 3, 401)])
def test_every_form_of_every_dtype_comes_back_in_both_runtimes(shape):
    """All in one model, so that they share what can be shared."""
    cases = {
        f"{form}_{np.dtype(dtype)}": sample(form, dtype, shape)
        for form in ("coded", "grouped", "masked", "masked_coded")
        for dtype in DTYPES
        if (form, dtype) not in {("masked_coded", np.int8), ("grouped", np.int8)}
    }
    packed = {name: pack(array, groups=groups) for name, (array, groups) in cases.items()}
    for name, one in packed.items():
        kind = Masked if name.startswith("masked") else Coded
        assert isinstance(one, kind), name
        assert (name.startswith("masked_coded")) == (isinstance(one, Masked) and isinstance(one.values, Coded))
        assert name.startswith("grouped") == (isinstance(one, Coded) and one.offsets is not None)
    model = model_of(packed)
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    for results in (run_onnxruntime(model, level), run_openvino(model)):
        for (name, (array, _)), got in zip(cases.items(), results, strict=True):
            assert got.dtype == array.dtype, name
            np.testing.assert_array_equal(bits_of(got), bits_of(array), err_msg=name)


@given(st.integers(2, 256))
def test_a_byte_holds_as_many_codes_as_fit_and_not_one_more(n_values):
    digits = digits_per_byte(n_values)
    assert n_values**digits <= 256
    assert digits == 8 or n_values ** (digits + 1) > 256


def content_of(array, axis, groups):
    bits = bits_of(array)
    books = []
    if groups is not None and len(np.unique(groups)) > 1:
        books = [np.unique(bits.take(np.flatnonzero(groups == group), axis)) for group in np.unique(groups)]
    return Content(
        n_elements=array.size,
        itemsize=array.itemsize,
        n_values=len(np.unique(np.append(bits.dtype.type(0), bits))),
        n_kept=int((bits != 0).sum()),
        n_group_values=max(map(len, books), default=0),
        n_groups=max(len(books), 1),
        n_outputs=array.shape[axis] if books else 0,
    )


@given(arrays())
def test_the_bytes_of_every_form_are_those_of_the_closed_form(case):
    array, axis, groups = case
    content = content_of(array, axis, groups)
    for form, size in content.forms.items():
        packed = pack(array, axis=axis, groups=groups, form=form)
        slack = 0
        if form in ("coded", "masked_coded") and bits_of(array).all():  # 0 was counted, and is not there
            slack = array.itemsize + array.size
        assert size - slack <= stored_bytes(packed) <= size, form
