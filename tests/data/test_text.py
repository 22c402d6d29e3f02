import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavit_jax.data import text
from lavit_jax.data.text import TextTokenizer
from lavit_jax.errors import UserError

CORPUS = [f"a drawing of a {animal} {n}" for animal in ("cat", "dog", "newt") for n in range(30)]


def test_special_ids_are_llamas(tokenizer):
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 0)
    assert tokenizer.vocab_size == 500
    assert not {0, 1, 2} & set(tokenizer.encode("woman detective"))


def test_every_caption_survives(tokenizer, records):
    for split in records.values():
        for record in split:
            for caption in record["captions"]:
                assert tokenizer.decode(tokenizer.encode(caption)) == caption


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00▁"), max_size=20))
@settings(max_examples=100, deadline=None)
def test_any_text_survives_in_bytes_where_need_be(tokenizer, words):
    assert tokenizer.decode(tokenizer.encode(words)) == words


def test_special_and_visual_ids_have_no_text(tokenizer):
    ids = tokenizer.encode("red apple")
    assert tokenizer.decode([1, *ids, 2, 0, 500, 501, 999]) == "red apple"
    assert tokenizer.decode([]) == ""


def test_training_is_deterministic_and_leaves_nothing_aside(tmp_path):
    for name in ("a", "b"):
        text.train_tokenizer(iter(CORPUS), tmp_path / name / "text.model", 300)
    assert (tmp_path / "a/text.model").read_bytes() == (tmp_path / "b/text.model").read_bytes()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["text.model"]


def test_too_large_a_vocabulary_names_the_field_and_the_most_possible(tmp_path):
    with pytest.raises(UserError, match=r"text_vocab_size=5000.*at most (\d+)") as caught:
        text.train_tokenizer(CORPUS, tmp_path / "text.model", 5000)
    most = int(str(caught.value).rsplit(" ", 1)[1])
    text.train_tokenizer(CORPUS, tmp_path / "text.model", most)
    assert TextTokenizer(tmp_path / "text.model").vocab_size == most


def test_too_small_a_vocabulary_names_the_field(tmp_path):
    with pytest.raises(UserError, match="text_vocab_size=100"):
        text.train_tokenizer(CORPUS, tmp_path / "text.model", 100)


def test_the_rarest_characters_are_spelt_in_bytes(tmp_path):
    corpus = ["red cat", *(f"{chr(0x4E00 + n)} cat" for n in range(100))]
    text.train_tokenizer(corpus * 20 + CORPUS * 200, tmp_path / "text.model", 300)
    tokenizer = TextTokenizer(tmp_path / "text.model")
    assert tokenizer.decode(tokenizer.encode(corpus[99])) == corpus[99]


def test_more_characters_than_pieces_name_the_field_and_the_least_needed(tmp_path):
    corpus = [chr(0x4E00 + n) * 2 + " cat" for n in range(500)]
    with pytest.raises(
        UserError, match=r"text_vocab_size=300 is too small.*use at least (\d+)"
    ) as caught:
        text.train_tokenizer(corpus, tmp_path / "text.model", 300)
    least = int(str(caught.value).rsplit(" ", 1)[1])
    text.train_tokenizer(corpus, tmp_path / "text.model", least)


def test_an_empty_corpus_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no sentences"):
        text.train_tokenizer(["", " "], tmp_path / "text.model", 300)


def test_a_missing_or_broken_model_is_named(tmp_path):
    with pytest.raises(UserError, match=r"not found.*text\.model"):
        TextTokenizer(tmp_path / "text.model")
    (tmp_path / "text.model").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"not a sentencepiece model.*text\.model"):
        TextTokenizer(tmp_path / "text.model")
