"""Observers and sections of somebody who knows what docs/extending.md says, and nothing else of the package."""

from popgraft import Observer
from popgraft.dashboard import Section


class Table(Observer):
    """A line for every generation, beside the run."""

    def on_start(self, plan):
        self.file = plan.folder / "table.txt"

    def on_generation(self, generation):
        with self.file.open("a") as file:
            print(generation.steps, file=file)


class Needy(Observer):
    """Cannot be made without being told something."""

    def __init__(self, address):
        self.address = address


def mine(view):
    return Section("mine", "Mine", "", f"<p>{view.data.pop} members</p>")


def failing(view):
    raise ValueError("no such data")
