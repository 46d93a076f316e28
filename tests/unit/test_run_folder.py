"""Folders of runs."""

import logging

import pytest
from trimtab.core.errors import RunError
from trimtab.evaluators.measurement import Estimate, Measurement
from trimtab.experiments.run_folder import RunFolder
from trimtab.hw_profiles.latency import Latency


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "runs", "tiny")


def test_runs_of_one_name_are_numbered(tmp_path):
    names = [RunFolder.create(tmp_path / "runs", "tiny").path.name for _ in range(3)]
    assert names == ["tiny", "tiny-2", "tiny-3"]


def test_a_run_is_opened_once_it_has_a_spec(folder):
    with pytest.raises(RunError, match=r"is not a run folder: it has no spec\.yaml"):
        RunFolder.open(folder.path)
    folder.spec.touch()
    assert RunFolder.open(folder.path) == folder


def test_the_measurement_of_the_original_comes_back(folder):
    assert folder.read_original() is None
    original = Measurement(Estimate(0.9, 0.01, 5), None, Latency(0.1, 0.01, 30), 1000)
    folder.write_original(original)
    assert folder.read_original() == original


def test_the_folder_to_import_from_comes_back(folder, tmp_path):
    assert folder.read_import_folder() is None
    folder.write_import_folder(tmp_path)
    assert folder.read_import_folder() == tmp_path


@pytest.mark.parametrize("content", ["[]", "{", '{"folder": 3}'])
def test_a_damaged_note_of_the_import_folder_is_refused(folder, content):
    (folder.path / "imports.json").write_text(content)
    with pytest.raises(RunError, match=r"imports\.json"):
        folder.read_import_folder()


def test_the_log_is_written_while_the_run_lasts_and_no_longer(folder):
    logger = logging.getLogger("trimtab.anything")
    before = list(logging.getLogger("trimtab").handlers)
    with folder.logging():
        logger.info("within")
    logger.warning("after")
    text = (folder.path / "log.txt").read_text()
    assert "INFO trimtab.anything: within" in text
    assert "after" not in text
    assert logging.getLogger("trimtab").handlers == before
