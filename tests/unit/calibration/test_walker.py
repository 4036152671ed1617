"""Block by block from disk gives what the whole model in memory gives."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import family_configs
import pytest
import tiny
import torch
import toy
from counting import counted
from torch import Tensor, nn

from kanna.calibration.calls import states_of
from kanna.calibration.walker import Walker
from kanna.calibration.windows import Windows
from kanna.errors import InputError
from kanna.models.inventory import Inventory

BATCH = 3
# The generic walk has to do for these; some keep their blocks in other ways than the families of the table.
OTHERS = ["stablelm", "olmo2", "cohere", "mpt", "bloom", "gpt_bigcode", "codegen", "distilbert", "modernbert"]


@contextmanager
def recorded(model: nn.Module, found: Inventory) -> Iterator[list[Tensor]]:
    """What each block of `model` puts out, in the order of their runs."""
    seen: list[Tensor] = []

    def note(_: nn.Module, __: object, output: object) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)  # type: ignore[arg-type]

    handles = [model.get_submodule(path).register_forward_hook(note) for path in found.blocks]
    yield seen
    for handle in handles:
        handle.remove()


def by_model(base: Path, found: Inventory, windows: Windows) -> list[list[Tensor]]:
    """Block outputs [batch][block] of the whole model."""
    model, outputs = tiny.whole(base), []
    for ids, mask in zip(windows.ids.split(BATCH), windows.mask.split(BATCH), strict=True):
        with torch.no_grad(), recorded(model, found) as seen:
            model(ids, attention_mask=mask.long()) if windows.padded else model(ids)
        outputs.append(seen)
    return outputs


def by_walker(base: Path, windows: Windows) -> list[list[Tensor]]:
    """The same from blocks that are loaded one at a time."""
    checkpoint, found = tiny.opened(base)
    walker = Walker(checkpoint, found)
    hidden, calls = walker.prologue(windows.batches(BATCH))
    outputs: list[list[Tensor]] = [[] for _ in hidden]
    for layer in range(len(found.blocks)):
        block = walker.load(layer)
        with torch.no_grad():
            hidden = [states_of(call.on(h).run(block)) for h, call in zip(hidden, calls[layer], strict=True)]
        for batch, states in zip(outputs, hidden, strict=True):
            batch.append(states)
    return outputs


def check(base: Path, windows: Windows) -> None:
    _, found = tiny.opened(base)
    expected, got = by_model(base, found, windows), by_walker(base, windows)
    for mask, right, left in zip(windows.mask.split(BATCH), expected, got, strict=True):
        assert len(left) == len(right) == len(found.blocks)
        for a, b in zip(left, right, strict=True):
            assert a.shape == b.shape
            assert a[mask].isfinite().all()
            torch.testing.assert_close(a[mask], b[mask], rtol=1e-5, atol=1e-5 * float(b[mask].abs().max()))


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("name", [*family_configs.FAMILIES, *OTHERS])
def test_every_block_of_every_family_gives_the_whole_models_states(
    name: str, padded: bool, tmp_path: Path
) -> None:
    check(tiny.family(name, tmp_path / name), tiny.windows(padded=padded))


@pytest.mark.parametrize("name", ["llama", "gptj", "gemma3", "falcon_7b"])
def test_half_precision_on_disk_is_computed_in_float32(name: str, tmp_path: Path) -> None:
    check(tiny.family(name, tmp_path / name, dtype=torch.bfloat16), tiny.windows(padded=True))


def test_shards(tmp_path: Path) -> None:
    base = tiny.family("llama", tmp_path / "llama", max_shard_size="10KB")
    assert len(list(base.glob("*.safetensors"))) > 2
    check(base, tiny.windows())


def test_files_of_the_base_model_lack_the_prefix(tmp_path: Path) -> None:
    base = tiny.family("gpt2", tmp_path / "gpt2")
    tiny.rename(base, lambda name: name.removeprefix("transformer."))
    check(base, tiny.windows())


@pytest.mark.parametrize("name", sorted(toy.FAMILIES))
def test_blocks_in_forms_of_kanna(name: str, tmp_path: Path) -> None:
    small = toy.compress(toy.save_base(name, tmp_path / "base"), tmp_path / "small", toy.FAMILIES[name])
    checkpoint, found = tiny.opened(small)
    windows = tiny.windows(padded=name == "bert")
    expected, got = by_model(small, found, windows), by_walker(small, windows)
    for mask, right, left in zip(windows.mask.split(BATCH), expected, got, strict=True):
        for a, b in zip(left, right, strict=True):
            torch.testing.assert_close(a[mask], b[mask], rtol=1e-6, atol=1e-6)
    walker = Walker(checkpoint, found)
    assert walker.streams
    for layer, path in enumerate(found.blocks):
        block, whole = walker.load(layer), tiny.whole(small).get_submodule(path)
        assert {n: t.dtype for n, t in block.state_dict().items()} == {
            n: t.dtype for n, t in whole.state_dict().items()
        }


def test_forms_in_half_precision_are_computed_in_float32(tmp_path: Path) -> None:
    base = toy.save_base("gpt2", tmp_path / "base")
    toy.tiny("gpt2").to(torch.bfloat16).save_pretrained(base)
    small = toy.compress(base, tmp_path / "small", toy.FAMILIES["gpt2"])
    check(small, tiny.windows())


def test_weights_outside_the_blocks_are_read_once(tmp_path: Path) -> None:
    base = tiny.family("llama", tmp_path / "llama")
    checkpoint, found = tiny.opened(base)
    walker = Walker(checkpoint, found)
    with counted() as counts:
        for _ in range(2):
            walker.prologue(tiny.windows().batches(BATCH))
    once = (
        checkpoint.tensors["model.embed_tokens.weight"].bytes + checkpoint.tensors["model.norm.weight"].bytes
    )
    assert counts.of(base).read == once


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_a_model_in_memory_is_walked_without_reading_and_left_as_it_is(name: str, tmp_path: Path) -> None:
    base, windows = tiny.family(name, tmp_path / name), tiny.windows()
    checkpoint, found = tiny.opened(base)
    model, expected = tiny.whole(base), by_walker(base, windows)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with counted() as counts:
        walker = Walker(checkpoint, found, whole=lambda: model)
        hidden, calls = walker.prologue(windows.batches(BATCH))
        for layer in range(len(found.blocks)):
            block = walker.load(layer)
            assert not any(parameter.requires_grad for parameter in block.parameters())
            hidden = [states_of(call.on(h).run(block)) for h, call in zip(hidden, calls[layer], strict=True)]
            assert all(torch.equal(a, batch[layer]) for a, batch in zip(hidden, expected, strict=True))
    assert counts.of(base).read == 0 and not walker.streams
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_only_one_block_is_in_memory(tmp_path: Path) -> None:
    checkpoint, found = tiny.opened(tiny.family("llama", tmp_path / "llama"))
    walker = Walker(checkpoint, found)
    walker.prologue(tiny.windows().batches(BATCH))
    walker.load(1)
    assert walker.streams
    blocks = [walker.model.get_submodule(path) for path in found.blocks]
    assert all(parameter.is_meta for block in blocks for parameter in block.parameters())


def test_files_laid_out_unlike_the_model_are_loaded_whole(tmp_path: Path) -> None:
    checkpoint, found = tiny.opened(tiny.family("mixtral", tmp_path / "mixtral"))
    walker = Walker(checkpoint, found)
    assert not walker.streams
    assert not any(parameter.requires_grad for parameter in walker.load(0).parameters())


def test_a_loaded_block_is_a_copy(tmp_path: Path) -> None:
    for name in ("llama", "mixtral"):
        checkpoint, found = tiny.opened(tiny.family(name, tmp_path / name))
        walker = Walker(checkpoint, found)
        first = walker.load(0)
        before = [parameter.clone() for parameter in first.parameters()]
        with torch.no_grad():
            for parameter in first.parameters():
                parameter.zero_()
        assert all(map(torch.equal, before, walker.load(0).parameters()))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    base = tiny.family("llama", tmp_path / "llama")
    missing = "model.layers.1.post_attention_layernorm.weight"
    tiny.rename(base, lambda name: None if name == missing else name)
    checkpoint, found = tiny.opened(base)
    with pytest.raises(InputError, match=r"layers\.1\.post_attention_layernorm"):
        Walker(checkpoint, found).load(1)
