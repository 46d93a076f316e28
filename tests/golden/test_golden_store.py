"""A store that an earlier version wrote stays readable; the files here are never written again."""

from pathlib import Path

import pytest
from trimtab import PolicyStore

GOLDEN = Path(__file__).parent
#: as sha256sum and jq tell from the files
ARTIFACT = "9fd334b138f5a37c53dec1fb2e3a75453c1ad33ddbd24ae615ffbf6a8839e58f"
POLICY = "ce40ff9dcdfff482b936916802b943a75f8eae3053a423770c4084b7a591af93"


@pytest.fixture
def store():
    return PolicyStore(GOLDEN / "store-v1")


def test_the_history_of_a_store_is_kept(store):
    (shelf,) = store.shelves()
    assert shelf.damages == ()
    assert [(event.who, event.action, event.version, event.why) for event in shelf.events.values()] == [
        ("ada@golden", "publish", ARTIFACT, "first"),
        ("ada@golden", "promote", ARTIFACT, "released"),
        ("ada@golden", "publish", POLICY, "a policy alone"),
        ("bob@golden", "promote", POLICY, ""),
        ("bob@golden", "rollback", ARTIFACT, "too slow"),
    ]


def test_what_is_in_production_is_kept(store, tmp_path):
    assert store.fetch("tiny", out=tmp_path / "out").id == ARTIFACT
    for path in (GOLDEN / "artifact-v1").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_a_policy_alone_is_kept(store, tmp_path):
    store.fetch("tiny", POLICY[:8], out=tmp_path / "out")
    assert (tmp_path / "out" / "policy.json").read_bytes() == (GOLDEN / "policy-v1.json").read_bytes()
