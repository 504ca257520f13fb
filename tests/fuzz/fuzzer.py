"""Reads mutated files of every kind that popgraft reads, and prints what is not as it should be.

    python fuzzer.py FOLDER CASES SEED [KIND]

A file may be read, or be refused with an error of popgraft's. It may not raise anything else, take longer than a few
seconds, take much memory, or get anything executed. Every case depends on the seed and its number alone.
"""

import faulthandler
import json
import random
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import corpus
import mutations
import torch

from popgraft.errors import PopgraftError

SECONDS, MEGABYTES = 20, 700
"""What one case may take at most, of a processor's time, and what all together may take beyond what the first, unchanged files took."""
ALLOWANCE = 6 * 2**30
"""Bytes of address space beyond those in use: what asks for more gets an error, and spoils nothing else."""


def main(folder: str, cases: str, seed: str, only: str = "") -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    place = Path(folder)
    kinds = {name: kind for name, kind in corpus.kinds(place / "originals").items() if only in ("", name)}
    for name, kind in kinds.items():
        for original in kind.originals:
            assert kind.read(place, original) is None, name
    sentinel = place / "executed"
    mutate = mutations.Mutations(sentinel)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ALLOWANCE, resource.RLIM_INFINITY))
    before, outcomes = peak(), {name: [0, 0] for name in kinds}
    names = sorted(kinds)
    for number in range(int(cases)):
        name = names[number % len(names)]
        draw = random.Random(f"{seed} {number}")
        content = mutate(draw, draw.choice(kinds[name].originals), kinds[name].form)
        problem = tried(place, kinds[name].read, content, outcomes[name])
        if peak() - before > MEGABYTES:
            problem = problem or f"{peak() - before:.0f} MB"
            before = peak()
        if sentinel.exists():
            problem = "code was executed"
            sentinel.unlink()
        if problem:
            (place / f"case_{number}").write_bytes(content)
            print(f"case {number} ({name}): {problem}", flush=True)
    print(json.dumps({name: dict(zip(("read", "refused"), counts, strict=True)) for name, counts in outcomes.items()}))


def tried(place: Path, read: Callable[[Path, bytes], None], content: bytes, outcome: list[int]) -> str | None:
    faulthandler.dump_traceback_later(10 * SECONDS, exit=True)
    began = time.process_time()
    try:
        read(place, content)
        outcome[0] += 1
    except PopgraftError as error:
        outcome[1] += 1
        if len(str(error)) > 50_000:
            return f"says {len(str(error))} characters: {str(error)[:200]}"
    except BaseException:
        return " | ".join(line.strip() for line in traceback.format_exc(limit=-3).splitlines())
    finally:
        faulthandler.cancel_dump_traceback_later()
    took = time.process_time() - began
    return f"{took:.0f} s" if took > SECONDS else None


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
