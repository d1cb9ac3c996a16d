"""Where tokens end in a text, told by how real tokenizers spell them."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from comps.model_servers.chat_templates.token_strings import ends_of
from tests.model_servers.tgi_stand_in import tokenizer

TEXTS = ["", "rain", " rain  and\n\nsnow ", "Ça, c'est 深度学习 🌊👩‍👩‍👧.\tIt's ▁ <0x41>\x00"]


def sentencepiece(*, prefix: bool) -> Tokenizer:
    """A vocabulary as Llama 2 has it, with bytes for what it does not know."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if prefix else "never", split=False)
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    made.train_from_iterator(["rain and snow and rain", "It's rain, c'est rain."] * 3, trainer)
    return made


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_of_a_byte_level_vocabulary_are_found(text: str) -> None:
    encoding = tokenizer().encode(text, add_special_tokens=False)
    ends = ends_of(encoding.tokens, text)
    assert ends is not None
    assert len(ends) == len(encoding.ids)
    for end, (start, stop) in zip(ends, encoding.offsets, strict=True):
        assert end == stop or (stop - start == 1 and end == start)  # A piece of a character.


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("text", ["", "rain", "rain  and snow ", "Ça, c'est 深度 🌊."])
def test_tokens_of_a_sentencepiece_vocabulary_are_found(text: str, prefix: bool) -> None:
    tokens = sentencepiece(prefix=prefix).encode(text, add_special_tokens=False).tokens
    ends = ends_of(tokens, text)
    assert ends is not None
    assert len(ends) == len(tokens)
    assert ends == sorted(ends)
    assert not ends or ends[-1] == len(text)


@pytest.mark.parametrize(("strings", "text"), [(["ra", "##in"], "rain"), (["Ġrain"], "snow"), (["r", "a"], "rain")])
def test_tokens_that_do_not_add_up_to_the_text_are_not_guessed(strings: list[str], text: str) -> None:
    assert ends_of(strings, text) is None
