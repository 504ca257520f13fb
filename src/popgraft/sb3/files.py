"""What an algorithm gives and takes: parameters, and files."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from popgraft.sb3 import archive, program
from popgraft.sb3.carry import RecurrentMemory
from popgraft.sb3.parts import collect, take_over


class Files(RecurrentMemory):
    """The part of an algorithm that others read, and that is read again."""

    def get_parameters(self, include_optimizer: bool = False) -> dict[str, dict[str, Any]]:
        """Everything that another model inherits when it becomes this one's copy, by name.

        Args:
            include_optimizer: whether `optimizer_state` is among it.
        """
        return collect(self, include_optimizer)

    def set_parameters(
        self,
        load_path_or_dict: str | Path | io.BufferedIOBase | Mapping[str, Any],
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Takes over parameters, and resets the recurrent state; on any error the model is as it was.

        Args:
            load_path_or_dict: what `get_parameters` or a coordinator's `collect_parameters` returned, or a file that
                `save`, or a coordinator or scheduler, wrote.
            exact_match: whether everything but the optimizer must be given; what is unknown never may.
            device: where a file's tensors are read to.

        Raises:
            ConfigError: something is missing, unknown or of another shape.
            StoreError: the file cannot be read.
        """
        given = load_path_or_dict
        if not isinstance(given, Mapping):
            given = archive.parameters(given, device)
        take_over(self, given, exact_match)
        self.reset_lstm_states_to_initial()

    def save(
        self,
        path: str | Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Writes Stable-Baselines3's zip, without pickled objects; `exclude` names arguments and counters to leave out.

        Raises:
            ConfigError: `include` names something that a file does not hold.
        """
        archive.write(path, self, set(exclude or ()), set(include or ()))

    def export(self, path: str | Path) -> None:
        """Writes the file that the suffix asks for, over an earlier one: what `save` does, or the acting policy alone.

        Args:
            path: `.zip`, or `.pt2` and `.onnx` for a graph that chooses the most likely action, see `program`.

        Raises:
            ConfigError: another suffix.
            MissingExtra: the exporter of ONNX is not installed.
            StoreError: the file cannot be written.
        """
        program.write(Path(path), self)

    @classmethod
    def load(
        cls,
        path: str | Path | io.BufferedIOBase,
        env: Any = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Reads a model that `save` wrote; nothing in the file is executed.

        Args:
            path: the file.
            env: what it learns from now; None: it can only act until `set_env`.
            device: a torch device.
            custom_objects: values in place of the file's, such as a `policy_class` of the user's; others are ignored.
            print_system_info: whether to print what the file was written with.
            force_reset: whether training begins with new episodes; else with the observations that the model saw last,
                if `env` is as many environments, and with an empty memory.
            kwargs: arguments in place of the file's.

        Raises:
            StoreError: the file is missing, damaged, foreign, or holds pickled objects.
            ConfigError: it needs an object that a file cannot hold, or the environment has other spaces.
        """
        return archive.load(cls, path, env, device, custom_objects or {}, kwargs, print_system_info, force_reset)
