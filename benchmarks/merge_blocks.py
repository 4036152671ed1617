"""What an evaluation of a merge takes in which one block is changed: the later the block, the less.

    python benchmarks/merge_blocks.py --base DIR --expert DIR --task rows.jsonl --context 256 --share 0.2

Each layer of the base becomes the expert's, one at a time, and the rows are scored from the states before it
on, as Hi-Merging does it. Told are seconds of processor time, the least of --times tries, of the whole model
and of each layer, and the share of the model's blocks that was run, by the tokens that went through them.
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import kanna
from kanna.methods.merge.hi.asked import asked_for, ground_of, mixing_of, opened
from kanna.methods.merge.hi.state import WHOLE, everywhere
from kanna.methods.merge.tuning.evaluating import Evaluator
from kanna.methods.merge.tuning.samples import Notebook, Scale
from kanna.models.inventory import inventory
from kanna.models.names import FileNames
from kanna.tasks.scorers.edited import EditedTask

_STATES = 2**31


def measured(
    base: str, expert: str, task: Path, share: float, evaluation: kanna.EvalOptions, times: int
) -> Iterator[tuple[str, float, float]]:
    """(block, seconds, share of the blocks run), the whole model first."""
    options = kanna.HiOptions(stages="layer", share=share)
    asked = asked_for(base, {"it": expert}, {"it": task}, {}, options, evaluation, None, 2 * 10**9, None)
    with opened(asked) as found:
        subject, only = found["merge"], asked.tasks[0]
        scales = {"it": Scale(0.0, 1.0)}
        evaluator = Evaluator(asked.tasks, asked.evaluation, Notebook(None))
        mixing = mixing_of(asked, scales)
        ground = ground_of(asked, mixing, scales, subject, evaluator, Path(base))
        prepared = subject.prepared([only.calibration], asked.evaluation)
        model = found["base"].model(asked.evaluation)
        names = FileNames.of(model, [tensor.spec.name for tensor in subject.plan.tensors])
        places = {file: parameter for parameter, file in names.stored.items()}
        edited = EditedTask(prepared, prepared.tasks[0], model, inventory(model), _STATES)
        evaluator.score("whole", subject, model, asked.tasks)  # whatever is done once is done now
        taken = []
        for number in range(times):
            began = time.process_time()
            evaluator.score(f"again {number}", subject, model, asked.tasks)
            taken.append(time.process_time() - began)
        yield "all", min(taken), 1.0
        edited.base()
        whole = edited.resumed.effort.layer_tokens
        state = everywhere([WHOLE], len(asked.blocks))
        for block in asked.blocks:
            if not block.layers:
                continue
            edits = [ground.edits(state, block, places)]
            edited.edited(edits)
            before, taken = edited.resumed.effort.layer_tokens, []
            for _ in range(times):
                began = time.process_time()
                edited.edited(edits)
                taken.append(time.process_time() - began)
            tokens = (edited.resumed.effort.layer_tokens - before) / times
            yield block.name, min(taken), tokens / whole
        edited.close()


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", required=True)
    parser.add_argument("--expert", required=True)
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.2, help="of the rows, that are scored")
    parser.add_argument("--context", type=int)
    parser.add_argument("--times", type=int, default=3)
    said = parser.parse_args(words)
    evaluation = kanna.EvalOptions(context=said.context)
    print("| layer | seconds | blocks run |\n|---|---:|---:|")
    for name, seconds, share in measured(
        said.base, said.expert, said.task, said.share, evaluation, said.times
    ):
        print(f"| {name} | {seconds:.2f} | {share:.0%} |")


if __name__ == "__main__":
    main()
