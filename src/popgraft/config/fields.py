"""Types of settings: what is accepted as a number, as the name of code, and as keyword arguments."""

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError

from popgraft.config.explain import explain
from popgraft.errors import ConfigError


def _number(value: Any) -> Any:
    """Refuses what pydantic would convert to a number: true, and digits in quotes."""
    if isinstance(value, (bool, str)):
        raise ValueError("must be a number, without quotes")
    return value


def writable(value: Any, path: str = "") -> Any:
    """Reduces a value to what YAML can write back, because the run folder keeps the whole configuration."""
    if isinstance(value, dict):
        return {key: writable(child, f"{path}.{key}" if path else key) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [writable(child, f"{path}.{position}") for position, child in enumerate(value)]
    if value is None:
        return None
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    raise ValueError(f"{path}={value!r} cannot be written to a file; use numbers, strings, lists and sections")


def reference(value: str) -> str:
    """Checks the form `module:name`."""
    module, _, name = value.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), name]):
        raise ValueError("must have the form module:name, for example my_package.my_module:my_name")
    return value


Integer = Annotated[int, BeforeValidator(_number)]
Number = Annotated[FiniteFloat, BeforeValidator(_number)]
Positive = Annotated[Integer, Field(gt=0)]
DecayRate = Annotated[Number, Field(ge=0, lt=1)]
Reference = Annotated[str, AfterValidator(reference)]
Kwargs = Annotated[dict[str, Any], AfterValidator(writable)]


class Section(BaseModel):
    """A frozen group of settings in which an unknown key is an error.

    Raises:
        ConfigError: names every wrong setting.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, ser_json_inf_nan="constants")

    in_order: ClassVar[tuple[str, ...]] = ()
    """Settings that may be given without their names, in this order."""

    def __init__(self, /, *values: Any, **data: Any) -> None:
        unnamed = dict(zip(self.in_order, values, strict=False))
        twice = sorted(set(unnamed) & set(data))
        if len(values) > len(unnamed) or twice:
            wrong = f"{', '.join(twice)} given twice" if twice else f"{len(values)} values without a name"
            allowed = f"; only {', '.join(self.in_order)} may go without, in this order" if self.in_order else ""
            raise ConfigError(f"{type(self).__name__}: {wrong}; name each setting, as in NAME=VALUE{allowed}")
        try:
            super().__init__(**unnamed, **data)
        except ValidationError as error:
            raise ConfigError(explain(error, type(self).__name__, type(self))) from None

    # Otherwise pydantic would build nested sections through it too, and their mistakes would lose their place.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]
