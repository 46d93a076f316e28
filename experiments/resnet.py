"""Residual networks for small grey images, after He et al., https://arxiv.org/abs/1512.03385, section 4.2."""

import torch
from torch import nn

_WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut; a 1×1 convolution is the shortcut where the shape changes."""

    def __init__(self, n_inputs: int, n_outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_inputs, n_outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_outputs)
        self.conv2 = nn.Conv2d(n_outputs, n_outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_outputs)
        self.downsample = nn.Identity()
        if stride != 1 or n_inputs != n_outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(n_inputs, n_outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(n_outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, n_inputs, h, w) → (batch, n_outputs, h / stride, w / stride)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNet(nn.Module):
    """Three stages of equally many blocks, 16, 32 and 64 channels wide; 6 · n_blocks + 2 layers deep.

    >>> ResNet(1)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, n_blocks: int, n_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.layer1 = _make_stage(_WIDTHS[0], _WIDTHS[0], 1, n_blocks)
        self.layer2 = _make_stage(_WIDTHS[0], _WIDTHS[1], 2, n_blocks)
        self.layer3 = _make_stage(_WIDTHS[1], _WIDTHS[2], 2, n_blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(_WIDTHS[2], n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 1, 28, 28) float32 → (batch, n_classes) logits."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


def _make_stage(n_inputs: int, n_outputs: int, stride: int, n_blocks: int) -> nn.Sequential:
    first = BasicBlock(n_inputs, n_outputs, stride)
    return nn.Sequential(first, *(BasicBlock(n_outputs, n_outputs, 1) for _ in range(n_blocks - 1)))
