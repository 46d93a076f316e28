"""A small vision transformer for digits, after Dosovitskiy et al., https://arxiv.org/abs/2010.11929, section 3.1.

Query, key and value are layers of their own and attention is written out, so that every matrix product of the exported
graph is a layer or one of the two products of attention.
"""

import math

import torch
from torch import nn
from torch.nn import functional

#: 16 patches of 10 × 10 pixels that overlap by 4: cut apart, strokes are lost and 3,000 digits do not make up for it
_PATCH, _STRIDE, _N_TOKENS = 10, 6, 16
_N_HEADS = 4


class Attention(nn.Module):
    """Scaled dot-product attention with four heads, fewer after pruning."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.n_heads, self.head_width = _N_HEADS, width // _N_HEADS
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 16, width) → the same shape."""
        query, key, value = (self._split(project(x)) for project in (self.query, self.key, self.value))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(self.head_width)
        mixed = torch.matmul(torch.softmax(scores, -1), value)  # (batch, heads, 16, head_width)
        return self.output(mixed.transpose(1, 2).reshape(-1, _N_TOKENS, self.n_heads * self.head_width))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, _N_TOKENS, self.n_heads, self.head_width).transpose(1, 2)


class Block(nn.Module):
    """Attention and two linear layers with a GELU between, each on the normalised sum of all before it."""

    def __init__(self, width: int, n_inner: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.inner = nn.Linear(width, n_inner)
        self.outer = nn.Linear(n_inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 16, width) → the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.outer(functional.gelu(self.inner(self.norm2(x))))


class DigitsTransformer(nn.Module):
    """Patches, four blocks, and a linear classifier of the mean token.

    >>> DigitsTransformer()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, width: int = 96, n_blocks: int = 4, n_classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, _PATCH, stride=_STRIDE)
        self.places = nn.Parameter(0.02 * torch.randn(_N_TOKENS, width))
        self.blocks = nn.Sequential(*(Block(width, 4 * width) for _ in range(n_blocks)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 1, 28, 28) float32 → (batch, n_classes) logits."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.classifier(self.norm(self.blocks(tokens)).mean(1))
