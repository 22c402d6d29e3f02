"""Ragged prompts as left-padded arrays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavit_jax.errors import UserError
from lavit_jax.inference import prompts
from lavit_jax.inference.prompts import Features

N = 4
PARTS = st.lists(st.integers(1, 50) | st.builds(Features, st.integers(0, 2), st.integers(0, N)))


@given(st.lists(PARTS, min_size=1, max_size=4))
def test_every_row_ends_at_the_last_place_and_keeps_its_order(rows):
    arrays = prompts.lay(rows, height=len(rows) + 1, patches=N, context=1000)
    for ids, feature, mask, row in zip(*arrays, rows):
        expected = []
        for part in row:
            if isinstance(part, Features):
                expected += [(0, part.image * N + rank) for rank in range(part.kept)]
            else:
                expected.append((part, -1))
        assert list(zip(ids[mask].tolist(), feature[mask].tolist())) == expected
        assert not mask[: len(mask) - len(expected)].any()
    assert not arrays.mask_RS[-1].any()
    assert (arrays.feature_RS[~arrays.mask_RS] == -1).all()


def test_lengths_are_padded_to_few_shapes():
    shapes = {prompts.lay([[7] * n], 1, N, 1000).ids_RS.shape for n in range(1, 65)}
    assert shapes == {(1, 16), (1, 32), (1, 48), (1, 64)}


def test_a_prompt_that_just_fits_is_taken_and_a_longer_one_refused():
    assert prompts.lay([[7] * 20], 1, N, context=20).ids_RS.shape == (1, 20)
    with pytest.raises(UserError, match="21 tokens.*at most 20"):
        prompts.lay([[7] * 21], 1, N, context=20)


@given(st.integers(1, 300))
def test_buckets_hold_what_is_asked_for_and_are_powers_of_two(count):
    rows = prompts.bucket(count, 64)
    assert rows == 64 if count > 64 else count <= rows < 2 * count
    assert np.log2(rows).is_integer()
