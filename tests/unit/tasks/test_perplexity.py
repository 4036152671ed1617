"""Perplexity against a plain loop, and the rows and windows it is made of."""

import json
import math
from pathlib import Path

import pytest
import tiny
import torch

from kanna.errors import InputError
from kanna.runs.evaluations import evaluate_text
from kanna.tasks.data.rows import read_rows
from kanna.tasks.scorers.perplexity import perplexity, windows
from kanna.tasks.tokens.tokenizer import context_length, predicts_next_token

# (tokens, context, stride)
SIZES = [(50, 12, 6), (50, 12, 12), (50, 12, 1), (50, 12, 5), (13, 12, 6), (12, 12, 6), (7, 12, 6)]
SIZES += [(2, 12, 12), (25, 12, 12), (24, 8, 3)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.family("llama", tmp_path_factory.mktemp("perplexity") / "llama")


@pytest.mark.parametrize(("tokens", "context", "stride"), SIZES)
def test_each_token_is_scored_once_with_enough_before_it(tokens: int, context: int, stride: int) -> None:
    scored = []
    for start, end, first in windows(tokens, context, stride):
        assert 0 <= start < first <= end <= tokens and end - start <= context
        scored += list(range(first, end))
        if stride < context and start > 0:
            assert first - start >= context - stride
    expected = range(1, tokens) if stride < context else [i for i in range(tokens) if i % context]
    assert scored == list(expected)


@pytest.mark.parametrize(("tokens", "context", "stride"), SIZES)
def test_it_equals_a_plain_loop(tokens: int, context: int, stride: int, base: Path) -> None:
    model = tiny.whole(base)
    ids = torch.randint(3, 61, (tokens,), generator=torch.Generator().manual_seed(tokens))
    found = perplexity(model, ids, context, stride, batch=3)
    losses = []
    for position in range(1, tokens):
        start = first_of(position, context, stride)
        if start == position:
            continue
        with torch.no_grad():
            logits = model(ids[None, start:position]).logits[0, -1].double()
        losses.append(float(logits.logsumexp(0) - logits[ids[position]]))
    assert found.scored == len(losses) and found.tokens == tokens
    assert found.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert found.log_likelihood == pytest.approx(-sum(losses), rel=1e-4)


def first_of(position: int, context: int, stride: int) -> int:
    """Start of the first window that reaches `position`."""
    if stride == context:
        return position // context * context
    return next(start for start in range(0, position + 1, stride) if position < start + context)


def test_bits_per_byte(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(tiny.letters(100))
    found = evaluate_text(base, file, context=16).result
    assert (found.context, found.stride, found.tokens, found.scored) == (16, 8, 100, 99)
    assert found.bytes_per_token == 1.0
    assert found.bits_per_byte == pytest.approx(math.log2(found.perplexity))
    assert evaluate_text(base, file, context=16, tokens=40).result.tokens == 40


def test_logits_that_are_not_finite_are_an_error(base: Path) -> None:
    model = tiny.whole(base)
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")  # type: ignore[union-attr, operator]
    with pytest.raises(InputError, match="not finite"):
        perplexity(model, torch.arange(3, 30), 8, 4)


def test_an_encoder_has_no_perplexity(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(tiny.letters(50))
    with pytest.raises(InputError, match="no causal language model"):
        evaluate_text(tiny.family("bert_mlm", tmp_path / "bert"), tmp_path / "text.txt")


@pytest.mark.parametrize(
    ("tokens", "stride", "message"), [(1, 4, "at least 2"), (9, 9, "stride 9"), (9, 0, "stride 0")]
)
def test_impossible_requests(tokens: int, stride: int, message: str, base: Path) -> None:
    with pytest.raises(InputError, match=message):
        perplexity(tiny.whole(base), torch.full((tokens,), 5), 8, stride)


def test_lines_end_at_newlines_only(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    texts = ["one\u2028two", "three\x85four", "five\x0csix"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    file.write_bytes(("\ufeff" + "\r\n".join(lines) + "\n\n").encode())
    assert [row.text for row in read_rows(file)] == texts


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: expected an object, found list"),
        ('{"prompt": "a"}', r"line 2: expected .*found the keys \['prompt'\]"),
        ('{"prompt": "a", "choices": ["b"], "label": 1}', "line 2: choices must be a list of at least 2"),
        ('{"prompt": "a", "choices": ["b", "c"], "label": 2}', "line 2: label 2 of 2 choices"),
        ('{"prompt": "a", "choices": ["b", "c"], "label": true}', "line 2: label True is neither"),
    ],
)
def test_a_line_that_is_no_row_is_named(line: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        read_rows(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b" \n", "is empty"), (b"abc\xff", "not UTF-8: byte 3"), (None, "does not exist")],
)
def test_unreadable_files(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_rows(file)


def test_prompt_and_answer_have_one_space_between(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [("a", "b"), ("a ", "b"), ("a", " b")]
    file.write_text("\n".join(json.dumps({"prompt": p, "answer": a}) for p, a in rows))
    assert {row.text for row in read_rows(file)} == {"a b"}


def test_context() -> None:
    config = {"max_position_embeddings": 512}
    tokenizer = tiny.tokenizer()
    assert context_length(config, tokenizer, None) == 512
    assert context_length(config, tokenizer, 100) == 100
    assert context_length({"max_position_embeddings": 131072}, tokenizer, None) == 2048
    assert context_length(config | {"model_type": "roberta"}, tokenizer, None) == 510
    with pytest.raises(InputError, match="600 is more than the model's 512"):
        context_length(config, tokenizer, 600)


def test_causal_models_are_known_by_their_class() -> None:
    assert predicts_next_token({"architectures": ["LlamaForCausalLM"]})
    assert predicts_next_token({"architectures": ["GPT2LMHeadModel"]})
    assert not any(
        predicts_next_token(c) for c in ({"architectures": ["BertForMaskedLM"]}, {"architectures": None}, {})
    )
