"""Numbers as people write them: thousands in groups, decimal points and decimal commas.

    1,234.5   1 234,5   1.234,5   1'234.5   3.5   3,5   .5   1e3

A comma between digits is a decimal comma unless three digits follow it in groups of thousands, or more commas
do (a list: 1,2,3). Two numbers with a space between are one where the second has three digits (1 234).
"""

import re

_SPACES = " \u00a0\u2009\u202f"
_MARKS = _SPACES + "'\u2019"
_EXPONENT = r"(?:[eE][-+]?\d+)?"
_FORMS = {
    "commas": r"[1-9]\d{0,2}(?:,\d{3})+(?!\d)(?:\.\d+)?",
    "points": r"[1-9]\d{0,2}(?:(?:\.\d{3})+,\d+|(?:\.\d{3}){2,})(?!\d)",
    "marks": rf"(?<!\d[{_SPACES}])[1-9]\d{{0,2}}(?:(?P<mark>[{_MARKS}])\d{{3}})(?:(?P=mark)\d{{3}})*"
    rf"(?!\d|(?P=mark)\d)(?:[.,]\d+)?",
    "decimal": r"(?<!\d,)\d+,\d+(?!\d|,\d)",
    "plain": r"\d+(?:\.\d+)?|\.\d+",
}
_NUMBER = re.compile(
    "(?:" + "|".join(f"(?P<{name}>{form})" for name, form in _FORMS.items()) + ")" + _EXPONENT
)
_CURRENCIES = "$€£¥"


def last_number(text: str) -> float | None:
    """The last number of a text; None where there is none."""
    text = text.replace("\N{MINUS SIGN}", "-")
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return None
    size = _value(numbers[-1])
    return -size if _negative(text[: numbers[-1].start()]) else size


def _value(number: re.Match[str]) -> float:
    digits = re.sub(f"[{_MARKS}]", "", number.group())
    if number["commas"]:
        return float(digits.replace(",", ""))
    if number["points"]:
        return float(digits.replace(".", "").replace(",", "."))
    return float(digits.replace(",", "."))


def _negative(before: str) -> bool:
    """Whether what stands before a number ends in its sign.

    A minus behind a number is a subtraction, one that hangs on a word a hyphen.
    """
    head = before.rstrip(_CURRENCIES)
    if not head.endswith("-"):
        return False
    head = head[:-1]
    last = head.rstrip()[-1:]
    hangs = head[-1:].isalnum()
    return not (hangs or last.isdigit() or last in (")", "%"))
