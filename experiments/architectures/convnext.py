"""ConvNeXt for images, Liu et al. 2022, https://arxiv.org/abs/2201.03545, figure 4 and section 2.

Layer scale and stochastic depth, which only training needs, are left out.
"""

import torch
from torch import nn
from torch.nn import functional

#: what the published code adds to the variance
_EPSILON = 1e-6
#: pixels per side that the stem makes one
_PATCH = 4
_EXPANSION = 4


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of every pixel, channels first, written out as the published code does."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_channels))
        self.bias = nn.Parameter(torch.zeros(n_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, n_channels, h, w) → the same shape."""
        centred = x - x.mean(1, keepdim=True)
        normal = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + _EPSILON)
        return self.weight[:, None, None] * normal + self.bias[:, None, None]


class Block(nn.Module):
    """A 7×7 depthwise convolution, then two linear layers with channels last, beside a shortcut."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(n_channels, n_channels, 7, padding=3, groups=n_channels)
        self.norm = nn.LayerNorm(n_channels, eps=_EPSILON)
        self.expand = nn.Linear(n_channels, _EXPANSION * n_channels)
        self.project = nn.Linear(_EXPANSION * n_channels, n_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, n_channels, h, w) → the same shape."""
        y = self.depthwise(x).permute(0, 2, 3, 1)  # (batch, h, w, n_channels)
        y = self.project(functional.gelu(self.expand(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """A patchwise stem, four stages of blocks with halvings between them, and a linear classifier.

    Args:
        n_blocks: blocks per stage.
        widths: channels per stage.
        n_classes: outputs.

    >>> ConvNeXt((1, 1, 1, 1), (8, 16, 32, 64)).eval()(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 1000])
    """

    def __init__(
        self,
        n_blocks: tuple[int, int, int, int] = (2, 2, 6, 2),
        widths: tuple[int, int, int, int] = (40, 80, 160, 320),
        n_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], _PATCH, stride=_PATCH), ChannelNorm(widths[0]))
        stages: list[nn.Module] = []
        for i, (n_channels, n) in enumerate(zip(widths, n_blocks, strict=True)):
            if i > 0:
                stages += [ChannelNorm(widths[i - 1]), nn.Conv2d(widths[i - 1], n_channels, 2, stride=2)]
            stages += [Block(n_channels) for _ in range(n)]
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(widths[-1], eps=_EPSILON)
        self.fc = nn.Linear(widths[-1], n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, size, size) float32 → (batch, n_classes) logits."""
        x = self.stages(self.stem(x))
        return self.fc(self.norm(x.mean((2, 3))))
