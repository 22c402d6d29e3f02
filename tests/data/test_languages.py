import pytest

from lavit_jax.data.languages import guess


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a man in a red shirt is sitting on the beach", "en"),
        ("ein Mann mit einem Hund auf der Straße", "de"),
        ("un chat noir dans le jardin avec des fleurs", "fr"),
        ("una mujer con el pelo largo en la playa y los niños", "es"),
        ("一只猫坐在桌子上", "zh"),
        ("猫がテーブルの上に座っている", "ja"),
        ("고양이가 책상 위에 있다", "ko"),
        ("кошка на столе", "Cyrillic"),
        ("قطة على الطاولة", "Arabic"),
        ("η γάτα στο τραπέζι", "el"),
        ("IMG 2041 zzyzx", "Latin"),
        ("12345 !!! 🙂", "no letters"),
        ("", "no letters"),
    ],
)
def test_captions_are_told_apart_by_script_and_words(text, language):
    assert guess(text) == language
