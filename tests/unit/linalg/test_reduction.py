"""Reduced matrices and their controls, against numpy and naive selections."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kanna.errors import InputError
from kanna.linalg import reduction
from kanna.linalg.decomposition import decompose
from kanna.linalg.reduction import MODES, reduce, row_blocks
from kanna.methods.laser.ranks import block_ranks

SHAPES = [(24, 40), (40, 24), (30, 30), (1, 9), (9, 1)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.05 * torch.randn(*shape, dtype=torch.float64, generator=generator)).to(dtype)


def components(weight: Tensor, indices: Any) -> Tensor:
    u, s, vh = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    return torch.from_numpy((u[:, indices] * s[indices]) @ vh[indices])


@pytest.fixture
def no_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(weight: Tensor) -> None:
        raise AssertionError("nothing was to be decomposed")

    monkeypatch.setattr(reduction, "decompose", refuse)


@pytest.mark.parametrize("shape", SHAPES)
def test_top_and_bottom_are_the_components_that_numpy_finds(shape: tuple[int, int]) -> None:
    weight, r = draw(1, *shape), min(shape)
    for rank in {0, 1, r // 2, r - 1, r}:
        torch.testing.assert_close(
            reduce(weight, rank), components(weight, slice(0, rank)), atol=1e-12, rtol=0
        )
        # Indices rank..r-1, and not 0..r-rank-1.
        torch.testing.assert_close(
            reduce(weight, rank, "bottom"), components(weight, slice(rank, r)), atol=1e-12, rtol=0
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.usefixtures("no_decomposition")
def test_nothing_done_is_the_very_same_tensor(
    dtype: torch.dtype, shape: tuple[int, int], blocks: int
) -> None:
    if blocks > shape[0]:
        pytest.skip("fewer rows than blocks")
    weight, full = draw(2, *shape, dtype=dtype), min(shape)
    for mode in ("top", "random", "magnitude", "noise"):
        assert reduce(weight, full, mode, blocks=blocks) is weight
    assert reduce(weight, 0, "bottom", blocks=blocks) is weight
    for rank in range(full + 1):
        assert reduce(weight, rank, "none", blocks=blocks) is weight


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.usefixtures("no_decomposition")
def test_everything_gone_is_zero(shape: tuple[int, int], blocks: int) -> None:
    if blocks > shape[0]:
        pytest.skip("fewer rows than blocks")
    weight, full = draw(3, *shape, dtype=torch.bfloat16), min(shape)
    gone = [reduce(weight, 0, mode, blocks=blocks) for mode in ("top", "random", "magnitude", "noise")]
    gone += [reduce(weight, full, "bottom", blocks=blocks)]
    gone += [reduce(weight, rank, "zero", blocks=blocks) for rank in range(full + 1)]
    for one in gone:
        assert torch.equal(one, torch.zeros_like(weight)) and one.dtype == weight.dtype


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_shape_and_dtype_stay_and_the_weight_is_left_alone(mode: str, dtype: torch.dtype) -> None:
    weight = draw(4, 12, 20, dtype=dtype)
    before = weight.clone()
    for blocks in (1, 5):
        found = reduce(weight, 2, mode, seed=3, blocks=blocks)
        assert found.shape == weight.shape and found.dtype == dtype and torch.isfinite(found).all()
        assert torch.equal(found, reduce(weight.clone(), 2, mode, seed=3, blocks=blocks))
    assert torch.equal(weight, before)


@pytest.mark.parametrize("shape", SHAPES)
def test_random_keeps_as_many_distinct_components_of_the_matrix(shape: tuple[int, int]) -> None:
    weight, r = draw(5, *shape), min(shape)
    parts = decompose(weight)
    for rank in range(1, r):
        for seed in (0, 1):
            kept = (parts.left.T @ reduce(weight, rank, "random", seed=seed) @ parts.right.T).numpy()
            weights = np.diagonal(kept) / parts.values.numpy()
            np.testing.assert_allclose(kept, np.diag(np.diagonal(kept)), atol=1e-12)
            assert np.sort(weights).round(9).tolist() == [0.0] * (r - rank) + [1.0] * rank


def test_random_draws_each_component_alike_and_by_its_seed() -> None:
    weight = draw(6, 10, 14)
    parts = decompose(weight)
    counts = np.zeros(10)
    for seed in range(400):
        kept = reduce(weight, 3, "random", seed=seed, parts=parts)
        counts += (np.diagonal((parts.left.T @ kept @ parts.right.T).numpy()) > 1e-9).astype(int)
    # Binomial(400, 0.3): mean 120, standard deviation 9.2.
    assert counts.sum() == 1200 and (abs(counts - 120) < 5 * 9.2).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_magnitude_keeps_the_largest_entries(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight, r = draw(7, *shape, dtype=dtype), min(shape)
    for rank in range(1, r):
        found = reduce(weight, rank, "magnitude")
        kept = rank * max(shape)
        order = np.argsort(-weight.double().abs().numpy().ravel(), kind="stable")[:kept]
        expected = np.zeros(weight.numel())
        expected[order] = weight.double().numpy().ravel()[order]
        np.testing.assert_array_equal(found.double().numpy().ravel(), expected)
        assert int((found != 0).sum()) == kept


def test_magnitude_keeps_the_exact_share_where_all_entries_are_alike() -> None:
    found = reduce(-torch.ones(6, 10), 2, "magnitude")
    assert int((found == -1).sum()) == 20 and int((found == 0).sum()) == 40
    assert int((reduce(torch.zeros(6, 10), 2, "magnitude") != 0).sum()) == 0


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (30, 30)])
def test_noise_is_gaussian_of_the_norm_that_top_keeps(shape: tuple[int, int]) -> None:
    weight = draw(8, *shape)
    for rank in (1, 7, 20):
        found = reduce(weight, rank, "noise", seed=4)
        assert float(found.norm()) == pytest.approx(float(components(weight, slice(0, rank)).norm()))
        entries = (found / found.std()).flatten()
        assert abs(float(entries.mean())) < 0.2 and 2.4 < float(entries.pow(4).mean()) < 3.8
        assert abs(float((found * weight).sum() / found.norm() / weight.norm())) < 0.2
        assert not torch.equal(found, reduce(weight, rank, "noise", seed=5))


@pytest.mark.parametrize("mode", ["top", "bottom", "random", "noise"])
def test_a_decomposition_at_hand_is_used(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = draw(9, 20, 30, dtype=torch.float32)
    parts, expected = decompose(weight), reduce(weight, 6, mode, seed=2)
    monkeypatch.setattr(reduction, "decompose", lambda _: pytest.fail("decomposed again"))
    assert torch.equal(reduce(weight, 6, mode, seed=2, parts=parts), expected)


@pytest.mark.parametrize(("rows", "blocks"), [(12, 3), (13, 3), (14, 3), (7, 7), (1, 1), (1000, 7)])
def test_row_blocks_cover_all_rows_in_order_and_differ_by_one_at_most(rows: int, blocks: int) -> None:
    cut = row_blocks(rows, blocks)
    assert [row for one in cut for row in range(rows)[one]] == list(range(rows))
    sizes = [one.stop - one.start for one in cut]
    assert len(cut) == blocks and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("blocks", [0, -1, 6])
def test_more_blocks_than_rows_are_refused(blocks: int) -> None:
    with pytest.raises(InputError, match="cannot be cut"):
        row_blocks(5, blocks)
    with pytest.raises(InputError, match="cannot be cut"):
        reduce(draw(10, 5, 9), 1, blocks=blocks)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_block_is_the_plain_truncation(shape: tuple[int, int]) -> None:
    weight = draw(11, *shape, dtype=torch.float32)
    for rank in range(min(shape) + 1):
        for mode in MODES:
            plain = reduce(weight, rank, mode, seed=1)
            assert torch.equal(reduce(weight, [rank], mode, seed=1, blocks=1), plain)


@pytest.mark.parametrize("shape", [(24, 40), (41, 24), (31, 30)])
@pytest.mark.parametrize("blocks", [2, 3, 5])
def test_each_block_is_truncated_on_its_own(shape: tuple[int, int], blocks: int) -> None:
    weight = draw(12, *shape)
    pieces = np.array_split(weight.numpy(), blocks)
    # Sizes differ from numpy's where they do not divide: ours spread the longer blocks.
    cut = [weight[one] for one in row_blocks(shape[0], blocks)]
    assert sorted(len(one) for one in cut) == sorted(len(one) for one in pieces)
    for mode, part in (("top", slice(0, 4)), ("bottom", slice(4, None))):
        expected = torch.cat([components(one, part) for one in cut])
        torch.testing.assert_close(reduce(weight, 4, mode, blocks=blocks), expected, atol=1e-12, rtol=0)
    ranks = block_ranks(0.5, *shape, blocks)
    assert ranks == [min(len(one), shape[1]) // 2 for one in cut]
    expected = torch.cat([components(one, slice(0, k)) for one, k in zip(cut, ranks, strict=True)])
    torch.testing.assert_close(reduce(weight, ranks, blocks=blocks), expected, atol=1e-12, rtol=0)
    assert reduce(weight, block_ranks(1, *shape, blocks), blocks=blocks) is weight


def test_blocks_that_have_no_more_stay_as_they_are() -> None:
    weight = draw(13, 10, 30, dtype=torch.float16)  # blocks of 3, 3 and 4 rows
    found = reduce(weight, 3, blocks=3)
    changed = [not torch.equal(found[one], weight[one]) for one in row_blocks(10, 3)]
    assert changed == [one.stop - one.start > 3 for one in row_blocks(10, 3)] and sum(changed) == 1


def test_blocks_draw_on_their_own() -> None:
    weight = draw(14, 5, 8).repeat(2, 1)
    for mode in ("random", "noise"):
        first, second = reduce(weight, 2, mode, seed=8, blocks=2).split(5)
        assert not torch.allclose(first, second)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 3e-4), (torch.bfloat16, 3e-3)])
@pytest.mark.parametrize("shape", [(120, 200), (200, 120), (128, 128)])
def test_half_precision_is_rounded_once_at_the_end(
    dtype: torch.dtype, bound: float, shape: tuple[int, int]
) -> None:
    weight = draw(15, *shape, dtype=dtype)
    for rank in (1, 12, 100):
        exact = components(weight, slice(0, rank))
        found = reduce(weight, rank)
        assert float((found.double() - exact).norm() / exact.norm()) <= bound
        # In the file the rank shows at a tolerance of its digits only; at 1e-6 rounding looks like signal.
        values = np.linalg.svd(found.double().numpy(), compute_uv=False)
        assert values[rank] <= values[0] * max(shape) * torch.finfo(dtype).eps
        assert (values > 1e-6 * values[0]).sum() > rank


def test_float32_error_is_the_optimum() -> None:
    weight = draw(16, 80, 120, dtype=torch.float32)
    values = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    for rank in (1, 8, 40, 79):
        error = float((weight.double() - reduce(weight, rank).double()).square().sum())
        assert error == pytest.approx(
            float(np.square(values[rank:]).sum()), abs=1e-5 * float(np.square(values).sum())
        )


@pytest.mark.parametrize("mode", ["top", "bottom", "random", "magnitude", "noise"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_are_not_finite_are_refused(mode: str, bad: float, dtype: torch.dtype) -> None:
    weight = draw(17, 6, 8, dtype=dtype)
    weight[4, 1] = bad
    for blocks in (1, 2):
        with pytest.raises(InputError, match="NaN or infinite"):
            reduce(weight, 2, mode, blocks=blocks)


def test_a_result_that_overflows_its_dtype_is_refused() -> None:
    weight = torch.tensor([[60000.0, 60000.0], [60000.0, 30000.0]])
    assert float(reduce(weight, 1).max()) > 65520
    with pytest.raises(InputError, match="too large"):
        reduce(weight.half(), 1)
    assert torch.isfinite(reduce(weight.bfloat16(), 1)).all()


def test_requests_that_make_no_sense_are_refused() -> None:
    weight = draw(18, 6, 8)
    with pytest.raises(InputError, match="no mode 'upside'"):
        reduce(weight, 2, "upside")
    for rank in (-1, 7):
        for mode in ("top", "bottom", "zero", "magnitude"):
            with pytest.raises(InputError, match=f"rank {rank} does not fit"):
                reduce(weight, rank, mode)
    with pytest.raises(InputError, match="rank -1"):
        reduce(weight, -1, blocks=2)
    with pytest.raises(InputError, match="rank 4"):
        reduce(weight, [1, 4], blocks=2)
    with pytest.raises(InputError, match="3 ranks were given for 2 blocks"):
        reduce(weight, [1, 1, 1], blocks=2)
    with pytest.raises(InputError, match="2 ranks were given for one block"):
        reduce(weight, [1, 1])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["float16", "float32"])
def test_a_cuda_device_gives_the_same(mode: str, name: str) -> None:
    weight = draw(19, 40, 60, dtype=getattr(torch, name))
    for blocks in (1, 3):
        found = reduce(weight.cuda(), 5, mode, seed=6, blocks=blocks)
        assert found.device.type == "cuda" and found.dtype == weight.dtype
        torch.testing.assert_close(found.cpu(), reduce(weight, 5, mode, seed=6, blocks=blocks))
