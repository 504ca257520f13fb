import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page, expect, sync_playwright

from popgraft import train
from popgraft.dashboard.server import Server
from popgraft.state import Decision, Scores
from popgraft.store import RunDatabase

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

TIMEOUT = 120_000
"""Milliseconds until a test gives up; a machine may be very busy."""
expect.set_options(timeout=TIMEOUT)


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    train(
        {
            "env": {"id": "popgraft/RepeatPrevious-v0", "num_envs": 2, "kwargs": {"delay": 1, "length": 6}},
            "model": {"n_steps": 8, "n_epochs": 1, "n_minibatches": 1, "network": {"hidden_size": 4}},
            "pbt": {
                "population_size": 4,
                "perturbation_interval": 1,
                "truncation_ratio": 0.25,
                "hyperparams": [
                    {"name": "learning_rate", "min_value": 1e-4, "max_value": 1e-2, "is_log_scale": True},
                    {"name": "clip_range", "min_value": 0.1, "max_value": 0.4},
                ],
            },
            "evaluation": {"episodes": 2, "max_steps": 20, "final_episodes": 2},
            "execute": {"shards": 1},
            "total_timesteps": 6 * 64,
            "run_dir": str(folder),
        }
    )
    return folder


@pytest.fixture
def trained(_trained: Path, tmp_path: Path) -> Path:
    """The folder of a finished run of four members over six generations, which the test may change."""
    return Path(shutil.copytree(_trained, tmp_path / "runs" / "tiny"))


@contextlib.contextmanager
def serving(root: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """Serves a folder; gives the page's address."""
    server = Server(root, host)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server.url
    finally:
        server.close()
        thread.join()


@contextlib.contextmanager
def visiting(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """Opens an address and waits until all is drawn. Until the end, nothing may go wrong or be asked elsewhere."""
    found: list[str] = []
    home = (url.split("?")[0], "data:", "blob:")
    with browser.new_context(**options) as context:
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        page.on("console", lambda message: found.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: found.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(home) else found.append(request.url))
        page.goto(url)
        page.wait_for_selector("html[data-drawn]")
        yield page
    assert not found


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Serves a folder until the test ends; called with it, gives the page's address."""
    with contextlib.ExitStack() as stack:
        yield lambda root, host="127.0.0.1": stack.enter_context(serving(root, host))


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Headless Chromium."""
    path = shutil.which("chromium")
    if path is None:
        assert os.environ.get("POPGRAFT_BROWSER") != "required", "there is no chromium"
        pytest.skip("there is no chromium; with apt: apt-get install chromium")
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=path, args=FLAGS, timeout=TIMEOUT) as found,
    ):
        yield found


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens an address as `visiting` does, until the test ends."""
    with contextlib.ExitStack() as stack:
        yield lambda url, **options: stack.enter_context(visiting(browser, url, **options))


@pytest.fixture(scope="package")
def live(browser: Browser, _trained: Path) -> Iterator[Page]:
    """The live page of a run that does not change, for all tests that leave the page as it is."""
    with serving(_trained) as url, visiting(browser, url) as page:
        yield page


def record(run: Path, generation: int, score: float) -> None:
    """Writes a generation of four members without grafts, as a training process does."""
    everyone = torch.full((4,), score)
    hyperparams = {"learning_rate": torch.full((4,), 1e-3), "clip_range": torch.full((4,), 0.2)}
    scores = Scores(everyone, torch.ones(4), torch.full((4,), 2))
    decision = Decision(torch.arange(4), hyperparams, {})
    with RunDatabase(run / "run.sqlite") as database:
        database.record_generation(generation, scores, hyperparams, 64 * (generation + 1), decision, {})
