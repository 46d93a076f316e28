"""``trimtab publish``, ``list``, ``promote``, ``rollback`` and ``fetch``: policies in production."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .outcome import EXIT_BROKEN, JsonFlag, complain, named_errors, open_console, print_json

if TYPE_CHECKING:
    from ...evaluators.measurement import Measurement
    from ..store.policy_store import PolicyStore
    from ..store.shelf import Shelf, Version

app = typer.Typer()

StoreOption = Annotated[
    str | None, typer.Option(help="A folder or a URL of fsspec; $TRIMTAB_STORE, else the folder 'store'.")
]
TargetOption = Annotated[str | None, typer.Option(help="The target's folder; needed where there are several.")]
WhyOption = Annotated[str, typer.Option(help="One line for the history.")]
WhoOption = Annotated[str | None, typer.Option(help="Who does it, for the history; you@this-machine when omitted.")]
MoveArgument = Annotated[
    str, typer.Argument(metavar="NAME[@VERSION]", help="A model, and how its version's id begins.")
]


@app.command()
def publish(
    source: Annotated[Path, typer.Argument(help="A run's folder, an artifact's folder or a policy.json.")],
    name: Annotated[str | None, typer.Option(help="The model's name; that of the run's spec when omitted.")] = None,
    store: StoreOption = None,
    why: WhyOption = "",
    who: WhoOption = None,
    mlflow: Annotated[str | None, typer.Option(metavar="URI", help="Log the run to MLflow there, too.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Put a policy with its artifact into the store, as a candidate."""
    with _store_errors():
        from ..store.policy_store import PolicyStore

        if mlflow is not None:
            _check_run(source)
        version = PolicyStore(store, who=who).publish(source, name=name, why=why)
        event = version.published
        run_id = None if mlflow is None else _log_run(source, mlflow, version)
        if as_json:
            print_json({"version": version.id, "model": event.model, "target": event.target, "mlflow_run": run_id})
            return
        open_console().print(f"published {event.model}@{version.short_id} on {event.target}", markup=False)


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(help="A model; every one when omitted.")] = None,
    store: StoreOption = None,
    history: Annotated[bool, typer.Option("--history", help="Show every event, too.")] = False,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Do not read the versions' files: quick for large models far away.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show versions, which are in production, and what is damaged; exit 1 if anything is."""
    with _store_errors():
        from ..store.policy_store import PolicyStore
        from ..terminal_store import print_history, print_shelf

        opened = PolicyStore(store)
        shelves = opened.shelves(name)
        findings = {} if no_check else {v.id: _check(opened, shelf, v) for shelf in shelves for v in shelf.versions}
        damaged = {key: found for key, found in findings.items() if isinstance(found, str)}
        if as_json:
            print_json({"shelves": [shelf.to_json() for shelf in shelves], "damaged": damaged})
        else:
            for shelf in shelves:
                print_shelf(open_console(), shelf, {v.id: findings.get(v.id) for v in shelf.versions})
                if history:
                    print_history(open_console(), shelf)
            if not shelves:
                open_console().print(f"store {opened.name} holds nothing{f' called {name}' if name else ''}")
        if damaged or any(shelf.damages for shelf in shelves):
            raise typer.Exit(EXIT_BROKEN)


@app.command()
def promote(
    version: MoveArgument,
    target: TargetOption = None,
    store: StoreOption = None,
    why: WhyOption = "",
    who: WhoOption = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Measure it again before; exit 1 if its promise is broken.")
    ] = False,
    data: Annotated[str | None, typer.Option(help="module:callable; --verify checks the accuracy, too.")] = None,
    tolerance: Annotated[float, typer.Option(min=0.0, max=10.0, help="See trimtab verify.")] = 0.25,
    as_json: JsonFlag = False,
) -> None:
    """Put a version into production: the one published last where none is named."""
    with _store_errors():
        from ..store.policy_store import PolicyStore

        opened = PolicyStore(store, who=who)
        name, start = _parse(version)
        shelf = opened.shelf(name, target=target)
        chosen = shelf.newest if start is None else shelf.version(start)
        if verify:
            _verify(opened, shelf, chosen, data=data, tolerance=tolerance)
        _print_move(opened.promote(name, chosen.id, target=shelf.target, why=why), chosen, as_json=as_json)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="The model.")],
    target: TargetOption = None,
    store: StoreOption = None,
    why: WhyOption = "",
    who: WhoOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Return to the version that was in production before."""
    with _store_errors():
        from ..store.policy_store import PolicyStore

        opened = PolicyStore(store, who=who)
        shelf = opened.rollback(name, target=target, why=why)
        _print_move(shelf, shelf.production, as_json=as_json)


@app.command()
def fetch(
    version: MoveArgument,
    out: Annotated[Path, typer.Option(help="The folder that receives it.")],
    target: TargetOption = None,
    store: StoreOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Copy a version out of the store: the one in production where none is named."""
    with _store_errors():
        from ..store.policy_store import PolicyStore

        name, start = _parse(version)
        fetched = PolicyStore(store).fetch(name, start, out=out, target=target)
        if as_json:
            print_json({"version": fetched.id, "folder": str(out)})
            return
        open_console().print(f"{name}@{fetched.short_id} is in {out}", markup=False, soft_wrap=True)


@contextmanager
def _store_errors() -> Iterator[None]:
    """Names errors as every command does; what was altered ends as a broken promise does."""
    from ...core.errors import ArtifactError

    with named_errors():
        try:
            yield
        except ArtifactError as error:
            complain(error)
            raise typer.Exit(EXIT_BROKEN) from error


def _parse(reference: str) -> tuple[str, str | None]:
    name, at, start = reference.partition("@")
    return name, start if at else None


def _check(opened: "PolicyStore", shelf: "Shelf", version: "Version") -> "Measurement | str | None":
    from ...core.errors import ArtifactError

    try:
        return opened.check(shelf, version)
    except ArtifactError as error:
        return str(error)


def _verify(opened: "PolicyStore", shelf: "Shelf", version: "Version", *, data: str | None, tolerance: float) -> None:
    """Fetches and measures a version.

    Raises:
        Exit: the promise is broken.
    """
    from ...core.errors import SpecError
    from ..terminal import print_verification
    from ..verify import verify

    if "manifest.json" not in version.files:
        raise SpecError(
            f"{version.short_id} is a policy without an artifact: there is nothing to verify; apply it first"
        )
    with tempfile.TemporaryDirectory(prefix="trimtab-") as folder:
        path = Path(folder) / version.short_id
        opened.fetch(shelf.model, version.id, out=path, target=shelf.target)
        verification = verify(path, data=data, tolerance=tolerance)
    from rich.console import Console

    print_verification(Console(stderr=True, highlight=False), verification)
    if not verification.is_kept:
        raise typer.Exit(EXIT_BROKEN)


def _print_move(shelf: "Shelf", wanted: "Version | None", *, as_json: bool) -> None:
    from ..terminal_store import print_move

    if as_json:
        print_json(shelf.to_json())
    elif wanted is not None:
        print_move(open_console(), shelf, wanted)


def _check_run(source: Path) -> None:
    from ...core.errors import SpecError

    if not (source / "spec.yaml").is_file():
        raise SpecError(f"MLflow receives runs, and {source} is not a run's folder; publish it without --mlflow")


def _log_run(source: Path, uri: str, version: "Version") -> str:
    from ..store.mlflow_log import log_run

    tags = {"trimtab.version": version.id, "trimtab.target": version.published.target}
    return log_run(source, uri, version.published.model, tags=tags)
