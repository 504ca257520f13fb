"""What a configuration names and a script has defined, found where a run begins, for the processes of its shards.

These processes do not run the script. What it has defined goes there by value: a factory, what settings name in it, and
the environments that are registered with Gymnasium; and from there on to processes that environments spawn. Modules are
imported there as they are here, from the same folders; on another machine, which may lack those, the user's own from
their source.
"""

import contextlib
import copy
import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from popgraft.config import Config, EnvConfig
from popgraft.config.kinds import chosen_kinds
from popgraft.errors import ConfigError
from popgraft.messages import told
from popgraft.names import import_name, is_script
from popgraft.rollout.adopting import Sources, adopt, hand_on
from popgraft.rollout.make import evaluation_source
from popgraft.rollout.sources import spec_of

Factory = Callable[..., Any]
Scripts = dict[str, dict[str, Any]]
"""What is found in the script, by the names that the script goes by and its own."""


def named(config: Config, factory: Factory | None = None) -> Iterator[tuple[str, str]]:
    """Every setting that names something of the user's as `module:name`, and what it says.

    Args:
        config: the run.
        factory: takes the place of `env.factory` and `env.id`.
    """
    for place, env, made in _environments(config, factory):
        if made is None and env.factory is not None and env.source != "python":
            yield f"{place}.factory", env.factory
        if made is None and env.source == "tensor" and ":" in str(env.id):
            yield f"{place}.id", str(env.id)
        for wrapper in env.wrappers:
            if ":" in wrapper.name:
                yield f"{place}.wrappers", wrapper.name
    for kinds, name in chosen_kinds(config):
        if name not in kinds.table:
            yield kinds.setting, name
    for fault in config.pbt.graft_faults:
        if ":" in fault:
            yield "pbt.graft_faults", fault


def check_names(config: Config, factory: Factory | None = None) -> None:
    """Finds everything that a configuration names.

    Raises:
        ConfigError: something is not there, or cannot serve as what it is named for, with the reason.
    """
    for setting, path in named(config, factory):
        import_name(path, setting)
    for kinds, name in chosen_kinds(config):
        kinds.load(name)
    config.check_critic()
    config.check_rule()
    for env_id in _registered(config, factory):
        spec_of(env_id)


def _environments(config: Config, factory: Factory | None) -> Iterator[tuple[str, EnvConfig, Factory | None]]:
    """The section of every kind of environments, their settings, and the factory in place of their source."""
    yield "env", config.env, factory
    if config.evaluation_env != config.env:
        yield "evaluation.env", *evaluation_source(config, factory)


def _registered(config: Config, factory: Factory | None) -> list[str]:
    """Environments of the run that Gymnasium knows by their ids."""
    return [
        env.id
        for _, env, made in _environments(config, factory)
        if made is None and env.id is not None and env.source == "gymnasium" and env.vectorization != "envpool"
    ]


@dataclasses.dataclass(frozen=True)
class Definitions:
    """What another process needs in order to find what a configuration names; it is made of plain values.

    Attributes:
        path: where modules are looked for.
        modules: that register the run's environments, imported first: what the script has registered since comes later.
        content: the factory, the script's objects by module and name, and the run's environments by their ids, where
            Gymnasium knows them; pickled by value.
        others: all other registered environments, each pickled by value: factories may make them.
        sources: of the user's own modules, where the process may be on another machine.
    """

    path: list[str]
    modules: list[str]
    content: bytes
    others: list[bytes]
    sources: Sources

    @classmethod
    def of(cls, config: Config, factory: Factory | None = None, far: bool = False) -> "Definitions":
        """Finds everything that a configuration names.

        Args:
            config: the run.
            factory: takes the place of `env.factory` and `env.id`.
            far: whether the process may be on another machine.

        Raises:
            ConfigError: something is not there, or cannot go to another process.
        """
        check_names(config, factory)
        scripts: Scripts = {}
        for setting, path in named(config, factory):
            _keep(scripts, path, f"{setting}={path!r}")
        specs: dict[str, EnvSpec] = {}
        modules: list[str] = []
        for path in _registered(config, factory):
            module, _, own = path.rpartition(":")
            spec = specs[own] = _portable(gym.spec(own), scripts)
            _check_sendable(spec, f"the environment {path!r}")
            points = [point.partition(":")[0] for point in _points(spec).values() if isinstance(point, str)]
            modules += [*([module] if module else []), *points]
        others = []
        for id in gym.registry.keys() - specs.keys():
            with contextlib.suppress(Exception):  # nobody may need it; a factory that does says what is missing
                others.append(cloudpickle.dumps((id, _portable(gym.registry[id], scripts))))
        for module in filter(is_script, modules):
            scripts.setdefault(module, {})
        _check_sendable(factory, f"the factory {factory!r}")
        sources = _sources_in(config.code_dir) if far else {}
        return cls(list(sys.path), modules, cloudpickle.dumps((factory, scripts, specs)), others, sources)

    def adopt(self) -> Factory | None:
        """Makes this process, and all that its environments spawn, one that finds all of it, and returns the factory.

        Raises:
            ConfigError: a module is not on this machine.
        """
        adopted = self.path, self.modules, self.content, self.others, self.sources
        try:
            factory = adopt(*adopted)
        except Exception as error:
            raise ConfigError(
                "what the configuration names cannot be had in the process of a shard: "
                f"{told(error)}; install the same modules on every machine"
            ) from error
        hand_on(*adopted)
        return factory


def _sources_in(code_dir: Path | None) -> Sources:
    """Modules that lie in the folder of the configuration, in the current one or in the script's, and are imported."""
    folders = set()
    for place in (code_dir or "", "", sys.path[0]):
        with contextlib.suppress(OSError):  # the current one has been deleted
            folders.add(Path(place).resolve())
    own: dict[str, bool] = {}
    sources: Sources = {}
    for name, module in list(sys.modules.items()):
        spec, top = getattr(module, "__spec__", None), name.partition(".")[0]
        if spec is None or not isinstance(spec.loader, SourceFileLoader) or top == __name__.partition(".")[0]:
            continue
        if top not in own:
            places = getattr(sys.modules.get(top), "__path__", None) or [spec.origin]
            own[top] = any(Path(place).resolve().parent in folders for place in places)
        if own[top]:
            with contextlib.suppress(OSError, SyntaxError, UnicodeError):  # its file is there no more
                text = importlib.util.decode_source(Path(spec.loader.path).read_bytes())
                sources[name] = text, spec.submodule_search_locations is not None
    return sources


def _portable(spec: EnvSpec, scripts: Scripts) -> EnvSpec:
    """A registered environment whose entry points name what can be imported, and are the script's objects themselves.

    Wrappers can only be named: the script's are added to `scripts`.
    """
    spec = copy.copy(spec)
    for name, point in _points(spec).items():
        if isinstance(point, str):
            if is_script(point.partition(":")[0]):
                setattr(spec, name, import_name(point, f"the {name} of {spec.id}"))
            continue
        home, own = (str(getattr(point, attribute, "")) for attribute in ("__module__", "__name__"))
        if not is_script(home) and getattr(sys.modules.get(home), own, None) is point:
            setattr(spec, name, f"{home}:{own}")
    for wrapper in spec.additional_wrappers:
        _keep(scripts, wrapper.entry_point, f"the wrapper {wrapper.entry_point} of {spec.id}")
    return spec


def _points(spec: EnvSpec) -> dict[str, Any]:
    points = {name: getattr(spec, name) for name in ("entry_point", "vector_entry_point")}
    return {name: point for name, point in points.items() if point is not None}


def _keep(scripts: Scripts, path: str, what: str) -> None:
    """Adds what `module:name` names to the objects of the script, if it is one of them."""
    module, _, name = path.partition(":")
    if is_script(module):
        found = import_name(path, what)
        _check_sendable(found, what)
        scripts.setdefault(module, {})[name] = found


def _check_sendable(thing: Any, what: str) -> None:
    try:
        cloudpickle.dumps(thing)
    except Exception as error:
        raise _unsendable(what, error) from error


def _unsendable(what: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{what} is defined in the script, but cannot go from there to the processes of shards: "
        f"{told(error)}; move it into a module and name that as module:name, or set execute.shards: 1"
    )
