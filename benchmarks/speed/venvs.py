"""A virtual environment for every peer, with the versions that are pinned beside its script."""

import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).with_name("peers")
VENVS = Path(__file__).parents[1] / ".venvs"


def python_of(peer: str) -> Path:
    """The interpreter with a peer's libraries, which are installed where they are not yet, or not in these versions.

    Raises:
        RuntimeError: they cannot be installed; with the last line of pip's reason.
    """
    folder, pins = VENVS / peer, PEERS / f"{peer}.txt"
    python, stamp = folder / "bin/python", folder / "installed.txt"
    if not stamp.exists() or stamp.read_text() != pins.read_text():
        print(f"installing {peer} into {folder}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "-qq", "--no-deps", "-r", pins]
        done = subprocess.run(install, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"cannot be installed: {done.stderr.strip().splitlines()[-1]}")
        stamp.write_text(pins.read_text())
    return python
