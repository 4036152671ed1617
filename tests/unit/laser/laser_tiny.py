"""A model of three layers that has learned facts, the same with a damaged matrix, and rows that ask."""

import json
import random
from pathlib import Path

import torch
import transformers
from tiny_model import WORDS, save_tokenizer
from torch import Tensor, nn

from kanna.linalg.decomposition import decompose

LAYERS, HIDDEN, INNER = 3, 32, 64
SUBJECTS, RELATIONS, WORDINGS = 40, 3, 2
FIRST_WORD = 3  # of the tokenizer's special tokens come before
# A fact is asked in two wordings: a subject, and one of two words for the relation.
_RELATION_WORD, _OBJECTS = SUBJECTS, SUBJECTS + RELATIONS * WORDINGS
# Training tells a rival nearly as often, so that little is needed to make an answer wrong.
_TOLD_RIGHT = 0.6
# The damaged matrix, and the rank of what is sound in it: rho 0.25 of its 32.
PLANTED, SOUND = f"model.layers.{LAYERS - 1}.mlp.down_proj.weight", 8


def facts() -> list[dict[str, object]]:
    """Rows that ask for each fact in each wording; frequency marks how often training saw it."""
    draw = random.Random(5)
    rows: list[dict[str, object]] = []
    for subject in range(SUBJECTS):
        for relation in range(RELATIONS):
            said = WORDS[_OBJECTS + draw.randrange(len(WORDS) - _OBJECTS)]
            for wording in range(WORDINGS):
                word = WORDS[_RELATION_WORD + relation * WORDINGS + wording]
                rows.append(
                    {
                        "prompt": f"{WORDS[subject]} {word}",
                        "answer": said,
                        "group": f"{subject}-{relation}",
                        "frequency": "rare" if subject % 2 else "frequent",
                    }
                )
    return rows


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@torch.random.fork_rng(devices=[])
def train(steps: int = 150) -> nn.Module:
    """It knows nearly all facts, and its planted matrix has rank SOUND."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config)
    ids = token_ids()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
    planted = model.get_parameter(PLANTED)
    for _ in range(steps):
        optimiser.zero_grad()
        _loss(model, ids, _TOLD_RIGHT).backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            planted.copy_(decompose(planted).top(SOUND))
    return model.eval()


def damage(model: nn.Module, size: float = 0.95) -> None:
    """Components beside the sound ones, nearly as large as the smallest of them, that do the most harm.

    Of all matrices with such singular values in the space that the sound part leaves, it is the one along
    which the loss rises fastest.
    """
    weight = model.get_parameter(PLANTED)
    parts = decompose(weight)
    _loss(model, token_ids()).backward()
    assert weight.grad is not None
    harm = weight.grad.double()
    left, right = parts.left[:, :SOUND], parts.right[:SOUND]
    harm = harm - left @ (left.T @ harm)
    harm = decompose(harm - (harm @ right.T) @ right)
    values = torch.zeros_like(harm.values)
    values[: len(values) - SOUND] = size * parts.values[SOUND - 1]
    with torch.no_grad():
        weight.add_((harm.left * values) @ harm.right)
    model.zero_grad()


def token_ids() -> Tensor:
    """(facts, 3): subject, relation, object."""
    number = {word: FIRST_WORD + place for place, word in enumerate(WORDS)}
    return torch.tensor([[number[w] for w in f"{r['prompt']} {r['answer']}".split()] for r in facts()])


def _loss(model: nn.Module, ids: Tensor, right: float = 1.0) -> Tensor:
    """With a rival of each fact, the object of another one, counted right for the rest of the time."""
    logits = model(ids[:, :-1]).logits[:, -1]
    rivals = ids[:, -1].roll(WORDINGS)
    cost = nn.functional.cross_entropy
    return right * cost(logits, ids[:, -1]) + (1 - right) * cost(logits, rivals)


def save(model: nn.Module, directory: Path) -> Path:
    model.save_pretrained(directory)  # type: ignore[operator]
    save_tokenizer(directory)
    return directory
