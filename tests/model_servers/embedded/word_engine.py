"""An engine without a model: a token is a word, and an answer repeats the words of its prompt.

The first word that the engine has seen has a probability of 1/2 at every place, the second one of 1/4, and so on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from time import process_time

from comps.core.errors import InvalidRequest
from comps.core.types import JSON, Sampling
from comps.model_servers.embedded.base import Embedded
from comps.model_servers.embedded.constraints import Constraint
from comps.model_servers.embedded.decoding import Completion, check_sampling, check_settings, max_new_tokens
from comps.model_servers.embedded.engine_program import EnginePrompt, Messages, Part, serve
from comps.model_servers.embedded.logprobs import Scores, Wanted
from comps.model_servers.embedded.text import ControlTokens

END = "."


class WordEngine:
    """Adds a word to each answer in a step. The word `crash` in a prompt makes the step fail, and `think` makes it take
    a second of the CPU's time."""

    longest_token = 20
    chat_template = ""

    def __init__(self, window: int, has_chat_template: bool = True) -> None:
        self.context_window: int | None = window
        self._has_chat_template = has_chat_template
        self._words: list[str] = []
        self._running: dict[int, tuple[Completion, list[int]]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def _tokens(self, text: str) -> list[int]:
        tokens = []
        for word in text.split():
            if word not in self._words:
                self._words.append(word)
            tokens.append(self._words.index(word))
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(f" {self._words[token]}" for token in tokens)

    def name_of(self, token: int) -> str:
        return self._words[token]

    def _named(self, tokens: Sequence[int]) -> str:
        """The text of a prompt, which begins with no space."""
        return self.decode(tokens).removeprefix(" ")

    def _scores(self, token: int, alternatives: int | None) -> Scores | None:
        if alternatives is None:
            return None
        likeliest = range(min(alternatives, len(self._words)))
        return logprob(token), [(one, logprob(one)) for one in likeliest]

    def _read_prompt(self, completion: Completion) -> Part | None:
        """Read a chunk of a prompt that has logprobs."""
        records = completion.prompt_records
        assert records
        most = records.alternatives
        records.push(lambda at, token: self._scores(token, most) or (0, ()), records.next_chunk)
        return completion.prompt_part()

    def start(
        self,
        number: int,
        prompt: EnginePrompt,
        sampling: Sampling,
        constraint: Constraint | None = None,
        tools: Sequence[JSON] = (),
        logprobs: Wanted | None = None,
    ) -> None:
        check_sampling(sampling)
        if sampling.seed == 13:
            raise InvalidRequest("13 brings bad luck", "seed")
        tokens, ends = self._tokens_of(prompt), set(self._tokens(END))
        most = max_new_tokens(len(tokens), sampling, self.context_window or 0)
        completion = Completion(number, tokens, most, sampling.stop, self.decode, ends, isinstance(prompt, str))
        if logprobs:
            completion.add_logprobs(logprobs, self._named, logprobs.of_prompt(prompt, tokens, [], self._named))
        self._running[number] = completion, tokens

    def start_embedding(self, number: int, texts: Sequence[str]) -> None:
        raise InvalidRequest("words have no vectors", "input")

    def cancel(self, number: int) -> None:
        self._running.pop(number, None)

    def count_prompt(self, prompt: EnginePrompt, tools: Sequence[JSON] = ()) -> int:
        return len(self._tokens_of(prompt))

    def _tokens_of(self, prompt: EnginePrompt) -> list[int]:
        return self._tokens(prompt if isinstance(prompt, str) else self.render(prompt))

    def render(self, messages: Messages, tools: Sequence[JSON] = ()) -> str:
        if not self._has_chat_template:
            raise InvalidRequest("words answer no conversation", "messages")
        return " ".join(turn["content"] for turn in ControlTokens(["<end>"]).escaped(messages))

    def tokenize(self, text: str) -> list[int]:
        return self._tokens(text)

    def count(self, text: str) -> int:
        return len(text.split())

    def step(self) -> list[Part]:
        parts = []
        for number, (completion, tokens) in list(self._running.items()):
            token = tokens[completion.tokens % len(tokens)]
            if self._words[token] == "crash":
                raise RuntimeError("a long story of paths\nit crashed")
            if self._words[token] == "think":
                until = process_time() + 1
                while process_time() < until:
                    pass
            if completion.prompt_records:
                parts += [part] if (part := self._read_prompt(completion)) else []
            elif part := completion.push(token, self._scores(token, completion.alternatives)):
                parts.append(part)
                if part.get("last"):
                    del self._running[number]
        return parts


def logprob(word: int) -> float:
    """Of a word by its number."""
    return -(word + 1) * math.log(2)


class Words(Embedded):
    """The kind of model server."""

    kind = "words"
    display_name = "Words"
    program = "tests.model_servers.embedded.word_engine"

    @staticmethod
    def find(model_name: str, local_dir: str) -> str:
        return model_name


def load(model: str, device: str, settings: Mapping[str, JSON], window: int | None) -> WordEngine:
    check_settings(settings, ["n_words", "n_letters"], "words")
    if model == "broken":
        raise ValueError("built on /some/machine\nno words in it")
    return WordEngine(window or 50, has_chat_template=model != "text only")


if __name__ == "__main__":
    serve(load)
