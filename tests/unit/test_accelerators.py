"""GPUs: what is said where there is none, and what only a real one can show."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from trimtab.compressors.pipeline import Pipeline
from trimtab.compressors.testing import random_inputs, run_artifact
from trimtab.core.errors import MeasurementError, SpecError
from trimtab.evaluators.device import build_device
from trimtab.evaluators.latency import DeviceTiming, TimingSettings, measure_together
from trimtab.evaluators.testing import example_artifact
from trimtab.hw_profiles.target import Target
from trimtab.spaces.policy import GraphTreatment
from trimtab.spaces.treatment import QUANTIZE_OPTIONS

GPU_RUNTIMES = ["torch", "torch_compile", "tensorrt"]
BATCH = {"x": np.random.default_rng(0).standard_normal((1, 8)).astype(np.float32)}


@pytest.fixture(params=GPU_RUNTIMES)
def device(request):
    try:
        return build_device(Target(request.param, device="cuda"))
    except SpecError as error:
        pytest.skip(str(error))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
@pytest.mark.parametrize("runtime", ["torch", "torch_compile"])
def test_a_missing_gpu_is_said_before_any_trial(runtime):
    with pytest.raises(SpecError, match=r"needs a CUDA GPU, and PyTorch .* sees none"):
        build_device(Target(runtime, device="cuda"))


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_a_missing_tensorrt_names_its_extra():
    with pytest.raises(SpecError, match=r"pip install 'trimtab\[tensorrt\]'"):
        build_device(Target("tensorrt", device="cuda"))


def test_type_stubs_are_not_taken_for_tensorrt(tmp_path, monkeypatch):
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.pyi").write_text("class Builder: ...\n")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(SpecError, match="only its type stubs are"):
        build_device(Target("tensorrt", device="cuda"))
    sys.modules.pop("tensorrt", None)


@pytest.mark.parametrize("runtime", ["torch", "torch_compile"])
def test_a_missing_torch_names_its_extra(runtime, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # what Python itself does for a package that must not be found
    with pytest.raises(SpecError, match=r"torch is not installed; pip install 'trimtab\[torch\]'"):
        build_device(Target(runtime))


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(SpecError, match=r"needs a C\+\+ compiler, and there is none of: /no/such/compiler"):
        build_device(Target("torch_compile"))


# -- timing by a clock of the device's own ------------------------------------------------------------------


class Accelerator:
    """Says that a run takes 2 ms on the device, however long the host waits for it."""

    def __init__(self):
        self.n_runs = self.n_timed = 0

    def run(self, inputs):
        self.n_runs += 1
        return [inputs["x"]]

    def time_once(self, inputs):
        self.n_timed += 1
        return 2e-3


def test_accelerators_are_timed_by_their_own_clock():
    accelerator, settings = Accelerator(), TimingSettings(min_time_s=0.01, max_drift=1e9, max_spread=1e9)
    assert isinstance(accelerator, DeviceTiming)
    plain = build_device(Target("onnxruntime")).load(example_artifact())
    assert not isinstance(plain, DeviceTiming)
    ticks = iter(range(0, 10**12, 1_000_000))
    measured = measure_together([accelerator, plain], BATCH, settings, clock=lambda: next(ticks))
    assert [latency.median_s for latency in measured] == [2e-3, 1e-3]
    assert accelerator.n_timed > 0
    assert accelerator.n_runs == 0


# -- on a GPU -----------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cnn", "transformer"])
@pytest.mark.parametrize("option", ["none", "int8"])
def test_a_gpu_computes_what_the_cpu_computes(device, prepared, name, option):
    layers = [layer for layer in prepared[name].layers if layer.kind in device.capabilities.quantize.get(option, ())]
    treatments = {layer.name: QUANTIZE_OPTIONS[option] for layer in layers}
    built = Pipeline(prepared[name], device.capabilities).build(treatments, GraphTreatment())
    feeds = random_inputs(name, 1, seed=5)
    got, want = device.load(built).run(feeds)[0], run_artifact(built, feeds)[0]
    # int8: a few values lie between two codes and are rounded the other way
    assert np.abs(got - want).max() <= (0.05 if option == "int8" else 1e-3) * np.abs(want).max()


@pytest.mark.gpu
def test_a_gpu_times_itself_and_names_itself(device):
    executable = device.load(example_artifact())
    assert isinstance(executable, DeviceTiming)
    before = [output.copy() for output in executable.run(BATCH)]
    assert all(0 < executable.time_once(BATCH) < 1 for _ in range(5))
    np.testing.assert_array_equal(executable.run(BATCH)[0], before[0])
    assert device.identify().device == torch.cuda.get_device_name(0)


@pytest.mark.gpu
def test_tensorrt_tells_the_time_of_its_layers(device, tmp_path, monkeypatch):
    if device.target.runtime != "tensorrt":
        pytest.skip("only TensorRT has layers of its own")
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    layers = device.load(example_artifact()).time_layers(BATCH)
    assert layers
    assert all(name and 0 <= time_s < 1 for name, time_s in layers)
    assert len(list(tmp_path.glob("tensorrt/timings-*.bin"))) == 1


@pytest.mark.gpu
def test_a_graph_that_breaks_the_rules_is_refused(device, prepared):
    if device.target.runtime != "tensorrt":
        pytest.skip("the rules are TensorRT's")
    built = Pipeline(prepared["cnn"], build_device(Target("onnxruntime")).capabilities).build(
        {prepared["cnn"].layers[0].name: QUANTIZE_OPTIONS["int8"]}, GraphTreatment()
    )
    with pytest.raises(MeasurementError, match=r"of TensorRT's rules: .* must be"):
        device.load(built)
