"""A logistic probe: multinomial regression on fixed embeddings."""

import numpy as np
import torch
from torch.nn import functional

#: weight of the squared weights in the loss, per sample; chosen on the validation split among powers of ten
L2_PENALTY = 1e-4
_MAX_STEPS = 200


def fit_probe(embeddings: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Fits a linear layer by L-BFGS; the loss is convex, so no seed is needed.

    Args:
        embeddings: (n, width) float32.
        labels: (n,) int64 class indices.

    Returns:
        ``weight`` (n_classes, width) and ``bias`` (n_classes,), both float32.
    """
    x, y = torch.from_numpy(embeddings).double(), torch.from_numpy(labels)
    n_classes = int(labels.max()) + 1
    weight = torch.zeros(n_classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(n_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_MAX_STEPS, line_search_fn="strong_wolfe")

    def penalised_loss() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(functional.linear(x, weight, bias), y) + L2_PENALTY * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(penalised_loss)
    return {"weight": weight.detach().float().numpy(), "bias": bias.detach().float().numpy()}
