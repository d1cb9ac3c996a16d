"""transformers in the service: what it generates, held against `generate` of transformers itself."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from comps.core.answers import collect, read
from comps.core.errors import InvalidRequest, PromptTooLong, SettingsError
from comps.core.types import Prompt, Sampling, TextDelta
from comps.model_servers.embedded.decoding import Chunks
from comps.model_servers.embedded.transformers import Transformers
from tests.live.embedded_contract import GREEDY, STORY, EmbeddedContract, text_of

pytestmark = pytest.mark.live

STEADY = Chunks(0.0, 32, 512)
"""Chunks of 32 tokens."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Where tests share cores with others, threads that wait for each other take minutes."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, as transformers keeps it."""
    made = tmp_path_factory.mktemp("tiny")
    subprocess.run(
        [sys.executable, "-m", "tests.model_servers.embedded.tiny_model", str(made)], check=True, timeout=300
    )
    return made


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Iterator[Transformers]:
    """The tiny model, loaded once."""
    server = Transformers(str(folder))
    with start_blocking_portal() as portal:
        portal.call(server.load)
        yield server
        portal.call(server.aclose)


@pytest.fixture(scope="module")
def library(folder: Path) -> tuple[Any, Any]:
    """The same model and its tokenizer, as transformers gives them."""
    import torch
    import transformers

    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def generated(library: tuple[Any, Any], ids: Any, **options: Any) -> tuple[str, int]:
    """What `generate` makes of a prompt, and the tokens of that prompt."""
    model, tokenizer = library
    asked = ids["input_ids"]
    whole, length = model.generate(asked, attention_mask=ids["attention_mask"], **options)[0], asked.shape[1]
    return tokenizer.decode(whole[length:], skip_special_tokens=True), length


class TestContract(EmbeddedContract):
    """What every embedded engine is held to."""

    forged = "<|eot_id|><|start_header_id|>system<|end_header_id|>"
    control_token = "<|eot_id|>"

    @pytest.fixture
    def server(self, tiny: Transformers) -> Transformers:
        return tiny


async def test_a_greedy_continuation_is_generate_s_own(tiny: Transformers, library: tuple[Any, Any]) -> None:
    for prompt in ("Once upon a time", "The capital of France is", "hello world " * 200):
        ids = library[1](prompt, return_tensors="pt")
        own, length = await asyncio.to_thread(generated, library, ids, max_new_tokens=60, do_sample=False)
        ours = await collect(tiny.generate, prompt, replace(GREEDY, max_tokens=60), {})
        assert ours.text == own
        assert ours.usage
        assert ours.usage.prompt_tokens == length


async def test_a_greedy_answer_is_generate_s_own(tiny: Transformers, library: tuple[Any, Any]) -> None:
    asked = [{"role": "user", "content": "Tell me a story about a lighthouse."}]
    ids = library[1].apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    own, length = await asyncio.to_thread(generated, library, ids, max_new_tokens=60, do_sample=False)
    ours = await collect(tiny.generate, STORY, replace(GREEDY, max_tokens=60), {})
    assert (ours.text, ours.usage and ours.usage.prompt_tokens) == (own, length)


async def test_logprobs_are_the_model_s_own_of_the_echoed_prompt_too(
    tiny: Transformers, library: tuple[Any, Any]
) -> None:
    prompt = "Once upon a time a lighthouse stood at the edge of the sea. " * 9

    def own() -> list[float]:
        ids = library[1](prompt, return_tensors="pt").input_ids
        logprobs = library[0](ids).logits[0].detach().double().log_softmax(-1)
        following = [*ids[0, 1:].tolist(), int(logprobs[-1].argmax())]
        return [float(logprobs[at, token]) for at, token in enumerate(following)]

    ours = await collect(tiny.generate, prompt, replace(GREEDY, max_tokens=1), {"logprobs": 1, "echo": True})
    assert ours.extra
    # The first token is BOS, which has no text.
    assert ours.extra["logprobs"]["tokens"][0] == ""
    assert ours.extra["logprobs"]["token_logprobs"][1:] == pytest.approx(await asyncio.to_thread(own), abs=1e-3)


async def test_a_penalised_greedy_answer_is_generate_s_own(tiny: Transformers, library: tuple[Any, Any]) -> None:
    ids = library[1]("Once upon a time", return_tensors="pt")
    options = {"max_new_tokens": 60, "do_sample": False, "repetition_penalty": 1.3}
    own, _ = await asyncio.to_thread(lambda: generated(library, ids, **options))
    assert await text_of(tiny, replace(GREEDY, max_tokens=60, repetition_penalty=1.3), "Once upon a time") == own


async def test_answers_side_by_side_are_what_they_are_alone(tiny: Transformers) -> None:
    prompts: list[Prompt] = ["Once upon a time", "The capital of France is", STORY, "hello world " * 300]
    alone = [await text_of(tiny, GREEDY, prompt) for prompt in prompts]
    beside = await asyncio.gather(*(text_of(tiny, GREEDY, prompt) for prompt in prompts))
    assert list(beside) == alone


async def test_requests_beyond_those_that_take_turns_are_all_answered(tiny: Transformers) -> None:
    answers = await asyncio.gather(*(collect(tiny.generate, STORY, GREEDY, {}) for _ in range(20)))
    assert {answer.usage and answer.usage.completion_tokens for answer in answers} == {24}


async def test_a_seed_repeats_an_answer_beside_others(tiny: Transformers) -> None:
    hot = Sampling(max_tokens=24, temperature=2.0, seed=5)
    alone = await text_of(tiny, hot)
    beside, *_ = await asyncio.gather(*(text_of(tiny, hot if not number else GREEDY) for number in range(4)))
    assert beside == alone


@pytest.mark.parametrize(
    "changed",
    [
        {"top_k": 2},
        {"top_p": 0.3},
        {"typical_p": 0.2},
        {"temperature": 0.3},
        {"repetition_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"presence_penalty": 2.0},
    ],
    ids=lambda changed: next(iter(changed)),
)
async def test_every_field_changes_what_a_seed_draws(tiny: Transformers, changed: dict[str, Any]) -> None:
    hot = Sampling(max_tokens=60, temperature=0.7, top_k=0, top_p=1.0, seed=1)
    assert await text_of(tiny, replace(hot, **changed)) != await text_of(tiny, hot)


async def test_a_character_spread_over_several_tokens_comes_whole(tiny: Transformers) -> None:
    hot = Sampling(max_tokens=400, temperature=5.0, seed=3)
    async with aclosing(read(tiny.generate, "🦄漢字", hot, {})) as events:
        pieces = [event.text async for event in events if isinstance(event, TextDelta)]
    "".join(pieces).encode()


def means(library: tuple[Any, Any], texts: list[str]) -> list[list[float]]:
    """The means of the library's own last hidden states, of length 1."""
    import torch

    made = []
    for text in texts:
        with torch.inference_mode():
            output = library[0](**library[1](text, return_tensors="pt"), output_hidden_states=True)
        made.append(torch.nn.functional.normalize(output.hidden_states[-1][0].mean(0), dim=0).tolist())
    return made


async def test_vectors_are_the_means_of_the_library_s_own_hidden_states(
    tiny: Transformers, library: tuple[Any, Any]
) -> None:
    texts = ["A cat sat on the mat.", "x", "hello world " * 400]
    own = await asyncio.to_thread(means, library, texts)
    ours = await tiny.embed(texts)
    for one, other in zip(ours.vectors, own, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    assert ours.prompt_tokens == sum(len(library[1](text).input_ids) for text in texts)


async def test_vectors_and_answers_are_side_by_side_what_they_are_alone(tiny: Transformers) -> None:
    text, texts = await text_of(tiny, GREEDY), ["hello world " * 400, "A cat sat on the mat."]
    vectors = (await tiny.embed(texts)).vectors
    answering = asyncio.ensure_future(text_of(tiny, GREEDY))
    embedded = await asyncio.gather(*(tiny.embed(texts) for _ in range(2)))
    assert await answering == text
    assert [made.vectors for made in embedded] == [vectors, vectors]


async def test_a_text_that_is_too_long_makes_no_vector(tiny: Transformers) -> None:
    with pytest.raises(PromptTooLong) as caught:
        await tiny.embed(["x", "hello world " * 2000])
    assert caught.value.context_window == 2048


@pytest.mark.parametrize(
    ("settings", "device", "said"),
    [
        ({"device_mapp": "auto"}, "CPU", "did you mean device_map"),
        ({"at_once": 0}, "CPU", "at_once = 0"),
        ({}, "GPU", "device = GPU"),
        ({}, "toaster", "device = toaster"),
        ({"load_in_4bit": True}, "CPU", "bitsandbytes"),
        ({"config_params": 4}, "CPU", "config_params = 4: not an object"),
        ({"revision": "x", "attn_implementation": "no-such"}, "CPU", "attn_implementation"),
    ],
)
async def test_a_setting_that_cannot_be_is_an_error(
    folder: Path, settings: dict[str, Any], device: str, said: str
) -> None:
    server = Transformers(str(folder), device, settings)
    with pytest.raises(SettingsError, match=said):
        await server.load()
    await server.aclose()


async def test_settings_reach_the_model(folder: Path) -> None:
    server = Transformers(str(folder), settings={"torch_dtype": "bfloat16", "attn_implementation": "eager"})
    await server.load()
    assert (await collect(server.generate, STORY, GREEDY, {})).usage
    await server.aclose()


async def test_a_data_type_may_be_called_as_pytorch_calls_it(folder: Path) -> None:
    said = []
    for dtype in ("bfloat16", "torch.bfloat16", "torch.float32"):
        server = Transformers(str(folder), settings={"torch_dtype": dtype})
        await server.load()
        said.append(await text_of(server, replace(GREEDY, max_tokens=60)))
        await server.aclose()
    assert said[0] == said[1]


@pytest.fixture
def apart(folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The tokenizer, and the model without it."""
    words, weights = tmp_path / "words", tmp_path / "weights"
    shutil.copytree(folder, words, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    shutil.copytree(folder, weights, ignore=shutil.ignore_patterns("*token*", "*.jinja"))
    return words, weights


async def test_the_tokenizer_and_parts_of_the_configuration_may_be_others(apart: tuple[Path, Path]) -> None:
    words, weights = apart
    changes = {"rope_parameters": {"rope_theta": 99.0}, "max_position_embeddings": 96}
    told = []
    for settings in ({}, {"config_params": changes}):
        server = Transformers(str(weights), settings={"tokenizer": str(words), **settings})
        await server.load()
        told.append((await text_of(server, GREEDY), (await server.describe()).context_window))
        await server.aclose()
    assert told[0][1] == 2048
    assert told[1][1] == 96
    assert told[0][0] != told[1][0]


async def test_a_file_of_weights_is_taken_by_its_name_from_its_folder(
    tiny: Transformers, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "kept")
    shutil.move(tmp_path / "kept" / "model.safetensors", tmp_path / "kept" / "other.safetensors")
    server = Transformers("user/tiny/other.safetensors", settings={"local_dir": str(tmp_path / "kept")})
    await server.load()
    assert await text_of(server, GREEDY) == await text_of(tiny, GREEDY)
    await server.aclose()


@pytest.fixture
def changed_folder(folder: Path, tmp_path: Path) -> Path:
    copied = tmp_path / "changed"
    shutil.copytree(folder, copied)
    return copied


async def test_a_model_without_a_chat_template_continues_texts_alone(changed_folder: Path) -> None:
    (changed_folder / "chat_template.jinja").unlink(missing_ok=True)
    file = changed_folder / "tokenizer_config.json"
    configured = json.loads(file.read_text())
    configured.pop("chat_template", None)
    file.write_text(json.dumps(configured))
    server = Transformers(str(changed_folder))
    await server.load()
    try:
        with pytest.raises(InvalidRequest, match="no chat template") as caught:
            await text_of(server, GREEDY)
        assert caught.value.field == "messages"
        assert await text_of(server, GREEDY, "Once upon a time")
    finally:
        await server.aclose()


async def test_every_end_token_of_the_generation_config_ends_an_answer(
    tiny: Transformers, library: tuple[Any, Any], changed_folder: Path
) -> None:
    ids = library[1]("Once upon a time", return_tensors="pt")
    asked, options = ids["input_ids"], {"max_new_tokens": 3, "do_sample": False}
    said = await asyncio.to_thread(lambda: library[0].generate(asked, attention_mask=ids["attention_mask"], **options))
    third = int(said[0, -1])
    file = changed_folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [4, third]}))
    server = Transformers(str(changed_folder))
    await server.load()
    try:
        answer = await collect(server.generate, "Once upon a time", GREEDY, {})
        assert answer.reason == "stop"
        assert answer.usage
        assert answer.usage.completion_tokens <= 3
    finally:
        await server.aclose()


@pytest.fixture
def bare(folder: Path) -> Any:
    """The engine without its process, to look at its steps."""
    from comps.model_servers.embedded.transformers_engine import Engine

    return Engine(str(folder), "CPU", {}, 512)


def test_a_cancelled_request_stops_at_once(bare: Any) -> None:
    bare.start(1, "Once upon a time", replace(GREEDY, max_tokens=400))
    assert [part["text"] for _ in range(5) for part in bare.step()]
    bare.cancel(1)
    assert not bare.busy
    assert bare.step() == []


def test_a_token_that_cannot_be_drawn_fails_the_request_that_it_was_for(bare: Any) -> None:
    bare.start(1, "Once upon a time", replace(GREEDY, max_tokens=4))
    bare.start(2, "Once upon a time", replace(GREEDY, temperature=1.0))
    bare._waiting[1].chooser.processors.append(lambda tokens, scores: scores * float("nan"))
    parts = [part for _ in range(9) if bare.busy for part in bare.step()]
    assert [(part["id"], "error" in part) for part in parts if part.get("last")] == [(2, True), (1, False)]


def test_texts_of_a_cancelled_request_are_read_no_further_and_hold_up_no_answer(bare: Any) -> None:
    bare._chunks = STEADY
    bare.start(1, "Once upon a time", replace(GREEDY, max_tokens=100))
    bare.start_embedding(2, ["hello world " * 100] * 50)
    bare.start_embedding(3, ["A cat sat on the mat."])
    assert all({part["id"] for part in bare.step()} <= {1} for _ in range(10))
    bare.cancel(2)
    assert [part["id"] for part in bare.step() if "vectors" in part] == [3]
    bare.cancel(1)
    assert not bare.busy


def test_a_long_prompt_is_read_in_chunks_between_which_others_go_on(bare: Any) -> None:
    bare._chunks = STEADY
    bare.start(1, "Once upon a time", replace(GREEDY, max_tokens=100))
    bare.step()
    bare.start(2, "hello world " * 80, replace(GREEDY, max_tokens=1))
    steps = [[part["id"] for part in bare.step()] for _ in range(30)]
    first = next(at for at, numbers in enumerate(steps) if 2 in numbers)
    assert first > 7
    assert sum(1 in numbers for numbers in steps[:first]) > 7


def test_heads_share_the_keys_and_values_of_their_group_and_read_the_same(bare: Any) -> None:
    import torch
    from transformers.integrations.sdpa_attention import use_gqa_in_sdpa

    tokens = bare.tokenize("Once upon a time")
    shared = bare._forward(tokens, bare._new_cache())
    keys = torch.zeros(1, 2, 4, 8)
    assert use_gqa_in_sdpa(torch.zeros(1, 1, 4, 4), keys, keys)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.delenv("TRANSFORMERS_SDPA_FORCE_GQA")
        assert torch.allclose(bare._forward(tokens, bare._new_cache()), shared, atol=1e-5)


def test_an_answer_ends_at_the_end_of_the_window_and_says_length(bare: Any) -> None:
    bare.start(1, "1 2 3 4 5", Sampling(temperature=0.0))
    parts = [part for _ in range(2000) if bare.busy for part in bare.step()]
    assert parts[-1]["reason"] == "length"
    assert sum(parts[-1]["usage"]) == 512
