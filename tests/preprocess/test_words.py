"""Words in all scripts: a text and its tokens get the same predictions, and a text without words gets none."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.predict.predictions import prediction_row
from engine.task.task import Task
from engine.task.text import join_tokens, split_text
from engine.task.words import is_wordless
from preprocess.labels.spans import tokenize_spans
from tools.export.settings import patterns

FORMATS = "\u00ad\u200b\u200c\u200d\u2060\ufeff"
EXAMPLES = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
LETTERS = {
    "Latin": "abcdéöñßIŠ",
    "Persian": "سلامکتابیخو",
    "Hindi": "कखगनमािीु्ंष",
    "Thai": "กขคนมาีู่้",
    "Korean": "한국어가나다라",
    "Greek": "αβγδέ",
    "digits": "0123456789",
}
EMOJI = "👍 👍🏽 ❤️ 👩‍💻 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 1️⃣ #️⃣ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🤷🏿‍♂️ ☺ ©".split()


def is_word(token: str) -> bool:
    return split_text(token, "word") == [(token, 0, len(token))]


def word_of(letters: str) -> st.SearchStrategy[str]:
    """Returns a strategy for words of one script, some with format characters inside."""
    pieces = st.lists(st.text(st.sampled_from(letters), min_size=1, max_size=4), min_size=1, max_size=3)
    return st.tuples(pieces, st.sampled_from(FORMATS)).map(lambda found: found[1].join(found[0]))


words = st.one_of(*map(word_of, LETTERS.values()), st.sampled_from(EMOJI), st.sampled_from("中国語のテスト。，!?()"))


@pytest.fixture(scope="module")
def exported():
    """Returns the predictor's pattern of words, for Python's re."""
    return re.compile(patterns()[0]["word"])


@EXAMPLES
@given(st.lists(words.filter(is_word), min_size=1, max_size=8))
def test_word_tokens_are_recovered_from_their_text(exported, tokens):
    text, offsets = join_tokens(tokens, "word")
    assert split_text(text, "word") == [(token, *place) for token, place in zip(tokens, offsets)]
    assert exported.findall(text) == tokens


@pytest.mark.parametrize("script", sorted({*LETTERS} - {"Thai"}))
@pytest.mark.parametrize("sign", FORMATS)
def test_a_format_character_inside_a_word_is_part_of_it(script, sign):
    letters = LETTERS[script][:6]
    word = sign.join(letters)
    assert [token for token, _, _ in split_text(f"{letters} {word}, {letters}", "word")] == [
        letters,
        word,
        ",",
        letters,
    ]


def test_a_zero_width_space_can_separate_words():
    assert [token for token, _, _ in split_text("กขค\u200bนมา", "word")] == ["กขค", "\u200b", "นมา"]


@pytest.mark.parametrize("emoji", EMOJI)
def test_an_emoji_is_one_word(emoji, exported):
    assert [token for token, _, _ in split_text(f"so {emoji}!", "word")] == ["so", emoji, "!"]
    assert exported.findall(f"{emoji} ({emoji})") == [emoji, "(", emoji, ")"]


@pytest.mark.parametrize("sign", FORMATS)
def test_a_span_keeps_its_offsets_and_its_word(sign):
    name = f"Ha{sign}nover"
    text = f"to {name} today"
    example = {"_where": "a.jsonl, row 1", "text": text, "entities": [(3, 3 + len(name), "city")]}
    assert not any(note.rows for note in tokenize_spans([example], ["entities"], "word"))
    assert (example["tokens"], example["entities"]) == (["to", name, "today"], ["O", "B-city", "O"])


@pytest.mark.parametrize("text", ["", " ", "\t \n", "\u200b", "\u00a0\ufeff", "\u2060 \u200d"])
@pytest.mark.parametrize("unit", ["word", "character", "character+blank"])
def test_a_text_without_words_gets_no_entity_and_no_tag(text, unit):
    tokens = [token for token, _, _ in split_text(text, unit)]
    tasks = {"slots": Task("tagging", ("O", "B-x"), unit=unit), "spans": Task("spans", ("x",), unit=unit)}
    predicted = {"slots": (["B-x"] * len(tokens), None), "spans": ([[0, 0, "x"]], [0.9])}
    example = {"id": "1", "text": text, "tokens": tokens}
    assert is_wordless(example) and is_wordless({"text": text})
    row = prediction_row(example, predicted, tasks)
    assert (row["slots"], row["slots_tags"], row["spans"]) == ([], [], [])


def test_a_text_with_a_word_has_words():
    assert not is_wordless({"tokens": [".", " "]}) and not is_wordless({"text": "\u200bа"})
