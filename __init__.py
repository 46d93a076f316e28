"""Trimtab: searches, layer by layer, how to compress a model so that it meets a budget on your own hardware."""

import importlib
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.core.errors import (
        ArtifactError,
        DataError,
        MeasurementError,
        ModelError,
        OverloadedError,
        PolicyError,
        RunError,
        SpecError,
        TransientError,
        TrimtabError,
    )
    from trimtab.evaluators.dataset import Dataset, Split
    from trimtab.experiments.apply import Applied, ApplyOptions, apply
    from trimtab.experiments.explain.difference import PolicyDifference, diff
    from trimtab.experiments.explain.explain import explain
    from trimtab.experiments.explain.explanation import Explanation
    from trimtab.experiments.launch import SearchResult, resume, search
    from trimtab.experiments.policy_file import PolicyFile, load_policy
    from trimtab.experiments.profiling.profile import ProfileResult, profile
    from trimtab.experiments.report.page import write_report
    from trimtab.experiments.serving.drift import Drift
    from trimtab.experiments.serving.serve import serve
    from trimtab.experiments.serving.served_model import ServedModel, ServeOptions
    from trimtab.experiments.spec import Spec
    from trimtab.experiments.store.policy_store import PolicyStore
    from trimtab.experiments.verify import Verification, verify

__all__ = [
    "Applied",
    "ApplyOptions",
    "ArtifactError",
    "DataError",
    "Dataset",
    "Drift",
    "Explanation",
    "MeasurementError",
    "ModelError",
    "OverloadedError",
    "PolicyDifference",
    "PolicyError",
    "PolicyFile",
    "PolicyStore",
    "ProfileResult",
    "RunError",
    "SearchResult",
    "ServeOptions",
    "ServedModel",
    "Spec",
    "SpecError",
    "Split",
    "TransientError",
    "TrimtabError",
    "Verification",
    "apply",
    "diff",
    "explain",
    "load_policy",
    "profile",
    "resume",
    "search",
    "serve",
    "verify",
    "write_report",
]

#: where each public name lives; loaded on first use, so that ``import trimtab`` stays light
_HOMES = {
    "trimtab.core.errors": (
        "ArtifactError", "DataError", "MeasurementError", "ModelError", "OverloadedError", "PolicyError",
        "RunError", "SpecError", "TransientError", "TrimtabError",
    ),
    "trimtab.evaluators.dataset": ("Dataset", "Split"),
    "trimtab.experiments.apply": ("Applied", "ApplyOptions", "apply"),
    "trimtab.experiments.explain.difference": ("PolicyDifference", "diff"),
    "trimtab.experiments.explain.explain": ("explain",),
    "trimtab.experiments.explain.explanation": ("Explanation",),
    "trimtab.experiments.launch": ("SearchResult", "resume"),
    "trimtab.experiments.policy_file": ("PolicyFile", "load_policy"),
    "trimtab.experiments.profiling.profile": ("ProfileResult", "profile"),
    "trimtab.experiments.report.page": ("write_report",),
    "trimtab.experiments.serving.drift": ("Drift",),
    "trimtab.experiments.serving.serve": ("serve",),
    "trimtab.experiments.serving.served_model": ("ServeOptions", "ServedModel"),
    "trimtab.experiments.spec": ("Spec",),
    "trimtab.experiments.store.policy_store": ("PolicyStore",),
    "trimtab.experiments.verify": ("Verification", "verify"),
}  # fmt: skip


class _CallableFolder(types.ModuleType):
    """The folder ``search``, called like the function ``search``: Python gives both the one name ``trimtab.search``."""

    def __call__(self, *arguments: Any, **parts: Any) -> Any:
        """Launches a search; see `trimtab.experiments.launch.search`."""
        return importlib.import_module("trimtab.experiments.launch").search(*arguments, **parts)


importlib.import_module("trimtab.search").__class__ = _CallableFolder  # light: nothing stands in its __init__


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'trimtab' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
