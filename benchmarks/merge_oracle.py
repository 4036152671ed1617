"""Merges of recipes as people publish them, beside what mergekit made of them.

    python benchmarks/merge_oracle.py --merges DIR --room ROOM

DIR holds `recipes/*.yml`, `references/*.json.gz` (what mergekit 0.1.5 made, in float32), `refuse/*.yml` and
`oracle.py check REFERENCE OUT`; ROOM holds the models that recipes name, by relative paths. Each recipe is
merged, the result checked against the reference, verified, and loaded by plain transformers: tensors that
differ, keys that are missing or unexpected. Each of `refuse` must be refused by its plan, before a tensor is
read.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import transformers

import kanna

_SUMMARY = re.compile(r"(\d+) tensors, (\d+) differ")


def merged(recipe: Path, out: Path, merges: Path) -> list[str]:
    """Cells of a row: name, seconds, tensors, those that differ, keys, verified."""
    started = time.perf_counter()
    kanna.merge(recipe, out)
    took = time.perf_counter() - started
    reference = merges / "references" / f"{recipe.stem}.json.gz"
    said = subprocess.run(
        [sys.executable, merges / "oracle.py", "check", reference, out], capture_output=True, text=True
    ).stdout
    found = _SUMMARY.search(said)
    counts = [found[1], found[2]] if found else ["?", said.strip()[-60:]]
    return [recipe.stem, f"{took:.1f}", *counts, keys(out), "yes" if kanna.merge_verify(out).passed else "NO"]


def keys(directory: Path) -> str:
    """Keys that are missing or unexpected when transformers loads a model."""
    _, told = transformers.AutoModelForCausalLM.from_pretrained(
        directory, local_files_only=True, output_loading_info=True
    )
    return str(len(told["missing_keys"]) + len(told["unexpected_keys"]))


def refused(recipe: Path) -> str:
    try:
        kanna.merge_plan(recipe)
    except kanna.InputError as error:
        return error.problem
    return "NOT REFUSED"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--merges", type=Path, required=True)
    parser.add_argument("--room", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of the names of recipes")
    arguments = parser.parse_args()
    merges = arguments.merges.resolve()
    os.chdir(arguments.room)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print("| recipe | s | tensors | differ | keys missing or unexpected | verified |")
    print("|---|---:|---:|---:|---:|---|")
    with tempfile.TemporaryDirectory() as place:
        for recipe in sorted((merges / "recipes").glob("*.yml")):
            if any(part in recipe.stem for part in arguments.only):
                cells = merged(recipe, Path(place) / recipe.stem, merges)
                print("| " + " | ".join(cells) + " |", flush=True)
    print()
    for recipe in sorted((merges / "refuse").glob("*.yml")):
        print(f"{recipe.stem}: {refused(recipe)}")


if __name__ == "__main__":
    main()
