"""EfficientNet for images, Tan and Le 2019, https://arxiv.org/abs/1905.11946, table 1 and equation 3."""

import math

import torch
from torch import nn

from .untrained import make_divisible

#: expansion, kernel, stride of the first block, channels, blocks (table 1)
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_STEM, _HEAD = 32, 1280
#: inputs of a block per channel of its squeeze
_SQUEEZE = 4


class SqueezeExcite(nn.Module):
    """Weighs channels by what the whole image shows, Hu et al. 2018, https://arxiv.org/abs/1709.01507, section 3."""

    def __init__(self, n_channels: int, n_squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(n_channels, n_squeezed, 1)
        self.expand = nn.Conv2d(n_squeezed, n_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, n_channels, h, w) → the same shape."""
        gate = self.expand(nn.functional.silu(self.reduce(self.pool(x))))
        return x * torch.sigmoid(gate)


class MbConv(nn.Module):
    """An inverted residual with squeeze and excite behind its depthwise convolution."""

    def __init__(self, n_inputs: int, n_outputs: int, kernel: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        n_inner = n_inputs * expansion
        self.expand = _conv_bn_silu(n_inputs, n_inner, 1) if expansion != 1 else nn.Identity()
        self.depthwise = _conv_bn_silu(n_inner, n_inner, kernel, stride=stride, groups=n_inner)
        self.excite = SqueezeExcite(n_inner, max(1, n_inputs // _SQUEEZE))
        self.project = nn.Sequential(nn.Conv2d(n_inner, n_outputs, 1, bias=False), nn.BatchNorm2d(n_outputs))
        self.is_residual = stride == 1 and n_inputs == n_outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, n_inputs, h, w) → (batch, n_outputs, h / stride, w / stride)."""
        y = self.project(self.excite(self.depthwise(self.expand(x))))
        return x + y if self.is_residual else y


class EfficientNet(nn.Module):
    """A stem, seven stages of MBConv blocks, a wide 1×1 convolution and a linear classifier; B0 as it stands.

    Args:
        width: factor of every number of channels.
        depth: factor of every number of blocks, rounded up.
        n_classes: outputs.

    >>> EfficientNet(width=0.25, depth=0.5).eval()(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 1000])
    """

    def __init__(self, width: float = 1.0, depth: float = 1.0, n_classes: int = 1000) -> None:
        super().__init__()
        n_inputs = make_divisible(_STEM * width)
        self.stem = _conv_bn_silu(3, n_inputs, 3, stride=2)
        blocks = []
        for expansion, kernel, first_stride, channels, n_blocks in _STAGES:
            n_outputs = make_divisible(channels * width)
            for i in range(math.ceil(n_blocks * depth)):
                stride = first_stride if i == 0 else 1
                blocks.append(MbConv(n_inputs, n_outputs, kernel, stride=stride, expansion=expansion))
                n_inputs = n_outputs
        self.blocks = nn.Sequential(*blocks)
        n_features = make_divisible(_HEAD * width)
        self.head = _conv_bn_silu(n_inputs, n_features, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(n_features, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, size, size) float32 → (batch, n_classes) logits."""
        x = self.head(self.blocks(self.stem(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


def _conv_bn_silu(n_inputs: int, n_outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_inputs, n_outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(n_outputs),
        nn.SiLU(),
    )
