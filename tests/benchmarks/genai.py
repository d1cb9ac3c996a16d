"""openvino-genai alone, as a program: it answers prompts as its own `generate` does, and prints how long that took.

Input, a JSON line each: a list of prompts, already in the chat template. Output, a JSON line each: the seconds, and the
number of tokens of all answers. The scheduler and the properties are those of the service's engine, so that the
difference is what the service adds.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from comps.model_servers.embedded.gguf import openable
from comps.model_servers.embedded.model_files import BUNDLED_MODEL, find_model


def pipeline() -> Any:
    """The pipeline with the bundled model."""
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = True
    with openable(find_model(BUNDLED_MODEL)) as path:
        return openvino_genai.ContinuousBatchingPipeline(
            str(path), scheduler, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )


def main() -> None:
    most = int(sys.argv[1])
    engine = pipeline()
    tokenizer, config = engine.get_tokenizer(), engine.get_config()
    config.max_new_tokens, config.do_sample, config.ignore_eos = most, False, False
    print("ready", flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        inputs = [tokenizer.encode(prompt, add_special_tokens=False).input_ids for prompt in json.loads(line)]
        results = engine.generate(inputs, [config] * len(inputs))
        tokens = sum(len(result.m_generation_ids[0]) for result in results)
        for result in results:
            tokenizer.decode(result.m_generation_ids[0])
        took = time.perf_counter() - started
        print(json.dumps({"seconds": took, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
