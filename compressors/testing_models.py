"""For tests of structure: small torch models that hold between them every way in which layers are coupled.

Each carries ``example_inputs``, is in eval mode, and has batch norms that are not the identity.
"""

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional


class ConvNorm(nn.Sequential):
    """A convolution without bias, batch norm, ReLU; odd kernels keep the size of the image."""

    def __init__(self, n_inputs: int, n_outputs: int, kernel: int = 3, *, groups: int = 1, stride: int = 1) -> None:
        convolution = nn.Conv2d(
            n_inputs, n_outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
        )
        super().__init__(convolution, nn.BatchNorm2d(n_outputs), nn.ReLU())


class Residual(nn.Module):
    """ReLU (x + f(x)) with two 3×3 convolutions."""

    def __init__(self, width: int, n_inner: int) -> None:
        super().__init__()
        self.first = ConvNorm(width, n_inner)
        self.second = nn.Conv2d(n_inner, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, width, h, w) → the same."""
        return torch.relu(x + self.norm(self.second(self.first(x))))


class Attention(nn.Module):
    """Self-attention with separate projections; reads its number of heads from ``n_heads``."""

    def __init__(self, width: int, n_heads: int, head_width: int) -> None:
        super().__init__()
        self.n_heads, self.head_width = n_heads, head_width
        self.query, self.key, self.value = (nn.Linear(width, n_heads * head_width) for _ in range(3))
        self.out = nn.Linear(n_heads * head_width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, n_tokens, width) → the same."""
        n_tokens = x.shape[1]
        q, k, v = (
            project(x).view(-1, n_tokens, self.n_heads, self.head_width).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        context = functional.softmax(q @ k.transpose(-1, -2) / self.head_width**0.5, -1) @ v
        return self.out(context.transpose(1, 2).reshape(-1, n_tokens, self.n_heads * self.head_width))


class MixedNet(nn.Module):
    """Residual adds, concatenation, grouped and depthwise convolutions, shared weights and attention, all in one.

    ``twice`` is a convolution that is applied twice, ``tied`` are two linear layers with one weight, and ``places`` is
    a parameter of no layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 12)
        self.blocks = nn.Sequential(Residual(12, 8), Residual(12, 10))
        self.left, self.right = ConvNorm(12, 6), ConvNorm(12, 10, 1)
        self.mix = ConvNorm(16, 16, 1)
        self.grouped = ConvNorm(16, 24, groups=4)
        self.depthwise = ConvNorm(24, 24, groups=24)
        self.point = ConvNorm(24, 16, 1)
        self.twice = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.places = nn.Parameter(torch.randn(1, 16, 16) * 0.1)
        self.attention = Attention(16, n_heads=4, head_width=6)
        self.tied = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])
        self.tied[1].weight = self.tied[0].weight
        self.up, self.down = nn.Linear(16, 20), nn.Linear(20, 16)
        self.fc = nn.Linear(16, 5)
        self.example_inputs = {"x": torch.randn(2, 3, 16, 16)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, 16, 16) → (batch, 5)."""
        x = self.blocks(self.stem(x))
        x = self.mix(torch.cat([self.left(x), self.right(x)], 1))
        x = self.point(self.depthwise(self.grouped(x)))
        x = x + torch.relu(self.twice(torch.relu(self.twice(x))))
        x = self.pool(x).flatten(2).transpose(1, 2) + self.places
        x = x + self.attention(x)
        x = x + torch.tanh(self.tied[0](x)) + torch.tanh(self.tied[1](torch.relu(x)))
        x = x + self.down(torch.relu(self.up(x)))
        return self.fc(x.mean(1))


class DenseNet(nn.Module):
    """Every convolution reads what all before it made (Huang et al., https://arxiv.org/abs/1608.06993)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 8)
        self.dense = nn.ModuleList(ConvNorm(8 + 4 * i, 4) for i in range(3))
        self.squeeze = ConvNorm(20, 10, 1)
        self.last = ConvNorm(10, 6)
        self.fc = nn.Linear(16, 5)
        self.example_inputs = {"x": torch.randn(2, 3, 12, 12)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, 12, 12) → (batch, 5)."""
        x = self.stem(x)
        for layer in self.dense:
            x = torch.cat([x, layer(x)], 1)
        x = self.squeeze(x)
        x = torch.cat([x, self.last(x)], 1)
        return self.fc(x.mean((2, 3)))


class PlainNet(nn.Module):
    """Convolutions with bias, pooling, and linear layers on the flattened pixels; no norm."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 9, 3), nn.PReLU(9), nn.MaxPool2d(2)
        )
        self.classifier = nn.Sequential(nn.Linear(9 * 9, 14), nn.ReLU(), nn.Linear(14, 4))
        self.example_inputs = {"x": torch.randn(2, 1, 16, 16)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 1, 16, 16) → (batch, 4)."""
        return self.classifier(self.features(x).flatten(1))


class Inverted(nn.Module):
    """An inverted residual with squeeze and excitation (Howard et al., https://arxiv.org/abs/1905.02244)."""

    def __init__(self, width: int, n_inner: int) -> None:
        super().__init__()
        self.expand = ConvNorm(width, n_inner, 1)
        self.depthwise = ConvNorm(n_inner, n_inner, groups=n_inner)
        self.squeeze, self.excite = nn.Conv2d(n_inner, 4, 1), nn.Conv2d(4, n_inner, 1)
        self.project = nn.Conv2d(n_inner, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, width, h, w) → the same."""
        y = self.depthwise(self.expand(x))
        y = y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + self.norm(self.project(y))


class MobileNet(nn.Module):
    """Inverted residuals, an upsampling by a transposed convolution, and a group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 8, stride=2)
        self.blocks = nn.Sequential(Inverted(8, 16), Inverted(8, 12))
        self.grow = nn.ConvTranspose2d(8, 10, 2, stride=2)
        self.norm = nn.GroupNorm(2, 10)
        self.last = ConvNorm(10, 12)
        self.fc = nn.Linear(12, 3)
        self.example_inputs = {"x": torch.randn(2, 3, 12, 12)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, 12, 12) → (batch, 3)."""
        x = torch.relu(self.norm(self.grow(self.blocks(self.stem(x)))))
        return self.fc(self.last(x).mean((2, 3)))


#: name → type of each model
TEST_MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "mixed": MixedNet,
    "dense": DenseNet,
    "plain": PlainNet,
    "mobile": MobileNet,
}


def build_test_model(name: str, *, seed: int = 0) -> nn.Module:
    """Returns a model of `TEST_MODELS` in eval mode; torch's own random state stays as it is.

    Args:
        name: a key of `TEST_MODELS`.
        seed: of all weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TEST_MODELS[name]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.2, 0.2)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()
