"""What kanna laser says: tables of edits, of searches and of what they were tested on."""

from typing import TYPE_CHECKING

from kanna.reporting.wording import change, shown
from kanna.terminal.results import render_end

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from kanna.methods.laser.results import Analysis, Composition, Groups, Search, Tested, Trial
    from kanna.methods.laser.run import LaserResult


def render_search(console: "Console", search: "Search", applied: "LaserResult | None") -> None:
    from kanna.terminal.tables import table

    metric, base = search.task.metric, search.base
    whole = [trial for trial in search.trials if trial.rows == base.rows]
    best = sorted(whole, key=lambda trial: (-trial.accuracy, trial.log_loss))[:8]
    rows = [_scored("(as it is)", base, metric), *(_scored(_named(trial), trial, metric) for trial in best)]
    headings = ("edit", ">rank", f">{metric}", ">log loss", ">consistency", ">perplexity")
    title = (
        f"validation, {search.task.validation_rows:,} rows; {len(search.trials)} of "
        f"{search.candidates} candidates tried, {len(whole)} on all rows"
    )
    console.print(table(headings, rows, title))
    if search.base_wins:
        console.print("chosen: no edit; none is better than the model as it is")
    else:
        console.print(f"chosen: {search.chosen.edit} (rank {search.chosen.rank})")
    _render_test(console, search.test)
    if applied is not None:
        render_end(console, applied)


def _named(trial: "Trial") -> str:
    return trial.edit if trial.blocks == 1 else f"{trial.edit} in {trial.blocks} blocks"


def _scored(name: str, trial: "Trial", metric: str) -> list[str]:
    return [
        name,
        str(trial.rank or ""),
        shown(metric, trial.accuracy),
        f"{trial.log_loss:.4f}",
        _consistency(trial.consistency),
        "" if trial.perplexity is None else f"{trial.perplexity:.2f}",
    ]


def _consistency(value: float | None) -> str:
    return "" if value is None else shown("consistency", value)


def _render_test(console: "Console", test: "Tested | None") -> None:
    from kanna.terminal.tables import table

    if test is None:
        return
    metric = test.metric
    scores = {
        "as it is": test.base,
        " + ".join(test.edits): test.edit,
        "magnitude pruning, same size": test.magnitude,
        "random components, same size": test.random,
    }
    rows = [
        [
            name,
            shown(metric, figures.value),
            "" if figures.log_loss is None else f"{figures.log_loss:.4f}",
            _consistency(figures.consistency),
        ]
        for name, figures in scores.items()
    ]
    rows.append(["always the commonest answer", shown("acc", test.floors["constant"]), "", ""])
    console.print(table(("", f">{metric}", ">log loss", ">consistency"), rows, f"test, {test.rows:,} rows"))
    low, high = test.interval
    console.print(
        f"test difference {change(metric, test.difference)}, interval {change(metric, low)} to "
        f"{change(metric, high)}; {test.lost} lost, {test.gained} gained"
    )
    if test.by is not None:
        groups = {"base": test.by.base, "edit": test.by.edit, "magnitude": test.by.magnitude,
                  "random": test.by.random}  # fmt: skip
        _render_by(console, metric, test.by.key, groups)


def _render_by(console: "Console", metric: str, key: str, groups: "Mapping[str, Groups]") -> None:
    """One line per value of the key, one column per model."""
    from kanna.terminal.tables import table

    rows = [
        [value, f"{group.rows:,}", *(shown(metric, values[value].value) for values in groups.values())]
        for value, group in groups["base"].items()
    ]
    console.print(table((key, ">rows", *(f">{name}" for name in groups)), rows))


def render_composed(console: "Console", composition: "Composition", applied: "LaserResult") -> None:
    from kanna.terminal.tables import table

    metric, base = composition.task.metric, composition.base
    rows = [["", "(as it is)", shown(metric, base.accuracy), f"{base.log_loss:.4f}", ""]]
    rows += [
        [
            str(stage.number or ""),
            stage.edit,
            shown(metric, stage.accuracy),
            f"{stage.log_loss:.4f}",
            "accepted" if stage.accepted else "rejected",
        ]
        for stage in composition.stages
    ]
    console.print(table((">stage", "edit", f">{metric}", ">log loss", ""), rows, "validation"))
    _render_test(console, composition.test)
    render_end(console, applied)


def render_analysis(console: "Console", analysis: "Analysis") -> None:
    from kanna.terminal.tables import table

    metric, scores, by = analysis.metric, analysis.scores, analysis.by
    _render_spectra(console, analysis)
    models = {"as it is": scores.base, "edited": scores.top, "removed components alone": scores.bottom}
    rows = [
        [name, shown(metric, score[metric]), f"{score['log_loss']:.4f}"] for name, score in models.items()
    ]
    console.print(table(("", f">{metric}", ">log loss"), rows, f"{analysis.task.rows:,} rows"))
    if by is not None:
        _render_by(console, metric, by.key, {"base": by.base, "top": by.top, "bottom": by.bottom})
    answers = [
        [answer.change, answer.prompt[-48:],
         *(text.strip() for text in (answer.expected, answer.base, answer.top, answer.bottom))]
        for answer in analysis.answers
    ]  # fmt: skip
    if answers:
        console.print(table(("", "prompt", "expected", *models), answers))
    pair = analysis.perplexity
    if pair is not None:
        console.print(f"perplexity: {pair.base:.2f} -> {pair.edited:.2f}")
    _render_samples(console, analysis)


def _render_spectra(console: "Console", analysis: "Analysis") -> None:
    from kanna.terminal.tables import percent, table

    rows = [
        [
            spectrum.edit,
            f"{spectrum.rank} of {spectrum.full_rank}",
            f"{spectrum.effective_rank:.0f}",
            percent(spectrum.kept_energy),
            str(spectrum.rank_marchenko_pastur),
            str(spectrum.rank_gavish_donoho),
        ]
        for spectrum in analysis.spectra
    ]
    headings = ("edit", ">rank", ">effective rank", ">energy kept", ">above MP edge", ">above GD threshold")
    console.print(table(headings, rows))


def _render_samples(console: "Console", analysis: "Analysis") -> None:
    from kanna.terminal.tables import percent

    if analysis.samples is None:
        return
    for name, written in (("base", analysis.samples.base), ("edited", analysis.samples.edited)):
        console.print(
            f"free text, {name}: {written.words:.1f} words, {percent(written.repetition)} of four-word "
            f"sequences repeated, {percent(written.distinct)} distinct words"
        )
