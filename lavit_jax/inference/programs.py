"""The compiled programs behind the Python API, one of each for a set of modules.

Parameters are arguments, so one program serves every state of a training run; each is compiled
once for each shape it is called with.

Legend: B images, R rows, J images of a row, L kept (padded), N patches, E llm width, S prompt
places, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from lavit_jax.inference import beams, generate, likelihood
from lavit_jax.inference.beams import BeamConfig, Beams
from lavit_jax.inference.decoding import Prompt
from lavit_jax.inference.generate import Generated, SamplingConfig
from lavit_jax.inference.selection import Selection
from lavit_jax.models import decoder, lavit
from lavit_jax.models.lavit import Modules, Params, Tokens
from lavit_jax.models.quantizer import Codebook
from lavit_jax.parallel.mesh import placed


class Seen(NamedTuple):
    """Images as the language model reads them."""

    keep_BN: Float[Array, "B N"]
    features_BLE: Float[Array, "B L E"]


class Programs:
    """Compiled functions of one set of modules; get them from `programs`."""

    def __init__(self, modules: Modules, mesh: Mesh | None) -> None:
        self._modules = modules
        compiled = functools.partial(compiled_on, mesh)
        self.tokenize = compiled(self._tokenize)
        self.see = compiled(self._see)
        self.paint = compiled(self._paint)
        self.sample = compiled(self._sample, static_argnames="first")
        self.search = compiled(self._search)
        self.likelihood = compiled(self._likelihood, static_argnames="most")

    def _tokenize(
        self,
        params: Params,
        book: Codebook,
        images_BHWC: UInt8[Array, "B H W 3"],
        select: Selection,
        keys_B: Key[Array, "B"],
    ) -> Tokens:
        """Images to visual ids."""
        decide = functools.partial(select.decide, keys_B=keys_B)
        return lavit.tokenize(self._modules, params, book, images_BHWC, decide)

    def _see(
        self,
        params: Params,
        images_BHWC: UInt8[Array, "B H W 3"],
        select: Selection,
        keys_B: Key[Array, "B"],
    ) -> Seen:
        """Images to condition features."""
        x = lavit.encode_image(self._modules, params, images_BHWC)
        decide = functools.partial(select.decide, keys_B=keys_B)
        keep, kept = lavit.select(self._modules, params, x, decide)
        return Seen(keep, lavit.run(self._modules, params, "conditioner", x, keep, kept))

    def _paint(
        self, params: Params, book: Codebook, ids_BL: Int[Array, "B L"], count_B: Int[Array, "B"]
    ) -> UInt8[Array, "B H W 3"]:
        """The first `count_B` code ids of each row to a picture by the one-pass pixel head."""
        valid = jnp.arange(ids_BL.shape[1]) < count_B[:, None]
        codes = jnp.clip(ids_BL, 0, book.codes_KC.shape[0] - 1)
        x_rec = lavit.detokenize(self._modules, params, book, codes, valid)
        return decoder.to_uint8(lavit.paint(self._modules, params, x_rec))

    def _prompt(
        self,
        params: Params,
        features_BLE: Array | None,
        image_RJ: Array | None,
        ids_RS: Array,
        feature_RS: Array,
    ) -> Array:
        embeds = lavit.run(self._modules, params, "llm", ids_RS, method="embed")
        if features_BLE is None:
            return embeds
        features_RJLE = features_BLE[image_RJ]
        return lavit.embed_mixed(embeds, features_RJLE, feature_RS, self._modules.config.patches)

    def _sample(
        self,
        params: Params,
        features_BLE: Float[Array, "B L E"] | None,
        image_RJ: Int[Array, "R J"] | None,
        ids_RS: Int[Array, "R S"],
        feature_RS: Int[Array, "R S"],
        mask_RS: Bool[Array, "R S"],
        config: SamplingConfig,
        banned_V: Bool[Array, "V"],
        stop_R: Int[Array, "R"],
        keys_R: Key[Array, "R"],
        unconditional_ids_R1: Int[Array, "R 1"] | None = None,
        first: int = 0,
    ) -> Generated:
        """Continues prompts by `generate.generate`."""
        embeds = self._prompt(params, features_BLE, image_RJ, ids_RS, feature_RS)
        other = None
        if unconditional_ids_R1 is not None:
            alone = self._prompt(params, None, None, unconditional_ids_R1, feature_RS)
            other = Prompt(alone, mask_RS.any(axis=1, keepdims=True))
        llm, weights = self._modules.llm, params["llm"]
        return generate.generate(
            llm,
            weights,
            Prompt(embeds, mask_RS),
            config,
            banned_V,
            stop_R,
            keys_R,
            unconditional=other,
            first=first,
        )

    def _search(
        self,
        params: Params,
        features_BLE: Float[Array, "B L E"] | None,
        image_RJ: Int[Array, "R J"] | None,
        ids_RS: Int[Array, "R S"],
        feature_RS: Int[Array, "R S"],
        mask_RS: Bool[Array, "R S"],
        config: BeamConfig,
        banned_V: Bool[Array, "V"],
        stop_R: Int[Array, "R"],
    ) -> Beams:
        """Continues prompts by `beams.search`."""
        embeds = self._prompt(params, features_BLE, image_RJ, ids_RS, feature_RS)
        llm, weights = self._modules.llm, params["llm"]
        return beams.search(llm, weights, Prompt(embeds, mask_RS), config, banned_V, stop_R)

    def _likelihood(
        self,
        params: Params,
        features_BLE: Float[Array, "B L E"] | None,
        image_RJ: Int[Array, "R J"] | None,
        ids_RS: Int[Array, "R S"],
        feature_RS: Int[Array, "R S"],
        mask_RS: Bool[Array, "R S"],
        targets_R: Int[Array, "R"],
        most: int,
    ) -> Float[Array, "R"]:
        """Log-probability of each row's last `targets_R` ids, at most `most`, after the others."""
        embeds = self._prompt(params, features_BLE, image_RJ, ids_RS, feature_RS)
        llm, weights = self._modules.llm, params["llm"]
        return likelihood.of_last(
            llm, weights, Prompt(embeds, mask_RS), ids_RS[:, -most:], targets_R
        )


@functools.cache
def programs(modules: Modules, mesh: Mesh | None = None) -> Programs:
    """The programs of these modules on a mesh, the same ones every time."""
    return Programs(modules, mesh)


def compiled_on(mesh: Mesh | None, function: Callable[..., Any], **how: Any) -> Callable[..., Any]:
    """A jitted function whose activations lie on a mesh as `parallel/rules.py` says.

    Args:
      mesh: None for the device its arguments are on.
      function: pure.
      how: as `jax.jit` has it.
    """
    jitted = jax.jit(function, **how)
    if mesh is None:
        return jitted

    @functools.wraps(function)
    def on_mesh(*args: Any, **named: Any) -> Any:
        with placed(mesh):
            return jitted(*args, **named)

    return on_mesh


def banned_ids(modules: Modules, *, text: bool, first_text: int = 0) -> Bool[Array, "V"]:
    """Ids that may not be generated, bool [V].

    Args:
      modules: the model.
      text: whether text is generated: bans everything visual. Otherwise codes are: bans all text
        from `first_text` on, and [IMG].
      first_text: see `text`.
    """
    c = modules.config.llm
    ids = jnp.arange(c.vocab)
    if text:
        return ids >= c.image_start
    return (ids >= first_text) & (ids <= c.image_start)
