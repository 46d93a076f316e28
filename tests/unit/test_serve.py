"""Artifacts in service: checked, counted, watched, exported; loaded without what searches need."""

import json
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimtab
from prometheus_client.parser import text_string_to_metric_families
from trimtab.core.errors import ArtifactError, MeasurementError, SpecError
from trimtab.evaluators.device import build_device
from trimtab.evaluators.measurement import Estimate
from trimtab.evaluators.testing import example_artifact
from trimtab.experiments.artifact_folder import record_probe, write_artifact
from trimtab.experiments.manifest import read_manifest
from trimtab.experiments.policy_file import load_policy
from trimtab.experiments.serving.input_statistics import record_inputs
from trimtab.experiments.serving.machine import time_yardstick
from trimtab.experiments.serving.member import Member, load_member
from trimtab.experiments.serving.policy_set import read_policy_set, write_policy_set
from trimtab.experiments.serving.recorder import Recorder, Sampling, _Rhythm
from trimtab.experiments.serving.served_model import Original, ServedModel, ServeOptions
from trimtab.hw_profiles.latency import Latency
from trimtab.hw_profiles.target import Target

GOLDEN = Path(__file__).parent.parent / "golden" / "artifact-v1"
X = {"x": np.zeros((1, 8), np.float32)}
#: every call is looked at, and the machine is taken to be as it was
ALL = ServeOptions(
    sampling=Sampling(inputs_per_s=1e9, input_fraction=1.0, shadow_fraction=1.0), yardstick=lambda: 0.001
)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def write_example(folder: Path, *, runtime: str = "onnxruntime", median_s: float = 0.01) -> Path:
    """An artifact of two linear layers with a promise and statistics of inputs."""
    target, golden = Target(runtime), read_manifest(GOLDEN)
    inputs = {"x": np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)}
    latency = Latency(median_s, 0.0, 30)
    measurement = replace(golden.promise.measurement, latency=latency)
    manifest = replace(
        golden,
        target=target,
        promise=replace(golden.promise, measurement=measurement, yardstick_s=0.001),
        input_statistics=record_inputs(inputs),
        agreement=Estimate(1.0, 0.0, 400),
    )
    probe = record_probe(build_device(target).load(example_artifact()), [X])
    policy = replace(load_policy(GOLDEN / "policy.json"), target=target)
    write_artifact(folder, example_artifact(), policy, manifest, probe)
    return folder


@pytest.fixture
def example(tmp_path):
    return write_example(tmp_path / "example")


class Answering:
    """An executable that answers as it is told, or fails."""

    def __init__(self, answer):
        self.answer = answer

    def run(self, inputs):
        return [self.answer(inputs["x"])]


def classes(x):
    return np.stack([x.sum(axis=1), -x.sum(axis=1)], axis=1)


def test_a_service_loads_nothing_that_only_searches_need(example):
    script = (
        "import sys, numpy, trimtab\n"
        f"with trimtab.serve({str(example)!r}, p99_s=1.0, original={str(example)!r}) as model:\n"
        "    model.run({'x': numpy.zeros((1, 8), numpy.float32)})\n"
        "    model.metrics_text()\n"
        "print([name for name in ('torch', 'ray', 'optuna', 'scipy') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.stdout == "[]\n", ended.stderr


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_served_model_answers_from_many_threads_as_its_runtime_does(tmp_path, runtime):
    if runtime == "openvino":
        pytest.importorskip("openvino")
    folder = write_example(tmp_path / "example", runtime=runtime)
    executable = build_device(Target(runtime)).load(example_artifact())
    batches = [{"x": np.random.default_rng(seed).normal(size=(1, 8)).astype(np.float32)} for seed in range(8)]
    expected = [executable.run(batch)[0] for batch in batches]
    got = {}
    with trimtab.serve(folder) as model:

        def call(index):
            got[index] = [model.run(batches[index])[0] for _ in range(20)]

        threads = [threading.Thread(target=call, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert model.recorder.read_answers().count == 160
    for index, outputs in got.items():
        for output in outputs:
            np.testing.assert_allclose(output, expected[index], rtol=1e-5)


@pytest.mark.parametrize("name", ["model.onnx", "policy.json", "probe.safetensors"])
def test_an_artifact_that_was_altered_is_not_served(example, name):
    (example / name).write_bytes((example / name).read_bytes() + b" ")
    with pytest.raises(ArtifactError, match="was altered"):
        trimtab.serve(example)


def test_an_artifact_without_statistics_is_served_and_says_what_is_not_watched():
    with trimtab.serve(GOLDEN) as model:
        assert model.watched["inputs"].startswith("not watched")
        assert model.watched["agreement"].startswith("not watched")
        assert model.run(X)[0].shape == (1, 3)


def test_a_failure_of_the_runtime_is_raised_and_counted(example):
    with trimtab.serve(example) as model:
        with pytest.raises(MeasurementError):
            model.run({"y": X["x"]})
        assert (model.recorder.n_failed, model.recorder.read_answers().count) == (1, 0)


def test_the_metrics_are_what_prometheus_reads(example):
    with trimtab.serve(example, p99_s=60.0, original=example, options=ALL) as model:
        for _ in range(7):
            model.run(X)
        wait_until(lambda: model.n_shadowed == 7 - model.n_shadows_dropped)
        families = {family.name: family for family in text_string_to_metric_families(model.metrics_text())}
    samples = {(s.name, s.labels.get("le")): s for family in families.values() for s in family.samples}
    assert families["trimtab_service_seconds"].type == "histogram"
    assert samples["trimtab_service_seconds_count", None].value == 7
    assert samples["trimtab_answer_seconds_bucket", "+Inf"].value == 7
    assert samples["trimtab_service_seconds_count", None].labels == {"model": "example", "policy": "example"}
    assert samples["trimtab_shed_total", None].value == 0
    assert samples["trimtab_latency_limit_seconds", None].value == pytest.approx(0.0125)
    buckets = [s.value for s in families["trimtab_service_seconds"].samples if s.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    drifting = {(s.labels["signal"], s.labels["policy"]): s.value for s in families["trimtab_drift"].samples}
    assert drifting == {("latency", "example"): 0, ("inputs", ""): 0, ("agreement", "example"): 0}


def test_the_metrics_are_served_to_this_machine_until_the_model_is_closed(example):
    with trimtab.serve(example) as model:
        port = model.start_metrics_server(0)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            assert b"trimtab_service_seconds_count" in answer.read()
        with pytest.raises(SpecError, match="choose another port"):
            model.start_metrics_server(port)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics")


@pytest.mark.alone
def test_the_yardstick_shows_the_machine_and_not_who_else_runs_python():
    """On the wall clock it takes many times as long beside a thread that never lets go of Python's lock."""
    is_over = threading.Event()
    alone_s = time_yardstick()

    def spin():
        while not is_over.is_set():
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        beside_s = min(time_yardstick() for _ in range(3))
    finally:
        is_over.set()
        thread.join()
    # a Yardstick itself takes eleven times as long there
    assert beside_s < 3 * alone_s


def test_other_inputs_are_signalled_to_the_callback_and_the_list(example):
    heard = []
    rng = np.random.default_rng(1)
    with trimtab.serve(example, on_drift=heard.append, options=ALL) as model:

        def send(shift):
            model.run({"x": (rng.normal(size=(1, 8)) + shift).astype(np.float32)})
            return bool(heard)

        for _ in range(4):
            assert not any(send(0.0) for _ in range(500))
            wait_until(lambda: not model.recorder._samples)
        wait_until(lambda: any(send(2.0) for _ in range(100)))
    assert [drift.signal for drift in heard] == ["inputs"]
    assert model.drifts() == heard
    assert heard[0].at_s == pytest.approx(time.time(), abs=60)


def test_a_callback_that_fails_does_not_end_the_watch(example, caplog):
    def fail(drift):
        raise ValueError("nobody listens")

    member = load_member(example)
    broken = Original(Answering(lambda x: -classes(x)))
    model = ServedModel([Member("a", member.manifest, Answering(classes))], original=broken, on_drift=fail, options=ALL)
    with model:
        for _ in range(6 * 64):
            model.run({"x": np.ones((1, 8), np.float32)})
            if model._shadow._queue.qsize() > 8:
                wait_until(model._shadow._queue.empty)
    assert [drift.signal for drift in model.drifts()] == ["agreement"]
    assert "on_drift failed" in caplog.text


def test_callers_do_not_wait_for_an_original_that_hangs_and_what_it_misses_is_counted(example):
    gate = threading.Event()

    def hang(x):
        gate.wait()
        return classes(x)

    member = load_member(example)
    model = ServedModel(
        [Member("a", member.manifest, Answering(classes))], original=Original(Answering(hang)), options=ALL
    )
    with model:
        for _ in range(100):
            model.run(X)
        dropped = model.n_shadows_dropped
        gate.set()
    assert 100 - 17 - 1 <= dropped < 100  # sixteen wait, one is being run


def test_an_original_of_another_model_is_refused(example, tmp_path):
    (tmp_path / "other.onnx").write_bytes(example_artifact(n_classes=5).model)
    (tmp_path / "wider.onnx").write_bytes(example_artifact(n_features=16).model)
    with pytest.raises(SpecError, match="they are of different models"):
        trimtab.serve(example, original=tmp_path / "other.onnx")
    with pytest.raises(SpecError, match="does not take the inputs"):
        trimtab.serve(example, original=tmp_path / "wider.onnx")
    with pytest.raises(ArtifactError, match=r"must be an \.onnx file"):
        trimtab.serve(example, original=example / "policy.json")


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (ServeOptions, {"tolerance": -1.0}),
        (ServeOptions, {"agreement_tolerance": 2.0}),
        (ServeOptions, {"n_slots": 0}),
        (Sampling, {"inputs_per_s": -1.0}),
        (Sampling, {"shadow_fraction": 1.1}),
    ],
)
def test_options_that_mean_nothing_are_refused(kind, wrong):
    with pytest.raises(SpecError, match="must hold"):
        kind(**wrong)


def test_calls_side_by_side_are_counted_and_not_held_against_the_promise():
    recorder = Recorder(1, Sampling(), frozenset())
    begun_and_ended = [100, (0, 100, 100, 150), 200, 210, (0, 200, 200, 260), (0, 210, 210, 300), 400, -400, 500]
    recorder.events.extend(begun_and_ended)
    assert recorder.take_latencies() == [[50]]  # the other two ran at once
    recorder.events.append((0, 450, 500, 580))
    assert recorder.take_latencies() == [[80]]
    assert (recorder.n_failed, recorder.read_answers().count, recorder.read_answers().sum_ns) == (1, 4, 330)


@pytest.mark.parametrize(("rate_per_s", "share"), [(10.0, 0.25), (4000.0, 0.025)])
def test_inputs_are_sampled_at_most_so_often_and_a_share_of_the_calls_at_most(rate_per_s, share):
    rhythm, n_looked_at, n_calls = _Rhythm("test", fraction=0.25, most_per_s=100.0), 0, 40_000
    for number in range(n_calls):
        if number % 100 == 0:
            rhythm.plan(number, rate_per_s)
        if number >= rhythm.due:
            rhythm.advance(number)
            n_looked_at += 1
    assert n_looked_at / n_calls == pytest.approx(share, rel=0.15)


@pytest.mark.parametrize("p99_s", [0.0, -1.0, float("nan")])
def test_a_bound_must_be_more_than_nothing(example, p99_s):
    with pytest.raises(SpecError, match="p99_s must be more than 0"):
        trimtab.serve(example, p99_s=p99_s)


@pytest.fixture
def policy_set(tmp_path):
    write = [
        (name, lambda folder, median_s=median_s: write_example(folder, median_s=median_s))
        for name, median_s in (("0-slow", 0.02), ("1-fast", 0.005))
    ]
    write_policy_set(tmp_path / "set", write)
    return tmp_path / "set"


def test_a_set_is_served_under_a_bound(policy_set):
    assert [folder.name for folder in read_policy_set(policy_set)] == ["0-slow", "1-fast"]
    with trimtab.serve(policy_set, p99_s=1.0) as model:
        assert model.run(X)[0].shape == (1, 3)
        assert (model.policies, model.level) == (("0-slow", "1-fast"), 0)
    with pytest.raises(SpecError, match="give the bound p99_s"):
        trimtab.serve(policy_set)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (lambda s: edit(s / "1-fast" / "manifest.json", lambda c: c.update(profile={})), "was altered"),
        (lambda s: (s / "1-fast" / "model.onnx").write_bytes(b""), "was altered"),
        (lambda s: edit(s / "set.json", lambda c: c.update(kind="other")), "not a policy set"),
        (lambda s: edit(s / "set.json", lambda c: c.update(schema=9)), "reads schema 1"),
        (lambda s: edit(s / "set.json", lambda c: c["policies"][0].update(folder="../set/0-slow")), "plain folder"),
        (lambda s: edit(s / "set.json", lambda c: c["policies"][0].update(folder="..")), "plain folder"),
        (lambda s: edit(s / "set.json", lambda c: c["policies"].reverse()), "slowest first"),
        (lambda s: edit(s / "set.json", lambda c: c.update(policies=[])), "must name"),
        (lambda s: edit(s / "set.json", lambda c: c.update(policies=[{}])), "is damaged"),
        (lambda s: shutil.rmtree(s / "0-slow"), "not a folder"),
    ],
)
def test_a_set_that_was_altered_is_not_served(policy_set, tamper, words):
    tamper(policy_set)
    with pytest.raises(ArtifactError, match=words):
        trimtab.serve(policy_set, p99_s=1.0)


def test_a_set_is_written_as_a_whole_or_not_at_all(policy_set, tmp_path):
    def fail(folder):
        raise OSError("no space left on device")

    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(OSError, match="no space left"):
        write_policy_set(policy_set, [("0", write_example), ("1", fail)])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "notes").mkdir()
    with pytest.raises(ArtifactError, match="is not a policy set"):
        write_policy_set(tmp_path / "notes", [("0", write_example)])
