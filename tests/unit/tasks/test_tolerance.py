"""How drops are read, decided, and shown."""

import math

import numpy as np
import pytest
from scores import binary_of, score_of, text_of

from kanna.errors import InputError
from kanna.tasks.records import Record, TaskScore
from kanna.tasks.verdict.statistics import Pairs, difference_bound, normal_quantile
from kanna.tasks.verdict.tolerance import (
    Decision,
    decide,
    decide_jointly,
    parse_tolerance,
    rows_needed,
)


def decided(base, new, drop: str, **how) -> Decision:
    return decide(base, new, tolerance=parse_tolerance(drop), **how)


def of_counts(counts, drop: str, **how) -> Decision:
    base, new = binary_of(*counts)
    return decided(score_of(base), score_of(new), drop, **how)


@pytest.mark.parametrize(
    ("text", "amount", "relative"),
    [
        ("1%", 0.01, True),
        (" 2.5 % ", 0.025, True),
        ("1pt", 0.01, False),
        ("3 pts", 0.03, False),
        (".5pt", 0.005, False),
        ("0.2", 0.2, False),
        ("1e-05", 1e-5, False),
        ("0", 0.0, False),
        ("0%", 0.0, True),
    ],
)
def test_tolerances_are_read(text, amount, relative):
    found = parse_tolerance(text)
    assert (found.amount, found.relative, found.text) == (pytest.approx(amount), relative, text.strip())


@pytest.mark.parametrize(
    "text", ["", "lots", "-1%", "1 percent", "1%%", "1 pt pt", "%", "100%", "nan", "inf", "1,5%"]
)
def test_what_is_no_tolerance_is_refused(text):
    with pytest.raises(InputError, match="tolerance"):
        parse_tolerance(text)


def test_allowed_is_mirrored_where_less_is_better():
    relative, absolute = parse_tolerance("5%"), parse_tolerance("0.2")
    assert relative.allowed(0.8, True) == pytest.approx(-0.04)
    assert relative.allowed(20.0, False) == pytest.approx(1.0)
    assert relative.allowed(-3.0, True) == pytest.approx(-0.15)
    assert absolute.allowed(0.8, True) == -0.2 and absolute.allowed(20.0, False) == 0.2


def test_points_and_per_cent_part_where_the_base_is_low():
    counts = (170, 36, 30, 764)  # 20.6 % against 20 %: 0.6 points are 2.9 % of it
    assert of_counts(counts, "3pt").status == "pass"
    assert of_counts(counts, "3%").status == "undecided"


@pytest.mark.parametrize("drop", ["0.1", "5%"])
@pytest.mark.parametrize("shift", [-0.4, -0.12, 0.05])
def test_lower_is_better_is_the_mirror_image(drop, shift):
    generator = np.random.default_rng(1)
    base = generator.gamma(3.0, 1.0, 80) + 1
    new = base + shift + 0.2 * generator.normal(size=80)
    # A relative tolerance keeps its size under a mirror: of -base it is a share of |base|.
    up = decided(score_of(base, "own"), score_of(new, "own"), drop)
    down = decided(score_of(-base, "own", higher=False), score_of(-new, "own", higher=False), drop)
    assert up.status == down.status
    assert up.p_pass == pytest.approx(down.p_pass) and up.p_fail == pytest.approx(down.p_fail)
    assert up.interval == pytest.approx((-down.interval[1], -down.interval[0]))
    assert (up.bound, up.allowed, up.difference) == pytest.approx(
        (-down.bound, -down.allowed, -down.difference)
    )


def test_a_binary_metric_of_which_less_is_better():
    base, new = binary_of(0, 60, 0, 240)
    errors = decided(score_of(new, higher=False), score_of(base, higher=False), "5pt")
    assert errors.status == "fail" and errors.difference == pytest.approx(0.2)
    assert decided(score_of(base, higher=False), score_of(new, higher=False), "5pt").status == "pass"


def consistent(one: Decision, higher: bool = True) -> None:
    """What a reader sees says one thing: the interval, its worse end, what is allowed, and the status."""
    low, high = one.interval
    assert low <= high and low - 1e-9 <= one.difference <= high + 1e-9
    worst, best = (low, high) if higher else (high, low)
    assert one.bound == worst
    inside = worst > one.allowed if higher else worst < one.allowed
    outside = best < one.allowed if higher else best > one.allowed
    assert one.status == ("pass" if inside else "fail" if outside else "undecided")
    alpha = 1 - one.confidence + 1e-9
    assert (one.status == "pass") == (one.p_pass <= alpha)
    assert (one.status == "fail") == (one.p_fail <= alpha)
    assert (one.more_rows is None) or one.status == "undecided"


@pytest.mark.parametrize("drop", ["0pt", "0%", "2pt", "2%", "10%", "30%"])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_interval_and_status_never_disagree_on_rights(drop, confidence):
    generator = np.random.default_rng(2)
    for _ in range(40):
        shares = generator.dirichlet([6, 0.6, 0.4, 3])
        counts = generator.multinomial(generator.integers(1, 400), shares)
        found = of_counts(counts, drop, confidence=confidence)
        consistent(found)


@pytest.mark.parametrize("drop", ["0.05", "2%", "10%"])
@pytest.mark.parametrize("higher", [True, False])
def test_interval_and_status_never_disagree_on_other_values(drop, higher):
    generator = np.random.default_rng(3)
    for _ in range(15):
        base = generator.gamma(2.0, 1.0, 40)
        new = base + generator.normal(0, 0.2) + 0.2 * generator.exponential(1.0, 40)
        consistent(
            decided(score_of(base, "own", higher=higher), score_of(new, "own", higher=higher), drop), higher
        )
        tokens = generator.integers(20, 90, 40).astype(float)
        other = base * tokens * (1 + generator.normal(0, 0.02) + 0.02 * generator.normal(size=40))
        consistent(decided(text_of(base * tokens, tokens), text_of(other, tokens), drop), False)


def test_a_relative_interval_is_that_of_the_ratio():
    """Where the interval of the plain difference says the contrary: it crosses what is allowed."""
    counts = (50, 10, 5, 135)
    found = of_counts(counts, "20%")
    assert difference_bound(Pairs(*counts), normal_quantile(0.95)) < found.allowed
    assert found.status == "pass" and found.interval[0] > found.allowed == pytest.approx(-0.06)


def test_groups_count_and_not_rows():
    generator = np.random.default_rng(4)
    groups = np.repeat(np.arange(60), 5)
    base = (generator.random(60) < 0.8).astype(float)[groups]
    flips = (generator.random(60) < 0.1)[groups]
    new = np.where(flips, 1 - base, base)
    alone = decided(score_of(base), score_of(new), "5pt")
    together = decided(score_of(base, groups=groups), score_of(new, groups=groups), "5pt")
    assert (alone.groups, together.groups) == (300, 60)
    widths = [one.interval[1] - one.interval[0] for one in (alone, together)]
    assert widths[1] > 1.8 * widths[0]


def test_perplexity_is_compared_by_its_logarithm():
    generator = np.random.default_rng(5)
    tokens = generator.integers(50, 200, 40).astype(float)
    base = tokens * generator.normal(3.0, 0.2, 40)
    new = base + tokens * generator.normal(0.01, 0.003, 40)
    found = decided(text_of(base, tokens), text_of(new, tokens), "2%")
    ppl = [math.exp(one.sum() / tokens.sum()) for one in (base, new)]
    assert found.difference == pytest.approx(ppl[1] - ppl[0])
    assert found.allowed == pytest.approx(0.02 * ppl[0])
    assert found.status == "pass" and 0 < found.bound < found.allowed


@pytest.mark.parametrize(
    ("metric", "unit"), [("bits_per_byte", 0.31), ("log_loss_per_token", 1.0), ("word_perplexity", 1.7)]
)
def test_text_is_judged_in_the_units_of_its_metric(metric, unit):
    generator = np.random.default_rng(6)
    tokens = generator.integers(50, 200, 40).astype(float)
    base = tokens * generator.normal(3.0, 0.2, 40)
    new = base + tokens * generator.normal(0.05, 0.01, 40)
    one, two = text_of(base, tokens, metric, unit), text_of(new, tokens, metric, unit)
    found = decided(one, two, "2%")
    assert found.difference == pytest.approx(two.value - one.value)
    assert found.allowed == pytest.approx(0.02 * one.value)
    consistent(found, False)


def test_no_change_on_a_few_rows_proves_little():
    few, many = np.linspace(0.1, 0.9, 12), np.linspace(0.1, 0.9, 200)
    for drop in ("5pt", "5%"):
        small = decided(score_of(few, "f1"), score_of(few, "f1"), drop)
        assert small.status == "undecided" and small.interval[0] < -0.2
        enough = np.tile(few, math.ceil((12 + small.more_rows) / 12))
        assert decided(score_of(enough, "f1"), score_of(enough, "f1"), drop).status == "pass"
        assert decided(score_of(many, "f1"), score_of(many, "f1"), drop).status == "pass"


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_hardly_any_rows_decide_nothing(rows):
    base = np.linspace(2.0, 3.0, rows)
    for new in (base, base - 0.001, base - 1.9):
        found = decided(score_of(base, "own"), score_of(new, "own"), "5%")
        assert found.status == "undecided" and found.more_rows is None
        assert "too little" in decide_jointly({"t": found}).explanation
    tokens = np.full(rows, 30.0)
    found = decided(text_of(base * 30, tokens), text_of(base * 33, tokens), "1%")
    assert found.status == "undecided" and np.isfinite(found.interval).all()


def test_one_row_of_rights_decides_nothing():
    for counts in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)):
        assert of_counts(counts, "5pt").status == "undecided"
        assert of_counts(counts, "5%").status == "undecided"


def test_a_tolerance_of_nothing_is_passed_by_gains_only():
    assert of_counts((70, 0, 0, 30), "0pt").status == "undecided"
    assert of_counts((70, 2, 20, 8), "0pt").status == "pass"
    assert of_counts((70, 20, 2, 8), "0pt").status == "fail"


def test_identical_weights_pass_outright():
    base, _ = binary_of(2, 0, 0, 1)
    found = decided(score_of(base), score_of(base), "0pt", identical=True)
    assert found.status == "pass" and found.difference == 0 and found.interval == (0.0, 0.0)
    assert "bit-identical" in decide_jointly({"t": found}).explanation


def test_other_rows_are_refused():
    base, new = binary_of(5, 1, 1, 3)
    with pytest.raises(InputError, match="same rows"):
        decided(score_of(base), score_of(new[:-1]), "5pt")


def test_a_metric_without_values_per_row_is_refused():
    base, new = binary_of(5, 1, 1, 3)
    one = score_of(base)
    with pytest.raises(InputError, match="mcc has no value per row"):
        decided(type(one).of("t", "choice", "mcc", True, {"mcc": 0.5}, {}, one.records), score_of(new), "5pt")


@pytest.mark.parametrize(
    ("counts", "drop"),
    [
        ((160, 6, 4, 30), "3pt"),
        ((160, 6, 4, 30), "4%"),
        ((40, 3, 3, 4), "5pt"),
        ((75, 9, 1, 15), "10pt"),
        ((75, 7, 2, 16), "4%"),
        ((90, 0, 0, 10), "1pt"),
        ((90, 0, 0, 10), "2%"),
    ],
)
def test_more_rows_of_the_same_kind_decide(counts, drop):
    found = of_counts(counts, drop)
    assert found.status == "undecided" and found.more_rows is not None
    factor = (sum(counts) + found.more_rows) / sum(counts)
    # Whole multiples of the counts: the next that is enough, and the last that is not.
    assert of_counts([math.ceil(factor) * one for one in counts], drop).status != "undecided"
    assert (
        of_counts([max(1, math.ceil(0.99 * factor) - 1) * one for one in counts], drop).status == "undecided"
    )


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("drop", ["0.1", "10%"])
@pytest.mark.parametrize("skew", [False, True])
def test_more_rows_of_other_values_decide_mostly(drop, higher, skew):
    """The estimate is from one sample; drawn anew, twice as many rows as said must do in most cases."""
    generator = np.random.default_rng(7)
    sign = 1 if higher else -1

    def draw(rows):
        base = 1 + 0.2 * generator.normal(size=rows)
        noise = generator.exponential(1.0, rows) - 1 if skew else generator.normal(size=rows)
        return base, base - sign * (0.04 + 0.3 * noise)

    decides = undecided = 0
    for _ in range(40):
        base, new = draw(20)
        one = decided(score_of(base, "own", higher=higher), score_of(new, "own", higher=higher), drop)
        if one.status != "undecided" or one.more_rows is None or one.more_rows > 2000:
            continue
        undecided += 1
        times = math.ceil(1.1 * (20 + one.more_rows) / 20)
        many = [score_of(np.tile(some, times), "own", higher=higher) for some in (base, new)]
        decides += decided(*many, drop).status != "undecided"
    assert undecided >= 10 and decides / undecided >= 0.9


@pytest.mark.parametrize(
    ("drop", "base", "flips"),
    [("2pt", 0.8, 0.04), ("5pt", 0.6, 0.1), ("3%", 0.8, 0.04), ("1pt", 0.95, 0.02), ("10%", 0.5, 0.2)],
)
def test_rows_needed_reach_their_power(drop, base, flips):
    """Tasks of that many rows, and a model that is no worse, pass about as often as was said."""
    rows = rows_needed(parse_tolerance(drop), base, flips, power=0.8)
    generator = np.random.default_rng(8)
    cells = [base - flips / 2, flips / 2, flips / 2, 1 - base - flips / 2]
    passes = [of_counts(counts, drop).status == "pass" for counts in generator.multinomial(rows, cells, 400)]
    assert 0.73 <= np.mean(passes) <= 0.88


def test_rows_needed_at_its_ends():
    assert rows_needed(parse_tolerance("0pt")) is None
    assert rows_needed(parse_tolerance("1pt")) > rows_needed(parse_tolerance("2pt"))
    assert rows_needed(parse_tolerance("1pt"), confidence=0.99) > rows_needed(parse_tolerance("1pt"))
    assert rows_needed(parse_tolerance("1pt"), power=0.95) > rows_needed(parse_tolerance("1pt"))
    few = rows_needed(parse_tolerance("50pt"), 0.8, 0.04)
    assert few is not None and few < 30
    assert rows_needed(parse_tolerance("99.99999999999999%")) == 1


PASSING, FAILING, OPEN = (800, 5, 5, 190), (300, 90, 0, 10), (90, 3, 2, 5)


def test_joint_decisions():
    passing, failing, undecided = (of_counts(counts, "3pt") for counts in (PASSING, FAILING, OPEN))
    assert [one.status for one in (passing, failing, undecided)] == ["pass", "fail", "undecided"]
    assert decide_jointly({"a": passing, "b": passing}).status == "pass"
    assert "all 2 tasks" in decide_jointly({"a": passing, "b": passing}).explanation
    both = decide_jointly({"a": passing, "b": undecided})
    assert both.status == "undecided" and both.explanation.startswith("b: not enough data: about ")
    assert f"{undecided.more_rows:,}" in both.explanation
    failed = decide_jointly({"a": undecided, "b": failing, "c": passing})
    assert failed.status == "fail" and failed.explanation.startswith("b changed by")


def test_guards_are_no_tasks():
    passing = of_counts(PASSING, "3pt")
    for names, guards, said in (
        ("ab", "b", "1 task and 1 guard within"),
        ("abcd", "cd", "2 tasks and 2 guards within"),
        ("a", "a", "1 guard within"),
        ("a", "", "the task within"),
    ):
        explanation = decide_jointly(dict.fromkeys(names, passing), set(guards)).explanation
        assert explanation.startswith(said)


@pytest.mark.parametrize(
    ("counts", "drop", "towards"),
    [
        ((160, 6, 4, 30), "3pt", "pass"),
        ((160, 6, 4, 30), "4%", "pass"),
        ((75, 9, 1, 15), "10pt", "pass"),
        ((160, 12, 4, 24), "3pt", "fail"),
        ((160, 12, 4, 24), "3%", "fail"),
        ((90, 0, 0, 10), "1pt", "pass"),
    ],
)
def test_more_rows_are_promised_with_the_verdict_they_bring(counts, drop, towards):
    """What a thousand times the same rows give."""
    found = of_counts(counts, drop)
    assert found.status == "undecided" and of_counts([1000 * one for one in counts], drop).status == towards
    explanation = decide_jointly({"t": found}).explanation
    assert f"more examples would decide, as a {towards} if" in explanation
    assert "more windows of text would" in decide_jointly({"t": found}, texts={"t"}).explanation


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize(("shift", "towards"), [(0.05, "pass"), (0.15, "fail")])
def test_more_rows_of_other_values_bring_that_verdict(higher, shift, towards):
    generator = np.random.default_rng(3)
    sign = 1 if higher else -1
    base = 1 + 0.2 * generator.normal(size=20)
    noise = 0.4 * generator.normal(size=20)
    new = base - sign * (shift + noise - noise.mean())

    def of(times):
        some = [score_of(np.tile(one, times), "own", higher=higher) for one in (base, new)]
        return decided(*some, "0.1")

    assert of(1).status == "undecided" and of(100).status == towards
    assert f"as a {towards}" in decide_jointly({"t": of(1)}).explanation


def test_a_narrow_failure_among_many_tasks_is_not_sure():
    narrow = of_counts((300, 20, 6, 74), "1pt")
    assert narrow.status == "fail" and narrow.p_fail > 0.01
    passing = of_counts(PASSING, "3pt")
    alone = decide_jointly({"a": narrow})
    among = decide_jointly({"a": narrow} | {str(i): passing for i in range(9)})
    assert alone.status == "fail" and among.status == "undecided"
    assert "not surely so among several tasks" in among.explanation


def test_decisions_are_repeatable():
    generator = np.random.default_rng(9)
    base = generator.gamma(2.0, 1.0, 50)
    scores = score_of(base, "own"), score_of(base + 0.1 * generator.normal(size=50), "own")
    assert decided(*scores, "5%") == decided(*scores, "5%")


def asked(rights: list[int], times: int) -> TaskScore:
    """Each question so many times, with the same outcome each time."""
    records = [
        Record(i * len(rights) + j, f"question {j}", f"answer {j}", "", bool(right), {"acc": float(right)})
        for i in range(times)
        for j, right in enumerate(rights)
    ]
    mean = sum(rights) / len(rights)
    return TaskScore.of("task.jsonl", "choice", "acc", True, {"acc": mean}, {}, records)


@pytest.mark.parametrize("times", [2, 25])
def test_rows_that_stand_there_several_times_are_no_evidence(times):
    base, new = [1] * 30 + [0] * 10, [1] * 29 + [0] * 10 + [1]
    once, again = (decided(asked(base, n), asked(new, n), "5pt") for n in (1, times))
    assert again.status == once.status == "undecided" and once.groups == again.groups == 40
    assert again.interval[0] <= once.interval[0] + 1e-3 and again.p_pass >= once.p_pass - 1e-3
