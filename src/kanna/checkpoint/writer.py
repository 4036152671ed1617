"""Writing a checkpoint directory: whole or not at all, one tensor in memory, equal input to equal bytes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import torch

from kanna.checkpoint.exchange import exchange
from kanna.checkpoint.outputs import InTheWay, final_name, identity, refuse_replacing
from kanna.checkpoint.reader import INDEX, SINGLE
from kanna.checkpoint.safetensors_format import Layout, TensorSpec, layout
from kanna.errors import InputError, KannaError

SHARD_BYTES = 5_000_000_000
_METADATA = {"format": "pt"}
# Room for the small files beside the weights.
_MARGIN_BYTES = 1_000_000


@dataclass(frozen=True)
class Shard:
    """One safetensors file to be written."""

    file: str
    specs: tuple[TensorSpec, ...]
    layout: Layout


@contextlib.contextmanager
def output_directory(
    out: str | Path,
    *,
    force: bool = False,
    needed_bytes: int = 0,
    refuse: Callable[[Path], None] = refuse_replacing,
) -> Iterator[Path]:
    """A new directory to fill, which takes the name `out` when the block ends without an exception.

    It is a hidden sibling of `out` until then; on an exception it is removed, and after a kill the next run
    for the same `out` on this machine removes it. With `force` the old directory keeps its name until the
    new one is complete; then both change places at once, so that one of them has the name at every moment.

    Args:
        out: The final name. Missing parents are made.
        force: Replace an `out` that exists, if it may be.
        needed_bytes: Checked against the free space before anything is written.
        refuse: Raises InputError for a directory that must not be replaced.

    Raises:
        InTheWay: `out` exists, must not be replaced (with `force`), or came to be while the block ran.
        InputError: It cannot be made, or no space is left.
    """
    out = final_name(out)
    put_back(out)
    _check_output(out, force, refuse)
    before = identity(out)
    with _made_parents(out.parent), _plain_errors(out):
        _remove_leftovers(out)
        free = shutil.disk_usage(out.parent).free
        if needed_bytes + _MARGIN_BYTES > free:
            raise _no_space(out.parent, f"{needed_bytes:,} bytes are needed and {free:,} are free")
        partial = _sibling(out, "partial")
        partial.mkdir()
        try:
            yield partial
            # All of it on the disk, so that the rename never shows less than the whole.
            for path in (*sorted(partial.rglob("*")), partial):
                _sync(path)
            _put_in_place(partial, out, before, refuse)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def put_back(out: Path) -> None:
    """Give a directory its name again that a run had set aside when it was killed.

    Only where the system cannot exchange two names is there a moment in which that can happen.
    """
    if os.path.lexists(out) or not out.parent.is_dir():
        return
    for path, ending in _left_behind(out):
        if ending == "old":
            path.rename(out)
            return


def plan_shards(specs: Sequence[TensorSpec], max_bytes: int = SHARD_BYTES) -> tuple[Shard, ...]:
    """Split tensors, in the order given, into files of at most `max_bytes` of data (or of one tensor)."""
    groups: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if groups[-1] and filled + spec.bytes > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(spec)
        filled += spec.bytes
    count = len(groups)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    names = [SINGLE] if count == 1 else names
    return tuple(Shard(n, tuple(g), layout(g, _METADATA)) for n, g in zip(names, groups, strict=True))


def write_tensors(
    directory: Path,
    specs: Sequence[TensorSpec],
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    max_shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the safetensors files, and their index where there are several.

    The headers come from `specs`, so each tensor is written when it arrives and may be forgotten: memory is
    one tensor. The tensors may come in any order; the bytes do not depend on it.

    Raises:
        KannaError: A tensor is missing, comes twice, is not in `specs`, or has another shape or dtype.
    """
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise KannaError(f"tensor {twice!r} is planned twice")
    shards = plan_shards(specs, max_shard_bytes)
    place = {spec.name: (shard, spec) for shard in shards for spec in shard.specs}
    with contextlib.ExitStack() as stack:
        files = {shard.file: stack.enter_context(_start_shard(directory, shard)) for shard in shards}
        for name, tensor in tensors:
            if name not in place:
                raise KannaError(f"tensor {name!r} came unexpected or twice")
            shard, spec = place.pop(name)
            came = spec_of(name, tensor)
            if came != spec:
                raise KannaError(
                    f"tensor {name!r} came as {came.dtype} {came.shape}, planned as {spec.dtype} {spec.shape}"
                )
            files[shard.file].seek(shard.layout.offsets[name])
            write_data(files[shard.file], tensor_bytes(tensor))
    if place:
        raise KannaError(f"{len(place)} tensors never came, the first is {next(iter(place))!r}")
    if len(shards) > 1:
        files_of = {spec.name: shard.file for shard in shards for spec in shard.specs}
        total = sum(spec.bytes for spec in specs)
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": files_of})


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Sorted keys, two spaces, UTF-8: equal data give equal bytes."""
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")


def spec_of(name: str, tensor: torch.Tensor) -> TensorSpec:
    """What a header needs to know of a tensor."""
    return TensorSpec(name, tensor.dtype, tuple(tensor.shape))


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The data of a tensor as a file holds them: contiguous, little endian."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    if flat.numel() == 0:
        return memoryview(b"")
    return flat.view(torch.uint8).numpy().data


def write_data(file: BinaryIO, data: memoryview) -> None:
    """Write all of `data` where the file stands."""
    file.write(data)


@contextlib.contextmanager
def _start_shard(directory: Path, shard: Shard) -> Iterator[BinaryIO]:
    """The file of a shard with its header written and its final size set."""
    with (directory / shard.file).open("wb") as file:
        write_data(file, memoryview(shard.layout.header))
        file.truncate(shard.layout.size)
        yield file


def _check_output(out: Path, force: bool, refuse: Callable[[Path], None]) -> None:
    if not os.path.lexists(out):
        return
    if not force:
        raise InTheWay(f"{out} exists already", "choose another directory, or replace it with --force")
    refuse(out)


@contextlib.contextmanager
def _made_parents(parent: Path) -> Generator[None]:
    """Make missing parent directories; on an exception remove those that were made."""
    missing = [p for p in (parent, *parent.parents) if not p.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{parent} cannot be made: {error.strerror}", "choose another directory") from error
    try:
        yield
    except BaseException:
        for made in missing:
            with contextlib.suppress(OSError):
                made.rmdir()
        raise


@contextlib.contextmanager
def _plain_errors(out: Path) -> Generator[None]:
    """Say what the operating system refused in words of the user's."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(out.parent, "the disk became full while writing") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise InputError(
                f"{out} cannot be written: {error.strerror}", "choose another directory"
            ) from error
        raise


def _no_space(parent: Path, what: str) -> InputError:
    return InputError(
        f"no space left under {parent}: {what}; nothing was written",
        "free some space or choose another disk",
    )


def _host() -> str:
    """This machine, in temporary names only."""
    return re.sub(r"[^A-Za-z0-9]", "_", platform.node()) or "host"


def _sibling(out: Path, ending: str) -> Path:
    """A hidden name of this process's own, beside the output."""
    return out.with_name(f".{out.name}.{_host()}-{os.getpid()}.{ending}")


def _left_behind(out: Path) -> Iterator[tuple[Path, str]]:
    """(path, ending) of what runs that were killed left; those of other machines cannot be judged from here.

    What has this process's own number is of one before it: containers number theirs alike.
    """
    pattern = re.compile(rf"\.{re.escape(out.name)}\.{re.escape(_host())}-(\d+)\.(partial|old)")
    for path in sorted(out.parent.iterdir()):
        match = pattern.fullmatch(path.name)
        if match is not None and not _runs(int(match[1])):
            yield path, match[2]


def _runs(process: int) -> bool:
    """Whether another process has this number."""
    return process != os.getpid() and psutil.pid_exists(process)


def _remove_leftovers(out: Path) -> None:
    """Delete what runs that were killed left behind."""
    for path, _ in _left_behind(out):
        shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(
    partial: Path, out: Path, before: tuple[int, int] | None, refuse: Callable[[Path], None]
) -> None:
    """Give the new directory its name, if what has it is still what was there `before`, or nothing has."""
    if os.path.lexists(out):
        if identity(out) != before:
            raise _came_meanwhile(out)
        refuse(out)
        _replace(partial, out, before)
    else:
        _name(partial, out)
    _sync(out.parent)


def _replace(partial: Path, out: Path, before: tuple[int, int] | None) -> None:
    """The old directory is `partial` afterwards, or gone."""
    if exchange(partial, out):
        if identity(partial) != before:
            exchange(partial, out)
            raise _came_meanwhile(out)
        return
    old = _sibling(out, "old")
    out.rename(old)
    try:
        _name(partial, out)
    except BaseException:
        if not os.path.lexists(out):
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _name(partial: Path, out: Path) -> None:
    try:
        partial.rename(out)
    except OSError as error:
        if os.path.lexists(out):
            raise _came_meanwhile(out) from error
        raise


def _came_meanwhile(out: Path) -> InTheWay:
    return InTheWay(
        f"{out} was put there by somebody else while this run was writing it",
        "choose another directory, or move that away and repeat the command",
    )
