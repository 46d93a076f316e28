import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.core.errors import DataError, SpecError
from trimtab.core.files import (
    MAX_TEXT_BYTES,
    canonical_json,
    read_json,
    read_text,
    sha256_file,
    short_digest,
    write_bytes,
    write_json,
)
from trimtab.core.imports import import_object
from trimtab.core.names import describe_unknown
from trimtab.core.registry import Registry

_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(st.dictionaries(st.text(), _json_values, max_size=4), st.randoms())
def test_the_order_of_keys_changes_no_digest(value, random):
    items = list(value.items())
    random.shuffle(items)
    assert canonical_json(dict(items)) == canonical_json(value)
    assert short_digest(dict(items)) == short_digest(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")]])
def test_numbers_that_are_none_have_no_canonical_json(value):
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json(value)


def test_json_survives_the_file_system(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"b": [1, None, "ä"]})
    assert read_json(tmp_path / "new" / "a.json", noun="file") == {"b": [1, None, "ä"]}


def test_the_digest_of_a_file_is_that_of_sha256sum(tmp_path):
    write_bytes(tmp_path / "a", b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    write_bytes(tmp_path / "a", b"old")
    with pytest.raises(TypeError):
        write_bytes(tmp_path / "a", "text")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_written_files_can_be_read_by_others(tmp_path):
    write_bytes(tmp_path / "a", b"")
    assert os.stat(tmp_path / "a").st_mode & 0o777 == 0o644  # noqa: PTH116 - the bits are what is tested


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "policy .* is not JSON"),
        (b"\xff\xfe", "policy .* cannot be read"),
        (b"[" * 100_000, "policy .* is not JSON"),
        (b"1" * 10_000, "policy .* is not JSON"),
    ],
    ids=["cut off", "not UTF-8", "too deep", "too long a number"],
)
def test_what_is_no_json_is_an_error_of_the_users_kind(content, message, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_json(tmp_path / "a.json", noun="policy", error=DataError)


def test_files_that_are_missing_folders_or_too_large_are_refused(tmp_path):
    with pytest.raises(SpecError, match=r"spec .*nowhere does not exist"):
        read_text(tmp_path / "nowhere", noun="spec")
    with pytest.raises(SpecError, match=r"spec .* cannot be read"):
        read_text(tmp_path, noun="spec")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(MAX_TEXT_BYTES + 1)  # sparse
    with pytest.raises(SpecError, match=f"has {MAX_TEXT_BYTES + 1} bytes; at most {MAX_TEXT_BYTES} are read"):
        read_text(tmp_path / "large", noun="spec")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("json", "reader 'json' must be written module:name"),
        ("json:", "must be written module:name"),
        (":loads", "must be written module:name"),
        ("jsom:loads", "reader 'jsom:loads': module 'jsom' does not import: ModuleNotFoundError"),
        ("json:load_all", "reader 'json:load_all': module 'json' has no 'load_all'"),
        ("json:decoder.nothing", "has no 'decoder.nothing'"),
    ],
)
def test_a_path_that_names_no_object_is_refused(path, message):
    with pytest.raises(SpecError, match=message):
        import_object(path, noun="reader")


def test_an_object_inside_an_object_is_imported():
    assert import_object("json:JSONDecoder.decode", noun="reader").__name__ == "decode"


def test_modules_of_the_current_folder_are_imported(tmp_path, monkeypatch):
    (tmp_path / "a_module_of_the_user.py").write_text("build = 3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    assert import_object("a_module_of_the_user:build", noun="model") == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("red", "unknown colour 'red'; did you mean 'reed'? known: blue, reed"),
        ("x", "unknown colour 'x'; known: blue, reed"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_and_all(name, message):
    assert describe_unknown("colour", name, ["reed", "blue"]) == message


def test_where_nothing_is_known_the_message_says_so():
    assert describe_unknown("colour", "red", []) == "unknown colour 'red'; known: none"


def _colours():
    return Registry("colour", "trimtab.no_such_group", {"upper": "builtins:str.upper"})


def test_a_registry_gives_what_was_added_built_in_or_named_by_path():
    registry = _colours()
    registry.add("lower", str.lower)
    assert list(registry) == ["lower", "upper"]
    found = [registry.get(name)("Red") for name in ("lower", "upper", "builtins:len")]
    assert found == ["red", "RED", 3]


@pytest.mark.parametrize("name", ["upper", "lower"])
def test_nothing_in_a_registry_is_overwritten(name):
    registry = _colours()
    registry.add("lower", str.lower)
    with pytest.raises(SpecError, match=f"a colour named '{name}' exists already"):
        registry.add(name, str.title)


def test_a_registry_names_what_it_knows():
    with pytest.raises(SpecError, match="unknown colour 'uper'; did you mean 'upper'\\? known: upper"):
        _colours().get("uper")
