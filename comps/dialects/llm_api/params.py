"""The parameters of all of llm-api's model families and versions in one, so that clients need not know the family.

Sources of their meaning and defaults: https://github.com/1b5d/llm-api, app/llms, and the libraries that it calls,
llama-cpp-python 0.2.11 and transformers 4.30.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from comps.core.types import Sampling
from comps.dialects.shared.fields import MANY, OF_SAMPLES, StopStrings, at_most_1, matters, or_all

Family: TypeAlias = Literal["llama", "huggingface", "gptq_llama", "autoawq"]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class LLMAPIParams(BaseModel):
    """The fields of `params`. `null` is the same as leaving one out."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    max_tokens: int | None = Field(
        None, ge=-MANY, le=MANY, description="The most tokens to generate; 0 or less: as many as there is room for."
    )
    max_new_tokens: int | None = Field(None, ge=-MANY, le=MANY, description="transformers' name of max_tokens.")
    n_predict: int | None = Field(None, ge=-MANY, le=MANY, description="An older name of max_tokens.")
    max_length: int | None = Field(
        None, gt=0, le=MANY, description="The most tokens of prompt and answer together; max_tokens goes before it."
    )
    min_new_tokens: int | None = Field(None, ge=0, le=MANY)
    temperature: float | None = Field(None, ge=0, le=100, description="0 is greedy.")
    temp: float | None = Field(None, ge=0, le=100, description="An older name of temperature.")
    do_sample: bool | None = Field(None, description="false is greedy, whatever the temperature.")
    top_p: Annotated[float | None, Field(ge=0), AfterValidator(at_most_1)] = Field(
        None, description="1 or more: all tokens."
    )
    top_k: Annotated[int | None, Field(ge=-MANY, le=MANY), AfterValidator(or_all)] = Field(
        None, description="0 or less: all tokens."
    )
    typical_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, gt=0, le=100)
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="transformers' name of repeat_penalty.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Less than 0: every answer is drawn anew.")
    stop: Annotated[StopStrings, BeforeValidator(_as_list)] | None = Field(
        None, description="A text or a list of texts; generation ends before any of these, which are not shown."
    )
    echo: bool | None = Field(None, description="Put the prompt in front of its continuation.")
    suffix: str | None = Field(None, description="Put this behind the continuation; the model does not see it.")
    model: str | None = Field(None, description="The served model's name, where several are served.")

    def sampling(self, default: LLMAPIParams) -> Sampling:
        """How to sample: these parameters, and those of `default` for the rest."""
        own = self._fields
        fields = {**default._fields, **own}
        if self.max_length and "max_tokens" not in own:
            fields.pop("max_tokens", None)
        if fields.get("max_tokens", 1) <= 0:
            del fields["max_tokens"]
        if fields.get("seed", 0) < 0:
            del fields["seed"]
        if self._greedy(default):
            fields["temperature"] = 0.0
        return Sampling(**{**fields, "stop": tuple(text for text in fields.get("stop", ()) if text)})

    def max_total_tokens(self, default: LLMAPIParams) -> int | None:
        """The most tokens of prompt and answer together; None if the answer has a limit, which has priority."""
        most = self._fields.get("max_tokens")
        if most is None:
            return self.max_length or default.max_length
        return None if most > 0 else self.max_length

    def ignored(self, default: LLMAPIParams, capabilities: AbstractSet[str]) -> list[str]:
        """The names of the parameters without effect; see `Call.ignored`."""
        lost = [name for name, value in (self.model_extra or {}).items() if matters(name, value)]
        for field, counts in self._fields.items():
            unknown = field not in capabilities
            given = self._given(field).items()
            lost += [name for name, value in given if value != counts or (unknown and matters(name, value))]
        if self.max_length and not (self.max_total_tokens(default) and "max_total_tokens" in capabilities):
            lost.append("max_length")
        if self.min_new_tokens and "min_tokens" not in capabilities:
            lost.append("min_new_tokens")
        temperature = self._fields.get("temperature")
        if self._greedy(default):
            void = [pair for field in OF_SAMPLES for pair in self._given(field).items()]
            lost += [name for name, value in void if value and matters(name, value)]
        if self.do_sample is not None and ("temperature" not in capabilities or (self.do_sample and temperature == 0)):
            lost.append("do_sample")
        return list(dict.fromkeys(lost))

    def _greedy(self, default: LLMAPIParams) -> bool:
        return (default.do_sample if self.do_sample is None else self.do_sample) is False

    @cached_property
    def _fields(self) -> dict[str, Any]:
        """The parameters that are set, by the names of `Sampling`."""
        return {field: next(iter(given.values())) for field in _NAMES if (given := self._given(field))}

    def _given(self, field: str) -> dict[str, Any]:
        """The parameters that are set for a field of `Sampling`; the first one applies."""
        names = _NAMES[field]
        if self.model_fields_set.isdisjoint(names):
            return {}
        return {name: value for name in names if (value := getattr(self, name)) is not None}


_NAMES: Mapping[str, tuple[str, ...]] = {
    "max_tokens": ("max_tokens", "max_new_tokens", "n_predict"),
    "temperature": ("temperature", "temp"),
    "repetition_penalty": ("repeat_penalty", "repetition_penalty"),
    "top_p": ("top_p",),
    "top_k": ("top_k",),
    "typical_p": ("typical_p",),
    "frequency_penalty": ("frequency_penalty",),
    "presence_penalty": ("presence_penalty",),
    "seed": ("seed",),
    "stop": ("stop",),
}
"""The parameters for each field of `Sampling`."""
_TRANSFORMERS = {
    "max_length": 20,
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
}
_LLAMA = {
    "max_tokens": 128,
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "repeat_penalty": 1.1,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
}
DEFAULTS: Mapping[Family, LLMAPIParams] = {
    "llama": LLMAPIParams.model_validate(_LLAMA),
    "huggingface": LLMAPIParams.model_validate(_TRANSFORMERS),
    "gptq_llama": LLMAPIParams.model_validate({"max_length": 50, "temp": 0.8, "top_p": 0.95}),
    "autoawq": LLMAPIParams.model_validate(_TRANSFORMERS),
}
"""The defaults of each family, without gptq_llama's minimum of 10 tokens for prompt and answer."""
