"""A search on another machine's runtime ends as one here does, whatever becomes of the agent on the way."""

import asyncio
import json
import os
import signal
import subprocess
import threading
import time
from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest
import trimtab
from safetensors.numpy import load, save
from trimtab.core.errors import MeasurementError, SpecError
from trimtab.evaluators.remote.agent_bench import AgentBench
from trimtab.evaluators.remote.testing import TamperedApp, run_agent
from trimtab.evaluators.remote.tokens import issue_token
from trimtab.search.controller import SilentObserver

#: the yardstick at the end of each search is timed by the real clock
pytestmark = [pytest.mark.slow, pytest.mark.alone]

METERED = "tiny:MeteredDevice"
PLAIN_GRAPH = {"fusion": ["none"], "calibration": ["minmax"], "quantized_ops": [[]], "precision": ["float32"]}
N_TRIALS = 7
SPEC = {
    "search": {"algorithm": "random", "trials": N_TRIALS, "seed": 3},
    "space": [{"layers": "*", "quantize": ["none", "int8", "int8_weight", "float16"]}],
    "graph": PLAIN_GRAPH,
    "budget": {"accuracy_drop": 0.2, "latency": "0.9x"},
}
PATIENCE_S = 60.0
TOO_UNQUIET, N_ATTEMPTS = 4, 4
#: filled by the first who wants it
EXPECTED = []


class AgentProcess:
    """``trimtab agent`` as a process of its own, which keeps its port over its lives."""

    def __init__(self, place, runtime):
        self.place, self.runtime, self.port = place, runtime, 0
        self.token = issue_token(place.path / "tokens.json", valid_s=600.0)
        self.process = None
        self.start()
        self.port = int(self.url.rpartition(":")[2])

    def start(self):
        """Returns once it listens."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TRIMTAB_AGENT")}
        command = self.place.command("agent", "--tokens", "tokens.json", "--runtime", self.runtime, "--port", self.port)
        self.process = subprocess.Popen(
            command, cwd=self.place.path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.url = self.process.stdout.readline().split()[-1]

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE_S)
        self.process.stdout.close()


@pytest.fixture
def start_agent(workplace, monkeypatch):
    agents = []

    def start(runtime=METERED):
        agents.append(AgentProcess(workplace, runtime))
        monkeypatch.setenv("TRIMTAB_AGENT_TOKEN", agents[-1].token)
        return agents[-1]

    yield start
    for agent in agents:
        if agent.process.poll() is None:
            agent.kill()


@pytest.fixture
def start_thread(workplace, monkeypatch):
    """Starts an agent in this process, whose application is wrapped, and returns its URL."""
    with ExitStack() as stack:

        def start(wrap):
            running = stack.enter_context(run_agent(AgentBench(METERED, "cpu"), workplace.path, wrap=wrap))
            monkeypatch.setenv("TRIMTAB_AGENT_TOKEN", running.token)
            return running.url

        yield start


def read_journal(path):
    """The records by id, without what no two runs have in common: seconds of the trial, and how often it was timed."""
    records = {}
    for line in path.read_text().splitlines()[1:]:
        record = {**json.loads(line), "cost_s": None}
        record["measurement"].get("latency", {}).pop("runs", None)
        records[record["id"]] = record
    return records


def search(place, target, runs, observer=None, **parts):
    """Searches; the yardstick at the end is timed by the real clock, and again where the machine is too unquiet."""
    announced = []
    go = partial(trimtab.search, place.write_spec(**SPEC, **parts, target=target), runs=runs, announce=announced.append)
    for _ in range(N_ATTEMPTS):
        try:
            found = go(observer=observer)
            return found, read_journal(found.run / "journal.jsonl")
        except MeasurementError as error:
            cause = str(error)
            assert "must repeat" in cause
            go = partial(trimtab.resume, announced[0])
    return pytest.skip(f"this machine is too unquiet to time anything: {cause}")


@pytest.fixture
def expected(workplace):
    """The winner and the journal of the same search without an agent."""
    if not EXPECTED:
        EXPECTED[:] = search(workplace, {"runtime": METERED}, "here")
        assert EXPECTED[0].is_feasible
        assert len(EXPECTED[1]) == N_TRIALS
    return EXPECTED


def remote(url):
    return {"runtime": "remote", "device": url}


class AfterTrials(SilentObserver):
    """Does something when so many trials are in the journal."""

    def __init__(self, n_trials, act):
        self.n_left, self.act = n_trials, act

    def on_record(self, record, best):
        self.n_left -= 1
        if self.n_left == 0:
            self.act()


def test_an_agent_that_is_killed_and_started_again_changes_nothing(workplace, start_agent, expected):
    agent = start_agent()
    first_life = agent.process.pid
    rebirth = threading.Thread(target=agent.start)

    def die_and_return():
        agent.kill()
        rebirth.start()  # while the search finds nobody there

    found, journal = search(workplace, remote(agent.url), "there", AfterTrials(5, die_and_return))
    rebirth.join()
    assert agent.process.pid != first_life
    assert journal == expected[1]
    assert found.policy.policy == expected[0].policy.policy
    assert found.policy.target == expected[0].policy.target  # what runs there, not the way there
    token = agent.token.encode()
    files = [path for path in found.run.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if token in path.read_bytes()] == []


def test_a_dead_agent_ends_the_search_and_its_return_lets_it_go_on(workplace, start_agent, expected, monkeypatch):
    agent = start_agent()
    monkeypatch.setenv("TRIMTAB_AGENT_PATIENCE_S", "1")
    journal = workplace.path / "runs" / "tiny" / "journal.jsonl"
    process = workplace.start("search", workplace.write_spec(**SPEC, target=remote(agent.url)))
    deadline_s = time.monotonic() + PATIENCE_S
    while not journal.exists() or journal.read_bytes().count(b"\n") < 5:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s, "the search does not get on"
        time.sleep(0.01)
    agent.kill()
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 4
    assert f"the agent at {agent.url} cannot be reached for 1 s" in stderr
    assert "go on with: trimtab resume runs/tiny" in stderr
    kept = read_journal(journal)
    assert 4 <= len(kept) < N_TRIALS
    assert kept == {i: expected[1][i] for i in kept}  # nothing is FAILED for it
    before = journal.read_bytes()

    agent.start()
    ended = when_quiet(workplace, "resume", "runs/tiny")
    assert (ended.exit_code, ended.bug) == (0, None), ended.stderr
    assert journal.read_bytes().startswith(before)
    assert read_journal(journal) == expected[1]


class DelayedApp:
    """Answers every request late."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        await asyncio.sleep(0.03)
        await self.app(scope, receive, send)


def test_of_a_slow_agent_that_lies_about_some_times_those_trials_fail_and_the_others_stand(
    workplace, start_thread, expected
):
    lies = iter([False, True, False, False, True, *[False] * 1000])

    def lie(method, path, status, body):
        """Lies about some trials; two models are timed for each of them, one or many for anything else."""
        arrays = load(body) if status == 200 and "/orders/" in path else {}
        is_trial = "0" in arrays and arrays["0"].dtype == np.float64 and arrays["0"].shape[1] == 2
        # the original is timed first, together with the yardstick
        return (
            (status, save({**arrays, "0": np.full_like(arrays["0"], 60.0)}))
            if is_trial and next(lies)
            else (status, body)
        )

    found, journal = search(workplace, remote(start_thread(lambda app: TamperedApp(DelayedApp(app), lie))), "there")
    failed = {i: record["error"] for i, record in journal.items() if record["status"] == "FAILED"}
    assert set(failed) == {0, 3}
    assert all("is not believed" in error and "s of runs are stated" in error for error in failed.values())
    assert {i: record for i, record in journal.items() if i not in failed} == {
        i: record for i, record in expected[1].items() if i not in failed
    }
    assert found.is_feasible


def test_an_agent_that_computes_something_else_gets_no_search(workplace, start_thread):
    def lie(method, path, status, body):
        arrays = load(body) if status == 200 and "/orders/" in path else {}
        shifted = {name: array * 1.5 if array.dtype == np.float32 else array for name, array in arrays.items()}
        return (status, save(shifted)) if arrays else (status, body)

    url = start_thread(lambda app: TamperedApp(app, lie))
    with pytest.raises(SpecError, match=f"the agent at {url} does not compute the model"):
        trimtab.search(workplace.write_spec(**SPEC, target=remote(url)))


def test_processes_of_ray_share_an_agent(workplace, start_agent, expected):
    workers = {"address": "local", "count": 2}
    _, journal = search(workplace, remote(start_agent().url), "there", workers=workers)
    assert journal == expected[1]


def test_plan_and_devices_say_what_an_agent_offers(workplace, start_agent):
    agent = start_agent("onnxruntime")
    planned = workplace.call("plan", workplace.write_spec(**SPEC, target=remote(agent.url)))
    assert planned.exit_code == 0, planned.stderr
    assert "tiny on onnxruntime-cpu-1t-b1" in planned.stdout
    assert f"the agent at {agent.url} measures on its machine; kernel tables are not offered" in planned.stdout
    listed = workplace.call("devices", "--agent", agent.url, "--agent", "http://127.0.0.1:9/path")
    assert f"remote {agent.url}: onnxruntime " in listed.stdout
    assert "remote: target.device of the runtime remote must be an agent's URL" in listed.stdout


def test_what_an_agent_measured_is_verified_on_its_machine(workplace, start_agent, monkeypatch):
    agent = start_agent("onnxruntime")
    easy = {"model": "tiny:cnn", "data": "tiny:images", "search": {"trials": 5}, "budget": {"accuracy_drop": 0.99},
            "objective": "size"}  # fmt: skip
    spec = workplace.write_spec(**{**SPEC, **easy}, target=remote(agent.url))
    ended = when_quiet(workplace, "search", spec, "--json")
    assert ended.exit_code == 0, ended.stderr
    artifact = json.loads(ended.stdout)["artifact"]
    manifest, policy = (
        json.loads((workplace.path / artifact / name).read_text()) for name in ("manifest.json", "policy.json")
    )
    there = {"runtime": "onnxruntime", "device": "cpu", "threads": 1, "batch_size": 1}
    assert manifest["target"] == policy["target"] == manifest["profile"]["target"] == there
    assert manifest["profile"]["measured_through"] == agent.url
    assert manifest["promise"]["yardstick_s"] > 1e-5
    agent.kill()
    monkeypatch.delenv("TRIMTAB_AGENT_TOKEN")
    verified = when_quiet(workplace, "verify", artifact, "--json")
    assert verified.exit_code == 0, verified.stdout + verified.stderr
    assert {"outputs", "latency", "machine"} <= {check["name"] for check in json.loads(verified.stdout)["checks"]}


def when_quiet(place, *arguments):
    """Calls a command that times something, again where the machine was too unquiet for it."""
    for _ in range(N_ATTEMPTS):
        ended = place.call(*arguments)
        if ended.exit_code != TOO_UNQUIET:
            return ended
    return pytest.skip(f"this machine is too unquiet to time anything: {ended.stderr}")
