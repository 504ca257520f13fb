import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from popgraft.cli.watch import watch
from popgraft.dashboard.guard import names_this_machine
from popgraft.dashboard.server import Server
from popgraft.dashboard.watcher import Watcher
from popgraft.errors import ConfigError, StoreError
from popgraft.store import RunFolder
from popgraft.store.lock import locked

from .conftest import TIMEOUT, record

Serve = Callable[..., str]


def get(url: str, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and text; the path is sent as it is."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection("127.0.0.1", place.port or 0, timeout=TIMEOUT / 1000)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, text


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT / 1000
    while not condition():
        assert time.monotonic() < end, f"not within {TIMEOUT} milliseconds"
        time.sleep(0.02)


def rows(text: str) -> dict[str, list[str]]:
    """The cells of the list of runs, by name."""
    cells = [re.sub(r"<.*?>", "\n", row).split("\n") for row in re.findall(r"<tr><th scope=\"row\">.*?</tr>", text)]
    clean = [[cell.strip() for cell in row if cell.strip()] for row in cells]
    return {name: values for name, *values in clean}


def ticked(text: str) -> list[str]:
    return re.findall(r'value="([^"]*)" checked', text)


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost", True), ("localhost:8642", True), ("127.0.0.1:80", True), ("127.8.8.8", True), ("[::1]:8642", True),
        ("", False), ("evil.example", False), ("localhost.evil.example:8642", False), ("127.0.0.1.evil.example", False),
        ("192.168.0.1", False), ("[::1", False), ("localhost@evil.example", False), ("0.0.0.0", False),
    ],
)  # fmt: skip
def test_only_loopback_names_are_this_machine(host: str, known: bool) -> None:
    assert names_this_machine(host) == known


def test_a_foreign_page_that_calls_itself_this_machine_reads_nothing(trained: Path, serve: Serve) -> None:
    url = serve(trained)
    assert get(url)[0] == 200
    for path in ("/", "/static/page.js", "/changes", "/nowhere"):
        status, headers, text = get(url, path, Host="evil.example")
        assert status == 403
        assert "tiny" not in text
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_other_machines_need_the_token_once(trained: Path, serve: Serve) -> None:
    url = serve(trained, "0.0.0.0")
    token = urlsplit(url).query
    assert len(token) > len("token=") + 40
    for path in ("/", "/?token=", "/?token=wrong", "/?token=%C3%A9", "/changes", "/static/page.css"):
        assert get(url, path)[0] == 403
    status, headers, _ = get(url, f"/?{token}", Host="training.example")
    assert status == 200
    cookie = headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
    assert get(url, "/", Cookie=cookie.split(";")[0])[0] == 200
    assert get(url, "/", Cookie=cookie.split("=")[0] + "=wrong")[0] == 403
    assert "set-cookie" not in get(url, "/?token=wrong")[1]


@pytest.mark.parametrize(
    "path", ["/static/../page.py", "/static/%2e%2e/page.py", "/static//etc/passwd", "/../README.md"]
)
def test_no_path_leads_out_of_the_page(trained: Path, serve: Serve, path: str) -> None:
    assert get(serve(trained), path)[0] == 404


def test_it_answers_no_request_that_could_write(trained: Path, serve: Serve) -> None:
    assert [get(serve(trained), "/", method)[0] for method in ("POST", "PUT", "DELETE")] == [405] * 3


def test_runs_are_chosen_by_name_and_found_nowhere_else(trained: Path, serve: Serve) -> None:
    shutil.copytree(trained, trained.parent / "with, comma")
    shutil.copytree(trained, trained.parent.parent / "outside")
    url = serve(trained.parent)
    assert ticked(get(url, "/?runs=tiny,with%2C%20comma")[2]) == ["tiny"]
    assert ticked(get(url, "/?runs=tiny&runs=with%2C%20comma")[2]) == ["tiny", "with, comma"]
    assert ticked(get(url, "/?runs=with%2C%20comma")[2]) == ["with, comma"]
    for name in ("../outside", str(trained), "", ".."):
        text = get(url, f"/?runs=nobody,{name}")[2]
        assert ticked(text) == []
        assert "plot" not in text.replace("plotly", "")


def test_the_page_shows_how_far_every_run_has_come(trained: Path) -> None:
    root = trained.parent
    shutil.copytree(trained, root / "later" / "copy")
    (root / "broken").mkdir()
    (root / "broken" / "run.sqlite").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 40)
    shutil.copytree(trained, root / "torn")
    (root / "torn" / "config.yaml").write_text("pbt: [")
    record(root / "later" / "copy", 6, 0.5)
    watcher = Watcher(root)
    with locked(RunFolder(root / "later" / "copy")):
        text = watcher.page([])
    found = rows(text)
    assert list(found) == ["broken", "later/copy", "tiny", "torn"]
    assert found["later/copy"][:2] == ["running", "7 of 6"]
    assert found["tiny"][:2] == ["finished", "6 of 6"]
    assert found["broken"][0] == found["torn"][0] == "damaged"
    assert "config.yaml" in found["torn"][1]
    assert ticked(text) == ["later/copy"], "the one that was written last"
    text = watcher.page(["broken", "torn", "tiny"])
    assert text.count("cannot be read") == 2
    assert 'id="scores"' in text


def test_what_happens_to_runs_is_told(trained: Path) -> None:
    root = trained.parent
    watcher = Watcher(root)
    version = watcher.version()

    def told() -> bool:
        nonlocal version
        version, before = watcher.version(), version
        return version > before

    def listed() -> dict[str, list[str]]:
        return rows(watcher.page(["nobody"]))

    time.sleep(1)
    assert not told()
    record(trained, 6, 0.25)
    wait_for(told)
    assert listed()["tiny"][1] == "7 of 6"
    shutil.copytree(trained, root / "second")
    wait_for(lambda: told() and set(listed()) == {"tiny", "second"})
    (trained / "run.sqlite").write_bytes(b"not a database")
    wait_for(lambda: told() and listed()["tiny"][0] == "damaged")
    shutil.rmtree(trained)
    wait_for(lambda: told() and set(listed()) == {"second"})
    assert "no such run here" in watcher.page(["tiny"])
    shutil.rmtree(root)
    wait_for(lambda: told() and "There are no runs" in watcher.page([]))


def test_what_has_not_changed_is_not_read_again(trained: Path) -> None:
    watcher = Watcher(trained)
    text = watcher.page([])
    database = trained / "run.sqlite"
    before = database.stat()
    database.write_bytes(bytes(before.st_size))  # would be found damaged
    os.utime(database, ns=(before.st_atime_ns, before.st_mtime_ns))
    time.sleep(0.6)
    assert watcher.page([]) == text


def test_where_figures_are_costly_they_wait_and_the_list_does_not(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("popgraft.dashboard.watcher.DRAWING", 1e-6)  # pauses a million times as long as the work
    monkeypatch.setattr("popgraft.dashboard.watcher.LOOKING", 1.0)  # and those of the list no longer than it
    watcher = Watcher(trained)
    version = watcher.version()

    def told() -> bool:
        nonlocal version
        version, before = watcher.version(), version
        return version > before

    def generations() -> tuple[str, int]:
        text = watcher.page([])
        return rows(text)["tiny"][1], max(map(int, re.findall(r"in (\d+) generations", text)))

    assert generations() == ("6 of 6", 6)
    with locked(RunFolder.open(trained)):  # as if it were being trained
        record(trained, 6, 0.5)
        wait_for(told)
        assert generations() == ("7 of 6", 7)
        record(trained, 7, 0.5)
        wait_for(told)
        assert generations() == ("8 of 6", 7)
        watcher._shown["tiny"].waits_until = 0.0  # as if time had passed
        wait_for(told)
        assert generations() == ("8 of 6", 8)
        record(trained, 8, 0.5)
        wait_for(told)
        assert generations() == ("9 of 6", 8)
    wait_for(told)
    assert generations() == ("9 of 6", 9)  # nobody trains any more, who would have to be spared


def test_runs_side_by_side_have_the_same_scale_of_scores(trained: Path) -> None:
    shutil.copytree(trained, trained.parent / "high")
    record(trained.parent / "high", 6, 50.0)
    text = Watcher(trained.parent).page(["tiny", "high"])
    parts = [json.loads(part) for part in re.findall(r'<script type="application/json">(.*?)</script>', text)]
    scores = [
        part["layout"]["yaxis"]["range"] for part in parts if part["layout"]["yaxis"].get("title") == {"text": "score"}
    ]
    assert len(scores) == 2
    assert scores[0] == scores[1]
    assert scores[0][1] > 50 > 1 > 0 > scores[0][0]
    colours = [(trace["zmin"], trace["zmax"]) for part in parts for trace in part["data"] if trace["type"] == "heatmap"]
    assert len(colours) == 2
    assert colours[0] == colours[1]
    assert colours[0][1] == 50


def test_watching_leaves_the_run_as_it_is(trained: Path) -> None:
    def files() -> dict[str, tuple[int, bytes]]:
        logs = ("run.sqlite-wal", "run.sqlite-shm")  # SQLite's, without content
        found = [path for path in trained.rglob("*") if path.is_file() and path.name not in logs]
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}

    before = files()
    Watcher(trained).page([])
    assert files() == before


def test_a_port_in_use_is_said_with_a_remedy(trained: Path, serve: Serve) -> None:
    port = urlsplit(serve(trained)).port or 0
    with pytest.raises(
        ConfigError, match=rf"cannot listen on 127.0.0.1, port {port}: address already in use; give another"
    ):
        Server(trained, "127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"cannot listen on nowhere\.invalid"):
        Server(trained, "nowhere.invalid")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing is not a folder; give the folder of a run"):
        watch(tmp_path / "nothing", "127.0.0.1", 0, False)


@pytest.mark.slow
def test_ctrl_c_ends_the_command_quietly_while_a_page_listens(trained: Path) -> None:
    code = "from popgraft.cli.app import main; main()"
    command = [sys.executable, "-c", code, "watch", str(trained), "--port", "0", "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(url).port or 0, timeout=TIMEOUT / 1000)
        connection.request("GET", "/changes")
        stream = connection.getresponse()
        assert stream.readline() == b"data: 1\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=TIMEOUT / 1000) == ("", "")
        connection.close()
    assert process.returncode == 0
