"""What a device can do, measured: bandwidth, peak rates, and which options are really faster there."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from ..core.errors import ProfileError
from ..core.files import read_json, write_json
from .kernels.table_identity import TableIdentity
from .profile import HardwareProfile

#: version of the file's form; a file of another one is refused
SCHEMA_VERSION = 1

#: share of the time that an option must save: of dozens of figures some are below 1 by luck, float16's among them
LEAST_GAIN = 0.02

#: runtimes pad channels to whole vectors: 16 float32 values, or 16 rows of an integer dot product, on AVX512
_ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes that one elementwise operator reads and writes in a second."""

    #: where the bytes lie: a cache of `HardwareProfile.caches_bytes`, or ``memory``
    level: str
    #: bytes read and written in one run
    working_set_bytes: int
    bytes_per_s: float
    iqr_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class PeakRate:
    """Operations in a second of one large layer; a multiply-accumulate counts as two."""

    #: ``matmul`` or ``conv``
    operation: str
    #: a precision, or an integer quantize option
    dtype: str
    operations_per_s: float
    iqr_operations_per_s: float


@dataclass(frozen=True, slots=True)
class ContextFigure:
    """One layer between its neighbours: the time with the option over the time without it."""

    #: what the neighbours are: ``float`` or ``int8``, and the precision where it is not float32
    context: str
    #: the layer's weight and the size of its input, for people
    shape: str
    ratio: float
    #: half width of the ratio's confidence interval, 97 % of the median over blocks of timing
    error: float
    #: seconds of the whole without the option
    none_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an option makes a kind of layer faster.

    >>> figure = ContextFigure("float", "384×1536", ratio=1.02, error=0.01, none_s=1e-3)
    >>> Verdict("linear", "sequence", "int8_weight", (figure,)).pays
    False
    """

    kind: str
    #: the part of the kind that it holds for, see `variant_of`
    variant: str
    #: a quantize option, ``sparsity 2:4`` or ``odd channels``
    option: str
    figures: tuple[ContextFigure, ...]

    @property
    def best(self) -> ContextFigure:
        """The figure that speaks most for the option."""
        return min(self.figures, key=lambda figure: figure.ratio + figure.error)

    @property
    def pays(self) -> bool:
        """Whether the option is faster in any context, beyond the error and by more than `LEAST_GAIN`."""
        return self.best.ratio + self.best.error < 1.0 - LEAST_GAIN

    @property
    def is_worth_trying(self) -> bool:
        """Whether a search should try it: where it pays, and static int8 also where it is no slower beyond the error.

        An int8 layer as fast as the float one may still spare its neighbours their borders.
        """
        return self.pays or (self.option == "int8" and any(one.ratio - one.error <= 1.0 for one in self.figures))


@dataclass(frozen=True)
class DeviceProfile:
    """The measurements of one device under one runtime with its settings."""

    identity: HardwareProfile
    bandwidths: tuple[Bandwidth, ...]
    peak_rates: tuple[PeakRate, ...]
    verdicts: tuple[Verdict, ...]
    #: how far the ratio of one model to itself was from 1; it is contained in every error
    null_deviation: float
    #: when it was measured, ISO date
    measured_on: str

    @property
    def key(self) -> TableIdentity:
        """What it is valid for."""
        return profile_key(self.identity)

    def find(self, kind: str, variant: str, option: str) -> Verdict | None:
        """Returns the verdict on an option, None where nothing was measured."""
        wanted = (kind, variant, option)
        return next((one for one in self.verdicts if (one.kind, one.variant, one.option) == wanted), None)

    def require(self, identity: HardwareProfile) -> None:
        """Makes sure that the profile speaks of this device.

        Raises:
            ProfileError: it was measured on another device, runtime version or setting; the message says which.
        """
        difference = profile_key(identity).describe_difference(self.key)
        if difference:
            raise ProfileError(
                f"the device profile is not of this device: {difference.replace('in the table', 'in the profile')}"
            )

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "identity": self.identity.to_json(),
            "bandwidths": [asdict(one) for one in self.bandwidths],
            "peak_rates": [asdict(one) for one in self.peak_rates],
            "verdicts": [{**asdict(one), "pays": one.pays} for one in self.verdicts],
            "null_deviation": self.null_deviation,
            "measured_on": self.measured_on,
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Reads what `to_json` wrote.

        Raises:
            ProfileError: a part is missing, is no number, or contradicts another.
        """
        if not isinstance(value, dict) or value.get("schema_version") != SCHEMA_VERSION:
            found = value.get("schema_version") if isinstance(value, dict) else None
            raise ProfileError(f"schema_version must be {SCHEMA_VERSION}, got {found!r}; measure the profile again")
        try:
            profile = cls(
                identity=HardwareProfile.from_json(value["identity"]),
                bandwidths=tuple(Bandwidth(**one) for one in value["bandwidths"]),
                peak_rates=tuple(PeakRate(**one) for one in value["peak_rates"]),
                verdicts=tuple(_read_verdict(one) for one in value["verdicts"]),
                null_deviation=float(value["null_deviation"]),
                measured_on=str(value["measured_on"]),
            )
            _check_numbers(profile)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProfileError(f"a device profile is damaged: {error!r}; measure it again") from error
        return profile


def profile_key(identity: HardwareProfile) -> TableIdentity:
    """Returns what verdicts depend on: processor, instruction sets, runtime, version, device, threads, batch size."""
    return TableIdentity.of(identity, {"batch_size": identity.target.batch_size})


def variant_of(kind: str, weight_shape: Sequence[int], output_shape: Sequence[int]) -> str:
    """Returns the part of a layer kind in which verdicts agree; empty where the kind has one, or it is not known.

    Convolutions differ by kernel (1×1 is a matrix product) and by whether both numbers of channels are multiples of
    16, linear layers by whether they see one row or a sequence.

    >>> variant_of("conv", (64, 64, 3, 3), (-1, 64, 56, 56)), variant_of("linear", (1280, 1000), (-1, 1000))
    ('k×k', 'rows')
    """
    if kind == "conv":
        size = "1×1" if all(side == 1 for side in weight_shape[2:]) else "k×k"
        is_odd = any(n_channels % _ALIGNMENT for n_channels in weight_shape[:2])
        return f"{size} odd" if is_odd else size
    if kind == "linear" and output_shape:
        return "rows" if len(output_shape) == 2 else "sequence"
    return ""


def write_device_profile(path: Path, profile: DeviceProfile) -> None:
    """Writes a profile atomically."""
    write_json(path, profile.to_json())


def read_device_profile(path: Path) -> DeviceProfile:
    """Reads a profile.

    Raises:
        ProfileError: the file is missing, damaged or of another version; the message names it.
    """
    content = read_json(path, noun="device profile", error=ProfileError)
    try:
        return DeviceProfile.from_json(content)
    except ProfileError as error:
        raise ProfileError(f"{path}: {error}") from error


def _read_verdict(value: Any) -> Verdict:
    figures = tuple(ContextFigure(**one) for one in value["figures"])
    if not figures:
        raise ValueError("a verdict needs at least one figure")
    verdict = Verdict(value["kind"], value["variant"], value["option"], figures)
    if verdict.pays is not value["pays"]:
        raise ValueError(f"the figures of {verdict.option} on {verdict.kind} contradict its verdict")
    return verdict


def _check_numbers(profile: DeviceProfile) -> None:
    """Raises ValueError where a measurement is not a positive number, or a spread is negative."""
    medians = [one.bytes_per_s for one in profile.bandwidths]
    medians += [one.operations_per_s for one in profile.peak_rates]
    spreads = [one.iqr_bytes_per_s for one in profile.bandwidths]
    spreads += [one.iqr_operations_per_s for one in profile.peak_rates] + [profile.null_deviation]
    for verdict in profile.verdicts:
        medians += [number for figure in verdict.figures for number in (figure.ratio, figure.none_s)]
        spreads += [figure.error for figure in verdict.figures]
    if not all(math.isfinite(number) and number > 0 for number in medians):
        raise ValueError("a measurement is not a positive number")
    if not all(math.isfinite(number) and number >= 0 for number in spreads):
        raise ValueError("a spread is not a number from 0 up")
