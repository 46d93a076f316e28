"""The example of docs/examples/production.sh: from a search to production and back, with the command line alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import trimtab
from trimtab.experiments.manifest import check_files, read_manifest

SCRIPT = Path(trimtab.__file__).parent / "docs" / "examples" / "production.sh"
#: exit code, and how often to try again: other things run on the machine that runs the tests
TOO_UNQUIET, N_ATTEMPTS = 4, 3

pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder in which the script ran."""
    found = os.environ["PATH"]
    environment = {**os.environ, "EPOCHS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{found}"}
    environment.pop("TRIMTAB_STORE", None)
    for _ in range(N_ATTEMPTS):
        folder = tmp_path_factory.mktemp("place")
        ended = subprocess.run(["sh", SCRIPT], cwd=folder, env=environment, capture_output=True, text=True)
        if ended.returncode != TOO_UNQUIET:
            assert ended.returncode == 0, ended.stderr
            return folder
    return pytest.skip(f"this machine is too unquiet to time anything: {ended.stderr}")


@pytest.fixture(scope="module")
def shelf(place):
    return trimtab.PolicyStore(place / "store").shelf("digits")


def weights(folder):
    """Name → array of what is stored in the model."""
    model = onnx.load(folder / "model.onnx")
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def treatment(folder):
    content = json.loads((folder / "policy.json").read_text())
    return content["groups"], content["graph"], content["model"]


def test_the_history_tells_what_the_script_did(shelf):
    first, second = (version.id for version in shelf.versions)
    assert [(event.action, event.version, event.why) for event in shelf.events.values()] == [
        ("publish", first, "first search"),
        ("promote", first, "first release"),
        ("publish", second, "second training"),
        ("promote", second, "second release"),
        ("rollback", first, "complaints from the field"),
    ]
    assert {event.run for event in shelf.events.values() if event.action == "publish"} == {"digits"}


def test_what_is_deployed_in_the_end_is_what_the_search_found(place, shelf):
    assert shelf.production == shelf.versions[0]
    check_files(place / "deployed", read_manifest(place / "deployed"))
    for path in (place / "runs" / "digits" / "artifact").iterdir():
        assert (place / "deployed" / path.name).read_bytes() == path.read_bytes()


def test_the_retrained_model_is_treated_alike_and_has_other_weights(place):
    assert treatment(place / "retrained") == treatment(place / "deployed")
    first, second = weights(place / "deployed"), weights(place / "retrained")
    name = max(first, key=lambda key: first[key].size)
    assert first[name].shape == second[name].shape
    assert not np.array_equal(first[name], second[name])


def test_the_retrained_model_promises_an_accuracy_of_its_own(place):
    promise = read_manifest(place / "retrained").promise.measurement
    assert promise.accuracy.n == 1000
    # one epoch on 3,000 digits of ten classes: far from chance, however the seed fell
    assert promise.accuracy.mean > 0.7
