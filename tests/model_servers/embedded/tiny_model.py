"""A model of 2 million random weights, made in seconds without a network.

Its text is noise, of readable characters; its tokens, limits and errors are real. Greedy, it never ends by itself.

`python -m tests.model_servers.embedded.tiny_model FOLDER` makes one, wherever torch and transformers are installed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>"]
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for document in documents or [] %}
    {{- "<|start_header_id|>document " + document.doc_id + "<|end_header_id|>\\n\\n" + document.title + "\\n" }}
    {{- document.text + "<|eot_id|>" }}
{%- endfor %}
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
    model.generation_config.update(do_sample=True, top_k=0, **marks)
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


_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""What a layer's tensors are called by transformers, and by GGUF."""


def to_gguf(folder: Path, file: Path) -> None:
    """Write the model in `folder` into a GGUF file, in float32. OpenVINO reads none of these."""
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config = model.config
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    _add_tokenizer(writer, tokenizer)
    _add_tensors(writer, model)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, tokenizer: Any) -> None:
    import gguf

    tokens = tokenizer.get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(tokens, key=lambda token: tokens[token]))
    kinds = [gguf.TokenType.NORMAL] * len(tokens)
    for token in SPECIAL:
        kinds[tokens[token]] = gguf.TokenType.CONTROL
    writer.add_token_types(kinds)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(True)
    writer.add_chat_template(tokenizer.chat_template)


def _add_tensors(writer: Any, model: Any) -> None:
    import numpy

    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        gguf_name, values = _gguf_name(name), tensor.float().numpy()
        part = gguf_name.split(".")[-2]
        if part in heads:  # In GGUF, the two halves that rotary embeddings rotate into each other are interleaved.
            rows, columns = values.shape
            values = values.reshape(heads[part], 2, rows // heads[part] // 2, columns).swapaxes(1, 2)
            values = values.reshape(rows, columns)
        writer.add_tensor(gguf_name, numpy.ascontiguousarray(values))


def _gguf_name(name: str) -> str:
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in whole:
        return whole[name]
    _, _, layer, *part, kind = name.split(".")
    return f"blk.{layer}.{_TENSORS['.'.join(part)]}.{kind}"


if __name__ == "__main__":
    build(Path(sys.argv[1]))
