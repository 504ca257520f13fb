"""Settings of how and where a run is carried out."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from popgraft.config.fields import Number, Positive, Section


class EngineConfig(Section):
    """How the arithmetic is carried out; only `sequence_length` changes what is computed beyond rounding."""

    sequence_length: Positive | None = None
    """Steps of backpropagation through time; null: the whole rollout."""
    device: str = "auto"
    """A torch device; `auto` takes CUDA where there is one."""
    threads: Positive = 1
    """Threads inside operators; more than 1 pays only on cores that nothing else uses, and stalls on others."""


class ExecuteConfig(Section):
    """Where the population runs."""

    kind: Literal["local", "ray"] = "local"
    """`local`: on this machine; `ray`: an actor for every shard, on a Ray cluster."""
    shards: Positive | None = None
    """Stacked sub-populations that the members are divided into, on CPUs with a process each; null: one per core on
    CPUs, one on a GPU, and with Ray as many as the cluster has room for."""
    mode: Literal["lockstep", "async"] = "lockstep"
    """`lockstep`: everybody trains for a generation, then everybody decides, with the results of one machine; `async`,
    with Ray: every shard decides as soon as it has trained for one, and never waits for another."""
    max_lag: Annotated[Number, Field(ge=0)] = 1.0
    """With `mode: async`, generations of training by which members may differ and still be compared."""
    sizes: list[Positive] | None = None
    """Members of every shard, where machines differ; null: nearly the same number in each."""
    address: str | None = None
    """Address of a Ray cluster, or `auto` on one of its machines; null: a cluster of this machine alone, for the time
    of the run."""
    cpus_per_shard: Annotated[Number, Field(ge=0)] = 1
    """Cores that Ray reserves for a shard; asynchronous environments need some of their own."""
    gpus_per_shard: Annotated[Number, Field(ge=0)] = 0
    """GPUs, or a share of one, that Ray reserves for a shard; 0: it computes on CPUs."""
    timeout: Annotated[Number, Field(gt=0)] | None = 1800.0
    """Seconds after which an actor that has neither finished an update, an evaluation nor anything else is replaced as
    if it had died; null: never."""

    @model_validator(mode="after")
    def _settings_of_ray(self) -> "ExecuteConfig":
        for name in ("address", "cpus_per_shard", "gpus_per_shard", "timeout", "mode", "max_lag"):
            if self.kind == "local" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"execute.{name} is for Ray's actors; set execute.kind: ray, or remove it")
        if self.mode == "lockstep" and self.max_lag != type(self).model_fields["max_lag"].default:
            raise ValueError("execute.max_lag is for execute.mode: async; in lockstep nobody lags behind")
        return self
