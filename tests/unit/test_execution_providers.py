"""ONNX Runtime's execution providers by name; the real one of this build that takes nothing stands for a fall-back."""

import numpy as np
import onnxruntime
import pytest
from trimtab.core.errors import MeasurementError, SpecError
from trimtab.evaluators.device import build_device
from trimtab.evaluators.execution_providers import (
    PROVIDERS,
    RECORD_ENTRY,
    ExecutionProvider,
    require_use,
)
from trimtab.evaluators.onnxruntime_device import OnnxRuntimeDevice
from trimtab.evaluators.testing import DEVICE_CHECKS, DeviceCase, example_artifact
from trimtab.hw_profiles.target import Target

AVAILABLE = onnxruntime.get_available_providers()
AT_HAND = [name for name, provider in PROVIDERS.items() if provider.name in AVAILABLE]


def test_the_cpu_is_what_it_was():
    assert isinstance(build_device(Target("onnxruntime")), OnnxRuntimeDevice)


def test_every_provider_is_known_to_onnxruntime():
    assert {provider.name for provider in PROVIDERS.values()} <= set(onnxruntime.get_all_providers())


@pytest.mark.parametrize("name", sorted(set(PROVIDERS) - set(AT_HAND)))
def test_a_build_without_the_provider_says_what_has_it(name):
    with pytest.raises(SpecError) as caught:
        build_device(Target("onnxruntime", device=name))
    provider = PROVIDERS[name]
    assert f"built without the {provider.name} of device {name}; it has the devices cpu" in str(caught.value)
    assert str(caught.value).endswith(f"what has it: {provider.package}")


def test_a_misspelt_device_is_answered_with_the_nearest():
    with pytest.raises(SpecError, match="did you mean 'openvino'"):
        build_device(Target("onnxruntime", device="openvin"))


def open_session(*providers):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(RECORD_ENTRY, "1")
    return onnxruntime.InferenceSession(example_artifact().model, options, providers=list(providers))


def test_a_session_on_the_cpu_alone_is_a_fall_back():
    with pytest.raises(MeasurementError, match="fell back to the CPU: the CUDAExecutionProvider took no session"):
        require_use(open_session("CPUExecutionProvider"), PROVIDERS["cuda"])


def test_a_provider_that_takes_no_node_is_a_fall_back():
    # Azure's takes nodes of its own domain only
    provider = ExecutionProvider("AzureExecutionProvider", "onnxruntime")
    if provider.name not in AVAILABLE:
        pytest.skip(f"this build lacks the {provider.name}")
    with pytest.raises(MeasurementError, match="no node of the model in the AzureExecutionProvider"):
        require_use(open_session(provider.name, "CPUExecutionProvider"), provider)


def test_a_provider_that_takes_nodes_is_used():
    require_use(open_session("CPUExecutionProvider"), ExecutionProvider("CPUExecutionProvider", "onnxruntime"))


def test_threads_go_to_providers_that_count_their_own():
    options = PROVIDERS["openvino"].options_for(Target("onnxruntime", device="openvino", threads=3))
    assert options == {"device_type": "CPU", "num_streams": "1", "num_of_threads": "3"}


@pytest.mark.parametrize(
    "name", AT_HAND or [pytest.param("none", marks=pytest.mark.skip("this build has the CPU only"))]
)
@pytest.mark.parametrize("check", DEVICE_CHECKS, ids=lambda check: check.__name__)
def test_providers_at_hand_keep_the_contract(name, check):
    try:
        device = build_device(Target("onnxruntime", device=name))
    except SpecError as error:
        pytest.skip(str(error))
    inputs = {"x": np.random.default_rng(0).standard_normal((1, 8)).astype(np.float32)}
    check(DeviceCase(device, example_artifact(), inputs))
