"""Manifests: what is written comes back, and what was altered is named."""

import json

import pytest
from trimtab.core.errors import ArtifactError
from trimtab.evaluators.measurement import Estimate, Measurement
from trimtab.experiments.manifest import Manifest, Promise, check_files, read_manifest
from trimtab.hw_profiles.latency import Latency
from trimtab.hw_profiles.target import Target

MEASUREMENT = Measurement(Estimate(0.9, 0.01, 100), Estimate(0.0, 0.0, 100), Latency(0.1, 0.01, 30), 5, 7)
MANIFEST = Manifest(
    target=Target("openvino", threads=2),
    precision="bfloat16",
    dynamic_activations=True,
    promise=Promise(MEASUREMENT, "test", 0.001),
    profile={"device": "a processor"},
    full_precision=("layer1.0.conv1", "fc"),
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"hello")
    (tmp_path / "policy.json").write_bytes(b"{}")
    MANIFEST.write(tmp_path)
    return tmp_path


def test_everything_comes_back(folder):
    found = read_manifest(folder)
    # sha256sum of "hello" and "{}"
    assert found.files == {
        "model.onnx": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        "policy.json": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    }
    for name in ("target", "precision", "dynamic_activations", "full_precision", "promise", "profile"):
        assert getattr(found, name) == getattr(MANIFEST, name)


def test_a_manifest_that_knows_no_layers_in_full_precision_has_none(folder):
    content = json.loads((folder / "manifest.json").read_text())
    del content["runtime"]["full_precision"]
    (folder / "manifest.json").write_text(json.dumps(content))
    assert read_manifest(folder).full_precision == ()


@pytest.mark.parametrize("value", ["fc", [1], {"fc": 1}, None])
def test_layers_in_full_precision_are_a_list_of_names(folder, value):
    content = json.loads((folder / "manifest.json").read_text())
    content["runtime"]["full_precision"] = value
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="full_precision must be a list of layers' names"):
        read_manifest(folder)


def test_files_that_are_as_they_were_pass(folder):
    check_files(folder, read_manifest(folder))


def test_files_that_nobody_named_do_no_harm(folder):
    (folder / "notes.txt").touch()
    check_files(folder, read_manifest(folder))


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a/b", "..", ""])
def test_names_that_are_no_plain_files_are_refused(folder, name):
    content = json.loads((folder / "manifest.json").read_text())
    content["files"][name] = {"sha256": "0"}
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError):
        check_files(folder, read_manifest(folder))


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "1", 10**400, None])
def test_only_positive_numbers_can_be_promised(folder, value):
    content = json.loads((folder / "manifest.json").read_text())
    content["promise"]["measurement"]["latency"]["median_s"] = value
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="is damaged"):
        read_manifest(folder)
