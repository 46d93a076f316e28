"""The end of the page: what failed, and how to do all of it again."""

import importlib.metadata
import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...core.errors import TrimtabError
from ...core.files import read_text, sha256_file
from ...search.record import Record, Status
from ..manifest import read_manifest
from .reading import Reading
from .wording import Column, Line, Table, kind_of_error

#: trials that are named for one error
_MOST_NAMED = 12


def list_failures(reading: Reading) -> Table | None:
    """Groups what failed, could not be built or was stopped early by its error; None where nothing was."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in reading.searched:
        if record.status is not Status.COMPLETE:
            key = record.status.value, kind_of_error(record.error) or "no reason was given"
            groups.setdefault(key, []).append(record)
    if not groups:
        return None
    columns = (Column("what", False), Column("trials"), Column("which", False), Column("error of the first", False))
    words = {"INFEASIBLE": "cannot be built", "FAILED": "failed", "PRUNED": "stopped early"}
    lines = [
        Line((words[status], str(len(records)), _name(records), records[0].error or kind),
             "bad" if status == "FAILED" else "")
        for (status, kind), records in sorted(groups.items(), key=lambda pair: (pair[0][0] == "PRUNED", -len(pair[1])))
    ]  # fmt: skip
    return Table("Trials without a full measurement, by their error", columns, tuple(lines))


def _name(records: list[Record]) -> str:
    shown = ", ".join(f"#{record.id}" for record in records[:_MOST_NAMED])
    return shown if len(records) <= _MOST_NAMED else f"{shown} and {len(records) - _MOST_NAMED} more"


@dataclass(frozen=True)
class Reproduction:
    """All that is needed to do it again."""

    spec: str
    commands: str
    facts: Table
    notes: tuple[str, ...]


def describe_reproduction(reading: Reading) -> Reproduction:
    """Collects spec, commands, versions, fingerprints, seed, machine and the digest of the journal."""
    folder, spec = reading.folder, reading.spec
    run = shlex.quote(str(folder.path))
    commands = [
        f"trimtab search {shlex.quote(str(folder.spec))}     # the same search, in a new folder",
        f"trimtab resume {run}     # goes on; of a finished one it repeats the end",
    ]
    if folder.policy.is_file():
        model = shlex.quote(str(spec.to_json()["model"]))
        commands.append(f"trimtab apply {shlex.quote(str(folder.policy))} --model {model} --out build/model")
    if folder.artifact.is_dir():
        commands.append(f"trimtab verify {shlex.quote(str(folder.artifact))}     # measures the promise again, here")
    commands.append(f"trimtab report {run}     # this page")
    notes = []
    if spec.unnamed:
        notes.append(
            "Model or data were given as objects in Python, not by name: the spec alone cannot bring them back."
        )
    return Reproduction(
        spec=read_text(folder.spec, noun="spec"),
        commands="\n".join(commands),
        facts=_tabulate_facts(reading),
        notes=tuple(notes),
    )


def _tabulate_facts(reading: Reading) -> Table:
    spec, journal = reading.spec, reading.folder.journal
    facts = {
        "seed": str(spec.search.seed),
        "searched with": reading.fingerprints.get("versions", "not known"),
        "page written with": f"trimtab {importlib.metadata.version('trimtab')}, Python {platform.python_version()}",
        **{f"fingerprint: {name}": text for name, text in sorted(reading.fingerprints.items()) if name != "versions"},
        "journal, sha256": sha256_file(journal) if journal.is_file() else "there is none yet",
        **_describe_machine(reading),
    }
    lines = tuple(Line((name, text)) for name, text in facts.items())
    return Table("What it depends on", (Column("", False), Column("", False)), lines)


def _describe_machine(reading: Reading) -> dict[str, str]:
    if not (reading.folder.artifact / "manifest.json").is_file():
        return {"machine": "not available: only an artifact names it, and there is none"}
    try:
        profile = read_manifest(reading.folder.artifact).profile
    except TrimtabError as error:
        return {"machine": f"not available: {error}"}
    return {f"machine: {name.replace('_', ' ')}": _say(value) for name, value in sorted(profile.items())}


def _say(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_say(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(" ".join(map(str, part)) if isinstance(part, list | tuple) else str(part) for part in value)
    return "not known" if value is None else str(value)
