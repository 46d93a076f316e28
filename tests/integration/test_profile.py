"""``trimtab profile`` on a real runtime: tables, proof, and what searches and plans make of them."""

import json
from dataclasses import replace

import pytest
import yaml
from trimtab.core.cache import cache_folder
from trimtab.evaluators.device import build_device
from trimtab.evaluators.latency import TimingSettings
from trimtab.evaluators.quietness import Quietness
from trimtab.experiments.preparation import prepare
from trimtab.experiments.profiling.learn import LearningPlan
from trimtab.experiments.profiling.profile import profile
from trimtab.experiments.profiling.table_prices import open_prices
from trimtab.experiments.spec_file import load_spec
from trimtab.hw_profiles.kernels.shipped import user_table_path
from trimtab.hw_profiles.kernels.table_file import read_table, write_table
from trimtab.hw_profiles.kernels.table_identity import TableIdentity
from trimtab.hw_profiles.target import Target
from trimtab.spaces.policy import Policy

#: what a test machine does meanwhile is no reason to fail
LOOSE = TimingSettings(min_runs=10, min_time_s=0.05, max_spread=100.0, max_uncertainty=100.0, max_drift=100.0)
PLAN = LearningPlan(
    n_designed=6, n_test=5, n_candidates=8, max_surrogate_s=2.0, quietness=Quietness(refused=100.0), timing=LOOSE
)


@pytest.fixture(params=["onnxruntime", "openvino"])
def runtime(request):
    return request.param


@pytest.fixture
def identity(runtime):
    return TableIdentity.of(build_device(Target(runtime)).identify())


@pytest.fixture
def spec(runtime):
    catalogue = "trimtab.experiments.architectures.catalogue"
    return {
        "name": "tiny",
        "model": f"{catalogue}:resnet8",
        "data": f"{catalogue}:images_mnist",
        "target": {"runtime": runtime},
        "space": [{"layers": "*", "quantize": ["none", "int8"]}],
        "graph": {"calibration": ["minmax"], "precision": ["float32"], "quantized_ops": [[]]},
    }


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
def test_a_profile_leaves_a_table_that_prices_policies(spec, identity, tmp_path):
    result = profile(spec, runs=tmp_path / "runs", plan=PLAN)[0]
    written = json.loads((result.run / "profile.json").read_text())
    assert written["accuracy"]["n_policies"] == 5
    assert (result.run / "scatter.png").read_bytes()[:4] == b"\x89PNG"
    table = read_table(user_table_path(identity, cache_folder()), expect=identity)
    assert len(table.graphs) == 11
    assert result.n_kernels <= len(table.known_kernels())
    # far looser than what a quiet machine shows: sums of kernels and whole graphs must be of one order
    assert result.accuracy.mape < 0.5
    prices = open_prices(prepare(load_spec(spec)))
    assert prices is not None
    promise = prices.promise(Policy({}), original_s=1e-3)
    assert promise is not None
    # the original, priced relative to itself
    assert (promise.median_s, promise.source) == (pytest.approx(1e-3), "table")


def test_a_table_of_another_runtime_version_is_refused_by_name(identity, tmp_path, workplace, spec):
    path = user_table_path(identity, cache_folder())
    path.parent.mkdir(parents=True)
    from trimtab.hw_profiles.kernels.kernel_table import KernelTable

    write_table(path, KernelTable(replace(identity, runtime_version="0.0.1")))
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    ended = workplace.call("table", "import", str(path))
    assert ended.exit_code == 2
    assert "0.0.1" in ended.stderr
    # a plan goes on without it
    assert workplace.call("plan", str(tmp_path / "spec.yaml")).exit_code == 0


def test_a_runtime_that_tells_no_kernels_is_refused_before_anything_is_measured(spec, workplace, tmp_path):
    spec["target"] = {"runtime": "trimtab.evaluators.testing:SimulatedDevice"}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    ended = workplace.call("profile", str(tmp_path / "spec.yaml"), "--runs", str(tmp_path / "runs"))
    assert ended.exit_code == 2
    assert "does not tell its kernels" in ended.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_search_feeds_the_table_and_the_next_one_knows_what_to_promise(runtime, identity, workplace):
    file = workplace.write_spec(
        model="tiny:cnn",
        data="tiny:images",
        target={"runtime": runtime},
        space=[{"layers": "*", "quantize": ["none", "int8"]}],
        graph={"calibration": ["minmax"], "precision": ["float32"], "quantized_ops": [[]]},
        search={"trials": 4},
        workers={"address": "inline"},
        budget={"accuracy_drop": 0.9},
    )
    results = []
    for _ in range(2):
        ended = workplace.call("search", file, "--json")
        if ended.exit_code == 4:
            pytest.skip(f"this machine is too unquiet to time anything: {ended.stderr}")
        assert ended.exit_code == 0, ended.stderr
        results.append(json.loads(ended.stdout))
    table = read_table(user_table_path(identity, cache_folder()), expect=identity)
    n_trials = results[0]["trials"]
    assert n_trials <= len(table.graphs) <= 2 * n_trials
    assert {source.rpartition(" ")[0].split()[0] for source in table.sources} == {"search"}
    # the first search had nothing to promise from, and must not have promised from itself
    assert results[0]["promised_latency"] is None
    promised = results[1]["promised_latency"]
    achieved = next(row["final"]["latency"] for row in results[1]["rows"] if row["label"] == "best policy")
    assert promised["source"] == "table"
    assert 0.2 < promised["median_s"] / achieved["median_s"] < 5.0
