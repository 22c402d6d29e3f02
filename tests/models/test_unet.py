"""The U-Net of both decoders against plain torch, at shapes unlike the goldens'."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import pixel_math
import pixel_weights
from lavit_jax.convert import forms, pixel_infer, pixel_names
from lavit_jax.models import unet
from lavit_jax.models.pixel_config import UNetConfig
from lavit_jax.models.unet import Condition, UNet

TOKENS = 5


def built(settings, seed=0):
    config = pixel_infer.unet(settings, pixel_weights.NOWHERE)
    state = pixel_weights.unet_state(settings, seed)
    params = forms.assemble(
        pixel_names.unet(config), forms.pieces(pixel_names.unet(config), state.items())
    )
    return config, state, params


def inputs(config, batch=2, side=(6, 9), seed=1):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    x, tokens = draw(batch, *side, config.in_channels), draw(batch, TOKENS, config.condition)
    times = np.array([3, 611])[:batch]
    if not config.sized:
        return x, times, Condition(tokens)
    sizes = rng.integers(0, 99, size=(batch, 6)).astype(np.float32)
    return x, times, Condition(tokens, None, draw(batch, config.pooled), sizes)


def predict(config, params, x, times, condition):
    run = jax.jit(UNet(config).apply)
    with jax.default_matmul_precision("highest"):
        return np.asarray(run({"params": params}, x, jnp.asarray(times), condition))


def torch_predict(state, settings, x, times, condition):
    tensors = [None if a is None else torch.as_tensor(np.asarray(a)) for a in condition]
    tokens, mask, pooled, sizes = tensors
    x = torch.as_tensor(x.transpose(0, 3, 1, 2))
    out, read = pixel_math.unet(
        state, settings, x, torch.as_tensor(times), tokens, mask, pooled, sizes
    )
    return out.transpose(0, 2, 3, 1), read


@pytest.mark.parametrize("name", ["LOWRES", "HIGHRES", "PLAIN"])
def test_every_shape_agrees_with_plain_torch_and_every_tensor_is_read(name):
    settings = getattr(pixel_weights, name)
    config, state, params = built(settings)
    x, times, condition = inputs(config, side=(8, 12) if name != "LOWRES" else (7, 9))
    if name == "LOWRES":
        condition = condition._replace(mask_BL=np.arange(TOKENS) < np.array([[TOKENS], [2]]))
    expected, read = torch_predict(state, settings, x, times, condition)
    assert read == state.keys()
    np.testing.assert_allclose(
        predict(config, params, x, times, condition), expected, atol=2e-5, rtol=0
    )


def test_masked_condition_tokens_are_never_read():
    config, _, params = built(pixel_weights.LOWRES)
    x, times, condition = inputs(config)
    real = condition._replace(tokens_BLF=condition.tokens_BLF[:, :3])
    mask = np.broadcast_to(np.arange(TOKENS) < 3, (2, TOKENS))
    masked = predict(config, params, x, times, condition._replace(mask_BL=mask))
    np.testing.assert_allclose(masked, predict(config, params, x, times, real), atol=1e-5)
    others = np.where(mask[..., None], condition.tokens_BLF, 5.0)
    behind = condition._replace(tokens_BLF=others, mask_BL=mask)
    np.testing.assert_array_equal(masked, predict(config, params, x, times, behind))
    assert np.abs(masked - predict(config, params, x, times, condition)).max() > 1e-3


def test_a_batch_equals_one_by_one():
    config, _, params = built(pixel_weights.HIGHRES)
    x, times, condition = inputs(config, side=(8, 8))
    together = predict(config, params, x, times, condition)
    for i in range(2):
        one = jax.tree.map(lambda a: a[i : i + 1], condition)  # noqa: B023
        alone = predict(config, params, x[i : i + 1], times[i : i + 1], one)
        np.testing.assert_allclose(alone, together[i : i + 1], atol=1e-5)


def test_joined_conditions_keep_their_rows():
    config, _, _ = built(pixel_weights.HIGHRES)
    _, _, condition = inputs(config)
    both = unet.join(condition, jax.tree.map(np.zeros_like, condition))
    assert both.mask_BL is None
    np.testing.assert_array_equal(both.pooled_BP[:2], condition.pooled_BP)
    assert not np.any(both.sizes_B6[2:])


def test_a_new_unet_has_the_shapes_the_table_converts():
    for settings in (pixel_weights.LOWRES, pixel_weights.HIGHRES):
        config, _, params = built(settings)
        x, times, condition = inputs(config, side=(8, 8))
        init = functools.partial(UNet(config).init, jax.random.key(0))
        fresh = jax.eval_shape(init, x, jnp.asarray(times), condition)["params"]
        shapes = lambda tree: jax.tree.map(jnp.shape, nn.meta.unbox(tree))  # noqa: E731
        assert shapes(fresh) == shapes(params)


def test_a_new_unet_predicts_zero():
    config, *_ = built(pixel_weights.LOWRES)
    x, times, condition = inputs(config, side=(8, 8))
    net, args = UNet(config), (x, jnp.asarray(times), condition)
    fresh = jax.jit(lambda: net.init_with_output(jax.random.key(0), *args)[0])
    assert not np.any(fresh())


PLACED = UNetConfig(
    channels=(8,),
    layers=(1,),
    down_attention=(False,),
    up_attention=(False,),
    heads=(1,),
    depths=(1,),
    condition=3,
    middle="none",
    groups=4,
    placed=True,
)


def placed(count):
    x, tokens = jnp.ones((1, 8, 8, 4)), jnp.arange(3.0 * count).reshape(1, count, 3)
    net, time = UNet(PLACED), jnp.zeros(1, jnp.int32)
    made = jax.eval_shape(net.init, jax.random.key(0), x, time, Condition(tokens))
    return nn.meta.unbox(made)["params"]["in_conv"]["kernel"], tokens


def test_placed_condition_tokens_lie_where_they_belong():
    kernel, tokens = placed(16)
    assert kernel.shape[2] == PLACED.in_channels + PLACED.condition
    laid = unet.laid_out(tokens, 8, 12)
    assert laid.shape == (1, 8, 12, 3)
    for row, column in ((0, 0), (3, 7), (7, 11)):
        np.testing.assert_array_equal(laid[0, row, column], tokens[0, row // 2 * 4 + column // 3])


def test_placed_condition_tokens_that_are_no_square_are_told():
    with pytest.raises(ValueError, match="square of places, got 15 tokens"):
        placed(15)


def test_recomputing_changes_no_gradient():
    import dataclasses

    config, _, params = built(pixel_weights.PLAIN)
    x, times, condition = inputs(config, side=(4, 4))

    def gradients(config):
        run = lambda p: (  # noqa: E731
            UNet(config).apply({"params": p}, x, jnp.asarray(times), condition) ** 2
        ).sum()
        return jax.jit(jax.grad(run))(params)

    pairs = zip(
        jax.tree.leaves(gradients(config)),
        jax.tree.leaves(gradients(dataclasses.replace(config, remat=True))),
        strict=True,
    )
    for plain, again in pairs:
        np.testing.assert_allclose(plain, again, rtol=1e-4, atol=1e-4)


def test_sizes_that_do_not_fit_are_told():
    sizes = {
        "channels": (8, 16), "layers": (1, 1), "down_attention": (True, True),
        "up_attention": (True, True), "heads": (2, 2), "depths": (1, 1), "condition": 4,
        "groups": 4,
    }  # fmt: skip
    assert UNetConfig(**sizes).time_width == 32
    with pytest.raises(ValueError, match="unet.heads has 1 values for 2 levels"):
        UNetConfig(**sizes | {"heads": (2,)})
    with pytest.raises(ValueError, match=r"groups=3 does not divide channels\[0\]=8"):
        UNetConfig(**sizes | {"groups": 3})
    with pytest.raises(ValueError, match=r"unet.heads\[1\]=3 does not divide"):
        UNetConfig(**sizes | {"heads": (2, 3)})
    with pytest.raises(ValueError, match="needs a pooled condition and sizes"):
        config, _, params = built(pixel_weights.HIGHRES)
        x, times, condition = inputs(config, side=(8, 8))
        predict(config, params, x, times, Condition(condition.tokens_BLF))
