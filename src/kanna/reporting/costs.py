"""A bench's tables: what was measured, what is computed from it, and what was only estimated, apart."""

from collections.abc import Callable, Mapping, Sequence

from kanna.measure.results import FEWEST_PAIRS
from kanna.reporting.blocks import COMPUTED, ESTIMATED, MEASURED, At, Cell, Paragraph, Section, Table
from kanna.reporting.cheaper import money
from kanna.reporting.wording import filled, seconds, size

_NOT = "not measured"
_TIMES = (">p50", ">p95", ">p99", ">spread")


def bench(at: At) -> Section:
    """Latency, throughput, memory and energy; bandwidth and cost; estimates; ratios."""
    models = at["models"].items()
    tables = (
        _ratios(at),
        *(table(models) for table in (_prefill, _decode, _integers, _memory)),
        _energy(at, models),
        *(table(models) for table in (_computed, _cost, _estimated)),
    )
    blocks = [table for table in tables if table is not None]
    notes = [
        Paragraph([f"Energy by {name}: not measured: {why}."])
        for name, why in at.data["meters"].items()
        if why
    ]
    settings = at.data["settings"]
    how = ", ".join(
        f"{name.replace('_', ' ')} {settings[name]}"
        for name in ("device", "dtype", "threads", "new_tokens", "warmup", "repeats", "torch")
        if name in settings
    )
    return Section(f"Bench of {models[0].data['model']}", [*blocks, *notes, Paragraph([f"Settings: {how}."])])


def _settings(models: Sequence[At]) -> list[tuple[str, At]]:
    """Settings of all models, those of one batch and context below each other."""
    pairs = [(model.data["model"], setting) for model in models for setting in model["settings"].items()]
    return sorted(pairs, key=lambda pair: (pair[1].data["batch"], pair[1].data["context"]))


def _named(at: At) -> str:
    """A setting, which breaks only after its comma."""
    return f"batch\u00a0{at.data['batch']}, context\u00a0{at.data['context']}"


def _by_setting(
    title: str, columns: Sequence[str], models: Sequence[At], cells: Callable[[At], list[Cell]], nature: str
) -> Table | None:
    """One row for each setting of each model that has any cells; None without rows."""
    rows = [[name, _named(setting), *row] for name, setting in _settings(models) if (row := cells(setting))]
    return Table(title, ("model", "setting", *columns), rows, nature) if rows else None


def _prefill(models: Sequence[At]) -> Table | None:
    title = "Prefill, which is the time to the first token"
    return _timed(title, models, "prefill", {"prefill_tokens_per_second": ">tokens/s"})


def _decode(models: Sequence[At]) -> Table | None:
    """Concurrent streams have a column where they were asked for."""
    rates = {"decode_tokens_per_second": ">tokens/s"}
    together = "concurrent_tokens_per_second"
    if any(setting.data["measured"][together] is not None for _, setting in _settings(models)):
        rates[together] = ">all streams, tokens/s"
    return _timed("Decode, one step", models, "decode", rates)


def _integers(models: Sequence[At]) -> Table | None:
    """None where no model has whole numbers."""

    def cells(setting: At) -> list[Cell]:
        ways = setting.get("integers")
        return [_ways(ways[part]) for part in ("prefill", "decode")] if ways else []

    title = "Products with whole numbers, and how they were made"
    return _by_setting(title, ("prefill", "decode"), models, cells, MEASURED)


def _ways(at: At) -> Cell:
    return (at.cell("kernel"), " by the 4-bit kernel, ", at.cell("multiplied_out"), " multiplied out")


def _timed(title: str, models: Sequence[At], part: str, rates: Mapping[str, str]) -> Table | None:
    """Quantiles of a part's times and their spread, and rates: key -> heading."""

    def cells(setting: At) -> list[Cell]:
        measured = setting["measured"]
        times = [measured[part].cell(key, seconds) for key in ("p50", "p95", "p99")]
        spread = measured[part].cell("spread", lambda share: f"{100 * share:.0f} %")
        return [*times, spread, *(measured.cell(key, ",.1f") or _NOT for key in rates)]

    return _by_setting(title, (*_TIMES, *rates.values()), models, cells, MEASURED)


def _memory(models: Sequence[At]) -> Table:
    """What no model has (memory that was not asked for, a device there is none of) has no column."""
    headings = {
        "host_bytes": ">peak memory, host",
        "device_bytes": ">device",
        "imported_bytes": ">of it libraries alone",
    }
    memories = [model.data["memory"] or {} for model in models]
    keys = [key for key in headings if any(memory.get(key) is not None for memory in memories)]
    rows = []
    for model in models:
        memory = model.get("memory")
        held = [(memory and memory.cell(key, size)) or _NOT for key in keys]
        rows.append([model.data["model"], model.cell("bytes_on_disk", size), *held])
    title = "Size and memory, each model in a process of its own" if keys else "Size; memory was not measured"
    return Table(title, ("model", ">on disk", *(headings[key] for key in keys)), rows, MEASURED)


def _energy(at: At, models: Sequence[At]) -> Table | None:
    """None where no meter measured anything; the notes say why."""
    meters = [name for name, why in at.data["meters"].items() if not why]

    def cells(setting: At) -> list[Cell]:
        joules = setting["measured"]["joules_per_token"]
        return [joules.cell(meter, ".4f") or _NOT for meter in meters]

    return _by_setting("Energy", [f">{meter}, J/token" for meter in meters], models, cells, MEASURED)


def _computed(models: Sequence[At]) -> Table | None:
    def cells(setting: At) -> list[Cell]:
        computed = setting["computed"]
        bandwidth = computed.cell("bandwidth", lambda value: f"{size(value)}/s")
        return [computed.cell("bytes_per_token", size), bandwidth]

    columns = (">bytes read per token", ">reached bandwidth")
    title = "Weights and cache read, over the measured time"
    return _by_setting(title, columns, models, cells, COMPUTED)


def _cost(models: Sequence[At]) -> Table | None:
    rows: list[list[Cell]] = []
    for at in models:
        if cost := at.get("computed_cost"):
            per_million = cost["per_million_tokens"]
            price = per_million.figure(money(per_million.data, cost.data["currency"]))
            thousand = cost.cell("per_thousand_requests", lambda paid: money(paid, cost.data["currency"]))
            paid = cost.cell("break_even_tokens", lambda tokens: f"{tokens / 1e6:,.1f} million tokens")
            rows.append([at.data["model"], price, thousand, paid])
    columns = ("model", ">per million decoded tokens", ">per 1,000 requests", ">paid back after")
    return Table("Cost at your price", *filled(columns, rows), COMPUTED) if rows else None


def _estimated(models: Sequence[At]) -> Table | None:
    def cells(setting: At) -> list[Cell]:
        joules = setting["estimated"].cell("joules_per_token", ".4f")
        return [joules] if joules else []

    title, columns = "Energy that no counter measured", (">J/token from the watts you gave",)
    return _by_setting(title, columns, models, cells, ESTIMATED)


def _ratios(at: At) -> Table | None:
    rounds = at.data["settings"].get("repeats", FEWEST_PAIRS)
    rows: list[list[Cell]] = []
    for ratio in at["ratios"].items():
        whole = ratio.get("request")
        cells: list[Cell] = [_named(ratio)]
        for part in (ratio["prefill"], ratio["decode"], *(() if whole is None else (whole,))):
            cells += _ratio(part, rounds)
        rows.append(cells)
    if not rows:
        return None
    names = [model["model"] for model in at.data["models"]]
    between = "from least to most" if rounds < FEWEST_PAIRS else "interval at 95 %"
    title = f"Speed of {names[0]} over {names[1]}, paired by round, {between}"
    columns = ("setting", ">prefill", "", ">decode", "", ">request", "")
    return Table(title, columns[: len(rows[0])], rows, MEASURED)


def _ratio(at: At, rounds: int) -> list[Cell]:
    middle, low, high = at.data
    word = "faster" if low > 1 else "SLOWER" if high < 1 else "no clear difference"
    if rounds < FEWEST_PAIRS:
        word = f"fewer than {FEWEST_PAIRS} rounds say nothing at 95 %"
    between = (at[1].figure(f"{low:.2f}x"), " to ", at[2].figure(f"{high:.2f}x"), f": {word}")
    return [at[0].figure(f"{middle:.2f}x"), between]
