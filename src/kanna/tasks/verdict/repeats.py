"""Which records count as drawn together: those of one group, and those that repeat one another."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from kanna.tasks.data.units import plain, same, together
from kanna.tasks.records import Record


def unit_numbers(records: Sequence[Record]) -> NDArray[np.int64]:
    """(rows,) numbers from 0 of the units that vary independently.

    A row asked again gets the same answer: it is no further evidence, however often it stands in a file.
    """
    pairs = [*same([record.group or None for record in records]), *same([_said(one) for one in records])]
    numbers = np.zeros(len(records), dtype=np.int64)
    for number, places in enumerate(together(len(records), pairs)):
        numbers[places] = number
    return numbers


def repeated(records: Sequence[Record]) -> int:
    """How many records repeat an earlier one."""
    return len(same([_said(record) for record in records]))


def _said(record: Record) -> Hashable | None:
    """What was asked and what is right; of a window of text its beginning, its length and its loss.

    None where the record does not say.
    """
    if not record.prompt and not record.expected:
        return None
    text = (record.values.get("tokens"), round(record.values.get("nll", 0.0), 1))
    return plain(record.prompt.strip()), plain(record.expected.strip()), text
