"""The tables: every name there and back, bit for bit."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import published_weights
from lavit_jax.convert import forms, names, published, read
from lavit_jax.convert.forms import Entry
from lavit_jax.models import lavit
from published_weights import GROUPED, PUBLISHED_RATIO

COMPONENTS = (*published_weights.FILES, "llm")


def loaded(tmp_path, shapes):
    states = published_weights.weights(shapes)
    folder = published_weights.write(tmp_path, shapes, states)
    return states, folder, published.load_published(folder)


def tables(folder):
    sources = published.open_sources(folder)
    return published.tables(sources, published.infer_config(folder, sources))


def whole_tree(found):
    codes = np.asarray(found.codebook.codes_KC)
    return found.params | {"codebook": {"codes": codes}}


@pytest.mark.parametrize("shapes", [GROUPED, PUBLISHED_RATIO], ids=["grouped", "ratio"])
def test_there_and_back_is_bit_exact(shapes, tmp_path):
    states, folder, found = loaded(tmp_path, shapes)
    for component, table in tables(folder).items():
        back = dict(forms.published(table, whole_tree(found)))
        assert back.keys() == states[component].keys()
        for name, tensor in back.items():
            expected = states[component][name]
            assert tensor.dtype == expected.dtype
            np.testing.assert_array_equal(tensor, expected, err_msg=name, strict=True)


def test_our_tree_is_the_one_our_modules_make(tmp_path):
    _, _, found = loaded(tmp_path, GROUPED)
    modules = lavit.build_modules(found.config)
    own = ("encoder", "selector", "merger", "quantizer", "decoder", "conditioner", "llm")
    init = lambda key: nn.meta.unbox(lavit.init_params(modules, own, key))  # noqa: E731
    expected = jax.eval_shape(init, jax.random.key(0))
    given_shapes = {name: jax.tree.map(np.shape, found.params[name]) for name in own}
    assert given_shapes == jax.tree.map(lambda leaf: leaf.shape, expected)


@pytest.mark.parametrize("component", COMPONENTS)
def test_no_name_and_no_path_stands_twice(component, tmp_path):
    _, folder, _ = loaded(tmp_path, GROUPED)
    table = tables(folder)[component]
    published_names = [name for entry in table for name in entry.names]
    paths = [path for entry in table for path in entry.paths]
    assert len(set(published_names)) == len(published_names)
    assert len(set(paths)) == len(paths)


def test_a_linear_layer_is_transposed():
    form = forms.linear(2, 3)
    weight = np.arange(6).reshape(3, 2)
    np.testing.assert_array_equal(form.split(weight)[0], weight.T)


def test_a_fused_projection_is_cut_into_heads():
    inputs, count, width = 5, 2, 3
    form = forms.heads(inputs, count, width, parts=3)
    weight = np.random.default_rng(0).normal(size=form.published)
    x = np.random.default_rng(1).normal(size=(4, inputs))
    fused = (x @ weight.T).reshape(4, 3, count, width)
    for part, kernel in enumerate(form.split(weight)):
        np.testing.assert_allclose(np.einsum("bi,ihd->bhd", x, kernel), fused[:, part])


def test_a_convolution_becomes_a_kernel_over_flat_patches():
    from lavit_jax.models.vit import patchify

    form = forms.patches(7, 4)
    rng = np.random.default_rng(0)
    weight = rng.normal(size=form.published).astype(np.float32)
    image = rng.normal(size=(1, 8, 8, 3)).astype(np.float32)
    ours = np.asarray(patchify(image, 4)) @ form.split(weight)[0]
    tile = image[0, 4:, :4].transpose(2, 0, 1)  # row 1, column 0: patch 2
    np.testing.assert_allclose(
        ours[0, 2], (weight * tile).sum(axis=(1, 2, 3)), rtol=1e-4, atol=1e-5
    )


sizes = st.integers(1, 4)


@settings(max_examples=30)
@given(inputs=sizes, outputs=sizes, count=sizes, width=sizes, parts=st.integers(1, 3))
def test_every_form_inverts(inputs, outputs, count, width, parts):
    for form in (
        forms.linear(inputs, outputs),
        forms.same(outputs, inputs),
        forms.reshaped((1, outputs, inputs), (outputs, inputs)),
        forms.heads(inputs, count, width, parts),
        forms.head_bias(count, width, parts),
        forms.merge(outputs, count, width),
        forms.patches(outputs, width),
    ):
        tensor = np.arange(np.prod(form.published), dtype=np.float32).reshape(form.published)
        ours = form.split(tensor)
        assert [a.shape for a in ours] == [form.ours] * form.parts
        np.testing.assert_array_equal(form.join(ours), tensor, strict=True)


@settings(max_examples=30)
@given(rows=sizes, extra=sizes, width=sizes, tied=st.booleans())
def test_a_grown_vocabulary_gives_its_own_rows_back(rows, extra, width, tied):
    grown = (rows + extra, width)
    form = forms.Grown(rows, forms.Tied(grown) if tied else forms.same(*grown), seed=0)
    tensor = np.random.default_rng(rows).normal(size=form.published).astype(np.float32)
    ours = form.split(tensor)
    assert tuple(array.shape for array in ours) == form.shapes
    np.testing.assert_array_equal(ours[0][:rows], tensor)
    np.testing.assert_array_equal(form.join(ours), tensor, strict=True)


def test_pieces_come_in_the_order_of_the_source_and_assemble():
    entry = Entry("blocks.{i}.w", ("blocks/w",), forms.linear(2, 3), blocks=2)
    table = (entry, Entry("b", ("b",), forms.same(3)))
    tensors = {"blocks.1.w": np.ones((3, 2)), "b": np.zeros(3), "blocks.0.w": np.zeros((3, 2))}
    found = list(forms.pieces(table, tensors.items()))
    assert [(piece.path, piece.block) for piece in found] == [
        ("blocks/w", 1),
        ("b", None),
        ("blocks/w", 0),
    ]
    tree = forms.assemble(table, iter(found))
    assert tree["blocks"]["w"].shape == (2, 2, 3)
    assert tree["blocks"]["w"].dtype == np.float32
    np.testing.assert_array_equal(tree["blocks"]["w"][1], 1)


def test_writing_back_an_incomplete_tree_names_what_is_missing():
    table = names.selector(dataclasses.replace(published_selector(), width=8))
    with pytest.raises(ValueError, match="'norm/norm/scale' is missing"):
        list(forms.published(table, {}))


def published_selector():
    from lavit_jax.models.config import SelectorConfig

    return SelectorConfig(width=8)


def test_a_release_without_norm_or_head_is_written_back_without(tmp_path):
    states = published_weights.weights(GROUPED)
    for name in ("norm.weight", "norm.bias", "head.weight", "head.bias"):
        del states["encoder"][name]
    folder = published_weights.write(tmp_path, GROUPED, states)
    found = published.load_published(folder)
    assert {"norm", "head_proj"}.isdisjoint(found.params["encoder"])
    back = dict(forms.published(tables(folder)["encoder"], found.params))
    assert back.keys() == states["encoder"].keys()
    assert len(found.extra.absent) == 4


def test_read_items_may_be_a_few(tmp_path):
    _, folder, _ = loaded(tmp_path, GROUPED)
    source = published.open_sources(folder)["llm"]
    found = dict(read.items(source, {"model.norm.weight"}))
    assert list(found) == ["model.norm.weight"]
