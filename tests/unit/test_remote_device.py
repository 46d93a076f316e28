"""What a search believes of an agent, and what it does when an agent is slow, lies, dies or comes back."""

import json
import logging
import os
import subprocess
import threading
import uuid
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, save
from trimtab.core.errors import DeviceLostError, MeasurementError, SpecError
from trimtab.evaluators.accuracy import run_split
from trimtab.evaluators.dataset import Split
from trimtab.evaluators.device import build_device, build_recorded_device, describe_origin, find_address
from trimtab.evaluators.latency import TimingSettings, measure_together, time_together
from trimtab.evaluators.onnxruntime_device import OnnxRuntimeDevice
from trimtab.evaluators.remote.address import Address
from trimtab.evaluators.remote.agent_bench import AgentBench
from trimtab.evaluators.remote.believing import check_original, check_times
from trimtab.evaluators.remote.connection import Question
from trimtab.evaluators.remote.server import AgentSettings
from trimtab.evaluators.remote.testing import TamperedApp, run_agent
from trimtab.evaluators.resources import ResourceMeter, WantedResources, check_resources
from trimtab.evaluators.testing import example_artifact
from trimtab.evaluators.yardstick import Yardstick
from trimtab.hw_profiles.energy.energy_table import load_energy_table
from trimtab.hw_profiles.target import Target
from trimtab.search.attempt import failed_attempt

ARTIFACT = example_artifact()
X = {"x": np.random.default_rng(0).standard_normal((1, 8)).astype(np.float32)}
#: as quiet as any machine
LOOSE = TimingSettings(min_time_s=0.02, max_spread=1e3, max_uncertainty=1e3, max_drift=1e3)


class Way:
    """What the answers of the agent pass through just now."""

    tamper = None

    def __call__(self, *answer):
        return answer[2:] if self.tamper is None else self.tamper(*answer)


@pytest.fixture(scope="module")
def bench():
    return AgentBench("onnxruntime", "cpu")


@pytest.fixture(scope="module")
def shared(bench, tmp_path_factory):
    way = Way()
    with run_agent(bench, tmp_path_factory.mktemp("agent"), wrap=lambda app: TamperedApp(app, way)) as running:
        yield running, way


@pytest.fixture
def connect(bench, shared, tmp_path, monkeypatch):
    """Returns the device behind an agent whose answers pass through a function; options ask for an agent of its own."""
    monkeypatch.setenv("TRIMTAB_AGENT_PATIENCE_S", "5")
    running, way = shared
    with ExitStack() as stack:

        def start(tamper=None, *, bench=bench, **options):
            chosen = running
            way.tamper = tamper
            if options:
                chosen = stack.enter_context(
                    run_agent(bench, tmp_path, wrap=lambda app: TamperedApp(app, way), **options)
                )
            monkeypatch.setenv("TRIMTAB_AGENT_TOKEN", chosen.token)
            return build_device(Target("remote", chosen.url))

        yield start
    way.tamper = None


def change_arrays(change):
    """Tampers with the arrays of every answer to an order."""

    def tamper(method, path, status, body):
        if status != 200 or "/orders/" not in path:
            return status, body
        found = load(body)
        order = found.pop("order")
        arrays = change([found[str(i)] for i in range(len(found))])
        return status, save({"order": order, **{str(i): np.asarray(a, order="C") for i, a in enumerate(arrays)}})

    return tamper


def lie_in_times(change):
    """Tampers with times, which are float64 as no output of the model is."""
    return change_arrays(lambda arrays: [change(a.copy()) if a.dtype == np.float64 else a for a in arrays])


def set_one(value):
    def change(times):
        times[1, 1] = value
        return times

    return change


LIES_IN_TIMES = {
    "NaN": (set_one(np.nan), "finite"),
    "infinite": (set_one(np.inf), "finite"),
    "negative": (set_one(-1e-3), "at least"),
    "nothing": (set_one(0.0), "at least"),
    "too fast for any runtime": (lambda times: times * 0 + 1e-9, "at least"),
    "longer than what passed": (set_one(50.0), r"50 s of runs are stated, and only [\d.]+ s have passed"),
    "too few rounds": (lambda times: times[:4], "rounds"),
    "fewer rounds than the least": (lambda times: times[:7], "7 rounds end no sooner than after 120 s"),
    "more rounds than the most": (lambda times: np.full((2000, len(times[0])), 1e-6), "rounds"),
    "one executable less": (lambda times: times[:, :1], r"must be \(rounds, 2\)"),
    "flat": (lambda times: times.ravel(), r"must be \(rounds, 2\)"),
}


@pytest.mark.parametrize("lie", LIES_IN_TIMES)
def test_times_that_cannot_be_are_refused_with_the_agents_name(connect, lie):
    change, message = LIES_IN_TIMES[lie]
    device = connect(lie_in_times(change))
    executable = device.load(ARTIFACT)
    with pytest.raises(MeasurementError, match=message) as caught:
        measure_together([executable, executable], X, LOOSE)
    assert f"the answer of the agent at {device.connection.url} is not believed" in str(caught.value)


def test_a_model_that_takes_next_to_nothing_of_the_originals_time_is_not_believed():
    times = np.full((30, 2), 1e-2)
    times[:, 1] = 9e-7
    with pytest.raises(MeasurementError, match="of the original's time, got 9e-05 to 1"):
        check_times(times, 2, TimingSettings(), elapsed_s=10.0)


def test_rounds_that_ended_too_soon_for_the_least_time_are_refused():
    times = np.full((30, 2), 1e-6)
    settings = TimingSettings(min_time_s=0.3)
    assert check_times(times, 2, settings, elapsed_s=0.31) is times
    with pytest.raises(MeasurementError, match=r"30 rounds end no sooner than after 0\.3 s, and 0\.2 s passed"):
        check_times(times, 2, settings, elapsed_s=0.2)


LIES_IN_OUTPUTS = {
    "another shape": (lambda arrays: [a[:, :2] for a in arrays], r"must be float32 \[None, 3\], got float32 \[1, 2\]"),
    "another type": (lambda arrays: [a.astype(np.float64) for a in arrays], "must be float32"),
    "one more": (lambda arrays: [*arrays, *arrays], "1 outputs of 1 batches were to come, got 2"),
    "none": (lambda arrays: [], "were to come, got 0"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES_IN_OUTPUTS)
def test_outputs_that_the_model_does_not_declare_are_refused(connect, lie):
    change, message = LIES_IN_OUTPUTS[lie]
    executable = connect(change_arrays(change)).load(ARTIFACT)
    with pytest.raises(MeasurementError, match=message):
        executable.run(X)


@pytest.mark.parametrize(
    "change", [lambda a: a + 1, lambda a: a * np.nan, lambda a: a[:, ::-1]], ids=["off", "NaN", "turned"]
)
def test_an_agent_that_does_not_compute_the_original_is_refused_at_set_up(connect, change):
    device = connect(change_arrays(lambda arrays: [change(array) for array in arrays]))
    with pytest.raises(SpecError, match=f"the agent at {device.connection.url} does not compute the model"):
        check_original(device, device.load(ARTIFACT), ARTIFACT, X)


def test_an_honest_agent_passes_at_set_up(connect):
    device = connect()
    check_original(device, device.load(ARTIFACT), ARTIFACT, X)


def garble(reply):
    return lambda method, path, status, body: reply if "/orders/" in path else (status, body)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, b"\xff" * 40), "not a body of safetensors"),
        ((200, b"{}"), "not a body of safetensors"),
        ((200, bytes(200_001)), "must answer in at most 200000 bytes"),
        ((302, b""), "status 302"),
        ((418, b'{"error": "measurement", "detail": "\\u001b[31mred"}'), "refuses:  \\[31mred"),
    ],
    ids=["garbage", "JSON", "huge", "moved", "terminal codes"],
)
def test_answers_of_another_kind_are_refused(connect, reply, message, monkeypatch):
    monkeypatch.setattr("trimtab.evaluators.remote.dispatch.MAX_ANSWER_BYTES", 200_000)
    with pytest.raises(MeasurementError, match=message):
        connect(garble(reply)).load(ARTIFACT)


def in_capabilities(change):
    def tamper(method, path, status, body):
        if "capabilities" not in path:
            return status, body
        value = json.loads(body)
        change(value)
        return status, json.dumps(value).encode()

    return tamper


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.update(protocol=2),
        lambda value: value.pop("profile"),
        lambda value: value.update(more=1),
        lambda value: value["profile"].update(memory_bytes=float("inf")),
        lambda value: value["profile"].update(device="\x1b[2J"),
        lambda value: value["profile"]["target"].update(threads=2),
        lambda value: value["capabilities"]["quantize"].update(int8=["quantum"]),
        lambda value: value["capabilities"]["quantize"].pop("none"),
        lambda value: value["capabilities"].update(channel_multiple=0),
        lambda value: value["capabilities"].update(default_precision="float7"),
    ],
)
def test_an_agent_that_says_what_nobody_understands_is_refused(connect, change):
    with pytest.raises(SpecError, match=r"the agent at|no agent of this version"):
        connect(in_capabilities(change))


def test_many_samples_travel_in_few_requests_and_score_as_here(connect):
    paths = []
    device = connect(lambda method, path, status, body: (paths.append(path), (status, body))[1])
    executable = device.load(ARTIFACT)
    split = Split({"x": np.random.default_rng(1).standard_normal((130, 8)).astype(np.float32)})
    paths.clear()
    outputs = run_split(executable, split, batch_size=1)
    local = OnnxRuntimeDevice(Target("onnxruntime")).load(ARTIFACT)
    np.testing.assert_array_equal(outputs[0], run_split(local, split, batch_size=1)[0])
    assert len(paths) == 3  # 64, 64 and 2 samples


class CountingBench(AgentBench):
    """Notes the orders that it carries out."""

    def __init__(self):
        super().__init__("onnxruntime", "cpu")
        self.kinds = []

    def execute(self, order, arrays):
        self.kinds.append(order.kind)
        return super().execute(order, arrays)


def test_a_measurement_whose_answer_is_lost_is_not_made_again(connect):
    lost = []

    def lose(method, path, status, body):
        """Every first answer to an order is lost in a proxy."""
        if "/orders/" in path and path not in lost:
            lost.append(path)
            return 503, b""
        return status, body

    bench = CountingBench()
    executable = connect(lose, bench=bench, settings=AgentSettings()).load(ARTIFACT)
    latencies = measure_together([executable, Yardstick()], X, replace(LOOSE, attempts=1))
    # loading is asked for until it is known that the model is missing, and again when it is there
    assert bench.kinds == ["run", "run", "run", "time"]
    assert [latency.source for latency in latencies] == ["measured"] * 2
    assert latencies[1].median_s > 1e-4  # the yardstick ran over there


def test_an_agent_that_takes_its_time_is_asked_again_until_it_is_done(connect):
    statuses = []

    def note(method, path, status, body):
        statuses.append(status)
        return status, body

    device = connect(note, settings=AgentSettings(wait_s=0.02))
    executable = device.load(ARTIFACT)
    times = time_together([executable, executable], X, replace(LOOSE, min_time_s=0.3, max_runs=100_000))
    assert len(times) >= 30
    assert statuses.count(202) >= 3


def test_a_client_waits_for_the_lease_of_another_and_is_told_when_that_takes_too_long(connect):
    device = connect()
    executable = device.load(ARTIFACT)
    held = threading.Event()

    def lease(method):
        return device.connection.ask(Question(method, f"/v1/leases/{'c' * 32}")).status

    assert lease("PUT") == 200
    with pytest.raises(MeasurementError, match=r"another client has been measuring .* for more than 0\.1 s"):
        time_together([executable], X, replace(LOOSE, lock_timeout_s=0.1))
    release = threading.Timer(0.3, lambda: (held.set(), lease("DELETE")))
    release.start()
    assert len(time_together([executable], X, LOOSE)) >= 30
    assert held.is_set()
    release.join()


class Forgetful:
    """Another life of the agent answers each request, as if it died of every order."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def sign(message):
            if message["type"] == "http.response.start":
                headers = [pair for pair in message["headers"] if pair[0] != b"x-trimtab-boot"]
                message = {**message, "headers": [*headers, (b"x-trimtab-boot", uuid.uuid4().hex.encode())]}
            await send(message)

        await self.app(scope, receive, sign)


def test_a_model_of_which_the_agent_dies_again_and_again_fails_and_the_search_goes_on(bench, tmp_path, monkeypatch):
    def forget(method, path, status, body):
        return (404, b"") if "/orders/" in path else (status, body)

    with run_agent(bench, tmp_path, wrap=lambda app: Forgetful(TamperedApp(app, forget))) as running:
        monkeypatch.setenv("TRIMTAB_AGENT_TOKEN", running.token)
        device = build_device(Target("remote", running.url))
        with pytest.raises(
            MeasurementError, match="started again 3 times while it worked on one order; its runtime may die"
        ):
            device.load(ARTIFACT)


def test_peak_memory_is_measured_over_there_and_energy_is_not(connect):
    device = connect()
    meter = ResourceMeter(device, X, WantedResources(peak_memory=True))
    found = meter.measure(ARTIFACT, device.load(ARTIFACT)).peak_memory_bytes
    assert 10_000 < found < 100_000_000
    with pytest.raises(SpecError, match="energy is not measured through an agent"):
        check_resources(WantedResources(energy_table=load_energy_table()), device)
    with pytest.raises(SpecError, match="does not tell its kernels"):
        check_resources(WantedResources(peak_activation=True), device)


def test_what_is_measured_elsewhere_names_the_target_of_there(connect):
    device = connect()
    url = device.connection.url
    assert device.target == device.identify().target == Target("onnxruntime")
    assert find_address(device) == Target("remote", url)
    assert describe_origin(device) == {**device.identify().to_json(), "measured_through": url}
    local = OnnxRuntimeDevice(Target("onnxruntime"))
    assert (device.capabilities, device.identify().id) == (local.capabilities, local.identify().id)


def test_no_file_can_say_whom_the_token_is_shown_to():
    with pytest.raises(SpecError, match="no file may say whom to connect to"):
        build_recorded_device(Target("remote", "http://127.0.0.1:1"))


def test_a_dead_agent_is_lost_after_the_patience_and_ends_the_search(connect, monkeypatch):
    monkeypatch.setenv("TRIMTAB_AGENT_PATIENCE_S", "0.2")
    monkeypatch.setenv("TRIMTAB_AGENT_TOKEN", "any")
    with pytest.raises(DeviceLostError, match=r"the agent at http://127\.0\.0\.1:9 cannot be reached for 0\.2 s"):
        build_device(Target("remote", "http://127.0.0.1:9"))
    attempt = failed_attempt(0, DeviceLostError("gone"), 0.0)
    assert (attempt.is_transient, attempt.is_device_lost) == (True, True)


def test_a_token_that_expires_on_the_way_ends_the_search_and_a_wrong_one_begins_none(connect, tmp_path, monkeypatch):
    device = connect(settings=AgentSettings())
    executable = device.load(ARTIFACT)
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps({**json.loads(tokens.read_text()), "tokens": []}))
    with pytest.raises(DeviceLostError, match="refuses the token: it is wrong, or it has expired"):
        executable.run(X)
    monkeypatch.setenv("TRIMTAB_AGENT_TOKEN", "wrong")
    with pytest.raises(SpecError, match="refuses the token: it is wrong, or it has expired"):
        build_device(device.address)
    monkeypatch.delenv("TRIMTAB_AGENT_TOKEN")
    with pytest.raises(SpecError, match="needs the agent's token; set TRIMTAB_AGENT_TOKEN"):
        build_device(device.address)


def test_the_token_may_stand_in_a_file_and_is_never_logged(connect, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    device = connect()
    token = os.environ["TRIMTAB_AGENT_TOKEN"]
    (tmp_path / "token").write_text(f"{token}\n")
    monkeypatch.delenv("TRIMTAB_AGENT_TOKEN")
    monkeypatch.setenv("TRIMTAB_AGENT_TOKEN_FILE", str(tmp_path / "token"))
    build_device(device.address).load(ARTIFACT).run(X)
    assert "HTTP Request" in caplog.text
    assert token not in caplog.text
    assert token not in repr(vars(device)) + str(device.address) + json.dumps(describe_origin(device))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=board", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder / "cert.pem", folder / "key.pem"


def test_a_certificate_is_trusted_when_it_is_named_and_only_then(connect, certificate, monkeypatch):
    address = Address(port=0, certificate=certificate[0], key=certificate[1])
    with pytest.raises(SpecError, match=r"is not trusted.*name the file that holds it.*TRIMTAB_AGENT_CA"):
        connect(address=address)
    monkeypatch.setenv("TRIMTAB_AGENT_CA", str(certificate[0]))
    device = connect(address=address)
    assert device.connection.url.startswith("https://127.0.0.1:")
    assert device.load(ARTIFACT).run(X)[0].shape == (1, 3)


def test_half_a_certificate_is_refused(certificate, tmp_path):
    with pytest.raises(SpecError, match="both a certificate and its key"):
        Address(certificate=certificate[0])
    with pytest.raises(SpecError, match="does not exist"):
        Address(certificate=certificate[0], key=tmp_path / "none.pem")
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("garbage")
    with pytest.raises(SpecError, match="cannot be used"):
        run_agent(None, tmp_path, address=Address(certificate=garbage, key=garbage)).__enter__()
