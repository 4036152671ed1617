"""What kanna knows of model families: names of linear layers and inner orders of fused weights. Data only.

A role is found by the longest ending of a module's path that the table has. A fused weight is split only for
model types listed here, because a wrong guess of its inner order would go unnoticed.
"""

from collections.abc import Callable
from typing import Any

from kanna.models.matrix import RowSlice

Parts = tuple[tuple[str, RowSlice], ...]
Layout = Callable[[Any, int], Parts]

ROLES: dict[str, str] = {
    # attention
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "out_proj": "o",
    "wq": "q",
    "wk": "k",
    "wv": "v",
    "wo": "o",
    "q_lin": "q",
    "k_lin": "k",
    "v_lin": "v",
    "out_lin": "o",
    "self.query": "q",
    "self.key": "k",
    "self.value": "v",
    "attention.output.dense": "o",
    "attention.dense": "o",
    "self_attention.dense": "o",
    "self_attn.dense": "o",
    "attn.c_proj": "o",
    "self_attn.c_proj": "o",
    "crossattention.c_proj": "o",
    "q_attn": "q",
    "attn.Wo": "o",
    "c_attn": "qkv",
    "query_key_value": "qkv",
    "qkv_proj": "qkv",
    "qkv": "qkv",
    "Wqkv": "qkv",
    # feed-forward, gated
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "feed_forward.w1": "gate",
    "feed_forward.w3": "up",
    "feed_forward.w2": "down",
    "gate_up_proj": "gate_up",
    "mlp.Wi": "gate_up",
    "mlp.Wo": "down",
    "DenseReluDense.wi_0": "gate",
    "DenseReluDense.wi_1": "up",
    "DenseReluDense.wo": "down",
    # feed-forward, without a gate
    "DenseReluDense.wi": "fc_in",
    "fc_in": "fc_in",
    "fc_out": "fc_out",
    "fc1": "fc_in",
    "fc2": "fc_out",
    "c_fc": "fc_in",
    "mlp.c_proj": "fc_out",
    "lin1": "fc_in",
    "lin2": "fc_out",
    "dense_h_to_4h": "fc_in",
    "dense_4h_to_h": "fc_out",
    "intermediate.dense": "fc_in",
    "output.dense": "fc_out",
}

# Without a gate beside them these names mean the two layers of a plain feed-forward network (MPT, Nemotron).
UNGATED = {"up": "fc_in", "down": "fc_out"}


def halves(config: Any, rows: int) -> Parts:
    """Gate, then up: the two halves, of which the first goes through the activation."""
    half = rows // 2
    return ("gate", RowSlice.contiguous(0, half)), ("up", RowSlice.contiguous(half, half))


def consecutive(config: Any, rows: int) -> Parts:
    """All queries, then all keys, then all values; fewer key-value heads where the config says so."""
    heads = int(config.num_attention_heads)
    key_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    size = rows // (heads + 2 * key_heads)
    query, key = heads * size, key_heads * size
    return (
        ("q", RowSlice.contiguous(0, query)),
        ("k", RowSlice.contiguous(query, key)),
        ("v", RowSlice.contiguous(query + key, key)),
    )


def key_value(config: Any, rows: int) -> Parts:
    """All keys, then all values: cross-attention, whose queries are a layer of their own."""
    (_, keys), (_, values) = halves(config, rows)
    return ("k", keys), ("v", values)


def by_group(groups: int, queries: int, rows: int) -> Parts:
    """`groups` times: the rows of `queries` query heads, of one key head, of one value head."""
    size = rows // (groups * (queries + 2))
    stride = (queries + 2) * size
    return (
        ("q", RowSlice(0, queries * size, stride, groups)),
        ("k", RowSlice(queries * size, size, stride, groups)),
        ("v", RowSlice((queries + 1) * size, size, stride, groups)),
    )


def by_head(config: Any, rows: int) -> Parts:
    """Head by head: the head's query, its key, its value (GPT-NeoX, Bloom)."""
    return by_group(int(config.num_attention_heads), 1, rows)


def falcon(config: Any, rows: int) -> Parts:
    """Falcon's three orders: groups of heads (40B, 180B), one key-value head (7B), head by head (RW)."""
    heads = int(config.num_attention_heads)
    if config.new_decoder_architecture:
        groups = int(config.num_kv_heads)
        return by_group(groups, heads // groups, rows)
    return bigcode(config, rows)


def bigcode(config: Any, rows: int) -> Parts:
    """GPT-BigCode: one key-value head for all queries, or head by head."""
    heads = int(config.num_attention_heads)
    return by_group(1, heads, rows) if config.multi_query else by_group(heads, 1, rows)


# (model type, ending of the module path) -> inner order
LAYOUTS: dict[tuple[str, str], Layout] = {
    ("gpt2", "c_attn"): consecutive,
    ("gpt2", "crossattention.c_attn"): key_value,
    ("gpt_bigcode", "c_attn"): bigcode,
    ("gpt_bigcode", "crossattention.c_attn"): key_value,
    ("imagegpt", "c_attn"): consecutive,
    ("gpt_neox", "query_key_value"): by_head,
    ("gpt_neox_japanese", "query_key_value"): by_head,
    ("bloom", "query_key_value"): by_head,
    ("falcon", "query_key_value"): falcon,
    ("mpt", "Wqkv"): consecutive,
    ("phi3", "qkv_proj"): consecutive,
    ("phi3", "gate_up_proj"): halves,
    ("glm", "gate_up_proj"): halves,
    ("glm4", "gate_up_proj"): halves,
    ("modernbert", "Wqkv"): consecutive,
    ("modernbert", "Wi"): halves,
}


def role_of(path: str) -> str:
    """Role of a linear layer by the longest ending of its path in the table, else its own name."""
    return next((ROLES[end] for end in _endings(path) if end in ROLES), path.rpartition(".")[2])


def layout_of(model_type: str, path: str) -> Layout | None:
    """Inner order of the fused weight of module `path`; None where the weight is not fused or not known."""
    keys = ((model_type, end) for end in _endings(path))
    return next((LAYOUTS[key] for key in keys if key in LAYOUTS), None)


def _endings(path: str) -> list[str]:
    """The path, and every shorter ending of it in whole parts, longest first."""
    parts = path.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]
