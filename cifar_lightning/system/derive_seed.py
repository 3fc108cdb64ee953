"""Seeds of random generators that depend on several numbers."""

import numpy as np


def derive_seed(*numbers: int) -> int:
    """The seed that belongs to some numbers, such as a run's seed and an epoch.

    NumPy promises that it is the same in each of its versions and on every machine, which Python
    does not promise of the hash of a tuple.

    Args:
        numbers: not negative.

    Returns:
        An integer from 0 to 2**64 - 1.
    """
    # With their count, as NumPy takes (1,) and (1, 0) for the same.
    sequence = np.random.SeedSequence((len(numbers), *numbers))
    return int(sequence.generate_state(1, np.uint64)[0])
