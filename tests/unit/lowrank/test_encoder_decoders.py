"""Encoder-decoders: both stacks and the attention between them, against whole models and plain loops."""

import json
from pathlib import Path
from typing import Any

import encoder_decoders
import pytest
import tiny
import torch
from encoder_decoders import FAMILIES
from torch import Tensor, nn

import kanna
from kanna.errors import InputError
from kanna.forms import FormModule, dense_weight
from kanna.models.inventory import inventory
from kanna.runs.source import Source
from kanna.tasks.options import EvalOptions

# 2 blocks in the encoder with one attention, 3 in the decoder with two.
MATRICES = {"t5": 2 * 6 + 3 * 10, "mt5": 2 * 7 + 3 * 11, "bart": 2 * 6 + 3 * 10, "marian": 2 * 6 + 3 * 10}
PROMPTS = ("the cat sat", "a b", "tea and cake", "the cat sat", "x")
ANSWERS = ("on it", "c", "please", "down", "y z")
EDIT = kanna.LaserConfig(edits=("mlp_out:-1:k=3",))


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_decoders.save(request.param, tmp_path_factory.mktemp(request.param) / request.param)


@pytest.fixture(scope="module")
def small(base: Path) -> Path:
    out = base.parent / "small"
    result = tiny.compress(base, out, None, base.parent / "cache", keep=0.6, method="plain")
    assert result.passed
    return out


def whole(base: Path, directory: Path | None = None) -> Any:
    family = type(encoder_decoders.model(base.name))
    return family.from_pretrained(directory or base, dtype=torch.float32).eval()


def logits(model: Any, prompt: list[int], decoded: list[int]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(
            input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([decoded])
        ).logits
    return found[0]


def begun(model: Any, tokens: Any) -> list[int]:
    first = [model.config.decoder_start_token_id]
    return first + [i for i in tokens("a")["input_ids"][:1] if i == tokens.bos_token_id]


def test_both_stacks_and_the_attention_between_them(base: Path) -> None:
    found = kanna.inspect(base).inventory
    model = whole(base)
    assert len(found.matrices) == len({matrix.name for matrix in found.matrices}) == MATRICES[base.name]
    assert [block.partition("coder.")[0][-2:] for block in found.blocks] == ["en"] * 2 + ["de"] * 3
    inside = {
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(path.startswith(f"{block}.") for block in found.blocks)
    }
    assert {matrix.module for matrix in found.matrices} == inside
    assert set(found.roles) <= {"q", "k", "v", "o", "gate", "up", "down", "fc_in", "fc_out"}
    between = [m for m in found.matrices if m.layer >= 2 and m.role == "q"]
    assert len(between) == 2 * 3


def test_it_computes_what_truncated_matrices_compute(base: Path, small: Path) -> None:
    real, compressed = whole(base), whole(base, small)
    modules = {path: m for path, m in compressed.named_modules() if isinstance(m, FormModule)}
    assert len(modules) == MATRICES[base.name]
    for path, module in modules.items():
        layer = real.get_submodule(path)
        left, values, right = torch.linalg.svd(layer.weight.detach().double(), full_matrices=False)
        rank = module.form.rank
        layer.weight.data = ((left[:, :rank] * values[:rank]) @ right[:rank]).float()
    ids, decoded = [5, 6, 7, 8, 2], [0, 9, 10]
    torch.testing.assert_close(
        logits(compressed, ids, decoded), logits(real, ids, decoded), rtol=1e-3, atol=1e-3
    )


def test_multiplied_out_it_is_the_same(base: Path, small: Path, tmp_path: Path) -> None:
    kanna.export_dense(small, tmp_path / "dense")
    ids, decoded = [5, 6, 7, 8, 2], [0, 9, 10]
    expected = logits(whole(base, small), ids, decoded)
    found = logits(whole(base, tmp_path / "dense"), ids, decoded)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_an_edit_is_the_truncated_matrix(base: Path, tmp_path: Path) -> None:
    assert kanna.laser_apply(base, tmp_path / "out", EDIT).passed
    before, after = whole(base), whole(base, tmp_path / "out")
    changed = [
        name for name, value in before.named_parameters() if not torch.equal(value, after.get_parameter(name))
    ]
    assert len(changed) == 1
    assert "decoder" in changed[0]
    left, values, right = torch.linalg.svd(before.get_parameter(changed[0]).detach().double())
    expected = (left[:, :3] * values[:3]) @ right[:3]
    found = after.get_parameter(changed[0]).detach().double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def rows(path: Path, **more: list[list[str]]) -> Path:
    lines = []
    for number, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        choices = {key: value[number] for key, value in more.items()}
        row = {"prompt": prompt, **choices, "label": 0} if choices else {"prompt": prompt, "answer": answer}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines))
    return path


def likelihood(model: Any, tokens: Any, prompt: str, answer: str) -> float:
    """Token by token, nothing shared and nothing padded."""
    target = tokens(answer, add_special_tokens=False)["input_ids"]
    decoded, total = begun(model, tokens), 0.0
    for token in target:
        row = logits(model, tokens(prompt)["input_ids"], decoded)[-1]
        total += float(row.log_softmax(-1)[token])
        decoded.append(token)
    return total


def test_answers_are_as_likely_as_token_by_token(base: Path, tmp_path: Path) -> None:
    model, tokens = whole(base), encoder_decoders.tokenizer(base.name == "bart")
    file = rows(tmp_path / "rows.jsonl")
    scored = kanna.evaluate(base, [file], EvalOptions(metric="log_loss"), cache=tmp_path / "cache")
    for record, prompt, answer in zip(scored.scores[0].records, PROMPTS, ANSWERS, strict=True):
        expected = -likelihood(model, tokens, prompt, answer)
        assert record.values["log_loss"] == pytest.approx(expected, rel=1e-4)


def test_the_likeliest_choice_is_chosen(base: Path, tmp_path: Path) -> None:
    model, tokens = whole(base), encoder_decoders.tokenizer(base.name == "bart")
    choices = [[answer, "other", "a very long one"] for answer in ANSWERS]
    file = rows(tmp_path / "rows.jsonl", choices=choices)
    scored = kanna.evaluate(base, [file], cache=tmp_path / "cache")
    for record, prompt, some in zip(scored.scores[0].records, PROMPTS, choices, strict=True):
        sums = [likelihood(model, tokens, prompt, choice) for choice in some]
        assert record.chosen == max(range(3), key=lambda i: sums[i])
        assert record.values["log_loss"] == pytest.approx(-sums[0], rel=1e-4)


def test_what_it_writes_is_the_likeliest_token_each_time(base: Path, tmp_path: Path) -> None:
    model, tokens = whole(base), encoder_decoders.tokenizer(base.name == "bart")
    options = EvalOptions(metric="exact", new_tokens=6, batch_tokens=40)
    file = rows(tmp_path / "rows.jsonl")
    scored = kanna.evaluate(base, [file], options, cache=tmp_path / "cache")
    for record, prompt in zip(scored.scores[0].records, PROMPTS, strict=True):
        start = begun(model, tokens)
        decoded = list(start)
        while len(decoded) < len(start) + 6 and (decoded == start or decoded[-1] != 2):
            decoded.append(int(logits(model, tokens(prompt)["input_ids"], decoded)[-1].argmax()))
        assert record.predicted == tokens.decode(decoded[len(start) :], skip_special_tokens=True)
    alone = kanna.generate(base, PROMPTS[0], max_new_tokens=6).continuations[0]
    assert alone.text == scored.scores[0].records[0].predicted


def test_a_compressed_one_is_compared_with_its_base(base: Path, small: Path, tmp_path: Path) -> None:
    file = rows(tmp_path / "rows.jsonl")
    compared = kanna.compare(base, small, kanna.criteria_of([str(file)], None), cache=tmp_path / "cache")
    assert compared.tasks[0].rows == len(PROMPTS)


def pairs(path: Path) -> list[tuple[str, str]]:
    """Prompts and answers of several lengths."""
    letters = encoder_decoders.LETTERS
    made = [(letters[i % 7 : i % 7 + 3 + i % 5], letters[i % 11 + 4 : i % 11 + 6 + i % 3]) for i in range(45)]
    path.write_text("\n".join(json.dumps({"prompt": p.strip(), "answer": a.strip()}) for p, a in made))
    return [(p.strip(), a.strip()) for p, a in made]


def read_by(model: Any, paths: list[str], tokens: Any, rows: list[tuple[str, str]]) -> dict[str, Tensor]:
    """Path -> (tokens, n) float64: what each module reads, row by row."""
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}
    hooks = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda _, args, path=path: seen[path].append(args[0].reshape(-1, args[0].shape[-1]).double())
        )
        for path in paths
    ]
    for prompt, answer in rows:
        target = tokens(answer, add_special_tokens=False)["input_ids"]
        logits(model, tokens(prompt)["input_ids"], begun(model, tokens) + target)
    for hook in hooks:
        hook.remove()
    return {path: torch.cat(found) for path, found in seen.items()}


@pytest.mark.parametrize("method", ["whitened", "asvd"])
def test_factors_are_the_best_under_what_the_running_model_reads(
    base: Path, tmp_path: Path, method: str
) -> None:
    """Encoder, decoder and the attention between them; q reads the decoder, k and v what was encoded."""
    rows = pairs(tmp_path / "pairs.jsonl")
    settings = {"keep": 0.6, "method": method, "tokens": 10**6, "bias_correction": False, "ridge": 1e-9}
    tiny.compress(base, tmp_path / "out", tmp_path / "pairs.jsonl", tmp_path / "cache", **settings)
    real, small = whole(base), whole(base, tmp_path / "out")
    tokens = encoder_decoders.tokenizer(base.name == "bart")
    replaced = [path for path, module in small.named_modules() if isinstance(module, FormModule)]
    assert len(replaced) == MATRICES[base.name]
    for path, inputs in read_by(real, replaced, tokens, rows).items():
        weight, module = real.get_submodule(path).weight.detach().double(), small.get_submodule(path)
        lost = weight - dense_weight(module).detach().double()
        scale = inputs if method == "whitened" else inputs.abs().mean(0).sqrt().diag()
        best = torch.linalg.svdvals(weight @ scale.T)[module.form.rank :].square().sum()
        assert float((lost @ scale.T).square().sum()) <= float(best) * 1.001 + 1e-9, path


def test_what_is_not_there_is_refused_at_once(base: Path, tmp_path: Path) -> None:
    rows = tmp_path / "pairs.jsonl"
    pairs(rows)
    for more in ({"method": "anchored"}, {"method": "fwsvd"}, {"refine": 3}, {"allocation": "global"}):
        with pytest.raises(InputError, match="is an encoder-decoder: its matrices are fitted one by one"):
            tiny.compress(base, tmp_path / "out", rows, tmp_path / "cache", keep=0.6, **more)
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "the cat sat on the mat"}\n' * 80)
    with pytest.raises(InputError, match="has no prompt and answer"):
        tiny.compress(base, tmp_path / "out", text, tmp_path / "cache", keep=0.6)
    with pytest.raises(InputError, match="needs calibration text"):
        tiny.compress(base, tmp_path / "out", None, tmp_path / "cache", keep=0.6)
    with pytest.raises(InputError, match="is an encoder-decoder, whose edits are not searched"):
        kanna.laser_search(base, rows, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_head_on_a_decoder_is_reloaded_and_run(tmp_path: Path) -> None:
    """It looks for the end of the text in what it reads."""
    base = encoder_decoders.save("bart_classifier", tmp_path / "base")
    assert inventory(Source.open(base).skeleton).has_decoder_apart
    result = tiny.compress(base, tmp_path / "out", None, tmp_path / "cache", keep=0.6, method="plain")
    assert result.passed
    assert kanna.laser_apply(base, tmp_path / "edited", EDIT).passed
