"""The recurrent state of an algorithm's environments, as users of sb3-contrib know it."""

import logging
from typing import Any

import numpy as np
import torch

from popgraft.sb3.states import RNNStates, pack, unpack
from popgraft.state import Seat

log = logging.getLogger(__name__)


class RecurrentMemory:
    """The part of an algorithm that keeps the recurrent state, which lies in the engine's seat.

    Attributes:
        seat: the engine's state of the environments.
        policy: knows the shape of the memories, and their initial state.
        n_envs: number of environments.
        device: where the state lives.
    """

    seat: Seat
    policy: Any
    n_envs: int
    device: torch.device
    _remembered: bool = True

    @property
    def _last_lstm_states(self) -> RNNStates | None:
        """Recurrent state before the next step, as views of it; None where it was taken away."""
        return unpack(self.seat.carry, self.policy.network) if self._remembered else None

    @_last_lstm_states.setter
    def _last_lstm_states(self, states: RNNStates | None) -> None:
        self._remembered = states is not None
        if states is None:
            self.seat.carry = torch.zeros_like(self.seat.carry)
        else:
            pi, vf = states
            own = self.policy.network.critic_memory is not None
            self.seat.carry = pack(tuple(pi), tuple(vf) if own else None).to(self.device)

    def reset_lstm_states_to_initial(self) -> None:
        """Gives every environment fresh copies of the policy's initial state."""
        if self._remembered:
            pi, vf = (
                tuple(part.expand(-1, self.n_envs, -1).clone() for part in memory)
                for memory in self.policy.recurrent_initial_state
            )
            self._last_lstm_states = RNNStates(pi, vf)
            log.info("LSTM states reset to initial (zero) states")

    def _reset_lstm_states_for_done_envs(self, dones: np.ndarray) -> None:
        """Resets the rows of finished environments, and only those."""
        finished = torch.as_tensor(np.asarray(dones, dtype=bool)).to(self.device)
        self.seat.carry = self.seat.carry.masked_fill(finished.view(1, -1, 1), 0)
