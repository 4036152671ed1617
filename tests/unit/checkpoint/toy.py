"""Tiny models on disk, and the plainest way to compress them: a truncated SVD per matrix."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from kanna.checkpoint import lineage
from kanna.checkpoint.declared import quantization_config, resolve
from kanna.checkpoint.reader import Checkpoint
from kanna.checkpoint.side_files import copy_side_files
from kanna.checkpoint.writer import (
    SHARD_BYTES,
    output_directory,
    spec_of,
    write_json,
    write_tensors,
)
from kanna.forms import Dense, Form, LowRank, Pivot, Rows
from kanna.linalg.pivot import pivot_factors
from kanna.models.skeleton import skeleton

QKV_ROWS = tuple((8 * i, 8, 24, 4) for i in range(3))
LLAMA = {"model.layers.0.mlp.up_proj": LowRank(8), "model.layers.1.self_attn.k_proj": LowRank(4)}
GPT2 = {
    "transformer.h.0.attn.c_attn": Rows(
        (((0, 32, 32, 1), LowRank(4)), ((32, 32, 32, 1), Dense()), ((64, 32, 32, 1), Pivot(5)))
    ),
    "transformer.h.1.mlp.c_fc": LowRank(6),
    "transformer.h.1.mlp.c_proj": Pivot(7),
}
NEOX = {
    "gpt_neox.layers.1.attention.query_key_value": Rows(
        tuple(zip(QKV_ROWS, (LowRank(5), Pivot(3), Dense()), strict=True))
    )
}
BERT = {
    "bert.encoder.layer.0.attention.self.query": LowRank(6),
    "bert.encoder.layer.1.output.dense": Pivot(9),
    "cls.predictions.transform.dense": LowRank(3),
}
# Forms in forms: by name of the family.
NESTED: dict[str, Mapping[str, Form]] = {
    "llama": {
        "model.layers.0.mlp.up_proj": LowRank(16, reduce=Pivot(6), expand=LowRank(8, reduce=Pivot(3))),
        "model.layers.1.self_attn.k_proj": Pivot(8, basis=LowRank(4), mix=Pivot(3)),
    },
    "gpt2": {
        "transformer.h.0.attn.c_attn": Rows(
            (
                ((0, 32, 32, 1), LowRank(12, reduce=Pivot(4))),
                ((32, 32, 32, 1), Dense()),
                ((64, 32, 32, 1), LowRank(10, expand=LowRank(5, expand=Pivot(2)))),
            )
        ),
        "transformer.h.1.mlp.c_fc": LowRank(12, expand=Pivot(6)),
        "transformer.h.1.mlp.c_proj": LowRank(
            14, expand=Rows((((0, 24, 24, 1), LowRank(3)), ((24, 8, 8, 1), Dense())))
        ),
    },
}
FAMILIES: dict[str, Mapping[str, Form]] = {"llama": LLAMA, "gpt2": GPT2, "neox": NEOX, "bert": BERT}
INPUT = torch.arange(3, 15)[None]


@torch.random.fork_rng(devices=[])
def tiny(family: str, **changes: Any) -> transformers.PreTrainedModel:
    """A random two-layer model of width 32."""
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96, "intermediate_size": 64}
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    match family:
        case "llama":
            settings = sizes | {"hidden_size": 32, "num_key_value_heads": 2, "tie_word_embeddings": True}
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(settings | changes)))
        case "gpt2":
            config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=96, **ids)
            model = transformers.GPT2LMHeadModel(config)
        case "neox":
            model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(hidden_size=32, **sizes))
        case "bert":
            model = transformers.BertForMaskedLM(transformers.BertConfig(hidden_size=32, **sizes))
        case _:
            raise ValueError(family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))  # biases are zero at birth
    return model.eval()


def save_base(family: str, directory: Path, max_shard_size: str = "5GB", **changes: Any) -> Path:
    tiny(family, **changes).save_pretrained(directory, max_shard_size=max_shard_size)
    return directory


def pack(form: Form, weight: torch.Tensor, bias: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """What to store for an (m, n) weight."""
    children = form.children(*weight.shape)
    parts = _split(form, weight)
    packed = {
        name: pack(children[name].form, parts[name]) if name in children else parts[name] for name in parts
    }
    return form.pack(packed, bias)


def _split(form: Form, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """The dense parts that `form.pack` takes."""
    if isinstance(form, Dense):
        return {"weight": weight}
    if isinstance(form, Rows):
        slices = [where for where, _ in form.parts]
        rows = [[s + i * t + j for i in range(c) for j in range(b)] for s, b, t, c in slices]
        return {f"parts.{i}": weight[index] for i, index in enumerate(rows)}
    left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
    rank = form.rank
    expand, reduce = left[:, :rank] * values[:rank], right[:rank]
    if isinstance(form, LowRank):
        return {"expand": expand.to(weight.dtype), "reduce": reduce.to(weight.dtype)}
    order, basis, mix = pivot_factors(expand.double(), reduce.double())
    return {"order": order, "basis": basis.to(weight.dtype), "mix": mix.to(weight.dtype)}


def compressed_tensors(source: Checkpoint, forms: Mapping[str, Form]) -> dict[str, torch.Tensor]:
    """All tensors of the output by name."""
    model = skeleton(source.directory)
    prefix = model.base_model_prefix
    tensors = dict(source.stream())
    for one in resolve(forms, model, type(model).__name__):
        stripped = one.path.removeprefix(prefix + ".")
        path = one.path if f"{one.path}.weight" in tensors else stripped
        weight = tensors.pop(f"{path}.weight")
        weight = weight.T.contiguous() if one.geometry.transposed else weight
        packed = pack(one.form, weight, tensors.pop(f"{path}.bias", None))
        tensors |= {f"{path}.{suffix}": tensor.contiguous() for suffix, tensor in packed.items()}
    return tensors


def compress(
    source: Path,
    out: Path,
    forms: Mapping[str, Form],
    *,
    max_shard_bytes: int = SHARD_BYTES,
    force: bool = False,
) -> Path:
    checkpoint = Checkpoint.open(source)
    tensors = compressed_tensors(checkpoint, forms)
    with output_directory(out, force=force) as partial:
        specs = [spec_of(name, tensor) for name, tensor in tensors.items()]
        write_tensors(partial, specs, tensors.items(), max_shard_bytes=max_shard_bytes)
        write_json(
            partial / "config.json", {**checkpoint.config, "quantization_config": quantization_config(forms)}
        )
        copy_side_files(source, partial, checkpoint.files)
        base = lineage.Base(name=checkpoint.name, hash=lineage.base_hash(checkpoint))
        lineage.write(partial, base, (lineage.Step(method="toy"),))
    return out


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(INPUT)[0]
