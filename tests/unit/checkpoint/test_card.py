from pathlib import Path

import yaml

from kanna.checkpoint.card import Card, Table, front_matter, render, write


def test_front_matter_and_figures(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: mine\nlanguage: [en]\ntags: [x]\n---\n# old\n"
    )
    table = Table("Cost", ["task", "before", "after"], [["a|b", 1.5, 2], ["c", "two\nlines", 3]])
    card = Card("small", "owner/big", "Half of it.", [table], ["low-rank"], source=tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    write(out, card)
    assert front_matter(out) == {
        "base_model": "owner/big",
        "license": "other",
        "license_name": "mine",
        "language": ["en"],
        "library_name": "kanna",
        "tags": ["kanna", "compression", "low-rank"],
    }
    text = (out / "README.md").read_text()
    assert "| a\\|b | 1.5 | 2 |\n| c | two lines | 3 |\n" in text
    assert "| task | before | after |\n| --- | --- | --- |\n" in text
    assert "ignore_mismatched_sizes=True" in text
    assert "import kanna" in text
    assert render(card) == text


def test_names_that_yaml_would_misread_stay_text() -> None:
    head = render(Card("x", "yes: [no]", "s")).split("---\n")[1]
    assert yaml.safe_load(head)["base_model"] == "yes: [no]"


def test_cards_without_usable_front_matter(tmp_path: Path) -> None:
    for content in (
        b"",
        b"# title",
        b"---\nlicense: x\n",
        b"---\n: : [\n---\n",
        b"---\n- a\n---\n",
        b"\xff\xfe",
    ):
        (tmp_path / "README.md").write_bytes(content)
        assert front_matter(tmp_path) == {}
    assert front_matter(tmp_path / "nowhere") == {}
