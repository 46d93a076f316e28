"""What an agent lets in, and what it says to everything else."""

import hashlib
import json
import socket
import uuid
from dataclasses import asdict, replace

import httpx
import numpy as np
import onnx
import onnx.reference
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from trimtab.core.errors import SpecError
from trimtab.evaluators.latency import TimingSettings
from trimtab.evaluators.remote.address import Address, check_url
from trimtab.evaluators.remote.agent_bench import AgentBench, RecentlyUsed
from trimtab.evaluators.remote.lease import LeaseDesk
from trimtab.evaluators.remote.server import AgentSettings
from trimtab.evaluators.remote.testing import run_agent
from trimtab.evaluators.remote.tokens import TokenKeeper, issue_token, read_tokens
from trimtab.evaluators.remote.wire import Settings
from trimtab.evaluators.testing import example_artifact

MODEL = example_artifact().model
SHA256 = hashlib.sha256(MODEL).hexdigest()
NAME = {"sha256": SHA256, "precision": "float32", "dynamic_activations": False, "full_precision": []}
X = np.ones((1, 8), np.float32)
QUICK = {"warm_up_runs": 1, "min_runs": 5, "max_runs": 5, "min_time_s": 0.0, "max_time_s": 1.0, "max_spread": 1.0,
         "max_uncertainty": 1.0, "max_drift": 1.0, "attempts": 1, "lock_timeout_s": 60.0}  # fmt: skip
RUN = {"kind": "run", "artifacts": [NAME], "threads": 1, "batch_size": 1, "inputs": ["x"], "n_batches": 1,
       "settings": None}  # fmt: skip
TIME = {**RUN, "kind": "time", "artifacts": [NAME, None], "settings": QUICK}
#: leases to give back after a test
TAKEN = []
PATHS = [
    ("GET", "/v1/capabilities?threads=1&batch_size=1"), ("HEAD", f"/v1/artifacts/{SHA256}"),
    ("PUT", f"/v1/artifacts/{SHA256}"), ("PUT", f"/v1/leases/{'a' * 32}"), ("DELETE", f"/v1/leases/{'a' * 32}"),
    ("PUT", f"/v1/orders/{'a' * 32}"), ("GET", "/nowhere"),
]  # fmt: skip


@pytest.fixture(scope="module")
def bench():
    return AgentBench("onnxruntime", "cpu")


@pytest.fixture(scope="module")
def running(bench, tmp_path_factory):
    limits = AgentSettings(max_artifact_bytes=100_000, max_order_bytes=10_000)
    with run_agent(bench, tmp_path_factory.mktemp("agent"), settings=limits) as running:
        yield running


@pytest.fixture
def tokens(running):
    return running.tokens


@pytest.fixture
def client(running):
    bearer = {"Authorization": f"Bearer {running.token}"}
    with httpx.Client(base_url=running.url, headers=bearer, trust_env=False, timeout=30.0) as client:
        client.put(f"/v1/artifacts/{SHA256}", content=MODEL)
        yield client
    with httpx.Client(base_url=running.url, headers=bearer, trust_env=False) as client:
        while TAKEN:
            client.delete(f"/v1/leases/{TAKEN.pop()}")


def pack(order, *arrays):
    body = np.frombuffer(json.dumps(order).encode(), np.uint8)
    return save({"order": body, **{str(i): array for i, array in enumerate(arrays)}})


def send(client, order, *arrays, lease=None, order_id=None):
    headers = {} if lease is None else {"X-Trimtab-Lease": lease}
    return client.put(f"/v1/orders/{order_id or uuid.uuid4().hex}", content=pack(order, *arrays), headers=headers)


def take_lease(client):
    lease = uuid.uuid4().hex
    TAKEN.append(lease)
    return lease, client.put(f"/v1/leases/{lease}").status_code


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_wrong_missing_and_expired_tokens_are_refused_with_one_answer_that_tells_nothing(client, tokens, method, path):
    expired = issue_token(tokens, valid_s=1.0, now_s=1.0)
    right = client.headers["Authorization"]
    attempts = ["", "Bearer", "Bearer wrong", f"Bearer {expired}", right[:-1], right + "x", "Basic" + right[6:],
                "Bearer \xff"]  # fmt: skip
    answers = {
        (answer.status_code, answer.content, tuple(sorted(set(answer.headers) - {"x-trimtab-boot"})))
        for attempt in attempts
        for answer in [client.request(method, path, headers={"Authorization": attempt.encode("latin-1")}, content=b"!")]
    }
    client.headers.pop("Authorization")
    missing = client.request(method, path)
    assert {answer[0] for answer in answers} == {missing.status_code} == {401}
    assert {answer[1] for answer in answers} == {missing.content}
    assert len(answers) == 1


def test_everybody_may_ask_whether_the_agent_lives(client):
    client.headers.pop("Authorization")
    answer = client.get("/v1/health")
    assert (answer.status_code, answer.json()["status"], set(answer.json())) == (
        200,
        "ok",
        {"status", "protocol", "boot"},
    )


def test_a_token_is_nowhere_in_its_file_and_ends_when_it_says(tmp_path):
    tokens = tmp_path / "tokens.json"
    token = issue_token(tokens, valid_s=60.0, now_s=1000.0)
    assert token not in tokens.read_text()
    assert [entry.sha256 for entry in read_tokens(tokens)] == [hashlib.sha256(token.encode()).hexdigest()]
    now_s = [1059.0]
    keeper = TokenKeeper(tokens, clock=lambda: now_s[0])
    assert keeper.admits(f"Bearer {token}")
    now_s[0] = 1060.0
    assert not keeper.admits(f"Bearer {token}")


def test_a_running_agent_learns_of_new_tokens_and_of_those_that_are_taken_back(tmp_path):
    tokens = tmp_path / "tokens.json"
    first = issue_token(tokens, valid_s=60.0)
    keeper = TokenKeeper(tokens)
    second = issue_token(tokens, valid_s=60.0)
    assert keeper.admits(f"Bearer {second}")
    content = json.loads(tokens.read_text())
    tokens.write_text(json.dumps({**content, "tokens": content["tokens"][1:]}))
    assert not keeper.admits(f"Bearer {first}")
    assert keeper.admits(f"Bearer {second}")
    tokens.write_text("damaged")
    assert not keeper.admits(f"Bearer {second}")


HEAD = '{"kind": "trimtab-agent-tokens", "schema": 1, "tokens": '
BAD_ENTRIES = ["1}", "[1]}", '[{"sha256": "é", "expires": "2030-01-01T00:00:00+00:00"}]}']


@pytest.mark.parametrize("content", ["{}", "[]", *(HEAD + entries for entries in BAD_ENTRIES)])
def test_a_file_of_something_else_lets_no_agent_start(tmp_path, content):
    tokens = tmp_path / "tokens.json"
    tokens.write_text(content)
    with pytest.raises(SpecError, match="tokens"):
        TokenKeeper(tokens)


def test_outputs_of_several_batches_are_those_of_the_reference(client):
    batches = [np.full((1, 8), value, np.float32) for value in (0.5, -1.0, 2.0)]
    answer = send(client, {**RUN, "n_batches": 3}, *batches)
    found = load(answer.content)
    reference = onnx.reference.ReferenceEvaluator(onnx.load_model_from_string(MODEL))
    assert json.loads(found["order"].tobytes()) == {"n_outputs": 1}
    for position, batch in enumerate(batches):
        np.testing.assert_allclose(found[str(position)], reference.run(None, {"x": batch})[0], rtol=1e-4, atol=1e-5)


def test_an_order_that_is_sent_again_is_carried_out_once(client):
    lease, _ = take_lease(client)
    order_id = uuid.uuid4().hex
    first, again = (send(client, TIME, X, lease=lease, order_id=order_id) for _ in range(2))
    other = send(client, TIME, X, lease=lease)
    assert (first.status_code, again.content, other.content == first.content) == (200, first.content, False)
    assert load(first.content)["0"].shape == (5, 2)
    assert send(client, RUN, X, lease=lease, order_id=order_id).status_code == 422  # another order under this id


def test_nothing_is_measured_without_the_lease_and_nothing_disturbs_its_holder(client):
    assert send(client, TIME, X).status_code == 409
    lease, status = take_lease(client)
    assert (status, take_lease(client)[1]) == (200, 409)
    disturbances = [send(client, RUN, X), send(client, TIME, X), client.put(f"/v1/artifacts/{SHA256}", content=MODEL),
                    send(client, RUN, X, lease="b" * 32)]  # fmt: skip
    assert [answer.status_code for answer in disturbances] == [409] * 4
    assert {answer.headers["Retry-After"] for answer in disturbances} == {"1"}
    assert send(client, RUN, X, lease=lease).status_code == 200
    client.delete(f"/v1/leases/{'b' * 32}")  # somebody else's
    assert take_lease(client)[1] == 409
    client.delete(f"/v1/leases/{lease}")
    assert take_lease(client)[1] == 200


def test_a_lease_ends_by_silence_and_lasts_by_use():
    now_s = [0.0]
    desk = LeaseDesk(lease_s=30.0, clock=lambda: now_s[0])
    assert desk.take("a")
    now_s[0] = 29.0
    assert (desk.renew("a"), desk.take("b"), desk.renew("b"), desk.renew(None)) == (True, False, False, False)
    now_s[0] = 58.0
    assert not desk.take("b")
    now_s[0] = 59.0
    assert (desk.renew("a"), desk.take("b")) == (False, True)


@pytest.mark.parametrize(
    ("path", "limit"), [("/v1/artifacts/" + "a" * 64, 100_000), ("/v1/orders/" + "a" * 32, 10_000)]
)
def test_bodies_beyond_their_limit_are_refused_whether_they_say_their_length_or_not(client, path, limit):
    def pieces():
        for _ in range(limit // 1000 + 1):
            yield bytes(1000)

    assert client.put(path, content=bytes(limit + 1)).status_code == 413
    assert client.put(path, content=pieces()).status_code == 413


@pytest.mark.parametrize("length", ["100001", "9" * 18])
def test_a_length_beyond_the_limit_is_refused_before_anything_of_it_is_sent(running, length):
    head = f"PUT /v1/artifacts/{SHA256} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {running.token}\r\n"
    with socket.create_connection(("127.0.0.1", httpx.URL(running.url).port), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def outside(model):
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def outside_in_a_branch(model):
    inner = onnx.helper.make_graph([], "inner", [], [])
    inner.initializer.append(onnx.numpy_helper.from_array(np.ones(1, np.float32), "w"))
    inner.initializer[0].external_data.add(key="location", value="w.bin")
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("body", inner))


def compiled(model):
    model.graph.node.append(onnx.helper.make_node("EPContext", [], ["y"], domain="com.microsoft", embed_mode=0))


@pytest.mark.parametrize("change", [outside, outside_in_a_branch, compiled])
def test_models_that_read_other_files_are_refused(client, change):
    model = onnx.load_model_from_string(MODEL)
    change(model)
    content = model.SerializeToString()
    digest = hashlib.sha256(content).hexdigest()
    answer = client.put(f"/v1/artifacts/{digest}", content=content)
    assert (answer.status_code, client.head(f"/v1/artifacts/{digest}").status_code) == (422, 404)


def test_another_sha256_and_what_is_no_model_are_refused(client):
    assert client.put(f"/v1/artifacts/{'0' * 64}", content=MODEL).status_code == 422
    garbage = b"\xff" * 10
    assert client.put(f"/v1/artifacts/{hashlib.sha256(garbage).hexdigest()}", content=garbage).status_code == 422


def test_an_unknown_artifact_is_asked_for_and_a_repeated_order_then_works(client):
    model = example_artifact(8, 5).model
    name = {**NAME, "sha256": hashlib.sha256(model).hexdigest()}
    order, order_id = {**RUN, "artifacts": [name]}, uuid.uuid4().hex
    before = send(client, order, X, order_id=order_id)
    assert (before.status_code, before.json()["error"]) == (404, "unknown_artifact")
    assert client.put(f"/v1/artifacts/{name['sha256']}", content=model).status_code == 204
    assert load(send(client, order, X, order_id=order_id).content)["0"].shape == (1, 5)


def test_the_runtimes_own_words_come_back(client):
    answer = send(client, RUN, np.ones((1, 9), np.float32))
    assert (answer.status_code, answer.json()["error"]) == (422, "measurement")
    assert "onnxruntime fails to run the model" in answer.json()["detail"]


def test_the_cache_forgets_what_was_used_longest_ago():
    kept = RecentlyUsed(10)
    for name, size in (("a", 4), ("b", 4)):
        kept.put(name, name, size)
    kept.get("a")
    kept.put("c", "c", 4)
    assert [kept.get(name) for name in "abc"] == ["a", None, "c"]
    kept.put("large", "large", 99)
    assert [kept.get(name) for name in ("a", "c", "large")] == [None, None, "large"]


@pytest.mark.parametrize("runtime", ["trimtab.evaluators.testing:SimulatedDevice", "lut", "abacus"])
def test_an_agent_offers_nothing_that_cannot_be_timed(runtime):
    with pytest.raises(SpecError):
        AgentBench(runtime, "cpu")


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([NAME, QUICK]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*RUN, "x"]), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
_ARRAYS = st.sampled_from(
    [X, X.astype(np.float64), np.ones(3, bool), np.array(1, np.float32), np.ones((0, 8), np.float32)]
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    base=st.sampled_from([RUN, TIME, {**RUN, "kind": "peak_memory", "artifacts": [None]}]),
    changes=st.dictionaries(st.sampled_from([*RUN, "more"]), _VALUES, max_size=2),
    arrays=st.lists(_ARRAYS, max_size=2), tail=st.binary(max_size=20), leased=st.booleans(),
)  # fmt: skip
def test_no_order_whatever_is_in_it_is_the_servers_fault(client, base, changes, arrays, tail, leased):
    lease = take_lease(client)[0] if leased else None
    body = pack({**base, **changes}, *arrays)
    body = body[: len(body) - len(tail)] + tail if len(tail) % 2 else body
    headers = {} if lease is None else {"X-Trimtab-Lease": lease}
    answer = client.put(f"/v1/orders/{uuid.uuid4().hex}", content=body, headers=headers)
    assert answer.status_code in (200, 404, 409, 413, 422), answer.content
    if lease is not None:
        client.delete(f"/v1/leases/{lease}")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    method=st.sampled_from(["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH"]),
    path=st.sampled_from([path.partition("?")[0] for _, path in PATHS])
    | st.text("/v1ordesaf0%.?&=é", max_size=30).map("/v1/{}".format),
    query=st.text("threads=batch_size&0123456789-.é", max_size=30), body=st.binary(max_size=64),
)  # fmt: skip
def test_no_request_whatever_is_in_it_is_the_servers_fault(client, method, path, query, body):
    answer = client.request(method, f"{path}?{query}", content=body)
    assert answer.status_code < 500, answer.content
    client.delete(f"/v1/leases/{'a' * 32}")


@pytest.mark.parametrize(
    "query", ["", "threads=1", "threads=0&batch_size=1", "threads=1&batch_size=99999", "threads=x&batch_size=1"]
)
def test_settings_that_make_no_sense_are_refused(client, query):
    assert client.get(f"/v1/capabilities?{query}").status_code == 422


def test_capabilities_are_those_of_the_runtime(client, bench):
    answer = client.get("/v1/capabilities?threads=2&batch_size=3").json()
    device = bench.device(2, 3)
    assert answer["profile"] == json.loads(json.dumps(device.identify().to_json()))
    assert answer["profile"]["target"] == {"runtime": "onnxruntime", "device": "cpu", "threads": 2, "batch_size": 3}
    assert {option: set(kinds) for option, kinds in answer["capabilities"]["quantize"].items()} == {
        option: set(kinds) for option, kinds in device.capabilities.quantize.items()
    }


def test_timing_settings_fit_what_an_agent_takes():
    for wanted in (TimingSettings(), replace(TimingSettings(), min_runs=100_000, max_runs=100_000)):
        assert Settings(**asdict(wanted)).to_settings() == wanted


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "board"])  # noqa: S104 - nothing is opened
def test_tokens_travel_unencrypted_between_machines_only_when_that_is_said(host):
    with pytest.raises(SpecError, match=r"without TLS everybody on the way reads the token.*--insecure"):
        Address(host)
    assert Address(host, allows_plain=True).is_exposed
    assert not any(Address(name).is_exposed for name in ("127.0.0.1", "::1", "localhost"))


@pytest.mark.parametrize("url", ["cpu", "board:8765", "ftp://board", "http://", "http://u:p@board", "http://board/path",
                                 "http://board?token=1", "http://board:99999", "http://bo\nard"])  # fmt: skip
def test_only_the_address_of_an_agent_may_stand_in_a_spec(url):
    with pytest.raises(SpecError, match="must be an agent's URL"):
        check_url(url)
