"""What the name of a model says about it: whether it was published with a chat template, and which names mean it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

_DEFAULT_TAG = ":latest"
"""The tag of a model's name that has none: https://docs.ollama.com/api#model-names"""
_SEPARATORS = re.compile(r"[/\\:]|--")
_ENDING = re.compile(r"([.-](bin|safetensors|i?q\d(?=([\w-]*))\3|hf|gguf|ggml\w*|gptq|awq|fp\d+|b?f16|int\d|\d+bit))+$")
"""The endings of files, and what says how the weights are stored. What follows the digit of `q4-k-m` is matched in one
way only (a lookahead with a back-reference is an atomic group), since `-q4` repeated has too many."""
_LONGEST = 1000
"""The most characters of a name or path that are read, the last ones: a model server may say any."""


def _words(*words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-z])({'|'.join(words)})(?![a-z])")


_PRETRAINED = _words("base", "pt", "pretrain(ed)?")
"""The words of a model that only continues text, whatever its family."""
_UNTEMPLATED = _words("alpaca", "dolly", "(stable-?)?vicuna", "koala", "guanaco", "wizardlm")
"""Families that were trained on conversations, and published without a chat template."""
_CHAT = _words(
    *("chat", "instruct", "it", "assistant", "rlhf", "dpo", "sft", "openchat", "zephyr", "starling", "tulu"),
    *("(open|nous)?-?hermes", "dolphin", "(open)?orca", "smollm3", "gpt-(3\\.5|4|5|oss)\\w*", "o[1345]", "claude"),
    *("gemini", "command-[ra]", "aya", "phi-?[34]\\w*", "qwen-?3\\w*", "qwq", "deepseek-(r1|v[23])\\w*", "glm-?[45]"),
    *("(magi|mini|devs)tral", "mistral-(small|medium|large|nemo)", "falcon-?3", "llama-?3\\.3", "llama-?4", "kimi"),
)
_BASE = re.compile(
    r"(distil)?gpt-?2(-(medium|large|xl))?|gpt-?(j|neox?)-\w+|opt-[\d.]+[mb]|pythia-.*|bloomz?(-\w+)?"
    r"|(meta-)?llama-?(2|3(\.[12])?)?-\d+b|(open_?|code-?)llama-\d+b|mistral-7b(-v0\.\d)?|mixtral-8x\d+b(-v0\.\d)?"
    r"|falcon-\d+b|phi-(1|1[-.]5|2)|smollm2?-[\d.]+[mb]|qwen(1\.5|2|2\.5)-[\d.]+b|gemma-(2-)?\d+b|mpt-\d+b|tinystories.*"
)
"""Names that are whole: those of models that were published without a chat template."""


def name_parts(name: str) -> Iterator[str]:
    """The parts of a model's name or path, in lower case with hyphens and without file endings, the last one first.

    A folder of Hugging Face's cache (`models--owner--name/snapshots/…`) has the owner and the name as parts.
    """
    for part in reversed(_SEPARATORS.split(name[-_LONGEST:].lower().replace("_", "-"))):
        if shortened := _ENDING.sub("", part):
            yield shortened


@cache
def has_chat_template(name: str) -> bool | None:
    """Whether a model was published with a chat template, by its name or path; None if the name does not say.

    The last part of the name that says anything decides. Folders count if they have a digit, as models' names have.
    """
    for number, part in enumerate(name_parts(name)):
        if number and not any(map(str.isdigit, part)):
            continue
        if _PRETRAINED.search(part) or _UNTEMPLATED.search(part) or _BASE.fullmatch(part):
            return False
        if _CHAT.search(part):
            return True
    return None


def other_spelling(name: str) -> str:
    """Returns a name with the tag `latest` instead of without it, or without it instead of with it."""
    return name.removesuffix(_DEFAULT_TAG) if name.endswith(_DEFAULT_TAG) else name + _DEFAULT_TAG
