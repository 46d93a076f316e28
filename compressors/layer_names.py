"""Stable names for layers: torch parameter names where the weight can be recognised by its values."""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

#: names that exporters make up for folded constants
_MADE_UP = re.compile(r"(onnx::|val_|_val|const|node_|/)|^\d+$|_transposed|_folded", re.IGNORECASE)

#: ending of the name of a weight that is stored a second time, transposed
TURNED = "_turned"


def name_weights(weights: Sequence[ir.Value], parameters: Mapping[str, np.ndarray]) -> dict[ir.Value, str]:
    """Returns a unique layer name for each weight.

    A weight is recognised as a torch parameter when it equals it, equals its transpose (``Linear``), or is a
    multiple of it per output channel (a batch norm was merged into it). One parameter that is stored several times
    (a tied embedding) gives ``name``, ``name#2`` …. Without a match the initialiser's own name is kept, and where
    an exporter made that up, the name of the node that uses it; where several weights would be called the same,
    they get ``name``, ``name_2`` ….
    """
    candidates: dict[tuple[int, ...], list[str]] = {}
    for name, array in parameters.items():
        candidates.setdefault(tuple(sorted(array.shape)), []).append(name)
    names: dict[ir.Value, str] = {}
    taken: set[str] = set()
    for weight in weights:
        assert weight.const_value is not None  # noqa: S101 - weight_of returns only constants; narrows the type
        array = weight.const_value.numpy()
        same_size = candidates.get(tuple(sorted(array.shape)), [])
        matched = [name for name in same_size if _is_same_weight(array, parameters[name])]
        fresh = [name for name in matched if name not in taken]
        own_name = str(weight.name).removesuffix(TURNED)
        origin = _prefer(fresh or matched, own_name) or own_name
        name = _strip(origin if matched else _fallback(weight, own_name))
        names[weight] = _unique(name, names.values(), "#" if origin in taken else "_")
        taken.add(origin)
    return names


def _prefer(matched: list[str], own_name: str) -> str | None:
    """Returns the parameter with the initialiser's own name if it is among the matches, else the first."""
    if own_name in matched:
        return own_name
    return matched[0] if matched else None


def _is_same_weight(stored: np.ndarray, parameter: np.ndarray) -> bool:
    if stored.shape == parameter.shape and np.array_equal(stored, parameter):
        return True
    if stored.ndim == 2:
        return stored.shape == parameter.T.shape and np.array_equal(stored, parameter.T)
    return stored.shape == parameter.shape and _is_channel_multiple(stored, parameter)


def _is_channel_multiple(stored: np.ndarray, parameter: np.ndarray) -> bool:
    """Whether stored[c] = s[c] · parameter[c] for one scalar per output channel c."""
    a = stored.reshape(len(stored), -1).astype(np.float64)
    b = parameter.reshape(len(parameter), -1).astype(np.float64)
    scale = (a * b).sum(1) / np.maximum((b * b).sum(1), 1e-30)
    error = np.abs(a - scale[:, None] * b).max(initial=0.0)
    return bool(error <= 1e-4 * max(np.abs(a).max(initial=0.0), 1e-30))


def _fallback(weight: ir.Value, own_name: str) -> str:
    if not _MADE_UP.search(own_name):
        return own_name
    node = next(use.node for use in weight.uses())
    scope = (node.name or own_name).strip("/")
    return re.sub(r"/(MatMul|Gemm|Conv|Gather)(_\d+)?(/MatMul)?$", "", scope).replace("/", ".")


def _strip(name: str) -> str:
    return re.sub(r"(\.weight|\.parametrizations\.weight\.original\d*)$", "", name) or name


def _unique(name: str, taken: Iterable[str], separator: str) -> str:
    used = set(taken)
    unique, n = name, 1
    while unique in used:
        n += 1
        unique = f"{name}{separator}{n}"
    return unique
