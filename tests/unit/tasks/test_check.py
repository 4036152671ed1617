"""kanna task check: repeated rows, classes, floors, lengths and how many rows a tolerance needs."""

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scores import binary_of, score_of

from kanna.errors import InputError
from kanna.tasks.data.check import ASSUMED_RIGHT, CheckResult, Finding, check_task
from kanna.tasks.data.duplicates import near_duplicates
from kanna.tasks.data.rows import read_row
from kanna.tasks.data.templates import TEMPLATES, new_task
from kanna.tasks.metrics.summaries import answer_in_prompt, constant_answer
from kanna.tasks.verdict.statistics import normal_quantile
from kanna.tasks.verdict.tolerance import decide, parse_tolerance, rows_needed

YES_NO = [" yes", " no"]


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def choice(prompt: str, label: int, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "choices": YES_NO, "label": label, **more}


def found(result: CheckResult, code: str) -> Finding:
    named = [finding for finding in result.findings if finding.code == code]
    assert len(named) == 1, result.findings
    return named[0]


def codes(result: CheckResult) -> set[str]:
    return {finding.code for finding in result.findings}


def different(count: int) -> list[str]:
    """Prompts that share no word."""
    return [" ".join(f"w{i}x{j}" for j in range(6)) for i in range(count)]


# Near-duplicates, against comparing every text with every other.


def naive_pairs(texts: list[str], like: float) -> dict[tuple[int, int], float]:
    """Pairs of distinct texts whose three-word runs overlap by `like`, frame words left out as documented."""
    sets = []
    for text in texts:
        words = re.findall(r"[a-z0-9]+", text.lower())
        sets.append({tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))})
    counts = Counter(run for text in dict.fromkeys(texts) for run in sets[texts.index(text)])
    distinct = len(set(texts))
    frame = {run for run, count in counts.items() if distinct >= 20 and count > distinct / 2}
    sets = [some - frame or some for some in sets]
    pairs = {}
    for later in range(len(texts)):
        for earlier in range(later):
            overlap = len(sets[earlier] & sets[later]) / len(sets[earlier] | sets[later])
            if overlap >= like:
                pairs[earlier, later] = overlap
    return pairs


def changed(text: str, edits: int, draw: random.Random) -> str:
    words = text.split()
    for place in draw.sample(range(len(words)), edits):
        words[place] = f"new{draw.randrange(10**6)}"
    return " ".join(words)


@pytest.mark.parametrize(
    "frame", ["", "please read the customer mail below and say what the customer wants now "]
)
def test_near_duplicates_are_those_of_comparing_all_pairs(frame: str) -> None:
    draw = random.Random(len(frame))
    vocabulary = [f"v{i}" for i in range(400)]
    texts = []
    for _ in range(120):
        text = " ".join(draw.choices(vocabulary, k=draw.randint(20, 60)))
        texts += [text, *(changed(text, draw.randint(1, 4), draw) for _ in range(draw.randint(0, 2)))]
    draw.shuffle(texts)
    texts = [frame + text for text in texts]
    expected = naive_pairs(texts, 0.8)
    assert len(expected) > 20  # there is something to find
    got = near_duplicates(texts)
    assert set(got) <= set(expected)
    assert len(expected.keys() - set(got)) <= 1  # a pair at 0.8 is missed twice in ten thousand
    assert all(pair in got for pair, overlap in expected.items() if overlap > 0.9)


def test_equal_texts_are_found_however_many(tmp_path: Path) -> None:
    texts = [f"text number {i % 7} of seven" for i in range(700)]
    got = near_duplicates(texts)
    assert {later for _, later in got} >= set(range(7, 700))
    assert all(earlier < later for earlier, later in got)


def test_the_instruction_of_every_prompt_makes_no_duplicates() -> None:
    frame = " ".join(f"instruction{i}" for i in range(300))
    prompts = [f"{frame} {one}" for one in different(60)]
    assert near_duplicates(prompts) == []
    assert near_duplicates([*prompts, prompts[3].upper()]) == [(3, 60)]


def test_near_duplicates_without_spaces_between_words() -> None:
    one = "東京から大阪まで新幹線で二時間半ほどかかりますが飛行機なら一時間で着きます"
    other = one.replace("一時間", "三時間")
    assert near_duplicates([one, other, "今日はとても良い天気ですね"]) == [(0, 1)]


@pytest.mark.parametrize("texts", [[], ["a"], ["", "!?", "+-"], ["a b", "a c"], ["!?", "..."]])
def test_short_texts(texts: list[str]) -> None:
    assert near_duplicates(texts) == []


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert near_duplicates(["Where is it?", "where is it", "where was it"]) == [(0, 1)]


# Findings.


def test_repeated_prompts_are_named_with_the_row_they_repeat(tmp_path: Path) -> None:
    prompts = different(5)
    rows = [choice(prompt, i % 2) for i, prompt in enumerate(prompts)]
    rows += [choice(prompts[1], 1), choice(prompts[1], 0), choice(prompts[4], 0)]
    result = check_task(lines(tmp_path / "a.jsonl", rows))
    again = found(result, "duplicates")
    assert (again.rows, again.like, again.level) == ((6, 7, 8), (2, 2, 5), "warning")
    opposed = found(result, "contradictions")
    assert (opposed.rows, opposed.like) == ((7,), (2,))
    assert result.passed and "near-duplicates" not in codes(result)


def test_nearly_repeated_prompts_of_one_group_are_meant(tmp_path: Path) -> None:
    long = " ".join(f"w{i}" for i in range(40))
    rows = [choice(long, 0, group="a"), choice(f"{long} again", 1, group="a"), choice("other", 0)]
    assert "near-duplicates" not in codes(check_task(lines(tmp_path / "a.jsonl", rows)))
    rows.append(choice(f"{long} anew", 1, group="b"))
    near = found(check_task(lines(tmp_path / "b.jsonl", rows)), "near-duplicates")
    assert (near.rows, near.like) == ((4,), (1,))
    assert near.message.startswith("1 row nearly repeats another")


@pytest.mark.parametrize(
    ("right", "code", "level"),
    [(5, "constant answer", "note"), (9, "lopsided", "warning"), (10, "one class", "warning")],
)
def test_class_balance(right: int, code: str, level: str, tmp_path: Path) -> None:
    rows = [choice(prompt, int(i >= right)) for i, prompt in enumerate(different(10))]
    result = check_task(lines(tmp_path / "a.jsonl", rows))
    assert found(result, code).level == level
    assert result.constant == right / 10
    assert result.passed
    assert "empty class" not in codes(result)


def test_a_choice_that_is_never_right(tmp_path: Path) -> None:
    rows = [
        {"prompt": prompt, "choices": ["a", "b", "c"], "label": i % 2}
        for i, prompt in enumerate(different(9))
    ]
    result = check_task(lines(tmp_path / "a.jsonl", rows))
    assert found(result, "empty class").message == "never the right answer: 'c'"
    assert found(result, "classes").message == "right answers: 'a' 5, 'b' 4"


def test_the_right_choice_always_first(tmp_path: Path) -> None:
    rows = [
        {"prompt": prompt, "choices": [f"right {i}", f"wrong {i}"], "label": 0}
        for i, prompt in enumerate(different(4))
    ]
    result = check_task(lines(tmp_path / "a.jsonl", rows))
    assert found(result, "one place").level == "warning" and result.constant == 1.0


def test_answers_inside_prompts(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Is Anna or Ben older? The answer is", "answer": " BEN"},
        {"prompt": "The capital of France is", "answer": " Paris"},
        {"prompt": "Colour or hue of grass:", "answers": ["green", "hue"]},
        {"prompt": "Two plus two is", "answer": "4"},
    ]
    result = check_task(lines(tmp_path / "a.jsonl", rows))
    inside = found(result, "answer in prompt")
    assert inside.rows == (1, 3) and inside.message.startswith("50.0 % of the prompts")
    assert answer_in_prompt([read_row("", row) for row in rows]) == 0.5


def test_the_best_constant_answer_is_the_best_of_all() -> None:
    """Against trying every answer and every place."""
    draw = np.random.default_rng(5)
    for _ in range(50):
        rows = []
        for _ in range(int(draw.integers(1, 12))):
            some = [str(one) for one in draw.permutation(["a", "b", "c", "d"])[: draw.integers(2, 5)]]
            label = int(draw.integers(len(some)))
            rows.append(read_row("", {"prompt": "p", "choices": some, "label": label}))
        same = len({row.choices for row in rows}) == 1
        by_text = max(sum(row.answer == text for row in rows) for text in "abcd")
        by_place = max(sum(row.label == place for row in rows) for place in range(4))
        expected = by_text if same else max(by_text, by_place)
        assert constant_answer(rows)[0] == expected / len(rows)


def test_any_accepted_answer_counts_as_the_constant_one() -> None:
    answers = [["yes", "yep"], ["indeed", "yes "], ["no", "nope"]]
    rows = [read_row("", {"prompt": "p", "answers": one}) for one in answers]
    assert constant_answer(rows) == (2 / 3, "yes")


class Words:
    """A tokenizer: a token per word, and one that begins the text."""

    def __call__(self, text: str, verbose: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [0, *range(len(text.split()))]}


def test_lengths_against_the_context(tmp_path: Path) -> None:
    counts = [3, 5, 8, 13, 21, 4, 4, 4, 4, 30]
    rows = [choice(" ".join(["w"] * count) + f" {i}", i % 2) for i, count in enumerate(counts)]
    result = check_task(lines(tmp_path / "a.jsonl", rows), tokenizer=Words(), context=20)
    long = found(result, "too long")
    assert long.rows == (5, 10) and long.level == "warning"
    totals = [count + 3 for count in counts]  # the number, the answer, the beginning
    middle, high = (int(np.quantile(totals, q, method="inverted_cdf")) for q in (0.5, 0.95))
    assert f"up to {middle:,} tokens, 95 % up to {high:,}, the longest {max(totals)}" in long.message
    enough = check_task(tmp_path / "a.jsonl", tokenizer=Words(), context=max(totals))
    assert found(enough, "length").level == "note"


def test_the_longest_choice_counts(tmp_path: Path) -> None:
    rows = [{"prompt": "a b", "choices": ["c", "d e f g"], "label": 0}, choice("x y", 1)]
    result = check_task(lines(tmp_path / "a.jsonl", rows), tokenizer=Words(), context=6)
    assert found(result, "too long").rows == (1,)


def test_long_text_is_read_in_windows(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{"text": "w " * 100}, {"text": "v"}])
    result = check_task(path, tokenizer=Words(), context=10)
    assert "103 in all, read in windows of 10" in found(result, "length").message
    assert "too long" not in codes(result)


def test_text_with_labels_is_likely_meant_otherwise(tmp_path: Path) -> None:
    result = check_task(lines(tmp_path / "a.jsonl", [{"text": "good film", "label": 1}]))
    assert found(result, "unused labels").level == "warning" and result.kind == "text"


def test_rows_a_tolerance_needs(tmp_path: Path) -> None:
    """Against the usual approximation of paired proportions: (z_alpha + z_beta)^2 flips / tolerance^2."""
    tolerance = parse_tolerance("2pt")
    rows = [choice(prompt, i % 2) for i, prompt in enumerate(different(300))]
    result = check_task(lines(tmp_path / "a.jsonl", rows), tolerance=tolerance)
    for name, flips in (("2 %", 0.02), ("4 %", 0.04), ("10 %", 0.1)):
        rough = (normal_quantile(0.95) + normal_quantile(0.8)) ** 2 * flips / 0.02**2
        assert result.needed[name] == rows_needed(tolerance, ASSUMED_RIGHT, flips, 0.95)
        assert 0.9 * rough < result.needed[name] < 1.6 * rough + 20
    assert found(result, "too few rows").message.startswith("300 rows")
    sure = check_task(tmp_path / "a.jsonl", tolerance=tolerance, confidence=0.99)
    assert all(sure.needed[name] > result.needed[name] for name in result.needed)
    loose = check_task(tmp_path / "a.jsonl", tolerance=parse_tolerance("10pt"))
    assert "too few rows" not in codes(loose)


def test_what_so_many_rows_can_promise(tmp_path: Path) -> None:
    """Without a change it is z^2 / (n + z^2); with some, the bound of a comparison of such answers."""
    rows = [choice(prompt, i % 2) for i, prompt in enumerate(different(200))]
    promised = check_task(lines(tmp_path / "a.jsonl", rows)).promised
    z = normal_quantile(0.95)
    assert promised["0 %"] == pytest.approx(z**2 / (200 + z**2), abs=1e-6)
    assert f"{promised['0 %']:.4f}" == "0.0133"
    base, new = binary_of(196, 2, 2, 0)
    decision = decide(score_of(base), score_of(new), tolerance=parse_tolerance("9pt"))
    assert promised["2 %"] == pytest.approx(-decision.bound, abs=1e-6)
    assert list(promised) == ["0 %", "2 %", "4 %", "10 %"]
    assert sorted(promised.values()) == list(promised.values())


def test_rows_of_a_group_count_once(tmp_path: Path) -> None:
    tolerance = parse_tolerance("5pt")
    needed = rows_needed(tolerance, ASSUMED_RIGHT, 0.02, 0.95)
    rows = [choice(prompt, i % 2, group=i // 2) for i, prompt in enumerate(different(2 * needed - 2))]
    result = check_task(lines(tmp_path / "a.jsonl", rows), tolerance=tolerance)
    assert result.groups == needed - 1 and "too few rows" in codes(result)
    assert "groups of 2 rows" in found(result, "groups").message


def test_no_number_of_rows_shows_that_nothing_was_lost(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [choice("a", 0), choice("b", 1)])
    result = check_task(path, tolerance=parse_tolerance("0pt"))
    assert set(result.needed.values()) == {None} and "tolerance" in codes(result)
    with pytest.raises(InputError, match="confidence of 2"):
        check_task(path, confidence=2)


@pytest.mark.parametrize("drop", ["1", "2", "1.5", "100pt", "250pts"])
def test_a_drop_that_allows_everything_is_refused(drop: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [choice("a", 0), choice("b", 1)])
    with pytest.raises(InputError, match=f"a.jsonl: a drop of {drop} allows everything"):
        check_task(path, tolerance=parse_tolerance(drop))
    texts = lines(tmp_path / "b.jsonl", [{"text": "much to read"}])
    assert check_task(texts, tolerance=parse_tolerance(drop)).passed


def test_the_last_word_forgets_no_warning(tmp_path: Path) -> None:
    two = lines(tmp_path / "a.jsonl", [choice("a", 0), choice("b", 1)])
    assert check_task(two).conclusion == "sound"
    few = check_task(two, tolerance=parse_tolerance("1pt"))
    assert few.passed and few.conclusion == "sound rows, but too few for this tolerance"
    none = check_task(two, tolerance=parse_tolerance("0"))
    assert none.conclusion == "sound rows, but no number of them is enough for this tolerance"
    enough = lines(tmp_path / "b.jsonl", [choice(prompt, i % 2) for i, prompt in enumerate(different(300))])
    assert check_task(enough, tolerance=parse_tolerance("20pt")).conclusion == "sound"
    labels = lines(tmp_path / "c.jsonl", [{"text": "good film", "label": 1}])
    assert check_task(labels, tolerance=parse_tolerance("1%")).conclusion == "sound, with 1 warning"
    (tmp_path / "d.jsonl").write_text("{")
    assert check_task(tmp_path / "d.jsonl").conclusion == "not sound: mend the errors"


def test_every_bad_line_is_found(tmp_path: Path) -> None:
    good = json.dumps(choice("a", 0))
    bad = ["{", "[1]", '{"prompt": "b", "answer": ""}', "nonsense"]
    (tmp_path / "a.jsonl").write_text("\n".join([good, *bad, good.replace('"a"', '"b"')]))
    result = check_task(tmp_path / "a.jsonl")
    errors = [finding.message for finding in result.findings if finding.level == "error"]
    assert not result.passed and result.rows == 2
    assert [re.search(r"line \d", text)[0] for text in errors] == [f"line {i}" for i in (2, 3, 4, 5)]


def test_many_bad_lines_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,answer\n" + "a,b,c\n" * 50)
    result = check_task(tmp_path / "a.csv")
    assert len(result.findings) == 21 and result.findings[-1].message == "and 30 more that are no rows"


def test_a_file_that_cannot_be_read_is_an_error_of_its_own(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.csv", "a.json", "a.parquet", "a.txt"):
        with pytest.raises(InputError, match="does not exist"):
            check_task(tmp_path / name)
    (tmp_path / "a.csv").write_text("prompt,answer\n")
    assert [one.code for one in check_task(tmp_path / "a.csv").findings] == ["empty"]


def test_mixed_kinds(tmp_path: Path) -> None:
    result = check_task(lines(tmp_path / "a.jsonl", [choice("a", 0), {"text": "b"}]))
    assert not result.passed and found(result, "mixed kinds").level == "error"


def test_json_of_a_check(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [choice("a", 0), choice("b", 1)])
    data = json.loads(json.dumps(check_task(path, tolerance=parse_tolerance("1%")).to_dict()))
    assert (data["schema_version"], data["kind"], data["task_kind"], data["passed"]) == (
        1,
        "task-check",
        "choice",
        True,
    )


# Templates.


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize("kind", TEMPLATES)
def test_templates_are_sound_and_explain_themselves(kind: str, suffix: str, tmp_path: Path) -> None:
    path = new_task(tmp_path / "new" / f"a{suffix}", kind)
    result = check_task(path)
    assert result.passed and not [one for one in result.findings if one.level != "note"]
    assert result.kind == {"paraphrases": "answer", "instruction": "answer", "messages": "answer"}.get(
        kind, kind
    )
    assert all(row["note"] for row in TEMPLATES[kind])
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name]


def test_a_template_overwrites_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        new_task(path)
    assert path.read_text() == "mine"
    new_task(path, force=True)
    assert check_task(path).passed


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("a.jsonl", "riddle", "unknown kind"),
        ("a.xlsx", "choice", "cannot be written as"),
        ("b/a.csv", "text", "b"),
    ],
)
def test_templates_that_cannot_be_written(name: str, kind: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "b").write_text("a file")
    with pytest.raises(InputError, match=said):
        new_task(tmp_path / name, kind)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_rows_without_a_group_are_units_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"prompt": "{p}", "answer": "a", "group": NaN}}\n' for p in different(6)))
    assert check_task(path).groups == 6
    assert check_task(lines(path, [choice(p, 0, group=" ") for p in different(5)])).groups == 5


@pytest.mark.parametrize("name", ["NA", "nan", "None", "<NA>"])
def test_a_group_that_is_a_word_for_none_is_pointed_out(name: str, tmp_path: Path) -> None:
    groups = [name, "a", name, "a", "b"]
    rows = [choice(p, 0, group=group) for p, group in zip(different(5), groups, strict=True)]
    finding = found(check_task(lines(tmp_path / "a.jsonl", rows)), "missing groups")
    assert finding.level == "warning" and f"2 rows are one group, '{name}'" in finding.message


def test_equal_rows_are_one_unit(tmp_path: Path) -> None:
    rows = [choice(prompt, 0) for prompt in ("café", "cafe\u0301", "cafe", "tea")]
    result = check_task(lines(tmp_path / "a.jsonl", [*rows, choice("tea", 1)]))
    assert result.groups == 4 and result.rows == 5
    assert found(result, "duplicates").rows == (2, 5) and found(result, "contradictions").rows == (5,)


def test_answers_that_look_alike_are_one_class() -> None:
    rows = [
        read_row("a", {"prompt": f"a café {i}", "answer": text}) for i, text in enumerate(("é", "e\u0301"))
    ]
    assert constant_answer(rows) == (1.0, "é") and answer_in_prompt(rows) == 1.0
