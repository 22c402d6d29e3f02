"""A guess at the language of a caption: by its script, and in Latin letters by frequent words.

Good for shares over many captions, not for one of them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_WORDS = {
    "en": "the of and to in is with on for at by from an are was this that his her",
    "de": "der die das und mit ein eine von im auf ist für den dem nicht zu aus",
    "fr": "le la les des et une du dans avec sur pour est au par un qui",
    "es": "el los las del y con una para por en un que es su al",
    "it": "il gli della di e con una per che nel sono un alla",
    "pt": "o os da do e com uma para em um não dos as na no",
    "nl": "de het een van en met op voor is niet aan zijn",
}
_BY_WORD: dict[str, list[str]] = {}
for _language, _words in _WORDS.items():
    for _word in _words.split():
        _BY_WORD.setdefault(_word, []).append(_language)

# The first word of a letter's Unicode name, where that says the language or nearly.
_SCRIPTS = {
    "CJK": "zh",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "CYRILLIC": "Cyrillic",
    "ARABIC": "Arabic",
    "HEBREW": "he",
    "GREEK": "el",
    "DEVANAGARI": "Devanagari",
    "THAI": "th",
    "LATIN": "Latin",
}
NONE = "no letters"
_LOOKED_AT = 200  # characters


def guess(text: str) -> str:
    """A language code, the name of a script where that is all there is to see, or "no letters"."""
    letters = [character for character in text[:_LOOKED_AT] if character.isalpha()]
    scripts = Counter(_script(character) for character in letters)
    if not scripts:
        return NONE
    if scripts["ja"]:  # Japanese is written in Chinese characters too
        return "ja"
    script = scripts.most_common(1)[0][0]
    return _latin(text) if script == "Latin" else script


def _script(character: str) -> str:
    if character.isascii():
        return "Latin"
    first = unicodedata.name(character, "OTHER").partition(" ")[0]
    return _SCRIPTS.get(first, "other script")


def _latin(text: str) -> str:
    votes: Counter[str] = Counter()
    for word in re.findall(r"[^\W\d_]+", text[: 4 * _LOOKED_AT].lower()):
        for language in _BY_WORD.get(word, ()):
            votes[language] += 1
    return votes.most_common(1)[0][0] if votes else "Latin"
