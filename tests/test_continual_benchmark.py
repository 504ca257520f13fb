import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "benchmarks" / "continual"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"continual_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_comparison_writes_its_returns_tables_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    run, report = script("run"), script("report")
    assert run.main(["--quick", "--methods", "adam", "adaptive_upgd_vgs", "--out", str(tmp_path)]) == 0
    for method in ("adam", "adaptive_upgd_vgs"):
        result = json.loads((tmp_path / f"{method}.json").read_text())
        scores = {row["learning_rate"]: row["mean_return"] for row in result["tuning"]}
        assert result["learning_rate"] == max(scores, key=scores.get)
        assert np.shape(result["returns"]) == (2, 2)  # two seeds, two phases of one generation each
    assert report.main([str(tmp_path), "--picture", str(tmp_path / "curves.png")]) == 0
    assert "| AdaptiveUPGD + VGS |" in capsys.readouterr().out
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_phase_rewires_sensors_and_motor_and_nothing_else() -> None:
    rewired_cartpole = script("rewired_cartpole")
    wired, plain = rewired_cartpole.make(3, phase_steps=4), CartPoleVectorEnv(3, max_episode_steps=200)
    obs, reference = wired.reset(seed=5)[0], plain.reset(seed=5)[0]
    phases = []
    for time in range(12):
        scaled = reference / np.array([1, 1, 0.1, 1])
        matches = np.isclose(np.abs(obs)[0][:, None], np.abs(scaled)[0])
        order = matches.argmax(1)
        assert sorted(order) == [0, 1, 2, 3]
        signs = np.sign(obs[0] / scaled[0, order])
        np.testing.assert_allclose(obs, scaled[:, order] * signs, rtol=1e-5)  # of all environments alike
        phases.append((*order, *signs))
        action = np.array([0, 1, 1])
        swapped = wired._swapped
        obs, reward, terminated, _, _ = wired.step(action)
        reference, expected, ended, _, _ = plain.step(1 - action if swapped else action)
        np.testing.assert_array_equal(reward, expected)
        np.testing.assert_array_equal(terminated, ended)
        if time % 4 != 3:
            assert wired._swapped == swapped
    assert [len(set(phases[start : start + 4])) for start in (0, 4, 8)] == [1, 1, 1]
    assert len(set(phases)) == 3


def test_seeds_are_drawn_in_pairs_and_losses_have_their_sign(capsys: pytest.CaptureFixture[str]) -> None:
    # Seed by seed the other method returns twice what Adam does, so their ratio has no spread.
    adam = {"generations_per_phase": 2, "steps_per_phase": 8, "learning_rate": 0.1, "tuning": []}
    adam["returns"] = [[10, 20, 10, 16, 10, 12], [30, 40, 30, 36, 30, 32]]
    other = {**adam, "returns": (2 * np.array(adam["returns"])).tolist()}
    row = script("report").tables({"adam": adam, "upgd": other}).splitlines()[5]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[0] == "UPGD"
    assert cells[2] == "46.0 (26.0 to 66.0)"  # (10 + 20 + 10 + 16 + 10 + 12)/6 = 13, 33; twice their mean, either twice
    assert cells[3] == "2.00 (2.00 to 2.00)"
    assert cells[7] == "-16.0 (-16.0 to -16.0)"  # ends of phases 20 → 12, 40 → 32, doubled
