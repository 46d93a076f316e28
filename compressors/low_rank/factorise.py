"""Low rank: a weight becomes two or three smaller ones, where that takes fewer elements and less arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...core.errors import PolicyError
from ...spaces.layer import Layer
from ...spaces.treatment import Treatment
from ..layer_inputs import LayerInputs, weight_matrix
from .factor_shapes import FactorShape, Form, LayerGeometry, count_elements, count_macs, count_places, factor_shapes
from .fits import (
    Spectrum,
    damp,
    error_of,
    fit_spatial,
    fit_tucker,
    inner_moments,
    input_matrix,
    spatial_matrix,
)

#: what rounding may take: of a share times a count, or of the error in relation to the weight
_TINY = 1e-9
#: forms whose errors differ by less than this factor are equally good, and the smaller one is taken
_TIE = 1.0 + 1e-4


@dataclass(frozen=True)
class Factors:
    """A layer taken apart: layers in a row, without biases."""

    form: Form
    shapes: tuple[FactorShape, ...]
    #: float32, stored as the layer's own weight is
    weights: tuple[np.ndarray, ...]
    #: E‖(W − W')x‖² with ``rank_error: output``, else ‖W − W'‖²
    error: float


def choose_rank(share: float, per_rank: int, *, geometry: LayerGeometry, energies: np.ndarray | None = None) -> int:
    """Returns the rank of a form that has one.

    Args:
        share: of the weight's elements that the factors may have; with energies, of their sum that must stay.
        per_rank: elements of the factors for each rank.
        geometry: the layer.
        energies: (n,) squared singular values, descending.
    """
    if energies is None:
        return int(share * geometry.n_elements / per_rank + _TINY)
    total = float(energies.sum())
    return int(np.searchsorted(np.cumsum(energies), (share - _TINY) * total) + 1) if total > 0 else 1


def why_not_low_rank(layer: Layer | LayerGeometry, treatment: Treatment) -> str | None:
    """Returns why a layer cannot be taken apart as a treatment says, as far as shapes tell; None where it can.

    Of a `Layer` neither groups nor strides are known: it is taken to have one group and to move by one, and
    `factorise` may refuse what passes here. How far ``energy`` goes is known from the weight only.
    """
    geometry = layer if isinstance(layer, LayerGeometry) else LayerGeometry.of(layer)
    if treatment.rank == 1.0:
        return None
    forms = _forms(geometry, treatment)
    if isinstance(forms, str):
        return forms
    reasons = [_why_too_dear(geometry, form, _smallest_ranks(geometry, form, treatment), treatment) for form in forms]
    return None if None in reasons else reasons[0]


def factorise(
    weight: np.ndarray, treatment: Treatment, geometry: LayerGeometry, *, inputs: LayerInputs | None = None
) -> Factors:
    """Takes a weight apart.

    Args:
        weight: float32, as the graph stores it: (in, out) of a linear layer, (out, in, *kernel) of a convolution.
        treatment: its fields of low rank; ``rank`` below 1.
        geometry: the layer; its ``weight_shape`` is that of the weight.
        inputs: what enters the layer; needed for ``rank_error: output``.

    Raises:
        PolicyError: the layer has groups or a kind without low rank, no rank is left, or the factors would take as
            many elements or as much arithmetic as the layer itself.
    """
    forms = _forms(geometry, treatment)
    if isinstance(forms, str):
        raise PolicyError(f"layer {geometry.name}: {forms}")
    if treatment.rank_error == "output" and inputs is None:
        raise PolicyError(f"layer {geometry.name}: low rank by output needs calibration data, got none")
    fit = _Fit(weight.astype(np.float64), treatment, geometry, inputs)
    found, refused = [], []
    for form in forms:
        ranks = fit.choose_ranks(form)
        reason = _why_too_dear(geometry, form, ranks, treatment)
        if reason is None:
            found.append(fit.build(form, ranks))
        else:
            refused.append(reason)
    if not found:
        raise PolicyError(f"layer {geometry.name}: {refused[0]}")
    if treatment.rank_by == "energy":  # all keep the share that was asked for
        return min(found, key=lambda factors: count_elements(factors.shapes))
    bound = min(factors.error for factors in found) * _TIE + fit.size * _TINY
    return min((f for f in found if f.error <= bound), key=lambda factors: count_elements(factors.shapes))


def _forms(geometry: LayerGeometry, treatment: Treatment) -> tuple[Form, ...] | str:
    """Returns the forms to try, or why there is none."""
    wanted, window = treatment.decomposition, geometry.window
    if geometry.kind == "linear":
        return ("linear",)
    if window is None:
        return f"low rank exists for convolutions and linear layers, and this is a layer of kind {geometry.kind}"
    if window.n_groups > 1:
        return (
            f"low rank exists for convolutions of one group, and this one has {window.n_groups}, each of which is "
            "small already; leave low_rank out and prune channels instead"
        )
    n_axes = len(window.kernel)
    if n_axes != 2 and wanted in ("spatial", "tucker"):
        return f"the decomposition {wanted} exists for convolutions with 2 axes, and this one has {n_axes}; use channel"
    if wanted != "auto":
        return (wanted,)  # type: ignore[return-value]  # checked by Treatment
    return ("channel",) if n_axes != 2 or window.kernel == (1, 1) else ("channel", "spatial", "tucker")


def _smallest_ranks(geometry: LayerGeometry, form: Form, treatment: Treatment) -> tuple[int, ...]:
    """Returns the ranks that shapes decide, or else the smallest there are."""
    if form == "tucker":
        return (1, 1)
    if treatment.rank_by == "energy":
        return (1,)
    per_rank = count_elements(factor_shapes(geometry, form, (1,)))
    return (choose_rank(treatment.rank, per_rank, geometry=geometry),)


def _why_too_dear(geometry: LayerGeometry, form: Form, ranks: tuple[int, ...], treatment: Treatment) -> str | None:
    """Returns why these factors are no gain, or None; a rank of 0 says that none was small enough."""
    ranks = tuple(max(rank, 1) for rank in ranks)
    shapes, n_layer = factor_shapes(geometry, form, ranks), geometry.n_elements
    n_factors, written = count_elements(shapes), " and ".join(map(str, ranks))
    if treatment.rank_by == "ratio" and n_factors > treatment.rank * n_layer + _TINY:
        return (
            f"low rank ({form}) has {n_factors} elements even with rank {written}, and {treatment.rank:g} of the "
            f"layer's {n_layer} were asked for; raise the share or leave low_rank out"
        )
    if n_factors >= n_layer:
        return (
            f"low rank ({form}) with rank {written} has {n_factors} elements, and the layer itself {n_layer}; "
            "lower the share or leave low_rank out"
        )
    times = count_macs(geometry, shapes) / count_macs(geometry, [FactorShape(geometry.weight_shape, geometry.window)])
    if times >= 1.0:
        return (
            f"low rank ({form}) with rank {written} takes {times:.3g} times the layer's own multiply-accumulates; "
            "lower the share, use channel, or leave low_rank out"
        )
    return None


class _Fit:
    """One weight, and what has been computed of it for several forms."""

    def __init__(
        self, weight: np.ndarray, treatment: Treatment, geometry: LayerGeometry, inputs: LayerInputs | None
    ) -> None:
        self._weight = weight
        self._treatment = treatment
        self._geometry = geometry
        is_aware = treatment.rank_error == "output" and inputs is not None
        self._moments = damp(inputs.moments[0]) if is_aware and inputs is not None else None
        self._matrix = weight_matrix(weight, n_groups=1, kind=geometry.kind)[0]
        self._spectra: dict[Form, Spectrum] = {}
        #: what counts as all of the error
        self.size = error_of(self._matrix, self._moments)

    def choose_ranks(self, form: Form) -> tuple[int, ...]:
        """Returns the ranks of a form; 0 where there is none."""
        if form == "tucker":
            return self._choose_tucker()
        energies = self._spectrum(form).energies if self._treatment.rank_by == "energy" else None
        per_rank = count_elements(factor_shapes(self._geometry, form, (1,)))
        return (choose_rank(self._treatment.rank, per_rank, geometry=self._geometry, energies=energies),)

    def build(self, form: Form, ranks: tuple[int, ...]) -> Factors:
        """Returns the best factors of these ranks."""
        if form == "tucker":
            before, behind = ranks
            weights = fit_tucker(self._weight, (before, behind), self._moments)
        elif form == "spatial":
            weights = fit_spatial(self._spectrum(form), self._weight, ranks[0], self._moments)
        else:
            left, right = self._spectrum(form).truncate(ranks[0])
            shapes = factor_shapes(self._geometry, form, ranks)
            parts = (right, left) if form == "channel" else (right.T, left.T)
            weights = [part.reshape(shape.weight_shape) for part, shape in zip(parts, shapes, strict=True)]
        error = error_of(self._matrix - self._whole(form, weights), self._moments)
        stored = tuple(np.ascontiguousarray(weight, np.float32) for weight in weights)
        return Factors(form, factor_shapes(self._geometry, form, ranks), stored, error)

    def _whole(self, form: Form, weights: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the (out, K) matrix that the factors stand for."""
        if form == "linear":
            return np.asarray((weights[0] @ weights[1]).T)
        first, last = weights[0], weights[-1]
        whole = first.reshape(len(first), -1)
        if form == "spatial":
            whole = np.einsum("riy,orx->oiyx", first[..., 0], last[:, :, 0], optimize=True)
            return np.asarray(whole.reshape(len(last), -1))
        if form == "tucker":
            core = np.einsum("srkl,ri->sikl", weights[1], first[:, :, 0, 0], optimize=True)
            whole = core.reshape(len(core), -1)
        return np.asarray(last.reshape(len(last), -1) @ whole)

    def _spectrum(self, form: Form) -> Spectrum:
        if form not in self._spectra:
            if form == "spatial":
                moments = inner_moments(self._moments, self._weight.shape[3])
                self._spectra[form] = Spectrum(spatial_matrix(self._weight), moments)
            elif form == "tucker":  # of the inputs; that of the outputs is the one of ``channel``
                n_elements = int(np.prod(self._weight.shape[2:]))
                self._spectra[form] = Spectrum(input_matrix(self._weight), inner_moments(self._moments, n_elements))
            else:
                self._spectra[form] = Spectrum(self._matrix, self._moments)
        return self._spectra[form]

    def _choose_tucker(self) -> tuple[int, int]:
        """Returns the two ranks with the least bound on the error, or with the fewest elements for a bound.

        Source of the bound: De Lathauwer et al. 2000, "A multilinear singular value decomposition", property 10:
        the squared error is at most the sum of the squared singular values that each unfolding loses.
        """
        n_out, n_in, *kernel = self._weight.shape
        lost_in = _lost(self._spectrum("tucker").energies, n_in)
        lost_out = _lost(self._spectrum("channel").energies, n_out)
        before, behind = np.meshgrid(np.arange(1, n_in + 1), np.arange(1, n_out + 1), indexing="ij")
        n_kernel = int(np.prod(kernel))
        lost = lost_in[before] + lost_out[behind]
        parts = (before * n_in, before * behind * n_kernel, behind * n_out)
        fits = (before <= behind * n_kernel) & (behind <= before * n_kernel)
        if self._treatment.rank_by == "energy":
            fits &= lost <= 1.0 - self._treatment.rank + _TINY
            cost = np.where(fits, sum(parts), np.inf)
        else:
            fits &= sum(parts) <= self._treatment.rank * self._geometry.n_elements + _TINY
            n_before, n_behind = count_places(self._geometry)
            fits &= parts[0] * n_before + (parts[1] + parts[2]) * n_behind < self._geometry.n_elements * n_behind
            cost = np.where(fits, lost, np.inf)
        best = np.unravel_index(np.argmin(cost), cost.shape)
        return (int(before[best]), int(behind[best])) if np.isfinite(cost[best]) else (0, 0)


def _lost(energies: np.ndarray, n: int) -> np.ndarray:
    """Returns the share of the sum that ranks 0 … n lose: (n + 1,), descending."""
    total = float(energies.sum())
    kept = np.cumsum(energies) / total if total > 0 else np.ones(len(energies))
    lost = np.zeros(n + 1)
    lost[0], lost[1 : len(kept) + 1] = 1.0, np.maximum(1.0 - kept, 0.0)
    return lost
