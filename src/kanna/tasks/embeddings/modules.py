"""How a directory turns hidden states into embeddings, as modules.json of sentence-transformers says.

Everything is read as data: a name in JSON never becomes an import, and a module that is not known is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor, nn

from kanna.checked import read_json
from kanna.checkpoint.reader import SINGLE, Checkpoint, read_headers
from kanna.checkpoint.side_files import MODULES
from kanna.errors import InputError

_SETTINGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_PROMPTS = "config_sentence_transformers.json"
_OWN = "sentence_transformers."
# In the order in which several are joined.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLINGS = tuple(_FLAGS.values())
_ACTIVATIONS: dict[str, nn.Module] = {
    "Identity": nn.Identity(),
    "Tanh": nn.Tanh(),
    "ReLU": nn.ReLU(),
    "GELU": nn.GELU(),
    "Sigmoid": nn.Sigmoid(),
    "SiLU": nn.SiLU(),
}
_QUERY, _DOCUMENT = ("query",), ("document", "passage", "corpus")
_MEAN_OF_ALL = f"the model has no {MODULES}: the mean of all tokens is taken for the embedding"


@dataclass(frozen=True)
class Dense:
    """A layer on the embedding: weight (out, in) and bias (out,) in float64, and what follows it."""

    weight: Tensor
    bias: Tensor | None
    activation: nn.Module

    def __call__(self, embeddings: Tensor) -> Tensor:
        after: Tensor = self.activation(nn.functional.linear(embeddings, self.weight, self.bias))
        return after


@dataclass(frozen=True)
class Normalize:
    """To length one."""

    def __call__(self, embeddings: Tensor) -> Tensor:
        return nn.functional.normalize(embeddings, dim=-1)


@dataclass(frozen=True)
class Sentences:
    """From texts to embeddings.

    Args:
        longest: Most tokens of a text; None leaves it to the model.
        lower: Whether texts are read in lower case.
        poolings: Of `POOLINGS`, joined in this order.
        include_prompt: Whether the tokens of a prompt take part in the pooling.
        layers: What follows the pooling.
        query: Before a query.
        document: Before what is looked for.
        usual: Before any other text.
        notes: What the reader of the numbers must know.
    """

    longest: int | None = None
    lower: bool = False
    poolings: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    layers: tuple[Dense | Normalize, ...] = ()
    query: str = ""
    document: str = ""
    usual: str = ""
    notes: tuple[str, ...] = ()


def read_sentences(directory: Path) -> Sentences:
    """What a model directory says; the mean of all tokens where it says nothing.

    Raises:
        InputError: A file is damaged, or asks for something that is not known here.
    """
    if not (directory / MODULES).is_file():
        return Sentences(notes=(_MEAN_OF_ALL,))
    named = _named(directory / MODULES)
    kinds = [kind for kind, _ in named]
    if kinds[:2] != ["Transformer", "Pooling"] or named[0][1] != directory:
        raise InputError(
            f"{directory / MODULES} does not begin with the transformer of this directory and a pooling: "
            f"{', '.join(kinds)}",
            "give a model whose embeddings are pooled from the hidden states of its own transformer",
        )
    layers = [_layer(kind, folder) for kind, folder in named[2:] if kind != "Dropout"]
    poolings, include = _pooling(named[1][1])
    longest, lower = _settings(directory)
    said = _of_sentences(directory)
    usual = said.get("similarity_fn_name") or "cosine"
    notes = (
        () if usual == "cosine" else (f"the model is made for {usual} as similarity; cosines are taken here",)
    )
    return Sentences(longest, lower, poolings, include, tuple(layers), *_prompts(directory, said), notes)


def _named(path: Path) -> list[tuple[str, Path]]:
    """Kind and folder of each module, in order."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        modules = [(str(one["type"]), str(one["path"])) for one in sorted(listed, key=lambda one: one["idx"])]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"{path} is no list of modules with idx, path and type: {error}", "fetch it again"
        ) from error
    for kind, folder in modules:
        if not kind.startswith(_OWN) or kind.rpartition(".")[2] not in _KNOWN:
            raise InputError(
                f"{path} names the module {kind}, which kanna does not know", f"known: {', '.join(_KNOWN)}"
            )
        if ".." in PurePosixPath(folder).parts or PurePosixPath(folder).is_absolute():
            raise InputError(f"{path} names {folder!r}, which lies outside the directory", "do not use it")
    return [(kind.rpartition(".")[2], path.parent / folder) for kind, folder in modules]


_KNOWN = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")


def _pooling(folder: Path) -> tuple[tuple[str, ...], bool]:
    config = read_json(folder / "config.json")
    if "pooling_mode" in config:
        given = config["pooling_mode"]
        modes = [given] if isinstance(given, str) else list(given)
    else:
        unknown = [
            key for key in config if key.startswith("pooling_mode") and key not in _FLAGS and config[key]
        ]
        told = [mode for flag, mode in _FLAGS.items() if config.get(flag)]
        modes = [*unknown, *told] if any(flag in config for flag in _FLAGS) else ["mean", *unknown]
    if not modes or any(mode not in POOLINGS for mode in modes):
        raise InputError(
            f"{folder / 'config.json'} asks for the pooling {', '.join(map(str, modes)) or 'of nothing'}",
            f"known: {', '.join(POOLINGS)}",
        )
    return tuple(mode for mode in POOLINGS if mode in modes), bool(config.get("include_prompt", True))


def _layer(kind: str, folder: Path) -> Dense | Normalize:
    if kind == "Normalize":
        return Normalize()
    if kind != "Dense":
        raise InputError(f"{folder.parent / MODULES} has a second {kind}", "give a model with one of it")
    return _dense(folder)


def _dense(folder: Path) -> Dense:
    path = folder / "config.json"
    config = read_json(path)
    name = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise InputError(f"{path} asks for the activation {name}", f"known: {', '.join(_ACTIVATIONS)}")
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise InputError(f"{path} asks for {key} {config[key]!r}", "known: sentence_embedding")
    if not (folder / SINGLE).is_file():
        raise InputError(
            f"{folder} holds no {SINGLE}",
            "kanna reads no pickles: save the model with sentence-transformers again",
        )
    held = Checkpoint(folder, folder.name, {}, read_headers([folder / SINGLE]))
    weight = held.tensor("linear.weight").double()
    bias = held.tensor("linear.bias").double() if "linear.bias" in held.tensors else None
    return Dense(weight, bias, _ACTIVATIONS[name])


def _settings(directory: Path) -> tuple[int | None, bool]:
    path = next((directory / name for name in _SETTINGS if (directory / name).is_file()), None)
    config: Mapping[str, Any] = {} if path is None else read_json(path)
    longest, task = config.get("max_seq_length"), config.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise InputError(f"{path} asks for the transformer task {task!r}", "known: feature-extraction")
    if longest is not None and (not isinstance(longest, int) or longest < 1):
        raise InputError(f"{path}: max_seq_length {longest!r} is no number of tokens", "mend it")
    return longest, bool(config.get("do_lower_case", False))


def _of_sentences(directory: Path) -> dict[str, Any]:
    path = directory / _PROMPTS
    return read_json(path) if path.is_file() else {}


def _prompts(directory: Path, config: Mapping[str, Any]) -> tuple[str, str, str]:
    """Before queries, documents and other texts."""
    path = directory / _PROMPTS
    prompts, usual = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise InputError(f"{path}: prompts is no object of texts", "mend it")
    if usual is not None and usual not in prompts:
        raise InputError(f"{path}: there is no prompt {usual!r}", f"it has {', '.join(prompts) or 'none'}")
    other = prompts[usual] if usual is not None else ""

    def first(names: tuple[str, ...]) -> str:
        return next((prompts[name] for name in names if name in prompts), other)

    return first(_QUERY), first(_DOCUMENT), other
