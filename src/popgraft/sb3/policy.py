"""The engine's network with a population of one, as a Stable-Baselines3 policy."""

import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import maybe_transpose
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from torch import Tensor, nn

from popgraft import tree
from popgraft.config import NetworkConfig, load_as
from popgraft.errors import ConfigError
from popgraft.nn import Params, Policy, Unrolled
from popgraft.ops import return_scale
from popgraft.rollout.acting import Actor, action_noise
from popgraft.rollout.answers import delivered, starts_of
from popgraft.rollout.spaces_of import action_encoder, fields_of, spaces_of
from popgraft.sb3 import policy_file
from popgraft.sb3.birth import initial_parameters
from popgraft.sb3.distributions import distribution_of
from popgraft.sb3.kinds import named
from popgraft.sb3.network import ENCODERS, check_kinds, check_known, function_of, image_features, network_settings
from popgraft.sb3.optimizer import EngineOptimizer
from popgraft.sb3.states import Memory, RNNStates, pack, shape_of, unpack
from popgraft.sb3.views import module_of, places
from popgraft.state import Member


class MlpLstmPolicy(BasePolicy):
    """Recurrent actor and critic, by the arguments of sb3-contrib's policies.

    Parameters and statistics are views of a member of the engine: an update writes through them.

    Args:
        observation_space: what the agent sees.
        action_space: what it does.
        lr_schedule: learning rate by remaining progress.
        net_arch: dense layers behind the memories: a list for both, or a dict with `pi` and `vf`.
        activation_fn: their nonlinearity.
        ortho_init: whether weights are orthogonal; else they are drawn as torch.nn does.
        use_sde: whether a continuous action's noise is a function of the state.
        log_std_init: initial log standard deviation of a continuous action.
        full_std, use_expln, squash_output: variants of that; anything but the default is refused.
        features_extractor_class: encoder; None: the policy's own.
        features_extractor_kwargs: its keyword arguments.
        share_features_extractor: whether actor and critic read the same encoder.
        normalize_images: whether 8-bit images are divided by 255; else floats of three axes are images too.
        optimizer_class: update rule, a key of `arguments.OPTIMIZERS`.
        optimizer_kwargs: its constants.
        lstm_hidden_size: width of an LSTM layer.
        n_lstm_layers: number of layers.
        shared_lstm: whether the critic reads the actor's LSTM, without a gradient.
        enable_critic_lstm: whether the critic has its own.
        lstm_kwargs: further arguments of torch.nn.LSTM, of which none is available.
        network: settings of the critic, see `arguments.Settings`.

    Raises:
        ConfigError: an argument that the engine has no counterpart of, or a combination that cannot work.
    """

    extractor: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        lr_schedule: Callable[[float], float],
        net_arch: Any = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        ortho_init: bool = True,
        use_sde: bool = False,
        log_std_init: float = 0.0,
        full_std: bool = True,
        use_expln: bool = False,
        squash_output: bool = False,
        features_extractor_class: type[nn.Module] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = True,
        normalize_images: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        lstm_hidden_size: int = 256,
        n_lstm_layers: int = 1,
        shared_lstm: bool = False,
        enable_critic_lstm: bool = True,
        lstm_kwargs: dict[str, Any] | None = None,
        **network: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "network", "__class__")}
        network = named(network)
        self._arguments = {**given, **network}
        check_known(network, list(inspect.signature(MlpLstmPolicy).parameters)[3:-1])
        check_kinds(given)
        extractor: Any = self.extractor if features_extractor_class is None else features_extractor_class
        if not isinstance(extractor, type) or not issubclass(extractor, nn.Module):
            raise ConfigError(f"features_extractor_class={extractor!r} must be a class of modules")
        super().__init__(
            observation_space,
            action_space,
            extractor,
            dict(features_extractor_kwargs or {}),  # a copy, to which it may add normalized_image
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        own = extractor in ENCODERS
        kwargs = dict(self.features_extractor_kwargs)
        features = image_features(extractor, kwargs, normalize_images) if own else 1
        settings = network_settings({**given, "features_extractor_class": extractor}, features)
        self.network_config = load_as(NetworkConfig, {**settings, **network})
        self.ortho_init = ortho_init
        self.spaces = spaces_of(observation_space, action_space)
        make = None if own else partial(extractor, **kwargs)
        self.network = Policy(self.spaces, self.network_config, make)
        self.fields, self._encode_actions = fields_of(observation_space), action_encoder(action_space)
        self.optimizer: EngineOptimizer

    def occupy(
        self,
        member: Member,
        optimizer: Callable[[Sequence[nn.Parameter]], EngineOptimizer],
        generator: torch.Generator,
        normalizes_reward: bool,
    ) -> None:
        """Takes a member for its own: parameters and statistics become views of it.

        Args:
            member: a population of one.
            optimizer: makes the optimizer for the parameters, which are in the order of their layout.
            generator: source of stochastic predictions' noise.
            normalizes_reward: whether the statistics of rewards belong to the state dict.
        """
        self.member = member
        self._actor = Actor.of(self.network, member)
        self.generator = generator
        for name, child in module_of(self._actor.params, nn.Parameter).named_children():
            self.add_module(name, child)
        normalizer: dict[str, Any] = {"obs": member.normalizer.obs} if member.normalizer.obs else {}
        if normalizes_reward:
            normalizer["returns"] = member.normalizer.returns
        self.statistics = set(normalizer)
        if normalizer:
            self.add_module("normalizer", module_of(normalizer, None))
        self._places = dict(places(self._actor.params))
        named = dict(self.named_parameters())
        self.optimizer = optimizer([named[self._places[path]] for path in self.network.layout.shapes])

    def describe_function(self) -> dict[str, Any]:
        """The settings by which the same weights are another function, for `foreign.function`."""
        return function_of(self.network_config)

    def describe_usual(self) -> dict[str, Any]:
        """The same where nothing is set, which files of versions without a setting stand for."""
        return function_of(NetworkConfig())

    def initial_parameters(self, seed: int) -> dict[str, Tensor]:
        """Freshly drawn initial weights, for grafts that renew some (`graft_perturb`)."""
        return initial_parameters(self, seed)

    @property
    def recurrent_initial_state(self) -> RNNStates:
        """The state before the first step, for one environment."""
        zeros = torch.zeros(1, 1, self.network.state_size, device=self.device)
        return unpack(zeros, self.network)

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Chooses actions.

        Args:
            observation: of one environment, or of several with a leading axis.
            state: (h, c) of the actor as the previous call returned it; None before the first step.
            episode_start: [env] whether the observation is the first of an episode, where the state is zeroed.
            deterministic: whether the most likely action is taken.

        Returns:
            Actions as the environment takes them, and the state for the next call.

        Raises:
            ConfigError: keys, shapes or types that the policy does not know, or that do not belong together.
            UnusableNumber: a number that is not finite, or far too large, or a choice that the space does not have.
        """
        if isinstance(observation, tuple):
            raise ConfigError(
                "predict got a tuple; pass the observation alone (reset() of a Gymnasium environment returns obs, info)"
            )
        obs, vectorized = self._read(observation)
        envs = len(next(iter(obs.values())))
        starts = torch.zeros(envs) if episode_start is None else torch.from_numpy(starts_of(episode_start, envs))
        memory = None if state is None else tuple(torch.as_tensor(part, dtype=torch.float32) for part in state)
        layers, parts, features = shape_of(self.network)
        expected = [(layers, envs, features)] * parts
        if memory is not None and (found := [tuple(part.shape) for part in memory]) != expected:
            raise ConfigError(f"state has the shapes {found}, not {expected}; give what the previous call returned")
        with torch.no_grad():
            action, memory = self._predict(obs, memory, starts, deterministic)
        actions = self._encode_actions(action.cpu().numpy())
        return (actions if vectorized else actions.squeeze(axis=0)), tuple(part.cpu().numpy() for part in memory)

    def _predict(  # type: ignore[override]
        self,
        observation: dict[str, Tensor],
        lstm_states: Memory | None,
        episode_starts: Tensor,
        deterministic: bool = False,
    ) -> tuple[Tensor, Memory]:
        """Actions as the head stores them, and the actor's state."""
        states = None if lstm_states is None else RNNStates(lstm_states, lstm_states)
        step = self._unroll(self._actor.params, observation, states, episode_starts, len(episode_starts))
        action = self._choose(self._actor.params, step, deterministic)
        return action, self._states(step).pi

    def forward(
        self, obs: Any, lstm_states: RNNStates, episode_starts: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, RNNStates]:
        """One step: actions, values in raw units of return [env, 1], log-probabilities, and the next state."""
        params = self._params()
        step = self._unroll(params, self._tensors(obs), lstm_states, episode_starts, len(episode_starts))
        action = self._choose(params, step, deterministic)
        log_prob = self.network.head.log_prob(params["head"], step.outputs[:, 0], action.unsqueeze(0))[0]
        return action, self._values(params, step).view(-1, 1), log_prob, self._states(step)

    def predict_values(self, obs: Any, lstm_states: Memory, episode_starts: Tensor) -> Tensor:
        """Values in raw units of return [env, 1], from the critic's (h, c)."""
        states, params = RNNStates(lstm_states, lstm_states), self._params()
        step = self._unroll(params, self._tensors(obs), states, episode_starts, len(episode_starts))
        return self._values(params, step).view(-1, 1)

    def get_distribution(
        self, obs: Any, lstm_states: Memory, episode_starts: Tensor
    ) -> tuple[Distribution, tuple[Tensor, ...]]:
        """What actions are drawn from, and the actor's next state.

        Args:
            obs: of whole sequences of equal length, one behind the other, [sequences · time, *shape].
            lstm_states: (h, c) of the actor before every sequence.
            episode_starts: where an episode begins.
        """
        params, states = self._params(), RNNStates(lstm_states, lstm_states)
        out = self._unroll(params, self._tensors(obs), states, episode_starts, lstm_states[0].shape[1])
        outputs = out.outputs[0].transpose(0, 1).flatten(0, 1)
        return distribution_of(self.network.head, self.spaces.action, params["head"], outputs), self._states(out).pi

    def reset_noise(self, n_envs: int = 1) -> None:
        """Does nothing: the noise of state-dependent exploration is new at every call of this policy."""

    def evaluate_actions(
        self, obs: Any, actions: Tensor, lstm_states: RNNStates, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values in raw units of return [n, 1], log-probabilities and entropies, with gradients.

        Args:
            obs: of whole sequences of equal length, one behind the other, [sequences · time, *shape].
            actions: taken there.
            lstm_states: before every sequence.
            episode_starts: where an episode begins.
        """
        params, sequences = self._params(), lstm_states.pi[0].shape[1]
        out = self._unroll(params, self._tensors(obs), lstm_states, episode_starts, sequences)
        taken = actions.reshape(sequences, -1, self.spaces.action.dims).transpose(0, 1).unsqueeze(0)
        head = self.network.head
        log_prob = head.log_prob(params["head"], out.outputs, taken if self.is_box else taken.long())
        entropy = head.entropy(params["head"], out.outputs)
        parts = [x[0].T.flatten() for x in (self._values(params, out), log_prob, entropy)]
        return parts[0].unsqueeze(1), parts[1], parts[2]

    @property
    def use_sde(self) -> bool:
        """Whether a continuous action's noise is a function of the state."""
        return self.network_config.use_sde

    @property
    def is_box(self) -> bool:
        """Whether actions are continuous."""
        return self.spaces.action.kind == "box"

    def _params(self) -> Params:
        """The parameters stacked, with gradients that arrive in `parameters()`."""
        named = dict(self.named_parameters())
        leaves = {path: named[place].unsqueeze(0) for path, place in self._places.items()}
        return tree.restore(self._actor.params, leaves)

    def _unroll(
        self, params: Params, obs: dict[str, Tensor], states: RNNStates | None, starts: Tensor, sequences: int
    ) -> Unrolled:
        """Runs sequences [sequences · time, ...], one behind the other."""
        batch = {key: x.unflatten(0, (sequences, -1)).transpose(0, 1).unsqueeze(0) for key, x in obs.items()}
        flat = self._actor.normalized({key: x.flatten(1, 2) for key, x in batch.items()})
        seen = {key: x.unflatten(1, batch[key].shape[1:3]) for key, x in flat.items()}
        start = starts.to(self.device).bool().view(sequences, -1).T.unsqueeze(0)
        if states is None:
            carry = torch.zeros(1, sequences, self.network.state_size, device=self.device)
        else:
            carry = pack(*(states if self.network.critic_memory else (states.pi, None))).to(self.device)
        return self.network.unroll(params, seen, carry, start)

    def _choose(self, params: Params, step: Unrolled, deterministic: bool) -> Tensor:
        head, outputs = self.network.head, step.outputs[:, 0]
        if deterministic:
            return head.mode(params["head"], outputs)[0]
        noise = action_noise(self.network, [self.generator], 1, outputs.shape[1], outputs.device)
        return head.sample(params["head"], outputs, noise[:, 0])[0]

    def _values(self, params: Params, out: Unrolled) -> Tensor:
        predictions = self.network.predict(params, out.critic)
        return return_scale.denormalize(self.member.returns, self.network.critic.value(predictions))

    def _states(self, step: Unrolled) -> RNNStates:
        return unpack(step.state, self.network)

    def _tensors(self, observation: Any) -> dict[str, Tensor]:
        return self._read(observation)[0]

    def _read(self, observation: Any) -> tuple[dict[str, Tensor], bool]:
        """Raw observations as the network takes them [env, *shape], and whether they had the leading axis.

        Raises:
            ConfigError: other keys or shapes.
        """
        given = observation if isinstance(observation, Mapping) else {"obs": observation}
        batch, vectorized = {}, {}
        for name, raw in given.items():
            array = raw.cpu().numpy() if isinstance(raw, Tensor) else np.asarray(raw)
            if name in self.fields:
                space = self.fields[name].raw_space
                vectorized[name] = array.ndim > len(space.shape or ())
                array = maybe_transpose(array if vectorized[name] else array[None], space)
            batch[name] = array
        arrays = delivered(self.fields, batch)
        if len(set(vectorized.values())) > 1:
            alone = ", ".join(repr(name) for name, several in vectorized.items() if not several)
            raise ConfigError(f"the observation's {alone} lacks the axis of environments that its other keys have")
        return {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}, all(
            vectorized.values()
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """What makes the same policy again; a subclass with arguments of its own adds them."""
        return dict(self._arguments)

    def save(self, path: str | Path | io.BufferedIOBase) -> None:
        """Writes the policy alone, with its statistics, for `load` of its class."""
        policy_file.write(path, self, self._get_constructor_parameters())

    @classmethod
    def load(cls, path: str | Path | io.BufferedIOBase, device: torch.device | str = "auto") -> "MlpLstmPolicy":
        """Reads a policy that `save` wrote; nothing in the file is executed.

        Args:
            path: the file.
            device: where it acts.

        Raises:
            StoreError: the file is missing, damaged or foreign.
            ConfigError: it needs an object that a file cannot hold.
        """
        return policy_file.load(cls, path, device)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Refuses what would cut the parameters off from the engine."""
        for parameter in (*self.parameters(), *self.buffers()):
            probe = fn(parameter.data[..., :0] if parameter.dim() else parameter.data)
            if (probe.device, probe.dtype) != (parameter.device, parameter.dtype):
                raise ConfigError(
                    "the policy cannot leave its device or precision, which it shares with the engine; "
                    "give the device to DistributionalPPO(..., device=...)"
                )
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


class CnnLstmPolicy(MlpLstmPolicy):
    """`MlpLstmPolicy` that sends an image through a NatureCNN."""

    extractor = NatureCNN


class MultiInputLstmPolicy(MlpLstmPolicy):
    """`MlpLstmPolicy` for dictionaries of images and vectors."""

    extractor = CombinedExtractor
