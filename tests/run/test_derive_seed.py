from cifar_lightning.system.derive_seed import derive_seed


def test_a_seed_is_the_same_everywhere_and_another_for_other_numbers() -> None:
    assert derive_seed(0, 0) == 10128210881749538955
    assert derive_seed(3, 1, 4, 1) == 6049075702214440653
    numbers = [(0,), (0, 0), (0, 0, 0, 0), (1, 0), (0, 1), (2**32 - 1, 7), (7, 2**32 - 1)]
    assert len({derive_seed(*some) for some in numbers}) == len(numbers)
