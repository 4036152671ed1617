"""kanna laser apply | search | compose | analyze | restore"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kanna.cli import asking
from kanna.cli.options import Device, Directory, Force, Model, Out
from kanna.cli.session import Session, verb
from kanna.errors import InputError
from kanna.reporting.wording import change, shown

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.methods.laser.plan import Plan
    from kanna.recipe.laser_apply import LaserResult

app = typer.Typer(
    name="laser", help="Rank reductions that make a model better (LASER).", no_args_is_help=True
)
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
MoreTasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task", metavar="FILE", help="Rows on which the result is judged.", rich_help_panel="Tasks"
    ),
]


@verb
def apply(
    session: Session,
    model: Model,
    edit: Edits = None,
    out: Out = None,
    mode: Annotated[
        str,
        typer.Option(
            help="top (LASER) | bottom | random | magnitude | zero | noise | none.", rich_help_panel=_WHAT
        ),
    ] = "top",
    blocks: Annotated[
        int, typer.Option(min=1, help="Row blocks truncated each on its own.", rich_help_panel=_WHAT)
    ] = 1,
    factored: Factored = False,
    keep_originals: Originals = False,
    seed: Seed = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done.", rich_help_panel=_RUN)
    ] = False,
    task: MoreTasks = None,
    max_drop: asking.MaxDrop = None,
    tolerance: asking.ToleranceFile = None,
    guard: asking.Guards = None,
    confidence: asking.Confidence = 0.95,
    metric: asking.Metric = None,
    context: asking.Context = None,
    limit: asking.Limit = None,
    device: Device = "cpu",
    force: Force = False,
) -> int:
    """Reduce the rank of the matrices that edits name.

    kanna laser apply MODEL --edit mlp_in:27:0.01 --out DIR
    """
    from kanna.recipe.laser_apply import laser_apply, laser_config
    from kanna.tasks.evaluate import EvalOptions

    settings = {"edits": tuple(edit or ()), "mode": mode, "blocks": blocks, "factored": factored,
                "keep_originals": keep_originals, "seed": seed}  # fmt: skip
    config = laser_config(settings)
    criteria = asking.criteria_from(task, max_drop, tolerance, guard, confidence)
    with session.progress() as progress:
        result = laser_apply(
            model,
            out,
            config,
            force=force,
            dry_run=dry_run,
            device=device,
            criteria=criteria,
            options=EvalOptions(metric=metric, limit=limit, context=context, device=device),
            announce=lambda plan: _announce(session, plan),
            progress=progress,
        )
    session.show(result.to_dict(), lambda console: _render_applied(console, result))
    return 0 if result.passed else asking.VERDICT_FAILED


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
    from kanna.methods.laser.config import LaserConfig
    from kanna.methods.laser.search import Budget
    from kanna.methods.laser.space import RHOS
    from kanna.recipe.criteria import read_criteria
    from kanna.recipe.laser_search import SearchOptions, laser_search
    from kanna.tasks.evaluate import EvalOptions

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
    session.show(result.to_dict(), lambda console: _render_search(console, result.result, result.applied))
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
    from kanna.methods.laser.config import LaserConfig
    from kanna.recipe.criteria import read_criteria
    from kanna.recipe.laser_compose import laser_compose
    from kanna.tasks.evaluate import EvalOptions

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
    session.show(result.to_dict(), lambda console: _render_composed(console, result.result, result.applied))
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
    from kanna.recipe.laser_analyze import laser_analyze
    from kanna.recipe.results import check_free, write_result
    from kanna.tasks.evaluate import EvalOptions

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
    session.show(result.to_dict(), lambda console: _render_analysis(console, result.to_dict()))


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
    from kanna.recipe.laser_apply import restore as restore_model
    from kanna.recipe.laser_compose import restore_stage

    with session.progress() as progress:
        if stage is None:
            path = restore_model(directory, out, base=base, force=force, progress=progress)
        else:
            result = restore_stage(directory, stage, out, base=base, force=force, progress=progress)
            path = result.out or out
    said = {"schema_version": 1, "kind": "laser-restore", "out": str(path), "stage": stage}
    session.show(said, lambda console: console.print(f"written: {path}"))


for command in (apply, search, compose, analyze, restore):
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


def _announce(session: Session, plan: "Plan") -> None:
    """The resolved matrices, on stderr."""
    session.say(f"{len(plan.reductions)} matrices change, mode {plan.config.mode}")
    for note in plan.notes:
        session.say(f"note: {note}")


def _render_plan(console: "Console", plan: "Plan") -> None:
    from kanna.cli.tables import table

    rows = [
        [
            one.matrix.name,
            f"{one.matrix.out_features} x {one.matrix.in_features}",
            one.said,
            f"{one.rank} of {one.full}",
            "factors" if one.factored else "dense",
        ]
        for one in plan.reductions
    ]
    console.print(table(("matrix", ">shape", ">asked", ">rank", "stored"), rows))


def _render_applied(console: "Console", result: "LaserResult") -> None:
    from kanna.cli.tables import percent, size

    _render_plan(console, result.plan)
    if result.out is None:
        for note in result.plan.notes:
            console.print(f"note: {note}")
        console.print("dry run: nothing was written")
        return
    figures = result.figures
    console.print(
        f"weights: {size(figures['model_bytes_before'])} -> {size(figures['model_bytes_after'])} "
        f"({percent(figures['keep_model_bytes'])})"
    )
    _render_end(console, result)


def _render_end(console: "Console", result: "LaserResult") -> None:
    assert result.verdict is not None
    if not result.verdict.passed:
        console.print(f"verdict: FAIL: {result.verdict.reason}")
    elif result.comparison is None:
        console.print("verdict: pass: reloaded, logits finite; not compared within a tolerance")
    else:
        asking.render_comparison(console, result.comparison)
    console.print(f"written: {result.out}")


def _render_search(console: "Console", found: dict[str, Any], applied: "LaserResult | None") -> None:
    from kanna.cli.tables import table

    metric, base = found["task"]["metric"], found["base"]
    rows = [_trial(metric, {**base, "edit": "(as it is)"})]
    whole = [one for one in found["trials"] if one["rows"] == base["rows"]]
    best = sorted(whole, key=lambda one: (-one["accuracy"], one["log_loss"]))[:8]
    rows += [_trial(metric, one) for one in best]
    headings = ("edit", ">rank", f">{metric}", ">log loss", ">consistency", ">perplexity")
    title = (
        f"validation, {found['task']['validation_rows']:,} rows; {len(found['trials'])} of "
        f"{found['candidates']} candidates tried, {len(whole)} on all rows"
    )
    console.print(table(headings, rows, title))
    chosen = found["chosen"]
    if found["base_wins"]:
        console.print("chosen: no edit; none is better than the model as it is")
    else:
        console.print(f"chosen: {chosen['edit']} (rank {chosen['rank']})")
    _render_test(console, found["test"])
    if applied is not None:
        _render_end(console, applied)


def _trial(metric: str, one: dict[str, Any]) -> list[str]:
    name = one["edit"] if one["blocks"] == 1 else f"{one['edit']} in {one['blocks']} blocks"
    consistency, perplexity = one["consistency"], one["perplexity"]
    return [
        name,
        str(one["rank"] or ""),
        shown(metric, one["accuracy"]),
        f"{one['log_loss']:.4f}",
        "" if consistency is None else shown("consistency", consistency),
        "" if perplexity is None else f"{perplexity:.2f}",
    ]


def _render_test(console: "Console", test: dict[str, Any] | None) -> None:
    from kanna.cli.tables import table

    if test is None:
        return
    metric = test["metric"]
    names = {
        "base": "as it is",
        "edit": " + ".join(test["edits"]),
        "magnitude": "magnitude pruning, same size",
        "random": "random components, same size",
    }
    rows = [
        [
            said,
            shown(metric, test[name]["value"]),
            f"{test[name]['log_loss']:.4f}",
            "" if "consistency" not in test[name] else shown("consistency", test[name]["consistency"]),
        ]
        for name, said in names.items()
    ]
    rows.append(["always the commonest answer", shown("acc", test["floors"]["constant"]), "", ""])
    console.print(
        table(("", f">{metric}", ">log loss", ">consistency"), rows, f"test, {test['rows']:,} rows")
    )
    low, high = test["interval"]
    console.print(
        f"test difference {change(metric, test['difference'])}, interval {change(metric, low)} to "
        f"{change(metric, high)}; {test['lost']} lost, {test['gained']} gained"
    )
    _render_by(console, metric, test.get("by"))


def _render_by(console: "Console", metric: str, by: dict[str, Any] | None) -> None:
    from kanna.cli.tables import table

    if by is None:
        return
    names = [name for name in by if name != "key"]
    rows = [
        [value, f"{one['rows']:,}", *(shown(metric, by[name][value]["value"]) for name in names)]
        for value, one in by["base"].items()
    ]
    console.print(table((by["key"], ">rows", *(f">{name}" for name in names)), rows))


def _render_composed(console: "Console", found: dict[str, Any], applied: "LaserResult") -> None:
    from kanna.cli.tables import table

    metric, base = found["task"]["metric"], found["base"]
    rows = [["", "(as it is)", shown(metric, base["accuracy"]), f"{base['log_loss']:.4f}", ""]]
    rows += [
        [
            str(one["number"] or ""),
            one["edit"],
            shown(metric, one["accuracy"]),
            f"{one['log_loss']:.4f}",
            "accepted" if one["accepted"] else "rejected",
        ]
        for one in found["stages"]
    ]
    console.print(table((">stage", "edit", f">{metric}", ">log loss", ""), rows, "validation"))
    _render_test(console, found["test"])
    _render_end(console, applied)


def _render_analysis(console: "Console", found: dict[str, Any]) -> None:
    from kanna.cli.tables import percent, table

    metric = found["metric"]
    spectra = [
        [
            one["edit"],
            f"{one['rank']} of {one['full_rank']}",
            f"{one['effective_rank']:.0f}",
            percent(one["kept_energy"]),
            str(one["rank_marchenko_pastur"]),
            str(one["rank_gavish_donoho"]),
        ]
        for one in found["spectra"]
    ]
    headings = ("edit", ">rank", ">effective rank", ">energy kept", ">above MP edge", ">above GD threshold")
    console.print(table(headings, spectra))
    names = {"base": "as it is", "top": "edited", "bottom": "removed components alone"}
    rows = [
        [said, shown(metric, found["scores"][name][metric]), f"{found['scores'][name]['log_loss']:.4f}"]
        for name, said in names.items()
    ]
    console.print(table(("", f">{metric}", ">log loss"), rows, f"{found['task']['rows']:,} rows"))
    _render_by(console, metric, found.get("by"))
    answers = [
        [one["change"], one["prompt"][-48:], *(one[name].strip() for name in ("expected", *names))]
        for one in found["answers"]
    ]
    if answers:
        console.print(table(("", "prompt", "expected", *names.values()), answers))
    if "perplexity" in found:
        pair = found["perplexity"]
        console.print(f"perplexity: {pair['base']:.2f} -> {pair['edited']:.2f}")
    if "samples" in found:
        for name in ("base", "edited"):
            one = found["samples"][name]
            console.print(
                f"free text, {name}: {one['words']:.1f} words, {percent(one['repetition'])} of four-word "
                f"sequences repeated, {percent(one['distinct'])} distinct words"
            )
