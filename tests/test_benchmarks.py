import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SPEED = Path(__file__).parents[1] / "benchmarks" / "speed"
TINY = {"n_steps": 8, "seconds": 0.0}


@pytest.fixture(scope="module")
def run() -> ModuleType:
    """run.py, beside whose files it looks for others."""
    sys.path.insert(0, str(SPEED))
    import run

    return run


@pytest.mark.slow
def test_the_reference_work_is_what_its_name_says(run: ModuleType) -> None:
    own = run.own(population=2, sequence_length=4, **TINY)
    assert own["steps_per_second"] > 0
    # The processes must have loaded torch (> 100 MiB), and the unit must not be off by 1024.
    assert 100 < own["pss_mib"] <= own["peak_mib"] < 4000
    # Encoder 2 -> 64, LSTM 64 -> 64, two logits, one value; an LSTM of torch.nn would have a second bias [4 * 64].
    weights = 2 * 64 + 4 * 64 * (64 + 64) + 64 * 2 + 64
    assert own["parameters"] == weights + 64 + 4 * 64 + 2 + 1
    # Each weight: a product and a sum in each of 1 + 4 * 3 passes.
    assert own["operations"] == 26 * weights


@pytest.mark.slow
def test_models_of_both_libraries_are_called_alike(run: ModuleType) -> None:
    own, other = (run.own(kind=name, **TINY) for name in ("DistributionalPPO", "RecurrentPPO"))
    # Two torch.nn.LSTMs with a second bias; one value instead of 21 quantiles of 64 features and a bias.
    assert other["parameters"] == own["parameters"] + 2 * 4 * 64 - 20 * 65


def test_a_peer_that_fails_is_reported_and_the_rest_goes_on(run: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "peer.py"
    script.write_text("import sys; sys.exit('no such library')")
    failing = lambda: run.ask(sys.executable, script, {})  # noqa: E731
    results = run.rounds(
        2, {"popgraft|8": lambda: measured(300.0), "Peer|8": failing, "popgraft|1": lambda: measured(1.0)}
    )
    assert [len(trials) for trials in results.values()] == [2, 1, 2]
    text = run.report.peers(results)
    assert "| Peer | 8 | – | – | – | – | – |" in text
    assert "- Peer, 8: no such library" in text


def test_a_peer_that_hangs_is_given_up(run: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "peer.py"
    script.write_text("import time; time.sleep(60)")
    assert run.ask(sys.executable, script, {}, patience=0.2) == {"error": "no result after 0.2 s"}


def test_every_peer_has_pins_and_a_script(run: ModuleType) -> None:
    for peer in {peer for peer, *_ in run.ROWS.values()}:
        assert (run.PEERS / f"{peer}.py").exists()
        pins = (run.PEERS / f"{peer}.txt").read_text().splitlines()
        assert "torch==2.13.0" in pins
        assert all("==" in pin for pin in pins)


def measured(speed: float) -> dict[str, float]:
    return {"steps_per_second": speed, "steps_per_cpu_second": speed, "peak_mib": 50.0, "pss_mib": 40.0, "processes": 1}


def test_ratios_are_those_of_a_round(run: ModuleType) -> None:
    # Ratios 10, 30 and 12: their median is 12, although the ratio of the medians is 3000 / 200 = 15.
    results = {
        "popgraft|1": [measured(1)],
        "popgraft|8": [measured(speed) for speed in (1000, 6000, 3000)],
        "popgraft|32": [measured(speed) for speed in (2000, 12000, 6000)],
        "popgraft, bfloat16|32": [measured(speed) for speed in (3000, 18000, 9000)],
        "Peer|8": [measured(speed) for speed in (100, 200, 250)],
    }
    text = run.report.peers(results)
    row = "| Peer | 8 | 200 (100–250) | 12.0 (10.0–30.0) | 24.0 (20.0–60.0) | 36.0 (30.0–90.0) | 50 / 40 | 1 |"
    assert row in text


def test_cost_is_time_relative_to_one_member(run: ModuleType) -> None:
    work = {"population": 1, "sequence_length": 128}
    results = {
        json.dumps(work): [measured(1000)],
        # Four members at twice the steps per second take twice the time of one for an update.
        json.dumps(work | {"population": 4}): [measured(2000)],
    }
    assert "| 4 | 128 | 2,000 | 2.00 | 2,000 | 50 / 40 |" in run.report.population(results)


def test_the_default_agent_is_held_against_its_operations(run: ModuleType) -> None:
    results = {
        "reference": [measured(1000) | {"operations": 1e6}],
        "default": [measured(400) | {"operations": 2e6}],
    }
    # 2.5 times the time for twice the operations.
    assert "2.50 × the reference's; its operations predict 2.00: 1.25 of the prediction" in run.report.agent(results)


def test_shares_are_those_of_each_run(run: ModuleType) -> None:
    results = {
        "graft": [{"milliseconds": 4.6, "recipients": 8}],
        "shares": [{"whole": 10.0, "advance": 5.0, "evaluation": 4.0}],
        "shares of reference": [{"whole": 100.0, "advance": 95.0, "evaluation": 4.0}],
    }
    text = run.report.overhead(results)
    assert "| advance | 50.00 | 95.00 |" in text
    assert "| evaluation | 40.00 | 4.00 |" in text
    text = run.report.overhead(results | {"shares of reference": [{"error": "out of memory"}]})
    assert "- shares of reference: out of memory" in text
    assert "| evaluation | 40.00 | – |" in text
