from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int, TypeCheckError, jaxtyped

from lavit_jax.training import losses
from shape_check import check


@jaxtyped(typechecker=check)
def rows(x_AB: Float[Array, "A B"], other: Any = None) -> Float[Array, "A"]:
    return x_AB[:, 0] if other is None else other


@jaxtyped(typechecker=check)
def halves(x_A: Float[np.ndarray, "A"]) -> tuple[Float[np.ndarray, "A"], Int[np.ndarray, "A"]]:
    return x_A / 2, x_A / 2


def test_arrays_as_annotated_pass():
    assert rows(jnp.ones((2, 3))).shape == (2,)
    assert rows(jnp.ones((2, 3)), other=None).shape == (2,)


@pytest.mark.parametrize("x", [jnp.ones(2), jnp.ones((2, 3), jnp.int32), np.ones((2, 3)), None])
def test_arguments_of_another_shape_or_type_are_refused(x):
    with pytest.raises(TypeCheckError, match="x_AB"):
        rows(x)


def test_axes_of_one_name_have_one_size():
    with pytest.raises(TypeCheckError, match="return value"):
        rows(jnp.ones((2, 3)), other=jnp.ones(3))


def test_each_part_of_a_tuple_is_checked():
    with pytest.raises(TypeCheckError, match="return value"):
        halves(np.ones(3))


def test_our_own_functions_are_checked_in_tests():
    with pytest.raises(TypeCheckError, match="x_rec_BND"):
        losses.cosine_distance(jnp.ones((2, 3, 4)), jnp.ones((2, 4, 4)))
