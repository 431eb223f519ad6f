"""The names of our layers in transformers, and how their weights are stored: for models and adapter files.

GPT-2 has our names. GPT-1 has others for its embeddings, Llama and Qwen 3 for most, and three matrices where
ours has one: c_attn's rows are those of `LLAMA_C_ATTN`, one below the other.
"""

import re

CONV1D = re.compile(r"h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")
"""GPT's weights that are stored (in, out) there: ``Conv1D``"""

GPT1_EMBEDDINGS = {"wte": "tokens_embed", "wpe": "positions_embed"}

LLAMA = {
    "wte": "embed_tokens",
    "ln_f": "norm",
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn": "self_attn",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_gate": "mlp.gate_proj",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}
"""paths in the model, or in a block; the longest that fits counts"""

LLAMA_C_ATTN = ("q_proj", "k_proj", "v_proj")


def renamed(path: str, names: dict[str, str]) -> str:
    """A path whose beginning has another name.

    Example:
        >>> renamed("attn.c_proj.weight", LLAMA), renamed("attn.q_norm.weight", LLAMA)
        ('self_attn.o_proj.weight', 'self_attn.q_norm.weight')
    """
    for old in sorted(names, key=len, reverse=True):
        if path == old or path.startswith(f"{old}."):
            return names[old] + path[len(old) :]
    return path
