"""What training needs besides the model: data, teachers, and a place where trained models are kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Training:
    """Data and teachers of recovery; picklable, so that workers receive it."""

    #: model input name → (n_samples, …) array
    inputs: Mapping[str, np.ndarray]
    #: (n_samples, …) array; None where only a teacher is learned from
    labels: np.ndarray | None
    #: what is minimised: a name, ``module:callable`` or the callable; None picks by the labels
    loss: Any = None
    #: digest of model and data: a trained model is only found again for the same ones
    digest: str = ""
    seed: int = 0
    #: where trained models are kept; None keeps none
    folder: Path | None = None
    #: ``module:callable`` → the teacher, where it was given as an object
    teachers: Mapping[str, Any] = field(default_factory=dict)
