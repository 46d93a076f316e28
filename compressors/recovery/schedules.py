"""What changes from step to step: the learning rate, and how many weights are zero."""

import math

#: share of the steps in which the learning rate rises
_WARM_UP = 0.05
#: share of the steps after which gradual sparsity has got where it goes
_GRADUAL = 0.5
#: gradual sparsity chooses its zeros anew so many times
_N_LEVELS = 32


def learning_rate_factor(step: int, n_steps: int) -> float:
    """Returns the share of the highest learning rate: a linear rise, then half a cosine that ends near 0.

    Loshchilov and Hutter, SGDR (2017), eq. 5, after the warm-up of Goyal et al. (2017), section 2.2.

    Args:
        step: from 0 to ``n_steps`` - 1.
        n_steps: all steps of the training.
    """
    n_warm = max(1, round(_WARM_UP * n_steps))
    if step < n_warm:
        return (step + 1) / n_warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - n_warm) / max(1, n_steps - n_warm)))


def gradual_sparsity(step: int, n_steps: int, final: float) -> float:
    """Returns the share of zeros at a step: s = s_f − s_f (1 − t / T)³ over the first half of the steps, then s_f.

    Zhu and Gupta, To prune, or not to prune (2017), eq. 1, from a sparsity of 0.

    >>> gradual_sparsity(0, 100, 0.8), gradual_sparsity(50, 100, 0.8)
    (0.0, 0.8)
    """
    n_gradual = int(_GRADUAL * n_steps)
    if step >= n_gradual:
        return final
    return final - final * (1.0 - step / n_gradual) ** 3


def is_mask_due(step: int, n_steps: int) -> bool:
    """Whether gradual sparsity chooses its zeros anew before this step."""
    n_gradual = int(_GRADUAL * n_steps)
    every = max(1, math.ceil(n_gradual / _N_LEVELS))
    return step == n_gradual or (step < n_gradual and step % every == 0)
