"""What a search and an agent say to each other: orders in JSON, arrays in safetensors, nothing else.

Every value that comes from the other side is read here: types, ranges and sizes hold afterwards, or a `WireError` says
what does not. One body holds the JSON (as a tensor of bytes named ``order``) and its arrays (``0``, ``1`` …).
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..latency import MOST_RUNS, TimingSettings

#: version of what is said; both sides must speak the same
PROTOCOL = 1
#: a model, an order with its arrays, and an answer with its arrays may have so many bytes
MAX_ARTIFACT_BYTES = 512 * 2**20
MAX_ORDER_BYTES = 64 * 2**20
MAX_ANSWER_BYTES = 256 * 2**20
#: answers without arrays
MAX_JSON_BYTES = 2**20
MAX_BATCHES = 64
_MAX_ARRAYS = 65536
_ORDER = "order"

#: headers: the lease that a request stands under, and the life of the agent that answers
LEASE_HEADER, BOOT_HEADER = "X-Trimtab-Lease", "X-Trimtab-Boot"

#: ids that a client draws for its leases and orders: nobody can guess another's
ID = r"^[0-9a-f]{32}$"
_SHA256 = r"^[0-9a-f]{64}$"
_Name = Annotated[str, Field(max_length=1024)]
_Count = Annotated[int, Field(ge=1, le=65536)]
_Seconds = Annotated[float, Field(ge=0, le=3600)]
_Share = Annotated[float, Field(gt=0, le=1e6)]

Part = TypeVar("Part", bound="WirePart")


class WireError(ValueError):
    """What the other side said is not what this version understands."""


class WirePart(BaseModel):
    """One JSON object: no unknown keys, no conversions, no infinities."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ArtifactName(WirePart):
    """An `Artifact` without its bytes, which the agent knows by their digest."""

    sha256: str = Field(pattern=_SHA256)
    precision: str = Field(max_length=32)
    dynamic_activations: bool
    full_precision: tuple[_Name, ...] = Field(max_length=65536)


class Settings(WirePart):
    """`TimingSettings` within what an agent lets others ask for."""

    warm_up_runs: int = Field(ge=0, le=10_000)
    min_runs: int = Field(ge=5, le=MOST_RUNS)
    max_runs: int = Field(ge=5, le=MOST_RUNS)
    min_time_s: _Seconds
    max_time_s: _Seconds
    max_spread: _Share
    max_uncertainty: _Share
    max_drift: _Share
    attempts: int = Field(ge=1, le=100)
    lock_timeout_s: _Seconds

    def to_settings(self) -> TimingSettings:
        """Returns the same as `TimingSettings`.

        Raises:
            SpecError: they do not fit each other.
        """
        return TimingSettings(**self.model_dump())


class Order(WirePart):
    """What to do with some artifacts and some arrays.

    ``run``: the first artifact, with ``n_batches`` batches of every input; without a batch it is only loaded.
    ``time``: all artifacts in turns on one batch; None stands for the yardstick.
    ``peak_memory``: the first artifact on one batch.
    """

    kind: Literal["run", "time", "peak_memory"]
    artifacts: tuple[ArtifactName | None, ...] = Field(min_length=1, max_length=64)
    threads: int = Field(ge=1, le=1024)
    batch_size: _Count
    inputs: tuple[_Name, ...] = Field(max_length=256)
    n_batches: int = Field(default=1, ge=0, le=MAX_BATCHES)
    settings: Settings | None = None


class Health(WirePart):
    """What an agent says to everybody."""

    status: Literal["ok"]
    protocol: int
    boot: str = Field(pattern=ID)


class Lease(WirePart):
    """The sole use of an agent's machine, until it is given back, or not renewed for so long."""

    id: str = Field(pattern=ID)
    expires_in_s: float = Field(gt=0, le=3600)


class Refusal(WirePart):
    """Why a request came to nothing."""

    error: Literal["unauthorized", "busy", "unknown_artifact", "measurement", "request", "pending", "failed"]
    detail: str = Field(max_length=4096)


def read_part(kind: type[Part], content: bytes | bytearray) -> Part:
    """Reads one JSON object.

    Raises:
        WireError: it is no such object.
    """
    try:
        return kind.model_validate_json(bytes(content))
    except (ValidationError, RecursionError) as error:
        raise WireError(f"{kind.__name__}: {_first_complaint(error)}") from error


def pack(part: WirePart, arrays: Sequence[np.ndarray]) -> bytes:
    """Returns one body of a JSON object and arrays.

    Raises:
        WireError: an array's type cannot be sent.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save

    order = np.frombuffer(part.model_dump_json().encode(), dtype=np.uint8)
    tensors = {str(position): np.asarray(array, order="C") for position, array in enumerate(arrays)}
    try:
        return save({_ORDER: order, **tensors})
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        names = ", ".join(sorted({str(array.dtype) for array in arrays}))
        raise WireError(f"arrays must be numbers or truth values, got {names}") from error


def unpack(kind: type[Part], body: bytes | bytearray) -> tuple[Part, list[np.ndarray]]:
    """Reads what `pack` wrote; the arrays can be written to.

    Raises:
        WireError: it is something else.
    """
    from safetensors.numpy import load

    try:
        tensors: dict[str, np.ndarray] = load(bytes(body))
    except Exception as error:  # a parser of foreign bytes, and numpy's own complaints about shapes and types
        raise WireError(f"not a body of safetensors: {type(error).__name__}") from error
    order = tensors.pop(_ORDER, None)
    if order is None or order.dtype != np.uint8 or len(tensors) > _MAX_ARRAYS:
        raise WireError(f"a body needs its order as bytes, and at most {_MAX_ARRAYS} arrays; got {len(tensors)}")
    part = read_part(kind, order.tobytes())
    try:
        return part, [tensors[str(position)].copy() for position in range(len(tensors))]
    except KeyError as error:
        raise WireError("arrays must be numbered from 0 without gaps") from error


class Arrays(WirePart):
    """The answer to an order: nothing but arrays follow."""

    #: of ``run``: outputs per batch; of the others 1
    n_outputs: int = Field(ge=0, le=4096)


def _first_complaint(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return type(error).__name__
    first: Any = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"[:500]
