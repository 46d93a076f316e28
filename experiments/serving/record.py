"""What is recorded when an artifact is made, so that its service can be compared with it."""

from dataclasses import dataclass, field

import numpy as np

from ...evaluators.accuracy import run_split
from ...evaluators.dataset import Split
from ...evaluators.device import Executable
from ...evaluators.measurement import Estimate
from ...evaluators.metrics import estimate
from .agreement import compare_outputs
from .input_statistics import InputStatistics, record_inputs

#: samples on which artifact and original are compared, at most
MAX_COMPARED = 500


@dataclass(frozen=True)
class Expectation:
    """What service is expected to look like; the fields are the manifest's."""

    input_statistics: InputStatistics = field(default_factory=dict)
    agreement: Estimate | None = None


def record_expectation(
    executable: Executable, original: Executable | list[np.ndarray], split: Split, *, batch_size: int
) -> Expectation:
    """Returns the statistics of a split's inputs, and how often artifact and original agree on its first samples.

    Args:
        executable: what will be served.
        original: the untouched model; or what it returned of the whole split: per model output an (n, …) array.
        split: samples as service will see them, such as the validation split.
        batch_size: of the target.

    Raises:
        MeasurementError: the runtime fails.
    """
    part = split.take(slice(MAX_COMPARED))
    if isinstance(original, list):
        reference = [array[:MAX_COMPARED] for array in original]
    else:
        reference = run_split(original, part, batch_size=batch_size)
    scores = compare_outputs(run_split(executable, part, batch_size=batch_size), reference)
    return Expectation(record_inputs(split.inputs), estimate(scores) if len(scores) > 1 else None)
