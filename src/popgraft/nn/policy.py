"""The agent's network: encoder, actor and critic memory, action head and critic."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from popgraft.config import NetworkConfig
from popgraft.config.network import ACTION_HEADS, CRITICS, ENCODERS, MEMORIES
from popgraft.nn import trial
from popgraft.nn.blocks import Block, Layout, Params, initialise
from popgraft.nn.compiled import rounding_pays
from popgraft.nn.critics import CriticEnsemble
from popgraft.nn.dense import MLP
from popgraft.nn.encoders import make_encoder
from popgraft.nn.encoders.own import ModuleEncoder
from popgraft.nn.heads import make_head
from popgraft.nn.precision import rounded_to
from popgraft.nn.recurrent import Memory
from popgraft.rng import to_device
from popgraft.spaces import Spaces

Kept = tuple[Sequence[Float[Tensor, "pop time batch hidden"]], Sequence[Float[Tensor, "pop time batch hidden"]]]
"""Dropout: factors of what every recurrent layer but the last hands to the next one, in the actor and in the critic."""


class Unrolled(NamedTuple):
    """What the network says about a stretch of time.

    Attributes:
        outputs: parameters of the action distribution (logits or means).
        critic: features from which `Policy.predict` predicts the return.
        state: recurrent state after the last step.
    """

    outputs: Float[Tensor, "pop time batch outputs"]
    critic: Float[Tensor, "pop time batch critic"]
    state: Float[Tensor, "pop batch state"]


class Policy:
    """Recurrent actor and critic of every member, over one flat parameter tensor [pop, n].

    The recurrent state of an environment is a flat vector: the actor's memory, then the critic's if it has its own.

    Args:
        spaces: what the agent sees and does.
        config: the network's settings.
        extractor: makes the user's encoder from the observation space, in place of the configured one.
    """

    def __init__(
        self, spaces: Spaces, config: NetworkConfig, extractor: Callable[[Any], nn.Module] | None = None
    ) -> None:
        self.specs = {name: spaces.obs[name] for name in sorted(spaces.obs)}
        self.encoder = make_encoder(spaces, config, extractor)
        self.critic_encoder = None if config.share_encoder else make_encoder(spaces, config, extractor)
        features = self.encoder.n_out
        self.actor_memory = _memory(config, features)
        own_critic_memory = config.critic_recurrent == "separate"
        self.critic_memory = _memory(config, features) if own_critic_memory else None
        self.dropout = config.recurrent_dropout
        rounds = config.precision == "bfloat16" or (config.precision == "auto" and rounding_pays())
        self.factors = torch.bfloat16 if rounds else None
        self.critic_reads_actor = config.critic_recurrent in ("shared", "detached") and self.actor_memory is not None
        self.critic_detached = config.critic_recurrent == "detached"
        recalled = self.actor_memory.n_out if self.actor_memory else features
        valued = recalled if self.critic_memory or self.critic_reads_actor else features
        self.actor_mlp = MLP(recalled, config.head_layers, config.activation, config.layer_norm)
        critic_layers = config.head_layers if config.critic_head_layers is None else config.critic_head_layers
        self.critic_mlp = MLP(valued, critic_layers, config.activation, config.layer_norm)
        self.head = make_head(self.actor_mlp.n_out, spaces.action, config)
        critic = CRITICS.make(config.critic, config, **config.critic_kwargs)
        self.critic = CriticEnsemble(self.critic_mlp.n_out, critic, config.twin_critics, config.twin_reduce)
        self._try_kinds(spaces, config, extractor is None)
        self._blocks: dict[str, Block] = {
            "encoder": self.encoder,
            "actor_mlp": self.actor_mlp,
            "critic_mlp": self.critic_mlp,
            "head": self.head,
            "critic": self.critic,
        }
        if self.actor_memory:
            self._blocks["actor_memory"] = self.actor_memory
        if self.critic_memory:
            self._blocks["critic_memory"] = self.critic_memory
        if self.critic_encoder:
            self._blocks["critic_encoder"] = self.critic_encoder
        self.layout = Layout(self.init(torch.Generator()))
        self.actor_state_size = self.actor_memory.state_size if self.actor_memory else 0
        self.state_size = self.actor_state_size + (self.critic_memory.state_size if self.critic_memory else 0)

    def _try_kinds(self, spaces: Spaces, config: NetworkConfig, own_encoder: bool) -> None:
        """Refuses kinds from outside that cannot work."""
        if own_encoder and config.encoder not in ENCODERS.table and not isinstance(self.encoder, ModuleEncoder):
            trial.try_encoder(ENCODERS, config.encoder, self.encoder, self.specs)
        if self.actor_memory and config.recurrent not in MEMORIES.table:
            trial.try_memory(MEMORIES, config.recurrent, self.actor_memory)
        if config.action_head not in ACTION_HEADS.table:
            trial.try_head(ACTION_HEADS, config.action_head, self.head, self.actor_mlp.n_out, spaces.action)
        if config.critic not in CRITICS.table:
            trial.try_critic(CRITICS, config.critic, self.critic.kind)

    @property
    def hidden_parts(self) -> dict[str, slice]:
        """Where h of every recurrent layer lies in the state: `actor_layer{i}`, then `critic_layer{i}`."""
        parts, offset = {}, 0
        for owner, memory in (("actor", self.actor_memory), ("critic", self.critic_memory)):
            if memory:
                for i, part in enumerate(memory.hidden_slices):
                    parts[f"{owner}_layer{i}"] = slice(offset + part.start, offset + part.stop)
                offset += memory.state_size
        return parts

    def init(self, generator: torch.Generator) -> Params:
        """Parameters of one member."""
        return {name: block.init(generator) for name, block in self._blocks.items()}

    def init_population(self, generators: list[torch.Generator]) -> Float[Tensor, "pop n"]:
        """Flat parameters, one member per generator."""
        return self.layout.flatten(initialise(self, generators))

    def views(self, flat: Float[Tensor, "pop n"]) -> Params:
        """Named parameters that share the memory of a flat tensor."""
        return self.layout.views(flat)

    def prepared(self, params: Params) -> Params:
        """Named parameters with what every call makes of them; right for as long as they do not change."""
        memories = {"actor_memory": self.actor_memory, "critic_memory": self.critic_memory}
        with rounded_to(self.factors):
            return params | {name: memory.prepared(params[name]) for name, memory in memories.items() if memory}

    def unroll(
        self,
        params: Params,
        obs: dict[str, Tensor],
        state: Float[Tensor, "pop batch state"],
        start: Bool[Tensor, "pop time batch"],
        kept: Kept = ((), ()),
    ) -> Unrolled:
        """Runs the network over time; acting is an unroll of one step.

        Args:
            params: named parameters, `prepared` or not.
            obs: every key [pop, time, batch, *shape].
            state: recurrent state before the first step.
            start: where an episode begins: the state is zeroed before that step.
            kept: dropout of the actor's and of the critic's memory.
        """
        with rounded_to(self.factors):
            _, recalled, valued, state = self._recall(params, obs, state, start, kept)
            outputs = self.head(params["head"], self.actor_mlp(params["actor_mlp"], recalled))
            return Unrolled(outputs, self.critic_mlp(params["critic_mlp"], valued), state)

    def hidden(
        self,
        params: Params,
        obs: dict[str, Tensor],
        state: Float[Tensor, "pop batch state"],
        start: Bool[Tensor, "pop time batch"],
    ) -> dict[str, Float[Tensor, "pop time batch units"]]:
        """What `unroll` computes on its way: the output of every part by its name among the parameters."""
        with rounded_to(self.factors):
            features, recalled, valued, _ = self._recall(params, obs, state, start, ((), ()))
            return {
                "encoder": features,
                "actor_memory": recalled,
                "critic_memory": valued,
                "actor_mlp": self.actor_mlp(params["actor_mlp"], recalled),
                "critic_mlp": self.critic_mlp(params["critic_mlp"], valued),
            }

    def _recall(
        self, params: Params, obs: dict[str, Tensor], state: Tensor, start: Tensor, kept: Kept
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features of what is seen, what the actor and the critic make of them and their memories, and the state."""
        features = self.encoder(params["encoder"], obs)
        actor_state = state
        if self.critic_memory:
            parts = [self.actor_state_size, self.state_size - self.actor_state_size]
            actor_state, critic_state = state.split_with_sizes(parts, dim=-1)
        recalled = valued = features
        if self.critic_encoder:
            valued = self.critic_encoder(params["critic_encoder"], obs)
        if self.actor_memory:
            recalled, actor_state = self.actor_memory(params["actor_memory"], features, actor_state, start, kept[0])
        if self.critic_memory:
            valued, critic_state = self.critic_memory(params["critic_memory"], valued, critic_state, start, kept[1])
            state = torch.cat([actor_state, critic_state], dim=-1)
        else:
            state = actor_state
        if self.critic_reads_actor:
            valued = recalled.detach() if self.critic_detached else recalled
        return features, recalled, valued, state

    def outputs(
        self,
        params: Params,
        obs: dict[str, Tensor],
        state: Float[Tensor, "pop batch state"],
        start: Bool[Tensor, "pop time batch"],
    ) -> Float[Tensor, "pop time batch outputs"]:
        """The outputs of `unroll` alone, without the critic's part of the work."""
        return self.act(params, obs, state[..., : self.actor_state_size], start)[0]

    def act(
        self,
        params: Params,
        obs: dict[str, Tensor],
        state: Float[Tensor, "pop batch actor"],
        start: Bool[Tensor, "pop time batch"],
    ) -> tuple[Float[Tensor, "pop time batch outputs"], Float[Tensor, "pop batch actor"]]:
        """The actor's part of `unroll`: outputs, and its own memory's state after the last step."""
        with rounded_to(self.factors):
            recalled = self.encoder(params["encoder"], obs)
            if self.actor_memory:
                recalled, state = self.actor_memory(params["actor_memory"], recalled, state, start)
            return self.head(params["head"], self.actor_mlp(params["actor_mlp"], recalled)), state

    def draw_kept(self, generators: Sequence[torch.Generator], like: Float[Tensor, "pop time batch"]) -> Kept:
        """Draws dropout for a minibatch: 1/(1 − p) or, with probability p, 0; nothing where p is 0.

        Args:
            generators: one per member.
            like: has the minibatch's shape and device.
        """
        actor, critic = (
            memory.layers - 1 if memory and self.dropout else 0 for memory in (self.actor_memory, self.critic_memory)
        )
        if not actor + critic:
            return (), ()
        assert self.actor_memory is not None
        shape = actor + critic, *like.shape[1:], self.actor_memory.n_out
        drawn = torch.stack([torch.rand(shape, generator=generator) for generator in generators], dim=1)
        layers = to_device((drawn >= self.dropout) / (1 - self.dropout), like.device).unbind()
        return layers[:actor], layers[actor:]

    def predict(
        self, params: Params, critic: Float[Tensor, "pop *batch critic"]
    ) -> Float[Tensor, "pop *batch critics atoms"]:
        """Predictions of the return by every critic, in its units."""
        with rounded_to(self.factors):
            return self.critic(params["critic"], critic)


def _memory(config: NetworkConfig, n_in: int) -> Memory | None:
    if not config.remembers:
        return None
    made = MEMORIES.make(config.recurrent, n_in, config.hidden_size, config.recurrent_layers, **config.recurrent_kwargs)
    return cast(Memory, made)
