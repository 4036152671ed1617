"""Undo a step `laser`: from the original matrices where they were kept, else from the model edited."""

import shutil
from pathlib import Path
from typing import Any

from kanna.checked import check_version, read_json, tagged_floats
from kanna.checkpoint import lineage
from kanna.checkpoint.outputs import final_name
from kanna.checkpoint.reader import Checkpoint, read_headers, weight_files
from kanna.checkpoint.safetensors_format import TensorSpec
from kanna.checkpoint.side_files import copy_side_files, files_of_model, refuse_lost_modules
from kanna.checkpoint.writer import output_directory, write_json, write_tensors
from kanna.errors import InputError
from kanna.heard import Listener, heard
from kanna.methods.laser.step import MANIFEST, ORIGINALS
from kanna.progress import Progress
from kanna.runs.in_the_way import refuse_existing, refuse_input
from kanna.runs.unfinished import sole_writer

# The newest format of the files that steps of `laser` leave beside a model.
_FORMAT = 1


def restore(
    directory: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    force: bool = False,
    progress: Listener = False,
) -> Path:
    """Write the model as it was before the last `laser` step, bit for bit.

    The original tensors come from the directory itself where it keeps them, else from the model it was made
    from, whose hash must be the recorded one.

    Args:
        directory: What `laser_apply` wrote.
        base: The model it was made from; None looks for its name beside `directory` and in the cache.

    Returns:
        The directory that was written.

    Raises:
        InputError: No such step, no base, or another model than the one recorded.
    """
    progress = heard(progress)
    checkpoint = Checkpoint.open(directory)
    lineage.verify(checkpoint.directory)
    manifest = read_manifest(checkpoint)
    target = final_name(out)
    refuse_existing(target, force)
    refuse_input(target, checkpoint.directory)
    if manifest["originals"] and base is None:
        with sole_writer(target, force):
            return _restore_from_originals(checkpoint, manifest, target, force)
    source = find_base(checkpoint, manifest, base)
    refuse_input(target, source.directory)
    refuse_lost_modules(source.directory)
    with sole_writer(target, force):
        _copy(source, target, force, progress)
    return target


def _copy(source: Checkpoint, target: Path, force: bool, progress: Progress) -> None:
    with output_directory(target, force=force, needed_bytes=source.bytes) as partial:
        for place, name in enumerate(files := files_of_model(source.directory, source.files)):
            progress("restore", place, len(files))
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.directory / name, partial / name)


def read_manifest(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `laser_apply` recorded.

    Raises:
        InputError: The directory is not one of its outputs, or of a newer format.
    """
    return read_recorded(
        checkpoint.directory / MANIFEST,
        f"{checkpoint.directory} has no {MANIFEST}: no rank reductions of kanna were applied to it",
        "give a directory that kanna laser wrote",
        "format_version",
    )


def read_recorded(path: Path, missing: str, remedy: str, version: str) -> dict[str, Any]:
    """A file of a model directory.

    Args:
        missing: What is wrong where there is none.
        version: Key of the version of its format.

    Raises:
        InputError: There is none, it is damaged, or of a newer kanna.
    """
    if not path.is_file():
        raise InputError(missing, remedy)
    data = read_json(path)
    check_version(data.get(version), path, _FORMAT, "write the checkpoint again")
    return data


def find_base(checkpoint: Checkpoint, manifest: dict[str, Any], base: str | Path | None) -> Checkpoint:
    """The model that edits were applied to, known by its hash.

    Args:
        base: Where it is; None looks for its recorded name beside the checkpoint and in the cache.

    Raises:
        InputError: It is another model, or there is none.
    """
    name, wanted = manifest["made_from"]["name"], manifest["made_from"]["hash"]
    beside = checkpoint.directory.resolve().parent / name
    for candidate in [base] if base is not None else [beside, name]:
        try:
            original = Checkpoint.open(candidate)
        except InputError:
            continue
        if lineage.base_hash(original) == wanted:
            return original
        if base is not None:
            raise InputError(
                f"{base} is not the model that {checkpoint.directory} was made from: its hash is not "
                f"{wanted[:16]}...",
                f"give the original {name}",
            )
    where = f" ({base})" if base is not None else ""
    raise InputError(
        f"the model {name} that {checkpoint.directory} was made from was not found{where}, and no originals "
        "are kept in it",
        "give its directory with --base; next time apply with --keep-originals",
    )


def _restore_from_originals(
    checkpoint: Checkpoint, manifest: dict[str, Any], target: Path, force: bool
) -> Path:
    """All tensors as they are, those that were edited as they were."""
    # Directories of the first version do not say which modules were rewritten: those with factors.
    factored = [
        edit["tensor"].rpartition(".")[0] for edit in manifest["edits"] if edit["stored"] == "factors"
    ]
    rewritten = tuple(f"{module}." for module in manifest.get("rewritten", factored))
    here = [name for name in checkpoint.tensors if not name.startswith(rewritten)]
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    if manifest.get("quantization_config") is not None:
        config["quantization_config"] = manifest["quantization_config"]
    folder = checkpoint.directory / ORIGINALS
    kept = read_headers(weight_files(folder)) if manifest["edits"] else {}
    originals = Checkpoint(folder, checkpoint.name, config, kept)
    sources = {name: originals if name in kept else checkpoint for name in dict.fromkeys([*here, *kept])}
    specs = [TensorSpec(name, source.dtype(name), source.shape(name)) for name, source in sources.items()]
    with output_directory(target, force=force, needed_bytes=sum(spec.bytes for spec in specs)) as partial:
        write_tensors(partial, specs, ((name, source.tensor(name)) for name, source in sources.items()))
        write_json(partial / "config.json", tagged_floats(config))
        copy_side_files(checkpoint.directory, partial, checkpoint.files)
        if lineage.base_hash(Checkpoint.open(partial)) != manifest["made_from"]["hash"]:
            raise InputError(
                f"what {checkpoint.directory} keeps does not give back the model it was made from",
                "restore from the original model with --base",
            )
        recorded = lineage.read(checkpoint.directory)
        if recorded is not None and len(recorded.steps) > 1:
            lineage.write(partial, recorded.base, recorded.steps[:-1])
    return target
