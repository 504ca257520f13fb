"""Where a population runs: settings that contradict each other."""

import pytest

from popgraft.config import load_config
from popgraft.errors import ConfigError


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as found:
        load_config({"env": {"id": "CartPole-v1"}, "pbt": {"population_size": 6}}, overrides)
    return str(found.value)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["execute.address=auto"], "execute.address is for Ray's actors; set execute.kind: ray, or remove it"),
        (["execute.gpus_per_shard=1"], "execute.gpus_per_shard is for Ray's actors"),
        (["execute.sizes=[4, 3]"], "execute.sizes=[4, 3] must add up to pbt.population_size=6"),
        (["execute.sizes=[4, 2]", "execute.shards=3"], "in execute.shards=3 numbers; leave execute.shards out"),
        (
            ["execute.kind=ray", "engine.device=cuda"],
            "engine.device='cuda' needs GPUs, but execute.gpus_per_shard is 0",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(overrides: list[str], sentence: str) -> None:
    assert sentence in refusal(*overrides)


def test_shards_of_given_sizes() -> None:
    config = load_config({"env": {"id": "CartPole-v1"}, "pbt": {"population_size": 6}}, ["execute.sizes=[3, 1, 2]"])
    assert config.execute.sizes == [3, 1, 2]
