"""A model of 2 million random weights, made in seconds without a network.

Its text is noise, of readable characters; its tokens, limits and errors are real. Greedy, it never ends by itself.

`python -m tests.model_servers.tiny_model FOLDER` makes one, wherever torch and transformers are installed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>"]
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- "<|start_header_id|>" + message.role + "<|end_header_id|>\\n\\n" + message.content | trim + "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""
SENTENCES = [
    "What is Deep Learning? It is a part of machine learning that uses neural networks with many layers.",
    "Once upon a time a lighthouse stood at the edge of the sea, and its keeper wrote down every ship.",
    "The capital of France is Paris. Answer the question from the passages that follow.",
    "system user assistant 0123456789 Hello world, how are you today?",
]
CONTEXT_WINDOW = 2048


def build(folder: Path) -> None:
    """Write the model, a byte-level BPE tokenizer and its chat template (the layout of Llama 3) into `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    torch.manual_seed(0)
    marks = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_WINDOW,
        **marks,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # A logit of 0 is never the highest of hundreds.
        model.lm_head.weight[[token for token in range(len(tokenizer)) if not _is_readable(tokenizer, token)]] = 0.0
    model.generation_config.update(do_sample=True, **marks)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _is_readable(tokenizer: Any, token: int) -> bool:
    text: str = tokenizer.decode([token])
    return token not in tokenizer.all_special_ids and text.isascii() and text.isprintable()


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 50, trainer)
    begin = SPECIAL[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token="<|eot_id|>",
        pad_token="<|pad|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_WINDOW,
    )


if __name__ == "__main__":
    build(Path(sys.argv[1]))
