"""Make a small masked language model that answers the demo's questions, to search and edit encoders on.

    python scripts/train_masked.py --out DIR

The stories are those of `train_demo.py`, beside this file. A BERT of 4 layers learns to fill masks: always
the answer, and every tenth other token. Written in Hugging Face layout with the questions nobody trained on
as `questions.jsonl`, scored as kanna scores masked models: as many masks as the answer has tokens. Minutes
on two CPU cores; everything follows from the seed, for an equal number of threads.
"""

import argparse
import json
import math
import random
import time
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn import functional
from train_demo import SKILLS, Story, distinct, stories
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
IGNORED = -100


def train_tokenizer(texts: list[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer whose numbers are split into digits."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=SPECIAL)
    )
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=context,
    )


def batch(
    rows: list[Story], tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> dict[str, torch.Tensor]:
    """Masked ids, attention mask and labels; answers are always masked."""
    prompts = [tokenizer(row.prompt)["input_ids"][:-1] for row in rows]
    whole = [tokenizer(row.text)["input_ids"] for row in rows]
    width = max(map(len, whole))
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), IGNORED)
    for number, (start, tokens) in enumerate(zip(map(len, prompts), whole, strict=True)):
        ids[number, : len(tokens)] = torch.tensor(tokens)
        for place in range(1, len(tokens) - 1):
            if place >= start or rng.random() < 0.1:
                labels[number, place] = tokens[place]
                ids[number, place] = tokenizer.mask_token_id
    return {"input_ids": ids, "attention_mask": (ids != tokenizer.pad_token_id).long(), "labels": labels}


def train(model: BertForMaskedLM, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> None:
    """AdamW with a short warm-up and a cosine."""
    rng = random.Random(args.seed)
    source = stories(args.seed, held_out=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    started = time.perf_counter()
    model.train()
    for step in range(args.steps):
        scale = min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = args.lr * max(scale, 0.02)
        given = batch(list(islice(source, args.batch)), tokenizer, rng)
        labels = given.pop("labels")
        wanted = labels != IGNORED
        hidden = model.bert(**given).last_hidden_state
        loss = functional.cross_entropy(model.cls(hidden[wanted]), labels[wanted])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 200 == 0 or step == args.steps - 1:
            print(f"step {step}, loss {loss:.3f}, {time.perf_counter() - started:.0f} s", flush=True)
    model.eval()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--questions", type=int, default=120, help="of each skill")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.manual_seed(args.seed)
    sample = [one.text for one in islice(stories(args.seed, held_out=False), 4000)]
    tokenizer = train_tokenizer(sample, vocabulary=400, context=96)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        intermediate_size=4 * args.width,
        max_position_embeddings=96,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = BertForMaskedLM(config)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, skills {', '.join(SKILLS)}")
    train(model, tokenizer, args)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    questions = distinct(stories(args.seed + 1, held_out=True), args.questions)
    lines = [
        json.dumps({"prompt": q.prompt, "answer": q.answer, "group": q.group, "skill": q.skill})
        for q in questions
    ]
    (args.out / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
