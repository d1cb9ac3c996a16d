"""The options of Ollama's bodies: how to sample, and how its runner would be started. Older ones count as unknown.

https://docs.ollama.com/modelfile#valid-parameters-and-values
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from comps.core.types import JSON, Sampling
from comps.dialects.shared.fields import MANY, StopStrings, at_most_1, matters, or_all

_WITHOUT_EFFECT = Field(description="Of Ollama's runner; no effect here, and named as ignored.")
_Int: TypeAlias = Annotated[int | None, _WITHOUT_EFFECT]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class OllamaOptions(BaseModel):
    """The options. `null` is the same as leaving one out."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    num_predict: int | None = Field(
        None, ge=-2, le=MANY, description="The most tokens to generate; -1, -2 and 0: as many as there is room for."
    )
    temperature: float | None = Field(None, ge=0, le=100)
    top_k: Annotated[int | None, Field(ge=-MANY, le=MANY), AfterValidator(or_all)] = Field(
        None, description="0 or less: all tokens."
    )
    top_p: Annotated[float | None, Field(ge=0), AfterValidator(at_most_1)] = None
    min_p: float | None = Field(
        None, ge=0, le=1, description="The least probability of a token, relative to the likeliest one's."
    )
    typical_p: Annotated[float | None, Field(ge=0), AfterValidator(at_most_1)] = None
    repeat_penalty: float | None = Field(None, gt=0, le=100, description="Of tokens that are there already.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Less than 0: every answer is drawn anew.")
    stop: Annotated[StopStrings, BeforeValidator(_as_list)] | None = Field(
        None, description="Generation ends before any of these, which are not shown."
    )
    num_ctx: int | None = Field(
        None, gt=0, le=MANY, description="The least context window; named as ignored unless the model's has that size."
    )
    num_keep: _Int = None
    repeat_last_n: _Int = None
    num_batch: _Int = None
    num_gpu: _Int = None
    main_gpu: _Int = None
    num_thread: _Int = None
    draft_num_predict: _Int = None
    use_mmap: Annotated[bool | None, _WITHOUT_EFFECT] = None

    def sampling(self) -> Sampling:
        """How to sample; what is left out, the model server decides."""
        given = {ours: value for name, ours in _SAMPLING.items() if (value := getattr(self, name)) is not None}
        if given.get("max_tokens", 1) <= 0:
            del given["max_tokens"]
        if given.get("seed", 0) < 0:
            del given["seed"]
        return Sampling(**{**given, "stop": tuple(text for text in self.stop or () if text)})

    def passed(self) -> dict[str, JSON]:
        """The options that only some model servers know."""
        return {"min_p": self.min_p} if self.min_p is not None else {}

    def ignored(self, capabilities: AbstractSet[str], window: int | None) -> list[str]:
        """The names of the options without effect.

        Args:
            capabilities: What the model server honours; see `Call.ignored`.
            window: The model's context window, in tokens; None if it is not known.
        """
        lost = [name for name, value in self if _OURS.get(name) not in capabilities and matters(name, value)]
        if self.num_ctx is not None and self.num_ctx <= (window or 0):
            lost.remove("num_ctx")
        return [f"options.{name}" for name in lost]


_SAMPLING: Mapping[str, str] = {
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    **{name: name for name in ("temperature", "top_k", "top_p", "typical_p", "presence_penalty", "frequency_penalty")},
    "seed": "seed",
}
"""The fields of `Sampling`, by the names of the options."""
_OURS: Mapping[str, str] = {**_SAMPLING, "stop": "stop", "min_p": "min_p"}
"""The capabilities that honour options, by the names of the options."""
NO_OPTIONS = OllamaOptions.model_validate({})
