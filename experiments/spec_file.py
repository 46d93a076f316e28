"""Specs from YAML files, recipes by name, and messages that say where and what to do."""

import difflib
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ..core.errors import SpecError
from ..core.names import describe_unknown
from ..core.yaml_file import read_yaml
from .spec import Spec


def load_spec(source: str | Path | Mapping[str, Any] | Spec) -> Spec:
    """Reads a spec.

    Args:
        source: a path of a YAML file, the bare name of a recipe (``digits``), a mapping, or a `Spec`.

    Raises:
        SpecError: naming the file, the key, what was got and what to do.
    """
    if isinstance(source, Spec):
        return source
    if isinstance(source, Mapping):
        return validate_spec(source, where="the spec")
    path = find_spec(str(source))
    spec = read_spec(path)
    allow_imports_from(path.resolve().parent)
    return spec


def read_spec(path: Path) -> Spec:
    """Reads the spec of a folder that is only looked at: nothing may be imported from there afterwards.

    Raises:
        SpecError: as `load_spec`.
    """
    content = read_yaml(path, noun="spec")
    if not isinstance(content, dict):
        raise SpecError(f"spec {path} must be a mapping of keys (name, model, data, target …)")
    folder = path.resolve().parent
    model, timing = content.get("model"), content.get("timing")
    if isinstance(model, str) and model.endswith(".onnx"):
        content["model"] = _find_beside(folder, model)
    if isinstance(timing, dict) and isinstance(timing.get("energy_table"), str):
        content["timing"] = {**timing, "energy_table": _find_beside(folder, timing["energy_table"])}
    target = content.get("target")
    if isinstance(target, dict) and target.get("runtime") == "lut" and isinstance(target.get("device"), str):
        content["target"] = {**target, "device": _find_beside(folder, target["device"])}
    return validate_spec(content, where=f"spec {path}")


def _find_beside(folder: Path, name: str) -> str:
    """Returns the absolute path of a file that stands beside the spec, or else in the current folder."""
    beside = folder / name
    return str(beside if beside.exists() else Path(name).resolve())


def allow_imports_from(folder: Path) -> None:
    """Adds a folder to the end of Python's path: modules that a spec names may stand beside it."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def find_spec(name: str) -> Path:
    """Returns the file of a spec: a path as it is, a bare name from the recipes.

    Raises:
        SpecError: there is no such file and no such recipe; the message lists the recipes.
    """
    if _exists(name):
        return Path(name)
    recipes = list_recipes()
    if name in recipes:
        return recipes[name]
    if "/" in name or name.endswith((".yaml", ".yml")):
        raise SpecError(f"spec {name} does not exist; recipes that can be named: {', '.join(sorted(recipes))}")
    raise SpecError(describe_unknown("recipe", name, recipes))


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:  # a name that no file system would take
        return False


def list_recipes() -> dict[str, Path]:
    """Returns recipe name → file."""
    folder = Path(str(resources.files("trimtab.experiments.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def validate_spec(content: Mapping[str, Any], *, where: str) -> Spec:
    """Turns a mapping into a spec.

    Raises:
        SpecError: one line per problem, with the key and the remedy.
    """
    try:
        return Spec(**content)
    except ValidationError as error:
        lines = [_explain(dict(problem)) for problem in error.errors(include_url=False)]
        raise SpecError(f"{where}: " + "; ".join(dict.fromkeys(lines))) from error
    except TypeError as error:
        raise SpecError(f"{where}: keys must be words: {error}") from error


def _explain(problem: dict[str, Any]) -> str:
    is_unknown = problem["type"] == "extra_forbidden"
    branches = () if is_unknown else ("function", "tuple", "str", "float")  # pydantic's names of types within a union
    path = [str(part) for part in problem["loc"] if not str(part).startswith(branches)]
    key = ".".join(path)
    if is_unknown:
        known = _known_keys(path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.6)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return f"unknown key '{key}'; {hint}known keys here: {', '.join(known)}"
    if problem["type"] == "missing":
        return f"key '{key}' is missing; add it"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def _known_keys(path: list[str]) -> list[str]:
    model: type[BaseModel] = Spec
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        for candidate in (annotation, *getattr(annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return list(model.model_fields)
