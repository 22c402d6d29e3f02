"""What the emoji pictures show: names, captions, questions and skin tones, from `emoji`.

A picture's key is its code points in hex, joined by "-", as its file is named. Every picture has a
canonical caption, the first, which no other picture has. Where `emoji` does not know a key (56 of
4,009: regional-indicator letters, variants that never became standard, one private-use picture),
the name is derived: from the picture without skin tones or, last, from Unicode's own names.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import emoji

from lavit_jax.errors import UserError

TONES = {
    "1f3fb": "light",
    "1f3fc": "medium-light",
    "1f3fd": "medium",
    "1f3fe": "medium-dark",
    "1f3ff": "dark",
}
NO_TONE = "none"  # the answer for a picture that has toned versions and is not one
WHAT, WHICH_TONE = "what is this?", "which skin tone?"

_VARIATION, _JOINER = "fe0f", "200d"
_GENDERS = {"2640": "woman", "2642": "man"}
_PRIVATE_USE = {"e50a": "Shibuya 109"}  # a shop in Tokyo, from a carrier's old emoji set
_TONE_IN_NAME = re.compile(rf" (?:{'|'.join(sorted(TONES.values(), key=len)[::-1])}) skin tone")
_MOST_ALIASES = 2
# First words after which a name is a single thing or person, so that "a" suits it.
_SINGULAR = frozenset(
    (
        "baby",
        "boy",
        "child",
        "deaf",
        "girl",
        "man",
        "mermaid",
        "merman",
        "person",
        "pregnant",
        "woman",
    )
)


@dataclasses.dataclass(frozen=True)
class Description:
    """What is known of a picture.

    Attributes:
      key: its code points.
      captions: the canonical one first; see `describe`.
      questions: lower-cased.
      answers: one for each question.
      base: key of the same picture without skin tones; itself where there is none.
      tones: words for its skin tones from left to right; two for couples of different tones.
    """

    key: str
    captions: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    base: str
    tones: tuple[str, ...]


def describe(keys: Iterable[str], languages: Sequence[str] = ("en",)) -> dict[str, Description]:
    """Describes pictures.

    Captions are, for each language in order, its name ("woman detective medium-dark skin tone").
    Where English is among them, English ones follow: with the tone elsewhere ("woman detective
    with medium-dark skin tone", "medium-dark skin tone woman detective"), up to two aliases, and
    "a drawing of ...", "a picture of ...". The canonical caption is the first language's name.
    Questions and answers are English: what it is (without tones) and, where the picture has toned
    versions, its tone.

    Args:
      keys: all pictures.
      languages: codes of `emoji.LANGUAGES`, at least one.

    Raises:
      UserError: an unknown language.
      ValueError: two pictures with one canonical caption.
    """
    keys = sorted(keys)
    check_languages(languages)
    for language in languages:
        emoji.config.load_language(language)
    names = {language: {key: name(key, language) for key in keys} for language in languages}
    english = {key: name(key) for key in keys}
    bases = _bases(keys, english)
    members = Counter(bases.values())
    taken = _ambiguous_aliases(keys, english)
    described = {}
    for key in keys:
        tones = tones_of(key)
        plain = _TONE_IN_NAME.sub("", english[key]) if tones else english[key]
        captions = [names[language][key] for language in languages]
        if "en" in languages:
            aliases = [alias for alias in _aliases(key) if alias.casefold() not in taken]
            captions += _other_captions(english[key], plain, tones, aliases)
        questions, answers = [WHAT], [plain]
        if members[bases[key]] > 1:
            questions.append(WHICH_TONE)
            answers.append(" and ".join(tones) or NO_TONE)
        described[key] = Description(
            key, tuple(dict.fromkeys(captions)), tuple(questions), tuple(answers), bases[key], tones
        )
    _check_distinct(described)
    return described


def tones_of(key: str) -> tuple[str, ...]:
    """Words for the skin tones of a picture, from left to right; none for a tone by itself."""
    parts = key.split("-")
    tones = tuple(TONES[part] for part in parts if part in TONES)
    if len(tones) == len(parts):
        return ()
    # A couple of one tone may have it twice in its key; it is named once.
    return tones[:1] if len(set(tones)) == 1 else tones


def name(key: str, language: str = "en") -> str:
    """The name of a picture, without ":" and "_"; derived, in English, where `emoji` has none."""
    return _known(key, language) or _derived(key)


def _known(key: str, language: str) -> str | None:
    entry = _entry(key)
    return _clean(entry[language]) if entry and language in entry else None


def _derived(key: str) -> str:
    """An English name: without the tones, of the parts, or of the code point."""
    parts = [part for part in key.split("-") if part != _VARIATION]
    bare = [part for part in parts if part not in TONES]
    if bare and len(bare) < len(parts):
        tone = "".join(f" {TONES[part]} skin tone" for part in parts if part in TONES)
        return name("-".join(bare)) + tone
    if _JOINER in bare:
        *first, last = "-".join(bare).split(f"-{_JOINER}-")
        if last in _GENDERS:
            return re.sub(r"\bperson\b", _GENDERS[last], name(f"-{_JOINER}-".join(first)))
        return " and ".join(name(part) for part in [*first, last])
    if len(bare) > 1:
        return " ".join(name(part) for part in bare)
    if key in _PRIVATE_USE:
        return _PRIVATE_USE[key]
    return unicodedata.name(chr(int(bare[0], 16)), f"symbol U+{bare[0].upper()}").lower()


def _clean(shortcode: str) -> str:
    return " ".join(shortcode.replace(":", " ").replace("_", " ").split())


def check_languages(languages: Sequence[str]) -> None:
    """Raises a `UserError` for a language that `emoji` has not."""
    unknown = [language for language in languages if language not in emoji.LANGUAGES]
    if unknown or not languages:
        raise UserError(
            f"config.data.languages={tuple(languages)!r}: expected some of "
            f"{', '.join(sorted(emoji.LANGUAGES))}"
        )


@functools.cache
def _entries() -> dict[str, dict]:
    """`emoji`'s entries by code points without variation selectors, full ones preferred."""
    entries: dict[str, dict] = {}
    for symbols, entry in emoji.EMOJI_DATA.items():
        key = "-".join(f"{ord(symbol):x}" for symbol in symbols if ord(symbol) != 0xFE0F)
        if key not in entries or entry["status"] == emoji.STATUS["fully_qualified"]:
            entries[key] = entry
    return entries


def _entry(key: str) -> dict | None:
    return _entries().get("-".join(part for part in key.split("-") if part != _VARIATION))


def _aliases(key: str) -> list[str]:
    """Other English names that say something by themselves, which "fr" and "clock630" do not."""
    entry = _entry(key)
    known = name(key).casefold()
    aliases = [_clean(alias) for alias in (entry or {}).get("alias", [])]
    telling = [
        alias
        for alias in aliases
        if len(alias) > 4 and alias.casefold() != known and not any(map(str.isdigit, alias))
    ]
    return telling[:_MOST_ALIASES]


def _ambiguous_aliases(keys: Sequence[str], english: dict[str, str]) -> set[str]:
    """Aliases, casefolded, that mean another picture too."""
    meaning: dict[str, set[str]] = defaultdict(set)
    for key in keys:
        for alias in (english[key], *_aliases(key)):
            meaning[alias.casefold()].add(key)
    return {alias for alias, pictures in meaning.items() if len(pictures) > 1}


def _other_captions(
    full: str, plain: str, tones: Sequence[str], aliases: Sequence[str]
) -> list[str]:
    captions = list(aliases)
    described = full
    if tones:
        tone = f"{' and '.join(tones)} skin tone{'s' if len(tones) > 1 else ''}"
        described = f"{plain} with {tone}"
        captions = [described, f"{tone} {plain}", *captions]
    return [*captions, f"a drawing of {_article(full)}", f"a picture of {_article(described)}"]


def _article(text: str) -> str:
    return f"a {text}" if text.split(maxsplit=1)[0] in _SINGULAR else text


def _bases(keys: Sequence[str], english: dict[str, str]) -> dict[str, str]:
    """The picture each one is a toned version of, by code points or else by name."""
    by_points = {key.replace(f"-{_VARIATION}", ""): key for key in keys}
    by_name = {english[key]: key for key in keys if not tones_of(key)}
    bases = {}
    for key in keys:
        if not tones_of(key):
            bases[key] = key
            continue
        bare = "-".join(p for p in key.split("-") if p not in TONES and p != _VARIATION)
        plain = _TONE_IN_NAME.sub("", english[key])
        # "kiss person person" of two tones is a version of "kiss".
        couple = plain.removesuffix(" person person")
        bases[key] = by_points.get(bare) or by_name.get(plain) or by_name.get(couple) or bare
    return bases


def _check_distinct(described: dict[str, Description]) -> None:
    """Canonical captions are answers to be matched exactly: one must mean one picture."""
    owner: dict[str, str] = {}
    for key, description in described.items():
        caption = description.captions[0]
        if owner.setdefault(caption, key) != key:
            raise ValueError(f"pictures {owner[caption]} and {key} are both named {caption!r}")
