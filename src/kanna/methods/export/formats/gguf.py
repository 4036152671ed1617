"""GGUF, for models like Llama: one file with vocabulary and chat template, read by llama.cpp and its kin.

llama.cpp turns positions in pairs of neighbours where transformers turns halves, so that the rows of query
and key matrices lie in another order there. Blocks run along rows and stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM

from kanna.errors import InputError, KannaError
from kanna.methods.export import fit
from kanna.methods.export.formats.gguf_vocabulary import Vocabulary, vocabulary_of
from kanna.methods.export.formats.loaders import installed, logits_of
from kanna.methods.export.formats.target import Logits, NotInstalled, Target
from kanna.methods.export.held import Held, codes_of
from kanna.progress import Progress
from kanna.quant.layouts import gguf
from kanna.runs.source import Source

FILE = "model.gguf"
_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
_BITS = (2, 3, 4)
_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_LICENCES = ("LICENSE*", "NOTICE*")


@dataclass(frozen=True)
class _Entry:
    """One tensor of the file.

    Args:
        name: There.
        kind: Its type there.
        shape: Of its bytes, the last of them those of a row.
        parameter: Its name in the class.
        layer: Where it is whole numbers.
        heads: Whose rows are interleaved; 0 for none.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameter: str
    layer: Held | None
    heads: int

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape))


class Gguf(Target):
    """See the module."""

    name = "gguf"
    loader = "transformers' reader of GGUF"

    def refuse(self, source: Source, layers: Sequence[Held]) -> None:
        _refuse_model(source)
        fit.bits_among(layers, _BITS, self.name)
        fit.whole_groups(layers, self.name)
        for layer in layers:
            if layer.n % gguf.BLOCK or layer.grid.size(layer.n) % gguf.BLOCK:
                raise InputError(
                    f"gguf holds blocks of {gguf.BLOCK} inputs: {layer.path} has {layer.n} in groups of "
                    f"{layer.grid.size(layer.n)}",
                    "quantise with a --group that is a multiple of 32, or channel",
                )
        package = _package()
        _ = vocabulary_of(package, source), _entries(package, source, layers)

    def bytes(self, source: Source, layers: Sequence[Held]) -> int:
        return sum(entry.bytes for entry in _entries(_package(), source, layers))

    def write(self, directory: Path, source: Source, layers: Sequence[Held], progress: Progress) -> None:
        package = _package()
        writer = package.GGUFWriter(directory / FILE, "llama")
        _describe(package, writer, source, layers)
        _put_vocabulary(writer, vocabulary_of(package, source))
        entries = _entries(package, source, layers)
        for entry in entries:
            kind = package.GGMLQuantizationType[entry.kind]
            writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.uint8), entry.bytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, entry in enumerate(entries):
            progress("export", done, len(entries))
            writer.write_tensor_data(_data(source, entry))
        writer.close()
        progress("export", len(entries), len(entries))
        for path in (path for pattern in _LICENCES for path in source.directory.glob(pattern)):
            copyfile(path, directory / path.name)

    def reader(self, directory: Path, source: Source, layers: Sequence[Held]) -> Logits:
        model, report = AutoModelForCausalLM.from_pretrained(
            directory, gguf_file=FILE, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        if report["missing_keys"]:
            raise KannaError(f"transformers found no values for {sorted(report['missing_keys'])[:3]}")
        return logits_of(model.eval())


def _package() -> Any:
    try:
        return installed("gguf", "gguf")
    except NotInstalled as error:
        raise InputError(f"{error}, which writes the file", "pip install gguf") from error


def _refuse_model(source: Source) -> None:
    """Raise InputError for what the llama of llama.cpp does not compute, and its file would not say."""
    config: Any = source.skeleton.config
    architecture = source.inventory.architecture
    if architecture not in _ARCHITECTURES:
        raise InputError(
            f"kanna writes gguf of {' and '.join(_ARCHITECTURES)}; this is {architecture}",
            "kanna export DIR --format dense --out D2, then llama.cpp's own converter",
        )
    rope = getattr(config, "rope_parameters", None) or {}
    wrong = {
        "biases of attention": getattr(config, "attention_bias", False),
        "biases of the feed-forward layers": getattr(config, "mlp_bias", False),
        "a sliding window": getattr(config, "sliding_window", None),
        f"positions of type {rope.get('rope_type')}": rope.get("rope_type", "default") != "default",
        f"the activation {config.hidden_act}": config.hidden_act != "silu",
    }
    if found := next((what for what, there in wrong.items() if there), None):
        raise InputError(
            f"{source.name} has {found}, which kanna does not write to gguf",
            "kanna export DIR --format dense --out D2, then llama.cpp's own converter",
        )


def _describe(package: Any, writer: Any, source: Source, layers: Sequence[Held]) -> None:
    config: Any = source.skeleton.config
    size = _head_size(config)
    kinds = {gguf.kind(layer.grid) for layer in layers}
    writer.add_name(source.name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float((config.rope_parameters or {}).get("rope_theta", 10000.0)))
    most = "Q5_0" if "Q5_0" in kinds else "Q4_0"
    writer.add_file_type(package.LlamaFileType[f"MOSTLY_{most}"])
    writer.add_quantization_version(package.GGML_QUANT_VERSION)


def _put_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    if not vocabulary.tokens:
        return
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    vocabulary.special.add_to_gguf(writer, quiet=True)


def _entries(package: Any, source: Source, layers: Sequence[Held]) -> list[_Entry]:
    """Every tensor of the file, in the order of the class."""
    config: Any = source.skeleton.config
    names = package.get_tensor_name_map(package.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    held = {f"{layer.path}.weight": layer for layer in layers}
    found = []
    for parameter, value in source.skeleton.named_parameters():
        name = names.get_name(parameter, (".weight", ".bias"))
        if name is None:
            raise InputError(f"gguf has no name for {parameter}", "use another --format")
        layer = held.get(parameter)
        if layer is not None:
            kind = gguf.kind(layer.grid)
            shape: tuple[int, ...] = (layer.m, layer.n // gguf.BLOCK * gguf.BYTES[kind])
            found.append(_Entry(name, kind, shape, parameter, layer, _heads(parameter, config)))
            continue
        dtype = _dtype(source, parameter, value)
        shape = (*value.shape[:-1], value.shape[-1] * dtype.itemsize)
        found.append(_Entry(name, _TYPES[dtype], shape, parameter, None, _heads(parameter, config)))
    return found


def _dtype(source: Source, parameter: str, value: Tensor) -> torch.dtype:
    """Vectors are float32 there, matrices as they are."""
    stored = source.checkpoint.dtype(source.file_name(parameter) or parameter)
    if stored not in _TYPES:
        raise InputError(f"gguf does not hold {parameter} as {stored}", "use another --format")
    return torch.float32 if value.dim() == 1 else stored


def _data(source: Source, entry: _Entry) -> NDArray[np.uint8]:
    if entry.layer is not None:
        codes = codes_of(source, entry.layer)
        return gguf.blocks(gguf.permuted(codes, entry.heads) if entry.heads else codes)
    stored = source.checkpoint.tensor(source.file_name(entry.parameter) or entry.parameter)
    value = stored.float() if stored.dim() == 1 else stored
    if entry.heads:
        value = gguf.interleaved(value, entry.heads)
    return value.contiguous().view(torch.uint8).numpy().reshape(entry.shape)


def _heads(parameter: str, config: Any) -> int:
    if parameter.endswith("q_proj.weight"):
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if parameter.endswith("k_proj.weight") else 0


def _head_size(config: Any) -> int:
    given = getattr(config, "head_dim", None)
    return int(given or config.hidden_size // config.num_attention_heads)


TARGET = Gguf()
