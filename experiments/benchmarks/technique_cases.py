"""The cases of ``make bench-techniques``: each technique alone at three strengths, and hybrids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from ...compressors.prepared import PreparedModel
from ...evaluators.dataset import Dataset
from ...spaces.options import combine, parse_option
from ...spaces.policy import GraphTreatment
from ...spaces.recovery import Recovery
from ...spaces.treatment import Treatment
from ..datasets import minilm_spam


@dataclass(frozen=True)
class Case:
    """One policy of the benchmark."""

    family: str
    label: str
    #: (pattern of layers or structures, technique, option), in any order
    parts: tuple[tuple[str, str, str], ...]
    graph: GraphTreatment = field(default_factory=GraphTreatment)
    #: passes over the training data in recovery; harsh techniques need more
    epochs: float | None = None

    def treatments(self, model: PreparedModel) -> dict[str, Treatment]:
        """Returns name → treatment of the layers and structures of a model that the case speaks of."""
        found: dict[str, list[Treatment]] = {}
        for pattern, technique, text in self.parts:
            option = parse_option(technique, text)
            for name in _matching(pattern, technique, model):
                found.setdefault(name, []).append(option)
        return {name: combine(options) for name, options in found.items()}


@dataclass(frozen=True)
class Subject:
    """A model of the benchmark, with its cases."""

    model: str
    data: str
    cases: tuple[Case, ...]
    recovery: Recovery
    #: samples of the test split that are scored; all where None
    n_test: int | None = None

    def spec(self, runtime: str) -> dict[str, Any]:
        """Returns a spec from which a preparation with structures and training data is made."""
        return {
            "name": "bench-techniques",
            "model": self.model,
            "data": self.data,
            "target": {"runtime": runtime},
            "space": [{"layers": "*", "quantize": ["none"], "prune": [0, 0.5, 1]}],
            "recovery": ["none", self.recovery.to_json()],
            "profile": "none",
        }

    def recovery_of(self, case: Case) -> Recovery:
        """Returns the recovery of a case."""
        return self.recovery if case.epochs is None else replace(self.recovery, epochs=case.epochs)


def _matching(pattern: str, technique: str, model: PreparedModel) -> Sequence[str]:
    if technique == "prune":
        return [s.name for s in model.structures if fnmatchcase(s.name, pattern)]
    if pattern.startswith("kind:"):
        return [layer.name for layer in model.layers if layer.kind == pattern.removeprefix("kind:")]
    return [layer.name for layer in model.layers if fnmatchcase(layer.name, pattern)]


def _alone(family: str, technique: str, pattern: str, options: Sequence[str], **how: Any) -> list[Case]:
    return [Case(family, f"{technique} {option}", ((pattern, technique, option),), **how) for option in options]


#: the first convolution and the classifier stay in float where weights get few values, as is usual
_INNER = "layer*"
_REFINED = GraphTreatment(rounding="compensated", correction="bias")

FASHION = Subject(
    model="trimtab.experiments.zoo:resnet20_fashion",
    data="trimtab.experiments.datasets:fashion",
    recovery=Recovery("distill", epochs=0.5),
    cases=(
        *_alone("prune", "prune", "channels:*", ("0.25", "0.5", "0.75")),
        Case("prune", "drop blocks layer*.2", (("block:layer*.2", "prune", "1"),)),
        *_alone("low_rank", "low_rank", "*", ("0.75", "0.5", "0.25")),
        *_alone("cluster", "cluster", "*", ("64", "16", "4"), epochs=0.25),
        *_alone("binarize", "binarize", _INNER, ("ternary", "binary", "binary activations"), epochs=1.0),
        *_alone("sparsify", "sparsify", "*", ("0.5", "0.8", "2:4"), epochs=0.25),
        *_alone("quantize", "quantize", "*", ("int8", "int8_weight", "float16"), epochs=0.25),
        Case("quantize", "int8 compensated, bias", (("*", "quantize", "int8"),), _REFINED, epochs=0.25),
        Case("hybrid", "prune 0.5 + int8", (("channels:*", "prune", "0.5"), ("*", "quantize", "int8"))),
        Case("hybrid", "cluster 16 + int8", (("*", "cluster", "16"), ("*", "quantize", "int8"))),
        Case("hybrid", "low_rank 0.5 + int8", ((_INNER, "low_rank", "0.5"), ("*", "quantize", "int8"))),
        Case(
            "hybrid",
            "prune 0.5 + cluster 16 + sparsify 0.5 + int8",
            (
                ("channels:*", "prune", "0.5"), (_INNER, "cluster", "16"), (_INNER, "sparsify", "0.5"),
                ("*", "quantize", "int8"),
            ),
        ),
    ),
)  # fmt: skip

_N_CALIBRATION = 32
_ENCODER = "bert.encoder.*"
_WORDS = "bert.embeddings.word_embeddings"

MINILM = Subject(
    model="trimtab.experiments.zoo:minilm_spam",
    data="trimtab.experiments.benchmarks.technique_cases:minilm_spam_briefly",
    recovery=Recovery("distill", epochs=0.25, batch_size=32),
    n_test=300,
    cases=(
        *_alone("prune", "prune", "channels:*.intermediate.dense", ("0.25", "0.5", "0.75")),
        *(Case("prune", f"prune heads {share}", (("heads:*", "prune", share),)) for share in ("0.25", "0.5")),
        Case("prune", "drop every third layer", (("block:*.[25]", "prune", "1"),)),
        *_alone("low_rank", "low_rank", _ENCODER, ("0.75", "0.5", "0.25")),
        *_alone("low_rank", "low_rank", _ENCODER, ("0.5 output",)),
        *_alone("cluster", "cluster", "*", ("64", "16", "4")),
        *_alone("binarize", "binarize", _ENCODER, ("ternary", "binary", "binary activations")),
        *_alone("sparsify", "sparsify", _ENCODER, ("0.5", "0.5 wanda", "2:4 wanda")),
        *_alone("quantize", "quantize", "kind:linear", ("int8", "int8_dynamic", "int4_weight")),
        Case("quantize", "int8 smooth", (("kind:linear", "quantize", "int8"),), GraphTreatment(equalization="smooth")),
        Case("quantize", "int4_weight compensated", (("kind:linear", "quantize", "int4_weight"),), _REFINED),
        Case("hybrid", "prune 0.5 + int8_dynamic",
             (("channels:*.intermediate.dense", "prune", "0.5"), ("kind:linear", "quantize", "int8_dynamic"))),
        Case("hybrid", "cluster 16 + int8", (("*", "cluster", "16"), ("kind:linear", "quantize", "int8"))),
        Case("hybrid", "low_rank 0.5 + int8_dynamic",
             ((_ENCODER, "low_rank", "0.5"), ("kind:linear", "quantize", "int8_dynamic"))),
        Case("hybrid", "drop 2 layers + cluster 16 words + int8_dynamic",
             (("block:*.[25]", "prune", "1"), (_WORDS, "cluster", "16"), ("kind:linear", "quantize", "int8_dynamic"))),
    ),
)  # fmt: skip


def minilm_spam_briefly() -> Dataset:
    """The mails with a quarter of the calibration samples: every policy of another shape is calibrated anew."""
    found = minilm_spam()
    return replace(found, calibration=found.calibration.take(slice(_N_CALIBRATION)))


SUBJECTS: Mapping[str, Subject] = {"fashion": FASHION, "minilm-spam": MINILM}
