"""Which directory may give way to a new one: what kanna wrote, and a model with nothing else beside it."""

import functools
import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from kanna.checked import check_lookable, read_json
from kanna.errors import InputError

# What a directory of a model holds, whoever made it, by name or by relative path. In .cache lies what
# `hf download --local-dir` keeps beside the files.
_FILES = (
    "*.safetensors",
    "*.index.json",
    "pytorch_model*.bin",
    "training_args.bin",
    "consolidated*",
    "tf_model.h5",
    "flax_model.msgpack",
    "rust_model.ot",
    "*.onnx",
    "*.gguf",
    "*config*.json",
    "model_index.json",
    "params.json",
    "modules.json",
    "tokenizer*",
    "vocab.*",
    "*vocab.json",
    "merges.txt",
    "dict.txt",
    "bpe.codes",
    "special_tokens_map.json",
    "added_tokens.json",
    "normalizer.json",
    "tekken.json",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "chat_template*",
    "*.jinja",
    "custom_generate/*",
    "*__pycache__/*.pyc",
    "configuration_*.py",
    "modeling_*.py",
    "tokenization_*.py",
    "*processing_*.py",
    "README.md",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
    ".gitattributes",
    ".DS_Store",
    ".cache/huggingface/*",
)
# What kanna may have put there, which its lineage does not name.
_OURS = (
    "README.md",
    "kanna.json",
    "recipe.yaml",
    "eval-*.json",
    "compare-*.json",
    "bench-*.json",
    "laser-analysis-*.json",
)
# What programs and systems put into any directory that they look into.
_LEFT_BEHIND = ("*__pycache__/*.pyc", ".gitattributes", ".DS_Store", ".cache/huggingface/*")
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".onnx", ".pt", ".pth", ".h5", ".msgpack")
# Templates, code of the model, modules of sentence-transformers, formats for other programs.
_FOLDERS = re.compile(r"additional_chat_templates|custom_generate|\d+_\w+|onnx|openvino|__pycache__")
_CACHE = re.compile(r"\.cache(/huggingface(/.*)?)?")
# A set of scales, which is an output inside the directory of a model.
_SET = ("scales.json", "scales.safetensors")
_CONFIG, _LINEAGE = "config.json", "kanna.json"
_MOVE = "choose another directory, or move what is there away yourself"


class InTheWay(InputError):
    """Something has the name of an output and is not to be replaced; the work for it may be worth keeping."""


def final_name(out: str | Path) -> Path:
    """An output's absolute path, whose last part is a name and no `..`.

    Raises:
        InputError: Nothing can have that name.
    """
    path = Path(out).expanduser().absolute()
    check_lookable(path, "choose another name")
    return path.resolve() if path.name in ("", "..") else path


def run_record_path(out: Path) -> Path:
    """Where times, memory and date of the run that wrote `out` stand: all that may differ between runs."""
    return out.with_name(f"{out.name}.run.json")


def identity(path: Path) -> tuple[int, int] | None:
    """What tells one file or directory from all others, whatever its name; None where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def refuse_replacing(out: Path) -> None:
    """Raise InTheWay unless what is there is a directory that kanna wrote, or one of a model alone.

    What kanna wrote is known by what its lineage records, what belongs to a model by the names that models
    have. One file or folder beside these, or weights that changed since, and nothing is replaced: it may be
    all that somebody has. Recorded weights are read, for their digests.
    """
    if out.is_symlink() or not out.is_dir():
        what = "a link" if out.is_symlink() else "a file"
        raise InTheWay(f"{out} is {what}, which --force does not replace", "choose another directory")
    if _is_set(out):
        return
    recorded = _recorded(out)
    if recorded is None and not _is_model(out):
        raise InTheWay(
            f"{out} exists and is not the directory of a model, so --force does not replace it", _MOVE
        )
    foreign = next(_foreign(out) if recorded is None else _not_written(out, recorded), None)
    if foreign is not None:
        what = "is not of a model and not from kanna"
        if recorded is not None and foreign.as_posix() in recorded:
            what = "has changed since kanna wrote it"
        raise InTheWay(
            f"{out} holds {foreign.as_posix()}, which {what}, so --force does not replace it", _MOVE
        )


def _recorded(directory: Path) -> Mapping[str, object] | None:
    """The paths that a lineage records, with their sha256; None where kanna wrote none."""
    try:
        data = read_json(directory / _LINEAGE)
    except InputError:
        return None
    files = data.get("files")
    if "format_version" not in data or "base" not in data or not isinstance(files, dict):
        return None
    return files


def _is_set(directory: Path) -> bool:
    """Whether a folder holds a set of scales and nothing else."""
    return sorted(path.name for path in directory.iterdir()) == sorted(_SET)


def _is_model(directory: Path) -> bool:
    try:
        config = read_json(directory / _CONFIG)
    except InputError:
        return False
    return "model_type" in config or "architectures" in config


def _foreign(directory: Path) -> Iterator[Path]:
    """Files and folders, relative, that are not known by their names as those of a model."""
    for path in _inside(directory):
        known = _is_folder_of_model(path) if (directory / path).is_dir() else _is_file_of_model(path)
        if not known:
            yield path


def _not_written(directory: Path, recorded: Mapping[str, object]) -> Iterator[Path]:
    """Files and folders, relative, that a lineage does not record, and weights that changed since."""
    folders = {parent.as_posix() for name in recorded for parent in Path(name).parents}
    for path in _inside(directory):
        name = path.as_posix()
        if (directory / path).is_dir():
            if not (name in folders or path.name == "__pycache__" or _CACHE.fullmatch(name)):
                yield path
        elif name not in recorded:
            if not _matches(path, (*_OURS, *_LEFT_BEHIND)):
                yield path
        elif path.suffix.lower() in _WEIGHTS and _sha256(directory / path) != recorded[name]:
            yield path


def _inside(directory: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(directory):
        here = Path(place).relative_to(directory)
        yield from (here / name for name in (*sorted(folders), *sorted(files)))


def _sha256(path: Path) -> str:
    found = path.stat()
    return _digest(path, found.st_ino, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _digest(path: Path, *version: int) -> str:
    """Of one version of a file: an output is looked at several times in a run."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_folder_of_model(path: Path) -> bool:
    cache = _CACHE.fullmatch(path.as_posix())
    return cache is not None or _FOLDERS.fullmatch(path.name) is not None


def _is_file_of_model(path: Path) -> bool:
    return _matches(path, (*_FILES, *_OURS))


def _matches(path: Path, patterns: Collection[str]) -> bool:
    """By name or by relative path."""
    return any(fnmatchcase(name, pattern) for name in (path.name, path.as_posix()) for pattern in patterns)
