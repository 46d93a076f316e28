"""Residual networks for large colour images, He et al. 2015, https://arxiv.org/abs/1512.03385, table 1."""

import torch
from torch import nn

from ..resnet import BasicBlock
from .untrained import make_divisible

_WIDTHS = (64, 128, 256, 512)


class LargeImageResNet(nn.Module):
    """A 7×7 stem and four stages of basic blocks; (2, 2, 2, 2) blocks make ResNet-18, (3, 4, 6, 3) ResNet-34.

    Args:
        n_blocks: basic blocks per stage.
        width: factor of every number of channels.
        n_classes: outputs.

    >>> LargeImageResNet((1, 1, 1, 1), width=0.125).eval()(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 1000])
    """

    def __init__(
        self, n_blocks: tuple[int, int, int, int] = (2, 2, 2, 2), width: float = 1.0, n_classes: int = 1000
    ) -> None:
        super().__init__()
        widths = [make_divisible(channels * width) for channels in _WIDTHS]
        self.conv1 = nn.Conv2d(3, widths[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        blocks = []
        n_inputs = widths[0]
        for stage, (n_outputs, n) in enumerate(zip(widths, n_blocks, strict=True)):
            for i in range(n):
                blocks.append(BasicBlock(n_inputs, n_outputs, 2 if stage > 0 and i == 0 else 1))
                n_inputs = n_outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(n_inputs, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, size, size) float32 → (batch, n_classes) logits."""
        x = self.blocks(self.maxpool(torch.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.pool(x), 1))
