"""Every verb on every family in a folder of models, against independent loops; writes docs/models.md.

    python scripts/models_table.py ROOM                     ROOM holds one model directory a family
    python scripts/models_table.py ROOM --only llama t5     some of them
    python scripts/models_table.py ROOM --write             and docs/models.md

Each family has a process of its own and two minutes. What is finished lies in --results, one line of JSON a
family, and is not done again. `works` means that the verb gave what `models_checks.py` computes by itself.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "models.md"
SECONDS = 240
WORKS, REFUSED, WRONG, CRASH = "works", "refused", "wrong", "crash"
UNCHECKED = "not checked"


def checked(directory: Path, only: list[str] | None = None) -> dict[str, Any]:
    """Check -> [status, detail], of one family, in this process."""
    warnings.simplefilter("ignore")
    from models_checks import CHECKS, Family, WrongError

    from kanna import InputError

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as room:
        os.environ["KANNA_CACHE"] = f"{room}/cache"
        family = Family(directory, Path(room))
        for name, check in CHECKS.items():
            if only and name not in only:
                continue
            try:
                found[name] = [WORKS, check(family)]
            except InputError as error:
                found[name] = [REFUSED, error.problem]
            except WrongError as error:
                found[name] = [WRONG, str(error)]
            except Exception as error:  # whatever goes wrong is what is looked for
                status = CRASH if family.runs_alone() else UNCHECKED
                found[name] = [status, f"{type(error).__name__}: {str(error)[:200]}"]
    return found


def in_process(directory: Path, only: list[str] | None) -> dict[str, Any]:
    """The same in a process of its own, so that one family cannot take the others with it."""
    command = [sys.executable, __file__, "--child", str(directory), *(["--checks", *only] if only else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return {"inspect": [CRASH, f"more than {SECONDS} s"]}
    last = done.stdout.strip().splitlines()[-1:] or [""]
    if done.returncode or not last[0].startswith("{"):
        return {"inspect": [CRASH, f"exit {done.returncode}: {done.stderr[-200:]}"]}
    result: dict[str, Any] = json.loads(last[0])
    return result


HEAD = """# Models that were tried

Written by `scripts/models_table.py`: each verb on a tiny random model of each family (two to four layers,
width 64), compared with what `scripts/models_checks.py` computes by itself with plain transformers. *Works*
means equal: matrices and parameters counted; factors loaded and multiplied as they are put in by hand, with
`plain` the best of their rank; log-likelihoods those of single rows without padding; written texts those of
greedy decoding token by token. Such models say nothing about quality. *Not checked*: plain
transformers cannot run single rows of some lengths (xLSTM), so that there is nothing to compare with.

Beside these, unit tests hold factors, statistics and names of matrices against the model itself, in every
run, of `BertForMaskedLM`, `BertForSequenceClassification`, `FalconForCausalLM`, `GPT2LMHeadModel`,
`GPTJForCausalLM`, `GPTNeoXForCausalLM`, `Gemma2ForCausalLM`, `Gemma3ForCausalLM`, `LlamaForCausalLM`,
`MistralForCausalLM`, `MixtralForCausalLM`, `OPTForCausalLM`, `Phi3ForCausalLM`, `PhiForCausalLM`,
`Qwen2ForCausalLM`, `Qwen2MoeForCausalLM`, `Qwen3ForCausalLM`, `Qwen3MoeForCausalLM`, `RobertaForMaskedLM`,
`RobertaForSequenceClassification`; of T5, mT5, BART and Marian; and of what is listed in
`tests/unit/models/unusual_configs.py`.

| column | what was asked |
|---|---|
| inspect | every parameter is counted, and some matrix can be compressed |
| lowrank plain, lowrank, anchored | `--keep 0.6`: without text, by default, and with `--method anchored` |
| optimum | loss of whitened factors over the least possible of their rank, for what the running model reads |
| laser, laser factored | one edit, stored dense and as factors |
| letters, words, answers, text | choices of one token, of several; written answers; perplexity |
| export | what `lowrank plain` wrote, multiplied out |

"""


def page(results: dict[str, Any]) -> str:
    """docs/models.md."""
    from models_checks import CHECKS

    lines = ["| family | " + " | ".join(CHECKS) + " |", "|---|" + "---|" * len(CHECKS)]
    for family, checks in sorted(results.items()):
        cells = (_cell(name, *checks.get(name, ("", ""))) for name in CHECKS)
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    lines += ["", "## Refused, and why", "", *(f"* {line}" for line in _reasons(results))]
    return HEAD + "\n".join([*lines, *_failures(results)]) + "\n"


def _failures(results: dict[str, Any]) -> list[str]:
    """What is neither right nor refused, in full."""
    found = [
        f"* {family} ({name}): {status}: {detail}"
        for family, checks in sorted(results.items())
        for name, (status, detail) in checks.items()
        if status in (WRONG, CRASH)
    ]
    return ["", "## Not right", "", *found] if found else []


def _cell(name: str, status: str, detail: str) -> str:
    if status in (WRONG, CRASH):
        return f"**{status}**"
    return detail if (name, status) == ("optimum", WORKS) else status


def _reasons(results: dict[str, Any]) -> list[str]:
    """Each reason once, with the families and verbs it was given to."""
    where: dict[str, dict[str, list[str]]] = {}
    for family, checks in sorted(results.items()):
        for name, (status, detail) in checks.items():
            if status == REFUSED:
                given = where.setdefault(detail.replace(family, "MODEL"), {})
                given.setdefault(family, []).append(name)
    return [f"{problem}: {_places(given)}" for problem, given in sorted(where.items())]


def _places(given: dict[str, list[str]]) -> str:
    return "; ".join(f"{family} ({', '.join(names)})" for family, names in given.items())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("room", type=Path, nargs="?")
    parser.add_argument("--only", nargs="*", help="families")
    parser.add_argument("--checks", nargs="*", help="of models_checks.CHECKS")
    parser.add_argument("--results", type=Path, default=Path("models.jsonl"))
    parser.add_argument("--write", action="store_true", help="docs/models.md")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(checked(given.child, given.checks)))
        return
    results: dict[str, Any] = {}
    if given.results.exists():
        results = {name: found for line in given.results.open() for name, found in json.loads(line).items()}
    names = given.only or sorted(path.parent.name for path in given.room.glob("*/config.json"))
    for number, name in enumerate(names, 1):
        if name not in results or given.only:
            results[name] = in_process(given.room / name, given.checks)
            with given.results.open("a") as file:
                file.write(json.dumps({name: results[name]}) + "\n")
        failed = {check: found for check, found in results[name].items() if found[0] != WORKS}
        print(f"{number}/{len(names)} {name}: {failed or 'all work'}", flush=True)
    if given.write:
        PAGE.write_text(page(results), encoding="utf-8")
    print(Counter(found[0] for checks in results.values() for found in checks.values()))


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
