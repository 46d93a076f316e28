"""Where the kernel table of a device is found: one that ships with the package, and the user's own that grows."""

import re
from pathlib import Path

from ...core.errors import TableError
from .kernel_table import KernelTable
from .table_file import read_table
from .table_identity import TableIdentity

#: the tables that ship with the package
SHIPPED_FOLDER = Path(__file__).parents[1] / "tables"


def table_name(identity: TableIdentity) -> str:
    """Returns the name of the file that holds a table of this identity: runtime and digest."""
    # a runtime's name comes from whoever registered it
    return f"{re.sub(r'[^A-Za-z0-9_.]', '-', identity.runtime).lstrip('.')}-{identity.id}.jsonl"


def user_table_path(identity: TableIdentity, cache: Path) -> Path:
    """Returns where the user's own table of this identity is kept; it need not exist.

    Args:
        identity: device, runtime and settings.
        cache: the folder in which Trimtab keeps what it makes.
    """
    return cache / "tables" / table_name(identity)


def read_shipped_table(identity: TableIdentity, folder: Path = SHIPPED_FOLDER) -> KernelTable | None:
    """Reads the table that ships for this very device, runtime and settings; None when none does.

    Raises:
        TableError: the file is damaged.
    """
    path = folder / table_name(identity)
    return read_table(path, expect=identity) if path.is_file() else None


def open_table(identity: TableIdentity, cache: Path, *, shipped: Path = SHIPPED_FOLDER) -> KernelTable:
    """Returns all that is known of this device: what ships, and what the user measured.

    Args:
        identity: device, runtime and settings.
        cache: the folder in which Trimtab keeps what it makes.
        shipped: the folder of the tables that ship.

    Returns:
        A table of its own, empty when nothing is known; what is added to it is not written anywhere.

    Raises:
        TableError: a file is damaged, of another schema version or of another identity.
    """
    table = read_shipped_table(identity, shipped)
    if table is None:
        table = KernelTable(identity)
    path = user_table_path(identity, cache)
    if path.exists():
        table.merge(read_table(path, expect=identity))
    return table


def find_related_table(identity: TableIdentity, cache: Path, *, shipped: Path = SHIPPED_FOLDER) -> KernelTable | None:
    """Returns the table of another device that is most like this one: the same runtime with the same settings.

    What it says is good for comparing policies, roughly; it is no promise. Damaged tables are passed over. None where
    no table comes near.

    Args:
        identity: device, runtime and settings that prices are wanted for.
        cache: the folder in which Trimtab keeps what it makes.
        shipped: the folder of the tables that ship.
    """
    found: list[tuple[int, str, KernelTable]] = []
    for path in list_tables(cache, shipped):
        try:
            table = read_table(path)
        except TableError:
            continue
        other = table.identity
        if (other.runtime, other.settings) == (identity.runtime, identity.settings) and other != identity:
            found.append((len({*other.features} & {*identity.features}), path.name, table))
    return max(found, key=lambda entry: entry[:2])[2] if found else None


def list_tables(cache: Path, shipped: Path = SHIPPED_FOLDER) -> tuple[Path, ...]:
    """Returns the files of all tables that ship, then those of the user, each sorted by name."""
    return tuple(path for folder in (shipped, cache / "tables") for path in sorted(folder.glob("*.jsonl")))
