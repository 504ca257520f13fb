"""Ways to damage a file, from a single bit to what somebody would build who means harm."""

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

NUMBERS = [0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, 2**40, 2**63, 10**30, -(2**62), 0.5, -0.0, 1e308]
VALUES = [
    *NUMBERS,
    float("nan"),
    float("inf"),
    None,
    True,
    False,
    "",
    "\x00",
    "größer",
    "../../x",
    "/etc/passwd",
    "float32",
]
VALUES += [[], {}, [[]], {"": 0}, [1] * 50, {"popgraft:space": {"Box": [0, 1, [10**6, 10**6], "float32"]}}]
VALUES += [{"popgraft:class": "object"}, {"popgraft:space": {"Discrete": [10**12, 0]}}, {":serialized:": "gASV"}]
VALUES += [{"popgraft:space": {"MultiBinary": 10**12}}, {"popgraft:linear": [1]}, {"popgraft:schedule": []}]
SCALARS = [
    "~",
    "1e400",
    ".nan",
    "-.inf",
    "0x7fffffffffffffffff",
    "2001-01-01",
    "!!binary zz",
    "{}",
    "[",
    '"',
    "*a",
    "&a x",
]
SCALARS += [
    "!!python/object/apply:pathlib.Path.touch [{path}]",
    "!!python/name:os.system",
    "!!set {{? a}}",
    "? [a]",
    "\t",
]
SCALARS += [
    "!!timestamp x",
    "!!int a",
    "!!float x",
    "999999999999999999999",
    "yes",
    "1:30",
    "os:system",
    "a:b",
    "<<: 3",
]


class Reduce:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Mutations:
    """Damages content as a generator decides.

    Args:
        sentinel: a file that exists once something has been executed.
    """

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __call__(self, draw: random.Random, content: bytes, form: str) -> bytes:
        """Content of the form "zip", "json", "safetensors", "text" or "bytes", damaged."""
        special: dict[str, Callable[[random.Random, bytes], bytes]] = {
            "zip": self.zip,
            "json": self.json,
            "safetensors": self.safetensors,
            "text": self.text,
        }
        if form in special and draw.random() < 0.75:
            return special[form](draw, content)
        for _ in range(draw.choice([1, 1, 1, 3, 10])):
            content = self.bytes(draw, content)
        return content

    def bytes(self, draw: random.Random, content: bytes) -> bytes:
        if not content:
            return draw.randbytes(draw.randrange(100))
        at, length = draw.randrange(len(content)), min(draw.choice([1, 2, 4, 8, 64, 4096]), len(content))
        match draw.randrange(7):
            case 0:
                return content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]
            case 1:
                return content[:at]
            case 2:
                return content[:at] + draw.randbytes(length) + content[at:]
            case 3:
                return content[:at] + content[at + length :]
            case 4:
                return content[:at] + content[at : at + length] * draw.choice([2, 50]) + content[at + length :]
            case 5:
                return content[:at] + draw.choice([b"\x00", b"\xff", b"\x80"]) * length + content[at + length :]
            case _:
                number = struct.pack(draw.choice(["<I", "<Q", ">I", ">Q"]), draw.choice([0, 1, 2**31, 2**32 - 1]))
                return content[:at] + number + content[at + len(number) :]

    def json(self, draw: random.Random, content: bytes) -> bytes:
        try:
            value = json.loads(content)
        except ValueError:
            return self.bytes(draw, content)
        for _ in range(draw.choice([1, 1, 2, 5])):
            value = self._altered(draw, value)
        text = json.dumps(value)
        match draw.randrange(12):
            case 0:
                text = "[" * 100_000
            case 1:
                text = '{"a":' * 20_000 + "1" + "}" * 20_000
            case 2:
                text = text.replace(": ", ": 1" + "0" * 5000 + ", ", 1)
            case 3:
                text = text.replace("{", '{"format": 1, "format": 2, ', 1)
        return text.encode()

    def _altered(self, draw: random.Random, value: Any) -> Any:
        """A JSON value in which something, somewhere, is something else."""
        if isinstance(value, dict) and value and draw.random() < 0.9:
            key = draw.choice(sorted(value))
            match draw.randrange(10):
                case 0:
                    return {name: part for name, part in value.items() if name != key}
                case 1:
                    return {**value, draw.choice(["", "..", "x" * 1000, "seed", "policy"]): draw.choice(VALUES)}
                case _:
                    return {**value, key: self._altered(draw, value[key])}
        if isinstance(value, list) and value and draw.random() < 0.8:
            at = draw.randrange(len(value))
            return [*value[:at], self._altered(draw, value[at]), *value[at + 1 :]]
        if isinstance(value, (int, float)) and draw.random() < 0.5:
            return draw.choice(NUMBERS)
        return draw.choice(VALUES)

    def safetensors(self, draw: random.Random, content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        header, data = content[8 : 8 + length], content[8 + length :]
        header = self.json(draw, header)
        stated = draw.choice([len(header)] * 5 + [2**63, 2**40, 0, len(header) + 1])
        return struct.pack("<Q", stated) + header + data

    def text(self, draw: random.Random, content: bytes) -> bytes:
        lines = content.decode().splitlines()
        for _ in range(draw.choice([1, 1, 2, 4])):
            at = draw.randrange(len(lines))
            key, colon, _ = lines[at].partition(":")
            match draw.randrange(7):
                case 0 | 1 | 2:
                    scalar = draw.choice(SCALARS).replace("{path}", str(self.sentinel))
                    lines[at] = f"{key}{colon} {scalar}"
                case 3:
                    lines.insert(at, lines[draw.randrange(len(lines))])
                case 4:
                    lines[at] = " " * draw.randrange(12) + lines[at].strip()
                case 5:
                    lines.insert(at, f"{key or 'x'}: {json.dumps(draw.choice(VALUES))}")
                case _:
                    del lines[at]
                    lines = lines or ["x"]
        text = "\n".join(lines).encode()
        match draw.randrange(16):
            case 0:
                return text + b"\nx: " + b"[" * 5000
            case 1:
                return text + b"\nx: " + b"{a: " * 3000
            case 2:  # each line twice the one before
                bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
                bomb += "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
                return bomb.encode() + text.replace(b"kwargs:", b"kwargs: *a11 #", 1)
            case 3:
                return b"env: &e {id: CartPole-v1, kwargs: {x: *e}}\n"
            case 4:
                return text.replace(b":", b":\xff", 1)
            case 5:
                merged = "m0: &m0 {a: 1}\n" + "".join(
                    f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}\n" for n in range(1, 12)
                )
                return merged.encode() + text
            case 6:
                return b"env: {id: CartPole-v1, kwargs: " + b"{a: " * 300 + b"1" + b"}" * 300 + b"}\n"
        return text

    def zip(self, draw: random.Random, content: bytes) -> bytes:
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                files = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
        except zipfile.BadZipFile:
            return self.bytes(draw, content)
        at = draw.randrange(len(files))
        if draw.random() < 0.5:  # the same for all parts of which there is but one
            at = draw.choice(
                [n for n, (name, _) in enumerate(files) if name == "data" or name.endswith(("pkl", "pth"))] or [at]
            )
        name, part = files[at]
        compression = zipfile.ZIP_STORED
        match draw.randrange(9):
            case 0:
                files[at] = (
                    draw.choice(["../x", "/x", "a\\..\\b", "policy.pth", "x" * 300, "data", "archive/data.pkl"]),
                    part,
                )
            case 1:
                del files[at]
            case 2:
                files.append((draw.choice([name, "evil.pth", "archive/data/9"]), self.pickle(draw)))
            case 3:
                compression = zipfile.ZIP_DEFLATED
                files[at] = (name, bytes(draw.choice([10**6, 2 * 10**8])))
            case 4 | 5:
                files[at] = (name, self.pickle(draw) if name.endswith(".pkl") else self._part(draw, name, part))
            case 6:
                files[at] = (name, self.saved(draw) if name.endswith(".pth") else self._part(draw, name, part))
            case _:
                files[at] = (name, self._part(draw, name, part))
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", compression) as archive:
            for entry in files:
                archive.writestr(*entry)
        blob = bytearray(buffer.getvalue())
        if draw.random() < 0.1:  # sizes in the directory that are not those of the parts
            for place in (n for n in range(len(blob) - 46) if blob[n : n + 4] == b"PK\x01\x02"):
                struct.pack_into("<II", blob, place + 20, *(draw.choice([0, 100, 2**31, 2**32 - 2]) for _ in range(2)))
        return bytes(blob)

    def _part(self, draw: random.Random, name: str, part: bytes) -> bytes:
        if name.endswith(".pth") and part[:2] == b"PK" and draw.random() < 0.7:
            return self.zip(draw, part)
        if part[:1] == b"{" and draw.random() < 0.9:
            return self.json(draw, part)
        if name.endswith(".pkl") and draw.random() < 0.3:  # sizes and shapes in the pickle
            number = draw.choice(
                [b"J\xff\xff\xff\x7f", b"J\x00\x00\x00\x80", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"K\x00"]
            )
            places = [n for n in range(len(part) - 2) if part[n : n + 1] == b"K"]
            if places:
                place = draw.choice(places)
                return part[:place] + number + part[place + 2 :]
        return self.bytes(draw, part)

    def saved(self, draw: random.Random) -> bytes:
        """What torch.save makes of values that nobody expects."""
        nested: Any = [1]
        for _ in range(draw.choice([5, 60, 400])):
            nested = [nested, nested]
        values = [
            torch.zeros(1).expand(10**9),
            torch.zeros(1).expand(2**20, 2**20),
            {"w": torch.zeros(1).expand(10**9)},
            torch.zeros(3, 3).to_sparse(),
            torch.empty(10**9, device="meta"),
            torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.quint8),
            {f"w{n}": torch.ones(2**16).as_strided((2**16,), (1,)) for n in range(3)},
            {"w": torch.full((4,), float("nan")), "b": torch.tensor([2**62])},
            {1: 2, (1, 2): 3, b"x": 4},
            nested if draw.random() < 0.5 else {"policy": nested},
            Reduce(self.sentinel.touch),
            {"policy": Reduce(os.mkdir, str(self.sentinel))},
            [],
            None,
            "x",
            {"w": 1 + 2j},
            torch.zeros(2, dtype=torch.complex64),
        ]
        buffer = io.BytesIO()
        torch.save(draw.choice(values), buffer)
        return buffer.getvalue()

    def pickle(self, draw: random.Random) -> bytes:
        """A pickle that somebody means harm with."""
        touch, path = self.sentinel.touch, str(self.sentinel)
        doubling = (
            b"\x80\x02]q\x00"
            + b"".join(b"]q" + bytes([n + 1]) + b"(" + b"h" + bytes([n]) + b"h" + bytes([n]) + b"e" for n in range(100))
            + b"."
        )
        return draw.choice(
            [
                pickle.dumps(Reduce(touch), 2),
                pickle.dumps({"policy": Reduce(os.mkdir, path)}, 2),
                pickle.dumps(Reduce(exec, f"open({path!r}, 'w')"), 2),
                pickle.dumps(Reduce(bytearray, 4 * 10**9), 2),
                pickle.dumps(Reduce(torch.Tensor, 10**9), 2),
                pickle.dumps(Reduce(torch.FloatStorage, 10**9), 2),
                pickle.dumps(Reduce(torch.Tensor, 3), 2),
                doubling,
                b"\x80\x02" + b"(" * 200_000 + b".",
                b"\x80\x02" + b"]" + b"\x85" * 300_000 + b".",
                b"\x80\x02X\xff\xff\xff\x7fabc.",
                b"\x80\x02ctorch.hub\nload\n(X\x01\x00\x00\x00atR.",
                b"\x80\x02" + b"h\x00.",
                b"\x80\x02J\xff\xff\xff\x7fr\xff\xff\xff\x7f.",
                b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
            ]
        )
