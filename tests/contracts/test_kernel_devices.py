"""The contract of devices that tell their kernels. A new one is one line in RUNTIMES."""

import subprocess
import sys
from functools import cache

import pytest
from trimtab.compressors.pipeline import Pipeline
from trimtab.compressors.prepared import prepare_model
from trimtab.compressors.source import load_source
from trimtab.compressors.testing import random_inputs, small_cnn, small_transformer
from trimtab.evaluators.device import KernelDevice, build_device
from trimtab.evaluators.kernel_contract import KERNEL_CHECKS, KernelCase
from trimtab.hw_profiles.target import Target
from trimtab.spaces.policy import GraphTreatment
from trimtab.spaces.treatment import QUANTIZE_OPTIONS

RUNTIMES = ("onnxruntime", "openvino")
MODELS = {"cnn": small_cnn, "transformer": small_transformer}
#: every other layer, so that there are borders of all kinds
OPTIONS = ("none", "int8", "int8_dynamic", "int4_weight")


@cache
def _prepare(name):
    return prepare_model(load_source(MODELS[name]()), random_inputs(name, 8))


@pytest.fixture(params=RUNTIMES)
def runtime(request):
    return request.param


@pytest.fixture(params=MODELS)
def model(request):
    return request.param


@pytest.fixture(params=OPTIONS)
def option(request):
    return request.param


@pytest.fixture
def case(runtime, model, option):
    device = build_device(Target(runtime, batch_size=2))
    assert isinstance(device, KernelDevice)
    prepared = _prepare(model)
    layers = [layer for layer in prepared.layers if device.capabilities.why_not(option, layer.kind) is None]
    treatments = {layer.name: QUANTIZE_OPTIONS[option] for layer in layers[::2]}
    ops = ("add",) if option == "int8" else ()
    artifact = Pipeline(prepared, device.capabilities).build(treatments, GraphTreatment(quantized_ops=ops))
    return KernelCase(device, artifact, random_inputs(model, 2))


@pytest.mark.parametrize("check", KERNEL_CHECKS, ids=lambda check: check.__name__)
def test_every_kernel_device_keeps_the_contract(case, check):
    check(case)


def test_lowering_an_onnx_model_sets_up_no_logging_and_imports_no_torch():
    script = (
        "import logging, sys; from trimtab.evaluators.device import build_device; "
        "from trimtab.evaluators.testing import example_artifact; from trimtab.hw_profiles.target import Target; "
        "build_device(Target('onnxruntime')).lower(example_artifact()); "
        "print(logging.getLogger().handlers, 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[] False\n"
