"""kanna laser apply | search | compose | analyze | restore"""

from pathlib import Path
from typing import Annotated

import typer

from kanna.errors import InputError
from kanna.methods.laser.tables import render_analysis, render_composed, render_search
from kanna.terminal import asking
from kanna.terminal.options import Device, Directory, Force, Model, Out
from kanna.terminal.session import Session, verb

app = typer.Typer()
_WHAT, _HOW, _CHOICE, _STORE, _RUN = "What is tried", "Search", "Choice", "Storage", "Running"

Task = Annotated[
    str, typer.Option("--task", metavar="FILE", help="Rows with answers or choices.", rich_help_panel=_WHAT)
]
Edits = Annotated[
    list[str] | None,
    typer.Option(
        "--edit",
        metavar="ROLE:LAYERS:RANK",
        help="mlp_in:27:0.01 (rho), down:-1:k=40, mlp:all:energy=0.9, q,k@3-:mp; may be repeated.",
        rich_help_panel=_WHAT,
    ),
]
Factored = Annotated[
    bool, typer.Option("--factored", help="Store two factors where smaller.", rich_help_panel=_STORE)
]
Originals = Annotated[
    bool,
    typer.Option(
        "--keep-originals", help="Keep the original matrices, to restore alone.", rich_help_panel=_STORE
    ),
]
Text = Annotated[
    Path | None, typer.Option("--text", metavar="FILE", help="For perplexity.", rich_help_panel=_CHOICE)
]
MaxRise = Annotated[
    str | None,
    typer.Option(
        "--max-ppl-rise",
        metavar="SHARE",
        help="Allowed rise of perplexity on --text: 2%, or none.",
        rich_help_panel=_CHOICE,
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Of splits and controls.", rich_help_panel=_RUN)]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.", rich_help_panel=_RUN)]
TestFile = Annotated[
    Path | None,
    typer.Option(
        "--test", metavar="FILE", help="Rows of their own for the final figure.", rich_help_panel=_WHAT
    ),
]
By = Annotated[
    str | None,
    typer.Option("--by", metavar="KEY", help="Also score by this key of the rows.", rich_help_panel=_WHAT),
]
Metric = asking.Metric


@verb
def search(
    session: Session,
    model: Model,
    task: Task,
    out: Out = None,
    roles: Annotated[str, typer.Option(help="mlp, attn, all, or roles.", rich_help_panel=_WHAT)] = "mlp",
    layers: Annotated[str, typer.Option(help="all, 4-, -8-, 0,3-5.", rich_help_panel=_WHAT)] = "all",
    rho: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Shares of the largest rank.", rich_help_panel=_WHAT),
    ] = None,
    blocks: Annotated[
        str, typer.Option(metavar="LIST", help="Numbers of row blocks.", rich_help_panel=_WHAT)
    ] = "1",
    fast: Annotated[int, typer.Option(min=8, help="Examples for the gradient.", rich_help_panel=_HOW)] = 100,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Every candidate on every row.", rich_help_panel=_HOW)
    ] = False,
    shortlist: Annotated[
        int, typer.Option(min=1, help="Candidates the gradient leaves.", rich_help_panel=_HOW)
    ] = 16,
    max_evaluations: Annotated[
        int | None, typer.Option(min=1, help="Candidates tried at most.", rich_help_panel=_HOW)
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(min=0, help="Of an exhaustive search.", rich_help_panel=_HOW)
    ] = None,
    rule: Annotated[
        str, typer.Option(metavar="NAME", help="constrained | published.", rich_help_panel=_CHOICE)
    ] = "constrained",
    max_ppl_rise: MaxRise = None,
    text: Text = None,
    text_tokens: Annotated[
        int, typer.Option(min=2, help="Of --text at most.", rich_help_panel=_CHOICE)
    ] = 8192,
    validation_share: Annotated[float, typer.Option(help="Of the rows.", rich_help_panel=_CHOICE)] = 0.2,
    first: Annotated[
        bool,
        typer.Option("--first", help="Validate on the first rows, as published.", rich_help_panel=_CHOICE),
    ] = False,
    test: TestFile = None,
    by: By = None,
    metric: Metric = None,
    context: asking.Context = None,
    limit: asking.Limit = None,
    factored: Factored = False,
    keep_originals: Originals = False,
    seed: Seed = 0,
    resume: Resume = False,
    tolerance: asking.ToleranceFile = None,
    device: Device = "cpu",
    force: Force = False,
) -> int:
    """Find the rank reduction of one matrix that makes a model better on a task.

    kanna laser search MODEL --task facts.jsonl --out DIR
    """
    from kanna.methods.laser.budget import Budget
    from kanna.methods.laser.config import LaserConfig
    from kanna.methods.laser.searching import SearchOptions, laser_search
    from kanna.methods.laser.space import RHOS
    from kanna.runs.criteria import read_criteria
    from kanna.tasks.options import EvalOptions

    if max_minutes is not None and not exhaustive:
        raise InputError("--max-minutes limits an exhaustive search", "add --exhaustive, or leave it out")
    options = SearchOptions(
        roles=roles,
        layers=layers,
        rhos=RHOS if rho is None else tuple(part.strip() for part in rho.split(",")),
        blocks=_numbers("--blocks", blocks),
        budget=Budget(
            fast=None if exhaustive else fast,
            shortlist=shortlist,
            max_evaluations=max_evaluations,
            max_seconds=None if max_minutes is None else 60 * max_minutes,
        ),
        rule=rule,
        max_ppl_rise=_rise(max_ppl_rise, text),
        text=text,
        text_tokens=text_tokens,
        share=validation_share,
        first=first,
        test=test,
        by=by,
        seed=seed,
    )
    criteria = None if tolerance is None else read_criteria(tolerance)
    with session.resumable(out), session.progress() as progress:
        result = laser_search(
            model,
            task,
            out,
            options,
            evaluation=EvalOptions(metric=metric, context=context, limit=limit, device=device),
            config=LaserConfig(factored=factored, keep_originals=keep_originals, seed=seed),
            criteria=criteria,
            force=force,
            resume=resume,
            progress=progress,
        )
    session.show(result.to_dict(), lambda console: render_search(console, result.found, result.applied))
    return 0 if result.passed else asking.VERDICT_FAILED


@verb
def compose(
    session: Session,
    model: Model,
    task: Task,
    search_result: Annotated[
        Path,
        typer.Option("--from", metavar="DIR", help="Output of kanna laser search.", rich_help_panel=_WHAT),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New directory for the result.")],
    max_steps: Annotated[int, typer.Option(min=1, help="Steps tried.", rich_help_panel=_HOW)] = 10,
    blocks: Annotated[
        int, typer.Option(min=1, help="Only edits of so many row blocks.", rich_help_panel=_WHAT)
    ] = 1,
    max_ppl_rise: MaxRise = None,
    text: Text = None,
    test: TestFile = None,
    metric: Metric = None,
    context: asking.Context = None,
    limit: asking.Limit = None,
    factored: Factored = False,
    keep_originals: Originals = False,
    resume: Resume = False,
    tolerance: asking.ToleranceFile = None,
    device: Device = "cpu",
    force: Force = False,
) -> int:
    """Put edits of a search together, the last layers first; what makes it worse is rejected.

    kanna laser compose MODEL --task facts.jsonl --from SEARCH --out DIR
    """
    from kanna.methods.laser.composing import laser_compose
    from kanna.methods.laser.config import LaserConfig
    from kanna.runs.criteria import read_criteria
    from kanna.tasks.options import EvalOptions

    criteria = None if tolerance is None else read_criteria(tolerance)
    with session.resumable(out), session.progress() as progress:
        result = laser_compose(
            model,
            task,
            search_result,
            out,
            max_steps=max_steps,
            blocks=blocks,
            text=text,
            max_ppl_rise=_rise(max_ppl_rise, text),
            test=test,
            evaluation=EvalOptions(metric=metric, context=context, limit=limit, device=device),
            config=LaserConfig(factored=factored, keep_originals=keep_originals),
            criteria=criteria,
            force=force,
            resume=resume,
            progress=progress,
        )
    session.show(result.to_dict(), lambda console: render_composed(console, result.found, result.applied))
    return 0 if result.passed else asking.VERDICT_FAILED


@verb
def analyze(
    session: Session,
    model: Model,
    task: Task,
    edit: Edits = None,
    by: By = None,
    text: Text = None,
    examples: Annotated[int, typer.Option(min=0, help="Rows shown.")] = 20,
    samples: Annotated[int, typer.Option(min=0, help="Prompts continued freely; 0 for none.")] = 16,
    metric: Metric = None,
    context: asking.Context = None,
    limit: asking.Limit = None,
    out: asking.Results = None,
    device: Device = "cpu",
    force: Force = False,
) -> None:
    """What kept and removed components answer, to which facts, and what free text becomes.

    kanna laser analyze MODEL --task facts.jsonl --edit mlp_in:27:0.01 --by frequency
    """
    from kanna.methods.laser.analyze import laser_analyze
    from kanna.runs.results import check_free, write_result
    from kanna.tasks.options import EvalOptions

    check_free(out, "laser-analysis", model, force)
    with session.progress() as progress:
        result = laser_analyze(
            model,
            task,
            edit or (),
            by=by,
            text=text,
            examples=examples,
            samples=samples,
            evaluation=EvalOptions(metric=metric, context=context, limit=limit, device=device),
            progress=progress,
        )
    write_result(out, "laser-analysis", model, result.to_dict())
    session.show(result.to_dict(), lambda console: render_analysis(console, result.found))


@verb
def restore(
    session: Session,
    directory: Directory,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New directory for the result.")],
    stage: Annotated[
        int | None, typer.Option(min=0, help="Of a composed model: so many edits instead of none.")
    ] = None,
    base: Annotated[str | None, typer.Option(metavar="MODEL", help="The model it was made from.")] = None,
    force: Force = False,
) -> None:
    """Write the model as it was before its edits, bit for bit; or a stage of a composed one."""
    from kanna.methods.laser.composing import restore_stage
    from kanna.methods.laser.restore import restore as restore_model

    with session.progress() as progress:
        if stage is None:
            path = restore_model(directory, out, base=base, force=force, progress=progress)
        else:
            result = restore_stage(directory, stage, out, base=base, force=force, progress=progress)
            path = result.out or out
    said = {"schema_version": 1, "kind": "laser-restore", "out": str(path), "stage": stage}
    session.show(said, lambda console: console.print(f"written: {path}"))


for command in (search, compose, analyze, restore):
    app.command()(command)


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise InputError(f"{flag} {text!r} is no list of whole numbers from 1", "write 1,4")
    return found


def _rise(text: str | None, measured: Path | None) -> float | None:
    """The allowed relative rise; 2 % where nothing is said."""
    if text is None:
        return 0.02
    if measured is None:
        raise InputError("--max-ppl-rise needs a text to measure perplexity on", "add --text FILE")
    if text.strip() == "none":
        return None
    share = text.strip().removesuffix("%")
    try:
        value = float(share) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise InputError(f"--max-ppl-rise {text!r} is no share from 0", "write 2%, 0.02 or none")
    return value
