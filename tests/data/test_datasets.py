import numpy as np

from lavit_jax.data import datasets


def test_a_small_source_is_read_into_memory_and_a_large_one_is_not():
    source = tuple({"image": np.zeros(100, np.uint8)} for _ in range(10))
    assert isinstance(datasets.in_memory_if_small(source, limit=1000), list)
    assert datasets.in_memory_if_small(source, limit=999) is source
    assert datasets.in_memory_if_small((), limit=0) == ()
