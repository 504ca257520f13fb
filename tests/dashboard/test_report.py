import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from rich.console import Console
from typer.testing import CliRunner

import popgraft
from popgraft import StoreError, load_config
from popgraft.cli.app import app
from popgraft.dashboard.data import read
from popgraft.dashboard.exploits import success
from popgraft.dashboard.figure import Figure
from popgraft.dashboard.figures import figures
from popgraft.dashboard.page import Section
from popgraft.dashboard.summary import summary
from popgraft.dashboard.text import LEVELS, sparkline, text
from popgraft.store import RunFolder
from popgraft.train import Replay

from .test_data import Make, found, make

__all__ = ["make"]

PARENTS = [[2, 1, 2], [0, 0, 2], [0, 1, 2]]
SCORES = [[1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [1.0, 5.0, 2.0]]


@pytest.fixture
def small(make: Callable[..., RunFolder]) -> Path:
    folder = make(SCORES, PARENTS)
    found(folder, 2, 1)
    return folder.path


def drawn(path: Path, section: str, **options: Any) -> Figure:
    """The figure of a section."""
    (content,) = (each.content for each in figures(read(path), **options) if each.id == section)
    assert isinstance(content, Figure)
    return content


def test_the_tree_shows_scores_grafts_and_the_winners_ancestors(small: Path) -> None:
    bands, links, _, line = drawn(small, "tree").traces
    assert bands["z"][:, ::2].tolist() == np.array(SCORES).T.tolist()
    cut = {(row, member) for member, row in np.argwhere(np.isnan(bands["z"][:, 1::2]))}
    assert cut == {(0, 0), (1, 1)}  # after the first generation at place 0, after the second at place 1
    ends = [(x, y) for x, y in zip(links["x"].tolist(), links["y"].tolist(), strict=True) if math.isfinite(x)]
    assert [(round(x), y) for x, y in ends] == [(1, 2), (2, 0), (2, 0), (3, 1)]
    assert [(round(x), y) for x, y in zip(line["x"].tolist(), line["y"].tolist(), strict=True)][::2] == [
        (1, 2), (2, 0), (3, 1)
    ]  # fmt: skip
    assert "from member 2 of generation 1<br>learning_rate × 0.5" in bands["text"][0][2]  # 0.002 of the donor's 0.004
    assert list(bands["text"][2]) == [""] * 5


def test_schedules_follow_the_winner(small: Path) -> None:
    figure = drawn(small, "schedules")
    everyone, path = figure.traces
    assert path["y"] == pytest.approx([0.004, 0.002, 0.008])
    assert path["x"].tolist() == [300, 600, 900]
    assert np.nanmin(everyone["y"]) == pytest.approx(0.001)
    assert figure.layout["yaxis"]["type"] == "log"


def test_scales_reach_as_far_as_asked(small: Path) -> None:
    assert read(small).limits == (1.0, 5.0)
    assert "range" not in drawn(small, "scores").layout["yaxis"]
    low, high = drawn(small, "scores", limits=(-10.0, 10.0)).layout["yaxis"]["range"]
    assert (low, high) == (-11, 11)
    bands = drawn(small, "tree", limits=(-10.0, 10.0)).traces[0]
    assert (bands["zmin"], bands["zmax"]) == (-10, 10)


def test_a_replay_is_told_where_there_is_one(trained: Path, small: Path) -> None:
    def told(path: Path) -> list[Section]:
        return [section for section in figures(read(path)) if section.id == "replay"]

    assert told(small) == [], "it has not ended"
    (section,) = told(trained)
    assert f"popgraft replay {trained} trains" in section.caption
    assert section.content == ""
    result = Replay(
        small, load_config(small / "config.yaml"), {"schedule": [4.0, 2.0, 3.0], "fixed": [1.0, 1.0, 1.0]}, [2.0, 6.0]
    )
    file = trained / "replay" / "replay.json"
    file.parent.mkdir()
    file.write_text(json.dumps(result.summary()))
    (section,) = told(trained)
    assert section.caption == result.verdict
    assert "does NOT reach" in section.caption
    own, mean, *_, everybody, whole = drawn(trained, "replay").traces
    assert (own["x"].tolist(), everybody["x"].tolist()) == ([4, 2, 3], [2, 6])
    assert (mean["x"].tolist(), whole["x"].tolist()) == ([3], [4])
    assert mean["error_x"]["array"] == pytest.approx([4.3027 / 3**0.5], rel=1e-3)  # Student's t with 2 degrees, s = 1
    assert drawn(trained, "replay").layout["shapes"][0]["x0"] == 4, "the population's median"
    go.Figure(json.loads(drawn(trained, "replay").json))
    printed = CliRunner().invoke(app, ["report", str(trained), "--text"]).stdout
    assert " ".join(result.verdict.split()[:8]) in printed
    assert re.search(r"the winner's schedule +3 +3.000 +0.516 to 5.484 +3.000", printed)
    assert max(map(len, printed.splitlines())) <= 80
    file.write_text("[")
    assert told(trained)[0].content == ""


def test_the_summary_tells_the_facts(small: Path, trained: Path) -> None:
    said = " ".join(summary(read(small)))
    assert "3 agents trained on CartPole-v1 for 900 of " in said
    assert "was stopped and can be resumed" in said
    assert "Members were overwritten with better ones 2 times" in said
    assert "learning_rate went 0.004 → 0.008" in said
    data = read(trained)
    told = " ".join(summary(data, read(small)))
    assert f"The best agent scores {data.found['final_score']:.3f} ±" in told
    assert f"In {small}, its population reached 1.000 ± 0.000 in 900 steps, against" in told


@pytest.mark.parametrize(
    ("scores", "falls"),
    [
        # Standard errors are 1. The first generation's median is 2: of member 0's gain of 8, 5 are lost; of 1's 7, 1.
        (
            [[2, 2, 2], [10, 9, 3], [5, 8, 9]],
            "1 of 3 members have fallen late; the farthest is member 0, from 10.00 to",
        ),
        ([[2, 2, 2], [10, 9, 3], [9, 8, 9]], None),
        (
            [[2, 9, 2], [10, 9, 3], [5, 2, 2]],
            "2 of 3 members have fallen late; the farthest is member 1, from 9.000 to 2.",
        ),
        ([[5, 9, 1], [5, 9, 1], [5, 9, -9]], None),  # it never gained anything
        ([[2, 2, 2], [10, 9, 3], [math.nan, 8, 9]], None),
    ],
)
def test_late_falls_are_told(make: Make, scores: list[list[float]], falls: str | None) -> None:
    folder = make(scores, [[0, 1, 2]] * 3)
    found(folder, 1, 0)
    said = " ".join(summary(read(folder.path)))
    assert ("late" in said) == (falls is not None)
    assert (falls or "") in said


def test_returns_in_training_stand_beside_scores(trained: Path) -> None:
    data = read(trained)
    returns = data.metrics["ep_rew_mean"]
    last = np.nanmedian(returns[-1])
    assert f"where actions are sampled, the median member's episodes return {last:,.1f}" in " ".join(summary(data))
    (line,) = [each for each in drawn(trained, "scores").traces if each.get("name") == "median return in training"]
    assert line["y"] == pytest.approx(np.nanmedian(returns, axis=1), nan_ok=True)


def test_a_run_without_a_generation_has_a_report(make: Make, tmp_path: Path) -> None:
    path = make([], []).path
    assert "No generation has been scored yet." in summary(read(path))
    assert [section.id for section in figures(read(path))] == ["settings"]
    assert popgraft.report(path, tmp_path / "other.html") == tmp_path / "other.html"
    Console(file=None, quiet=True).print(text(read(path)))


def test_nan_scores_and_random_search_have_a_report(make: Make) -> None:
    path = make([[math.nan] * 3, [1.0, math.nan, 2.0]], [[0, 1, 2]] * 2, exploit_method="none").path
    assert "this is random search" in " ".join(summary(read(path)))
    assert {"scores", "tree", "members"} <= {section.id for section in figures(read(path))}
    popgraft.report(path)


def test_the_report_is_one_file_that_asks_for_nothing(trained: Path) -> None:
    page = popgraft.report(trained).read_text()
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", own)
    for id in (
        "scores",
        "tree",
        "schedules",
        "importance",
        "exploits",
        "learning",
        "divergence",
        "members",
        "settings",
    ):
        assert f'<section id="{id}"' in own
    assert "popgraft/RepeatPrevious-v0" in own


def test_the_command_writes_and_prints(trained: Path, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    wrote = CliRunner().invoke(app, ["report", str(trained), "--out", str(out), "--compare", str(small)])
    assert (wrote.exit_code, wrote.stdout) == (0, f"wrote {out}\n")
    assert "The dotted line is the best of" in out.read_text()
    printed = CliRunner().invoke(app, ["report", str(trained), "--text"])
    assert printed.exit_code == 0
    assert max(map(len, printed.stdout.splitlines())) <= 80
    for fact in ("best score", "learning_rate of the best", "optimizer_distance", " copied "):
        assert fact in printed.stdout
    missing = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert missing.exit_code == 2
    assert "holds no complete run" in missing.stderr


def test_a_report_that_cannot_be_written_is_an_error_in_words(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot write the report .*no such file or directory"):
        popgraft.report(trained, tmp_path / "missing" / "page.html")


def test_a_sparkline_goes_from_the_least_to_the_most() -> None:
    assert sparkline(np.arange(8.0)) == LEVELS
    assert sparkline(np.array([2.0, math.nan, 2.0])) == "▁ ▁"
    assert sparkline(np.zeros(0)) == ""
    assert len(sparkline(np.arange(500.0))) == 32


def test_success_has_wilsons_interval() -> None:
    before, after = np.zeros(11), np.array([1.0] * 8 + [-1.0] * 2 + [math.nan])
    share, low, high, number = success(before, after)
    assert (share, number) == (0.8, 10)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-3)  # Brown, Cai and DasGupta 2001's formula by hand
    assert success(before, after, "min")[0] == pytest.approx(0.2)
    assert math.isnan(success(before[:0], after[:0])[0])
