"""How a run looks while it goes on: a live display in a terminal, a plain log elsewhere."""

import abc
import sys
import time
from collections.abc import Callable
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from popgraft.config import Config
from popgraft.hyperparams import HyperparamConfig
from popgraft.messages import one_line
from popgraft.train import Generation, Observer, Plan, counted, readable

CLOSING = ("final", "stopped")
"""Kinds of events that the command itself speaks of when the run is over."""

STOPPING = "stopping after the update in progress; press Ctrl-C again to stop at once"


class Progress(Observer, abc.ABC):
    """Follows a run; a context manager, so that a terminal is given back whatever happens.

    Attributes:
        plan: what is being done; None before training begins.
    """

    def __init__(self) -> None:
        self.plan: Plan | None = None

    def on_start(self, plan: Plan) -> None:
        """Says what is about to happen."""
        self.plan = plan
        for line in opening(plan):
            self.say(line)

    def on_event(self, kind: str, text: str) -> None:
        """Says what has happened."""
        if kind not in CLOSING:
            self.say(text)

    def on_interrupt(self) -> None:
        """Says that Ctrl-C has been heard."""
        self.say(STOPPING)

    def on_final_evaluation(self, episodes: int) -> None:
        """Says what takes the last moments."""
        self.say(f"evaluating the best agent over {counted(episodes, 'fresh episode')}")

    @abc.abstractmethod
    def say(self, text: str) -> None:
        """Shows a sentence."""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the terminal back."""


class PlainLog(Progress):
    """One line on standard output for every generation and event, without control characters."""

    def on_generation(self, generation: Generation) -> None:
        """Writes the generation's line."""
        assert self.plan is not None
        best, mean, worst = spread(generation, self.plan)
        rate, number = (generation.steps - self.plan.done) / generation.seconds, generation.number + 1
        self.say(
            f"generation {number}/{planned(self.plan, generation)}, "
            f"{generation.steps:,}/{self.plan.steps:,} steps, {rate:,.0f} steps/s: "
            f"best {best}, mean {mean}, worst {worst}, best ever {readable(generation.best_score)}, "
            f"{counted(exploits(generation), 'exploit')}, {clock((self.plan.steps - generation.steps) / rate)} left"
        )

    def say(self, text: str) -> None:
        """Writes a line."""
        print(one_line(text), flush=True)


class LiveDisplay(Progress):
    """A few lines that are drawn again in place.

    Args:
        console: the terminal.
        now: seconds on any clock.
    """

    def __init__(self, console: Console, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._began = 0.0
        self._steps = 0
        self._generation: Generation | None = None
        self._last = "making the environments"
        self._live = Live(self, console=console, refresh_per_second=4)

    def on_start(self, plan: Plan) -> None:
        """Starts the clock."""
        self.plan, self._last = plan, ""
        for line in opening(plan):  # above the display, for good
            self._live.console.print(Text(one_line(line)))
        self._steps = plan.done
        self._began = self._now()

    def on_update(self, steps: int) -> None:
        """Moves the bar."""
        self._steps = steps

    def on_generation(self, generation: Generation) -> None:
        """Takes over the generation's scores."""
        self._steps = generation.steps
        self._generation = generation

    def say(self, text: str) -> None:
        """Replaces the last line."""
        self._last = one_line(text)

    def __rich__(self) -> Group | Text:
        """The lines as they are now."""
        last = Text(self._last, style="dim")
        if self.plan is None:
            return last
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column()
        table.add_row("steps", self._bar(self.plan))
        table.add_row("speed", self._speed(self.plan))
        table.add_row("generation", self._counts(self.plan))
        table.add_row("score", self._scores(self.plan))
        return Group(table, last)

    def _bar(self, plan: Plan) -> Table:
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(total=plan.steps, completed=self._steps, width=30),
            Text(f"{self._steps / plan.steps:.0%}"),
            Text(f"{self._steps:,} of {plan.steps:,}"),
        )
        return bar

    def _speed(self, plan: Plan) -> Text:
        elapsed = self._now() - self._began
        if self._steps == plan.done or elapsed <= 0:
            return Text("first update")
        rate = (self._steps - plan.done) / elapsed
        left = clock((plan.steps - self._steps) / rate)
        return facts((f"{rate:,.0f}", "steps/s"), (clock(elapsed), "elapsed"), (left, "left"))

    def _counts(self, plan: Plan) -> Text:
        done = self._generation.number + 1 if self._generation else plan.begun
        number, noun = counted(exploits(self._generation) if self._generation else 0, "exploit").split()
        return facts((f"{done}", f"of {planned(plan, self._generation)}"), (number, noun))

    def _scores(self, plan: Plan) -> Text:
        if self._generation is None:
            return Text("after the first generation", style="dim")
        best, mean, worst = spread(self._generation, plan)
        ever = readable(self._generation.best_score)
        return facts((best, "best"), (mean, "mean"), (worst, "worst"), (ever, "best ever"))

    def __enter__(self) -> "LiveDisplay":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the last state on the screen."""
        self._live.stop()


def progress() -> Progress:
    """The live display if standard output is a terminal that can draw it, else the plain log."""
    console = Console(highlight=False)
    if sys.stdout.isatty() and not console.is_dumb_terminal:
        return LiveDisplay(console)
    return PlainLog()


def opening(plan: Plan) -> list[str]:
    """What is trained, what varies over the population, and how long everybody trains."""
    config, members = plan.config, plan.config.pbt.population_size
    task = config.env.id or config.env.factory or "environments of a factory"
    began = f", from step {plan.done:,}" if plan.done else ""
    each = f", {plan.steps // members:,} for each member" if members > 1 else ""
    if config.pbt.population_schedule:
        stages = config.pbt.stages(config.total_timesteps)
        later = [f"{size} from step {first:,}" for first, size in stages if first > plan.done]
        each = "".join(f", {stage}" for stage in [f"by {counted(plan.left or members, 'member')}", *later])
    wanted = f" (total_timesteps={config.total_timesteps:,}, in whole generations)"
    return [
        f"training {counted(members, 'member')} of {plan.parameters:,} parameters on {task}, into {plan.folder}{began}",
        tuned(config),
        f"{plan.steps:,} steps in {counted(planned(plan), 'generation')}{each}"
        + (wanted if plan.steps != config.total_timesteps else ""),
    ]


def planned(plan: Plan, latest: Generation | None = None) -> int:
    """Generations of the whole run, once one is over, or before the first."""
    if latest is None:
        return plan.config.planned_generations(plan.begun, plan.done, plan.left)
    return plan.config.planned_generations(latest.number + 1, latest.steps, len(latest.members))


def tuned(config: Config) -> str:
    """What varies over the population, and over time."""
    pbt = config.pbt
    if pbt.schedule:
        return f"pbt.schedule moves {', '.join(pbt.schedule[0].hyperparams) or 'nothing'}"
    if not pbt.hyperparams:
        why = "one member evolves with nobody" if pbt.population_size == 1 else "members differ by their seeds alone"
        return f"nothing is tuned, because pbt.hyperparams names nothing: {why}"
    moves = pbt.explore_method != "none" and (pbt.copies or pbt.explore_always)
    spaces = ", ".join(f"{space.name} {reach(space)}" for space in pbt.hyperparams)
    usual = "" if "hyperparams" in pbt.model_fields_set else " (the usual ones; pbt.hyperparams may name others)"
    return f"{'tuning' if moves else 'drawn at the start, and not changed:'} {spaces}{usual}"


def reach(space: HyperparamConfig) -> str:
    """The values that a hyperparameter may have."""
    if space.values is not None:
        return "/".join(f"{value:g}" for value in space.values)
    return " to ".join(f"{bound:g}" for bound in space.bounds)


def spread(generation: Generation, plan: Plan) -> tuple[str, str, str]:
    """Best, mean and worst score of the members that have one."""
    scores = generation.scores.mean
    scores = scores[scores.isfinite()]
    if not len(scores):
        return "none", "none", "none"
    low, high = float(scores.min()), float(scores.max())
    best, worst = (high, low) if plan.config.pbt.metric_mode == "max" else (low, high)
    return readable(best), readable(float(scores.mean())), readable(worst)


def exploits(generation: Generation) -> int:
    """Members that have been overwritten so far."""
    return int(generation.statistics["exploitation_count"])


def clock(seconds: float) -> str:
    """A duration as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def facts(*pairs: tuple[str, str]) -> Text:
    """Numbers, each followed by what it counts."""
    parts = [Text.assemble((number, "bold"), " ", what) for number, what in pairs]
    return Text("   ").join(parts)
