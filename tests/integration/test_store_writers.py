"""Processes that write to one store at once lose nothing; one that is killed leaves a store that can be read."""

import subprocess
import sys
from pathlib import Path

import pytest
from trimtab import PolicyStore

GOLDEN = Path(__file__).parent.parent / "golden" / "artifact-v1"
N_WRITERS, N_EACH, N_KILLS = 2, 44, 10

PREPARE = """
import sys
from dataclasses import replace
from pathlib import Path
from trimtab import PolicyStore
from trimtab.experiments.policy_file import load_policy

root, golden, who = sys.argv[1:4]
policy = load_policy(Path(golden) / "policy.json")
store = PolicyStore(root, who=who)


def publish(n):
    path = Path(root).with_name(f"{who}-{n}.json")
    replace(policy, origin={"run": f"{who}-{n}"}).save(path)
    return store.publish(path, name="tiny", why=str(n)).id

"""
#: waits for a line, so that all begin together; tells what it did, line by line
WRITER = (
    PREPARE
    + """
print("ready", flush=True)
sys.stdin.readline()
for n in range(int(sys.argv[4])):
    version = publish(n)
    print("publish", version, flush=True)
    store.promote("tiny", version, why=str(n))
    print("promote", version, flush=True)
    if n % 3 == 2:
        store.rollback("tiny")
        print("rollback", "", flush=True)
"""
)
#: processes that are killed some time after they said a few things, in the middle of the next
VICTIMS = (
    PREPARE
    + """
import os, random, signal, time
rng = random.Random(0)
for k in range(int(sys.argv[4])):
    ear, mouth = os.pipe()
    victim = os.fork()
    if not victim:
        for n in range(k * 1000, (k + 1) * 1000):
            os.write(mouth, f"publish {(version := publish(n))}\\n".encode())
            store.promote("tiny", version)
            os.write(mouth, f"promote {version}\\n".encode())
    os.close(mouth)
    with open(ear) as said:
        for _ in range(rng.randint(0, 4)):
            print(said.readline(), end="")
        time.sleep(rng.uniform(0.0, 0.02))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        print(said.read(), end="")
    assert all(not shelf.damages for shelf in PolicyStore(root).shelves())
"""
)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


def start(script, *arguments):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process):
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    return [tuple(line.split(" ")) for line in stdout.splitlines()]


@pytest.mark.slow
def test_two_processes_that_write_at_once_lose_nothing(root):
    writers = [start(WRITER, root, GOLDEN, f"writer{n}", N_EACH) for n in range(N_WRITERS)]
    assert [writer.stdout.readline() for writer in writers] == ["ready\n"] * N_WRITERS
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    done = [event for writer in writers for event in finish(writer)]
    shelf = PolicyStore(root).shelf("tiny")
    events = list(shelf.events.values())
    assert shelf.damages == ()
    assert len(events) == N_WRITERS * (2 * N_EACH + N_EACH // 3)
    assert len(shelf.versions) == N_WRITERS * N_EACH
    for action in ("publish", "promote"):
        acted = sorted(event.version for event in events if event.action == action)
        assert acted == sorted(version for did, version in done if did == action)
    for writer in range(N_WRITERS):  # what one writer did stands in the order in which it did so
        mine = [event.why for event in events if event.who == f"writer{writer}" and event.action == "publish"]
        assert mine == [str(n) for n in range(N_EACH)]
    assert shelf.production.id == [event.version for event in events if event.action != "publish"][-1]
    concurrent = len(events) - len({name[:8] for name in shelf.events})
    assert concurrent > 0, "the writers never met; nothing was tested"


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_what_it_finished_and_nothing_half(root, tmp_path):
    done = finish(start(VICTIMS, root, GOLDEN, "victim", N_KILLS))
    store = PolicyStore(root)
    shelf = store.shelf("tiny")
    known = [(event.action, event.version) for event in shelf.events.values()]
    assert shelf.damages == ()
    assert set(done) <= set(known)
    # an event may have been written by one that was killed before it could say so
    assert len(known) <= len(done) + N_KILLS
    for version in shelf.versions:
        store.check(shelf, version)
    assert store.fetch("tiny", out=tmp_path / "out") == shelf.production
    store.publish(GOLDEN, name="tiny")
    assert store.promote("tiny", target=shelf.target).damages == ()
