import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from killing import hashes, in_child
from merge_models import recipe, weights
from safetensors.torch import save_file
from token_models import EMBEDDING, HEAD, mean, numbers, rows, same, save
from tokenizers import Tokenizer
from tokenizers.models import Unigram, WordLevel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
)

from kanna.checkpoint import lineage
from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.methods.merge.journal import Journal, Note
from kanna.methods.merge.plan import BLOCK
from kanna.methods.merge.run import merge, merge_plan
from kanna.methods.merge.shards import written_shards

Models = dict[str, Path]
WORDS = ["unk", "begin", "end", "one", "two", "three"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A base, one with the same words in another order, and two with more of them."""
    place = tmp_path_factory.mktemp("tokens")
    return {
        "base": save(place / "base", 0, WORDS),
        "turned": save(place / "turned", 1, [*WORDS[:2], *WORDS[:1:-1]], ["<x>"], eos_token_id=5),
        "four": save(place / "four", 2, [*WORDS, "four"], ["<x>", "<y>"]),
        "same": save(place / "same", 3, WORDS, dtype=torch.bfloat16),
    }


def loaded(out: Path) -> AutoModelForCausalLM:
    model, told = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    return model


def linear(models: Models, *names: str, **top: object) -> dict[str, object]:
    """Weights 1, 2, ... in the order of the names, and their shares."""
    given = {models[name]: {"weight": place} for place, name in enumerate(names, 1)}
    return recipe("linear", given, **top)


@pytest.mark.parametrize("tensor", [EMBEDDING, HEAD])
@pytest.mark.parametrize("base", [True, False])
def test_rows_go_with_their_tokens(base: bool, tensor: str, models: Models, tmp_path: Path) -> None:
    out = tmp_path / "out"
    top = {"base_model": str(models["four"])} if base else {}
    names = ("base", "turned", "four")
    merge(linear(models, *names, tokenizer_source="union", **top), out)
    assert loaded(out).get_input_embeddings().weight.shape[0] == 9
    behind = {"four": 6, "<x>": 7, "<y>": 8} if base else {"<x>": 6, "four": 7, "<y>": 8}
    assert numbers(out) == {**numbers(models["base"]), **behind}
    parts = [rows(models[name], tensor) for name in names]
    for token, row in rows(out, tensor).items():
        having = [part[token] for part in parts if token in part]
        lacking = parts[2][token] if base else mean(having)
        expected = sum(w * part.get(token, lacking) for w, part in zip((1, 2, 3), parts, strict=True)) / 6
        assert same(row, expected), token
    read = AutoTokenizer.from_pretrained(out)
    assert read("one <x> two <y>")["input_ids"] == [3, behind["<x>"], 4, 8]


def test_the_tokens_of_one_model(models: Models, tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = models["turned"]
    plan = merge(linear(models, "base", "turned", tokenizer_source=str(source)), out).plan
    ours, theirs = rows(models["base"]), rows(source)
    for token, row in rows(out).items():
        expected = (ours.get(token, theirs[token]) + 2 * theirs[token]) / 3
        assert same(row, expected), token
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    config = json.loads((out / "config.json").read_text())
    assert (config["vocab_size"], config["bos_token_id"], config["eos_token_id"]) == (7, 1, 5)
    told = json.loads((out / "generation_config.json").read_text())
    assert told["eos_token_id"] == 5 and told["bos_token_id"] == 1
    assert not any("token_id" in note for note in plan.warnings)
    hashed = [lineage.base_hash(Checkpoint.open(models[name])) for name in ("base", "turned")]
    recorded = lineage.read(out)
    assert recorded is not None and [one.hash for one in recorded.steps[0].inputs] == hashed
    loaded(out)


def test_rules_for_single_tokens_and_padding(models: Models, tmp_path: Path) -> None:
    out, turned = tmp_path / "out", models["turned"]
    tokens = {
        "<x>": {"source": str(turned), "force": True},
        "four": {"source": {"kind": "zero"}},
        "<y>": {"source": {"kind": "model_token", "model": str(turned), "token": "one"}},
        "new": {"source": {"kind": "model_token", "model": str(turned), "token_id": 2}},
    }
    given = linear(models, "base", "four", "turned", base_model=str(models["base"]))
    rule = {"source": "union", "tokens": tokens, "pad_to_multiple_of": 8}
    plan = merge({**given, "tokenizer": rule}, out).plan
    assert "tokens are added that only their rules name: 'new'" in plan.warnings
    found, parts = rows(out), [rows(models[name]) for name in ("base", "four", "turned")]
    assert same(found["<x>"], parts[2]["<x>"])
    assert same(found["four"], 2 * parts[1]["four"] / 6)
    one, three = parts[2]["one"], weights(turned)[EMBEDDING][2].double()
    assert same(found["<y>"], (one + 2 * parts[1]["<y>"] + 3 * one) / 6)
    assert same(found["new"], three) and numbers(out)["new"] == 9
    values = weights(out)[EMBEDDING]
    assert len(values) == 16 and json.loads((out / "config.json").read_text())["vocab_size"] == 16
    for row in values[10:]:  # the mean of linear merges is the merge of means
        assert same(row, values[:10].double().mean(0))
    assert AutoTokenizer.from_pretrained(out)("two new")["input_ids"] == [4, 9]
    assert loaded(out)


def test_chunks_of_any_size_give_the_same_rows(tmp_path: Path) -> None:
    words = [f"w{n}" for n in range(600)]
    one = save(tmp_path / "in" / "one", 0, words, hidden=64)
    two = save(tmp_path / "in" / "two", 1, [*words[::-1], "more"], hidden=64)
    top = {"tokenizer": {"pad_to_multiple_of": 64}, "base_model": str(one)}
    given = recipe("ties", {two: {"weight": 1, "density": 0.5}}, **top)
    plan = merge_plan(given)
    assert max(tensor.spec.numbers for tensor in plan.tensors) > 2 * BLOCK
    found = []
    for chunk in (BLOCK, 2 * BLOCK, plan.chunk):
        work = tmp_path / str(chunk)
        work.mkdir()
        shards = written_shards(dataclasses.replace(plan, chunk=chunk), work, lambda *_: None, 10**9)
        found.append((list(shards.files.values()), shards.digests, shards.figures, hashes(work)))
    assert found[0] == found[1] == found[2]


def test_a_merge_that_was_killed_among_tokens_goes_on(models: Models, tmp_path: Path) -> None:
    given = linear(models, "base", "turned", "four", tokenizer_source="union")
    whole, out = tmp_path / "whole" / "out", tmp_path / "killed" / "out"
    merge(given, whole)

    def killed() -> None:
        original = Journal.add

        def add(self: Journal, note: Note) -> None:
            original(self, note)
            if note.tensor in (EMBEDDING, HEAD):
                os.kill(os.getpid(), signal.SIGKILL)

        Journal.add = add  # type: ignore[method-assign]
        merge(given, out)

    assert in_child(killed) == -signal.SIGKILL and not out.exists()
    with pytest.raises(InputError, match="other settings"):
        merge({**given, "tokenizer_source": "base"}, out, resume=True)
    merge(given, out, resume=True)
    assert hashes(out) == hashes(whole)


def test_values_that_are_not_finite_are_found_in_rows(models: Models, tmp_path: Path) -> None:
    bad = save(tmp_path / "in" / "bad", 4, WORDS, ["<x>"])
    values = weights(bad)
    values[EMBEDDING][6, 3] = float("nan")
    save_file(values, bad / "model.safetensors", {"format": "pt"})
    given = recipe("linear", {models["base"]: {"weight": 1}, bad: {"weight": 1}}, tokenizer_source="base")
    with pytest.raises(InputError, match=r"embed_tokens.weight in .*bad.* holds NaN"):
        merge(given, tmp_path / "out")


def test_padded_rows_alone_need_no_rule(models: Models, tmp_path: Path) -> None:
    wide = save(tmp_path / "in" / "wide", 5, WORDS, rows=12)
    for name, base, other in (("narrow", models["base"], wide), ("padded", wide, models["base"])):
        given = recipe("linear", {other: {"weight": 0.5}, base: {"weight": 0.7}}, base_model=str(base))
        merge({**given, "parameters": {"normalize": False}}, tmp_path / name)
        for tensor in (EMBEDDING, HEAD):
            found, mine, theirs = (weights(one)[tensor] for one in (tmp_path / name, base, other))
            assert len(found) == len(mine)
            assert same(found[:6], 0.7 * mine[:6].double() + 0.5 * theirs[:6].double())
            assert torch.equal(found[6:], mine[6:])
        loaded(tmp_path / name)


@pytest.mark.parametrize("turned", [False, True])
def test_padding_of_other_slices_is_that_of_the_first_model(
    turned: bool, models: Models, tmp_path: Path
) -> None:
    wide = save(tmp_path / "in" / "wide", 5, WORDS, rows=12)
    first, last = (wide, models["base"]) if turned else (models["base"], wide)
    slices = [{"sources": [{"model": str(one), "layer_range": [0, 1]}]} for one in (first, last)]
    merge({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    found, size = weights(tmp_path / "out"), 12 if turned else 6
    assert torch.equal(found[EMBEDDING], weights(first)[EMBEDDING])
    assert torch.equal(found[HEAD][:6], weights(last)[HEAD][:6]) and len(found[HEAD]) == size
    assert torch.equal(found[HEAD][6:], weights(first)[HEAD][6:])
    loaded(tmp_path / "out")


def test_a_tied_base_that_nothing_at_the_ends_is_taken_from(models: Models, tmp_path: Path) -> None:
    tied = save(tmp_path / "in" / "tied", 7, WORDS, tied=True)
    slices = [{"sources": [{"model": str(models["base"]), "layer_range": [0, 1]}]}]
    given = {"merge_method": "passthrough", "slices": slices, "base_model": str(tied)}
    merge(given, tmp_path / "out")
    assert torch.equal(weights(tmp_path / "out")[HEAD], weights(models["base"])[HEAD])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    loaded(tmp_path / "out")


def test_a_tokenizer_with_more_tokens_than_rows(models: Models, tmp_path: Path) -> None:
    short = save(tmp_path / "in" / "short", 6, [*WORDS, "four"], ["<x>"], rows=7)
    given = recipe("linear", {short: {"weight": 1}, models["turned"]: {"weight": 1}})
    merge({**given, "tokenizer_source": str(short)}, tmp_path / "out")
    found = weights(tmp_path / "out")[EMBEDDING]
    assert len(found) == 8 and same(found[7], rows(models["turned"])["<x>"])
    assert same(found[6], weights(short)[EMBEDDING][6].double())
    assert loaded(tmp_path / "out")


def test_padding_goes_with_a_rule(models: Models, tmp_path: Path) -> None:
    wide = save(tmp_path / "in" / "wide", 5, WORDS, rows=12)
    given = recipe("linear", {wide: {"weight": 1}}, tokenizer_source="base")
    plan = merge(given, tmp_path / "out").plan
    assert any("wide has 12 rows, and the merge has 6" in note for note in plan.warnings)
    assert torch.equal(weights(tmp_path / "out")[EMBEDDING], weights(wide)[EMBEDDING][:6])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 6


def test_tied_models_beside_those_with_a_head(models: Models, tmp_path: Path) -> None:
    tied = save(tmp_path / "in" / "tied", 7, [*WORDS, "four"], ["<x>"], tied=True)
    assert HEAD not in weights(tied)
    for lead, other in (("tied", "base"), ("base", "tied")):
        places = {"tied": tied, "base": models["base"]}
        out = tmp_path / lead
        given = recipe("linear", {places[lead]: {"weight": 1}, places[other]: {"weight": 1}})
        plan = merge({**given, "tokenizer_source": str(models["base"])}, out).plan
        assert any("base has a head of its own" in note for note in plan.warnings)
        assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
        model = loaded(out)
        assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight
        shared = rows(tied)
        for tensor in (EMBEDDING, HEAD):
            mine = rows(models["base"], tensor)
            for token, row in rows(out, tensor).items():
                assert same(row, (mine[token] + shared[token]) / 2), token


def test_a_result_of_another_document_has_its_own_tokens(models: Models, tmp_path: Path) -> None:
    first = linear(models, "base", "four", tokenizer_source="union")
    path = tmp_path / "recipe.json"
    second = recipe("linear", {Path("first"): {"weight": 1}, models["turned"]: {"weight": 1}})
    second["tokenizer"] = {"source": "first", "tokens": {"<x>": {"source": "first", "force": True}}}
    path.write_text("---\n".join(json.dumps(one) + "\n" for one in ({"name": "first", **first}, second)))
    merge(path, tmp_path / "out", keep_intermediates=tmp_path / "kept")
    (between,) = (tmp_path / "kept").iterdir()
    one, two, found = rows(between), rows(models["turned"]), rows(tmp_path / "out")
    assert found.keys() == one.keys() and same(found["<x>"], one["<x>"])
    assert same(found["three"], (one["three"] + two["three"]) / 2)


BAD = [
    ({"nothing": {"source": "four"}}, r"rule of 'nothing': .*four has no token 'nothing'"),
    ({"<x>": {"source": {"kind": "model_token", "model": "four", "token": "z"}}}, "has no token 'z'"),
    ({"<x>": {"source": {"kind": "model_token", "model": "four", "token_id": 9}}}, "no token number 9"),
    ({"<x>": {"source": "turned"}}, "none of the models that are merged"),
]


@pytest.mark.parametrize(("tokens", "said"), BAD, ids=[said for _, said in BAD])
def test_rules_for_what_is_not_there(tokens: object, said: str, models: Models, tmp_path: Path) -> None:
    text = json.dumps(tokens)
    for name in ("four", "turned"):
        text = text.replace(f'"{name}"', json.dumps(str(models[name])))
    given = linear(models, "base", "four", tokenizer={"tokens": json.loads(text)})
    with pytest.raises(InputError, match=said):
        merge(given, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_tokens_that_differ_name_the_remedy_and_tokens_of_nobody_are_said(
    models: Models, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="vocabularies differ: the token") as caught:
        merge_plan(linear(models, "base", "turned"))
    assert "tokenizer_source: base, union, or a model" in str(caught.value)
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (alone / name).write_bytes((models["four"] / name).read_bytes())
    result = merge(linear(models, "base", "same", tokenizer_source=str(alone)), tmp_path / "out")
    assert any(
        "no model has a row for the tokens 'four', '<x>', '<y>' (3)" in note for note in result.plan.warnings
    )
    assert not weights(tmp_path / "out")[EMBEDDING][6:].any()


def test_marks_that_only_the_settings_name_keep_their_numbers(models: Models, tmp_path: Path) -> None:
    late = save(tmp_path / "in" / "late", 8, WORDS, rows=9)
    settings = json.loads((late / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {
        "8": {"content": "<late>", "special": True},  # 6 and 7 stand for nothing
    }
    (late / "tokenizer_config.json").write_text(json.dumps(settings))
    given = recipe("linear", {late: {"weight": 1}, models["four"]: {"weight": 1}}, base_model=str(late))
    merge({**given, "tokenizer_source": "union"}, tmp_path / "out")
    assert numbers(tmp_path / "out") == {**numbers(late), "<late>": 8, "four": 9, "<x>": 10, "<y>": 11}
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("<late> one <y> <x>")["input_ids"] == [
        8,
        3,
        11,
        10,
    ]
    assert same(rows(tmp_path / "out")["<late>"], weights(late)[EMBEDDING][8].double())


def test_tokens_with_scores_take_others_that_never_win(models: Models, tmp_path: Path) -> None:
    scored = save(tmp_path / "in" / "scored", 9, [*WORDS, "<m>"])
    tokenizer = Tokenizer(
        Unigram([*((word, -9.0) for word in WORDS), *((one, -3.0) for one in "four")], unk_id=0)
    )
    tokenizer.add_special_tokens(["<m>"])
    tokenizer.save(str(scored / "tokenizer.json"))
    given = recipe("linear", {scored: {"weight": 1}, models["four"]: {"weight": 1}}, base_model=str(scored))
    merge({**given, "tokenizer_source": "union"}, tmp_path / "out")
    found = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert found.get_vocab().items() > tokenizer.get_vocab().items()
    assert found.get_vocab().keys() == tokenizer.get_vocab().keys() | numbers(models["four"]).keys()
    for text in ("four<m>one", "onefourtwo", "fouroneu"):
        assert found.encode(text).ids == tokenizer.encode(text).ids
    four = rows(models["four"])["four"]
    assert same(rows(tmp_path / "out")["four"], four)


def test_slices_of_models_with_different_tokens(models: Models, tmp_path: Path) -> None:
    names, out = ("base", "four"), tmp_path / "out"
    slices = [{"sources": [{"model": str(models[name]), "layer_range": [0, 1]}]} for name in names]
    merge({"merge_method": "passthrough", "slices": slices, "tokenizer_source": "union"}, out)
    for tensor, own, other in ((EMBEDDING, *names), (HEAD, *names[::-1])):
        mine, theirs = (rows(models[name], tensor) for name in (own, other))
        for token, row in rows(out, tensor).items():
            assert same(row, mine.get(token, theirs.get(token))), token
    assert len(loaded(out).model.layers) == 2


def test_a_bias_of_tokens_that_lies_flat(tmp_path: Path) -> None:
    tokens = [{"x": 0, "y": 1, "z": 2}, {"z": 0, "x": 1}]
    places = []
    for number, vocabulary in enumerate(tokens):
        size = len(vocabulary)
        config = BartConfig(
            vocab_size=size,
            d_model=8,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=1,
            decoder_attention_heads=1,
            encoder_ffn_dim=8,
            decoder_ffn_dim=8,
            max_position_embeddings=8,
            **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
        )
        places.append(tmp_path / "in" / str(number))
        model = BartForConditionalGeneration(config)
        model.final_logits_bias = torch.arange(1.0, size + 1).reshape(1, -1) * 10**number
        model.save_pretrained(places[-1])
        Tokenizer(WordLevel(vocabulary, unk_token="x")).save(str(places[-1] / "tokenizer.json"))
    merge(
        recipe("linear", {one: {"weight": 1} for one in places}, tokenizer_source=str(places[0])),
        tmp_path / "out",
    )
    bias = weights(tmp_path / "out")["final_logits_bias"]
    assert bias.tolist() == [[(1 + 20) / 2, 2, (3 + 10) / 2]]


@pytest.mark.parametrize(
    "text",
    [
        '{"model": {"vocab": 3}}',
        '{"model": 3}',
        '{"model": {"vocab": {}}, "added_tokens": "x"}',
        '{"model": {"vocab": {}}, "added_tokens": [{"id": "first", "content": "x"}]}',
    ],
)
def test_files_of_a_tokenizer_that_hold_no_tokens(text: str, models: Models, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(models["base"], broken)
    (broken / "tokenizer.json").write_text(text)
    given = recipe("linear", {models["base"]: {"weight": 1}, broken: {"weight": 1}})
    for top in ({}, {"tokenizer_source": "union"}):
        with pytest.raises(InputError, match="tokenizer of broken"):
            merge_plan({**given, **top})
