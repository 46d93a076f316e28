"""placeholder until the solver is there"""

import numpy as np


def solve_believed(space, beliefs, starts, tried):  # noqa
    return np.zeros((0, len(space.dimensions)), np.int64)
