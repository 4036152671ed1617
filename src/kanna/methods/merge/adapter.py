"""LoRA adapters as PEFT writes them: what each adds to which tensor of its base.

Of a layer's weight W with factors A (r x inputs) and B (outputs x r) it makes W + s B A, with s = alpha / r,
or alpha / sqrt(r) where the adapter says so (rsLoRA); where inputs come first in W (Conv1D of GPT-2) and for
embeddings, the product is laid the other way. r and alpha may differ by layer.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kanna.checked import FETCH_AGAIN, read_json
from kanna.checkpoint.reader import Checkpoint, check_finite, read_headers
from kanna.checkpoint.safetensors_format import Stored
from kanna.errors import InputError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
_PREFIX = "base_model.model."
# In the names of what a layer has beside its factors.
_ADAPTED = ".base_layer."
_MERGE_FIRST = "merge it into its model with PEFT (merge_and_unload) and give the result"
# Kinds of adapters whose products are more than s B A, by the key that says so.
_MORE: Mapping[str, str] = {
    "use_dora": "DoRA, which scales the rows of the whole matrix",
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "activated LoRA, which holds for some tokens only",
    "layer_replication": "repeated layers",
    "trainable_token_indices": "trained rows of single tokens",
    "target_parameters": "factors of parameters that are no layer's weight",
    "lora_bias": "biases of the factors",
    "megatron_config": "layers of Megatron",
}
# Starts that change the base itself; the factors are those of another matrix.
_OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Factors:
    """Of one tensor.

    Args:
        a: Name of A in the adapter's file, r x inputs.
        b: Name of B there, outputs x r.
        scale: s.
        transposed: Whether inputs come first in the tensor.
    """

    a: str
    b: str
    scale: float
    transposed: bool


@dataclass(frozen=True)
class Adapter:
    """An adapter whose header was read; no weight is in memory.

    Args:
        directory: Where it lies.
        name: Its base name, or hub id.
        file: Its weights.
        tensors: Where they are.
        config: What adapter_config.json holds.
    """

    directory: Path
    name: str
    file: Path
    tensors: Mapping[str, Stored]
    config: Mapping[str, Any]

    @classmethod
    def open(cls, directory: Path, name: str) -> Adapter:
        """Read configuration and header.

        Raises:
            InputError: There is none, or it is of a kind that is not merged.
        """
        if not (directory / CONFIG).is_file():
            raise InputError(f"{directory} holds no {CONFIG}", "give the directory of a LoRA adapter")
        config = read_json(directory / CONFIG)
        _refuse_other_kinds(directory, config)
        file = directory / WEIGHTS
        if not file.is_file():
            said = f", but {_PICKLED}, a pickle" if (directory / _PICKLED).is_file() else ""
            raise InputError(f"{directory} holds no {WEIGHTS}{said}", "save it as safetensors")
        return cls(directory, name, file, read_headers([file]), config)

    @property
    def files(self) -> tuple[Path, ...]:
        """All that what it adds depends on: ranks and alpha stand in the configuration."""
        return self.file, self.directory / CONFIG

    def hash(self) -> str:
        """sha256 of the file and the configuration."""
        digest = hashlib.sha256((self.directory / CONFIG).read_bytes())
        with self.file.open("rb") as file:
            while data := file.read(2**22):
                digest.update(data)
        return digest.hexdigest()

    def read(self, name: str) -> Tensor:
        """A tensor, in float64."""
        values = Checkpoint(self.directory, self.name, self.config, self.tensors).tensor(name)
        return check_finite(values, f"{name} in {self.file}").double()

    def scale(self, module: str, rank: int) -> float:
        """s of a layer."""
        given = _by_pattern(self.config.get("rank_pattern"), module, self.config.get("r"))
        if given != rank:
            raise InputError(
                f"{self.file}: the factors of {module} have rank {rank}, and {CONFIG} says {given}",
                FETCH_AGAIN,
            )
        alpha = float(_by_pattern(self.config.get("alpha_pattern"), module, self.config.get("lora_alpha")))
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def _refuse_other_kinds(directory: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InputError(f"{directory} is an adapter of the kind {kind!r}, not LORA", _MERGE_FIRST)
    for key, what in _MORE.items():
        if config.get(key):
            raise InputError(
                f"{directory} is an adapter with {key}: {what}; that is not merged", _MERGE_FIRST
            )
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(_OTHER_BASE):
        raise InputError(
            f"{directory} is an adapter that started by {start}, which changes the base, too", _MERGE_FIRST
        )
    if not all(_is_number(config.get(key)) for key in ("r", "lora_alpha")):
        raise InputError(f"{directory / CONFIG} does not say r and lora_alpha", FETCH_AGAIN)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _by_pattern(patterns: Any, module: str, otherwise: Any) -> Any:
    """As PEFT reads rank_pattern and alpha_pattern: ends of a layer's name, the first that fits."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise


@dataclass(frozen=True)
class Additions:
    """What an adapter does to the tensors of a base.

    Args:
        factors: Tensor of the base -> what is added to it, in this order.
        replaced: Tensor -> its name in the adapter's file, whose values it has.
    """

    factors: Mapping[str, tuple[Factors, ...]]
    replaced: Mapping[str, str]


def additions(adapter: Adapter, base: Checkpoint, embedding: str | None, tied: bool) -> Additions:
    """Match an adapter with a base.

    Args:
        embedding: The tensor in which tokens are looked up.
        tied: Whether the head is that tensor, too: what is added to the one is added to the other, then.

    Raises:
        InputError: It has a tensor that the base has no place for, or factors that do not fit; both named.
    """
    factors: dict[str, list[Factors]] = {}
    replaced: dict[str, str] = {}
    for key in adapter.tensors:
        # Embeddings that are adapted may be saved whole, too.
        path = path_in_model(key)
        module, found, rest = _split(path)
        if not found:
            replaced[_place(adapter, base, path, embedding, tied and _ADAPTED in key, key)] = key
        elif rest in ("A.weight", "A"):
            tensor = _place(adapter, base, f"{module}.weight", embedding, tied, key)
            factors.setdefault(tensor, []).append(_factors(adapter, base, key, module, tensor))
        elif rest not in ("B.weight", "B"):
            raise InputError(f"{adapter.file} holds {key}, which is no factor of LoRA", _MERGE_FIRST)
    if not factors and not replaced:
        raise InputError(f"{adapter.file} holds nothing that is added to a model", FETCH_AGAIN)
    return Additions({name: tuple(some) for name, some in factors.items()}, replaced)


def saved_whole(adapter: Adapter, base: Checkpoint, embedding: str | None) -> set[str]:
    """Tensors that an adapter has in the place of the base's, but for those that it adds something to."""
    paths = {key: key.removeprefix(_PREFIX) for key in adapter.tensors if _ADAPTED not in key}
    return {
        _place(adapter, base, path, embedding, False, key)
        for key, path in paths.items()
        if not _split(path)[1]
    }


def is_beside_factors(key: str) -> bool:
    """Whether a tensor of an adapter is of a layer that has factors, too."""
    return _ADAPTED in key


def path_in_model(key: str) -> str:
    """Path of an adapter's tensor in the class of the model."""
    return key.removeprefix(_PREFIX).replace(_ADAPTED, ".")


def _split(path: str) -> tuple[str, str, str]:
    """Module, lora_ or lora_embedding_, and the rest; the module alone where there is no such part."""
    match = re.fullmatch(r"(.*)\.(lora_(?:embedding_)?)([^.].*)", path)
    return (match[1], match[2], match[3]) if match else (path, "", "")


def _place(adapter: Adapter, base: Checkpoint, path: str, embedding: str | None, tied: bool, key: str) -> str:
    """Name in the base of what an adapter calls `path`; files may lack the first part, or have one more."""
    shorter = path.partition(".")[2]
    longer = [name for name in base.tensors if name.endswith(f".{path}")]
    for name in (path, shorter, *(longer if len(longer) == 1 else ())):
        if name in base.tensors:
            return name
    head = path.rpartition(".")[0].rpartition(".")[2] in ("lm_head", "embed_out")
    if head and tied and embedding is not None:
        return embedding
    if head and "lora_" not in key:
        return path  # a head of its own, for a model that had none
    raise InputError(
        f"{adapter.file} changes {path}, and {base.directory} holds no such tensor",
        "give the model that the adapter was trained on",
    )


def _factors(adapter: Adapter, base: Checkpoint, a: str, module: str, tensor: str) -> Factors:
    b = a.replace("lora_embedding_A", "lora_embedding_B").replace("lora_A", "lora_B")
    if b not in adapter.tensors:
        raise InputError(f"{adapter.file} holds {a}, but no {b}", FETCH_AGAIN)
    first, second, shape = adapter.tensors[a].shape, adapter.tensors[b].shape, base.shape(tensor)
    if len(first) != 2 or len(second) != 2 or first[0] != second[1]:
        raise InputError(
            f"{adapter.file}: {a} and {b} have shapes {list(first)} and {list(second)}", _MERGE_FIRST
        )
    transposed = "lora_embedding_" in a or bool(adapter.config.get("fan_in_fan_out"))
    product = (second[0], first[1])
    if (product[::-1] if transposed else product) != shape:
        raise InputError(
            f"the factors of {module} in {adapter.file} make a matrix of {product[0]} x {product[1]}, and "
            f"{tensor} in {base.directory} has shape {list(shape)}",
            "give the model that the adapter was trained on",
        )
    return Factors(a, b, adapter.scale(module, first[0]), transposed)


def product_rows(a: Tensor, b: Tensor, factors: Factors, first: int, stop: int) -> Tensor:
    """Rows of s B A as they lie in the tensor."""
    if factors.transposed:
        return a[:, first:stop].T @ (b.T * factors.scale)
    return b[first:stop] @ (a * factors.scale)
