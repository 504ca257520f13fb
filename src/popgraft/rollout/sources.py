"""From the configuration to a function that makes one member's environments."""

import difflib
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator

from popgraft.config import EnvConfig
from popgraft.errors import ConfigError, EnvironmentFault, MissingExtra, PopgraftError
from popgraft.messages import told
from popgraft.names import import_module, import_name
from popgraft.rollout.adapters import EnvPoolEnv, GymnasiumEnv, adapt
from popgraft.rollout.answers import own
from popgraft.rollout.guests import is_ctrl_c
from popgraft.rollout.member_env import MemberEnv
from popgraft.rollout.wrappers import gymnasium_wrappers
from popgraft.tether import children_tied

Maker = Callable[[], MemberEnv]
"""Makes the environments of one member, not yet reset."""

AUTORESET = {"same_step": gym.vector.AutoresetMode.SAME_STEP, "next_step": gym.vector.AutoresetMode.NEXT_STEP}


def maker_of(config: EnvConfig, num_envs: int, factory: Callable[..., Any] | None = None) -> Maker:
    """How a member's environments are made.

    Args:
        config: names the source, its arguments and its wrappers.
        num_envs: environments per member.
        factory: takes the place of the configured source; called as factory(num_envs=..., **config.kwargs).

    Raises:
        ConfigError: a source or a combination that cannot work, or a factory that is not given again.
        MissingExtra: the source belongs to a package that is not installed.
    """
    if config.source == "python" and factory is None:
        named = " --set env.id=null" if config.id else ""
        raise ConfigError(
            "env.source is 'python': the environments come from a factory that is passed in Python; pass it again, as "
            "in train(config, factory=make), resume(RUN, factory=make), replay(RUN, factory=make) or "
            "Run(RUN, factory=make).best.evaluate(20, seed=1); or name it for good with "
            f"--set env.source=gymnasium --set env.factory=module:function{named}"
        )
    wrappers = gymnasium_wrappers(config.wrappers)
    if factory is not None or config.factory is not None:
        return _from_factory(config, num_envs, factory, wrappers)
    assert config.id is not None, "the configuration allows no environment without id and factory"
    if config.vectorization == "envpool":
        return _from_envpool(config, config.id, num_envs, wrappers)
    return _from_gymnasium(config, config.id, num_envs, wrappers)


def _from_factory(config: EnvConfig, num_envs: int, factory: Callable[..., Any] | None, wrappers: list[Any]) -> Maker:
    if config.vectorization != "auto":
        raise ConfigError(
            f"env.vectorization={config.vectorization!r} has no effect on a factory, which vectorizes by itself; "
            "remove it"
        )
    _refuse_wrappers(config, wrappers, "a factory")
    function = import_name(config.factory, "env.factory") if factory is None and config.factory else factory
    if not callable(function):
        raise ConfigError(f"env.factory={config.factory!r} is {function!r}, not a function")
    source = f"env.factory={config.factory!r}" if factory is None else f"the factory {factory!r}"

    def make() -> MemberEnv:
        env = _guarded(source, lambda: function(num_envs=num_envs, **config.kwargs))
        return adapt(env, num_envs, source, config.step_timeout)

    return make


def _from_envpool(config: EnvConfig, env_id: str, num_envs: int, wrappers: list[Any]) -> Maker:
    try:
        import envpool
    except ImportError:
        raise MissingExtra("envpool", "envpool", "env.vectorization: envpool") from None
    _refuse_wrappers(config, wrappers, "env.vectorization: envpool")
    known = envpool.list_all_envs()
    if env_id not in known:
        raise ConfigError(f"env.id={env_id!r} is unknown to EnvPool{_nearest(env_id, known)}")

    def pool(seed: int) -> Any:
        with warnings.catch_warnings():  # Gymnasium's, about bounds that EnvPool declares in double precision
            warnings.filterwarnings("ignore", message=".*precision lowered by casting")
            env = envpool.make_gymnasium(env_id, num_envs=num_envs, seed=seed, **config.kwargs)
            _ = env.observation_space, env.action_space  # made, with the warning, on first use
        return env

    return lambda: EnvPoolEnv(lambda seed: _guarded(_described(config), lambda: pool(seed)))


def _from_gymnasium(config: EnvConfig, env_id: str, num_envs: int, wrappers: list[Any]) -> Maker:
    spec = spec_of(env_id)
    mode = config.vectorization
    if mode == "auto":
        mode = "vector_entry_point" if not wrappers and _vectorizes_itself(spec) else "sync"
    options: dict[str, Any] = {}
    if mode == "vector_entry_point":
        _refuse_wrappers(config, wrappers, "env.vectorization: vector_entry_point")
        if spec.vector_entry_point is None:
            raise ConfigError(f"env.id={env_id!r} has no vector entry point; set env.vectorization: sync or async")
    else:
        options["wrappers"] = [own, *wrappers, own] if wrappers else [own]  # below: some keep observations themselves
        options["vector_kwargs"] = {"autoreset_mode": AUTORESET[config.autoreset], "copy": False}

    def make() -> MemberEnv:
        env = gym.make_vec(spec, num_envs, vectorization_mode=mode, **options, **config.kwargs)
        return GymnasiumEnv(env, config.step_timeout)

    return lambda: _guarded(_described(config), make)


def spec_of(env_id: str) -> EnvSpec:
    """What Gymnasium knows of an id; the module before a colon is imported first.

    Raises:
        ConfigError: there is no such id.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        import_module(module, f"env.id={env_id!r}")
    try:
        return gym.spec(name)
    except gym.error.Error as error:
        reason = f"env.id={env_id!r} is unknown to Gymnasium: {str(error).rstrip('.')}"
        raise ConfigError(
            f"{reason}{_nearest(name, list(gym.registry))}; where a script or a module of yours registers it, go on "
            f"from that script, or name the module, as in env.id: my_module:{name}"
        ) from None


def _vectorizes_itself(spec: EnvSpec) -> bool:
    """Whether there is a vector entry point that can be imported: some need packages that are not installed."""
    if spec.vector_entry_point is None or spec.additional_wrappers:
        return False
    if isinstance(spec.vector_entry_point, str):
        try:
            load_env_creator(spec.vector_entry_point)
        except (ImportError, gym.error.DependencyNotInstalled):
            return False
    return True


def _guarded(what: str, make: Callable[[], Any]) -> Any:
    """Makes an environment, whose processes end with this one, and puts what goes wrong into the user's words."""
    try:
        with children_tied():
            return make()
    except PopgraftError:
        raise
    except BaseException as error:  # also of code that leaves by sys.exit
        if is_ctrl_c(error):
            raise
        if isinstance(error, (ImportError, gym.error.DependencyNotInstalled)) and "mujoco" in str(error).lower():
            raise MissingExtra("mujoco", "mujoco", what) from error
        raise EnvironmentFault(f"{what} cannot be made: {told(error)}") from error


def _described(config: EnvConfig) -> str:
    return f"env.id={config.id!r}" + (f" with kwargs={config.kwargs}" if config.kwargs else "")


def _refuse_wrappers(config: EnvConfig, wrappers: list[Any], place: str) -> None:
    if wrappers:
        names = ", ".join(repr(wrapper.name) for wrapper in config.wrappers if ":" in wrapper.name)
        raise ConfigError(
            f"the Gymnasium wrappers {names} act inside single environments, which {place} does not have; "
            "wrap in the source itself, or use env.id with env.vectorization: sync or async"
        )


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    if near:
        return f"; did you mean {' or '.join(repr(candidate) for candidate in near)}?"
    return ""
