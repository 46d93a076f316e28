"""Specs from files, mappings and Python."""

import sys

import numpy as np
import pytest
import yaml
from trimtab.core.errors import SpecError
from trimtab.evaluators.dataset import Dataset, Split
from trimtab.evaluators.measurement import Measurement
from trimtab.experiments.budgets import resolve_budget
from trimtab.experiments.run_folder import RunFolder
from trimtab.experiments.spec import Spec
from trimtab.experiments.spec_file import find_spec, list_recipes, load_spec, read_spec
from trimtab.hw_profiles.energy.energy import Energy
from trimtab.hw_profiles.latency import Latency
from trimtab.spaces.treatment import QUANTIZE_OPTIONS

LEAST = {"model": "a:b", "data": "c:d", "target": {"runtime": "onnxruntime"}}


def test_the_least_spec_is_completed_with_defaults():
    spec = load_spec(LEAST)
    assert (spec.name, spec.objective, spec.search.trials, spec.workers.address) == ("search", "latency", 60, "local")
    assert [(rule.layers, rule.quantize) for rule in spec.space] == [("*", tuple(QUANTIZE_OPTIONS))]


def test_a_spec_is_taken_as_it_is():
    spec = Spec(**LEAST)
    assert load_spec(spec) is spec


def test_every_problem_is_named_at_once():
    with pytest.raises(SpecError) as caught:
        load_spec({"target": {"runtime": "x", "threads": 0}, "nmae": "y"})
    for part in ("'model' is missing", "'data' is missing", "target.threads", "'nmae'", "did you mean 'name'?"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", sorted(list_recipes()))
def test_a_recipe_is_found_by_its_bare_name(name):
    assert load_spec(name).name == name
    assert find_spec(name) == list_recipes()[name]


def test_a_file_goes_before_a_recipe_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").write_text(yaml.safe_dump({**LEAST, "name": "mine"}))
    assert load_spec("digits").name == "mine"


def test_an_onnx_file_is_looked_for_beside_the_spec(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [])
    (tmp_path / "model.onnx").touch()
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({**LEAST, "model": "model.onnx"}))
    assert load_spec(tmp_path / "spec.yaml").model == str(tmp_path / "model.onnx")


def test_a_spec_that_was_written_reads_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [])
    spec = load_spec({
        **LEAST, "budget": {"latency": "0.5x", "size_mb": 1.5},
        "space": [{"layers": "*", "quantize": ["none", "int8"]}],
        "search": {"time_limit": "20m", "seed": 5}, "graph": {"quantized_ops": [[], ["add"]]},
    })  # fmt: skip
    folder = RunFolder.create(tmp_path, "run")
    folder.write_spec(spec)
    assert load_spec(folder.spec) == spec


def test_a_default_space_stays_a_default_when_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [])
    folder = RunFolder.create(tmp_path, "run")
    folder.write_spec(load_spec(LEAST))
    assert "space" not in load_spec(folder.spec).model_fields_set


def test_objects_are_noted_by_their_type():
    split = Split({"x": np.zeros((2, 1), np.float32)})
    spec = load_spec({**LEAST, "data": Dataset(split, split, split)})
    assert not spec.is_reproducible
    assert spec.to_json()["data"] == "<trimtab.evaluators.dataset.Dataset object>"
    assert spec.unnamed == ()
    assert load_spec(spec.to_json()).unnamed == ("data",)


def test_relative_bounds_refer_to_the_original():
    bounds = {"latency": "0.5x", "size_mb": "0.25x", "peak_memory_mb": 3, "peak_activation_mb": "2x"}
    spec = load_spec({**LEAST, "budget": {**bounds, "energy_mj": "0.5x"}})
    energy = Energy(0.004, 0.0, 9, "rapl")
    original = Measurement(latency=Latency(0.008, 0.0, 30), size_bytes=1000, peak_activation_bytes=50, energy=energy)
    budget = resolve_budget(spec, original)
    assert (budget.latency_s, budget.size_bytes, budget.peak_memory_bytes) == (0.004, 250.0, 3e6)
    assert (budget.peak_activation_bytes, budget.energy_j, budget.energy_source) == (100.0, 0.002, "rapl")
    assert budget.reference_s == 0.008


def test_absolute_energies_are_in_millijoules():
    budgets = [load_spec({**LEAST, "budget": {"energy_mj": bound}}) for bound in (3, "3mJ", "3000uJ", "0.003J")]
    assert [resolve_budget(spec, Measurement()).energy_j for spec in budgets] == pytest.approx([0.003] * 4)


def test_a_spec_that_is_only_read_opens_no_folder_for_imports(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [])
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({**LEAST, "name": "mine"}))
    assert read_spec(tmp_path / "spec.yaml").name == "mine"
    assert sys.path == []
    assert load_spec(tmp_path / "spec.yaml").name == "mine"
    assert sys.path == [str(tmp_path)]
