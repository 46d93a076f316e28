"""The spec: what a user states. The same as YAML (see `spec_file`) or as Python objects."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ..core.errors import SpecError
from ..core.names import describe_unknown
from ..hw_profiles.target import Target
from ..spaces.options import parse_option
from ..spaces.policy import CALIBRATIONS, CORRECTIONS, EQUALIZATIONS, EXTRA_OPS, FUSIONS, PRECISIONS, ROUNDINGS
from ..spaces.recovery import Recovery
from ..spaces.treatment import QUANTIZE_OPTIONS
from .quantities import parse_bytes, parse_duration, parse_energy, parse_latency, parse_size


def _known(noun: str, names: tuple[str, ...], known: Any) -> tuple[str, ...]:
    if not names:
        raise ValueError(f"needs at least one {noun}")
    for name in names:
        if name not in known:
            raise ValueError(describe_unknown(noun, name, known))
    if len(set(names)) != len(names):
        raise ValueError(f"names a {noun} twice: {', '.join(names)}")
    return names


def _readable(parse: Callable[[object], object]) -> AfterValidator:
    """Keeps a quantity as it was written, after making sure that it can be read."""

    def check(value: str | float) -> str | float:
        parse(value)
        return value

    return AfterValidator(check)


_LatencyBound = Annotated[str | float, _readable(parse_latency)]
_EnergyBound = Annotated[str | float, _readable(parse_energy)]
_SizeBound = Annotated[str | float, _readable(parse_size)]
_Duration = Annotated[str | float, _readable(parse_duration)]
_Bytes = Annotated[str | float, _readable(parse_bytes)]
#: an option as `parse_option` reads it
_Option = int | float | str


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class TargetSpec(_Part):
    """Where the model is to run."""

    #: a registered runtime (``onnxruntime``, ``openvino``) or ``module:callable``
    runtime: str
    device: str = "cpu"
    #: threads that one inference may use
    threads: int = Field(default=1, ge=1, le=1024, strict=True)
    #: samples in one inference
    batch_size: int = Field(default=1, ge=1, le=65536, strict=True)

    def to_target(self) -> Target:
        """Returns the same as a `Target`."""
        return Target(self.runtime, self.device, self.threads, self.batch_size)


class RuleSpec(_Part):
    """Options for some layers; a later rule replaces what an earlier one said."""

    #: a glob over layer names (``encoder.*``), or ``kind:`` and a kind
    layers: str = Field(min_length=1)
    #: names from `QUANTIZE_OPTIONS`; omitted: what earlier rules said
    quantize: tuple[str, ...] | None = None
    #: true: keeps options that the device's profile found slower than none
    force: bool | None = Field(default=None, strict=True)
    #: shares to remove from channels, heads and inner widths: ``0.5``, ``0.25 taylor``; 1 drops whole blocks
    prune: tuple[_Option, ...] | None = None
    #: shares that the factors keep: ``0.5``, ``energy 0.9 tucker output``
    low_rank: tuple[_Option, ...] | None = None
    #: numbers of values that a weight may take: ``16``, ``16 group sensitivity``
    cluster: tuple[_Option, ...] | None = None
    #: ``binary``, ``ternary``, ``binary activations``
    binarize: tuple[_Option, ...] | None = None
    #: shares of zeros: ``0.5``, ``0.7 wanda``, ``2:4``
    sparsify: tuple[_Option, ...] | None = None

    @field_validator("quantize")
    @classmethod
    def _known_options(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if value is None else _known("quantize option", value, QUANTIZE_OPTIONS)

    @field_validator("prune", "low_rank", "cluster", "binarize", "sparsify")
    @classmethod
    def _readable_options(cls, value: tuple[Any, ...] | None, found: ValidationInfo) -> tuple[Any, ...] | None:
        for option in value or ():
            try:
                parse_option(str(found.field_name), option)
            except SpecError as error:
                raise ValueError(str(error)) from error
        if value is not None and (not value or len({str(option) for option in value}) != len(value)):
            raise ValueError("needs at least one option, and each only once")
        return value


class GraphSpec(_Part):
    """Alternatives for the graph as a whole; omitted ones are what the target offers."""

    fusion: tuple[str, ...] | None = None
    calibration: tuple[str, ...] | None = None
    quantized_ops: tuple[tuple[str, ...], ...] | None = None
    precision: tuple[str, ...] | None = None
    #: ``nearest``, ``compensated`` (GPTQ); the next three are at their first value where they are omitted
    rounding: tuple[str, ...] | None = None
    #: ``none``, ``cross_layer``, ``smooth``
    equalization: tuple[str, ...] | None = None
    #: ``none``, ``bias``
    correction: tuple[str, ...] | None = None

    @field_validator("rounding", "equalization", "correction")
    @classmethod
    def _known_refinements(cls, value: tuple[str, ...] | None, found: ValidationInfo) -> tuple[str, ...] | None:
        known = {"rounding": ROUNDINGS, "equalization": EQUALIZATIONS, "correction": CORRECTIONS}
        name = str(found.field_name)
        return None if value is None else _known(name, value, known[name])

    @field_validator("fusion")
    @classmethod
    def _known_fusions(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if value is None else _known("fusion", value, FUSIONS)

    @field_validator("calibration")
    @classmethod
    def _known_calibrations(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if value is None else _known("calibration", value, CALIBRATIONS)

    @field_validator("precision")
    @classmethod
    def _known_precisions(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if value is None else _known("precision", value, PRECISIONS)

    @field_validator("quantized_ops")
    @classmethod
    def _known_ops(cls, value: tuple[tuple[str, ...], ...] | None) -> tuple[tuple[str, ...], ...] | None:
        if value is not None and not value:
            raise ValueError("needs at least one alternative; [[]] means none but the layers themselves")
        for alternative in value or ():
            for op in alternative:
                _known("quantized op", (op,), EXTRA_OPS)
        return value


class BudgetSpec(_Part):
    """Upper bounds; relative ones (``0.5x``) refer to the original in float32."""

    latency: _LatencyBound | None = None
    #: absolute drop of the metric, for example 0.01 for one point of accuracy
    accuracy_drop: float | None = Field(default=None, ge=0, lt=1)
    size_mb: _SizeBound | None = None
    peak_memory_mb: _SizeBound | None = None
    #: one-sided confidence with which the drop has to keep its bound, given its standard error
    confidence: float = Field(default=0.8, ge=0.5, lt=1)
    #: one-sided confidence with which the latency has to keep its bound, given its standard error; 0.5: its median
    latency_confidence: float = Field(default=0.5, ge=0.5, lt=1)
    #: inputs, outputs and what lies between them, all that is alive at once; no weights
    peak_activation_mb: _SizeBound | None = None
    #: of one inference: counted by the hardware where it does that, else from a table
    energy_mj: _EnergyBound | None = None


class SearchSpec(_Part):
    """How to search."""

    #: a registered algorithm: auto, random, tpe, nsga2, nsga3, gp, cmaes, evolution, policy_gradient, greedy
    algorithm: str = "auto"
    #: policies to evaluate, the baselines among them
    trials: int = Field(default=60, ge=1, le=1_000_000, strict=True)
    seed: int = Field(default=0, ge=0, lt=2**63, strict=True)
    time_limit: _Duration | None = None
    #: stop after so many trials without improvement
    patience: int | None = Field(default=None, ge=1, strict=True)
    #: policies proposed at a time; part of the trace, unlike the number of workers
    batch: int = Field(default=4, ge=1, le=1024, strict=True)
    #: ``asha``: of the trials of a batch that train, the worse half stops early (Ray Tune); ``none`` trains all in full
    scheduler: Literal["none", "asha"] = "none"
    #: tried after the baselines: ``front`` (what the solver makes of different budgets), the folder of another run, or
    #: a policy.json, also one from another device
    start: tuple[str, ...] = ()
    #: ``adaptive``: a trial is scored on a part of the validation split first and on all of it only where it can still
    #: win; ``full`` scores all trials on all of it
    fidelity: Literal["adaptive", "full"] = "adaptive"


class WorkersSpec(_Part):
    """Where trials run."""

    #: ``inline`` (this process), ``local`` (Ray here), ``auto`` or ``ray://host:port`` (an existing cluster)
    address: str = "local"
    count: int = Field(default=1, ge=1, le=4096, strict=True)
    #: a trial that takes longer is stopped, retried once, then FAILED
    trial_timeout: _Duration = "10m"
    memory_limit: _Bytes | None = None


class TimingSpec(_Part):
    """How latency is measured."""

    #: timed runs at the least, each in turns with the original
    runs: int = Field(default=30, ge=30, le=100_000, strict=True)
    #: measure peak memory of every trial (about a second each); always done when the budget bounds it
    peak_memory: bool = False
    #: measure the energy of every trial (about two seconds each where the hardware counts it); always done when the
    #: budget bounds it
    energy: bool = False
    #: a file of prices for hardware that counts no energy; the default is Horowitz' table of 2014
    energy_table: str | None = None


class Spec(_Part):
    """A whole search, validated.

    >>> spec = Spec(model="zoo:resnet8", data="data:digits", target={"runtime": "onnxruntime"})
    >>> spec.search.trials
    60
    """

    name: str = Field(default="search", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    #: ``module:callable``, a path to an ``.onnx`` file, or the object itself
    model: Any
    #: ``module:callable`` returning a `Dataset`, or the `Dataset` itself
    data: Any
    target: TargetSpec
    space: tuple[RuleSpec, ...] = (RuleSpec(layers="*", quantize=tuple(QUANTIZE_OPTIONS)),)
    graph: GraphSpec = GraphSpec()
    #: what may be trained after compression: ``none``, ``finetune``, ``distill``, or a mapping (see `Recovery`)
    recovery: tuple[Any, ...] = ("none",)
    budget: BudgetSpec = BudgetSpec()
    objective: Literal["latency", "accuracy", "size", "peak_memory", "peak_activation", "energy"] = "latency"
    search: SearchSpec = SearchSpec()
    workers: WorkersSpec = WorkersSpec()
    timing: TimingSpec = TimingSpec()
    #: what says which options pay: the device's own profile (omitted), ``none``, or the path of a profile's file
    profile: str | None = Field(default=None, min_length=1)

    @field_validator("model", "data")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if value is None or value == "":
            raise ValueError("must be module:callable, for example my_package.zoo:build")
        if isinstance(value, str) and not _is_source(value):
            raise ValueError(f"must be module:callable or a path ending in .onnx, got '{value}'")
        return value

    @field_validator("recovery")
    @classmethod
    def _readable_recovery(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        try:
            found = [Recovery.from_json(entry) for entry in value]
        except SpecError as error:
            raise ValueError(str(error).removeprefix("recovery: ")) from error
        if not found or len(set(found)) != len(found):
            raise ValueError("needs at least one recovery, and each only once")
        return value

    @property
    def recoveries(self) -> tuple[Recovery, ...]:
        """The recoveries on offer."""
        return tuple(Recovery.from_json(entry) for entry in self.recovery)

    @model_validator(mode="after")
    def _has_space(self) -> "Spec":
        if not self.space:
            raise ValueError("space: needs at least one rule, for example {layers: '*', quantize: [none, int8]}")
        return self

    @property
    def is_reproducible(self) -> bool:
        """Whether model and data are named, so that a file can hold the whole spec."""
        return isinstance(self.model, str) and isinstance(self.data, str)

    @property
    def unnamed(self) -> tuple[str, ...]:
        """``model`` and ``data`` as far as they were objects, of which a file holds nothing but a note."""
        return tuple(name for name in ("model", "data") if is_note(getattr(self, name)))

    def to_json(self) -> dict[str, Any]:
        """Returns the resolved spec as JSON values; objects become a note of their type."""
        raw = self.model_copy(update={"model": _name(self.model), "data": _name(self.data)})
        value: dict[str, Any] = raw.model_dump(mode="json", exclude_none=True)
        return value


def read_target(content: Any) -> Target:
    """Reads what `Target.to_json` wrote.

    Raises:
        ValueError: it is not a target; one line.
    """
    try:
        return TargetSpec(**content).to_target()
    except ValidationError as error:
        problem = error.errors()[0]
        raise ValueError(f"target.{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error


def is_note(value: Any) -> bool:
    """Whether a value is the note that `Spec.to_json` leaves of an object: its type in angle brackets."""
    return isinstance(value, str) and value.startswith("<") and value.endswith(" object>")


def _is_source(text: str) -> bool:
    return ":" in text or text.endswith(".onnx") or is_note(text)


def _name(value: Any) -> str:
    return value if isinstance(value, str) else f"<{type(value).__module__}.{type(value).__qualname__} object>"
