"""How a spec writes treatments: one list of options per technique, and the combinations of all lists."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..core.errors import SpecError
from ..core.names import describe_unknown
from .treatment import BINARY_FORMS, DECOMPOSITIONS, IMPORTANCES, QUANTIZE_OPTIONS, Treatment

#: in the order in which they are applied
TECHNIQUES = ("prune", "low_rank", "cluster", "binarize", "sparsify", "quantize")

_FIELDS: Mapping[str, tuple[str, ...]] = {
    "prune": ("keep_channels", "importance"),
    "low_rank": ("rank", "rank_by", "decomposition", "rank_error"),
    "cluster": ("clusters", "cluster_scope", "cluster_weighting"),
    "binarize": ("binary",),
    "sparsify": ("sparsity", "pattern", "saliency"),
    "quantize": ("weight_dtype", "activation_dtype", "activation_range", "granularity", "compute_dtype"),
}

#: technique → word → the field that it sets
_WORDS: Mapping[str, Mapping[str, dict[str, str]]] = {
    "prune": {word: {"importance": word} for word in IMPORTANCES},
    "low_rank": {
        "energy": {"rank_by": "energy"},
        "output": {"rank_error": "output"},
        **{word: {"decomposition": word} for word in DECOMPOSITIONS},
    },
    "cluster": {"group": {"cluster_scope": "group"}, "sensitivity": {"cluster_weighting": "sensitivity"}},
    "binarize": {
        **{word: {"binary": word} for word in BINARY_FORMS if word != "none"},
        "activations": {"activation_dtype": "binary"},
    },
    "sparsify": {"wanda": {"saliency": "wanda"}},
}

#: technique → (field of its number, what the number is)
_NUMBERS = {
    "prune": ("keep_channels", "the share that is removed, above 0 and at most 1"),
    "low_rank": ("rank", "the share that is kept, above 0 and below 1"),
    "cluster": ("clusters", "the number of values, 2 to 256"),
    "sparsify": ("sparsity", "the share of zeros, above 0 and below 1, or N:M"),
}

_PATTERN = re.compile(r"\d+:\d+")


def parse_option(technique: str, option: object) -> Treatment:
    """Reads one option of a technique.

    Args:
        technique: one of `TECHNIQUES`.
        option: ``none``, a number, or words such as ``0.5 taylor``, ``energy 0.9 tucker``, ``16 group``, ``2:4 wanda``.

    Raises:
        SpecError: a word is unknown, or the number is missing, given twice or out of range.

    >>> parse_option("low_rank", "energy 0.9")
    Treatment(rank=0.9, rank_by='energy')
    """
    if isinstance(option, bool) or not isinstance(option, str | int | float):
        raise SpecError(f"{technique}: an option is a word or a number, got {option!r}")
    text = str(option).strip()
    if text in ("none", "") or (technique in ("prune", "sparsify") and _number(text) == 0.0):
        return Treatment()
    if technique == "low_rank" and _number(text) == 1.0:
        return Treatment()
    if technique == "quantize":
        if text not in QUANTIZE_OPTIONS:
            raise SpecError(describe_unknown("quantize option", text, QUANTIZE_OPTIONS))
        return QUANTIZE_OPTIONS[text]
    chosen: dict[str, Any] = {}
    for word in text.split():
        found = _read_word(technique, word)
        twice = sorted(set(found) & set(chosen))
        if twice:
            raise SpecError(f"{technique}: '{text}' says {twice[0]} twice")
        chosen.update(found)
    if technique in _NUMBERS and not {_NUMBERS[technique][0], "pattern"} & set(chosen):
        raise SpecError(f"{technique}: '{text}' lacks its number: {_NUMBERS[technique][1]}")
    try:
        return Treatment(**chosen)
    except SpecError as error:
        raise SpecError(f"{technique}: '{text}': {error}") from error


def describe_option(technique: str, treatment: Treatment) -> str:
    """Returns what `parse_option` reads as this technique's part of a treatment; ``none`` where it has none."""
    part = _part(technique, treatment)
    if part == Treatment():
        return "none"
    if technique == "quantize":
        return next((name for name, option in QUANTIZE_OPTIONS.items() if option == part), _raw(part))
    words = [word for word, chosen in _WORDS[technique].items() if _says(chosen, part)]
    if technique == "prune":
        return " ".join([f"{1.0 - part.keep_channels:g}", *words])
    if technique == "low_rank":
        return " ".join([*(w for w in words if w == "energy"), f"{part.rank:g}", *(w for w in words if w != "energy")])
    if technique == "cluster":
        return " ".join([str(part.clusters), *words])
    if technique == "sparsify":
        return " ".join([part.pattern if part.pattern != "unstructured" else f"{part.sparsity:g}", *words])
    return " ".join(words)


def describe_treatment(treatment: Treatment) -> str:
    """Returns the options of a treatment, joined by ``+``; the name alone where it only quantises."""
    parts = []
    for technique in treatment.techniques:
        option = describe_option(technique, treatment)
        parts.append(option if technique in ("quantize", "binarize") else f"{technique} {option}")
    return " + ".join(parts) or "none"


def combine_options(options: Mapping[str, Sequence[Treatment]]) -> tuple[tuple[Treatment, ...], dict[str, str]]:
    """Returns every legal combination of one option per technique, and label → reason of the smallest illegal ones.

    A combination is left out of the reasons where a part of it is illegal already.

    Args:
        options: technique → the parts on offer; a technique that is missing offers nothing.
    """
    lists = [tuple(options.get(technique) or (Treatment(),)) for technique in TECHNIQUES]
    found: dict[Treatment, None] = {}
    refused: dict[frozenset[tuple[int, Treatment]], tuple[str, str]] = {}
    for parts in itertools.product(*lists):
        try:
            found.setdefault(combine(parts))
        except SpecError as error:
            used = [(position, part) for position, part in enumerate(parts) if part != Treatment()]
            refused[frozenset(used)] = (" + ".join(part.label for _, part in used), str(error))
    smallest = [parts for parts in refused if not any(other < parts for other in refused)]
    return tuple(found), dict(refused[parts] for parts in smallest)


def combine(parts: Sequence[Treatment]) -> Treatment:
    """Joins treatments that set different fields.

    Raises:
        SpecError: they contradict each other, or are not legal together.
    """
    chosen: dict[str, Any] = {}
    for part in parts:
        for name, value in part.to_json().items():
            if chosen.get(name, value) != value:
                raise SpecError(f"{name} cannot be both {chosen[name]} and {value}")
            chosen[name] = value
    return Treatment(**chosen)


def _part(technique: str, treatment: Treatment) -> Treatment:
    """Returns the treatment with the fields of one technique only."""
    names = set(_FIELDS[technique])
    chosen = {field.name: getattr(treatment, field.name) for field in fields(treatment) if field.name in names}
    is_binary = treatment.activation_dtype == "binary"
    if technique == "binarize" and is_binary:
        chosen["activation_dtype"] = "binary"
    if technique == "quantize" and is_binary:
        chosen["activation_dtype"] = "float32"
    return Treatment(**chosen)


def _read_word(technique: str, word: str) -> dict[str, Any]:
    if word in _WORDS[technique]:
        return dict(_WORDS[technique][word])
    if technique == "sparsify" and _PATTERN.fullmatch(word):
        return {"pattern": word}
    number = _number(word)
    if technique not in _NUMBERS or number is None:
        raise SpecError(describe_unknown(f"word of {technique}", word, [*_WORDS[technique], "a number"]))
    field, meaning = _NUMBERS[technique]
    if technique == "cluster":
        if number != int(number):
            raise SpecError(f"cluster: the number must be {meaning}, got {word}")
        return {field: int(number)}
    limit = 1.0 if technique == "prune" else 1.0 - 1e-9
    if not 0.0 < number <= limit:
        raise SpecError(f"{technique}: the number must be {meaning}, got {word}")
    return {field: round(1.0 - number, 9) if technique == "prune" else number}


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _says(chosen: Mapping[str, str], part: Treatment) -> bool:
    """Whether the part has what a word sets, and that is not what it would have anyway."""
    default = Treatment()
    return all(getattr(part, name) == value != getattr(default, name) for name, value in chosen.items())


def _raw(part: Treatment) -> str:
    return "/".join(f"{key}={value}" for key, value in sorted(part.to_json().items()))
