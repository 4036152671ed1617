"""Packed codes against a stream of bits made one by one, and against words that others give."""

import pytest
import torch

from kanna.errors import InputError
from kanna.quant.packing import pack, unpack, words


def stream(row: list[int], bits: int, count: int) -> list[int]:
    """The words of one row, from the number that its codes are as digits."""
    whole = sum(code << (place * bits) for place, code in enumerate(row))
    return [(whole >> (32 * word)) & 0xFFFFFFFF for word in range(count)]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 64, 96, 100])
def test_words_are_the_stream_and_give_the_codes_back(bits: int, columns: int) -> None:
    codes = torch.randint(0, 1 << bits, (3, columns), generator=torch.Generator().manual_seed(bits))
    codes[1] = (1 << bits) - 1
    packed = pack(codes, bits)
    assert packed.dtype == torch.int32 and packed.shape == (3, words(columns, bits))
    assert (packed.long() & 0xFFFFFFFF).tolist() == [
        stream(row, bits, packed.shape[1]) for row in codes.tolist()
    ]
    assert torch.equal(unpack(packed, bits, columns), codes.to(torch.uint8))


def test_words_that_others_give() -> None:
    """compressed-tensors on the signed codes -8..-1 of 4 bits and 1..4 of 8 bits."""
    assert pack(torch.arange(8)[None], 4).tolist() == [[1985229328]]
    assert pack(torch.tensor([[1, 2, 3, 4]]) + 128, 8).tolist() == [[-2071756159]]


def test_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="do not fit into 2 bits"):
        pack(torch.tensor([[4]]), 2)
    with pytest.raises(InputError, match="do not hold 65 codes"):
        unpack(torch.zeros(1, 8, dtype=torch.int32), 4, 65)
    with pytest.raises(InputError, match="9 bits"):
        pack(torch.zeros(1, 1), 9)
