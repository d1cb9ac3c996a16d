"""Embeddings from the model that the OpenVINO engine serves.

OpenVINO GenAI returns tokens and no hidden states. So the model is read once more, without the output layer (the
language model head). This takes seconds, and memory for the weights again; it is done for the first text to embed, in a
thread of its own, beside the steps of answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from comps.core.types import JSON
from comps.model_servers.embedded.engine_program import Part, last_line
from comps.model_servers.embedded.gguf import openable
from comps.model_servers.embedded.vectors import Texts

_CHUNK = 512
"""Tokens of a text in a chunk; the memory of one grows with this number times the text's length."""


class HiddenStates:
    """A model up to its last hidden states, after the final norm.

    Args:
        model: A GGUF file, or a folder in OpenVINO's own format.
        tokenizer: The model's, of OpenVINO GenAI.
        device: By OpenVINO's name.
        properties: OpenVINO's; those that the device supports are set.
    """

    def __init__(self, model: Path, tokenizer: Any, device: str, properties: Mapping[str, JSON]) -> None:
        import numpy
        import openvino

        self._numpy = numpy
        core = openvino.Core()
        whole = _read(core, model, tokenizer)
        supported = core.get_property(device, "SUPPORTED_PROPERTIES")
        options = {name: value for name, value in properties.items() if name in supported}
        if device == "CPU":  # With a quantized KV cache or activations, an embedding would depend on the chunks.
            options.setdefault("KV_CACHE_PRECISION", "f32")
            options.setdefault("DYNAMIC_QUANTIZATION_GROUP_SIZE", 0)
        compiled = core.compile_model(_without_head(whole), device, options)
        self._inputs = [name.any_name for name in compiled.inputs]
        self._request = compiled.create_infer_request()

    def total(self, tokens: Sequence[int], before: int) -> Any:
        """The sum of the hidden states of a chunk of a text.

        Args:
            tokens: The chunk.
            before: How many tokens of the text were read before.

        Returns:
            float64, shape (hidden size,).
        """
        if before == 0:
            self._request.reset_state()
        numpy, end = self._numpy, before + len(tokens)
        given = {
            "input_ids": numpy.asarray(tokens, numpy.int64)[None, :],
            "attention_mask": numpy.ones((1, end), numpy.int64),
            "position_ids": numpy.arange(before, end, dtype=numpy.int64)[None, :],
            "beam_idx": numpy.zeros(1, numpy.int32),
        }
        states = self._request.infer({name: given[name] for name in self._inputs})[0]
        return states[0].sum(axis=0, dtype=numpy.float64)


class Embedder:
    """Embeds texts, one after another.

    Args:
        arguments: Those of `HiddenStates`, which is made for the first text.
    """

    def __init__(self, *arguments: Any) -> None:
        self._arguments = arguments
        self._states: HiddenStates | None = None
        self._thread = ThreadPoolExecutor(1, "embedder")
        self._waiting: deque[Texts] = deque()
        self._chunk: Future[tuple[int, Any]] | None = None
        """The chunk of the first request that the thread is reading."""

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def start(self, number: int, texts: Sequence[Sequence[int]]) -> None:
        self._waiting.append(Texts(number, texts))

    def cancel(self, number: int) -> None:
        if self._waiting and self._waiting[0].number == number:
            self._chunk = None  # The thread still reads the chunk to its end; the next one waits for that.
        self._waiting = deque(texts for texts in self._waiting if texts.number != number)

    def step(self, wait_seconds: float) -> Part | None:
        """Take what the thread has read, and let it read the next chunk.

        Args:
            wait_seconds: How long to wait for the thread.

        Returns:
            The part of a request whose texts are all read, or of which one failed.
        """
        if not self._waiting:
            return None
        texts = self._waiting[0]
        part: Part = {"id": texts.number, "last": True}
        try:
            if not texts.done:
                self._read_chunk(texts, wait_seconds)
        except Exception as error:  # A library may raise anything; answers go on.
            part["error"] = last_line(error)
        else:
            if not texts.done:
                return None
            part = texts.part
        self._waiting.popleft()
        return part

    def _read_chunk(self, texts: Texts, wait_seconds: float) -> None:
        if self._chunk is None:
            self._chunk = self._thread.submit(self._total, *texts.chunk(_CHUNK))
        if wait([self._chunk], wait_seconds).done:
            chunk, self._chunk = self._chunk, None
            texts.add(*chunk.result())

    def _total(self, tokens: Sequence[int], before: int) -> tuple[int, Any]:
        """How many tokens were read, and the sum of their hidden states; runs in the thread."""
        if self._states is None:
            self._states = HiddenStates(*self._arguments)
        return len(tokens), self._states.total(tokens, before)


def _read(core: Any, model: Path, tokenizer: Any) -> Any:
    """The model in OpenVINO's representation. OpenVINO GenAI converts a GGUF file into a file beside it, here beside a
    temporary link to it."""
    if model.is_dir():
        return core.read_model(model / "openvino_model.xml")
    import openvino_genai

    with openable(model) as path, TemporaryDirectory(prefix="opea-llm-", ignore_cleanup_errors=True) as folder:
        link = Path(folder) / "model.gguf"
        link.symlink_to(path.absolute())
        openvino_genai.ContinuousBatchingPipeline(
            str(link), tokenizer, openvino_genai.SchedulerConfig(), "CPU", enable_save_ov_model=True
        )
        return core.read_model(link.with_name("openvino_model.xml"))  # The weights stay mapped without the folder.


def _without_head(model: Any) -> Any:
    """The same model, whose output is the input of the language model head."""
    logits = model.output("logits")
    node = logits.get_node()
    while node.get_type_name() != "MatMul":
        if not node.get_input_size():
            raise RuntimeError("this model makes no embeddings: its last layer is none that is known here")
        node = node.input_value(0).get_node()
    model.add_outputs(node.input_value(0))
    model.remove_result(logits.get_node())
    return model
