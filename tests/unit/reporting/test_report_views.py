"""Results of kinds that the report does not know, and files that earlier versions wrote."""

import json
from pathlib import Path

import pytest
from pydantic import BaseModel
from report_samples import lineage, write, write_model

import kanna
from kanna.errors import InputError
from kanna.methods.laser.composing import read_search, read_stages
from kanna.methods.laser.results import Analysis, Composition, Search
from kanna.reporting.blocks import Paragraph, Section, Verdict
from kanna.reporting.report import report
from kanna.reporting.views import View

DATA = Path(__file__).parent / "data"
FILES = [
    ("searched/laser-search.json", Search),
    ("results/laser-search-fast.json", Search),
    ("composed/laser-stages.json", Composition),
    ("stage/laser-stages.json", Composition),
    ("results/laser-analysis-base.json", Analysis),
]


class Guess(BaseModel):
    number: int
    words: str = ""


def draw(results):
    cards, sections = [], []
    for result in results:
        inside = "alone" if result.lineage is None else result.lineage.data["base"]["name"]
        cards.append(Verdict("no edit", f"guess in {result.at.source}", "", "", inside))
        number = result.at["number"].figure(str(result.at.data["number"]))
        sections.append(Section("Guess", [Paragraph([number, result.at.data.get("words", "nothing")])]))
    return cards, sections


VIEW = View(
    "guess",
    Guess,
    draw,
    file="guess.json",
    key="guessed",
    lean=lambda data: {key: value for key, value in data.items() if key != "words"},
    tables=lambda places: "number\n" + "".join(f"{at.data['number']}\n" for at in places),
)


def guess(number, words="PRIVATE"):
    return {"schema_version": 1, "kind": "guess", "number": number, "words": words}


def test_a_view_that_is_passed_in_is_read_checked_and_drawn(tmp_path):
    folder = write(tmp_path / "G", a=guess(7))
    model = write_model(tmp_path / "m", lineage())
    (model / "guess.json").write_text(json.dumps(guess(8)))
    result = report([model, folder], tmp_path / "p.html", views=[VIEW])
    # The model's own card would say that nobody compared it.
    assert list(result.verdicts) == ["guess in m#/guessed", "guess in G/a.json#"]
    text = result.html.read_text(encoding="utf-8")
    assert 'data-source="m#/guessed/number"' in text and 'data-source="G/a.json#/number"' in text
    assert result.trials is not None and result.trials.read_text() == "number\n8\n7\n"
    lean = report([folder], tmp_path / "lean.html", views=[VIEW], examples=False)
    assert "PRIVATE" in text and "PRIVATE" not in lean.html.read_text(encoding="utf-8")
    inside = report([model], tmp_path / "lean-model.html", views=[VIEW], examples=False)
    assert "PRIVATE" not in inside.html.read_text(encoding="utf-8")
    (model / "guess.json").write_text(json.dumps(guess(8) | {"number": "eight"}))
    with pytest.raises(InputError, match=r"guess\.json: number"):
        report([model], tmp_path / "q.html", views=[VIEW])


def test_without_its_view_a_kind_is_unknown(tmp_path):
    folder = write(tmp_path / "G", a=guess(7))
    with pytest.raises(InputError, match="holds no results"):
        report([folder], tmp_path / "p.html")


def test_results_of_the_first_version_open(tmp_path):
    places = [DATA / name for name in ("searched", "composed", "stage", "results")]
    result = kanna.report(places, tmp_path / "p.html")
    assert dict(result.verdicts) == {
        "LASER search of base on facts.jsonl (searched#/search)": "better",
        "LASER search of base on facts.jsonl (results/laser-search-fast.json#)": "better",
        "LASER composition of base on facts.jsonl (composed#/stages)": "no clear difference",
        "LASER composition of base on facts.jsonl (stage#/stages)": "not judged",
        "LASER analysis of base on facts.jsonl": "better",
    }
    assert "The model holds stage 1, which was not tested." in result.markdown.read_text(encoding="utf-8")
    trials = sum(len(json.loads((DATA / name).read_text())["trials"]) + 1 for name, _ in FILES[:2])
    assert result.trials is not None and len(result.trials.read_text().splitlines()) == 1 + trials


@pytest.mark.parametrize(("name", "schema"), FILES)
def test_a_file_is_its_model_and_the_model_its_file(name, schema):
    data = json.loads((DATA / name).read_text(encoding="utf-8"))
    again = schema.model_validate(data).to_dict()
    # As text, where 1 and 1.0 differ.
    assert json.dumps(again, sort_keys=True) == json.dumps(data, sort_keys=True)


@pytest.mark.parametrize(("name", "schema"), FILES)
def test_every_field_of_a_file_is_one_of_its_model(name, schema):
    """A field that the model does not know would be lost on the way."""
    data = json.loads((DATA / name).read_text(encoding="utf-8"))
    assert data.keys() <= schema.model_fields.keys()
    strange = schema.model_validate({**data, "of a later version": 1}).to_dict()
    assert strange == data


def test_what_is_wrong_in_a_search_or_its_stages_is_named(tmp_path):
    found = json.loads((DATA / "searched" / "laser-search.json").read_text())
    assert read_search(DATA / "searched").to_dict() == found
    found["trials"][3]["rank"] = "6"
    (tmp_path / "laser-search.json").write_text(json.dumps(found))
    with pytest.raises(
        InputError, match=r"laser-search\.json: trials\.3\.rank: must be a whole number, found '6'"
    ):
        read_search(tmp_path)
    found["test"]["base"]["greedy"] = "0.5"
    found["trials"][3]["rank"] = 6
    (tmp_path / "laser-search.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match=r"test\.base\.greedy"):
        read_search(tmp_path)
    stages = json.loads((DATA / "composed" / "laser-stages.json").read_text())
    del stages["stages"][0]["edit"]
    (tmp_path / "laser-stages.json").write_text(json.dumps(stages))
    with pytest.raises(InputError, match=r"stages\.0\.edit is missing"):
        read_stages(tmp_path)


def test_the_report_speaks_of_no_method_by_name():
    source = Path(kanna.__file__).parent
    for folder in ("reporting", "tasks", "linalg", "runs", "search"):
        for path in (source / folder).rglob("*.py"):
            assert "laser" not in path.read_text(encoding="utf-8").lower(), path
