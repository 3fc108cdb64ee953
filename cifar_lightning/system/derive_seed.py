"""Derives seeds of random generators from several numbers."""

import numpy as np


def derive_seed(*numbers: int) -> int:
    """A seed that depends on several numbers, such as a run's seed and an epoch.

    It is the same on every machine and in every version of NumPy. Python does not promise that for
    the hash of a tuple.

    Args:
        *numbers: integers from 0.

    Returns:
        An integer from 0 to 2**64 - 1.
    """
    # With their count, because NumPy treats (1,) and (1, 0) alike.
    sequence = np.random.SeedSequence((len(numbers), *numbers))
    return int(sequence.generate_state(1, np.uint64)[0])
