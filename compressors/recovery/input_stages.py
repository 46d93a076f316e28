"""Layers' inputs as they will be represented when the compressed layer computes."""

import torch
from torch import nn

from .straight_through import RoundPassing, RoundTensor, SignInput, round_to

#: weight of the newest batch in running means, as in batch norm
_MOMENTUM = 0.1
_MAX_UINT8 = 255


class RoundedInput(nn.Module):
    """Static int8: codes times a learned step. Where nothing negative was seen, no code stands for it."""

    step: nn.Parameter
    edges: torch.Tensor

    def __init__(self, seen: torch.Tensor, codes: str) -> None:
        """Chooses codes and the first step.

        Args:
            seen: (n,) values of a batch.
            codes: as `activation_scale` takes them: ``asymmetric``, ``symmetric`` or ``symmetric_signed``.
        """
        super().__init__()
        low, high = min(float(seen.min()), 0.0), max(float(seen.max()), 0.0)
        is_symmetric = codes == "symmetric_signed" or (codes == "symmetric" and low < 0)
        if is_symmetric:
            first, last, largest = -127, 127, max(-low, high) / 127
        else:
            largest = (high - low) / _MAX_UINT8
            first = -round(-low / largest) if largest > 0 else 0
            last = _MAX_UINT8 + first
        typical = 2 * float(seen.abs().mean()) / max(last, -first) ** 0.5
        steps = [step for step in (largest, typical) if step > 0] or [1.0]
        best = min(steps, key=lambda step: _rounding_error(seen, step, first, last))
        self.step = nn.Parameter(torch.tensor([best], dtype=torch.float32, device=seen.device))
        self.register_buffer("edges", torch.tensor([first, last]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, …) → the same shape."""
        first, last = self.edges.tolist()
        rounded: torch.Tensor = RoundTensor.apply(x, self.step, first, last)
        return rounded

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest value that has a code."""
        step, (first, last) = float(self.step.detach()), self.edges.tolist()
        return first * step, last * step


def _rounding_error(seen: torch.Tensor, step: float, first: int, last: int) -> float:
    return float((round_to(seen, step, first, last) - seen).square().sum())


class DynamicInput(nn.Module):
    """Dynamic int8: each batch has the range of its own values.

    Source: ONNX operator DynamicQuantizeLinear: scale = (max(x, 0) - min(x, 0)) / 255.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, …) → the same shape."""
        low, high = (float(edge) for edge in torch.aminmax(x.detach()))
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / _MAX_UINT8
        if scale == 0:
            return x
        zero = min(max(round(-low / scale), 0), _MAX_UINT8)
        rounded: torch.Tensor = RoundPassing.apply(x, scale, -zero, _MAX_UINT8 - zero)
        return rounded


class SignedInput(nn.Module):
    """Binary: the mean of x plus or minus the mean distance from it, both running means.

    Around 0 these are the signs times mean |x| of Rastegari et al., XNOR-Net (2016), section 3.2; what comes out of a
    Relu has no other signs.
    """

    middle: torch.Tensor
    distance: torch.Tensor

    def __init__(self, seen: torch.Tensor) -> None:
        """Starts from values of a batch: (n,)."""
        super().__init__()
        middle = seen.mean()
        self.register_buffer("middle", middle)
        self.register_buffer("distance", (seen - middle).abs().mean())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, …) → the same shape."""
        if self.training:
            known = x.detach()
            middle = known.mean(dtype=torch.float32)
            self.middle.lerp_(middle, _MOMENTUM)
            self.distance.lerp_((known - middle.to(known.dtype)).abs_().mean(dtype=torch.float32), _MOMENTUM)
        signs: torch.Tensor = SignInput.apply(x, *self.range)
        return signs

    @property
    def range(self) -> tuple[float, float]:
        """The two values; what lies below their middle becomes the first."""
        middle, distance = float(self.middle), float(self.distance)
        return middle - distance, middle + distance
