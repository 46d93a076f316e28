"""Tables that ship and the user's own: one name for one identity, and both together."""

import pytest
from trimtab.core.errors import TableError
from trimtab.hw_profiles.kernels.kernel import KernelTiming
from trimtab.hw_profiles.kernels.shipped import (
    SHIPPED_FOLDER,
    list_tables,
    open_table,
    read_shipped_table,
    table_name,
    user_table_path,
)
from trimtab.hw_profiles.kernels.table_file import read_table, update_table, write_table
from trimtab.hw_profiles.kernels.table_identity import TableIdentity
from trimtab.hw_profiles.testing import synthetic_identity, synthetic_kernel, synthetic_table

HERE = synthetic_identity()
KERNEL = synthetic_kernel(100)


@pytest.fixture
def shipped(tmp_path):
    """A folder with the table that ships for the imaginary device."""
    write_table(tmp_path / "shipped" / table_name(HERE), synthetic_table())
    return tmp_path / "shipped"


def test_a_device_without_any_table_has_an_empty_one(tmp_path):
    assert len(open_table(HERE, tmp_path, shipped=tmp_path / "none")) == 0


def test_what_ships_is_found_by_identity(shipped, tmp_path):
    assert read_shipped_table(HERE, shipped) == open_table(HERE, tmp_path, shipped=shipped) == synthetic_table()
    assert read_shipped_table(synthetic_identity("1.32.0"), shipped) is None


def test_the_users_measurements_come_on_top(shipped, tmp_path):
    timing = KernelTiming(KERNEL, 1e-5, 1e-7, 30)
    update_table(user_table_path(HERE, tmp_path), lambda table: table.add([timing], "mine"), identity=HERE)
    table = open_table(HERE, tmp_path, shipped=shipped)
    assert KERNEL in table
    assert len(table) == len(synthetic_table()) + 1
    assert KERNEL not in read_shipped_table(HERE, shipped)


def test_a_file_under_a_wrong_name_is_refused(tmp_path):
    write_table(user_table_path(synthetic_identity("1.32.0"), tmp_path), synthetic_table())
    with pytest.raises(TableError, match="stale"):
        open_table(synthetic_identity("1.32.0"), tmp_path, shipped=tmp_path / "none")


def test_a_damaged_table_of_the_user_is_refused_with_the_remedy(shipped, tmp_path):
    path = user_table_path(HERE, tmp_path)
    write_table(path, synthetic_table())
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(TableError, match=r"truncated.*trimtab table repair"):
        open_table(HERE, tmp_path, shipped=shipped)


def test_a_runtimes_name_stays_within_the_folder(tmp_path):
    identity = TableIdentity("x", (), "../../my.module:Device", "1", {})
    assert user_table_path(identity, tmp_path).parent == tmp_path / "tables"
    assert user_table_path(identity, tmp_path).name == f"-..-my.module-Device-{identity.id}.jsonl"


def test_what_ships_is_listed_before_what_the_user_has(shipped, tmp_path):
    own = user_table_path(HERE, tmp_path)
    write_table(own, synthetic_table())
    assert list_tables(tmp_path, shipped) == (shipped / table_name(HERE), own)


@pytest.mark.parametrize("path", sorted(SHIPPED_FOLDER.glob("*.jsonl")), ids=lambda path: path.stem)
def test_a_table_that_ships_is_sound_and_found(path):
    table = read_table(path)
    assert path.name == table_name(table.identity)
    assert len(table) > 0
