"""Objects named ``module:attribute``, as specs name models, data, metrics and devices."""

import importlib
import sys
from pathlib import Path
from typing import Any

from .errors import SpecError


def import_object(path: str, *, noun: str) -> Any:
    """Imports ``module:attribute``; the current folder counts as a place to import from.

    Args:
        path: for example ``trimtab.experiments.zoo:resnet8``.
        noun: what the object is to be, for messages.

    Raises:
        SpecError: the path has no colon, the module does not import, or the attribute is missing.
    """
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise SpecError(f"{noun} '{path}' must be written module:name, for example my_package.my_module:build")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise SpecError(f"{noun} '{path}': module '{module_name}' does not import: {error!r}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise SpecError(f"{noun} '{path}': module '{module_name}' has no '{attribute}'")
        found = getattr(found, part)
    return found
