"""Structured output of the OpenVINO engine: constraints are compiled beside the steps of answers.

OpenVINO GenAI compiles a constraint (with XGrammar) when it samples the first token, so that all answers wait for it,
and an invalid one raises in `step()`, which breaks them all off. So each constraint goes through a model of constants
first, in a thread of its own. It shares the tokenizer with the real model, and with it the compiled constraints.

XGrammar keeps none with bounded repetitions, such as `maxLength`: these take 15 ms a repetition, within `step()` again,
and are refused where they would hold up all answers for long.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from comps.core.errors import InvalidRequest
from comps.model_servers.embedded.constraints import CHOICE, JSON_SCHEMA, Constraint
from comps.model_servers.embedded.engine_program import last_line

COMPILE_SECONDS = 10.0
"""How long a request waits for its constraint. Most take some milliseconds, a few regular expressions minutes."""
LONGEST_COMPILE = 2.0
"""Seconds that compiling a constraint may take."""
_MARGIN = 4096
"""Logits that the model of constants has more than the vocabulary has tokens: those of a model may be padded."""
_SOURCE = re.compile(r"^\[[\d:]+\] \S+:\d+: (Check failed: \(.*\) is false: )?")
"""What stands before a message of XGrammar's: the time, a path of the machine that it was built on, and a condition."""


def structured_output(constraint: Constraint) -> Any:
    """OpenVINO's `StructuredOutputConfig` of a constraint."""
    import openvino_genai

    if constraint.kind == CHOICE:
        texts = [{"type": "const_string", "value": text} for text in constraint.value]
        tags = {"type": "structural_tag", "format": {"type": "or", "elements": texts}}
        return openvino_genai.StructuredOutputConfig(structural_tags_config=json.dumps(tags))
    is_schema = constraint.kind == JSON_SCHEMA
    value = json.dumps(constraint.value) if is_schema else constraint.value
    return openvino_genai.StructuredOutputConfig(**{constraint.kind: value})


class Grammars:
    """Compiles constraints, one after another.

    Args:
        tokenizer: The model's, of OpenVINO GenAI.
        tokens: The size of its vocabulary.
        prepare: Called before the first constraint, in the caller's thread: it has the real model compile one, which
            decides for how many logits constraints are compiled.
    """

    def __init__(self, tokenizer: Any, tokens: int, prepare: Callable[[], None]) -> None:
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._prepare: Callable[[], None] | None = prepare
        self._thread = ThreadPoolExecutor(1, "grammars")
        self._unfinished: list[Future[None]] = []
        self._model: Any = None

    def compile(self, constraint: Constraint) -> Future[None]:
        """Compile a constraint, after those before it.

        Returns:
            What is done once it is compiled. It raises InvalidRequest for a constraint that is none.
        """
        if self._prepare:
            self._prepare()
            self._prepare = None
        compiled = self._thread.submit(self._compile, constraint)
        self._unfinished.append(compiled)
        return compiled

    def wait(self, seconds: float) -> bool:
        """Wait until nothing is being compiled; returns whether that is so.

        While something is, no request with a constraint may begin: the pipeline would wait for it within a step.
        """
        self._unfinished = list(wait(self._unfinished, seconds).not_done) if self._unfinished else []
        return not self._unfinished

    def _compile(self, constraint: Constraint) -> None:
        import numpy
        import openvino
        import openvino_genai

        if self._model is None:
            self._model = _constant_model(self._tokenizer, self._tokens + _MARGIN)
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = 1
        started = time.monotonic()
        try:
            config.structured_output_config = structured_output(constraint)
            self._model.generate(openvino.Tensor(numpy.ones((1, 1), numpy.int64)), config)
        except (RuntimeError, TypeError, ValueError) as error:
            raise InvalidRequest(_SOURCE.sub("", last_line(error)), constraint.field) from None
        if (took := time.monotonic() - started) > LONGEST_COMPILE:
            said = (
                f"it takes {took:.1f} s to compile, in which all answers wait; fewer repetitions (maxLength) take less"
            )
            raise InvalidRequest(said, constraint.field)


def _constant_model(tokenizer: Any, logits: int) -> Any:
    """A pipeline that finds all tokens equally likely."""
    import numpy
    import openvino
    import openvino_genai
    from openvino import opset13

    inputs = [
        opset13.parameter(shape, kind, name=name)
        for name, shape, kind in (
            ("input_ids", [-1, -1], numpy.int64),
            ("attention_mask", [-1, -1], numpy.int64),
            ("beam_idx", [-1], numpy.int32),
        )
    ]
    for one in inputs:
        one.output(0).set_names({one.get_friendly_name()})
    ids = opset13.unsqueeze(opset13.convert(inputs[0], "f32"), opset13.constant(-1))
    constants = opset13.constant(numpy.zeros((1, 1, logits), numpy.float32))
    output = opset13.add(opset13.multiply(ids, opset13.constant(numpy.float32(0))), constants)
    output.output(0).set_names({"logits"})
    model = openvino.Model([opset13.result(output)], inputs, "constant")
    with TemporaryDirectory(prefix="opea-llm-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "constant.xml"
        openvino.save_model(model, file, compress_to_fp16=False)
        weights = openvino.Tensor(numpy.fromfile(file.with_suffix(".bin"), numpy.uint8))
        return openvino_genai.LLMPipeline(file.read_text(), weights, tokenizer, "CPU", ATTENTION_BACKEND="SDPA")
