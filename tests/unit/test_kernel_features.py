"""The work of kernels against closed forms and against published counts of whole networks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.compressors.pipeline import Pipeline
from trimtab.compressors.prepared import prepare_model
from trimtab.compressors.source import load_source
from trimtab.evaluators.device import build_device
from trimtab.experiments.architectures import catalogue
from trimtab.hw_profiles.kernels.kernel import DTYPE_BYTES, Kernel, Tensor, pack_attributes
from trimtab.hw_profiles.kernels.kernel_features import (
    FAMILIES,
    FEATURES,
    describe_kind,
    find_family,
    flops,
    measure_work,
    stack_features,
)
from trimtab.hw_profiles.target import Target
from trimtab.spaces.policy import GraphTreatment


def make(op, inputs, outputs, *, implementation="", **attributes):
    return Kernel(
        op,
        tuple(Tensor.from_json(text) for text in inputs),
        tuple(Tensor.from_json(text) for text in outputs),
        implementation,
        pack_attributes(attributes),
    )


CASES = {
    # 2 · out pixels · out channels · in channels / groups · window
    "conv": (make("Conv", ["float32[1,8,14,14]", "float32[16,8,3,3]!"], ["float32[1,16,14,14]"]), 2 * 196 * 16 * 8 * 9),
    "strided conv with blocked channels": (
        make("com.microsoft.nchwc.Conv", ["float32[1,3,224,224]", "float32[32,3,3,3]!"], ["float32[1,32,112,112]"]),
        2 * 112 * 112 * 32 * 3 * 9,
    ),
    "int8 conv, channels last, scales between": (
        make(
            "com.microsoft.QLinearConv",
            ["uint8[1,14,14,8]", "float32[]!", "uint8[]!", "int8[16,8,3,3]!", "float32[16]!", "int8[16]!"],
            ["uint8[1,14,14,16]"],
            channels_last=1,
            group=1,
        ),
        2 * 196 * 16 * 8 * 9,
    ),
    "depthwise conv": (
        make("Conv", ["float32[1,96,56,56]", "float32[96,1,3,3]!"], ["float32[1,96,56,56]"], group=96),
        2 * 56 * 56 * 96 * 9,
    ),
    "depthwise conv of OpenVINO": (
        make("Convolution", ["float32[1,96,56,56]@acdb", "float32[96,1,1,3,3]!"], ["float32[1,96,56,56]@acdb"]),
        2 * 56 * 56 * 96 * 9,
    ),
    "grouped conv of OpenVINO": (
        make("Convolution", ["int8[1,32,7,7]", "int8[4,16,8,1,1]!"], ["int8[1,64,7,7]"]),
        2 * 49 * 64 * 8,
    ),
    "fully connected": (
        make("FullyConnected", ["float32[1,128,384]", "float32[1536,384]!"], ["float32[1,128,1536]"]),
        2 * 128 * 384 * 1536,
    ),
    "gemm, first factor turned": (
        make("Gemm", ["float32[64,5]", "float32[64,7]!"], ["float32[5,7]"], transA=1),
        2 * 5 * 7 * 64,
    ),
    "batched matmul": (
        make("MatMul", ["float32[1,12,128,32]", "float32[1,12,32,128]"], ["float32[1,12,128,128]"]),
        2 * 12 * 128 * 128 * 32,
    ),
    "4-bit weights, packed": (
        make("com.microsoft.MatMulNBits", ["float32[1,64]", "uint8[100,2,16]!", "float32[200]!"], ["float32[1,100]"]),
        2 * 64 * 100,
    ),
    "attention": (
        make("com.microsoft.MultiHeadAttention", ["float32[1,128,384]"] * 3, ["float32[1,128,384]"], num_heads=12),
        4 * 128 * 128 * 384,
    ),
    "attention per head": (
        make("ScaledDotProductAttention", ["float32[1,12,128,32]"] * 3, ["float32[1,12,128,32]"]),
        4 * 12 * 128 * 128 * 32,
    ),
    "attention with its projection": (
        make("com.microsoft.Attention", ["float32[1,128,384]", "float32[384,1152]!"], ["float32[1,128,384]"]),
        4 * 128 * 128 * 384 + 2 * 128 * 384 * 1152,
    ),
    "elementwise": (make("Add", ["float32[1,8,4,4]"] * 2, ["float32[1,8,4,4]"]), 128),
    "unknown": (make("vendor.Frobnicate", ["float32[10]"], ["float32[20]"]), 20),
    "view": (make("Reshape", ["float32[1,8]", "int64[2]!"], ["float32[8,1]"]), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operations_follow_the_closed_form(name):
    kernel, expected = CASES[name]
    assert flops(kernel) == expected


def test_bytes_are_those_of_the_tensors():
    work = measure_work(make("Conv", ["uint8[1,8,14,14]", "int8[16,8,3,3]!", "float32[16]!"], ["float32[1,16,14,14]"]))
    assert (work.read_bytes, work.constant_bytes, work.written_bytes) == (8 * 196, 16 * 72 + 64, 4 * 16 * 196)


def test_a_table_that_is_gathered_from_is_not_read_as_a_whole():
    work = measure_work(make("Gather", ["float32[30522,384]!", "int64[1,128]"], ["float32[1,128,384]"]))
    assert work.moved_bytes == 2 * 4 * 128 * 384


def test_stored_weights_that_are_unpacked_in_every_run_are_work():
    # ONNX Runtime runs these in every inference; what OpenVINO folds is in no lowered graph
    work = measure_work(make("DequantizeLinear", ["int8[64,32]!", "float32[]!"], ["float32[64,32]"]))
    assert (work.family, work.constant_bytes, work.written_bytes) == ("convert", 64 * 32 + 4, 4 * 64 * 32)


def test_kinds_tell_depthwise_from_dense():
    dense, depthwise = CASES["conv"][0], CASES["depthwise conv"][0]
    assert describe_kind(dense)[3] != describe_kind(depthwise)[3]


# MobileNetV2: 300.8 M (https://arxiv.org/abs/1801.04381, table 4: 300M); ResNet-18: 1.814 G (torchvision's
# documentation, GFLOPS 1.81). OpenVINO is asked because ONNX Runtime pads channels to blocks, and computes them.
@pytest.mark.slow
@pytest.mark.parametrize(("name", "macs"), [("mobilenet_v2", 300.8e6), ("resnet18", 1.814e9)])
def test_whole_networks_have_their_published_operations(name, macs):
    pytest.importorskip("openvino")
    device = build_device(Target("openvino"))
    samples = catalogue.load_data(name).calibration.inputs
    prepared = prepare_model(load_source(catalogue.build(name)), {key: array[:1] for key, array in samples.items()})
    lowered = device.lower(Pipeline(prepared, device.capabilities).build({}, GraphTreatment()))
    products = sum(flops(kernel) for kernel in lowered.kernels if find_family(kernel) in ("conv", "matmul"))
    assert products / 2 == pytest.approx(macs, rel=1e-3)


TENSORS = st.builds(
    Tensor,
    dtype=st.sampled_from([*DTYPE_BYTES, "dynamic", "string"]),
    shape=st.lists(st.integers(-1, 300), max_size=5).map(tuple),
    is_constant=st.booleans(),
    layout=st.sampled_from(["", "acdb", "aBcd16b"]),
)
OPS = ["Conv", "com.microsoft.QLinearConv", "Convolution", "MatMul", "Gemm", "FullyConnected", "Attention", "MHA",
       "Subgraph", "MaxPool", "ReduceMean", "Softmax", "Transpose", "Gather", "Reshape", "Odd"]  # fmt: skip
KERNELS = st.builds(
    Kernel,
    op=st.sampled_from(OPS),
    inputs=st.lists(TENSORS, max_size=5).map(tuple),
    outputs=st.lists(TENSORS, max_size=2).map(tuple),
    implementation=st.sampled_from(["", "brgconv_avx512_amx_i8"]),
    attributes=st.dictionaries(
        st.sampled_from(["group", "transA", "kernel_shape", "num_heads", "fused", "channels_last", "perm"]),
        st.one_of(st.integers(-2, 40), st.text(max_size=3), st.lists(st.integers(0, 9), max_size=3), st.none()),
    ).map(pack_attributes),
)


@given(st.lists(KERNELS, max_size=3))
def test_any_kernel_has_finite_features(kernels):
    features = stack_features(kernels)
    assert features.shape == (len(kernels), len(FEATURES))
    assert np.isfinite(features).all()
    for kernel in kernels:
        work = measure_work(kernel)
        assert work.family in FAMILIES
        assert min(work.flops, work.read_bytes, work.written_bytes, work.constant_bytes) >= 0
        assert len(describe_kind(kernel)) == 5
