"""Sentence embeddings against plain loops: one text at a time, in float64, as modules.json says."""

import copy
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from scipy import stats
from tiny_encoders import HEADS, PIECES, encoder
from tiny_model import save_model

from kanna.checkpoint.loader import load
from kanna.errors import InputError
from kanna.methods.lowrank.config import LowRankConfig
from kanna.methods.lowrank.run import lowrank
from kanna.runs.compare import compare
from kanna.runs.criteria import criteria_of
from kanna.runs.evaluations import evaluate
from kanna.tasks.data.check import check_task
from kanna.tasks.data.rows import read_row
from kanna.tasks.data.templates import new_task
from kanna.tasks.embeddings.embedder import Embedder
from kanna.tasks.embeddings.modules import POOLINGS, read_sentences
from kanna.tasks.evaluate import prepare
from kanna.tasks.options import EvalOptions
from kanna.tasks.records import TaskScore

WIDTH, LONG = 32, 12
CLOSE = {"rtol": 2e-4, "atol": 2e-5}  # float32 against float64


def text(draw: random.Random, most: int = 9) -> str:
    return " ".join(draw.choice(HEADS) + draw.choice(["", *PIECES])[2:] for _ in range(draw.randint(1, most)))


def module(kind: str, path: str, number: int) -> dict[str, Any]:
    return {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}


def save(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def sentence_model(
    directory: Path,
    poolings: dict[str, Any],
    layers: tuple[str, ...] = (),
    family: str = "Bert",
    config: dict[str, Any] | None = None,
    prompts: dict[str, Any] | None = None,
) -> Path:
    model, tokenizer = encoder(family, "Model")
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    modules = [module("Transformer", "", 0), module("Pooling", "1_Pooling", 1)]
    save(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": WIDTH, **poolings})
    for number, kind in enumerate(layers, 2):
        folder = f"{number}_{kind}"
        modules.append(module(kind, folder, number))
        if kind == "Dense":
            dense(directory / folder, WIDTH if number == 2 else 24)
    save(directory / "modules.json", modules)
    if config is not None:
        save(directory / "sentence_bert_config.json", config)
    if prompts is not None:
        save(directory / "config_sentence_transformers.json", prompts)
    return directory


def dense(folder: Path, width: int) -> None:
    activation = "torch.nn.modules.activation.Tanh" if width == WIDTH else "torch.nn.modules.linear.Identity"
    save(
        folder / "config.json",
        {"in_features": width, "out_features": 24, "bias": True, "activation_function": activation},
    )
    generator = torch.Generator().manual_seed(width)
    drawn = {
        "linear.weight": torch.randn(24, width, generator=generator) / 5,
        "linear.bias": torch.randn(24, generator=generator) / 5,
    }
    safetensors.torch.save_file(drawn, folder / "model.safetensors")


def alone(directory: Path, ids: list[int]) -> torch.Tensor:
    """Hidden states of one unpadded row in float64."""
    model, _ = load(directory, dtype=torch.float64)
    with torch.no_grad():
        states: torch.Tensor = model.base_model(torch.tensor([ids])).last_hidden_state[0]
    return states


FLAG = {name: f"pooling_mode_{name}" for name in ("lasttoken", "mean_sqrt_len_tokens")}
FLAG |= {name: f"pooling_mode_{name}_tokens" for name in ("max", "mean", "weightedmean")}
FLAG["cls"] = "pooling_mode_cls_token"


def naive_pool(states: torch.Tensor, name: str, skipped: int = 0) -> list[float]:
    rows = states.tolist()
    kept = rows[skipped:]
    columns = list(zip(*kept, strict=True))
    weights = range(skipped + 1, len(rows) + 1)
    return {
        "cls": lambda: rows[0],
        "lasttoken": lambda: rows[-1],
        "max": lambda: [max(column) for column in columns],
        "mean": lambda: [sum(column) / len(kept) for column in columns],
        "mean_sqrt_len_tokens": lambda: [sum(column) / math.sqrt(len(kept)) for column in columns],
        "weightedmean": lambda: [
            sum(w * v for w, v in zip(weights, column, strict=True)) / sum(weights) for column in columns
        ],
    }[name]()


def embedder(directory: Path, limit: int = 40) -> Embedder:
    model, tokenizer = load(directory, dtype=torch.float32)
    return Embedder(model, tokenizer, read_sentences(directory), limit, batch_tokens=60)


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("new", [False, True])
def test_poolings(name: str, new: bool, tmp_path: Path) -> None:
    config = {"pooling_mode": name} if new else {flag: key == name for key, flag in FLAG.items()}
    directory = sentence_model(tmp_path / "model", config)
    draw = random.Random(3)
    texts = [text(draw) for _ in range(12)]
    asked = embedder(directory)
    found = asked.embed([("", one) for one in texts])
    for one, row in zip(texts, found, strict=True):
        states = alone(directory, asked.tokenizer(one)["input_ids"])
        torch.testing.assert_close(row, torch.tensor(naive_pool(states, name), dtype=torch.float64), **CLOSE)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "MPNet", "FNet", "Electra"])
def test_families_and_layers(family: str, tmp_path: Path) -> None:
    directory = sentence_model(tmp_path / "model", {FLAG["mean"]: True}, ("Dense", "Normalize"), family)
    draw = random.Random(5)
    texts = [text(draw) for _ in range(8)]
    asked = embedder(directory)
    found = asked.embed([("", one) for one in [*texts, texts[0]]])
    held = safetensors.torch.load_file(directory / "2_Dense" / "model.safetensors")
    weight, bias = held["linear.weight"].double(), held["linear.bias"].double()
    for one, row in zip([*texts, texts[0]], found, strict=True):
        states = alone(directory, asked.tokenizer(one)["input_ids"])
        after = torch.tanh(weight @ states.mean(0) + bias)
        torch.testing.assert_close(row, after / after.norm(), **CLOSE)


def test_several_poolings_are_joined_in_one_order(tmp_path: Path) -> None:
    config = {FLAG[name]: True for name in ("lasttoken", "mean", "cls", "max")}
    directory = sentence_model(tmp_path / "model", config, ("Dropout",))
    asked = embedder(directory)
    (row,) = asked.embed([("", "ka lo mido")])
    states = alone(directory, asked.tokenizer("ka lo mido")["input_ids"])
    joined = [value for name in ("cls", "max", "mean", "lasttoken") for value in naive_pool(states, name)]
    torch.testing.assert_close(row, torch.tensor(joined, dtype=torch.float64), **CLOSE)


def test_a_decoder_with_a_head_and_a_prompt_that_is_not_pooled(tmp_path: Path) -> None:
    directory = save_model(tmp_path / "model")
    save(directory / "modules.json", [module("Transformer", "", 0), module("Pooling", "1_Pooling", 1)])
    save(directory / "1_Pooling" / "config.json", {FLAG["weightedmean"]: True, "include_prompt": False})
    save(
        directory / "config_sentence_transformers.json",
        {"prompts": {"query": "w1 w2 ", "passage": "w3 "}, "default_prompt_name": None},
    )
    asked = embedder(directory)
    said = asked.sentences
    assert (said.query, said.document, said.usual) == ("w1 w2 ", "w3 ", "")
    found = asked.embed([(said.query, "w5 w6 w7"), (said.document, "w5 w6 w7"), ("", " w5 w6 w7 ")])
    for row, words, skipped in zip(
        found, ("w1 w2 w5 w6 w7", "w3 w5 w6 w7", "w5 w6 w7"), (2, 1, 0), strict=True
    ):
        states = alone(directory, asked.tokenizer(words)["input_ids"])
        wanted = torch.tensor(naive_pool(states, "weightedmean", skipped), dtype=torch.float64)
        torch.testing.assert_close(row, wanted, **CLOSE)


def test_long_texts_lower_case_and_the_usual_prompt(tmp_path: Path) -> None:
    directory = sentence_model(
        tmp_path / "model",
        {FLAG["mean"]: True},
        config={"max_seq_length": 6, "do_lower_case": True},
        prompts={"prompts": {"sts": "ka: "}, "default_prompt_name": "sts", "similarity_fn_name": "dot"},
    )
    said = read_sentences(directory)
    assert (said.longest, said.lower, said.query, said.document, said.usual) == (
        6,
        True,
        "ka: ",
        "ka: ",
        "ka: ",
    )
    assert said.notes == ("the model is made for dot as similarity; cosines are taken here",)
    asked = embedder(directory, 6)
    asked.tokenizer.backend_tokenizer.normalizer = None
    (row,) = asked.embed([("ka: ", "LO mi nu po ra se ti ka")])
    ids = asked.tokenizer("ka: lo mi nu po ra se ti ka")["input_ids"]
    states = alone(directory, [*ids[:5], ids[-1]])
    torch.testing.assert_close(row, states.mean(0), **CLOSE)
    assert asked.cut == 1
    strict = copy.copy(asked)
    strict.refuse_long = True
    with pytest.raises(InputError, match="and 6 are read"):
        strict.embed([("", "ka lo mi nu po ra se ti ka")])


BROKEN = {
    "a module that is not known": (
        lambda d: save(
            d / "modules.json", [module("Transformer", "", 0), module("WeightedLayerPooling", "1", 1)]
        ),
        "WeightedLayerPooling",
    ),
    "code of somebody's own": (
        lambda d: save(d / "modules.json", [module("Transformer", "", 0) | {"type": "own.Transformer"}]),
        "the module own.Transformer",
    ),
    "no pooling": (lambda d: save(d / "modules.json", [module("Transformer", "", 0)]), "does not begin with"),
    "a transformer elsewhere": (
        lambda d: save(
            d / "modules.json", [module("Transformer", "0", 0), module("Pooling", "1_Pooling", 1)]
        ),
        "does not begin with",
    ),
    "a folder outside": (
        lambda d: save(d / "modules.json", [module("Transformer", "", 0), module("Pooling", "../x", 1)]),
        "outside the directory",
    ),
    "no list": (lambda d: save(d / "modules.json", {"a": 1}), "no list of modules"),
    "another pooling": (
        lambda d: save(d / "1_Pooling" / "config.json", {"pooling_mode_attention": True, FLAG["cls"]: False}),
        "pooling_mode_attention",
    ),
    "none": (lambda d: save(d / "1_Pooling" / "config.json", {FLAG["cls"]: False}), "pooling of nothing"),
    "a pickle": (
        lambda d: (d / "2_Dense" / "model.safetensors").rename(d / "2_Dense" / "pytorch_model.bin"),
        "reads no pickles|holds no model.safetensors",
    ),
    "another activation": (
        lambda d: save(d / "2_Dense" / "config.json", {"activation_function": "os.system"}),
        "the activation system",
    ),
    "of other vectors": (
        lambda d: save(d / "2_Dense" / "config.json", {"module_input_name": "token_embeddings"}),
        "token_embeddings",
    ),
    "a length that is none": (
        lambda d: save(d / "sentence_bert_config.json", {"max_seq_length": "long"}),
        "max_seq_length 'long'",
    ),
    "a prompt that is none": (
        lambda d: save(d / "config_sentence_transformers.json", {"prompts": {}, "default_prompt_name": "q"}),
        "no prompt 'q'",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_not_known_is_refused_before_any_work(what: str, tmp_path: Path) -> None:
    directory = sentence_model(tmp_path / "model", {FLAG["mean"]: True}, ("Dense",))
    task = pairs(tmp_path / "task.jsonl")
    prepare(directory, [task], EvalOptions())
    change, said = BROKEN[what]
    change(directory)
    with pytest.raises(InputError, match=said):
        prepare(directory, [task], EvalOptions())


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(path: Path, count: int = 40) -> Path:
    draw = random.Random(11)
    return write(
        path,
        [{"text": text(draw), "pair": text(draw), "score": draw.randint(0, 10) / 2} for _ in range(count)],
    )


def searches(path: Path, count: int = 40) -> Path:
    draw = random.Random(12)
    rows = []
    for _ in range(count):
        positive, *negatives = dict.fromkeys(text(draw, 6) + f" {draw.choice(HEADS)}" for _ in range(5))
        rows.append({"query": text(draw), "positive": positive, "negatives": negatives})
    return write(path, rows)


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(first @ second / first.norm() / second.norm())


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence_model(
        tmp_path_factory.mktemp("embeddings") / "model", {FLAG["mean"]: True}, ("Dense", "Normalize")
    )


def score(directory: Path, task: Path, tmp_path: Path) -> TaskScore:
    return evaluate(directory, [task], cache=tmp_path / "cache").scores[0]


def test_pairs(directory: Path, tmp_path: Path) -> None:
    task = pairs(tmp_path / "task.jsonl")
    found = score(directory, task, tmp_path)
    rows = [json.loads(line) for line in task.read_text().splitlines()]
    asked = embedder(directory)
    near = [cosine(*asked.embed([("", row["text"]), ("", row["pair"])])) for row in rows]
    given = [row["score"] for row in rows]
    assert (found.kind, found.metric, found.higher_is_better) == ("similarity", "spearman", True)
    assert [record.values["cosine"] for record in found.records] == pytest.approx(near, abs=1e-6)
    assert found.value == pytest.approx(stats.spearmanr(near, given).statistic, abs=1e-9)
    assert found.metrics["pearson"] == pytest.approx(stats.pearsonr(near, given).statistic, abs=1e-5)
    assert sum(record.values["spearman"] for record in found.records) / 40 == pytest.approx(found.value)
    assert found.settings["pooling"] == ["mean"] and found.notes == ()


def test_searches(directory: Path, tmp_path: Path) -> None:
    task = searches(tmp_path / "task.jsonl")
    found = score(directory, task, tmp_path)
    asked, rights = embedder(directory), []
    for line, record in zip(task.read_text().splitlines(), found.records, strict=True):
        row = json.loads(line)
        (query,) = asked.embed([("", row["query"])])
        near = [
            cosine(query, other)
            for other in asked.embed([("", one) for one in (row["positive"], *row["negatives"])])
        ]
        rights.append(near[0] > max(near[1:]))
        assert record.values["margin"] == pytest.approx(near[0] - max(near[1:]), abs=1e-6)
        assert record.predicted == [row["positive"], *row["negatives"]][near.index(max(near))]
    assert 0 < sum(rights) < 40
    assert [record.right for record in found.records] == rights
    assert (found.kind, found.metric, found.value) == ("retrieval", "recall@1", sum(rights) / 40)


def test_a_model_without_modules_is_pooled_by_the_mean_and_says_so(tmp_path: Path) -> None:
    model, tokenizer = encoder("Bert", "Model")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    found = score(tmp_path / "model", pairs(tmp_path / "task.jsonl"), tmp_path)
    assert "no modules.json" in found.notes[0] and found.settings["pooling"] == ["mean"]
    with pytest.raises(InputError, match=r'no architecture that can be evaluated\n.*"pair"'):
        prepare(tmp_path / "model", [new_task(tmp_path / "choice.jsonl")], EvalOptions())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "acc"}, "known: spearman$"),
        ({"chat": True}, "leave out --chat"),
        ({"costs": "c.yaml"}, "--costs"),
    ],
)
def test_options_of_other_rows(options: dict[str, Any], said: str, directory: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        prepare(directory, [pairs(tmp_path / "task.jsonl")], EvalOptions(**options))


def test_a_whole_model_keeps_its_meaning_and_a_broken_one_fails(directory: Path, tmp_path: Path) -> None:
    same, less = tmp_path / "same", tmp_path / "less"
    lowrank(directory, same, LowRankConfig(method="plain", keep=1.0))
    lowrank(directory, less, LowRankConfig(method="plain", keep=0.1, align=1))
    texts = [("", text(random.Random(i))) for i in range(20)]
    before, after = embedder(directory).embed(texts), embedder(same).embed(texts)
    assert min(cosine(one, two) for one, two in zip(before, after, strict=True)) > 1 - 1e-6
    tasks = [str(pairs(tmp_path / "pairs.jsonl", 150)), str(searches(tmp_path / "searches.jsonl", 150))]
    criteria = criteria_of(tasks, "3pt")
    assert compare(directory, same, criteria, cache=tmp_path / "cache").status == "pass"
    found = compare(directory, less, criteria, cache=tmp_path / "cache")
    for task in found.tasks:
        assert task.decision is not None
        low, high = task.decision.interval
        assert (
            low <= task.decision.difference == pytest.approx(task.new_value - task.base_value)
            and task.decision.difference <= high
        )
    assert found.status != "pass"


def test_another_pooling_is_another_model(directory: Path, tmp_path: Path) -> None:
    """Scores are kept by what they depend on: modules too."""
    other = Path(shutil.copytree(directory, tmp_path / "other"))
    task = pairs(tmp_path / "task.jsonl")
    first = score(other, task, tmp_path)
    save(other / "1_Pooling" / "config.json", {FLAG["max"]: True})
    second = score(other, task, tmp_path)
    assert first.value != second.value and second.settings["pooling"] == ["max"]


WRONG_ROWS = [
    ({"text": "a", "pair": "b"}, "expected"),
    ({"text": "a", "pair": "b", "score": "high"}, "score 'high' is no number"),
    ({"text": "a", "pair": "b", "score": math.nan}, "score nan is no number"),
    ({"text": "a", "pair": "b", "score": 1, "answer": "c"}, "expected"),
    ({"text": " ", "pair": "b", "score": 1}, "text is empty"),
    ({"query": "a", "positive": "b"}, "expected"),
    ({"query": "a", "positive": "b", "negatives": []}, "must be a list"),
    ({"query": "a", "positive": "b", "negatives": "c"}, "must be a list"),
    ({"query": "a", "positive": "é", "negatives": ["e\u0301"]}, "the positive is one of the negatives"),
]


@pytest.mark.parametrize(("fields", "said"), WRONG_ROWS)
def test_rows_that_are_none(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_row("here", fields)


def test_tables_templates_and_checks(tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text('Text,Pair,Score,genre\n"a, b",c,4.5,x\nd,e,1,y\n')
    result = check_task(table)
    assert (result.kind, result.rows, result.passed) == ("similarity", 2, True)
    table.write_text('query,positive,negatives\na,b,"[""c"", ""d""]"\n')
    assert read_row("", {"query": "a", "positive": "b", "negatives": ["c", "d"]}).negatives == ("c", "d")
    assert check_task(table).kind == "retrieval"
    for kind in ("similarity", "retrieval"):
        for suffix in ("jsonl", "csv"):
            found = check_task(new_task(tmp_path / f"{kind}.{suffix}", kind))
            assert found.kind == kind and found.passed and found.constant is None
    same = write(tmp_path / "same.jsonl", [{"text": f"a{i}", "pair": "b", "score": 2} for i in range(5)])
    assert not check_task(same).passed


def test_a_token_that_the_model_lacks_is_refused(directory: Path) -> None:
    one = embedder(directory)
    one.tokenizer.add_tokens(["<new>"])
    with pytest.raises(InputError, match="the token '<new>'"):
        one.embed([("", "a <new> b")])
