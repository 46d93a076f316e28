"""Artifact folders are written as a whole or not at all."""

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from trimtab.evaluators.device import build_device
from trimtab.evaluators.testing import example_artifact
from trimtab.experiments import artifact_folder
from trimtab.experiments.artifact_folder import read_probe, record_probe, write_artifact
from trimtab.experiments.manifest import check_files, read_manifest
from trimtab.experiments.policy_file import load_policy

GOLDEN = Path(__file__).parent.parent / "golden" / "artifact-v1"


@pytest.fixture
def parts():
    """Artifact, policy, manifest and probe."""
    manifest = read_manifest(GOLDEN)
    executable = build_device(manifest.target).load(example_artifact())
    batches = [{"x": np.full((1, 8), k, np.float32)} for k in range(2)]
    return example_artifact(), load_policy(GOLDEN / "policy.json"), manifest, record_probe(executable, batches)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_artifact_consists_of_four_files_that_fit_together(tmp_path, parts):
    write_artifact(tmp_path / "artifact", *parts)
    assert names(tmp_path / "artifact") == ["manifest.json", "model.onnx", "policy.json", "probe.safetensors"]
    check_files(tmp_path / "artifact", read_manifest(tmp_path / "artifact"))
    assert (tmp_path / "artifact" / "model.onnx").read_bytes() == parts[0].model
    assert load_policy(tmp_path / "artifact" / "policy.json") == parts[1]


def test_the_probe_comes_back_in_order(tmp_path, parts):
    write_artifact(tmp_path / "artifact", *parts)
    batches = read_probe(tmp_path / "artifact")
    assert [inputs["x"][0, 0] for inputs, _ in batches] == [0.0, 1.0]
    for k, (_, outputs) in enumerate(batches):
        np.testing.assert_array_equal(outputs[0], parts[3][f"output.{k}.0"])


def test_a_new_artifact_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path, parts):
    write_artifact(tmp_path / "artifact", *parts)
    write_artifact(tmp_path / "artifact", replace(parts[0], model=b"another"), *parts[1:])
    assert (tmp_path / "artifact" / "model.onnx").read_bytes() == b"another"
    assert names(tmp_path) == ["artifact"]


@pytest.mark.parametrize("has_old", [False, True])
def test_a_failure_while_writing_leaves_what_was_there(tmp_path, parts, has_old):
    if has_old:
        write_artifact(tmp_path / "artifact", *parts)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_artifact(
            tmp_path / "artifact", parts[0], parts[1], replace(parts[2], profile={"x": float("nan")}), parts[3]
        )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert names(tmp_path) == (["artifact"] if has_old else [])


def test_a_failure_between_taking_the_old_away_and_putting_the_new_in_brings_the_old_back(tmp_path, parts, monkeypatch):
    write_artifact(tmp_path / "artifact", *parts)
    rename = Path.rename

    def rename_once(path, target):
        if target == tmp_path / "artifact" and not path.name.endswith(".old"):
            raise OSError("no space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_once)
    with pytest.raises(OSError, match="no space left"):
        write_artifact(tmp_path / "artifact", replace(parts[0], model=b"another"), *parts[1:])
    assert (tmp_path / "artifact" / "model.onnx").read_bytes() == parts[0].model
    assert names(tmp_path) == ["artifact"]


def test_the_manifest_says_how_the_runtime_must_be_set(tmp_path, parts):
    artifact = replace(parts[0], precision="bfloat16", dynamic_activations=True, full_precision=("w2",))
    write_artifact(tmp_path / "artifact", artifact, *parts[1:])
    found = read_manifest(tmp_path / "artifact")
    assert (found.precision, found.dynamic_activations, found.full_precision) == ("bfloat16", True, ("w2",))


def test_the_openvino_files_mark_the_layers_that_stay_in_float32(tmp_path, parts):
    write_artifact(tmp_path / "artifact", *parts)
    artifact = replace(parts[0], precision="bfloat16", full_precision=("w2",))
    for made, n_marked in ((parts[0], 0), (artifact, 1)):
        artifact_folder.write_openvino_ir(tmp_path / "artifact", made)
        parsed = ElementTree.parse(tmp_path / "artifact" / "model.xml")  # noqa: S314 - our own file
        layers = parsed.getroot().find("layers")
        products = [layer for layer in layers if layer.get("type") == "MatMul"]
        marks = [layer.find("rt_info/attribute[@name='DisablePrecisionConversion']") for layer in products]
        assert len(products) == 2
        assert sum(mark is not None for mark in marks) == n_marked


def test_the_openvino_files_are_digested_too(tmp_path, parts):
    write_artifact(tmp_path / "artifact", *parts)
    artifact_folder.write_openvino_ir(tmp_path / "artifact", parts[0])
    manifest = read_manifest(tmp_path / "artifact")
    assert {"model.xml", "model.bin"} < set(manifest.files)
    check_files(tmp_path / "artifact", manifest)
    promised = json.loads((tmp_path / "artifact" / "manifest.json").read_text())["promise"]
    assert promised == json.loads((GOLDEN / "manifest.json").read_text())["promise"]
