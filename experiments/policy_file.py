"""``policy.json``: a policy with all that is needed to apply it again, without data and without a search."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..compressors.quantization.calibration import Range
from ..core.errors import SpecError
from ..core.files import read_json, write_json
from ..hw_profiles.target import Target
from ..spaces.layer import STRUCTURE_KINDS, Group, Layer, fingerprint_layers, layers_from_json, layers_to_json
from ..spaces.policy import Policy
from ..spaces.space import spread_groups
from ..spaces.treatment import Treatment
from .explain.notebook import show_policy
from .reapply.evidence import Evidence
from .spec import read_target

#: version of the format; tests/golden keeps a file of every version that was ever released
SCHEMA = 1
_KIND = "trimtab-policy"


@dataclass(frozen=True)
class PolicyFile:
    """A policy, the layers that it was found for, and the activation ranges that it needs."""

    policy: Policy
    #: the groups that the policy names
    groups: tuple[Group, ...]
    #: layer name, kind and weight shape of the model that it was found for
    layers: tuple[Layer, ...]
    target: Target
    #: value name → calibrated range; empty unless the policy quantises activations statically
    ranges: Mapping[str, Range]
    #: name, model, data, version … as the search knew them; for people, never acted upon
    origin: Mapping[str, Any]
    #: what the search knew of the policy; None in files of earlier versions, and of policies that were not searched for
    evidence: Evidence | None = None
    #: (name, operator that makes it) of the values that ``ranges`` names, in the order of the graph: in a model whose
    #: layers have other names the same ranges are found by it; empty where there are none, and in earlier files
    range_order: tuple[tuple[str, str], ...] = ()

    @property
    def fingerprint(self) -> str:
        """Digest of the layers that the policy was found for."""
        return fingerprint_layers(self.layers)

    @property
    def layer_treatments(self) -> dict[str, Treatment]:
        """Name → treatment of layers and structures."""
        return spread_groups(self.groups, self.policy)

    def _repr_html_(self) -> str:
        """Shows the policy in a notebook."""
        return show_policy(self)

    def to_json(self) -> dict[str, Any]:
        """Returns the file's content."""
        return {
            "kind": _KIND,
            "schema": SCHEMA,
            **self.policy.to_json(),
            "members": {group.name: list(group.layers) for group in self.groups},
            "model": {
                "fingerprint": self.fingerprint,
                "layers": layers_to_json(self.layers),
            },
            "target": self.target.to_json(),
            "activation_ranges": {name: [r.low, r.high] for name, r in sorted(self.ranges.items())},
            "origin": dict(self.origin),
            # came after the first files were written
            **({} if self.evidence is None else {"evidence": self.evidence.to_json()}),
            **({"range_order": [list(pair) for pair in self.range_order]} if self.range_order else {}),
        }

    def save(self, path: Path) -> None:
        """Writes the file atomically."""
        write_json(path, self.to_json())


def load_policy(path: str | Path) -> PolicyFile:
    """Reads a policy file.

    Raises:
        SpecError: the file is missing, is not a policy, or is of a schema that this version does not read.
    """
    path = Path(path)
    content = read_json(path, noun="policy")
    if not isinstance(content, dict) or content.get("kind") != _KIND:
        raise SpecError(f"policy {path} is not a policy file of Trimtab (kind must be '{_KIND}')")
    if content.get("schema") != SCHEMA:
        raise SpecError(f"policy {path} has schema {content.get('schema')!r}; this version reads schema {SCHEMA}")
    try:
        return _parse(content)
    except SpecError as error:
        raise SpecError(f"policy {path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise SpecError(f"policy {path} is damaged: {type(error).__name__}: {error}") from error


def _parse(content: dict[str, Any]) -> PolicyFile:
    policy = Policy.from_json(content)
    groups = tuple(_read_group(str(name), layers) for name, layers in content["members"].items())
    layers = layers_from_json(content["model"]["layers"])
    file = PolicyFile(
        policy=policy,
        groups=groups,
        layers=layers,
        target=read_target(content["target"]),
        ranges={
            str(name): Range(float(low), float(high)) for name, (low, high) in content["activation_ranges"].items()
        },
        origin=dict(content["origin"]),
        evidence=None if content.get("evidence") is None else Evidence.from_json(content["evidence"]),
        range_order=tuple((str(name), str(op)) for name, op in content.get("range_order", ())),
    )
    if content["model"]["fingerprint"] != file.fingerprint:
        raise SpecError("the list of layers does not match its fingerprint; the file was altered")
    _check_members(file)
    for name, found in file.ranges.items():
        if not -1e38 < found.low <= found.high < 1e38:
            raise SpecError(f"the activation range of '{name}' is not finite, or upside down: {found}")
    return file


def _read_group(name: str, layers: Any) -> Group:
    kind = name.partition(":")[0]
    return Group(name, tuple(map(str, layers)), kind if kind in STRUCTURE_KINDS and ":" in name else "layers")


def _check_members(file: PolicyFile) -> None:
    unknown = sorted({name for name, _ in file.policy.groups} - {group.name for group in file.groups})
    if unknown:
        raise SpecError(f"the policy treats {_some(unknown)}, which 'members' does not list")
    members = [layer for group in file.groups if group.kind == "layers" for layer in group.layers]
    strangers = sorted(set(members) - {layer.name for layer in file.layers})
    if strangers:
        raise SpecError(f"'members' names {_some(strangers)}, which the list of layers does not hold")
    twice = sorted({name for name in members if members.count(name) > 1})
    if twice:
        raise SpecError(f"{_some(twice)} cannot stand in two groups")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
