"""The engine's update rule with a population of one, seen as a `torch.optim.Optimizer`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from popgraft.errors import ConfigError
from popgraft.optim import UpdateRule
from popgraft.state import Member

TUNED = {"lr": "learning_rate", "weight_decay": "weight_decay", "sigma": "sigma"}
"""Entries of the parameter group that an update reads, and the hyperparameter that each of them is."""


class EngineOptimizer(torch.optim.Optimizer):
    """Shows the optimizer's part of a member: `state` holds views of it, the group holds its hyperparameters.

    What is written to either counts from the next update on: the engine calls `pull` before an update and `push` after
    it. A `state` that was emptied is an optimizer that has taken no step.

    Args:
        parameters: the policy's parameters, views of the member's flat ones in the order of their layout.
        member: a population of one.
        rule: the update rule.
        generators: source of the rule's noise in `step`.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        member: Member,
        rule: UpdateRule,
        generators: list[torch.Generator],
    ) -> None:
        shown = {"betas": rule.corrections, "eps": getattr(rule, "eps", None)}
        tuned = {key: float(member.hyperparams[name]) for key, name in TUNED.items() if key in ("lr", *rule.tuned)}
        super().__init__(parameters, {**{key: value for key, value in shown.items() if value is not None}, **tuned})
        self._member, self._rule, self._generators = member, rule, generators
        sizes = [parameter.numel() for parameter in parameters]
        self._views: list[dict[str, Tensor]] = [{} for _ in parameters]
        for name, average in member.optimizer.averages.items():
            per_element = average.shape[1:] == (sum(sizes),)
            per_tensor = average.shape[1:] == (len(sizes),)
            shares = average[0].split(sizes) if per_element else average[0].unbind() if per_tensor else average
            for views, parameter, share in zip(self._views, parameters, shares, strict=per_element or per_tensor):
                views[name] = share.view_as(parameter) if per_element else share

    @property
    def _parameters(self) -> list[Any]:
        return list(self.param_groups[0]["params"])

    def pull(self) -> None:
        """Takes over into the member what `state` and the group hold."""
        own, step = self._member.optimizer, 0.0
        for parameter, views in zip(self._parameters, self._views, strict=True):
            held = self.state.get(parameter, {})
            for name, view in views.items():
                view.copy_(held[name]) if name in held else view.zero_()
            step = max(step, float(held.get("step", 0.0)))
        own.step.fill_(step)
        group = self.param_groups[0]
        for key, name in TUNED.items():
            if key in group:
                self._member.hyperparams[name].fill_(float(group[key]))

    def push(self) -> None:
        """Shows the member's state; nothing before the first step."""
        self.state.clear()
        own = self._member.optimizer
        if own.step > 0 or any(average.any() for average in own.averages.values()):
            for parameter, views in zip(self._parameters, self._views, strict=True):
                self.state[parameter] = {"step": own.step[0], **views}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step from the parameters' own gradients, for training outside `learn`.

        Args:
            closure: computes the loss and the gradients anew.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.pull()
        member = self._member
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        grad = torch.cat([grad.flatten() for grad in grads]).unsqueeze(0)
        active = torch.ones(1, dtype=torch.bool, device=grad.device)
        rate = member.hyperparams["learning_rate"]
        self._rule.step_(member.params, grad, member.optimizer, rate, active, member.hyperparams, self._generators)
        self.push()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a state.

        Raises:
            ConfigError: it is of another optimizer or of other parameters; nothing is loaded then.
        """
        entries = state_dict.get("state", {})
        for i, views in enumerate(self._views if entries else []):
            held = entries.get(i, {})
            for name, view in views.items():
                shape = tuple(held[name].shape) if isinstance(held.get(name), Tensor) else None
                if shape != tuple(view.shape):
                    raise ConfigError(
                        f"the optimizer's state has {name} of shape {shape} for parameter {i}, which needs "
                        f"{tuple(view.shape)}; load the state of the same optimizer of the same network"
                    )
        super().load_state_dict(state_dict)
        self.pull()
        self.push()
