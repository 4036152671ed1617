"""kanna task split: no fact on both sides, seeded, balanced, whole or not at all."""

import json
import random
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kanna.errors import InputError
from kanna.tasks.data import split as module
from kanna.tasks.data.check import check_task
from kanna.tasks.data.duplicates import near_duplicates
from kanna.tasks.data.rows import Row, read_row, read_rows
from kanna.tasks.data.split import split_rows, split_task, units_of


def made(count: int, groups: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of two answers, two of three `a`; with `groups`, of that many groups of very different sizes."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        words = " ".join(f"w{draw.randrange(10**6)}" for _ in range(12))
        row: dict[str, Any] = {"prompt": words, "answer": "ab"[i % 3 == 0]}
        if groups:
            row["group"] = f"g{min(draw.randrange(groups), draw.randrange(groups))}"
        rows.append(row)
    return rows


def rows_of(dicts: list[dict[str, Any]]) -> list[Row]:
    return [read_row("", one) for one in dicts]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def parts(folder: Path) -> tuple[str, str]:
    return (folder / "validation.jsonl").read_text(), (folder / "test.jsonl").read_text()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_groups_stay_together(seed: int, share: float) -> None:
    rows = rows_of(made(300, groups=40, seed=seed))
    validation, test = split_rows(rows, share, seed)
    assert sorted([*validation, *test]) == list(range(300))
    assert not {rows[i].group for i in validation} & {rows[i].group for i in test}
    largest = max(Counter(row.group for row in rows).values())
    assert abs(len(validation) - share * 300) <= largest / 2


@pytest.mark.parametrize("seed", range(5))
def test_nearly_equal_rows_are_on_one_side(seed: int) -> None:
    draw = random.Random(seed)
    rows = made(120, seed=seed)
    for row in made(40, seed=seed):  # the same prompts, changed in one word
        words = row["prompt"].split()
        words[draw.choice([0, -1])] = "changed"
        rows.append({"prompt": " ".join(words), "answer": "b"})
    rows += [dict(rows[3]), dict(rows[50])]
    draw.shuffle(rows)
    validation, _ = split_rows(rows_of(rows), 0.3, seed)
    side = [place in set(validation) for place in range(len(rows))]
    pairs = near_duplicates([row["prompt"] for row in rows])
    assert len(pairs) >= 42
    assert all(side[one] == side[other] for one, other in pairs)


def test_chains_of_groups_and_near_duplicates_are_one_unit() -> None:
    long = " ".join(f"w{i}" for i in range(30))
    prompts = [("x", "1"), (long, "1"), (f"{long} y", "2"), ("z", "2"), ("alone", "")]
    rows = rows_of([{"prompt": p, "answer": "a", "group": g} for p, g in prompts])
    assert sorted(units_of(rows)) == [[0, 1, 2, 3], [4]]


def test_twenty_to_eighty_and_classes_in_proportion() -> None:
    rows = rows_of(made(1000))
    validation, test = split_rows(rows)
    assert len(validation) == 200
    for side in (validation, test):
        share = sum(rows[i].answer == "b" for i in side) / len(side)
        assert abs(share - 334 / 1000) < 0.01


def test_a_rare_class_is_on_both_sides() -> None:
    dicts = made(100)
    for place, row in enumerate(dicts):
        row["answer"] = "rare" if place < 10 else "common"
    for seed in range(20):
        rows = rows_of(dicts)
        validation, _ = split_rows(rows, seed=seed)
        assert 1 <= sum(rows[i].answer == "rare" for i in validation) <= 3


def test_the_seed_decides() -> None:
    rows = rows_of(made(100))
    assert split_rows(rows, seed=3) == split_rows(rows, seed=3)
    drawn = [tuple(split_rows(rows, seed=seed)[0]) for seed in range(100)]
    assert len(set(drawn)) == 100
    often = Counter(i for places in drawn for i in places)
    assert all(5 <= often[i] <= 40 for i in range(100))  # 20 expected, deviation 4


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("count", [2, 3, 5, 11])
def test_neither_side_is_empty(count: int, share: float) -> None:
    for seed in range(5):
        for answers in (1, count):
            rows = made(count)
            for i, row in enumerate(rows):
                row["answer"] = f"a{i % answers}"
            validation, test = split_rows(rows_of(rows), share, seed)
            assert validation and test and len(validation) + len(test) == count


def test_a_giant_group_is_for_the_test() -> None:
    rows = made(50)
    for row in rows[5:]:
        row["group"] = "giant"
    for seed in range(10):
        assert set(split_rows(rows_of(rows), seed=seed)[0]) <= set(range(5))


def test_rows_that_belong_together_cannot_be_split() -> None:
    rows = [dict(row, group="one") for row in made(5)]
    for some in (rows, rows[:1]):
        with pytest.raises(InputError, match="belong together"):
            split_rows(rows_of(some))


@pytest.mark.parametrize("share", [0, 1, -1, 1.5, float("nan")])
@pytest.mark.parametrize("first", [False, True])
def test_shares_that_make_no_sense(share: float, first: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", made(10))
    with pytest.raises(InputError, match="cannot be split off"):
        split_task(path, tmp_path / "out", share=share, first=first)
    assert not (tmp_path / "out").exists()


def test_files_hold_the_lines_as_they_were(tmp_path: Path) -> None:
    lines = [
        '{"prompt":"é \\u00e9",   "answer" : "b", "own": [1, {"x": null}]}',
        '{"answer": "c", "prompt": "日本\u2028語 x y"}',
        '{"prompt": "z", "answer": "\u00a0d"}',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(("\ufeff" + lines[0] + "\r\n\u00a0\r\n" + "\n \n".join(lines[1:])).encode())
    result = split_task(path, tmp_path / "out", share=0.4)
    written = [text.split("\n")[:-1] for text in parts(tmp_path / "out")]
    assert sorted([*written[0], *written[1]]) == sorted(lines)
    assert result.rows == (len(written[0]), len(written[1])) == (1, 2)
    assert {len(read_rows(tmp_path / "out" / name)) for name in ("validation.jsonl", "test.jsonl")} == {1, 2}


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_a_table_is_split_as_the_same_json_lines_would_be(suffix: str, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import csv, parquet

    rows = made(40)
    table = pyarrow.Table.from_pylist(rows)
    path = tmp_path / f"a{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        (csv.write_csv if suffix == ".csv" else parquet.write_table)(table, path)
    split_task(path, tmp_path / "table")
    split_task(write(tmp_path / "a.jsonl", rows), tmp_path / "lines")
    for name in ("validation.jsonl", "test.jsonl"):
        assert read_rows(tmp_path / "table" / name) == read_rows(tmp_path / "lines" / name)


def test_the_first_rows_as_papers_have_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", made(9))
    result = split_task(path, tmp_path / "out", first=True)
    lines = path.read_text().splitlines(keepends=True)
    assert parts(tmp_path / "out") == (lines[0], "".join(lines[1:]))  # predictions[:int(.2 * N)]
    assert result.rows == (1, 8)
    with pytest.raises(InputError, match="one row"):
        split_task(write(tmp_path / "b.jsonl", made(1)), tmp_path / "one", first=True)


def test_equal_bytes_each_time_and_nothing_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", made(30))
    for out in ("one", "two"):
        split_task(path, tmp_path / out, seed=4)
    assert parts(tmp_path / "one") == parts(tmp_path / "two")
    (tmp_path / "two" / "validation.jsonl").unlink()
    before = (tmp_path / "two" / "test.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"test\.jsonl exists already"):
        split_task(path, tmp_path / "two", seed=5)
    assert [one.name for one in (tmp_path / "two").iterdir()] == ["test.jsonl"]
    assert (tmp_path / "two" / "test.jsonl").read_bytes() == before
    split_task(path, tmp_path / "two", seed=5, force=True)
    assert parts(tmp_path / "two") != parts(tmp_path / "one")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", made(30))
    real = Path.open

    def full(self: Path, *given: Any, **named: Any) -> Any:
        if self.name.startswith(".test"):
            raise OSError(28, "No space left on device")
        return real(self, *given, **named)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match="No space left"):
        split_task(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match="plain text"):
        split_task(tmp_path / "a.txt", tmp_path / "out")
    path = write(tmp_path / "a.jsonl", [*made(5), {"prompt": "x"}])
    with pytest.raises(InputError, match="line 6"):
        split_task(path, tmp_path / "out")
    with pytest.raises(InputError, match="cannot be written"):
        split_task(write(tmp_path / "b.jsonl", made(5)), tmp_path / "a.txt")
    assert not (tmp_path / "out").exists()


def test_rows_of_which_no_two_have_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(f"p{i}", f"p{i}", f"a{i}") for i in range(3000)]
    monkeypatch.setattr(module, "near_duplicates", lambda texts: [])
    validation, test = split_rows(rows)
    assert (len(validation), len(test)) == (600, 2400)


def test_composed_and_decomposed_accents_are_one_text(tmp_path: Path) -> None:
    rows = []
    for name in ("Où est située la cathédrale ?", "Quel élève préféré ?", "Thủ đô nào?", "Ärger über Öl"):
        rows += [
            {"prompt": unicodedata.normalize(form, name), "answer": form, "group": ""}
            for form in ("NFC", "NFD")
        ]
    assert rows[0]["prompt"] != rows[1]["prompt"]
    assert units_of(rows_of(rows)) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    groups = [
        {"prompt": text, "answer": "a", "group": group}
        for text, group in zip("xyz", ("é", "e\u0301", "e"), strict=True)
    ]
    assert units_of(rows_of(groups)) == [[0, 1], [2]]
    assert check_task(write(tmp_path / "a.jsonl", groups)).groups == 2
