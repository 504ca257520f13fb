import contextlib
import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from popgraft import Generation, Plan, load_config
from popgraft.cli.progress import LiveDisplay, PlainLog, progress
from popgraft.state import Decision, Scores

NAN = float("nan")


def plan_of(**changes: Any) -> Plan:
    config = load_config(
        {"env": {"id": "CartPole-v1", "num_envs": 8}, "pbt": {"population_size": 4}, "total_timesteps": 100_000},
        {key.replace("__", "."): value for key, value in changes.items()},
    )
    return Plan(config, Path("runs/mine"), 12_345)  # 20,480 steps to a generation, so 5 generations


def generation_of(number: int, scores: list[float], best: float, exploits: int = 0) -> Generation:
    mean = torch.tensor(scores)
    pop = len(scores)
    return Generation(
        number=number,
        members=torch.arange(pop),
        place_steps=torch.full((pop,), 5120 * (number + 1)),
        update_steps=1024,
        steps=20_480 * (number + 1),
        seconds=10.0 * (number + 1),
        scores=Scores(mean, torch.zeros(pop), torch.ones(pop, dtype=torch.long)),
        hyperparams={},
        decision=Decision(torch.arange(pop), {}, {}),
        metrics={},
        best_score=best,
        statistics={"exploitation_count": float(exploits)},
    )


class Watch:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def logged(*generations: Generation, **changes: Any) -> list[str]:
    with contextlib.redirect_stdout(io.StringIO()) as file, PlainLog() as log:
        log.on_start(plan_of(**changes))
        for generation in generations:
            log.on_generation(generation)
    return file.getvalue().splitlines()


def shown(display: LiveDisplay, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(display)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_log_has_one_line_for_a_generation_with_all_the_facts() -> None:
    lines = logged(
        generation_of(0, [10.0, 20.0, 30.0, 160.0], 160.0, exploits=1),
        generation_of(1, [1.0, 2.0, 3.0, 2.0], 160.0, exploits=3),
    )
    assert lines == [
        "training 4 members of 12,345 parameters on CartPole-v1, into runs/mine",
        "tuning learning_rate 0.0001 to 0.003, ent_coef 1e-05 to 0.01, clip_range 0.1 to 0.4, "
        "gamma 0.9/0.95/0.98/0.99/0.995/0.998, gae_lambda 0.8/0.9/0.95/0.975/0.99 "
        "(the usual ones; pbt.hyperparams may name others)",
        "102,400 steps in 5 generations, 25,600 for each member (total_timesteps=100,000, in whole generations)",
        "generation 1/5, 20,480/102,400 steps, 2,048 steps/s: "
        "best 160.0, mean 55.00, worst 10.00, best ever 160.0, 1 exploit, 0:00:40 left",
        "generation 2/5, 40,960/102,400 steps, 2,048 steps/s: "
        "best 3.000, mean 2.000, worst 1.000, best ever 160.0, 3 exploits, 0:00:30 left",
    ]


def test_low_scores_are_best_where_the_configuration_says_so() -> None:
    assert "best -3.000, mean -1.000, worst 1.000" in logged(
        generation_of(0, [-3.0, -2.0, 0.0, 1.0], -3.0), pbt__metric_mode="min"
    )[-1]  # fmt: skip


def test_members_without_a_score_are_left_out() -> None:
    assert "best 30.00, mean 20.00, worst 10.00" in logged(generation_of(0, [NAN, 10.0, 30.0, NAN], 30.0))[-1]
    assert "best none, mean none, worst none" in logged(generation_of(0, [NAN] * 4, NAN))[-1]


def test_a_log_holds_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    log = PlainLog()
    log.on_event("environment", "failed: \x1b[2Jboth\r\nlines\x07 [bold]kept[/bold]")
    log.on_interrupt()
    log.on_final_evaluation(20)
    log.on_event("final", "the command says this itself")
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "failed:  [2Jboth  lines  [bold]kept[/bold]"
    assert rest == [
        "stopping after the update in progress; press Ctrl-C again to stop at once",
        "evaluating the best agent over 20 fresh episodes",
    ]


def test_the_display_shows_all_the_facts_in_80_columns() -> None:
    watch = Watch()
    display = LiveDisplay(Console(file=io.StringIO(), width=80), watch)
    assert shown(display) == "making the environments\n"
    display.on_start(plan_of())
    assert "first update" in shown(display)
    watch.time += 12.5
    display.on_update(5_120)
    assert "after the first generation" in shown(display)
    display.on_generation(generation_of(0, [10.0, 20.0, 30.0, 160.0], 1234.5, exploits=1))
    display.on_event("rescue", "member 3 had no finite score [and] continues as member 0")
    text = shown(display)
    assert max(len(line) for line in text.splitlines()) <= 80
    words = re.sub(r"[━╸╺ \n]+", " ", text)
    assert words.strip() == (
        "steps 20% 20,480 of 102,400 "
        "speed 1,638 steps/s 0:00:12 elapsed 0:00:50 left "
        "generation 1 of 5 1 exploit "
        "score 160.0 best 55.00 mean 10.00 worst 1,234.5 best ever "
        "member 3 had no finite score [and] continues as member 0"
    )


def test_the_display_stays_readable_with_large_numbers() -> None:
    watch = Watch()
    display = LiveDisplay(Console(file=io.StringIO(), width=80), watch)
    display.on_start(plan_of(total_timesteps=2_000_000_000))
    watch.time += 36_000
    display.on_generation(generation_of(0, [-12345.6, 12345.6, 0.0, 0.0], 12345.6))
    lines = shown(display).splitlines()
    assert len(lines) == 5, "four lines of facts and the last event; none is wrapped"
    assert max(len(line) for line in lines) <= 80


SPACE = [{"name": "gamma", "min_value": 0.9, "max_value": 0.99}]


@pytest.mark.parametrize(
    ("changes", "second", "third"),
    [
        ({"pbt__hyperparams": SPACE}, "tuning gamma 0.9 to 0.99", "102,400 steps in 5 generations, 25,600 for"),
        (
            {"pbt__hyperparams": []},
            "nothing is tuned, because pbt.hyperparams names nothing: members differ",
            "102,400",
        ),
        (
            {"pbt__population_size": 1, "pbt__exploit_method": "none"},
            "nothing is tuned, because pbt.hyperparams names nothing: one member evolves with nobody",
            "102,400 steps in 20 generations (total_timesteps=100,000, in whole generations)",
        ),
        ({"pbt__exploit_method": "none", "pbt__hyperparams": SPACE}, "drawn at the start, and not changed: gamma", ""),
        ({"pbt__explore_method": "none", "pbt__hyperparams": SPACE}, "drawn at the start, and not changed: gamma", ""),
        (
            {"pbt__exploit_method": "none", "pbt__schedule": [{"steps": 0, "hyperparams": {"gamma": 0.9}}]},
            "pbt.schedule moves gamma",
            "",
        ),
        ({"pbt__hyperparams": SPACE, "total_timesteps": 81_920}, "tuning", "81,920 steps in 4 generations, 20,480 for"),
    ],
)
def test_the_first_lines_say_what_is_tuned_and_how_many_steps_are_taken(
    changes: dict[str, Any], second: str, third: str
) -> None:
    lines = logged(**changes)
    assert lines[1].startswith(second)
    assert lines[2].startswith(third)
    assert ("in whole generations" in lines[2]) == ("total_timesteps" not in changes)
    with LiveDisplay(Console(file=(file := io.StringIO()), width=300)) as display:
        display.on_start(plan_of(**changes))
    assert file.getvalue().splitlines()[:3] == lines


def test_the_display_gives_the_terminal_back_after_an_error() -> None:
    file = io.StringIO()
    with contextlib.suppress(RuntimeError), LiveDisplay(Console(file=file, force_terminal=True)) as display:
        display.on_start(plan_of())
        raise RuntimeError
    hidden, shown_again = "\x1b[?25l", "\x1b[?25h"
    assert file.getvalue().rindex(shown_again) > file.getvalue().rindex(hidden)
    assert "training 4 members of 12,345 parameters" in file.getvalue()


@pytest.mark.parametrize(
    ("terminal", "name", "kind"),
    [(True, "xterm", LiveDisplay), (True, "dumb", PlainLog), (False, "xterm", PlainLog)],
)
def test_the_live_display_is_for_terminals_that_can_draw_it(
    terminal: bool, name: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()
    monkeypatch.setattr(file, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stdout", file)
    monkeypatch.setenv("TERM", name)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as continuous integration sets it, where nobody is watching
    assert type(progress()) is kind


def test_what_is_left_of_a_run_whose_generations_were_smaller_counts_in_steps() -> None:
    plan = dataclasses.replace(plan_of(), done=30_000, begun=2)  # four more of 20,480 steps until there are 100,000
    generation = dataclasses.replace(generation_of(10, [1.0] * 4, 1.0), steps=50_480, seconds=10.0)
    with contextlib.redirect_stdout(io.StringIO()) as file:
        log = PlainLog()
        log.on_start(plan)
        log.on_generation(generation)
    assert "generation 11/14, 50,480/111,920 steps" in file.getvalue()
    display = LiveDisplay(Console(file=io.StringIO(), width=80), Watch())
    display.on_start(plan)
    display.on_generation(generation)
    assert "50,480 of 111,920" in shown(display)
    assert "11 of 14" in shown(display)


def test_a_resumed_run_whose_members_are_apart_ends_after_full_generations() -> None:
    plan = dataclasses.replace(
        plan_of(execute__kind="ray", execute__mode="async"), done=51_200, begun=3
    )  # two and a half
    with contextlib.redirect_stdout(io.StringIO()) as file:
        log = PlainLog()
        log.on_start(plan)
        log.on_generation(dataclasses.replace(generation_of(2, [1.0] * 4, 1.0), steps=56_320, seconds=10.0))
    assert "generation 3/5, 56,320/102,400 steps" in file.getvalue()
    display = LiveDisplay(Console(file=io.StringIO(), width=80), Watch())
    display.on_start(plan)
    assert "3 of 5" in shown(display)


def test_speed_and_time_left_of_a_resumed_run_count_from_there() -> None:
    with contextlib.redirect_stdout(io.StringIO()) as file:
        log, done = PlainLog(), 40_960
        log.on_start(dataclasses.replace(plan_of(), done=done, begun=2))
        log.on_generation(dataclasses.replace(generation_of(2, [1.0] * 4, 1.0), seconds=10.0))
    first, *_, second = file.getvalue().splitlines()
    assert first.endswith("into runs/mine, from step 40,960")
    assert "generation 3/5, 61,440/102,400 steps, 2,048 steps/s" in second
    assert second.endswith("0:00:20 left")
    watch = Watch()
    display = LiveDisplay(Console(file=io.StringIO(), width=80), watch)
    display.on_start(dataclasses.replace(plan_of(), done=done, begun=2))
    assert "40% " in shown(display)
    assert "2 of 5" in shown(display)
    watch.time += 10
    display.on_update(61_440)
    assert "2,048 steps/s" in shown(display)
