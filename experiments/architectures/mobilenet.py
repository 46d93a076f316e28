"""MobileNetV2 for images, Sandler et al. 2018, https://arxiv.org/abs/1801.04381, table 2."""

import torch
from torch import nn

from .untrained import make_divisible

#: expansion, channels, blocks, stride of the first block (table 2)
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_STEM, _HEAD = 32, 1280


class InvertedResidual(nn.Module):
    """A wide depthwise convolution between two narrow ends; the shortcut joins the ends (figure 4)."""

    def __init__(self, n_inputs: int, n_outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        n_inner = n_inputs * expansion
        self.expand = _conv_bn_relu6(n_inputs, n_inner, 1) if expansion != 1 else nn.Identity()
        self.depthwise = _conv_bn_relu6(n_inner, n_inner, 3, stride=stride, groups=n_inner)
        self.project = nn.Sequential(nn.Conv2d(n_inner, n_outputs, 1, bias=False), nn.BatchNorm2d(n_outputs))
        self.is_residual = stride == 1 and n_inputs == n_outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, n_inputs, h, w) → (batch, n_outputs, h / stride, w / stride)."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.is_residual else y


class MobileNetV2(nn.Module):
    """A stem, seventeen inverted residuals, a wide 1×1 convolution and a linear classifier.

    Args:
        width: factor of every number of channels; the last convolution never gets narrower than 1280.
        n_classes: outputs.

    >>> MobileNetV2(width=0.35).eval()(torch.zeros(2, 3, 96, 96)).shape
    torch.Size([2, 1000])
    """

    def __init__(self, width: float = 1.0, n_classes: int = 1000) -> None:
        super().__init__()
        n_inputs = make_divisible(_STEM * width)
        self.stem = _conv_bn_relu6(3, n_inputs, 3, stride=2)
        blocks = []
        for expansion, channels, n_blocks, stride in _STAGES:
            n_outputs = make_divisible(channels * width)
            for i in range(n_blocks):
                blocks.append(InvertedResidual(n_inputs, n_outputs, stride if i == 0 else 1, expansion))
                n_inputs = n_outputs
        self.blocks = nn.Sequential(*blocks)
        n_features = make_divisible(_HEAD * max(1.0, width))
        self.head = _conv_bn_relu6(n_inputs, n_features, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(n_features, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, size, size) float32 → (batch, n_classes) logits."""
        x = self.head(self.blocks(self.stem(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


def _conv_bn_relu6(n_inputs: int, n_outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_inputs, n_outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(n_outputs),
        nn.ReLU6(),
    )
