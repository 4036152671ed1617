"""From records to the figures of a task, for rows of one kind too; and scores that need no model at all."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kanna.checked import read_yaml
from kanna.errors import InputError
from kanna.tasks.data.rows import Row
from kanna.tasks.data.units import plain
from kanna.tasks.records import Record, TaskScore

Costs = Mapping[tuple[str, str], float]
_BINS = 15


def summarise(
    records: Sequence[Record], rows: Sequence[Row], metric: str, costs: Path | None = None
) -> dict[str, float]:
    """Means of all values, and what groups, confidences and costs add to them.

    Args:
        metric: The headline metric; bleu is taken over all texts together.
        costs: File of costs per expected and predicted answer.
    """
    figures = {name: _mean([record.values[name] for record in records]) for name in records[0].values}
    if metric == "bleu":
        from kanna.tasks.metrics.text_metrics import corpus_bleu

        figures["bleu_sentence"] = figures["bleu"]
        accepted = [row.accepted for row in rows]
        figures["bleu"] = corpus_bleu([record.predicted for record in records], accepted)
    if costs is not None:
        figures["expected_cost"] = confusion_cost(records, rows, load_costs(costs, rows))
    if any(record.right is None for record in records):
        return figures
    shared = consistency(records)
    figures |= {} if shared is None else {"consistency": shared}
    if records[0].confidence is not None:
        figures |= calibration(records)
    if costs is not None:
        return figures
    if any(record.cost != 1.0 for record in records):
        figures["expected_cost"] = _mean([0.0 if record.right else record.cost for record in records])
    return figures


def consistency(records: Sequence[Record]) -> float | None:
    """Share of groups of two rows or more that are right in every row; None without such groups."""
    whole = groups_right(records)
    return _mean([float(right) for right in whole]) if whole else None


def groups_right(records: Sequence[Record]) -> list[bool]:
    """Of each group of two judged rows or more, whether all are right."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for record in records:
        if record.group and record.right is not None:
            groups[record.group].append(record.right)
    return [all(rights) for rights in groups.values() if len(rights) > 1]


def calibration(records: Sequence[Record]) -> dict[str, float]:
    """Expected calibration error over 15 bins of equal width (Guo et al. 2017, eq. 3)."""
    bins: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for record in records:
        assert record.confidence is not None
        place = min(_BINS - 1, int(record.confidence * _BINS))
        bins[place].append((record.confidence, bool(record.right)))
    gaps = [abs(sum(sure for sure, _ in some) - sum(right for _, right in some)) for some in bins.values()]
    return {"calibration_error": sum(gaps) / len(records)}


def load_costs(path: Path, rows: Sequence[Row]) -> Costs:
    """Costs of answering one thing where another is right: YAML {expected: {predicted: cost}}.

    Whatever stands in the file is text, true and 1 too. Pairs that are not named cost what the row says, 1 by
    default; right answers 0.

    Raises:
        InputError: The file cannot be read, an answer that no row has, or a cost that is no number from 0.
    """
    example = "{spam: {ham: 1}, ham: {spam: 20}}"
    # Read as text: else answers such as true, no and 007 would be something else.
    data = read_yaml(path, example, yaml.BaseLoader)
    if not isinstance(data, dict) or not all(isinstance(line, dict) for line in data.values()):
        raise InputError(f"{path} must map answers to costs per answer", f"write it as {example}")
    known = {plain(answer.strip()) for row in rows for answer in (row.choices or row.accepted)}
    costs = {}
    for expected, line in data.items():
        for predicted, cost in line.items():
            pair = (plain(expected.strip()), plain(predicted.strip()))
            costs[pair] = _cost(path, pair, cost, known)
    return costs


def confusion_cost(records: Sequence[Record], rows: Sequence[Row], costs: Costs) -> float:
    """Mean cost of an answer; with several accepted ones, by the cheapest of them."""
    return _mean([_cost_of(record, row, costs) for record, row in zip(records, rows, strict=True)])


def breakdown(score: TaskScore, rows: Sequence[Row], key: str) -> dict[str, dict[str, Any]]:
    """Value of the rows' `key` -> rows and mean of the headline metric; in the order of the values.

    Raises:
        InputError: No row has the key; says which keys there are.
    """
    groups: dict[str, list[Record]] = defaultdict(list)
    order: dict[str, tuple[str, Any]] = {}
    for record, row in zip(score.records, rows, strict=True):
        if key in row.extra:
            value = row.extra[key]
            name = plain(str(value))
            groups[name].append(record)
            ordered = value if isinstance(value, int | float) and not math.isnan(value) else name
            order.setdefault(name, (str(type(ordered)), ordered))
    check_key(score.task, rows, key)
    return {
        name: {
            "rows": len(groups[name]),
            "value": sum(record.values[score.metric] for record in groups[name]) / len(groups[name]),
        }
        for name in sorted(groups, key=order.__getitem__)
    }


def check_key(task: str, rows: Sequence[Row], key: str) -> None:
    """Raise InputError unless some row of the task has the key; says which keys there are."""
    if not any(key in row.extra for row in rows):
        known = ", ".join(sorted({name for row in rows for name in row.extra})) or "none"
        raise InputError(f"no row of {task} has the key {key!r}", f"keys of its rows: {known}")


def constant_answer(rows: Sequence[Row]) -> tuple[float, str]:
    """Share of rows that the best constant answer gets right, and that answer.

    It is the answer accepted by most rows; or, where the choices differ between rows, always the one at the
    commonest place, if that is right more often.
    """
    accepted = Counter(text for row in rows for text in {plain(answer.strip()) for answer in row.accepted})
    answer, count = accepted.most_common(1)[0]
    place, placed = Counter(row.label for row in rows).most_common(1)[0]
    if len({tuple(map(plain, row.choices)) for row in rows}) > 1 and place is not None and placed > count:
        return placed / len(rows), f"choice {place}"
    return count / len(rows), answer


def answer_in_prompt(rows: Sequence[Row]) -> float:
    """Share of rows whose prompt holds the answer already, without regard to case."""
    return sum(holds_answer(row) for row in rows) / len(rows)


def holds_answer(row: Row) -> bool:
    """Whether any accepted answer stands in the prompt."""
    prompt = plain(row.prompt.lower())
    return any(plain(answer.strip().lower()) in prompt for answer in row.accepted)


def _cost_of(record: Record, row: Row, costs: Costs) -> float:
    predicted = plain(record.predicted.strip())
    accepted = [plain(answer.strip()) for answer in row.accepted]
    named = [costs[answer, predicted] for answer in accepted if (answer, predicted) in costs]
    if named:
        return min(named)
    right = predicted in accepted if record.right is None else record.right
    return 0.0 if right else record.cost


def _cost(path: Path, pair: tuple[str, str], cost: Any, known: set[str]) -> float:
    for answer in pair:
        if answer not in known:
            some = ", ".join(sorted(known)[:8])
            raise InputError(f"{path}: no row of the task has the answer {answer!r}", f"there are: {some}")
    try:
        number = float(cost)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise InputError(f"{path}: the cost {cost!r} of {pair} is no number of at least 0", "mend it")
    return number


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
