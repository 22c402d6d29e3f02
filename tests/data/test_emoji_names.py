import pytest

from lavit_jax.data import emoji_names
from lavit_jax.data.twemoji import _picture_files
from lavit_jax.errors import UserError


@pytest.fixture(scope="module")
def keys():
    return [path.stem for path in _picture_files()]


@pytest.fixture(scope="module")
def described(keys):
    return emoji_names.describe(keys)


def test_every_picture_has_a_canonical_caption_of_its_own(described):
    canonical = [description.captions[0] for description in described.values()]
    assert len(canonical) == len(set(canonical)) == 4009
    for caption in canonical:
        assert caption == caption.strip()
        assert not set(caption) & set(":_")


def test_no_caption_of_a_picture_is_the_canonical_one_of_another(described):
    owners = {description.captions[0]: key for key, description in described.items()}
    for key, description in described.items():
        assert all(owners.get(caption, key) == key for caption in description.captions)


def test_captions_say_the_tone_in_several_ways(described):
    assert described["1f575-1f3fe-200d-2640-fe0f"].captions == (
        "woman detective medium-dark skin tone",
        "woman detective with medium-dark skin tone",
        "medium-dark skin tone woman detective",
        "a drawing of a woman detective medium-dark skin tone",
        "a picture of a woman detective with medium-dark skin tone",
    )


def test_a_couple_has_two_tones_from_left_to_right(described):
    couple = described["1faf1-1f3fb-200d-1faf2-1f3ff"]
    assert couple.tones == ("light", "dark")
    assert couple.captions[1] == "handshake with light and dark skin tones"
    assert couple.base == "1f91d"
    assert couple.answers == ("handshake", "light and dark")


def test_a_couple_of_one_tone_has_one(described):
    couple = described["1f468-1f3fb-200d-2764-fe0f-200d-1f468-1f3fb"]
    assert couple.tones == ("light",)


def test_questions_ask_for_a_tone_only_where_there_are_tones(described):
    assert described["1f410"].questions == ("what is this?",)
    assert described["1f410"].answers == ("goat",)
    untoned = described["1f44d"]
    assert untoned.questions == ("what is this?", "which skin tone?")
    assert untoned.answers == ("thumbs up", "none")
    toned = described["1f44d-1f3fd"]
    assert toned.answers == ("thumbs up", "medium")
    for description in described.values():
        assert len(description.questions) == len(description.answers)


def test_every_toned_picture_has_an_untoned_base(described):
    for key, description in described.items():
        if description.tones:
            assert described[description.base].tones == ()
            assert description.base != key
        else:
            assert description.base == key


def test_a_tone_by_itself_is_no_toned_picture(described):
    assert described["1f3ff"].tones == ()
    assert described["1f3ff"].captions[0] == "dark skin tone"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("1f1e6", "regional indicator symbol letter a"),
        ("26f7-1f3fd", "skier medium skin tone"),
        ("1f574-1f3fb-200d-2640-fe0f", "woman in suit levitating light skin tone"),
        ("1f574-fe0f-200d-2642-fe0f", "man in suit levitating"),
        ("1f468-200d-1f384", "man and Christmas tree"),
        ("1f469-1f3ff-200d-1f384", "woman and Christmas tree dark skin tone"),
        ("e50a", "Shibuya 109"),
    ],
)
def test_pictures_that_emoji_does_not_know_get_derived_names(key, name):
    assert emoji_names.name(key) == name


def test_a_variation_selector_does_not_hide_a_name():
    assert emoji_names.name("2764-fe0f") == emoji_names.name("2764") == "red heart"


def test_other_languages_come_in_order(keys):
    both = emoji_names.describe(keys, ("de", "en"))
    captions = both["1f410"].captions
    assert captions[:2] == ("ziege", "goat")
    german = emoji_names.describe(keys, ("de",))
    assert german["1f410"].captions == ("ziege",)
    assert len({description.captions[0] for description in german.values()}) == 4009


def test_an_unknown_language_names_the_field():
    with pytest.raises(UserError, match=r"config\.data\.languages.*xx"):
        emoji_names.describe(["1f410"], ("xx",))
    with pytest.raises(UserError, match=r"config\.data\.languages"):
        emoji_names.describe(["1f410"], ())


def test_two_pictures_of_one_name_are_refused(monkeypatch):
    monkeypatch.setattr(emoji_names, "name", lambda key, language="en": "goat")
    with pytest.raises(ValueError, match="both named 'goat'"):
        emoji_names.describe(["1f410", "1f411"])
