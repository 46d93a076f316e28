"""A policy or an artifact may come from anywhere; it must not make Trimtab import code."""

import pytest
from trimtab.core.errors import SpecError
from trimtab.evaluators.device import build_device, build_recorded_device
from trimtab.hw_profiles.target import Target


def test_a_file_cannot_name_code_as_its_runtime():
    with pytest.raises(SpecError, match=r"entry point in the group trimtab\.runtimes"):
        build_recorded_device(Target("os:abort"))


def test_a_file_may_name_a_registered_runtime():
    assert build_recorded_device(Target("onnxruntime")).target == build_device(Target("onnxruntime")).target
