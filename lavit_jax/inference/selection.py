"""How many and which patches of a picture become tokens: the `--select` of the commands.

Legend: B images, N patches.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lavit_jax.errors import UserError
from lavit_jax.models import selector

EXPECTED = "greedy, threshold=0.5, sample or top=K"


@flax.struct.dataclass
class Selection:
    """A way to decide; make one with `parse`.

    A pytree: the number may change from call to call of a compiled program.

    Attributes:
      kind: "greedy", "threshold", "sample" or "top".
      value: the threshold, or the patches kept of each picture; 0 elsewhere.
    """

    kind: str = flax.struct.field(pytree_node=False)
    value: float | int | Array = 0

    def decide(
        self, log_probs_BN2: Float[Array, "B N 2"], keys_B: Key[Array, "B"]
    ) -> Float[Array, "B N"]:
        """Keep decisions from log-probabilities; the keys are read when sampling."""
        match self.kind:
            case "threshold":
                return selector.threshold_keep(log_probs_BN2, self.value)
            case "sample":
                return selector.sampled_keep(log_probs_BN2, keys_B)
            case "top":
                return selector.top_keep(log_probs_BN2, jnp.asarray(self.value, jnp.int32))
        return selector.greedy_keep(log_probs_BN2)


GREEDY = Selection("greedy")


def parse(text: str | Selection) -> Selection:
    """Reads "greedy", "threshold=T", "sample" or "top=K".

    Raises:
      UserError: it is none of them, T does not lie in 0..1, or K is below 1.
    """
    if isinstance(text, Selection):
        return text
    kind, equals, number = text.strip().partition("=")
    if kind in ("greedy", "sample") and not equals:
        return Selection(kind)
    try:
        if kind == "threshold" and 0 <= float(number) <= 1:
            return Selection(kind, float(number))
        if kind == "top" and int(number) >= 1:
            return Selection(kind, int(number))
    except ValueError:
        pass
    raise UserError(f"select is {text!r}, expected {EXPECTED} (T in 0..1, K at least 1)")


def within(selection: Selection, most: int) -> Selection:
    """The same, if the model can keep as many.

    Args:
      selection: to check.
      most: patches of a picture the model keeps at most.

    Raises:
      UserError: a budget above that.
    """
    if selection.kind == "top" and int(selection.value) > most:
        raise UserError(f"select is top={selection.value}, but this model keeps at most {most}")
    return selection


def keys(seed: int, first: int, count: int) -> Key[Array, "B"]:
    """A key for each of `count` pictures, by its place; the first one's is `first`."""
    places = jnp.arange(first, first + count)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), places)
