import json
import shutil
from pathlib import Path

import pytest
import yaml
from merge_models import recipe

from kanna.errors import InputError
from kanna.methods.merge.reading import read_recipe
from kanna.methods.merge.run import merge, merge_plan
from kanna.methods.merge.token_ids import TokenIds
from kanna.methods.merge.tokens import TokenizerRule, TokenRule
from kanna.methods.merge.vocabulary import Tokenizer

Models = dict[str, Path]
HEAD = "merge_method: linear\nmodels:\n  - {model: one, parameters: {weight: 1}}\n"


def read(text: str, tmp_path: Path) -> TokenizerRule | None:
    path = tmp_path / "recipe.yml"
    path.write_text(HEAD + text)
    return read_recipe(path).tokenizer


def test_what_a_recipe_says_of_tokens(tmp_path: Path) -> None:
    assert read("", tmp_path) is None and read("tokenizer_source:\n", tmp_path) is None
    assert read("tokenizer_source: union\n", tmp_path) == TokenizerRule("union", line=4)
    full = """tokenizer:
  tokens:
    <a>: {source: two, force: true}
    <b>: {source: {kind: zero}}
    <c>: {source: {kind: model_token, model: two, token: <d>}}
    <e>: {source: {kind: model_token, model: two, token_id: 7}}
  pad_to_multiple_of: 64
"""
    assert read(full, tmp_path) == TokenizerRule(
        "union",
        {
            "<a>": TokenRule("two", force=True, line=6),
            "<b>": TokenRule(None, line=7),
            "<c>": TokenRule("two", "<d>", line=8),
            "<e>": TokenRule("two", number=7, line=9),
        },
        64,
        4,
    )


RULE = "tokenizer: {tokens: {x: %s}}\n"
BAD = [
    ("tokenizer_source: base\ntokenizer: {source: base}\n", "stand beside each other"),
    ("tokenizer: base\n", "tokenizer has keys and values"),
    ("tokenizer: {sorce: base}\n", "did you mean source"),
    ("tokenizer: {pad_to_multiple_of: 0}\n", "whole number from 1 on, found 0"),
    ("pad_to_multiple_of: 64\n", "it stands under tokenizer"),
    (RULE % "two", "rule of 'x' has keys and values"),
    (RULE % "{force: true}", "rule of 'x' has no source"),
    (RULE % "{source: two, force: 1}", "force is true or false"),
    (RULE % "{source: {kind: one}}", "of the kind 'one'"),
    (RULE % "{source: {kind: model_token, model: two}}", "no token of a model"),
    (RULE % "{source: {kind: model_token, model: two, token: a, token_id: 1}}", "no token of a model"),
    (RULE % "{source: {kind: model_token, model: two, token_id: -1}}", "token_id is a number"),
]


@pytest.mark.parametrize(("text", "said"), BAD, ids=[said for _, said in BAD])
def test_rules_of_tokens_that_are_wrong(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"recipe.yml, line \d+: ") as caught:
        read(text, tmp_path)
    assert said in str(caught.value) and caught.value.remedy


def test_the_tokenizer_of_another_model_comes_with_all_its_files(models: Models, tmp_path: Path) -> None:
    a, b = (tmp_path / "in" / name for name in "ab")
    for name, place in (("a", a), ("b", b)):
        shutil.copytree(models[name], place)
    (a / "special_tokens_map.json").write_text('{"eos_token": "t2"}')
    (b / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "t7"}'
    )
    (b / "additional_chat_templates").mkdir()
    (b / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    given = recipe("linear", {a: {"weight": 1}, b: {"weight": 3}}, tokenizer_source=str(b))
    out = tmp_path / "out"
    merge(given, out)
    for name in ("tokenizer.json", "tokenizer_config.json", "additional_chat_templates/tools.jinja"):
        assert (out / name).read_bytes() == (b / name).read_bytes()
    assert not (out / "special_tokens_map.json").exists()
    told = json.loads((out / "merge.json").read_text())
    assert told["tokenizer"] == {"of": "b", "tokens": 400, "rows": 400}
    assert yaml.safe_load((out / "recipe.yaml").read_text())["tokenizer_source"] == "b"


def test_a_model_that_no_tokenizer_can_come_from(models: Models, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(models["b"], bare)
    (bare / "tokenizer.json").unlink()
    given = {models["a"]: {"weight": 1}, bare: {"weight": 1}}
    with pytest.raises(InputError, match=r"bare has no tokenizer.json, vocab.json or vocab.txt"):
        merge_plan(recipe("linear", given, tokenizer_source="base"))
    rules = {"t3": {"source": str(models["base"])}}
    with pytest.raises(InputError, match=r"rule of 't3' names .*base, which is none of the models"):
        merge_plan(recipe("linear", given, tokenizer={"tokens": rules}))


def test_numbers_of_tokens_in_configurations() -> None:
    told = json.dumps({"eos_token": {"content": "end"}, "pad_token": "fill"})
    ids = TokenIds(
        Tokenizer("other", {"tokenizer_config.json": told}),
        {"begin": 4, "end": 3, "fill": 2, "image": 1, "old": 0},
        {"old": 0, "begin": 1, "end": 2, "lost": 3, "image": 4},
        {"eos_token_id": 9, "pad_token_id": None, "sep_token_id": 7, "text_config": {"eos_token_id": 1}},
        {"eos_token_id": [3, 1], "pad_token_id": 0},
    )
    mine = {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": None, "image_token_index": 4, "layers": 2}
    found = ids.in_config({**mine, "mask_token_id": 3, "text_config": {"bos_token_id": 1, "width": 4}})
    assert found == {
        "eos_token_id": 3,  # the tokenizer says so
        "bos_token_id": 4,  # the same token as before
        "pad_token_id": 2,
        "image_token_index": 1,
        "mask_token_id": None,  # that token is no more
        "sep_token_id": 7,  # as in the model that the tokens come from
        "layers": 2,
        "text_config": {"bos_token_id": 4, "eos_token_id": 3, "width": 4},
    }
    said = ids.in_generation({"eos_token_id": [2, 3], "decoder_start_token_ids": [0, 1, 3]})
    assert said == {"eos_token_id": [3, 1], "pad_token_id": 2, "decoder_start_token_ids": [0, 4]}
