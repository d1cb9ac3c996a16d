"""Tokens into text, and text up to a stop string, however they are split on their way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from random import Random

import pytest

from comps.core.stop_strings import StopStrings
from comps.model_servers.embedded.text import IncrementalDecoder

Decode = Callable[[Sequence[int]], str]

WORDS = [b" the", b" of", b"ing", b" ", b"\xf0\x9f", b" \xe2\x82", b"\xac.", b"\x98\x80", "中文".encode(), b""]
"""Tokens beyond the 256 single bytes; some begin or end within a character, and one is nothing at all."""


def to_bytes(ids: Sequence[int]) -> bytes:
    return b"".join(bytes([number]) if number < 256 else WORDS[number - 256] for number in ids)


def dropping(ids: Sequence[int]) -> str:
    """As a tokenizer that gives nothing for bytes that make no character."""
    return to_bytes(ids).decode("utf-8", "ignore")


def replacing(ids: Sequence[int]) -> str:
    """As a tokenizer that gives U+FFFD for them."""
    return to_bytes(ids).decode("utf-8", "replace")


def stripping(decode: Decode) -> Decode:
    """As a tokenizer that takes off the space that its text begins with."""
    return lambda ids: decode(ids).removeprefix(" ")


DECODERS: dict[str, Decode] = {
    "dropping": dropping,
    "replacing": replacing,
    "dropping and stripping": stripping(dropping),
    "replacing and stripping": stripping(replacing),
}
every_decoder = pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS)


def pieces(decode: Decode, ids: Sequence[int], sizes: Iterator[int] | None = None) -> list[str]:
    """What comes out a step, the flush being the last."""
    decoder, given, at = IncrementalDecoder(decode), [], 0
    while at < len(ids):
        size = next(sizes) if sizes else 1
        given.append(decoder.push(ids[at : at + size]))
        at += size
    return [*given, decoder.flush()]


def random_ids(random: Random, length: int) -> list[int]:
    """Valid text of mixed alphabets, as tokens: words where one fits, else bytes."""
    text = "".join(
        random.choice(["a", " ", " the", "é", "€", "中文", "😀", "👩‍👩‍👧", "\n"]) for _ in range(length)
    ).encode()
    ids: list[int] = []
    while text:
        fitting = [number for number, word in enumerate(WORDS, 256) if word and text.startswith(word)]
        ids.append(random.choice(fitting) if fitting and random.random() < 0.7 else text[0])
        text = text[len(to_bytes(ids[-1:])) :]
        if random.random() < 0.05:
            ids.append(265)  # Nothing at all, as a special token.
    return ids


def random_sizes(random: Random, most: int) -> Iterator[int]:
    while True:
        yield random.randint(1, most)


# IncrementalDecoder


@every_decoder
def test_a_token_that_is_text_comes_out_at_once(decode: Decode) -> None:
    assert pieces(decode, list(b"Hi you")) == ["H", "i", " ", "y", "o", "u", ""]


@every_decoder
def test_a_character_comes_out_when_its_last_byte_is_there(decode: Decode) -> None:
    assert pieces(decode, list("a😀b".encode())) == ["a", "", "", "", "😀", "b", ""]


@every_decoder
def test_an_emoji_of_several_characters_comes_out_character_by_character(decode: Decode) -> None:
    family = "👩‍👩‍👧"
    given = pieces(decode, list(family.encode()))
    assert [piece for piece in given if piece] == list(family)


@every_decoder
def test_a_token_may_end_one_character_and_begin_the_next(decode: Decode) -> None:
    ids = [256 + WORDS.index(word) for word in (b"\xf0\x9f", b"\x98\x80", b" \xe2\x82", b"\xac.")]
    assert "".join(pieces(decode, ids)) == "😀 €."


@every_decoder
def test_several_tokens_in_a_step_come_out_together(decode: Decode) -> None:
    decoder = IncrementalDecoder(decode)
    assert decoder.push(list("a😀".encode())[:-1]) == "a"
    assert decoder.push(list("😀b".encode())[-2:]) == "😀b"
    assert decoder.push([]) == ""
    assert decoder.flush() == ""


@every_decoder
def test_no_token_is_no_text(decode: Decode) -> None:
    assert pieces(decode, []) == [""]


def test_half_a_character_at_the_end_is_as_the_tokenizer_has_it() -> None:
    half = list("a😀".encode())[:-1]
    assert pieces(dropping, half)[-1] == ""
    assert pieces(replacing, half)[-1] == "\ufffd"


def test_bytes_that_never_make_a_character_do_not_hold_up_what_follows() -> None:
    assert "".join(pieces(replacing, [*b"a\xff\xfe", *b"b"])) == "a\ufffd\ufffdb"
    assert "".join(pieces(dropping, [*b"a\xff\xfe", *b"b"])) == "ab"


def test_a_real_replacement_character_comes_out() -> None:
    assert "".join(pieces(replacing, list("a\ufffdb\ufffd".encode()))) == "a\ufffdb\ufffd"


@pytest.mark.parametrize("text", ["word " * 100, "€" * 200, "x" + "€" * 200, "xy" + "😀" * 150, " " * 150, "  a" * 90])
@every_decoder
def test_a_long_text_is_the_whole_decode(decode: Decode, text: str) -> None:
    ids = list(text.encode())
    assert "".join(pieces(decode, ids)) == decode(ids)


@every_decoder
def test_a_leading_space_is_taken_off_the_beginning_only(decode: Decode) -> None:
    ids = [256, 257] * 100
    text = "".join(pieces(decode, ids))
    assert text == decode(ids)
    assert text.count(" ") in (199, 200)


@every_decoder
def test_any_text_in_any_steps_is_the_whole_decode(decode: Decode) -> None:
    random = Random(20)
    for _ in range(150):
        ids = random_ids(random, random.randrange(120))
        given = pieces(decode, ids, random_sizes(random, random.choice([1, 2, 7, 80])))
        assert "".join(given) == decode(ids)
        assert not any("\ufffd" in piece for piece in given)


@every_decoder
def test_any_bytes_in_any_steps_are_the_whole_decode(decode: Decode) -> None:
    random = Random(21)
    for _ in range(150):
        ids = [random.choice([random.randrange(256), random.randrange(265)]) for _ in range(random.randrange(160))]
        assert "".join(pieces(decode, ids)) == decode(ids)


def test_a_long_text_is_not_decoded_anew_for_every_token() -> None:
    lengths = []

    def decode(ids: Sequence[int]) -> str:
        lengths.append(len(ids))
        return dropping(ids)

    pieces(decode, list(b"word " * 400))
    assert max(lengths) < 100


# StopStrings


def shown(stops: Sequence[str], texts: Sequence[str]) -> tuple[list[str], bool]:
    """What was shown a step, the flush being the last, and whether a stop string was met."""
    cut = StopStrings(stops)
    return [*(cut.push(text) for text in texts), cut.flush()], cut.hit


def test_without_stops_all_passes_at_once() -> None:
    assert shown([], ["a", "b"]) == (["a", "b", ""], False)
    assert shown([""], ["a", ""]) == (["a", "", ""], False)


def test_a_stop_within_a_piece_ends_the_text_before_it() -> None:
    assert shown(["END"], ["one END two"]) == (["one ", ""], True)


def test_a_stop_split_over_pieces_is_never_shown() -> None:
    assert shown(["END"], ["one E", "N", "D two"]) == (["one ", "", "", ""], True)
    assert shown(["END"], list("aEND")) == (["a", "", "", "", ""], True)


def test_nothing_comes_after_a_stop() -> None:
    assert shown(["END"], ["END", "more", "END"]) == (["", "", "", ""], True)


def test_what_began_like_a_stop_is_shown_once_it_is_none() -> None:
    assert shown(["END"], ["E", "N", "d"]) == (["", "", "ENd", ""], False)


def test_a_false_beginning_may_hold_the_true_one() -> None:
    assert shown(["aab"], ["a", "a", "a", "b"]) == (["", "", "a", "", ""], True)
    assert shown(["\n\nQ"], ["\n", "\n", "\n", "Q"]) == (["", "", "\n", "", ""], True)


def test_only_what_may_begin_a_stop_is_held_back() -> None:
    assert shown(["\nUser:"], ["one\n", "two\nUse", "ful"]) == (["one", "\ntwo", "\nUseful", ""], False)


def test_what_is_held_at_the_end_is_shown_by_the_flush() -> None:
    assert shown(["END"], ["one EN"]) == (["one ", "EN"], False)


def test_flushing_twice_shows_nothing_twice() -> None:
    cut = StopStrings(["END"])
    cut.push("EN")
    assert [cut.flush(), cut.flush()] == ["EN", ""]


@pytest.mark.parametrize("stops", [["two", "one"], ["one", "two"]])
def test_of_several_stops_the_earliest_in_the_text_wins(stops: list[str]) -> None:
    assert shown(stops, ["zero one two"]) == (["zero ", ""], True)
    assert shown(stops, ["zero o", "ne two"]) == (["zero ", "", ""], True)


def test_a_stop_is_found_as_in_the_whole_text_however_it_is_cut_into_pieces() -> None:
    random = Random(3)
    for _ in range(2000):
        text = "".join(random.choices("ab", k=random.randrange(30)))
        stops = ["".join(random.choices("ab", k=random.randrange(1, 9))) for _ in range(random.randrange(1, 4))]
        first, wanted = min(((text.find(stop), stop) for stop in stops if stop in text), default=(len(text), None))
        cut, shown = StopStrings([wanted or stops[0]]), ""
        while text:
            size = random.randrange(1, 5)
            piece, text = text[:size], text[size:]
            shown += cut.push(piece)
        shown += cut.flush()
        assert (len(shown), cut.found) == (first, wanted)


@pytest.mark.soak
def test_the_time_for_a_long_stop_string_is_linear_in_the_text() -> None:
    began = time.thread_time()
    assert shown(["a" * 300_000 + "b"], ["a" * 150_000, *["aa"] * 50_000, "c"])[1] is False
    assert time.thread_time() - began < 1


def test_stops_of_different_lengths_each_hold_back_their_own_beginning() -> None:
    assert shown(["<end>", "\n"], ["a<e", "x", "\n"]) == (["a", "<ex", "", ""], True)


def test_a_stop_may_be_longer_than_the_whole_text() -> None:
    assert shown(["abcdefgh"], ["abc"]) == (["", "abc"], False)


@pytest.mark.parametrize("stops", [["END"], ["aab", "ba"], ["\n\n", "ab"], ["aaa"], ["aba", "bb", "€a"]])
def test_any_text_in_any_pieces_is_cut_before_the_first_stop(stops: list[str]) -> None:
    random = Random(22)
    for _ in range(400):
        text = "".join(random.choice("aab\n€END") for _ in range(random.randrange(40)))
        texts, rest = [], text
        while rest:
            size = random.randint(1, 6)
            texts.append(rest[:size])
            rest = rest[size:]
        given, hit = shown(stops, texts)
        first = min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
        assert "".join(given) == text[:first]
        assert hit == (first is not None)


def test_a_long_text_of_wide_characters_is_decoded_in_a_window_of_fixed_size() -> None:
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return bytes(ids).decode(errors="ignore")

    text = "a" + "€" * 400
    decoder = IncrementalDecoder(decode)
    assert "".join(decoder.push([byte]) for byte in text.encode()) + decoder.flush() == text
    assert longest < 60
