"""Settings: presets, and what users change."""

import dataclasses

import pytest

from lavit_jax.cli import common
from lavit_jax.errors import UserError
from lavit_jax.inference import painting, presets
from lavit_jax.inference.presets import DrawOptions, TextOptions, changed
from lavit_jax.models import diffusion


def test_published_settings_are_the_published_ones():
    published = presets.preset("published")
    caption, answer, draw = published.caption, published.answer, published.draw
    assert (caption.beams, caption.min_new, caption.max_new, caption.cut) == (2, 8, 36, (".",))
    assert (answer.beams, answer.length_penalty, answer.min_new, answer.max_new) == (5, 0, 2, 10)
    assert answer.early_stopping and answer.cut == ("\n", ",", ".")
    assert answer.plain_question and not presets.preset("own").answer.plain_question
    assert (draw.top_k, draw.top_p, draw.temperature, draw.first_suppressed) == (50, None, 1, 3)
    assert (draw.guidance, draw.mixed_guidance) == (4, 5)
    fid, appendix = presets.preset("fid").draw, presets.preset("fid-appendix").draw
    assert (fid.top_k, fid.guidance, fid.decoder_guidance, fid.decoder_steps) == (300, 1.5, 1.5, 50)
    assert (fid.best_of, fid.decoder) == (4, "lowres")
    assert (appendix.top_k, appendix.guidance) == (200, 2.0)


def test_own_settings_cut_nothing_and_hold_nothing_back():
    own = presets.preset("own")
    for options in (own.caption, own.answer):
        assert (options.min_new, options.cut) == (1, ())


def test_the_commands_know_all_presets_decoders_and_solvers():
    assert tuple(presets.PRESETS) == common.PRESETS
    assert painting.DECODERS == common.DECODERS
    assert diffusion.SOLVERS == common.SOLVERS
    assert set(common.DECODER_FIELDS) <= {field.name for field in dataclasses.fields(DrawOptions)}


def test_a_preset_gives_way_to_what_is_asked_for():
    published = presets.preset("published").caption
    assert changed(published, {"max_new": 5}).min_new == 5
    assert changed(TextOptions(), {"min_new": 50}).max_new == 50
    assert changed(TextOptions(), {"temperature": 0.5}).beams == 1
    assert changed(DrawOptions(), {"guidance": 7.0}).mixed_guidance == 7.0


@pytest.mark.parametrize(("options", "changes", "says"), [
    (TextOptions(), {"beam": 2}, "unknown option 'beam'"),
    (TextOptions(), {"beams": 0}, "beams is 0, expected at least 1"),
    (TextOptions(), {"min_new": 9, "max_new": 3}, "min_new is 9, more than max_new, 3"),
    (TextOptions(), {"top_k": 5}, "need a temperature"),
    (TextOptions(), {"temperature": 1.0, "beams": 2}, "sampling takes one beam"),
    (DrawOptions(), {"top_p": 0.0}, "top_p is 0.0, expected a share"),
    (DrawOptions(), {"best_of": 0}, "best_of is 0, expected at least 1"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_told(options, changes, says):
    with pytest.raises(UserError, match=says):
        changed(options, changes)


def test_an_unknown_preset_is_told():
    with pytest.raises(UserError, match="preset is 'mine', expected one of own, published"):
        presets.preset("mine")
