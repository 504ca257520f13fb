"""Minibatches are a partition of all sequences, each with the state before it: recognised by content."""

import pytest
import torch

from popgraft.rollout.batch import Samples, minibatches

POP, ENV, LENGTH = 3, 4, 5


def coded(chunks):
    """Samples whose numbers name their place: member · 10000 + time · 100 + env."""
    time = chunks * LENGTH
    m, t, e = torch.meshgrid(torch.arange(POP), torch.arange(time), torch.arange(ENV), indexing="ij")
    code = (m * 10_000 + t * 100 + e).float()
    samples = Samples(
        obs={"a": torch.stack([code, -code], -1), "image": (code % 251).to(torch.uint8)[..., None, None, None]},
        action=code.long().unsqueeze(-1),
        log_prob=code + 0.1,
        advantage=code + 0.2,
        target=code + 0.3,
        start=t % 3 == 0,
        valid=(e != 1).float(),
        extras={"risk": code + 0.4},
    )
    state = torch.stack([code[:, ::LENGTH], code[:, ::LENGTH] + 0.5], -1)
    return samples, state


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_sequence_comes_once_with_its_own_state(chunks, count):
    samples, state = coded(chunks)
    generator = torch.Generator().manual_seed(3)
    order = torch.stack([torch.randperm(chunks * ENV, generator=generator) for _ in range(POP)])
    seen = [[] for _ in range(POP)]
    parts = list(minibatches(samples, state, order, count))
    assert len(parts) == count
    for batch in parts:
        own = batch.samples
        assert own.valid.shape == (POP, LENGTH, chunks * ENV // count)
        code = own.obs["a"][..., 0]
        member, time, env = code // 10_000, code % 10_000 // 100, code % 100
        # Whole sequences: one environment, consecutive steps from a multiple of the length on.
        assert (member == torch.arange(POP).view(-1, 1, 1)).all()
        assert (env == env[:, :1]).all()
        assert (time - time[:, :1] == torch.arange(LENGTH).view(1, -1, 1)).all()
        assert (time[:, 0] % LENGTH == 0).all()
        # Everything else comes from the same place.
        assert torch.equal(own.obs["a"][..., 1], -code)
        assert torch.equal(own.obs["image"].flatten(2), (code % 251).to(torch.uint8))
        assert torch.equal(own.action.squeeze(-1), code.long())
        for offset, leaf in ((0.1, own.log_prob), (0.2, own.advantage), (0.3, own.target), (0.4, own.extras["risk"])):
            assert torch.equal(leaf, code + offset)
        assert torch.equal(own.start, time % 3 == 0)
        assert torch.equal(own.valid, (env != 1).float())
        assert torch.equal(batch.state, torch.stack([code[:, 0], code[:, 0] + 0.5], -1))
        for m in range(POP):
            seen[m] += (time[m, 0] / LENGTH * ENV + env[m, 0]).long().tolist()
    # Sequence s is chunk s // env of environment s % env, in each member's own order.
    assert seen == order.tolist()


def test_a_minibatch_is_a_copy():
    samples, state = coded(1)
    (batch,) = minibatches(samples, state, torch.arange(ENV).expand(POP, -1), 1)
    batch.samples.advantage.zero_()
    batch.state.zero_()
    assert torch.equal(samples.advantage, coded(1)[0].advantage)
    assert torch.equal(state, coded(1)[1])
