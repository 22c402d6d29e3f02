"""Which emoji picture is in which split.

The rule, a function of keys and pixels alone. Pictures are taken in the order of the sha256 of
their keys.

* `test_new`, 200 pictures never seen in any form: the first that are neither a skin-tone version
  of anything nor have such versions. So no other version of the same drawing is in `train`.
* `test_combo`, 300 skin-tone versions seen in parts, never together: the first of which the
  untoned picture is in `train`, at least `MIN_OTHER_TONES` other versions of it stay in `train`,
  and every tone of it is in `train` (for a couple of two tones: among the versions of the same
  couple, so that no test asks for a tone the drawing was never seen in).
* `train`: the rest.

Some pictures are the same to the pixel (families of any members, a few flags, ...). Such a one is
in `train`, whatever its hash, so that no test picture is seen in training under another name.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping

from lavit_jax.data.emoji_names import Description

TRAIN, TEST_NEW, TEST_COMBO = "train", "test_new", "test_combo"
NEW_COUNT, COMBO_COUNT = 200, 300
MIN_OTHER_TONES = 2


def assign(
    pictures: Mapping[str, Description],
    looks: Mapping[str, bytes],
    new_count: int = NEW_COUNT,
    combo_count: int = COMBO_COUNT,
) -> dict[str, str]:
    """Assigns every picture to a split by the rule above.

    Args:
      pictures: by key.
      looks: a digest of each picture's pixels.
      new_count: pictures of `test_new`.
      combo_count: pictures of `test_combo`.

    Raises:
      ValueError: too few pictures that the rule allows.
    """
    order = sorted(pictures, key=lambda key: hashlib.sha256(key.encode()).digest())
    alike = Counter(looks.values())
    single = [key for key in order if alike[looks[key]] == 1]
    members: dict[str, set[str]] = defaultdict(set)
    for key, picture in pictures.items():
        members[picture.base].add(key)
    new = [key for key in single if len(members[pictures[key].base]) == 1]
    splits = dict.fromkeys(pictures, TRAIN)
    splits.update(dict.fromkeys(new[:new_count], TEST_NEW))
    combos = _combos(pictures, single, members, combo_count)
    splits.update(dict.fromkeys(combos, TEST_COMBO))
    if len(new) < new_count or len(combos) < combo_count:
        raise ValueError(
            f"too few pictures for the test splits: {len(new)} of {new_count} new ones, "
            f"{len(combos)} of {combo_count} combinations"
        )
    return splits


def _combos(
    pictures: Mapping[str, Description],
    order: list[str],
    members: Mapping[str, set[str]],
    count: int,
) -> list[str]:
    held: dict[str, set[str]] = defaultdict(set)
    taken: list[str] = []
    for key in order:
        base = pictures[key].base
        if len(taken) == count:
            break
        if not pictures[key].tones or base not in pictures:
            continue
        # Holding one out must not undo what the base's earlier ones rely on.
        tests = held[base] | {key}
        stays = members[base] - tests - {base}
        if len(stays) < MIN_OTHER_TONES:
            continue
        if all(_tones_seen(pictures, test, stays) for test in tests):
            held[base] = tests
            taken.append(key)
    return taken


def _tones_seen(pictures: Mapping[str, Description], test: str, stays: set[str]) -> bool:
    """Whether a couple's tones stay with it; a lone tone is in `train` with other pictures."""
    tones = pictures[test].tones
    seen = {tone for key in stays for tone in pictures[key].tones}
    return len(tones) == 1 or set(tones) <= seen
