"""What lies beside the weights of a model and makes it what it is: copied byte for byte, or named.

Tokenizers, templates, licences, pooling of sentence embeddings and code come in more files than anybody can
list. So everything is copied but what is known not to belong to the new model: weights, which are written
anew; what kanna writes itself; and what programs leave behind. Code that is copied is not run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from kanna.checkpoint import lineage
from kanna.checkpoint.reader import INDEX
from kanna.checkpoint.scale_records import RECORD
from kanna.errors import InputError

MODULES = "modules.json"
BESIDE, WRITTEN, LEFT_OUT = "beside the weights", "written anew", "left out"
# Weights in all formats; those of sentence-embedding modules stay as they are, if they are no pickles.
_SAFETENSORS = ("*.safetensors", "*.safetensors.index.json")
_PICKLES = ["*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib"]
_OTHER_WEIGHTS = [
    "*.h5",
    "*.msgpack",
    "*.msgpack.index.json",
    "*.onnx*",
    "*.gguf",
    "*.ggml",
    "*.tflite",
    "*.ot",
    "*.mlmodel",
    "*.npz",
    "*.nemo",
    "*.engine",
]
# The same model once more, for other programs.
_OTHER_MODELS = ["onnx", "openvino", "coreml", "tflite", "gguf", "flax", "*.mlpackage"]
# Of training, and of whoever worked here.
_TRAINING = [
    "checkpoint-*",
    "global_step*",
    "optimizer_[0-9]*",
    "*.distcp",
    "runs",
    "logs",
    "wandb",
    "trainer_state.json",
    "training_args.*",
    "events.out.tfevents*",
    "*.log",
    "zero_to_fp32.py",
    "latest",
]
_LEFT_BEHIND = [
    ".*",
    "__pycache__",
    "*.pyc",
    "cvs",
    "_darcs",
    "thumbs.db",
    "desktop.ini",
    "*.tmp",
    "*.lock",
    "*~",
    "*.incomplete",
    "*.partial",
]
# Written anew. What steps of kanna put beside their weights begins with its name, or with theirs.
_OURS = ("config.json", "readme.md", "recipe.yaml", "kanna.json", "kanna-*")
# With peft installed, transformers would follow it to another model.
_ADAPTER = ("adapter_config.json",)


@dataclass(frozen=True)
class SideFiles:
    """Files beside the weights, as paths below the directory with forward slashes.

    Args:
        copied: What an output gets too.
        left_out: What it does not get though it may mean something; folders end in a slash.
        bytes: Of those that are copied.
    """

    copied: tuple[str, ...]
    left_out: tuple[str, ...]
    bytes: int


def side_files(source: Path, weights: Collection[Path]) -> SideFiles:
    """What of a model directory an output gets.

    Args:
        weights: The files of its own weights.
    """
    kinds = _kinds(source, weights)
    copied = tuple(name for name, kind in kinds if kind == BESIDE)
    left_out = tuple(name for name, kind in kinds if kind == LEFT_OUT)
    return SideFiles(copied, left_out, sum((source / name).stat().st_size for name in copied))


def files_of_model(source: Path, weights: Collection[Path]) -> tuple[str, ...]:
    """Everything that belongs to a model: its weights, what lies beside them, and what kanna wrote of it."""
    return tuple(name for name, kind in _kinds(source, weights) if kind != LEFT_OUT)


def copy_side_files(source: Path, directory: Path, weights: Collection[Path]) -> SideFiles:
    """Copy them into the directory of an output; links become what they point to."""
    found = side_files(source, weights)
    for name in found.copied:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, directory / name)
    return found


def _kinds(source: Path, weights: Collection[Path]) -> list[tuple[str, str]]:
    """Name and kind of each file, and of folders that are left out; what programs left behind has none."""
    own = {path.relative_to(source).as_posix() for path in (*weights, source / INDEX)}
    ours, modules = (*_OURS, *_named_after_steps(source)), module_folders(source)
    found = []
    for place, folders, files in os.walk(source):
        below = Path(place).relative_to(source)
        for folder in sorted(folders):
            if _is_elsewhere(Path(place) / folder):
                found.append((f"{(below / folder).as_posix()}/", LEFT_OUT))
        folders[:] = sorted(
            folder
            for folder in folders
            if not _matches(folder, _LEFT_BEHIND) and not _is_elsewhere(Path(place) / folder)
        )
        for file in sorted(files):
            name = (below / file).as_posix()
            if name in own or _matches(name.partition("/")[0], ours):
                found.append((name, WRITTEN))
            elif not _matches(file, _LEFT_BEHIND):
                found.append((name, _kind(source / name, name.startswith(modules))))
    return found


def _is_elsewhere(folder: Path) -> bool:
    """Whether a folder is left out: links are not followed, they may lead anywhere, and even back here."""
    left_behind = _matches(folder.name, _LEFT_BEHIND)
    if any(folder.glob(f"*/{RECORD}")):  # sets of scales belong to the codes that they were learnt on
        return True
    return not left_behind and (folder.is_symlink() or _matches(folder.name, (*_OTHER_MODELS, *_TRAINING)))


def _kind(path: Path, in_module: bool) -> str:
    refused = (*_PICKLES, *_OTHER_WEIGHTS, *_ADAPTER, *_TRAINING, *(() if in_module else _SAFETENSORS))
    return BESIDE if path.is_file() and not _matches(path.name, refused) else LEFT_OUT


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name.lower(), pattern) for pattern in patterns)


def module_folders(source: Path) -> tuple[str, ...]:
    """Folders of the modules of a sentence-embedding model, but for the transformer, which is the model."""
    try:
        modules = json.loads((source / MODULES).read_text(encoding="utf-8"))
        paths = [str(module["path"]).strip("/") for module in modules]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ()
    return tuple(f"{path}/" for path in paths if path and ".." not in path.split("/"))


def refuse_lost_modules(source: Path) -> None:
    """Raise InputError for a module of a sentence-embedding model whose weights would not be copied.

    An output without them is no such model any more: sentence-transformers cannot load it.
    """
    for folder in module_folders(source):
        files = sorted(path.name for path in (source / folder).glob("*") if path.is_file())
        weights = [name for name in files if _matches(name, (*_PICKLES, *_OTHER_WEIGHTS))]
        lost = [name for name in weights if not _matches(name, _TRAINING)]
        if lost and not any(_matches(name, _SAFETENSORS) for name in files):
            raise InputError(
                f"{source / folder / lost[0]} holds weights of the model that would be missing in the output:"
                " kanna copies safetensors only, and reads no pickles",
                f"convert it to {folder}model.safetensors: load the model with sentence-transformers and "
                "save it again",
            )


def _named_after_steps(source: Path) -> tuple[str, ...]:
    recorded = lineage.read(source)
    return () if recorded is None else tuple({f"{step.method}-*.json": None for step in recorded.steps})
