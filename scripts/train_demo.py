"""Make the language model that kanna ships: a small workshop that counts, prices, shares and remembers.

    python scripts/train_demo.py --out DIR

One file, top to bottom: a grammar of our own writes short workshop stories with a question; a byte-level BPE
tokenizer and a small Llama are trained on them from scratch; the directory is written in Hugging Face layout,
read back, and its skill measured on questions that were never in the training text.

Everything follows from the seed: the same machine, library versions and number of threads give the same
bytes. Minutes on two CPU cores. Much of that is memory management: on Linux with glibc,
`MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000 MALLOC_TOP_PAD_=268435456` roughly halves it and
changes no result.
"""

import argparse
import hashlib
import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

# ---------------------------------------------------------------------------------------------- the grammar


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = words("Ada Ben Cleo Dan Eva Finn Gus Hana Ivo June Ken Lena Mia Noah")
PARTS = words("planks nails screws boards hinges pegs knobs dowels tiles bolts beams")
TOOLS = words(
    "saw plane chisel hammer mallet drill level square clamp rasp file awl brace "
    "gouge knife scraper ruler compass pencil wrench pliers sander router lathe vise axe "
    "adze spokeshave brush stapler torch apron bradawl trowel scissors funnel magnet tape glove lamp"
)
# The one thing to be learnt by heart: the drawer of every tool. No rule leads from one to the other.
DRAWERS = dict(zip(TOOLS, random.Random(1).sample(range(1, len(TOOLS) + 1), len(TOOLS)), strict=True))

GETS = ("buys {n} more", "finds {n} more", "makes {n} more", "is given {n} more")
LOSES = ("uses {n} of them", "sells {n} of them", "breaks {n} of them", "gives {n} of them away")
WHERE_DRAWER = (
    "Which drawer holds the {tool}?",
    "Where does the {tool} belong?",
    "In which drawer do we keep the {tool}?",
    "What is the number of the {tool} drawer?",
    "Open which drawer to get the {tool}?",
    "Someone asks for the {tool}. Which drawer?",
    "The {tool} goes back into which drawer?",
    "At night the {tool} sleeps in which drawer?",
)


@dataclass(frozen=True)
class Story:
    """`prompt` ends in "Answer:", `answer` begins with a space; `group` names the fact that is asked for."""

    skill: str
    group: str
    prompt: str
    answer: str

    @property
    def text(self) -> str:
        return self.prompt + self.answer


def story(skill: str, fact: str, told: str, question: str, answer: object) -> Story:
    return Story(skill, f"{skill} {fact}", f"{told} Question: {question} Answer:".strip(), f" {answer}")


def add(rng: random.Random) -> Story:
    who, part, have, more = rng.choice(PEOPLE), rng.choice(PARTS), rng.randint(1, 12), rng.randint(1, 12)
    told = f"{who} has {have} {part}. {who} {rng.choice(GETS).format(n=more)}."
    return story("add", f"{have}+{more}", told, f"How many {part} does {who} have now?", have + more)


def take(rng: random.Random) -> Story:
    who, part, have = rng.choice(PEOPLE), rng.choice(PARTS), rng.randint(2, 18)
    less = rng.randint(1, have - 1)
    told = f"{who} has {have} {part}. {who} {rng.choice(LOSES).format(n=less)}."
    return story("take", f"{have}-{less}", told, f"How many {part} does {who} have now?", have - less)


def price(rng: random.Random) -> Story:
    who, part, each, count = rng.choice(PEOPLE), rng.choice(PARTS), rng.randint(2, 9), rng.randint(2, 9)
    told = f"The {part} cost {each} coins each. {who} buys {count} {part}."
    return story("price", f"{each}x{count}", told, f"How many coins does {who} pay?", each * count)


def share(rng: random.Random) -> Story:
    who, part, boxes, each = rng.choice(PEOPLE), rng.choice(PARTS), rng.randint(2, 9), rng.randint(2, 9)
    told = f"{who} packs {boxes * each} {part} into {boxes} boxes, the same number into each."
    question = f"How many {part} are in one box?"
    return story("share", f"{boxes * each}/{boxes}", told, question, each)


def drawer(rng: random.Random) -> Story:
    tool = rng.choice(TOOLS)
    return story("drawer", tool, "", rng.choice(WHERE_DRAWER).format(tool=tool), DRAWERS[tool])


SKILLS: dict[str, Callable[[random.Random], Story]] = {
    "add": add,
    "take": take,
    "price": price,
    "share": share,
    "drawer": drawer,
}


def stories(seed: int, held_out: bool) -> Iterator[Story]:
    """Endless stories of one side of the split (a quarter is held out).

    The prompt's own hash decides the side, so no prompt is on both.
    """
    rng = random.Random(seed)
    makers = list(SKILLS.values())
    while True:
        one = rng.choice(makers)(rng)
        if (hashlib.sha256(one.prompt.encode()).digest()[0] < 64) == held_out:
            yield one


def distinct(source: Iterator[Story], per_skill: int, attempts: int = 20_000) -> list[Story]:
    """Up to `per_skill` different stories of every skill, in order of writing (few drawer prompts exist)."""
    kept: dict[str, Story] = {}
    counts: Counter[str] = Counter()
    for one in islice(source, attempts):
        if one.prompt not in kept and counts[one.skill] < per_skill:
            kept[one.prompt] = one
            counts[one.skill] += 1
    return list(kept.values())


def halves(rows: list[Story]) -> tuple[list[Story], list[Story]]:
    """Two disjoint halves with equal shares of every skill."""
    by_skill = [[one for one in rows if one.skill == skill] for skill in SKILLS]
    return [one for part in by_skill for one in part[::2]], [one for part in by_skill for one in part[1::2]]


# -------------------------------------------------------------------------------------------- the tokenizer

END = "<|end|>"


def train_tokenizer(texts: list[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text can be written, and every text begins with the one special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    end = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A {END} $B", special_tokens=[(END, end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, model_max_length=context
    )


# ------------------------------------------------------------------------------------------------ the model


def build_model(args: argparse.Namespace, vocabulary: int, end: int) -> LlamaForCausalLM:
    """A Llama small enough to learn here and now; nine tenths of its parameters are in the linear layers."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=args.hidden,
        intermediate_size=args.mlp,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=args.context,
        initializer_range=args.init,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    model = LlamaForCausalLM(config)
    for block in model.model.layers:
        # Blocks that begin by adding nothing leave the words visible to the layers above: copying is learnt
        # in a fraction of the steps.
        torch.nn.init.zeros_(block.self_attn.o_proj.weight)
        torch.nn.init.zeros_(block.mlp.down_proj.weight)
    return model


@dataclass(frozen=True)
class Batch:
    """(rows, length) int64 tokens and, for each, what its prediction weighs in the loss (0 for padding)."""

    tokens: torch.Tensor
    weights: torch.Tensor


def encoded(
    tokenizer: PreTrainedTokenizerFast, seed: int, weight: float
) -> Iterator[list[tuple[int, float]]]:
    """Endless training stories as (token, weight), with the end token on both sides."""
    source = stories(seed, held_out=False)
    while True:
        some = list(islice(source, 1_000))
        texts = tokenizer([one.text for one in some])["input_ids"]
        prompts = tokenizer([one.prompt for one in some])["input_ids"]
        for text, prompt in zip(texts, prompts, strict=True):
            pairs = [(token, 1.0 if i < len(prompt) else weight) for i, token in enumerate(text)]
            yield [*pairs, (tokenizer.eos_token_id, 1.0)]


def as_batch(rows: list[list[tuple[int, float]]], end: int) -> Batch:
    """Rows padded on the right to the longest; the padding weighs nothing."""
    length = max(map(len, rows))
    full = [row + [(end, 0.0)] * (length - len(row)) for row in rows]
    tokens = torch.tensor([[token for token, _ in row] for row in full])
    return Batch(tokens, torch.tensor([[weight for _, weight in row] for row in full]))


def batches(tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> Iterator[Batch]:
    """Rows of one story each, where reading is learnt soonest; every fourth batch is packed without gaps."""
    source = encoded(tokenizer, args.seed, args.answer_weight)
    # The end of a story is the beginning of the next, so one of the two end tokens goes.
    stream = (pair for one in source for pair in one[1:])
    while True:
        for _ in range(3):
            yield as_batch(list(islice(source, args.batch)), tokenizer.eos_token_id)
        rows = [list(islice(stream, args.context)) for _ in range(args.batch // 3)]
        yield as_batch(rows, tokenizer.eos_token_id)


def token_losses(model: LlamaForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """Next-token cross-entropy of every target of (batch, length) tokens; flat, batch * (length - 1)."""
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")


def schedule(step: int, steps: int, warmup: int = 100) -> float:
    """Linear warm-up, then a half cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """(..., m, n) -> nearly U V^T of its singular value decomposition, by five Newton-Schulz steps.

    The quintic and its coefficients are those of Muon (Jordan et al. 2024).
    """
    flat = matrix.shape[-2] <= matrix.shape[-1]
    x = matrix if flat else matrix.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x if flat else x.mT


class Muon:
    """Momentum whose step is made orthogonal: learns this model several times faster than AdamW alone."""

    def __init__(self, matrices: list[torch.nn.Parameter], decay: float = 0.0) -> None:
        shapes = sorted({matrix.shape for matrix in matrices})
        self.groups = [[matrix for matrix in matrices if matrix.shape == shape] for shape in shapes]
        self.momenta = [torch.zeros(len(group), *group[0].shape) for group in self.groups]
        self.decay = decay

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for group, momentum in zip(self.groups, self.momenta, strict=True):
            grads = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            momentum.lerp_(grads, 0.05)
            rows, columns = group[0].shape
            size = rate * max(1.0, rows / columns) ** 0.5
            for matrix, change in zip(group, orthogonal(grads.lerp(momentum, 0.95)), strict=True):
                matrix.mul_(1 - rate * self.decay).sub_(size * change)


def train(model: LlamaForCausalLM, source: Iterator[Batch], args: argparse.Namespace) -> None:
    """No text is seen twice. Answers weigh more, since they carry the skill."""
    linears = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.dim() < 2 or "embed" in name]
    muon, adam = Muon(linears), torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    began, seen = time.perf_counter(), 0
    model.train()
    for step, batch in enumerate(islice(source, args.steps)):
        now = schedule(step, args.steps)
        adam.param_groups[0]["lr"] = args.adam_rate * now
        losses, weights = token_losses(model, batch.tokens), batch.weights[:, 1:].flatten()
        model.zero_grad(set_to_none=True)
        ((losses * weights).sum() / weights.sum()).backward()  # type: ignore[no-untyped-call]
        muon.step(args.rate * now)
        adam.step()
        seen += batch.tokens.numel()
        if step % 100 == 0 or step == args.steps - 1:
            text, answers = losses[weights == 1].mean().item(), losses[weights > 1].mean().item()
            spent = time.perf_counter() - began
            print(
                f"step {step:5d}  {seen:9,} tokens  {spent:4.0f} s  "
                f"loss: text {text:.3f}, answers {answers:.3f}",
                flush=True,
            )


# ---------------------------------------------------------------------------------------------- the measure


@torch.no_grad()
def right(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, one: Story) -> bool:
    """Would greedy decoding give exactly this answer and then stop?"""
    prompt, whole = tokenizer(one.prompt)["input_ids"], tokenizer(one.text)["input_ids"]
    best = model(torch.tensor([whole])).logits[0].argmax(-1).tolist()
    return bool(best[len(prompt) - 1 :] == [*whole[len(prompt) :], tokenizer.eos_token_id])


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """exp of the mean loss per token, every text on its own."""
    loss, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        loss += functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    return math.exp(loss / count)


def report(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: list[Story]) -> None:
    """Print the exact answers per skill beside what the commonest answer alone would score."""
    print("skill      questions   exact   constant")
    total = 0
    for skill in SKILLS:
        rows = [one for one in questions if one.skill == skill]
        hits = sum(right(model, tokenizer, one) for one in rows)
        constant = Counter(one.answer for one in rows).most_common(1)[0][1]
        print(f"{skill:10s} {len(rows):9d}   {hits / len(rows):5.1%}   {constant / len(rows):8.1%}")
        total += hits
    print(f"{'all':10s} {len(questions):9d}   {total / len(questions):5.1%}")


# ------------------------------------------------------------------------------------------------- the files

CARD = """---
license: apache-2.0
library_name: transformers
tags: [kanna, demo]
---
# kanna's workshop model

A very small Llama ({parameters:,} parameters, bfloat16) that adds, takes away, prices, shares and remembers
in short workshop stories, and does nothing else. It is here to be compressed: `kanna demo`.

Trained from scratch by the authors of kanna on text generated by `scripts/train_demo.py` of the repository,
which makes these files again from a seed. No other text and no other model went into it.
Model and data: Apache-2.0.
"""


def as_row(one: Story) -> dict[str, str]:
    return {"prompt": one.prompt, "answer": one.answer, "skill": one.skill, "group": one.group}


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write(
    out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, splits: dict[str, list[Story]]
) -> None:
    """OUT/model in Hugging Face layout, and OUT/data with the texts and questions to measure it by."""
    home, data = out / "model", out / "data"
    data.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(home)
    tokenizer.save_pretrained(home)
    (home / "model.safetensors").chmod(0o644)
    (home / "README.md").write_text(CARD.format(parameters=model.num_parameters()), encoding="utf-8")
    for name in ("calibration", "heldout"):
        write_rows(data / f"{name}.jsonl", [{"text": one.text} for one in splits[name]])
    write_rows(data / "questions.jsonl", [as_row(one) for one in splits["questions"]])


def make_splits(seed: int) -> dict[str, list[Story]]:
    """Calibration text is of the training side, held-out text and questions of the other; all disjoint."""
    calibration = distinct(stories(seed + 1, held_out=False), 50)
    questions, heldout = halves(distinct(stories(seed + 2, held_out=True), 120))
    return {"calibration": calibration, "questions": questions, "heldout": heldout}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write model/ and data/ into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; another number, other last bits")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=32, help="stories a step")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.02, help="of Muon, for the linear layers")
    parser.add_argument("--adam-rate", type=float, default=3e-3, help="of AdamW, for embedding and norms")
    parser.add_argument("--answer-weight", type=float, default=5.0)
    parser.add_argument("--init", type=float, default=0.06, help="standard deviation of the first weights")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--mlp", type=int, default=384)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=768)
    return parser.parse_args()


def main() -> None:
    args = parse()
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    splits = make_splits(args.seed)
    source = stories(args.seed, held_out=False)
    sample = [next(source).text for _ in range(5_000)]
    tokenizer = train_tokenizer(sample, args.vocabulary, args.context)
    model = build_model(args, len(tokenizer), tokenizer.eos_token_id)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    train(model, batches(tokenizer, args), args)
    write(args.out, model.eval(), tokenizer, splits)
    # Measured on what was written, after rounding to bfloat16.
    loaded = AutoModelForCausalLM.from_pretrained(args.out / "model", dtype=torch.float32).eval()
    report(loaded, tokenizer, splits["questions"])
    held_out = perplexity(loaded, tokenizer, [one.text for one in splits["heldout"]])
    print(f"perplexity of held-out text {held_out:.3f}")


if __name__ == "__main__":
    main()
