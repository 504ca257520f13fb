"""What a strategy of a name reads: its own arguments, and which of the other settings."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from popgraft.config.explain import explain
from popgraft.config.fields import Section
from popgraft.config.population import EvolutionConfig
from popgraft.errors import ConfigError

S = TypeVar("S", bound=Section)

WHO_COPIES = ("exploit_method", "exploit_method_kwargs", "explore_always")
"""Settings of those who leave it to an exploit method who copies whom."""
READINESS = ("ready_percentage", "min_ready_members", "ready_check_max_wait")
"""Settings of those who wait until enough members have a score."""


def settings_of(kind: type[S], kwargs: Mapping[str, Any]) -> S:
    """Arguments of a strategy as its section of settings.

    Raises:
        ConfigError: names every wrong one.
    """
    try:
        return kind.model_validate(dict(kwargs))
    except ValidationError as error:
        raise ConfigError(explain(error, "pbt.strategy_kwargs", kind)) from None


def refuse_unread(config: EvolutionConfig, names: tuple[str, ...]) -> None:
    """Refuses settings that the strategy has no use for, where they are not as they are by default.

    Raises:
        ConfigError: somebody has set one of them.
    """
    fields = type(config).model_fields
    for name in names:
        if (value := getattr(config, name)) != fields[name].get_default(call_default_factory=True):
            raise ConfigError(f"pbt.{name}={value!r} is not read by strategy: {config.strategy}; remove it")
