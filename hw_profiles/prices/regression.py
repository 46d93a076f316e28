"""Tree ensembles on what a roofline leaves unexplained."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...core.errors import SpecError
from ..kernels.kernel import Kernel
from ..kernels.kernel_features import describe_kind, measure_work, stack_features
from .predictors import SHORTEST_S, check_timings
from .roofline import Roofline

#: families with fewer kernels than this keep the roofline
_ENOUGH = 20


@dataclass
class TreeEnsemble:
    """Gradient boosting or a random forest per family, on the logarithm of time over roofline."""

    #: "boosting" or "forest"
    method: str = "boosting"
    _roofline: Roofline = field(default_factory=Roofline)
    _models: dict[str, Any] = field(default_factory=dict)
    _codes: dict[str, int] = field(default_factory=dict)

    def fit(self, kernels: Sequence[Kernel], seconds: np.ndarray) -> None:
        """Learns; see `KernelPredictor.fit`."""
        logs = np.log(np.maximum(check_timings(kernels, seconds), SHORTEST_S))
        self._roofline = Roofline()
        self._roofline.fit(kernels, seconds)
        residuals = logs - np.log(self._roofline.predict(kernels)[0])
        parts = sorted({part for kernel in kernels for part in describe_kind(kernel)[:4]})
        self._codes = {part: code for code, part in enumerate(parts)}
        features = self._encode(kernels)
        families = np.array([measure_work(kernel).family for kernel in kernels])
        self._models = {}
        for family in sorted(set(families)):
            mine = families == family
            if mine.sum() >= _ENOUGH:
                self._models[family] = _make_model(self.method).fit(features[mine], residuals[mine])

    def predict(self, kernels: Sequence[Kernel]) -> tuple[np.ndarray, np.ndarray]:
        """Returns medians and errors; see `KernelPredictor.predict`."""
        medians, errors = self._roofline.predict(kernels)
        if not len(kernels):
            return medians, errors
        features = self._encode(kernels)
        families = np.array([measure_work(kernel).family for kernel in kernels])
        for family, model in self._models.items():
            mine = families == family
            if mine.any():
                medians[mine] *= np.exp(model.predict(features[mine]))
        return medians, errors

    def _encode(self, kernels: Sequence[Kernel]) -> np.ndarray:
        codes = [[self._codes.get(part, -1) for part in describe_kind(kernel)[:4]] for kernel in kernels]
        return np.hstack([stack_features(kernels), np.array(codes, float).reshape(len(kernels), 4)])


def build_random_forest() -> TreeEnsemble:
    """Makes an unfitted random forest; nn-Meter uses one, https://doi.org/10.1145/3458864.3467882, section 4.3."""
    return TreeEnsemble("forest")


def build_gradient_boosting() -> TreeEnsemble:
    """Makes unfitted gradient boosting."""
    return TreeEnsemble("boosting")


def _make_model(method: str) -> Any:
    try:
        from sklearn import ensemble
    except ImportError as error:
        raise SpecError("scikit-learn is not installed; pip install 'trimtab[forest]'") from error
    if method == "forest":
        return ensemble.RandomForestRegressor(
            n_estimators=100, min_samples_leaf=2, max_features=0.5, random_state=0, n_jobs=1
        )
    return ensemble.GradientBoostingRegressor(
        n_estimators=150,
        max_depth=4,
        learning_rate=0.08,
        subsample=0.7,
        min_samples_leaf=3,
        loss="huber",
        random_state=0,
    )
