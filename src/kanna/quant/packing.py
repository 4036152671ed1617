"""Codes of a few bits in words of 32: one stream along a row, the lowest bit first.

Code i of a row holds the bits i b .. (i + 1) b - 1 of the row's stream; bit j of the stream is bit j % 32 of
word j // 32. 32 codes fill b words exactly, so these are laid out at a time. compressed-tensors packs so,
GPTQ does along its columns, and for 2, 4 and 8 bits the bytes are those of ONNX's MatMulNBits.
"""

import sys
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from kanna.errors import InputError

MOST_BITS = 8
_WORD = 32


def words(columns: int, bits: int) -> int:
    """How many words a row of so many codes takes."""
    return -(-columns * bits // _WORD)


def pack(codes: Tensor, bits: int) -> Tensor:
    """(m, n) codes, each below 2^bits, as (m, words) int32.

    Raises:
        InputError: A code that does not fit, or a number of bits that is not 1 to 8.
    """
    _check_bits(bits)
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < 1 << bits:
        raise InputError(f"codes from {int(codes.min())} to {int(codes.max())} do not fit into {bits} bits")
    rows, columns = codes.shape
    blocks = functional.pad(codes, (0, -columns % _WORD)).reshape(rows, -1, _WORD)
    stream = torch.zeros(rows, blocks.shape[1], bits, dtype=torch.int64, device=codes.device)
    for code, word, shift in _places(bits):
        value = blocks[..., code].to(torch.int64)
        stream[..., word] |= value << shift
        if shift + bits > _WORD:
            stream[..., word + 1] |= value >> (_WORD - shift)
    flat = stream.view(rows, -1)[:, : words(columns, bits)] & 0xFFFFFFFF
    return torch.where(flat >= 1 << 31, flat - (1 << 32), flat).to(torch.int32)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """(m, words) int32 as (m, columns) uint8.

    Raises:
        InputError: A number of words that does not belong to so many columns.
    """
    _check_bits(bits)
    rows, held = packed.shape
    if held != words(columns, bits):
        raise InputError(f"{held} words do not hold {columns} codes of {bits} bits")
    # torch.jit.trace cannot write down that words are seen as bytes.
    seen_as_bytes = sys.byteorder == "little" and not torch.jit.is_tracing()  # type: ignore[attr-defined]
    if 8 % bits == 0 and seen_as_bytes:
        return _of_bytes(packed, bits)[:, :columns]
    stream = functional.pad(packed, (0, -held % bits)).reshape(rows, -1, bits)
    codes = torch.empty(rows, stream.shape[1], _WORD, dtype=torch.uint8, device=packed.device)
    mask = (1 << bits) - 1
    for code, word, shift in _places(bits):
        value = stream[..., word] >> shift  # ones come in at the left of negative words, and are masked
        if shift + bits > _WORD:
            low = value & ((1 << (_WORD - shift)) - 1)
            value = low | (stream[..., word + 1] << (_WORD - shift))
        codes[..., code] = (value & mask).to(torch.uint8)
    return codes.view(rows, -1)[:, :columns]


def _of_bytes(packed: Tensor, bits: int) -> Tensor:
    """(m, codes) of words whose bytes hold whole codes: the same in a few operations."""
    held, mask = packed.contiguous().view(torch.uint8), (1 << bits) - 1
    codes = torch.stack([(held >> shift) & mask for shift in range(0, 8, bits)], -1)
    return codes.view(len(packed), -1)


def _places(bits: int) -> Iterator[tuple[int, int, int]]:
    """(code, word in which it begins, bit of that word) of 32 codes."""
    for code in range(_WORD):
        yield code, code * bits // _WORD, code * bits % _WORD


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= MOST_BITS:
        raise InputError(f"codes of {bits} bits", f"1 to {MOST_BITS} are known")
