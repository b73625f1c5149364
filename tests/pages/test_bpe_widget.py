"""The widget `bpe`: merges and tokens are those of minidiff.models, and its controls change what is shown."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

import minidiff as md
from minidiff.models.bpe import learn_merges
from minidiff.models.tokenizer import Tokenizer, byte_tokens, bytes_to_unicode, merge, normalize, vocabulary, words

PAGE = "course/09_tokenizer.html"
FIGURE = 'figure.widget[data-widget="bpe"]'
SMALL = "black cat face\ncat face\ncat hat"
TEXTS = {
    "the chapter's": SMALL,
    "repeated letters": "aaaa aaaa aaa aa a aaaaaaa",
    "ties": "ab cd ab cd ba dc ba dc",
    "not ASCII": "Ünï café CAFÉ naïve ναΐ Σίσυφος ΣΣ 猫と犬 猫 🐱🐱 🐱 ½ ²³ e\u0301 İstanbul",
    "spaces and signs": "  don't\u00a0we'll\tit's,  3 cats & 42 dogs... !!! <|endoftext|> x=\u2003y\ufeffz a\x1cb\x85c",
    "emoji captions": "\n".join(md.open_dataset("emoji").captions[:60]),
    "nothing": " \n ",
}


def in_page(page, function, *arguments):
    return page.evaluate(f"arguments => minidiff.bpe.{function}(...arguments)", arguments)


def pairs_of(merges):
    return [tuple(pair.split(" ")) for pair in merges]


def tokens_of(text, merges):
    """minidiff's tokens of a text without special tokens."""
    vocab = vocabulary(merges)
    names = {number: token for token, number in vocab.items()}
    return [names[number] for number in Tokenizer(vocab, merges).encode(text)]


def shown_tokens(figure, of):
    return [token.text_content() for token in figure.locator(f"{of} .token").all()]


def test_bytes_and_words_are_the_tokenizers(open_page):
    page = open_page(PAGE)
    assert page.evaluate("minidiff.bpe.characters") == bytes_to_unicode()
    rng = np.random.default_rng(0)
    alphabet = "aB'sé ß\t\n\u3000Жω猫1٣½²!-_<|>.,\u00ad\u200d🐱\u0301"
    random_texts = ["".join(rng.choice(list(alphabet), 20)) for _ in range(50)]
    for text in (*TEXTS.values(), *random_texts, "<|startoftext|>'s'll they're", "ab\x7fc\xa0"):
        expected = list(words(normalize(text)))
        assert in_page(page, "words", in_page(page, "normalize", text)) == expected
        assert [in_page(page, "byteTokens", word) for word in expected] == [
            byte_tokens(word, bytes_to_unicode()) for word in expected
        ]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_merges_are_those_that_minidiff_learns(open_page, text):
    page = open_page(PAGE)
    expected = learn_merges(text.split("\n"), 10_000)
    assert pairs_of(in_page(page, "learnMerges", text)) == expected
    for size in (0, 1, 3):
        assert pairs_of(in_page(page, "learnMerges", text, size)) == expected[:size]


def test_pairs_are_counted_as_often_as_their_words_occur(open_page):
    counts = Counter()
    for word, n in Counter(words(normalize(SMALL))).items():
        for pair in pairwise(byte_tokens(word, bytes_to_unicode())):
            counts[pair] += n
    expected = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    page = open_page(PAGE)
    shown = page.evaluate("text => minidiff.bpe.pairCounts(minidiff.bpe.wordCounts(text))", SMALL)
    assert [(tuple(pair.split(" ")), n) for pair, n in shown] == expected


@pytest.mark.parametrize("learned_from", ["the chapter's", "repeated letters", "not ASCII", "emoji captions"])
def test_tokens_are_the_tokenizers(open_page, learned_from):
    page = open_page(PAGE)
    merges = learn_merges(TEXTS[learned_from].split("\n"), 10_000)
    for text in (*TEXTS.values(), "catface", "aaaaa", "astronaut", "🐱é", "faceless black cats"):
        if "<|" in text:
            continue  # the tokenizer takes these marks for special tokens before it splits words
        assert in_page(page, "encode", text, [" ".join(pair) for pair in merges]) == tokens_of(text, merges)


def test_the_tree_of_a_word_has_the_rank_of_every_merge(open_page):
    page = open_page(PAGE)
    merges = learn_merges(TEXTS["emoji captions"].split("\n"), 10_000)

    def check(node):
        if "left" in node:
            assert merges[node["rank"]] == (node["left"]["token"], node["right"]["token"])
            return check(node["left"]) + check(node["right"])
        return [node["token"]]

    trees = in_page(page, "tree", "grinning", [" ".join(pair) for pair in merges])
    assert [token for node in trees for token in check(node)] == byte_tokens("grinning", bytes_to_unicode())
    assert any("left" in node for node in trees)


def test_steps_forward_and_back_show_the_chapters_merges(open_page):
    page = open_page(PAGE)
    figure = page.locator(FIGURE)
    merges = learn_merges(SMALL.split("\n"), 5)
    rows = {word: byte_tokens(word, bytes_to_unicode()) for word in words(normalize(SMALL))}
    states = [rows]
    for pair in merges:
        states.append({word: merge(row, pair) for word, row in states[-1].items()})

    forward, back = (figure.get_by_role("button", name=name) for name in ("Forward", "Back"))
    assert back.is_disabled()
    for number, state in enumerate(states):
        assert shown_tokens(figure, ".word") == [token for row in state.values() for token in row]
        assert shown_tokens(figure, ".tokens") == tokens_of("catface", merges[:number])
        readout = figure.locator(".readout").text_content()
        if number < len(merges):
            assert f"rank {number}: {' + '.join(merges[number])} " in readout
            assert shown_tokens(figure, ".pair.best") == list(merges[number])
            forward.click()
    assert "all merges are learned" in readout and forward.is_disabled()
    assert figure.locator("svg .rank").all_text_contents() == ["1", "3", "4"]  # of a + c, ac + e</w>, f + ace</w>
    back.click()
    assert shown_tokens(figure, ".word") == [token for row in states[-2].values() for token in row]
    page.keyboard.press("Enter")  # the button has the focus
    assert shown_tokens(figure, ".word") == [token for row in states[-3].values() for token in row]


def test_a_text_and_a_word_of_the_reader(open_page):
    page = open_page(PAGE)
    figure = page.locator(FIGURE)
    figure.get_by_role("textbox", name="text").fill("aaaa aaaa")
    assert shown_tokens(figure, ".pair.best") == ["a", "a"]
    figure.get_by_role("button", name="Forward").click()
    assert shown_tokens(figure, ".word") == ["aa", "a", "a</w>"]
    assert "2 pairs occur 2 times; the first of them in string order" in figure.locator(".readout").text_content()
    assert shown_tokens(figure, ".pair.best") == ["a", "a</w>"]
    figure.get_by_label("merges").press("End")
    figure.get_by_role("textbox", name="encode").fill("Aaaa É")
    merges = learn_merges(["aaaa aaaa"], 10)
    assert shown_tokens(figure, ".tokens") == tokens_of("Aaaa É", merges) == ["aaaa</w>", "Ã", "©</w>"]
    figure.get_by_role("textbox", name="text").fill("")
    figure.get_by_role("textbox", name="encode").fill("")
    assert shown_tokens(figure, ".word") == shown_tokens(figure, ".tokens") == []


def test_a_token_has_the_colour_of_its_merge(open_page):
    figure = open_page(PAGE).locator(FIGURE)
    figure.get_by_label("merges").press("End")
    colours = {
        token.text_content(): token.evaluate("token => getComputedStyle(token).backgroundColor")
        for token in figure.locator(".word .token").all()
    }
    assert len({colours[token] for token in ("at</w>", "cat</w>", "b")}) == 3
    assert colours["b"] == colours["l"]  # bytes are grey


def test_works_from_a_file(open_page, site_folder):
    figure = open_page(f"file://{site_folder}/{PAGE}").locator(FIGURE)
    figure.get_by_role("button", name="Forward").click()
    assert "at</w>" in shown_tokens(figure, ".word")
