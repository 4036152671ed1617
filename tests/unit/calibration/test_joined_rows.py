"""With --joiner, rows that are learnt and calibrated on have the tokens of those that are scored."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import chatting
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import encoder_decoders
from tiny_encoders import HEADS, LONGEST, encoder, save_encoder

import kanna
from kanna.calibration.text import windows_of
from kanna.checkpoint.reader import Checkpoint
from kanna.cli.main import main
from kanna.errors import InputError
from kanna.methods.basel.config import BaselConfig
from kanna.runs.lessons import read_data
from kanna.runs.source import Source
from kanna.tasks.data.rows import read_rows
from kanna.tasks.options import EvalOptions
from kanna.tasks.tokens.cloze import Cloze
from kanna.tasks.tokens.encode import Encoder
from kanna.tasks.tokens.tokenizer import load_tokenizer
from kanna.training.examples import masked

DEMO = Path(kanna.__file__).parent / "demo" / "model"
JOINERS = ["", "\n", " ", None]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    made = [{"prompt": f"Eva has {n} tiles. How many? Answer:", "answer": f" {n}"} for n in range(10, 40)]
    return written(tmp_path / "rows.jsonl", made)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chatting.save_model(tmp_path_factory.mktemp("plain") / "model")


def scored(rows: Path, joiner: str | None) -> set[tuple[int, ...]]:
    """What the model reads and is asked for, row by row."""
    asks = Encoder(load_tokenizer(DEMO), 256, joiner=joiner)
    found = set()
    for row in map(json.loads, rows.read_text().splitlines()):
        (piece,) = asks.pieces(row["prompt"], [row["answer"]])
        found.add(piece.context + piece.target)
    return found


@pytest.mark.parametrize("joiner", JOINERS)
def test_rows_are_calibrated_on_as_they_are_scored(rows: Path, joiner: str | None) -> None:
    windows = windows_of(Checkpoint.open(DEMO), rows, 8192, None, 0, joiner=joiner)
    read = {tuple(ids[seen].tolist()) for ids, seen in zip(windows.ids, windows.mask, strict=True)}
    assert read == scored(rows, joiner)
    assert joiner in (" ", None) or not read & scored(rows, None)


@pytest.mark.parametrize("joiner", JOINERS)
def test_rows_are_learnt_as_they_are_scored(rows: Path, joiner: str | None) -> None:
    config = BaselConfig(data=rows, keep=0.5)
    plan = kanna.basel(DEMO, None, config, options=EvalOptions(joiner=joiner), dry_run=True).plan
    end = load_tokenizer(DEMO).eos_token_id
    learnt = {example.ids for example in (*plan.data.train.all, *plan.data.validation.all)}
    assert learnt == {(*ids, end) for ids in scored(rows, joiner)}
    plain = read_data(Source.open(DEMO), config, ())
    assert (plan.data.digest == plain.digest) is (joiner is None)  # runs are resumed by it


def test_replayed_rows_are_written_so_too(rows: Path, tmp_path: Path) -> None:
    more = written(tmp_path / "more.jsonl", [{"prompt": "Is it? Answer:", "answer": "yes"}] * 40)
    config = BaselConfig(data=rows, keep=0.5, replay=more)
    tokens = load_tokenizer(DEMO)
    found = [read_data(Source.open(DEMO), config, (), joiner) for joiner in ("\n", None)]
    texts = [tokens.decode([i for one in (*data.replay, *data.text) for i in one.ids]) for data in found]
    assert "Answer:\nyes" in texts[0] and "Answer: yes" not in texts[0]
    assert "Answer: yes" in texts[1]


def test_masks_are_learnt_behind_it(tmp_path: Path) -> None:
    base = save_encoder(tmp_path / "base", "Bert")
    draw = random.Random(0)
    data = written(
        tmp_path / "rows.jsonl",
        [{"prompt": " ".join(draw.choices(HEADS, k=3)), "answer": "ka"} for _ in range(20)],
    )
    config = BaselConfig(data=data, validation=data, allow_overlap=True, keep=0.5)
    found = read_data(Source.open(base), config, (), " mi ")
    cloze = Cloze(load_tokenizer(base), LONGEST, joiner=" mi ")
    assert found.train.all == masked(read_rows(data), cloze).all
    mi = encoder("Bert")[1].convert_tokens_to_ids("mi")
    assert all(example.ids[-3] == mi for example in found.train.all)


@pytest.mark.parametrize(
    ("verb", "settings"),
    [("lowrank", ["--keep", "0.7", "--align", "1"]), ("quantize", ["--bits", "4", "--group", "8"])],
)
def test_verbs_calibrate_so_and_their_recipe_does_so_again(
    model: Path, tmp_path: Path, verb: str, settings: list[str]
) -> None:
    draw = random.Random(1)
    made = [{"prompt": " ".join(draw.choices(chatting.WORDS, k=6)), "answer": "fine"} for _ in range(60)]
    rows = written(tmp_path / "rows.jsonl", made)
    words = [verb, str(model), "--calibration", str(rows), *settings, "-q"]
    for name, more in (("plain", []), ("joined", ["--joiner", " and "])):
        assert main([*words, *more, "--out", str(tmp_path / name)]) == 0
    data = {
        name: json.loads((tmp_path / name / "kanna.json").read_text())["steps"][0]["data_hash"]
        for name in ("plain", "joined")
    }
    assert data["plain"] != data["joined"]
    recipe = yaml.safe_load((tmp_path / "joined" / "recipe.yaml").read_text())
    assert recipe["evaluation"] == {"joiner": " and "}
    kanna.run(tmp_path / "joined" / "recipe.yaml", out=tmp_path / "again")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("joined", "again", "plain")]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize("verb", ["lowrank", "basel"])
def test_a_run_is_not_resumed_with_another_one(model: Path, tmp_path: Path, verb: str) -> None:
    draw = random.Random(2)
    made = [{"prompt": " ".join(draw.choices(chatting.WORDS, k=6)), "answer": "fine"} for _ in range(60)]
    rows = written(tmp_path / "rows.jsonl", made)

    def run(joiner: str, **more: Any) -> None:
        told: dict[str, Any] = {"options": EvalOptions(joiner=joiner), "cache": tmp_path / "cache", **more}
        if verb == "basel":
            kanna.basel(model, tmp_path / "out", BaselConfig(data=rows, keep=0.7, select="down"), **told)
        else:
            config = kanna.LowRankConfig(keep=0.7, align=1)
            kanna.lowrank(model, tmp_path / "out", config, calibration=rows, **told)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(" and ", progress=stop)
    with pytest.raises(InputError, match="--joiner was"):
        run(" well ", resume=True)
    run(" and ", resume=True)


def test_where_a_template_or_nothing_stands_between_it_is_refused(
    model: Path, rows: Path, tmp_path: Path
) -> None:
    asked = [" ".join(chatting.WORDS[:n]) for n in range(1, 11)]
    talk = written(tmp_path / "talk.jsonl", [chatting.said(one, "fine") for one in asked * 2])
    for config in (BaselConfig(data=talk, keep=0.5), BaselConfig(data=rows, keep=0.5, chat=True)):
        with pytest.raises(InputError, match="said by the chat template"):
            kanna.basel(model, None, config, options=EvalOptions(joiner=""), dry_run=True)
    with pytest.raises(InputError, match="said by the chat template"):
        windows_of(Checkpoint.open(model), rows, 4096, None, 0, chat=True, joiner="")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"chat": True}, "which is asked in no chat"),
        ({"joiner": ""}, "reads no answer behind a prompt"),
    ],
)
def test_encoder_decoders_know_neither(
    options: dict[str, Any], said: str, rows: Path, tmp_path: Path
) -> None:
    base = encoder_decoders.save("t5", tmp_path / "t5")
    with pytest.raises(InputError, match=said):
        kanna.lowrank(
            base, None, kanna.LowRankConfig(keep=0.5), calibration=rows, options=EvalOptions(**options),
            dry_run=True,
        )  # fmt: skip
