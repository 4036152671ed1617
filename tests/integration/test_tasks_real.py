"""Task files of published data: the floors that papers were compared with, and what a check says of each."""

import json
from pathlib import Path

import pytest

from kanna.tasks.data.check import CheckResult, check_task
from kanna.tasks.data.duplicates import near_duplicates
from kanna.tasks.data.rows import read_rows
from kanna.tasks.data.split import split_task
from kanna.tasks.metrics.summaries import constant_answer

pytestmark = pytest.mark.shared


@pytest.fixture(scope="session")
def data() -> Path:
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (folder / "truthfulqa").is_dir():
        pytest.skip("../shared/data is not here")
    return folder


@pytest.mark.parametrize(
    ("name", "rows", "percent", "answer"),
    [("truthfulqa", 5_882, 56.05, "false"), ("fever", 6_510, 50.05, "false")],
)
def test_constant_answers(name: str, rows: int, percent: float, answer: str, data: Path) -> None:
    path = data / name / "task.jsonl"
    share, said = constant_answer(read_rows(path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    counted = sum(line["choices"][line["label"]].strip() == answer for line in lines)
    assert len(lines) == rows
    assert (said, share, round(100 * share, 2)) == (answer, counted / rows, percent)


def test_constant_answers_of_the_first_fifth_and_the_rest(data: Path, tmp_path: Path) -> None:
    """TruthfulQA split as in the code of papers: 55.36 % and 56.23 %."""
    split_task(data / "truthfulqa" / "task.jsonl", tmp_path, first=True)
    parts = [read_rows(tmp_path / f"{name}.jsonl") for name in ("validation", "test")]
    assert [round(100 * constant_answer(rows)[0], 2) for rows in parts] == [55.36, 56.23]


# Name -> kind, rows, and units: rows that repeat one another are one.
FILES = {
    "facts/facts.jsonl": ("answer", 15_945, 3_997),
    "fever/task.jsonl": ("choice", 6_510, 6_510),
    "math/train.jsonl": ("answer", 2_460, 2_460),
    "math/test.jsonl": ("answer", 500, 500),
    "reviews/train.jsonl": ("choice", 1_600, 1_599),
    "reviews/test.jsonl": ("choice", 200, 200),
    "truthfulqa/task.jsonl": ("choice", 5_882, 817),
}


@pytest.mark.parametrize("name", FILES)
def test_every_task_file_is_sound(name: str, data: Path) -> None:
    found: CheckResult = check_task(data / name)
    assert found.passed
    assert (found.kind, found.rows, found.groups) == FILES[name]


@pytest.mark.parametrize("name", ["facts/facts.jsonl", "math/train.jsonl", "truthfulqa/task.jsonl"])
def test_no_fact_is_on_both_sides_of_a_split(name: str, data: Path, tmp_path: Path) -> None:
    result = split_task(data / name, tmp_path)
    validation, test = read_rows(result.validation), read_rows(result.test)
    assert abs(len(validation) / (len(validation) + len(test)) - 0.2) < 0.01
    assert not {row.group for row in validation if row.group} & {row.group for row in test}
    prompts = [row.prompt for row in (*validation, *test)]
    across = [pair for pair in near_duplicates(prompts) if pair[0] < len(validation) <= pair[1]]
    assert across == []
