"""A declared fusion rule: which operators a device without a runtime here runs as one kernel. Data only.

The notation is described in docs/lut-format.md; `trimtab.evaluators.lut_lowering` applies a rule to a graph.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...core.errors import SpecError
from .strict_mapping import StrictMapping

#: an operator, with its domain unless that is the default one
_OPERATOR = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
MAX_PATTERNS, MAX_STAGES = 200, 16
#: What of a kernel must be quantised in the graph, at the least, for it to run as integers: inputs, weight and output;
#: inputs and output, since the device quantises constant weights by itself; inputs and weight; the weight.
#: ``never`` takes longer chains out.
INTEGER_NEEDS = ("all", "activations", "inputs", "weight", "never")


@dataclass(frozen=True, slots=True)
class Stage:
    """One place of a pattern."""

    #: any of these operators
    operators: tuple[str, ...]
    is_optional: bool = False


@dataclass(frozen=True)
class Pattern:
    """A chain of operators that run as one kernel, named by its first one.

    >>> Pattern.parse("Conv > Add? > Relu|Clip?").stages[2]
    Stage(operators=('Relu', 'Clip'), is_optional=True)
    """

    stages: tuple[Stage, ...]

    @classmethod
    def parse(cls, text: Any, *, where: str = "pattern") -> "Pattern":
        """Reads ``Conv > Add? > Relu|Clip?``.

        Args:
            text: the notation.
            where: what the message of an error begins with.

        Raises:
            SpecError: naming the stage and what is wrong with it.
        """
        if not isinstance(text, str) or not text.strip():
            raise SpecError(f"{where} must read like 'Conv > Add? > Relu|Clip?', got {text!r:.80}")
        parts = text.split(">")
        if len(parts) > MAX_STAGES:
            raise SpecError(f"{where} has {len(parts)} stages; at most {MAX_STAGES} are accepted")
        stages = tuple(_parse_stage(part, f"{where} '{text:.80}', stage {i}") for i, part in enumerate(parts, start=1))
        if stages[0].is_optional:
            raise SpecError(
                f"{where} '{text:.80}': the first stage names the kernel and cannot be optional; remove '?'"
            )
        return cls(stages)

    @property
    def operators(self) -> frozenset[str]:
        """Every operator that it names."""
        return frozenset(operator for stage in self.stages for operator in stage.operators)


def _parse_stage(text: str, where: str) -> Stage:
    body = text.strip()
    is_optional = body.endswith("?")
    operators = tuple(part.strip() for part in body.removesuffix("?").split("|"))
    for operator in operators:
        if not _OPERATOR.fullmatch(operator):
            what = f"'{operator}' is not an operator's name" if operator else "an operator's name is missing"
            raise SpecError(
                f"{where}: {what}; write ONNX operators, '|' between alternatives, '?' behind optional ones"
            )
    if len(set(operators)) < len(operators):
        raise SpecError(f"{where} names an operator twice")
    return Stage(operators, is_optional)


@dataclass(frozen=True)
class FusionRule:
    """What a device fuses, runs as integers and does for nothing."""

    #: each is tried on the whole graph before the next one; an operator in none of them is a kernel of its own
    patterns: tuple[Pattern, ...] = ()
    #: operators that cost nothing: they only see their first input under another shape
    free: frozenset[str] = frozenset()
    #: how a chain begins (``Conv``, ``Conv+Add``) → what must be quantised for it to run as integers (`INTEGER_NEEDS`)
    integer: Mapping[str, str] = field(default_factory=dict)
    #: what depends on constants alone is computed when the model is loaded
    folds_constants: bool = True

    @property
    def operators(self) -> frozenset[str]:
        """Every operator that it names."""
        in_patterns = (name for pattern in self.patterns for name in pattern.operators)
        in_chains = (name for chain in self.integer for name in chain.split("+"))
        return frozenset({*self.free, *in_patterns, *in_chains})

    def integer_need(self, chain: Sequence[str]) -> str:
        """Returns what must be quantised for a chain to run as integers: the longest beginning that is stated counts.

        >>> FusionRule(integer={"Conv": "all", "Conv+Add": "never"}).integer_need(["Conv", "Add", "Relu"])
        'never'
        """
        beginnings = ("+".join(chain[:length]) for length in range(len(chain), 0, -1))
        return next((self.integer[name] for name in beginnings if name in self.integer), "never")


def parse_rule(content: Any, *, where: str = "fusion") -> FusionRule:
    """Reads the part ``fusion`` of a board file.

    Args:
        content: a mapping with any of patterns, free, integer and fold_constants.
        where: what the messages of errors begin with.

    Raises:
        SpecError: saying where and what to do; unknown keys with the nearest known one.
    """
    mapping = StrictMapping(content, ("patterns", "free", "integer", "fold_constants"), where)
    texts = mapping.sequence("patterns", maximum=MAX_PATTERNS)
    patterns = tuple(Pattern.parse(text, where=f"{where}.patterns[{i}]") for i, text in enumerate(texts))
    free = frozenset(mapping.names("free", _OPERATOR))
    needs = mapping.mapping("integer")
    for operator, need in needs.items():
        if not isinstance(operator, str) or not all(map(_OPERATOR.fullmatch, operator.split("+"))):
            raise SpecError(f"{where}.integer: {operator!r:.80} is not an operator's name, or a chain such as Conv+Add")
        if need not in INTEGER_NEEDS:
            raise SpecError(f"{where}.integer.{operator} must be one of {', '.join(INTEGER_NEEDS)}, got {need!r:.80}")
    both = sorted(free & {name for pattern in patterns for name in pattern.operators})
    if both:
        raise SpecError(f"{where}: {', '.join(both)} stands in a pattern and in free; remove it from one of them")
    return FusionRule(patterns, free, needs, mapping.boolean("fold_constants", default=True))
