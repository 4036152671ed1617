"""The text of a file as it is meant: UTF-8, and which encoding it may have where it is not."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Callable
from pathlib import Path

from kanna.errors import InputError

UTF_8 = "utf-8"
_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
# Those that spreadsheets in use write, East Asian ones first: single-byte ones decode nearly any bytes.
_CANDIDATES = ("cp932", "euc_jp", "gb18030", "big5", "euc_kr", "cp1252", "latin-1")
_SINGLE_BYTE = ("cp1252", "latin-1")
_USUAL = tuple(
    range(low, high)
    for low, high in ((0xA0, 0x250), (0x370, 0x530), (0x2000, 0x2700), (0x3000, 0x3100), (0xAC00, 0xD7A4),
                      (0xFF00, 0xFFF0))  # Latin, Greek and Cyrillic, signs, kana, Hangul, full width
)  # fmt: skip
_HALF_WIDTH = range(0xFF61, 0xFFA0)  # katakana, which other encodings' bytes often look like
# The commonest characters of what is written in an encoding.
_COMMON = {
    "cp932": frozenset(map(chr, range(0x3040, 0x3100))),
    "euc_jp": frozenset(map(chr, range(0x3040, 0x3100))),
    "gb18030": frozenset("的一是不了在人有我他这们来到时大为"),
    "big5": frozenset("的一是不了在人有我他這們來到時大為"),
    "euc_kr": frozenset("이다는에을가의고한하지로니은기를습"),
}


def decoded_as(path: Path, data: bytes, encoding: str = UTF_8) -> str:
    """The text without a byte order mark and with line ends as \\n.

    Raises:
        InputError: There is no such encoding, or the bytes are not in it: then one that they are in is named.
    """
    try:
        codec = codecs.lookup("utf-8-sig" if encoding.lower() in (UTF_8, "utf8") else encoding)
        text = data.decode(codec.name)
    except LookupError:
        raise InputError(
            f"there is no encoding {encoding!r}", f"known are {', '.join(_CANDIDATES)}"
        ) from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, line {line} is not {encoding.upper()}: byte {error.start} cannot be decoded",
            _remedy(path, guessed(data)),
        ) from error
    return text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}").replace("\r\n", "\n").replace("\r", "\n")


def guessed(data: bytes) -> str:
    """The encoding that bytes which are no UTF-8 are in, by what they would say in each of some."""
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            return name
    if b"\0" in data:  # in no other of them a character of text
        return "utf-16-le" if data[1::2].count(0) >= data[::2].count(0) else "utf-16-be"
    readable = [name for name in _CANDIDATES if _decodes(data, name)]
    return min(readable, key=lambda name: _strangeness(data.decode(name), name))


def _remedy(path: Path, encoding: str) -> str:
    return (
        f"it looks like {encoding}: save it as UTF-8 (in a spreadsheet: CSV UTF-8), convert it (iconv -f "
        f"{encoding.upper().replace('_', '-')} -t UTF-8), or make a task of it with kanna task new app.jsonl "
        f"--from {path.name} --encoding {encoding}"
    )


def _decodes(data: bytes, name: str) -> bool:
    try:
        data.decode(name)
    except UnicodeDecodeError:
        return False
    return True


def _strangeness(text: str, name: str) -> float:
    """How unlikely a text is: the share of its characters beyond ASCII that few people write.

    Of two encodings that make sense of all bytes, the one whose commonest characters are in it, or else the
    earlier one, is taken: the bytes of Hangul are kanji, too.
    """
    beyond = [character for character in text if ord(character) > 127]
    if not beyond:
        return 0.0
    strange = sum(map(_is_strange, beyond)) / len(beyond)
    telling = _share(beyond, _COMMON.get(name, frozenset()).__contains__)
    accented = _share(beyond, lambda character: unicodedata.category(character)[0] == "L")
    unlikely = 1 - accented if name in _SINGLE_BYTE else 0.0
    order = _CANDIDATES.index(name) / 100
    return strange + unlikely + order - telling + (0.3 if name in _SINGLE_BYTE else 0.0)


def _is_strange(character: str) -> bool:
    point = ord(character)
    return point in _HALF_WIDTH or unicodedata.category(character) in ("Co", "Cn", "Cc") or _is_rare(point)


def _is_rare(point: int) -> bool:
    """Whether it lies outside of the scripts and signs that these encodings are used for."""
    return not (any(point in block for block in _USUAL) or _is_common_han(point))


def _is_common_han(point: int) -> bool:
    """Whether it is a Han character of the first level of JIS, GB 2312 or Big5, told by how it is encoded."""
    if not 0x4E00 <= point < 0xA000:
        return False
    pair = chr(point)
    levels = (("euc_jp", range(0xB0, 0xD0)), ("gb2312", range(0xB0, 0xD8)), ("big5", range(0xA4, 0xC7)))
    return any(_first_byte(pair, name) in level for name, level in levels)


def _first_byte(character: str, name: str) -> int:
    try:
        return character.encode(name)[0]
    except UnicodeEncodeError:
        return 0


def _share(characters: list[str], of: Callable[[str], bool]) -> float:
    return sum(map(of, characters)) / len(characters)
