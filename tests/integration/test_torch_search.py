"""A search on PyTorch from the spec to the check of the artifact."""

import json

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load_file

#: exit code, and how often to try again: other things run on the machine that runs the tests
TOO_UNQUIET, N_ATTEMPTS = 4, 3


def when_quiet(place, *arguments):
    for _ in range(N_ATTEMPTS):
        ended = place.run(*arguments)
        if ended.exit_code != TOO_UNQUIET:
            return ended
    return pytest.skip(f"this machine is too unquiet to time anything: {ended.stderr}")


def search(place, runtime, n_trials):
    place.write_spec(
        model="tiny:cnn", data="tiny:images", target={"runtime": runtime}, objective="size",
        space=[{"layers": "*", "quantize": ["none", "int8", "int8_weight"]}],
        graph={"fusion": ["none"], "calibration": ["minmax"], "quantized_ops": [[]], "precision": ["float32"]},
        budget={"accuracy_drop": 0.99}, search={"trials": n_trials},
    )  # fmt: skip
    ended = when_quiet(place, "search", "spec.yaml", "--json")
    assert ended.exit_code == 0, ended.stderr
    return place.path / json.loads(ended.stdout)["run"]


def check(place, run):
    result = json.loads((run / "result.json").read_text())
    best = next(row for row in result["rows"] if row["label"] == "best policy")
    original = next(row for row in result["rows"] if row["label"] == "original")
    assert best["final"]["size_bytes"] < original["final"]["size_bytes"]
    # the artifact is plain ONNX, whatever runtime it was searched on
    session = onnxruntime.InferenceSession(run / "artifact" / "model.onnx", providers=["CPUExecutionProvider"])
    probe = load_file(run / "artifact" / "probe.safetensors")
    found = session.run(None, {"input": probe["input.0.input"]})[0]
    assert np.abs(found - probe["output.0.0"]).max() <= 0.05 * np.abs(probe["output.0.0"]).max()
    verified = when_quiet(place, "verify", run / "artifact", "--data", "tiny:images", "--tolerance", "10")
    assert verified.exit_code == 0, verified.stdout + verified.stderr


def test_a_search_on_torch_ends_in_an_artifact_that_keeps_its_promise(make_workplace, tmp_path):
    place = make_workplace(tmp_path)
    check(place, search(place, "torch", 6))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_on_compiled_torch_ends_in_an_artifact_that_keeps_its_promise(make_workplace, tmp_path):
    place = make_workplace(tmp_path)
    check(place, search(place, "torch_compile", 3))


def test_devices_lists_every_runtime_and_what_is_missing(make_workplace, tmp_path):
    ended = make_workplace(tmp_path).run("devices")
    assert ended.exit_code == 0, ended.stderr
    for name in ("onnxruntime", "tensorrt", "torch", "torch_compile"):
        assert f"\n{name}" in "\n" + ended.stdout
