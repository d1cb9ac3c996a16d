"""Vectors from the model that the OpenVINO engine serves.

OpenVINO GenAI gives out tokens and nothing of what led to them. So the model is read once more, without the layer that
makes scores of the last hidden states. This takes seconds, and memory for the weights again, and is done when the first
text comes; all in a thread of its own, beside the steps of answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from comps.core.types import JSON
from comps.model_servers.embedded.engine_program import Part, reason
from comps.model_servers.embedded.gguf import openable
from comps.model_servers.embedded.vectors import Texts

_CHUNK = 512
"""Tokens of a text that are read at once; the memory that this takes grows with their number times the text's."""


class HiddenStates:
    """A model up to its last hidden states, as they leave the final norm.

    Args:
        model: A GGUF file, or a folder of OpenVINO's own format.
        tokenizer: Its tokenizer, as OpenVINO GenAI has it.
        device: As OpenVINO names it.
        properties: OpenVINO's; what the device knows of them is used.
    """

    def __init__(self, model: Path, tokenizer: Any, device: str, properties: Mapping[str, JSON]) -> None:
        import numpy
        import openvino

        self._numpy = numpy
        core = openvino.Core()
        whole = _read(core, model, tokenizer)
        known = core.get_property(device, "SUPPORTED_PROPERTIES")
        options = {name: value for name, value in properties.items() if name in known}
        if device == "CPU":  # A rounded cache, or rounded activations, would make a vector depend on the chunks.
            options.setdefault("KV_CACHE_PRECISION", "f32")
            options.setdefault("DYNAMIC_QUANTIZATION_GROUP_SIZE", 0)
        compiled = core.compile_model(_without_head(whole), device, options)
        self._inputs = [name.any_name for name in compiled.inputs]
        self._request = compiled.create_infer_request()

    def total(self, tokens: Sequence[int], before: int) -> Any:
        """The sum of the hidden states of tokens, of which `before` of the same text were read just before.

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
    """Texts to embed, one after another.

    Args:
        made_of: The arguments of `HiddenStates`, which are made when the first text comes.
    """

    def __init__(self, *made_of: Any) -> None:
        self._made_of = made_of
        self._states: HiddenStates | None = None
        self._thread = ThreadPoolExecutor(1, "embedder")
        self._waiting: deque[Texts] = deque()
        self._chunk: Future[tuple[int, Any]] | None = None
        """What the thread is reading of the first that waits."""

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def start(self, number: int, texts: Sequence[Sequence[int]]) -> None:
        self._waiting.append(Texts(number, texts))

    def cancel(self, number: int) -> None:
        if self._waiting and self._waiting[0].number == number:
            self._chunk = None  # The thread reads it to its end, and whatever comes next waits behind it.
        self._waiting = deque(texts for texts in self._waiting if texts.number != number)

    def step(self, patience: float) -> Part | None:
        """Take in what the thread has read, waiting for it at most so many seconds, and let it read on.

        Returns:
            What there is to say, once all texts of a request are read or one failed.
        """
        if not self._waiting:
            return None
        texts = self._waiting[0]
        part: Part = {"id": texts.number, "last": True}
        try:
            if not texts.done:
                self._read_on(texts, patience)
        except Exception as error:  # From a library anything may come; answers go on.
            part["error"] = reason(error)
        else:
            if not texts.done:
                return None
            part = texts.part
        self._waiting.popleft()
        return part

    def _read_on(self, texts: Texts, patience: float) -> None:
        if self._chunk is None:
            self._chunk = self._thread.submit(self._total, *texts.chunk(_CHUNK))
        if wait([self._chunk], patience).done:
            chunk, self._chunk = self._chunk, None
            texts.add(*chunk.result())

    def _total(self, tokens: Sequence[int], before: int) -> tuple[int, Any]:
        """How many tokens were read, and the sum of their hidden states; runs in the thread."""
        if self._states is None:
            self._states = HiddenStates(*self._made_of)
        return len(tokens), self._states.total(tokens, before)


def _read(core: Any, model: Path, tokenizer: Any) -> Any:
    """The model in OpenVINO's own terms; OpenVINO GenAI writes a GGUF so beside it, here beside a link to it."""
    if model.is_dir():
        return core.read_model(model / "openvino_model.xml")
    import openvino_genai

    with openable(model) as path, TemporaryDirectory(prefix="opea-llm-", ignore_cleanup_errors=True) as folder:
        link = Path(folder) / "model.gguf"
        link.symlink_to(path.absolute())
        openvino_genai.ContinuousBatchingPipeline(
            str(link), tokenizer, openvino_genai.SchedulerConfig(), "CPU", enable_save_ov_model=True
        )
        return core.read_model(link.with_name("openvino_model.xml"))  # Its weights stay mapped when the folder is gone.


def _without_head(model: Any) -> Any:
    """The same model, ending in what goes into the matrix that makes scores of it."""
    scores = model.output("logits")
    node = scores.get_node()
    while node.get_type_name() != "MatMul":
        if not node.get_input_size():
            raise RuntimeError("this model makes no embeddings: its last layer is none that is known here")
        node = node.input_value(0).get_node()
    model.add_outputs(node.input_value(0))
    model.remove_result(scores.get_node())
    return model
