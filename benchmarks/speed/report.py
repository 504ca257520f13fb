"""Measurements of run.py as Markdown tables and one picture."""

import inspect
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Results = dict[str, Any]
HEADER = """# Speed, measured

Written by `python benchmarks/speed/run.py` ([what is measured, and how](README.md)). Medians, with the range over
repetitions in brackets. MiB: sum over all processes of the largest resident set / of the memory held at the end, in
which shared pages count once.
"""


def markdown(data: Results, picture_name: str) -> str:
    """All sections that have been measured, and the picture if it shows one of them."""
    parts = [HEADER.strip(), "\n".join(f"- **{name}**: {value}" for name, value in data["machine"].items())]
    if data.keys() & {"population", "width", "environments"}:
        parts.append(f"![cost of members; speed by width and by environments]({picture_name})")
    for name, section in TABLES.items():
        if name in data:
            facts = "; ".join(f"{key}: {value}" for key, value in data[name]["facts"].items())
            title, _, legend = inspect.cleandoc(section.__doc__ or name).partition("\n\n")
            parts += [
                f"## {title}",
                *([legend] if legend else []),
                section(data[name]["results"]),
                f"<sub>{facts}</sub>",
            ]
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is a name."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """Median, with the range in brackets where there is one."""
    if not values:
        return "–"
    middle = format(statistics.median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}}–{max(values):{form}})"


def column(trials: Sequence[Results], name: str) -> list[float]:
    """All values of a measurement, failed ones left out."""
    return [trial[name] for trial in trials if name in trial]


def ratios(above: Sequence[Results], below: Sequence[Results], name: str = "steps_per_second") -> list[float]:
    """Quotients of two measurements of the same round."""
    pairs = zip(above, below, strict=False)
    return [a[name] / b[name] for a, b in pairs if name in a and name in b]


def mib(trials: Sequence[Results]) -> str:
    """Peak and present memory."""
    peak, held = column(trials, "peak_mib"), column(trials, "pss_mib")
    return f"{max(peak):,.0f} / {max(held):,.0f}" if peak else "–"


def peers(results: Results) -> str:
    """The reference work, beside other libraries

    What × means: popgraft with as many agents, with 32, and with 32 in bfloat16, divided by the row, in the same round.
    """
    one, larger = results["popgraft|1"], [results.get(f"popgraft{kind}|32", []) for kind in ("", ", bfloat16")]
    rows, failures = [], []
    for key, trials in results.items():
        name, agents = key.split("|")
        same = ratios(results.get(f"popgraft|{agents}", one), trials)
        more = [spread(ratios(many, trials) if int(agents) == 8 else [], ".1f") for many in larger]
        processes = column(trials, "processes")
        cells = [spread(column(trials, "steps_per_second")), spread(same, ".1f"), *more, mib(trials)]
        rows.append([name, agents, *cells, f"{max(processes):.0f}" if processes else "–"])
        failures += [f"- {name}, {agents}: {trial['error']}" for trial in trials if "error" in trial]
    versions = {
        name: number
        for trials in results.values()
        for trial in trials
        for name, number in trial.get("versions", {}).items()
        if name not in ("torch", "gymnasium", "numpy", "stable-baselines3")
    }
    known = ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
    header = ["", "agents", "steps/s, all agents", "× as many here", "× 32 here", "× 32 in bfloat16"]
    header += ["MiB, peak / held", "processes"]
    return "\n".join([table(header, rows), "", f"Peers: {known}.", *failures])


def imports(results: Results) -> str:
    """Import, seconds"""
    return table(["", "s"], [[name, spread(times, ".2f")] for name, times in results.items()])


AGENTS = {"": "", "quantile": ", quantile critic", "bfloat16": ", bfloat16"}
"""Agents of `worker.AGENTS`, as a row names them."""


def population(results: Results) -> str:
    """Members on the reference work

    cost: time of an update of all members relative to one member's.
    """
    trials = {tuple(json.loads(key).items()): value for key, value in results.items()}
    rows = []
    for work, own in trials.items():
        settings = dict(work)
        alone = trials.get(tuple((settings | {"population": 1}).items()), [])
        cost = [settings["population"] * ratio for ratio in ratios(alone, own)]
        rows.append(
            [
                f"{settings['population']}{AGENTS[settings.get('agent', '')]}",
                str(settings["sequence_length"]),
                spread(column(own, "steps_per_second")),
                spread(cost, ".2f"),
                spread(column(own, "steps_per_cpu_second")),
                mib(own),
            ]
        )
    header = ["members", "sequence", "steps/s", "cost(N)/cost(1)", "steps per processor second", "MiB, peak / held"]
    return table(header, rows)


def width(results: Results) -> str:
    """Eight members, by the width of the dense layer and of the LSTM"""
    return by_size("width", results)


def environments(results: Results) -> str:
    """Eight members, by environments of each"""
    return by_size("environments", results)


def by_size(name: str, results: Results) -> str:
    """Speed and useful operations by one number."""
    rows = []
    for size, trials in results.items():
        rate = [trial["steps_per_second"] * trial["operations"] / 1e9 for trial in trials if "operations" in trial]
        rows.append([size, spread(column(trials, "steps_per_second")), spread(rate, ",.0f"), mib(trials)])
    return table([name, "steps/s", "useful GFLOP/s", "MiB, peak / held"], rows)


def models(results: Results) -> str:
    """The same call of `RecurrentPPO` and `DistributionalPPO`"""
    rows = []
    for key, own in results.items():
        kind, hidden = key.split("|")
        if kind == "DistributionalPPO":
            other = results[f"RecurrentPPO|{hidden}"]
            speeds = [spread(column(trials, "steps_per_second")) for trials in (other, own)]
            rows.append([hidden, *speeds, spread(ratios(own, other), ".1f")])
    return table(["LSTM of", "RecurrentPPO, steps/s", "DistributionalPPO, steps/s", "ratio"], rows)


def score(results: Results) -> str:
    """Time to score, CartPole without velocities

    Seconds by seed; a run that never passes counts with its whole time.
    """
    goals = {"quickstart": "quickstart (8 agents), best passes 475", "RecurrentPPO": "RecurrentPPO passes 450"}
    rows = []
    for kind, runs in results.items():
        known = [run for run in runs if "passed" in run]
        cells = [
            spread(column(known, name), form)
            for name, form in (("training", ".1f"), ("whole", ".1f"), ("steps", ",.0f"))
        ]
        rows.append(
            [goals.get(kind, f"{kind} passes 450"), f"{sum(run['passed'] for run in known)} of {len(runs)}", *cells]
        )
    header = ["", "seeds that pass", "training, s", "with evaluation, s", "environment steps"]
    lines = [table(header, rows), ""]
    base = column(results["RecurrentPPO"], "training")
    for kind in ("quickstart", "DistributionalPPO"):
        own = column(results[kind], "training")
        if own and base:
            share = statistics.median(own) / statistics.median(base)
            lines.append(f"- {kind}: {share:.2f} of RecurrentPPO's median training time.")
    return "\n".join(lines)


def agent(results: Results) -> str:
    """The default agent beside the reference work, eight members"""
    plain, own = results["reference"], results["default"]
    measured = ratios(plain, own)
    if not measured:
        return failed(results)
    predicted = own[0]["operations"] / plain[0]["operations"]
    rows = [
        [name, spread(column(trials, "steps_per_second")), f"{trials[0]['operations'] / 1e6:.2f}"]
        for name, trials in results.items()
    ]
    over = [ratio / predicted for ratio in measured]
    return table(["agent", "steps/s", "MFLOP a step"], rows) + (
        f"\n\nIts cost is {spread(measured, '.2f')} × the reference's; its operations predict {predicted:.2f}: "
        f"{spread(over, '.2f')} of the prediction, at most 1.25 wanted."
    )


def overhead(results: Results) -> str:
    """Beside training

    The quickstart trains on 1,280 steps of a member per generation and evaluates it on up to 5,000; the reference work,
    as sixteen members that evolve every 25 updates, trains on 51,200.
    """
    times = column(results["graft"], "milliseconds")
    runs = {
        title: [trial for trial in results.get(kind, []) if "whole" in trial]
        for kind, title in (("shares", "quickstart, % of the run"), ("shares of reference", "reference work, %"))
    }
    lines = [failed(results)] if not times or not all(runs.values()) else []
    if times:
        lines.append(f"A graft of {results['graft'][0]['recipients']} members: {spread(times, '.1f')} ms.\n")
    calls = {name: None for trials in runs.values() for trial in trials for name in trial if name != "whole"}
    rows = [
        [name, *(spread([100 * trial[name] / trial["whole"] for trial in trials], ".2f") for trials in runs.values())]
        for name in calls
    ]
    return "\n".join([*lines, table(["call of the loop", *runs], rows)])


def ceiling(results: Results) -> str:
    """The machine's batched float32 products, all cores

    Beside them what members reach in useful operations, and as a share of the products.
    """
    products = results["products"]
    useful = {
        name: [trial["steps_per_second"] * trial["operations"] / 1e9 for trial in trials if "operations" in trial]
        for name, trials in results.items()
        if name != "products"
    }
    rows = []
    for shape in ("minibatch", "step", "large"):
        rates = column(products, shape)
        shares = ([100 * own / rate for own, rate in zip(reached, rates, strict=False)] for reached in useful.values())
        rows.append([shape, spread(rates, ".0f"), *(f"{spread(share, '.0f')} %" for share in shares)])
    rows.append(["members", "", *(f"{spread(reached, '.0f')} GFLOP/s" for reached in useful.values())])
    return table(["", "GFLOP/s", *useful], rows)


def failed(results: Results) -> str:
    """Reasons of what could not be measured."""
    trials = [(name, trial) for name, trials in results.items() for trial in trials]
    return "\n".join(f"- {name}: {trial['error']}" for name, trial in trials if "error" in trial)


TABLES: dict[str, Callable[[Results], str]] = {
    section.__name__: section
    for section in (peers, imports, population, width, environments, models, score, agent, overhead, ceiling)
}


def picture(data: Results, file: Path) -> None:
    """Cost of members, and speed by width and environments, as far as they have been measured."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    works = {key: json.loads(key) for key in data.get("population", {"results": {}})["results"]}
    for length in sorted({work["sequence_length"] for work in works.values()}, reverse=True):
        chosen = {w["population"]: k for k, w in works.items() if w["sequence_length"] == length and "agent" not in w}
        times = {n: n / median(data["population"]["results"][key]) for n, key in chosen.items()}
        axes[0].plot(list(times), [time / times[1] for time in times.values()], "o-", label=f"sequences of {length}")
    axes[0].set(xlabel="members N", ylabel="cost(N) / cost(1)")
    axes[0].legend()
    for axis, name in zip(axes[1:], ("width", "environments"), strict=True):
        results = data.get(name, {"results": {}})["results"]
        axis.plot([int(size) for size in results], [median(trials) for trials in results.values()], "o-")
        axis.set(
            xlabel=f"{name}{' per member' * (name == 'environments')}", ylabel="steps/s, 8 members", ylim=(0, None)
        )
    for axis in axes:
        if axis.lines and len(axis.lines[0].get_xdata()):
            axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def median(trials: Sequence[Results]) -> float:
    """Middle speed, NaN where nothing was measured."""
    speeds = column(trials, "steps_per_second")
    return statistics.median(speeds) if speeds else float("nan")
