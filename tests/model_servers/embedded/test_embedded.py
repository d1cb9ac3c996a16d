"""The service and an engine in a process of its own, whatever the engine: here, one of words."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from comps.core.answers import Collector, collect, read
from comps.core.errors import InvalidRequest, ModelServerError, PromptTooLong, SettingsError, TextTooLong, Unreachable
from comps.core.types import JSON, Finished, Generation, Message, Sampling, TextDelta, Token, Usage
from comps.model_servers import open_model_server, target
from comps.model_servers.embedded import base as embedded
from comps.model_servers.embedded import engine_process
from comps.model_servers.embedded.decoding import Chunks, is_greedy
from comps.model_servers.embedded.engine_process import EngineProcess
from comps.model_servers.embedded.engine_program import MessageReader, Part
from comps.model_servers.embedded.model_files import BUNDLED_MODEL, find_checkpoint, find_gguf
from comps.model_servers.target import Access, Target
from tests.model_servers.embedded.word_engine import Words

ENDLESS = "round and"


async def test_an_answer_comes_piece_by_piece_with_its_reason_and_its_usage(words: Words) -> None:
    async with aclosing(read(words.generate, "a b .", Sampling(), {})) as events:
        assert [event async for event in events] == [TextDelta(" a"), TextDelta(" b"), Finished("stop", Usage(3, 3))]


async def test_several_choices_are_made_at_once_and_the_prompt_counts_once(words: Words) -> None:
    answer = await collect(words.generate, "a b .", Sampling(seed=11), {"n": 2})
    assert [(one.text, one.reason) for one in answer.choices] == [(" a b", "stop")] * 2
    assert answer.usage == Usage(3, 6)
    with pytest.raises(InvalidRequest, match="13 brings bad luck"):  # Each choice has a seed of its own.
        await collect(words.generate, "a b .", Sampling(seed=11), {"n": 3})


async def test_an_answer_may_begin_with_its_prompt(words: Words) -> None:
    assert (await collect(words.generate, "a .", Sampling(), {"echo": True})).text == "a . a"
    assert (await collect(words.generate, (Message("user", "a ."),), Sampling(), {"echo": True})).text == " a"
    collector = Collector()
    with pytest.raises(InvalidRequest):
        await words.generate("a .", Sampling(seed=13), {"echo": True}, collector)
    assert collector._texts == {}  # An error comes before anything is written.


async def test_max_tokens_and_the_window_end_an_answer_with_length(words: Words) -> None:
    cut = await collect(words.generate, ENDLESS, Sampling(max_tokens=3), {})
    assert cut == Generation(" round and round", "length", Usage(2, 3))
    filled = await collect(words.generate, ENDLESS, Sampling(), {})
    assert (filled.reason, filled.usage) == ("length", Usage(2, 48))


async def test_texts_to_embed_reach_the_engine_unless_one_cannot_fit_whatever_it_says(words: Words) -> None:
    with pytest.raises(InvalidRequest, match="words have no vectors") as caught:
        await words.embed(["a", "b"])
    assert caught.value.field == "input"
    with pytest.raises(TextTooLong, match="the text has at least 50000 tokens, and at most 50 are taken"):
        await words.embed(["a", "b" * 1_000_000])


async def test_a_stop_string_across_tokens_ends_an_answer_before_it(words: Words) -> None:
    cut = await collect(words.generate, "one two three", Sampling(stop=("o th",)), {})
    assert cut == Generation(" one tw", "stop", Usage(3, 3), stop_string="o th")


async def test_a_control_token_in_a_message_reaches_the_engine_broken_up(words: Words) -> None:
    answer = await collect(words.generate, (Message("user", "say <end> now ."),), Sampling(), {})
    assert answer.text == " say < end> now"


class Slow(Collector):
    """An answer whose reader has to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.caught_up = asyncio.Event()
        self.pieces: list[str] = []

    @property
    def full(self) -> bool:  # type: ignore[override]
        return not self.caught_up.is_set()

    def text(self, text: str, choice: int = 0) -> None:
        assert not self.full
        self.pieces.append(text)
        super().text(text, choice)

    async def drain(self) -> None:
        await self.caught_up.wait()


async def test_what_a_slow_reader_cannot_take_yet_is_kept_for_it(words: Words) -> None:
    answer = Slow()
    writing = asyncio.ensure_future(words.generate("a b c .", Sampling(), {}, answer))
    await collect(words.generate, ENDLESS, Sampling(), {})  # 48 steps of the engine, which waits for no reader.
    assert not writing.done()
    assert answer.pieces == []
    answer.caught_up.set()
    await writing
    assert answer.pieces == [" a", " b", " c"]
    assert answer.generation() == Generation(" a b c", "stop", Usage(4, 4))


async def test_a_slow_reader_that_is_cancelled_gets_nothing_any_more(words: Words) -> None:
    answer = Slow()
    writing = asyncio.ensure_future(words.generate("a b c .", Sampling(), {}, answer))
    await collect(words.generate, ENDLESS, Sampling(), {})
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    answer.caught_up.set()
    await collect(words.generate, "a .", Sampling(), {})
    assert answer.pieces == []


class Watched(EngineProcess):
    """Counts the parts that engines write."""

    parts = 0

    def _deliver(self, parts: Sequence[Part]) -> None:
        Watched.parts += len(parts)
        super()._deliver(parts)


@pytest.fixture
async def endless(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Words]:
    """An engine whose answers do not end by themselves, and whose parts are counted."""
    monkeypatch.setattr(embedded, "EngineProcess", Watched)
    server = Words("words", context_window=10_000_000)
    await server.load()
    yield server
    await server.aclose()


async def until_idle() -> None:
    """Wait until the engine writes no parts any more."""
    before = -1
    while before != Watched.parts:
        before = Watched.parts
        await asyncio.sleep(0.1)


async def test_an_answer_that_cannot_be_written_fails_alone_and_stops_the_engine(endless: Words) -> None:
    class Broken(Collector):
        def text(self, text: str, choice: int = 0) -> None:
            raise ValueError("no")

    async with aclosing(read(endless.generate, ENDLESS, Sampling(), {})) as other:
        await anext(other)
        with pytest.raises(ValueError, match="no"):
            await endless.generate(ENDLESS, Sampling(), {}, Broken())
        assert isinstance(await anext(other), TextDelta)
    await asyncio.wait_for(until_idle(), 5)


async def test_a_cancelled_answer_stops_the_engine(endless: Words) -> None:
    begun = asyncio.Event()

    class Begun(Collector):
        def text(self, text: str, choice: int = 0) -> None:
            begun.set()

    writing = asyncio.ensure_future(endless.generate(ENDLESS, Sampling(), {}, Begun()))
    await asyncio.wait_for(begun.wait(), 5)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await asyncio.wait_for(until_idle(), 5)


async def test_a_short_answer_is_done_while_a_long_one_runs(words: Words) -> None:
    async with aclosing(read(words.generate, ENDLESS, Sampling(), {})) as long:
        await anext(long)
        assert (await collect(words.generate, "a .", Sampling(), {})).reason == "stop"


async def test_a_prompt_over_the_window_is_refused_with_the_numbers(words: Words) -> None:
    with pytest.raises(PromptTooLong) as caught:
        await collect(words.generate, "w " * 50, Sampling(), {})
    assert (caught.value.prompt_tokens, caught.value.context_window) == (50, 50)


async def test_prompt_and_answer_together_have_the_tokens_that_they_may(words: Words) -> None:
    cut = await collect(words.generate, ENDLESS, Sampling(max_tokens=9, max_total_tokens=5), {})
    assert (cut.reason, cut.usage) == ("length", Usage(2, 3))
    with pytest.raises(InvalidRequest, match="max_total_tokens: the prompt alone has 2 tokens, and 2 are allowed"):
        await collect(words.generate, ENDLESS, Sampling(max_total_tokens=2), {})


async def test_what_cannot_fit_whatever_its_tokens_are_never_reaches_the_engine(words: Words) -> None:
    with pytest.raises(PromptTooLong, match="the prompt has at least 51 tokens"):
        await collect(words.generate, "crash" * 204, Sampling(max_total_tokens=5), {})
    with pytest.raises(InvalidRequest, match="max_total_tokens: the prompt alone has at least 6 tokens"):
        await collect(words.generate, "crash" * 24, Sampling(max_total_tokens=5), {})
    with pytest.raises(TextTooLong, match="the text has at least 51 tokens, and at most 50 are taken"):
        await words.count_tokens("crash" * 204)


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (Sampling(temperature=-1.0), "temperature"),
        (Sampling(top_p=1.5), "top_p"),
        (Sampling(top_k=-2), "top_k"),
        (Sampling(typical_p=float("nan")), "typical_p"),
        (Sampling(repetition_penalty=0.0), "repetition_penalty"),
        (Sampling(repetition_penalty=1e-40), "repetition_penalty"),
        (Sampling(frequency_penalty=2.5), "frequency_penalty"),
        (Sampling(presence_penalty=-2.5), "presence_penalty"),
        (Sampling(seed=13), "seed"),
    ],
)
async def test_a_value_that_means_nothing_is_refused_by_name(words: Words, sampling: Sampling, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await collect(words.generate, "a", sampling, {})
    assert caught.value.field == field


async def test_tokens_are_counted_by_the_engine(words: Words) -> None:
    assert await words.count_tokens("one two three") == 3


async def test_tokens_are_told_by_the_engine_with_their_ends_where_they_decode_to_the_text(words: Words) -> None:
    assert await words.tokenize("two words two") == [Token(0, 3), Token(1, 9), Token(0, 13)]
    assert await words.tokenize("two  words") == [Token(0, None), Token(1, None)]
    assert await words.tokenize("") == []
    with pytest.raises(TextTooLong):
        await words.tokenize("x" * 5000)


async def test_answers_go_on_while_the_tokens_of_a_long_text_are_looked_for(endless: Words) -> None:
    text = "a" + " a" * 20_000
    looking = asyncio.ensure_future(endless.tokenize(text))
    await asyncio.sleep(0)
    answer = await collect(endless.generate, "a b .", Sampling(), {})
    assert (answer.text, looking.done()) == (" a b", False)
    cancelled = asyncio.ensure_future(endless.tokenize(text))
    await asyncio.sleep(0)
    cancelled.cancel()
    assert (await looking)[-1] == Token(0, len(text))
    assert await endless.tokenize("b") == [Token(1, 1)]


async def test_a_conversation_is_rendered_by_the_engine_and_a_text_is_itself(words: Words) -> None:
    said = (Message("developer", "be <end> brief"), Message("user", "why"))
    assert await words.render(said, {}) == "be < end> brief why"
    assert await words.render("as <end> it is", {}) == "as <end> it is"
    with pytest.raises(PromptTooLong, match="at least 50000 tokens"):
        await words.render((Message("user", "b" * 1_000_000),), {})
    assert (await words.translated(said, Sampling(), {}))[0] == (Message("system", "be <end> brief"), said[1])


async def test_a_step_that_fails_fails_all_its_answers() -> None:
    server = Words("words", context_window=10_000_000)
    await server.load()
    async with aclosing(read(server.generate, ENDLESS, Sampling(), {})) as running:
        await anext(running)
        with pytest.raises(ModelServerError, match=r"^the model failed: it crashed$"):
            await collect(server.generate, "crash", Sampling(), {})
        with pytest.raises(ModelServerError, match=r"^the model failed: it crashed$"):
            async for _ in running:
                pass
    await server.aclose()


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[FoundWords]:
    """An engine whose model is a file that may go and come."""
    model = tmp_path / "words"
    model.touch()
    server = FoundWords(str(model), context_window=10_000_000)
    yield server
    await server.aclose()


class FoundWords(Words):
    """Words that are only there if there is a file for them."""

    @staticmethod
    def find(model_name: str, local_dir: str) -> str:
        if not Path(model_name).exists():
            raise SettingsError(f"there is no {model_name}")
        return model_name


def kill(server: Words) -> None:
    assert server.pid
    os.kill(server.pid, signal.SIGKILL)


async def test_when_its_process_dies_answers_break_off_and_it_is_started_again(kept: FoundWords) -> None:
    await kept.load()
    answers = [read(kept.generate, ENDLESS, Sampling(), {}) for _ in range(2)]
    for answer in answers:
        assert isinstance(await anext(answer), TextDelta)
    kill(kept)
    for answer in answers:
        with pytest.raises(ModelServerError, match="has ended"):
            async for _ in answer:
                pass
    with pytest.raises(Unreachable, match="started again"):
        await kept.describe()
    await kept.load()  # Waits for the one that is under way.
    assert (await collect(kept.generate, "a .", Sampling(), {})).text == " a"


async def looked_at(
    kept: FoundWords, monkeypatch: pytest.MonkeyPatch, seconds: float, told: Callable[[int], tuple[str, str] | None]
) -> asyncio.Event:
    """An event that is set when the process has been looked at more often than one that hangs; it is loaded.

    Args:
        kept: The engine.
        monkeypatch: For this test.
        seconds: Between two looks.
        told: What the system tells of the process.
    """
    loop, left, often = asyncio.get_running_loop(), engine_process._MOST_LOOKS + 2, asyncio.Event()

    def look(pid: int) -> tuple[str, str] | None:
        nonlocal left
        left -= 1
        if left == 0:
            loop.call_soon_threadsafe(often.set)
        return told(pid)

    monkeypatch.setattr(engine_process, "_LOOK_SECONDS", seconds)
    monkeypatch.setattr(engine_process, "_cpu_ticks", look)
    await kept.load()
    return often


async def test_a_process_that_is_idle_or_busy_with_a_long_step_is_not_ended(
    kept: FoundWords, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = await looked_at(kept, monkeypatch, 0.12, engine_process._cpu_ticks)
    before = kept.pid
    await asyncio.wait_for(often.wait(), 30)
    assert (await collect(kept.generate, "think .", Sampling(), {})).text == " think"
    assert kept.pid == before


async def test_a_process_that_is_stopped_is_not_ended_where_the_system_does_not_tell_what_it_does(
    kept: FoundWords, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = await looked_at(kept, monkeypatch, 0.03, lambda pid: None)
    before = kept.pid
    assert before
    os.kill(before, signal.SIGSTOP)
    await asyncio.wait_for(often.wait(), 30)
    os.kill(before, signal.SIGCONT)
    assert (await collect(kept.generate, "a .", Sampling(), {})).text == " a"
    assert kept.pid == before


async def test_what_was_generated_before_its_process_died_reaches_a_slow_reader(kept: FoundWords) -> None:
    await kept.load()
    answer = Slow()
    writing = asyncio.ensure_future(kept.generate(ENDLESS, Sampling(), {}, answer))
    async with aclosing(read(kept.generate, ENDLESS, Sampling(), {})) as other:  # It has its turn behind the first.
        await anext(other)
    kill(kept)
    await asyncio.sleep(0.1)
    assert not writing.done()
    answer.caught_up.set()
    with pytest.raises(ModelServerError, match="has ended"):
        await writing
    assert answer.pieces[0] == " round"


async def test_a_load_that_was_given_up_can_be_done_again(kept: FoundWords, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asyncio.Event()

    class Asked(EngineProcess):
        async def ask(self, message: Mapping[str, JSON], on_part: Callable[[Part], None] | None = None) -> Part:
            asked.set()
            return await super().ask(message, on_part)

    monkeypatch.setattr(embedded, "EngineProcess", Asked)
    loading = asyncio.ensure_future(kept.load())
    await asyncio.wait_for(asked.wait(), 30)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    await kept.load()
    assert (await collect(kept.generate, "a .", Sampling(), {})).text == " a"


async def test_a_reload_that_failed_is_tried_again(
    kept: FoundWords, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_FIRST_PAUSE", 0.01)
    await kept.load()
    running = read(kept.generate, ENDLESS, Sampling(), {})
    assert isinstance(await anext(running), TextDelta)
    kill(kept)
    (tmp_path / "words").unlink()
    with pytest.raises(ModelServerError, match="has ended"):
        async for _ in running:
            pass
    with pytest.raises(Unreachable, match="started again"):
        await kept.describe()
    with pytest.raises(SettingsError, match="there is no"):
        await kept.load()
    (tmp_path / "words").touch()
    await kept.load()  # Waits for the one that is under way.
    assert (await collect(kept.generate, "a .", Sampling(), {})).text == " a"


async def test_the_window_and_the_settings_reach_the_engine() -> None:
    server = Words.open(Target("words", context_window=7, engine={"n_words": 1}))
    await server.load()
    assert (await server.describe()).context_window == 7
    await server.aclose()


@pytest.mark.parametrize(("model", "has_chat_template"), [("words", True), ("text only", False)])
async def test_its_description_says_whether_the_engine_has_a_chat_template(model: str, has_chat_template: bool) -> None:
    server = Words(model)
    await server.load()
    assert (await server.describe()).has_chat_template is has_chat_template
    await server.aclose()


async def test_an_unknown_setting_of_the_engine_is_a_settings_error_with_the_nearest() -> None:
    server = Words.open(Target("words", engine={"n_word": 1}))
    with pytest.raises(SettingsError, match=r"words: n_word: words has no such setting; did you mean n_words\?"):
        await server.load()
    await server.aclose()


async def test_a_model_that_cannot_be_loaded_is_one_line_of_error() -> None:
    server = Words("broken")
    with pytest.raises(ModelServerError, match=r"^Words cannot load broken: no words in it$"):
        await server.load()
    await server.aclose()


async def test_an_engine_that_is_closed_stays_closed(words: Words) -> None:
    await words.aclose()
    with pytest.raises(Unreachable):
        await words.describe()
    assert words.pid is None


@pytest.mark.parametrize(
    ("kind", "package"),
    [
        ("openvino", "openvino and openvino_genai and numpy"),
        ("llama_cpp", "llama_cpp"),
        ("transformers", "torch and transformers and accelerate and llguidance"),
    ],
)
def test_a_kind_without_its_package_says_what_to_install(
    kind: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "find_spec", lambda name: None)
    with pytest.raises(SettingsError) as caught:
        open_model_server(kind, Target("m"))
    assert str(caught.value) == (
        f"model_server = {kind}: it needs {package}, not installed here; "
        f"mend it with: {sys.executable} -m pip install 'opea-llm-microservice[{kind}]'"
    )


@pytest.mark.parametrize("kind", ["llama_cpp", "transformers"])
def test_a_kind_with_its_package_opens_without_loading_it_and_names_settings_of_other_kinds(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(target, "find_spec", lambda name: ModuleSpec(name, None))
    assert open_model_server(kind, Target("m", access=Access(api_key="sk")))
    assert not caplog.messages
    late = Access(first_token_seconds=9.0, between_tokens_seconds=9.0, total_seconds=60.0)
    assert open_model_server(kind, Target("m", access=late))
    assert not caplog.messages
    assert open_model_server(kind, Target("m", access=Access(connect_seconds=9.0, total_seconds=60.0, verify=False)))
    assert caplog.messages == ["tls_skip_verify, connect_seconds: no effect here: m runs in this service"]
    with pytest.raises(SettingsError, match=f"{kind} takes no endpoint"):
        open_model_server(kind, Target("m", "http://127.0.0.1:9"))


def test_llama_cpp_takes_gguf_files_alone(tmp_path: Path) -> None:
    (tmp_path / "openvino_model.xml").touch()
    with pytest.raises(SettingsError, match=r"not a \.gguf file"):
        find_gguf(str(tmp_path))
    assert find_gguf(BUNDLED_MODEL).suffix == ".gguf"


def test_transformers_takes_a_checkpoint_a_gguf_file_or_a_repository(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"without config\.json"):
        find_checkpoint(str(tmp_path))
    (tmp_path / "config.json").touch()
    assert find_checkpoint(str(tmp_path)) == str(tmp_path)
    assert find_checkpoint("owner/name") == "owner/name"
    assert find_checkpoint(BUNDLED_MODEL).endswith(".gguf")
    assert find_checkpoint("gpt2") == "gpt2"
    for name in ("./no-such-thing", "no-such-thing.gguf"):
        with pytest.raises(SettingsError, match="no-such-thing"):
            find_checkpoint(name)


def test_transformers_takes_a_file_of_weights_in_a_repository_or_beside_its_configuration(tmp_path: Path) -> None:
    name, weights = "owner/name/four.safetensors", tmp_path / "four.safetensors"
    assert find_checkpoint(name) == find_checkpoint(name, str(tmp_path)) == name
    weights.touch()
    assert find_checkpoint(name, str(tmp_path)) == name
    with pytest.raises(SettingsError, match=r"no file of weights with a config\.json beside it"):
        find_checkpoint(str(weights))
    (tmp_path / "config.json").touch()
    assert find_checkpoint(name, str(tmp_path)) == find_checkpoint(str(weights)) == str(weights)
    with pytest.raises(SettingsError, match="no file of weights"):
        find_checkpoint("/nowhere/four.safetensors")


@pytest.mark.parametrize("file", ["model.pt", "gptq_model-4bit-128g.bin"])
def test_weights_in_a_file_that_transformers_would_refuse_are_refused_at_the_start(file: str, tmp_path: Path) -> None:
    for there in ("config.json", file):
        (tmp_path / there).touch()
    for name in (f"owner/name/{file}", str(tmp_path / file)):
        with pytest.raises(SettingsError, match=rf"model_name = {name}: .* \.safetensors alone; convert it once"):
            find_checkpoint(name, str(tmp_path))


def test_next_to_no_temperature_is_none() -> None:
    assert is_greedy(Sampling(temperature=1e-40))
    assert is_greedy(Sampling(temperature=0.0))
    assert is_greedy(Sampling(temperature=1.0, top_p=0.0))
    assert not is_greedy(Sampling(temperature=1e-5))
    assert not is_greedy(Sampling())


def test_all_that_has_arrived_is_read_at_once_however_long_its_lines_are(tmp_path: Path) -> None:
    said = [{"count": "x" * 3_000_000}, {"cancel": 1}]
    (tmp_path / "lines").write_bytes(b"".join(json.dumps(one).encode() + b"\n" for one in said) + b"half a")
    with (tmp_path / "lines").open("rb") as file:
        reader = MessageReader(file.fileno())
        assert reader.read(wait=True) == said
        assert reader.read(wait=False) is None


def test_prompts_are_read_in_chunks_of_a_steady_size_which_shrink_with_the_tokens_before_them() -> None:
    sizes = [(1.0, 512, 32), (0.0006, 512, 128), (0.0007, 512, 128), (1e-6, 512, 512), (1.0, 10, 10), (0.0, 500, 500)]
    assert [Chunks(seconds, most, 576).after(0) for seconds, most, _ in sizes] == [size for *_, size in sizes]
    small, large = Chunks(0.00045, 256, 576), Chunks(0.00045, 256, 5760)
    assert [small.after(tokens) for tokens in (0, 500, 1000, 1500, 3000, 4000, 10**6)] == [
        256,
        128,
        128,
        64,
        64,
        32,
        32,
    ]
    assert large.after(2000) == 128  # Attention is a smaller part of what a token takes.
    assert Chunks(1.0, 256, 576, least=16).after(0) == 16


def test_what_is_sent_to_a_process_that_has_ended_is_no_failure() -> None:
    process = EngineProcess("this")
    process.close()
    reading, writing = os.pipe()
    os.close(reading)
    process._outgoing.put({"cancel": 1})
    process._write(os.fdopen(writing, "wb"))
