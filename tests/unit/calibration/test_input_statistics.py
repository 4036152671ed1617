"""Statistics of inputs and gradients, against plain float64 sums over whole models."""

from pathlib import Path

import naive
import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional

from kanna.calibration.statistics import InputStatistics, Reads
from kanna.calibration.walker import Walker
from kanna.calibration.windows import Windows
from kanna.methods.lowrank.gradients import row_metric
from kanna.methods.lowrank.in_memory import output_gradients
from kanna.methods.lowrank.survey import gather
from kanna.models.matrix import Matrix
from kanna.runs.workspace import Stream

BATCH = 3


def gathered(
    base: Path, windows: Windows, scratch: Path
) -> tuple[dict[str, InputStatistics], tuple[Matrix, ...]]:
    """Input statistics of all blocks by module path, as the survey gathers them."""
    checkpoint, found = tiny.opened(base)
    walker = Walker(checkpoint, found)
    batches = walker.batches(windows, BATCH)
    masks = [mask for _, mask in batches]
    result: dict[str, InputStatistics] = {}
    with walker.walk(batches, [lambda layer: Stream(scratch / str(layer))]) as (passage,):
        for layer, path in enumerate(found.blocks):
            modules = [matrix.module for matrix in found.compressible if matrix.layer == layer]
            reads = Reads()
            gather(walker.load(layer), path, modules, passage, masks, reads)
            passage.turn()
            result |= reads.of
    return result, found.compressible


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "phi", "bert_mlm", "qwen2_moe"])
def test_they_are_the_sums_over_tokens(name: str, padded: bool, tmp_path: Path) -> None:
    base, windows = tiny.family(name, tmp_path / name), tiny.windows(padded=padded)
    statistics, matrices = gathered(base, windows, tmp_path)
    x = naive.inputs(tiny.whole(base), matrices, windows)
    for matrix in matrices:
        found, expected = statistics[matrix.module], x[matrix.name]
        assert found.count == windows.tokens == len(expected)
        assert found.gram.dtype == torch.float64
        close(found.gram, expected.T @ expected)
        close(found.total, expected.sum(0))
        close(found.absolute, expected.abs().sum(0))
        centred = expected - expected.mean(0)
        # A difference of sums whose products were rounded to float32.
        scale = float(expected.square().sum(0).max())
        torch.testing.assert_close(found.centred_gram, centred.T @ centred, rtol=0, atol=1e-6 * scale)


def test_matrices_of_one_input_share_their_statistics(tmp_path: Path) -> None:
    statistics, matrices = gathered(tiny.family("llama", tmp_path / "llama"), tiny.windows(), tmp_path)
    assert len(matrices) == 7 * 3 and len({id(sums) for sums in statistics.values()}) == 4 * 3


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon_7b"])
def test_gradients_are_those_of_autograd_token_by_token(name: str, padded: bool, tmp_path: Path) -> None:
    base, windows = tiny.family(name, tmp_path / name), tiny.windows(4, 9, padded=padded)
    _, found = tiny.opened(base)
    model = tiny.whole(base).requires_grad_(False)
    modules = list(dict.fromkeys(matrix.module for matrix in found.compressible))
    *_, (_, sums) = output_gradients(model, modules, windows.batches(BATCH), 0, fisher=True)
    second, fisher, count = by_autograd(model, modules, windows)
    for path in modules:
        assert sums[path].count == count == windows.tokens
        close(sums[path].second, second[path], 1e-4)
        close(sums[path].fisher, fisher[path], 1e-4)
    for matrix in found.compressible:
        part = row_metric(sums[matrix.module].second, matrix)
        assert part.shape == (matrix.out_features, matrix.out_features)
        if matrix.view.rows is not None:
            rows = matrix.view.rows
            index = [rows.start + i * rows.stride + j for i in range(rows.count) for j in range(rows.block)]
            assert part.equal(sums[matrix.module].second[index][:, index])


def by_autograd(
    model: nn.Module, modules: list[str], windows: Windows
) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Sums of g g^T per token and of (dL/dW)^2 per row and window, with one window at a time in float64."""
    model = model.double()
    linears = {path: model.get_submodule(path) for path in modules}
    second = {path: torch.zeros(()).double() for path in modules}
    fisher = {path: torch.zeros(()).double() for path in modules}
    count = 0
    for linear in linears.values():
        linear.weight.requires_grad_(True)  # type: ignore[union-attr]
    for ids, mask in zip(windows.ids, windows.mask, strict=True):
        outputs: dict[str, Tensor] = {}
        handles = [keep_output(linear, path, outputs) for path, linear in linears.items()]
        size = int(mask.sum())
        model.zero_grad()
        logits = model(ids[None, :size]).logits[0]
        functional.cross_entropy(logits[:-1], ids[1:size], reduction="sum").backward()
        for path, linear in linears.items():
            for gradient in outputs[path].grad.reshape(size, -1):  # type: ignore[union-attr]
                second[path] = second[path] + torch.outer(gradient, gradient)
            squares = linear.weight.grad.square()  # type: ignore[union-attr, operator]
            fisher[path] = fisher[path] + squares.sum(1 if isinstance(linear, nn.Linear) else 0)
        count += size
        for handle in handles:
            handle.remove()
    return second, fisher, count


def keep_output(
    linear: nn.Module, path: str, outputs: dict[str, Tensor]
) -> torch.utils.hooks.RemovableHandle:
    def note(_: nn.Module, __: object, output: Tensor) -> None:
        output.retain_grad()
        outputs[path] = output

    return linear.register_forward_hook(note)


def test_a_model_that_others_use_too_is_left_as_it_was(tmp_path: Path) -> None:
    base, windows = tiny.family("llama", tmp_path / "llama"), tiny.windows()
    _, found = tiny.opened(base)
    modules = list(dict.fromkeys(matrix.module for matrix in found.compressible))
    shared = tiny.whole(base)
    frozen = next(shared.parameters()).requires_grad_(False)
    *_, (_, sums) = output_gradients(shared, modules, windows.batches(BATCH), 0, fisher=True)
    *_, (_, own) = output_gradients(
        tiny.whole(base).requires_grad_(False), modules, windows.batches(BATCH), 0, True
    )
    assert all(torch.equal(sums[path].second, own[path].second) for path in modules)
    assert all(parameter.requires_grad != (parameter is frozen) for parameter in shared.parameters())
    assert all(parameter.grad is None for parameter in shared.parameters())
    assert not any(module._forward_hooks for module in shared.modules())


@pytest.mark.parametrize(
    ("length", "batch", "expected"), [(256, 8, 8), (2048, 8, 1), (4096, 8, 1), (1024, 8, 2), (64, 4, 4)]
)
def test_a_backward_pass_holds_a_bounded_number_of_tokens(length: int, batch: int, expected: int) -> None:
    ids = torch.zeros(16, length, dtype=torch.long)
    assert Windows(ids, torch.ones_like(ids, dtype=torch.bool)).at_once(batch) == expected


def test_the_batch_of_the_backward_pass_does_not_change_the_sums(tmp_path: Path) -> None:
    base, windows = tiny.family("llama", tmp_path / "llama"), tiny.windows(padded=True)
    _, found = tiny.opened(base)
    modules = list(dict.fromkeys(matrix.module for matrix in found.compressible))
    model = tiny.whole(base).requires_grad_(False)
    *_, (_, one) = output_gradients(model, modules, windows.batches(1), 0, fisher=True)
    *_, (_, many) = output_gradients(model, modules, windows.batches(len(windows.ids)), 0, fisher=True)
    for path in modules:
        assert one[path].count == many[path].count
        close(one[path].second, many[path].second, 1e-4)
        close(one[path].fisher, many[path].fisher, 1e-4)


@pytest.mark.parametrize("name", ["bert_mlm", "bert_classifier", "roberta_classifier", "mixtral"])
def test_every_kind_of_model_has_gradients_and_padding_has_none(name: str, tmp_path: Path) -> None:
    base, windows = tiny.family(name, tmp_path / name), tiny.windows(padded=True)
    _, found = tiny.opened(base)
    modules = list(dict.fromkeys(matrix.module for matrix in found.compressible))
    model = tiny.whole(base).requires_grad_(False)
    longer = Windows(functional.pad(windows.ids, (0, 4), value=7), functional.pad(windows.mask, (0, 4)))
    runs = []
    for seed, used in ((0, windows), (0, windows), (1, windows)):
        *_, (_, sums) = output_gradients(model, modules, used.batches(BATCH), seed, fisher=False)
        runs.append(sums)
    first, again, other = runs
    for path in modules:
        assert first[path].count == windows.tokens
        assert float(first[path].second.trace()) > 0 and first[path].second.isfinite().all()
        assert first[path].second.equal(again[path].second)
    if name == "mixtral":  # nothing is drawn for a causal model, so the seed and more padding change nothing
        *_, (_, padded) = output_gradients(model, modules, longer.batches(BATCH), 0, fisher=False)
        for path in modules:
            assert first[path].second.equal(other[path].second)
            close(padded[path].second, first[path].second, 1e-4)


def close(got: Tensor, expected: Tensor, rtol: float = 1e-5) -> None:
    torch.testing.assert_close(got, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))
