"""Small real models, for the contract tests of techniques and for trying things out."""

from typing import Any

import numpy as np


def small_cnn(*, seed: int = 0) -> Any:
    """Returns an ``nn.Module``: convolutions with batch norm, a residual add, a depthwise one, pooling, linear.

    Input ``x`` (batch, 3, 16, 16) float32, output (batch, 5).
    """
    import torch
    from torch import nn

    def block(n_in: int, n_out: int, **how: Any) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1, bias=False, **how), nn.BatchNorm2d(n_out), nn.ReLU())

    class SmallCnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right = block(3, 8), block(8, 8), block(8, 8)
            self.depthwise = block(8, 8, groups=8)
            self.point = nn.Conv2d(8, 16, 1)
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(16, 5)
            self.example_inputs = {"x": torch.zeros(2, 3, 16, 16)}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            x = self.right(self.left(x)) + x
            x = torch.relu(self.point(self.depthwise(x)))
            result: torch.Tensor = self.fc(self.pool(x).flatten(1))
            return result

    torch.manual_seed(seed)
    model = SmallCnn()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def small_transformer(*, seed: int = 0) -> Any:
    """Returns an ``nn.Module``: two embeddings, one encoder block, a tied linear weight, a head.

    Inputs ``ids`` (batch, 12) int64 below 50 and ``mask`` (batch, 12) int64; output (batch, 3).
    """
    import torch
    from torch import nn

    class SmallTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(50, 32), nn.Embedding(12, 32)
            self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))
            self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
            self.norm, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
            self.twice = nn.Linear(32, 32, bias=False)
            self.head = nn.Linear(32, 3)
            self.example_inputs = {
                "ids": torch.zeros(2, 12, dtype=torch.long), "mask": torch.ones(2, 12, dtype=torch.long)
            }  # fmt: skip

        def split(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(-1, 12, 4, 8).transpose(1, 2)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            x = self.tokens(ids) + self.places(torch.arange(12))
            q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
            bias = (1.0 - mask[:, None, None, :].float()) * -1e4
            scores = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5 + bias, -1)
            x = self.norm(x + self.out((scores @ v).transpose(1, 2).reshape(-1, 12, 32)))
            x = self.norm2(x + self.down(nn.functional.gelu(self.up(x))))
            x = self.twice(torch.tanh(self.twice(x)))
            result: torch.Tensor = self.head(x.mean(1))
            return result

    torch.manual_seed(seed)
    return SmallTransformer().eval()


def random_inputs(name: str, n: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns inputs for ``cnn`` or ``transformer``: input name → (n, …) array."""
    rng = np.random.default_rng(seed)
    if name == "cnn":
        return {"x": rng.normal(size=(n, 3, 16, 16)).astype(np.float32)}
    mask = np.ones((n, 12), np.int64)
    mask[:, 9:] = 0
    return {"ids": rng.integers(0, 50, (n, 12)), "mask": mask}
