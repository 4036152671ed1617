"""What kanna laser says: tables of edits, of searches and of what they were tested on."""

from typing import TYPE_CHECKING, Any

from kanna.reporting.wording import change, shown
from kanna.terminal import asking
from kanna.terminal.session import Session

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.methods.laser.plan import Plan
    from kanna.methods.laser.run import LaserResult


def announce(session: Session, plan: "Plan") -> None:
    """The resolved matrices, on stderr."""
    session.say(f"{len(plan.reductions)} matrices change, mode {plan.config.mode}")
    for note in plan.notes:
        session.say(f"note: {note}")


def show(session: Session, result: "LaserResult") -> int:
    """What was applied, on stdout.

    Returns:
        The exit code.
    """
    session.show(result.to_dict(), lambda console: render_applied(console, result))
    return 0 if result.passed else asking.VERDICT_FAILED


def _render_plan(console: "Console", plan: "Plan") -> None:
    from kanna.terminal.tables import table

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


def render_applied(console: "Console", result: "LaserResult") -> None:
    from kanna.terminal.tables import percent, size

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


def render_search(console: "Console", found: dict[str, Any], applied: "LaserResult | None") -> None:
    from kanna.terminal.tables import table

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
    from kanna.terminal.tables import table

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
    from kanna.terminal.tables import table

    if by is None:
        return
    names = [name for name in by if name != "key"]
    rows = [
        [value, f"{one['rows']:,}", *(shown(metric, by[name][value]["value"]) for name in names)]
        for value, one in by["base"].items()
    ]
    console.print(table((by["key"], ">rows", *(f">{name}" for name in names)), rows))


def render_composed(console: "Console", found: dict[str, Any], applied: "LaserResult") -> None:
    from kanna.terminal.tables import table

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


def render_analysis(console: "Console", found: dict[str, Any]) -> None:
    from kanna.terminal.tables import percent, table

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
