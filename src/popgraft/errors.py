"""Every error that popgraft raises on purpose.

PopgraftError
├── ConfigError (also ValueError)     a setting that cannot work: the value, the reason, a fix
│   └── ArgumentError (also AssertionError and TypeError)  an argument of DistributionalPPO that cannot work
├── EnvironmentFault                  an environment that cannot be made, or that failed while it ran
│   └── UnusableNumber (also ValueError)  it gave NaN, an infinite number, one that is far too large, or no choice
├── MissingExtra (also ImportError)   an optional dependency, with the command that installs it
├── RunExists (also FileExistsError)  the run folder is already in use
├── StoreError                        a file of a run that is missing, damaged or foreign, or cannot be read or written
│   └── Damaged                       what a file holds is damaged, whoever reads it
├── ShardLost                         a process of the run has ended by itself
├── OutOfMemory (also MemoryError)    the memory of the machine or of the GPU does not suffice
└── PopulationLost                    no healthy member is left to rescue the others from
"""

from typing import Any


class PopgraftError(Exception):
    """Base of all errors that speak to the user; the command line prints them without a traceback."""


class ConfigError(PopgraftError, ValueError):
    """A setting that cannot work: names the value, the reason and a fix."""


class ArgumentError(ConfigError, AssertionError, TypeError):
    """An argument of `DistributionalPPO` that cannot work: Stable-Baselines3 raises one or the other of these."""


class EnvironmentFault(PopgraftError):
    """An environment that cannot be made, or that failed while it ran."""


class UnusableNumber(EnvironmentFault, ValueError):
    """An environment gave NaN, an infinite number, one that is far too large, or a choice that its space does not have.

    See `popgraft.rollout.usable`.
    """


class MissingExtra(PopgraftError, ImportError):
    """An optional dependency is not installed.

    Args:
        package: the import name of what is missing.
        extra: the extra of popgraft that brings it.
        purpose: what it is needed for, as the object of "needed for".
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self.package, self.extra, self.purpose = package, extra, purpose
        super().__init__(
            f"{package} is needed for {purpose} but is not installed; run: pip install 'popgraft[{extra}]'"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Made from the same arguments in another process, and not from its message as exceptions are by default."""
        return type(self), (self.package, self.extra, self.purpose), vars(self)


class RunExists(PopgraftError, FileExistsError):
    """The run folder already holds a run, which is never overwritten."""


class StoreError(PopgraftError):
    """A file of a run that is missing, damaged or foreign, or that cannot be read or written."""


class Damaged(StoreError):
    """What a file holds is damaged: to try again, or on another machine, does not help."""


class ShardLost(PopgraftError):
    """The process that trained some of the members has ended by itself."""


class OutOfMemory(PopgraftError, MemoryError):
    """The memory of the machine, or of the GPU, does not suffice."""


class PopulationLost(PopgraftError):
    """No healthy member is left to rescue the others from."""
