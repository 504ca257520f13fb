"""Runs the tests of arithmetic once for every set of instructions that this machine has below its own, and without a compiler.

    python tests/instruction_sets.py [arguments of pytest]

What multiplies matrices, PyTorch's own loops and the loops in C each choose their instructions when they are loaded, by
what the processor has; variables of the environment hold them back. One run for every level holds back all of them.
"""

import os
import platform
import subprocess
import sys

import torch

TESTS = [
    *(f"tests/{room}" for room in ("nn", "ops", "optim")),
    "tests/native/test_twins.py",
    *(f"tests/foreign/test_{name}.py" for name in ("upgd", "vgs")),
    *(f"tests/ppo/test_{name}.py" for name in ("update", "loss", "against_sb3")),
]
"""What computes; where files lie and what processes do does not depend on instructions."""
CHOICES = ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY", "POPGRAFT_NATIVE")
"""Variables that hold back oneDNN, MKL, PyTorch's loops, and the loops in C."""
LEVELS = {
    "AVX512_BF16": ("AVX512_CORE_BF16", "AVX512", "avx512", "native"),
    "AVX2": ("AVX2", "AVX2", "avx2", "x86-64-v3"),
    "SSE": ("SSE41", "SSE4_2", "default", "x86-64-v2"),
}
"""AVX-512 without products in bfloat16 is left out: what lacks these shows at AVX2 too."""
PLAIN = {"POPGRAFT_NATIVE": "0"}


def offered() -> dict[str, dict[str, str]]:
    """The variables of every level that this machine can run, by its name."""
    order = ["DEFAULT", "AVX2", "AVX512"]
    own = torch.backends.cpu.get_cpu_capability()
    has = order.index(own) if platform.machine() == "x86_64" and own in order else -1
    needs = {"AVX512_BF16": 2, "AVX2": 1, "SSE": 0}
    levels = {name: dict(zip(CHOICES, values, strict=True)) for name, values in LEVELS.items() if needs[name] <= has}
    return {**levels, "no compiler": PLAIN}


def main(arguments: list[str]) -> int:
    """Exit status: 0 where every run passed."""
    usual = {name: value for name, value in os.environ.items() if name not in CHOICES}
    levels, failed = offered(), []
    for name, variables in levels.items():
        print(f"{name}: {' '.join(f'{key}={value}' for key, value in variables.items())}", flush=True)
        command = [
            sys.executable,
            "-m",
            "pytest",
            *(arguments or ["-n", "auto", "--maxprocesses", "4", "--dist", "worksteal", *TESTS]),
        ]
        if subprocess.run(command, check=False, env={**usual, **variables}).returncode:
            failed.append(name)
    missing = [name for name in LEVELS if name not in levels]
    print(
        f"ran: {', '.join(levels)}; not offered here: {', '.join(missing) or 'none'}; failed: {', '.join(failed) or 'none'}"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
