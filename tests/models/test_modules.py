"""What holds for all modules: axes, recomputation, unrolling; and the ways between them."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.models import config as sizes
from lavit_jax.models import lavit, selector, vit
from lavit_jax.models.attention import causal_segment_mask
from lavit_jax.models.config import DecoderConfig, EncoderConfig, LlamaConfig
from lavit_jax.models.decoder import FeatureDecoder, to_uint8
from lavit_jax.models.llama import Llama
from lavit_jax.models.vit import VisionEncoder
from lavit_jax.parallel.rules import RULES
from random_params import random_params
from tiny import tiny_modules

NAMES = (
    "encoder", "text_tower", "contrastive", "selector", "merger", "quantizer",
    "decoder", "pixel_head", "conditioner", "llm",
)  # fmt: skip
ENCODER = EncoderConfig(
    width=16, depth=3, heads=2, mlp_ratio=2.0, image_size=16, patch_size=4, embed_dim=8
)
LLM = LlamaConfig(width=16, depth=3, heads=2, kv_heads=1, hidden=24, text_vocab=20, codes=8)
DECODER = DecoderConfig(width=16, depth=2, heads=2, mlp_ratio=2.0, patches=12, code_dim=4)


@functools.cache
def boxed():
    def init(key):
        return lavit.init_params(tiny_modules(), NAMES, key)

    return jax.eval_shape(init, jax.random.key(0))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_names_its_axes(name):
    known = {logical for logical, _ in RULES}

    def is_box(leaf):
        return isinstance(leaf, nn.meta.AxisMetadata)

    leaves = jax.tree_util.tree_leaves_with_path(boxed()[name], is_leaf=is_box)
    assert leaves
    for path, leaf in leaves:
        value = nn.meta.unbox(leaf)
        if not value.shape:  # a scalar has no axes
            continue
        assert is_box(leaf), f"{jax.tree_util.keystr(path)} names no axes"
        assert len(leaf.names) == len(value.shape), jax.tree_util.keystr(path)
        assert set(leaf.names) - {None} <= known, jax.tree_util.keystr(path)


def test_stacked_layers_lead():
    for name in ("encoder", "merger", "decoder", "llm"):
        depth = getattr(tiny_modules().config, name).depth
        for leaf in jax.tree.leaves(nn.meta.unbox(boxed()[name]["blocks"])):
            assert leaf.shape[0] == depth


def test_no_module_reads_a_shared_parameter():
    assert set(boxed()) == set(NAMES)
    fields = {f.name for f in dataclasses.fields(lavit.Modules)}
    pixel_decoder = {"lowres_head", "lowres_unet", "lowres_autoencoder"}
    assert fields == {*NAMES, *pixel_decoder, "config"}


def _encoder_loss(config, params):
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    return jnp.square(VisionEncoder(config).apply({"params": params}, images)).mean()


def _llm_loss(config, params):
    ids = jax.random.randint(jax.random.key(1), (2, 6), 0, config.vocab)
    positions = jnp.broadcast_to(jnp.arange(6), (2, 6))
    mask = causal_segment_mask(jnp.ones((2, 6), jnp.int32))
    return jnp.square(Llama(config).apply({"params": params}, ids, positions, mask)).mean()


@functools.cache
def _setup(name):
    if name == "encoder":
        module = VisionEncoder(ENCODER)
        return (
            ENCODER,
            _encoder_loss,
            random_params(module.init, jnp.zeros((1, 16, 16, 3)))["params"],
        )
    ids = jnp.zeros((1, 2), jnp.int32)
    args = ids, ids, jnp.ones((1, 2, 2), bool)
    return LLM, _llm_loss, random_params(Llama(LLM).init, *args)["params"]


@functools.cache
def _loss_and_gradient(name, **changes):
    config, loss, params = _setup(name)
    changed = dataclasses.replace(config, **changes)
    return jax.jit(jax.value_and_grad(functools.partial(loss, changed)))(params)


@pytest.mark.parametrize("name", ["encoder", "llm"])
@pytest.mark.parametrize("changes", [{"remat": "full"}, {"remat": "dots"}, {"unroll": 3}])
def test_recomputing_and_unrolling_give_the_same_numbers(name, changes):
    expected, found = _loss_and_gradient(name), _loss_and_gradient(name, **changes)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["encoder", "llm"])
def test_policies_keep_what_they_say(name):
    config, loss, params = _setup(name)

    def matmuls(remat):
        changed = functools.partial(loss, dataclasses.replace(config, remat=remat))
        return str(jax.make_jaxpr(jax.grad(changed))(params)).count("dot_general")

    again = [matmuls(policy) - matmuls("none") for policy in sizes.REMAT_POLICIES]
    assert again == sorted(again, reverse=True)
    assert again[0] > 6
    assert again[sizes.REMAT_POLICIES.index("dots")] <= 2  # attention's own


def test_patches_are_cut_in_raster_order_and_joined_again():
    image = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    patches = vit.patchify(image, 4)
    np.testing.assert_array_equal(patches[0, 1].reshape(4, 4, 3), image[0, :4, 4:])
    np.testing.assert_array_equal(vit.unpatchify(patches, 4), image)


def test_pictures_are_normalised_as_clip_does():
    white = vit.normalize_images(jnp.full((1, 2, 2, 3), 255, jnp.uint8))
    expected = (1 - np.array(vit.CLIP_MEAN)) / np.array(vit.CLIP_STD)
    np.testing.assert_allclose(white[0, 0, 0], expected, rtol=1e-6)


def test_pixels_are_rounded_and_clipped():
    np.testing.assert_array_equal(to_uint8(jnp.array([-1.0, 0.5, 1.0, 3.0])), [0, 128, 255, 255])


def test_keys_of_the_encoder_have_no_bias():
    block = boxed()["encoder"]["blocks"]
    assert set(block["key"]) == {"kernel"}
    assert set(block["query"]) == set(block["value"]) == {"kernel", "bias"}


@functools.cache
def _decoder():
    module = FeatureDecoder(DECODER)
    codes = jnp.zeros((1, 5, DECODER.code_dim))
    return module, random_params(module.init, codes, jnp.ones((1, 5), bool))


def _codes_and_keep():
    codes = jax.random.normal(jax.random.key(1), (2, DECODER.patches, DECODER.code_dim))
    keep = jnp.asarray(np.arange(DECODER.patches) % np.array([[2], [5]]) == 0, jnp.float32)
    return codes, keep


def test_masked_decoding_equals_decoding_the_kept_codes():
    module, variables = _decoder()
    codes, keep = _codes_and_keep()

    @jax.jit
    def both(codes):
        kept = selector.kept_index(keep, 6)
        picked = jnp.take_along_axis(codes, kept.index_BL[..., None], axis=1)
        masked = module.apply(variables, codes, keep, method="masked")
        return module.apply(variables, picked, kept.valid_BL), masked

    np.testing.assert_allclose(*both(codes), atol=1e-5)


@pytest.mark.parametrize("norm_qk", [True, False])
def test_normalised_cross_attention_does_not_sharpen_as_its_kernels_grow(norm_qk):
    module = FeatureDecoder(dataclasses.replace(DECODER, norm_qk=norm_qk))
    _, variables = _decoder()
    blocks = variables["params"]["blocks"]
    names = ("cross_query", "cross_key")
    larger = {name: jax.tree.map(lambda x: 30 * x, blocks[name]) for name in names}
    grown = {"params": {**variables["params"], "blocks": {**blocks, **larger}}}
    codes, _ = _codes_and_keep()
    run = jax.jit(lambda variables: module.apply(variables, codes, jnp.ones(codes.shape[:2], bool)))
    assert np.allclose(run(variables), run(grown), atol=1e-4) == norm_qk


def test_the_decoder_never_reads_padding():
    module, variables = _decoder()
    codes, _ = _codes_and_keep()
    valid = jnp.arange(DECODER.patches)[None] < jnp.array([[4], [7]])
    changed = jnp.where(valid[..., None], codes, 1e3)
    run = jax.jit(lambda codes: module.apply(variables, codes, valid))
    np.testing.assert_array_equal(run(codes), run(changed))


def test_keep_decisions_get_a_gradient_from_the_decoder():
    module, variables = _decoder()
    codes, keep = _codes_and_keep()

    def loss(keep):
        return jnp.square(module.apply(variables, codes, keep, method="masked")).sum()

    gradient = jax.jit(jax.grad(loss))(keep)
    assert jnp.isfinite(gradient).all()
    assert (gradient != 0).all()


def test_features_stand_where_the_row_says():
    stride, tokens = 4, jnp.zeros((1, 6, 2))
    features = jnp.arange(12.0).reshape(1, 2, 3, 2)
    where = jnp.array([[-1, 0, 2, stride + 1, -1, -1]])
    mixed = lavit.embed_mixed(tokens, features, where, stride)
    expected = [[0, 0], features[0, 0, 0], features[0, 0, 2], features[0, 1, 1], [0, 0], [0, 0]]
    np.testing.assert_array_equal(mixed[0], np.array(expected))


def test_tokens_are_codes_of_kept_patches():
    modules = tiny_modules()
    names = ("encoder", "selector", "merger", "quantizer", "decoder")
    params = random_params(lambda key: lavit.init_params(modules, names, key))
    book = lavit.quantizer.random_codebook(modules.config.quantizer, jax.random.key(1))
    images = jax.random.randint(jax.random.key(2), (3, 32, 32, 3), 0, 256).astype(jnp.uint8)
    found = jax.jit(functools.partial(lavit.tokenize, modules))(params, book, images)
    counts = found.kept.valid_BL.sum(axis=1)
    np.testing.assert_array_equal(counts, (found.keep_BN > 0.5).sum(axis=1))
    assert (counts >= 1).all()
    assert (found.ids_BL >= 0).all()
    assert (found.ids_BL < modules.config.quantizer.codes).all()
    decode = jax.jit(functools.partial(lavit.detokenize, modules))
    decoded = decode(params, book, found.ids_BL, found.kept.valid_BL)
    assert decoded.shape == (3, modules.config.patches, modules.config.encoder.width)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: EncoderConfig(width=10, depth=1, heads=3), "heads must divide width"),
        (lambda: EncoderConfig(8, 1, 2, image_size=30, patch_size=14), "multiple of patch_size"),
        (lambda: EncoderConfig(8, 1, 2, remat="some"), "remat must be one of"),
        (lambda: sizes.MergerConfig(8, 1, 2, attention="exact"), "merger.attention"),
        (lambda: sizes.QuantizerConfig(8, codes=1), "at least 2"),
        (lambda: LlamaConfig(8, 1, heads=4, kv_heads=3, hidden=8), "kv_heads must divide heads"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()
