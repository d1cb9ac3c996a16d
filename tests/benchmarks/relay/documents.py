"""What 40 documents of 300 words cost in the core's planning, in milliseconds above a question without any.

Run as a program, with the checkout that is measured on the path; it prints the samples as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

DOCUMENTS, WORDS = 40, 300
WINDOW = 8192
"""The context window in tokens, where they are counted: not all documents fit."""
SAMPLES = 15
VOCABULARY = 4000


def lexicon() -> list[str]:
    """Words of one to four syllables."""
    chosen = random.Random(1)
    syllables = [first + vowel + last for first in "bdfgklmnprstv" for vowel in "aeiou" for last in ("", "n", "r", "s")]
    return ["".join(chosen.choices(syllables, k=1 + number % 4)) for number in range(VOCABULARY)]


def passages(words: list[str]) -> Iterator[list[str]]:
    """Other documents each time."""
    chosen = random.Random(2)
    while True:
        yield [" ".join(chosen.choices(words, k=WORDS)).capitalize() + "." for _ in range(DOCUMENTS)]


def write_tokenizer(words: list[str], file: Path) -> None:
    """A byte-level tokenizer to which those words are one token or two."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    made = Tokenizer(BPE())
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=6000, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    made.train_from_iterator([" ".join(words)] * 2, trainer)
    made.save(str(file))


async def samples(tokenizer: str, seen: bool) -> list[float]:
    """Milliseconds for each of several requests; by a tokenizer's file, if there is one, in a window of that size."""
    from comps import Document, GenerationRequest, Message
    from comps.app import read_settings
    from comps.opening import open_models

    counted = {"LLM_TOKENIZER_FILE": tokenizer, "LLM_CONTEXT_WINDOW": str(WINDOW)} if tokenizer else {}
    os.environ.update({"MODEL_SERVER": "scripted", "LLM_NAME": "m", "FRAMEWORK": "native", **counted})
    generator = next(iter(open_models(read_settings(None))))
    question = (Message("user", "What is said about that?"),)
    texts = passages(lexicon())
    same = next(texts)

    async def took(documents: list[str] | None) -> float:
        given = None if documents is None else tuple(map(Document, documents))
        request = GenerationRequest(question, given)
        began = perf_counter()
        await generator.plan(request)
        return (perf_counter() - began) * 1e3

    for _ in range(3):
        await took(same if seen else next(texts))
    without = median([await took(None) for _ in range(SAMPLES)])
    return [await took(same if seen else next(texts)) - without for _ in range(SAMPLES)]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tokenizer.json")
        write_tokenizer(lexicon(), file)
        found = {
            "uncounted": asyncio.run(samples("", seen=False)),
            "seen": asyncio.run(samples(str(file), seen=True)),
            "new": asyncio.run(samples(str(file), seen=False)),
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
