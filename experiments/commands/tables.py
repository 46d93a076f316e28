"""``trimtab table``: look at kernel tables, move them between machines of one kind, mend them."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .outcome import named_errors, open_console

if TYPE_CHECKING:
    from ...hw_profiles.kernels.kernel_table import KernelTable
    from ...hw_profiles.kernels.table_identity import Scalar, TableIdentity

#: sources that `show` lists before it only counts
_MAX_SOURCES = 20

app = typer.Typer(help="Show, move, merge and mend kernel tables.", no_args_is_help=True)

_File = Annotated[Path, typer.Argument(help="A kernel table.", show_default=False)]


@app.command()
def show(
    table: Annotated[
        Path | None, typer.Argument(help="A kernel table; without it, all that ship and all in the cache are listed.")
    ] = None,
) -> None:
    """Summarise a kernel table: whose it is, how many kernels per operator, graphs, sources."""
    with named_errors():
        if table is None:
            _list_all()
            return
        from ...hw_profiles.kernels.table_file import read_table

        _print_summary(table, read_table(table))


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")],
    runtime: Annotated[str, typer.Option(help="The runtime that the table is for.")] = "onnxruntime",
    device: Annotated[str, typer.Option(help="The target's device.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="The target's threads.")] = 1,
    setting: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, a further setting; may be repeated.")] = None,
) -> None:
    """Write all that is known of this device, shipped and measured, to one file."""
    with named_errors():
        from ...core.errors import TableError
        from ...hw_profiles.kernels.shipped import open_table
        from ..cache import cache_folder

        settings: dict[str, Scalar] = {"device": device, "threads": threads, **_parse_settings(setting or [])}
        identity = _identify(runtime, settings)
        table = open_table(identity, cache_folder())
        if not table.known_kernels():
            raise TableError(
                f"nothing is known of {runtime} with {_describe_settings(identity.settings)} on this device; "
                "measure it with: trimtab profile"
            )
        _write_new(out, table)
        _say(f"wrote {out}: {_describe_size(table)}")


@app.command("import")
def import_table(file: _File) -> None:
    """Add a table to this user's own; one of another device, runtime or settings is refused."""
    with named_errors():
        from ...hw_profiles.kernels.shipped import user_table_path
        from ...hw_profiles.kernels.table_file import read_table, update_table
        from ..cache import cache_folder

        found = read_table(file).identity
        here = _identify(found.runtime, found.settings)
        table = read_table(file, expect=here)
        path = user_table_path(here, cache_folder())
        whole = update_table(path, lambda own: own.merge(table), identity=here)
        _say(f"added {_describe_size(table)}; {path} now has {_describe_size(whole)}")


@app.command()
def merge(
    first: _File,
    second: _File,
    out: Annotated[Path, typer.Option(help="The file to write; it must not exist.")],
) -> None:
    """Write what two tables of one device, runtime and settings hold to one file."""
    with named_errors():
        from ...hw_profiles.kernels.table_file import read_table

        table = read_table(first)
        table.merge(read_table(second))
        _write_new(out, table)
        _say(f"wrote {out}: {_describe_size(table)}")


@app.command()
def repair(file: _File) -> None:
    """Write a damaged table anew from its intact lines; the damaged file is kept beside it."""
    with named_errors():
        from ...hw_profiles.kernels.table_file import repair_table

        salvage, aside = repair_table(file)
        if aside is None:
            _say(f"{file} is sound: {_describe_size(salvage.table)}")
            return
        _say(f"wrote {file} anew: {_describe_size(salvage.table)}")
        for loss in salvage.losses:
            _say(f"  {loss}")
        _say(f"the damaged file is kept as {aside}")


def _say(text: str) -> None:
    open_console().print(text, markup=False, soft_wrap=True)


@app.command("import-csv")
def import_csv(
    file: Annotated[Path, typer.Argument(help="Measured operators, one a line.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The kernel table to write; it must not exist.")],
    board: Annotated[Path | None, typer.Option(help="The board file that the table is for.")] = None,
    name: Annotated[str | None, typer.Option(help="The board's name, where there is no board file yet.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that the operators were measured with.")] = None,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Leave bad lines out.")] = False,
) -> None:
    """Make the kernel table of a board without a runtime here from a CSV file (docs/lut-format.md)."""
    with named_errors():
        from ...core.errors import SpecError
        from ...hw_profiles.boards.board import read_board_name
        from ...hw_profiles.kernels.csv_table import read_csv_table

        if (board is None) == (name is None):
            raise SpecError("name the board by either --board board.yaml or --name NAME")
        device = read_board_name(board) if board is not None else str(name)
        found = read_csv_table(file, device=device, threads=threads, keep_going=keep_going)
        _write_new(out, found.table)
        console = open_console()
        console.print(f"wrote {out}: {found.describe()}", markup=False, soft_wrap=True)
        for reason in found.refused[:_MAX_SOURCES]:
            console.print(f"  refused {reason}", markup=False, soft_wrap=True)


def _identify(runtime: str, settings: Mapping[str, "Scalar"]) -> "TableIdentity":
    """The identity of this machine under a runtime with these settings."""
    from ...core.errors import TableError
    from ...evaluators.device import build_device
    from ...hw_profiles.kernels.table_identity import TableIdentity
    from ...hw_profiles.target import Target

    device, threads = settings.get("device", "cpu"), settings.get("threads", 1)
    if not isinstance(device, str) or not isinstance(threads, int) or isinstance(threads, bool):
        raise TableError(f"settings must have a device's name and a number of threads, got {dict(settings)!r:.120}")
    profile = build_device(Target(runtime, device, threads)).identify()
    return TableIdentity.of(profile, {**settings, "device": device, "threads": threads})


def _parse_settings(texts: list[str]) -> dict[str, "Scalar"]:
    from ...core.errors import SpecError

    settings: dict[str, Scalar] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise SpecError(f"a setting must read NAME=VALUE, got '{text}'")
        settings[name] = _parse_scalar(value)
    return settings


def _parse_scalar(text: str) -> "Scalar":
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str | int | float | bool | None) else text


def _write_new(path: Path, table: "KernelTable") -> None:
    from ...core.errors import TableError
    from ...hw_profiles.kernels.table_file import write_table

    if path.exists():
        raise TableError(f"{path} exists already; choose another name, or remove it")
    write_table(path, table)


def _list_all() -> None:
    from ...core.errors import TableError
    from ...hw_profiles.kernels.shipped import list_tables
    from ...hw_profiles.kernels.table_file import read_table
    from ..cache import cache_folder

    paths = list_tables(cache_folder())
    if not paths:
        _say("no kernel table yet; measure this device with: trimtab profile")
    for path in paths:
        _say(str(path))
        try:
            table = read_table(path)
        except TableError as error:
            _say(f"  {error}")
            continue
        _say(f"  {_describe_identity(table.identity)}")
        _say(f"  {_describe_size(table)}")


def _print_summary(path: Path, table: "KernelTable") -> None:
    # a profile or a search numbers its measurements
    sources = Counter(re.sub(r"( trial)? #?\d+$", "", source) for source in table.sources)
    _say(f"{path}: {_describe_size(table)}")
    _say(_describe_identity(table.identity))
    _say(f"instruction sets: {', '.join(table.identity.features) or 'none known'}")
    open_console().print(_tabulate_kernels(table))
    for model, n_graphs in sorted(Counter(graph.model for graph in table.graphs).items()):
        _say(f"{n_graphs} whole graphs of {model}")
    for source, n_measurements in sorted(sources.items())[:_MAX_SOURCES]:
        _say(f"{n_measurements} measurements from {source}")
    if len(sources) > _MAX_SOURCES:
        _say(f"and {len(sources) - _MAX_SOURCES} more sources")


def _tabulate_kernels(table: "KernelTable") -> Any:
    from rich.markup import escape
    from rich.table import Table

    n_kernels: Counter[str] = Counter()
    n_observations: Counter[str] = Counter()
    n_runs: Counter[str] = Counter()
    for kernel in table.kernels():
        observations = table.observations(kernel)
        n_kernels[kernel.op] += 1
        n_observations[kernel.op] += len(observations)
        n_runs[kernel.op] += sum(observation.runs for observation in observations)
    rows = Table("operator")
    for title in ("kernels", "observations", "runs"):
        rows.add_column(title, justify="right")
    for op in sorted(n_kernels):
        rows.add_row(escape(op), str(n_kernels[op]), str(n_observations[op]), str(n_runs[op]))
    return rows


def _describe_identity(identity: "TableIdentity") -> str:
    settings = _describe_settings(identity.settings)
    return f"{identity.runtime} {identity.runtime_version} on {identity.device}, {settings}"


def _describe_settings(settings: Mapping[str, "Scalar"]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _describe_size(table: "KernelTable") -> str:
    n_observations = sum(len(table.observations(kernel)) for kernel in table.kernels())
    n_untimed = len(table.known_kernels()) - len(table)
    untimed = f" ({n_untimed} more not timed)" if n_untimed else ""
    return f"{len(table)} kernels{untimed} with {n_observations} observations, {len(table.graphs)} graphs"
