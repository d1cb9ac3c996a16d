"""The parameters of a body: how to sample, what constrains the answer, and what is told of it.

Their meaning and their defaults are those of TGI's router: router/src/lib.rs (`GenerateParameters`) and
router/src/validation.rs. Values that switch a parameter off are accepted, though TGI refuses some of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from comps.core.errors import InvalidRequest
from comps.core.types import JSON, Sampling
from comps.dialects.shared.fields import MANY, OF_SAMPLES, StopStrings, matters, or_all
from comps.dialects.shared.framing import object_in

MAX_BEST_OF = 20
"""The most answers of which the best is chosen."""
_DEFAULTS: Mapping[str, Any] = {"max_tokens": 1024, "temperature": 1.0, "top_k": MANY, "top_p": 1.0}
"""Sampling parameters that apply where the body has none, and the answer is sampled."""
_MAX_SEED = 2**63
"""Model servers take signed seeds of 64 bits, TGI unsigned ones."""
_CAPABILITIES = {
    "best_of": "logprobs",
    "do_sample": "temperature",
    "max_new_tokens": "max_tokens",
    "top_n_tokens": "top_logprobs",
    "truncate": "truncate_prompt_tokens",
    **{name: name for name in (*OF_SAMPLES, "repetition_penalty", "frequency_penalty", "seed", "stop")},
}
"""The capability of the model server that each parameter needs."""
_OF_THE_REPLY = ("return_full_text", "details", "adapter_id", "grammar")
"""Parameters that are honoured, or refused, whatever the model server honours."""
_LONGEST_SCHEMA = 100_000
"""In characters: more would hold Python's lock for as long as the text is parsed."""
_NEUTRAL: Mapping[str, JSON] = {"watermark": False, "decoder_input_details": False, "top_n_tokens": 0}


def _checked_grammar(grammar: dict[str, Any]) -> dict[str, Any]:
    """The grammar; the value of a schema, which may be text, is as OpenAI's API has it in `json_schema`."""
    kind, value = grammar.get("type"), grammar.get("value")
    if kind not in ("json", "json_object", "json_schema", "regex"):
        raise ValueError("its type must be json, json_schema or regex")
    if kind == "regex":
        if not (isinstance(value, str) and value):
            raise ValueError("the value of a regex must be a text that is not empty")
        return grammar
    schema = value.get("schema") if kind == "json_schema" and isinstance(value, dict) else value
    if isinstance(schema, str):
        schema = _decoded(schema)
    if not isinstance(schema, dict):
        raise ValueError("a JSON schema must be an object")
    named = value if kind == "json_schema" and isinstance(value, dict) else {}
    return {**grammar, "value": {"name": "answer", **named, "schema": schema}}


def _decoded(schema: str) -> JSON:
    if len(schema) > _LONGEST_SCHEMA:
        raise ValueError(f"a JSON schema as text may have at most {_LONGEST_SCHEMA} characters")
    decoded = object_in(schema)
    if decoded is None:
        raise ValueError("a JSON schema as text must be an object in valid JSON")
    return decoded


class TGIParameters(BaseModel):
    """The parameters of TGI; `null` is the same as leaving one out."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    best_of: int | None = Field(
        None, gt=0, le=MAX_BEST_OF, description="Make so many answers; the one with the likeliest tokens is returned."
    )
    temperature: float | None = Field(None, ge=0, le=100, description="1.0 if left out; 0 is greedy.")
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    top_k: Annotated[int | None, Field(ge=-1, le=MANY), AfterValidator(or_all)] = Field(
        None, description="-1 or 0: off."
    )
    top_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, ge=0, le=1)
    do_sample: bool | None = Field(
        None, description="false is greedy, unless temperature, top_k, top_p or typical_p is there."
    )
    max_new_tokens: int | None = Field(
        None, gt=0, le=MANY, description="The most tokens to generate; 1024 if left out."
    )
    return_full_text: bool | None = Field(
        None, description="Whether the answer begins with inputs; if left out, it does at / alone."
    )
    stop: StopStrings | None = Field(None, description="Generation ends before any of these, which are not shown.")
    truncate: int | None = Field(None, gt=0, le=MANY, description="Read only so many of the last tokens of the prompt.")
    watermark: bool | None = Field(None, description="No effect here, and named as ignored.")
    details: bool | None = Field(None, description="Say why the answer ended, and which tokens it has.")
    decoder_input_details: bool | None = Field(
        None, description="As details; the tokens of the prompt are not told, and it is named as ignored."
    )
    seed: int | None = Field(None, ge=0, lt=2**64)
    top_n_tokens: int | None = Field(
        None, ge=0, le=20, description="Tell so many of the likeliest tokens at each place."
    )
    grammar: Annotated[dict[str, Any], AfterValidator(_checked_grammar)] | None = Field(
        None, description="What the answer matches: type json, json_schema or regex, and its value."
    )
    adapter_id: str | None = Field(None, description="As model: adapters are served as models.")

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random, instead of always taking the likeliest."""
        if self.temperature == 0:
            return False
        return bool(self.do_sample) or any(getattr(self, name) is not None for name in OF_SAMPLES)

    @property
    def tells_details(self) -> bool:
        """Whether the answer has details."""
        return bool(self.details or self.decoder_input_details)

    @property
    def answers(self) -> int:
        """How many answers are made, of which the best is chosen."""
        return self.best_of or 1

    def sampling(self) -> Sampling:
        """How to sample."""
        sampled = {name: getattr(self, name) for name in OF_SAMPLES} if self.samples else {"temperature": 0.0}
        fields: dict[str, Any] = {
            "max_tokens": self.max_new_tokens,
            **sampled,
            "repetition_penalty": self.repetition_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": None if self.seed is None else self.seed % _MAX_SEED,
        }
        defaults = {name: _DEFAULTS[name] for name in self.defaulted() & _DEFAULTS.keys()}
        stop = tuple(text for text in self.stop or () if text)
        return Sampling(**{**fields, **defaults}, stop=stop)

    def defaulted(self) -> set[str]:
        """The sampling fields that are defaults, since the body does not have them, and the options that details can do
        without."""
        names = _DEFAULTS if self.samples else ("max_tokens",)
        fields = {name for name in names if getattr(self, _OURS.get(name, name)) is None}
        return fields if self.answers > 1 or self.top_n_tokens else fields | {"logprobs", "logprob_ids"}

    def options(self, capabilities: AbstractSet[str], is_text: bool) -> dict[str, JSON]:
        """The options for the model server.

        Args:
            capabilities: What the model server honours.
            is_text: Whether the prompt is text to continue.
        """
        options: dict[str, JSON] = {}
        top = (self.top_n_tokens or 0) if "top_logprobs" in capabilities else 0
        if self.tells_details or self.answers > 1 or top:
            options = {"logprobs": top} if is_text else {"logprobs": True, **({"top_logprobs": top} if top else {})}
            if "logprob_ids" in capabilities:
                options["logprob_ids"] = True
        if self.truncate:
            options["truncate_prompt_tokens"] = self.truncate
        return {**options, **self._constraint(capabilities)}

    def _constraint(self, capabilities: AbstractSet[str]) -> dict[str, JSON]:
        """The grammar as an option of OpenAI's or vLLM's."""
        if self.grammar is None:
            return {}
        kind, value = self.grammar["type"], self.grammar["value"]
        if kind == "regex":
            if "structured_outputs" in capabilities:
                return {"structured_outputs": {"regex": value}}
            return {"response_format": {"type": "regex", "value": value}}
        return {"response_format": {"type": "json_schema", "json_schema": value}}

    def ignored(self, capabilities: AbstractSet[str], shows_tokens: bool) -> list[str]:
        """The names of the parameters without effect; see `Call.ignored`.

        Args:
            capabilities: What the model server honours.
            shows_tokens: Whether the answer tells its tokens.

        Raises:
            InvalidRequest: The answer cannot be constrained.
        """
        if self.grammar and "response_format" not in capabilities:
            raise InvalidRequest("this model server constrains no answers", "parameters.grammar")
        lost = [name for name, value in self if self._is_lost(name, value, capabilities)]
        if self.top_n_tokens and not shows_tokens and "top_n_tokens" not in lost:
            lost.append("top_n_tokens")
        return [f"parameters.{name}" for name in lost]

    def _is_lost(self, name: str, value: JSON, capabilities: AbstractSet[str]) -> bool:
        if name in _OF_THE_REPLY or not matters(name, value) or value == _NEUTRAL.get(name):
            return False
        if name == "do_sample" and value and self.temperature == 0:
            return True
        if name in OF_SAMPLES and not self.samples:  # The temperature is 0.
            return name != "temperature" or "temperature" not in capabilities
        return _CAPABILITIES.get(name) not in capabilities


_OURS = {"max_tokens": "max_new_tokens"}
"""TGI's names of fields of `Sampling`."""
NO_PARAMETERS = TGIParameters.model_validate({"do_sample": True})
"""Those of a body without `parameters`, which is sampled."""
