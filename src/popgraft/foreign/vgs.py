"""The variance gradient scaler for the parameters of any `torch.nn.Module`, beside any `torch.optim.Optimizer`."""

import contextlib
import functools
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft import tree
from popgraft.errors import ConfigError
from popgraft.optim.vgs import VGSRule, initial_vgs_state, measure_, normalized_variance, scaling_factor
from popgraft.state import VGSState

VERSION = 1
"""`vgs_version` of a state dict."""
PER_TENSOR = ("param_grad_mean_ema", "param_grad_sq_ema")

logger = logging.getLogger(__name__)


class VarianceGradientScaler:
    """Scales gradients, or the learning rate, down while gradients fluctuate; `popgraft.optim.vgs` with a pop of one.

        loss.backward()
        scaler.scale_gradients()              # measures the raw gradient, then scales it
        clip_grad_norm_(parameters, 0.5)
        with scaler.scaled_lr(optimizer):     # changes nothing unless apply_to="step"
            optimizer.step()
        scaler.step()

    One gradient is measured once per optimizer step, by whichever of `update_statistics`, `scale_gradients` and `step`
    is called first, and never after it has been scaled. `step` ends an optimizer step; where it is never called, the
    next `scale_gradients` begins a new one, and so does an `update_statistics` after another `update_statistics`.

    A parameter without a gradient counts as one whose gradient is zero. If no parameter has one there is nothing to
    measure. A gradient that is not finite is not measured either, with one warning per scaler.

    Args:
        parameters: what the optimizer trains; those that need no gradient are left out.
        enabled: whether to do anything at all.
        beta: decay rate of the running averages, per optimizer step.
        alpha: strength α of the scaling; may be changed at any time.
        eps: added to the denominator of the normalised variance.
        warmup_steps: optimizer steps to measure before the factor leaves 1.
        min_scaling_factor: smallest factor.
        cap: largest normalised variance that counts.
        statistic: `spatial_mean` or `per_element`, see `VGSRule`.
        apply_to: `gradient` scales gradients, `step` the learning rate inside `scaled_lr`.

    Raises:
        ConfigError: a setting outside its range, or nothing to train.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        enabled: bool = True,
        beta: int | float = 0.99,
        alpha: int | float = 0.1,
        eps: int | float = 1e-8,
        warmup_steps: int = 100,
        min_scaling_factor: int | float = 0.1,
        cap: int | float = 50,
        statistic: str = "spatial_mean",
        apply_to: str = "gradient",
    ) -> None:
        if not 0 <= alpha < math.inf:
            raise ConfigError(f"VGS: alpha={alpha!r} must be 0 or more and finite, for example alpha=0.1")
        if apply_to not in ("gradient", "step"):
            raise ConfigError(f"VGS: apply_to={apply_to!r} must be gradient or step, for example apply_to='step'")
        self.rule = VGSRule(beta, eps, warmup_steps, min_scaling_factor, cap, statistic)
        self.enabled, self.alpha, self.apply_to = enabled, alpha, apply_to
        self._parameters = _trainable(parameters)
        self._state = self._initial_state()
        self._measured = self._scaled = self._warned = False

    def link_parameters(self, parameters: Iterable[Tensor]) -> None:
        """Follows other parameters of the same shapes from now on, and keeps the statistics.

        Raises:
            ConfigError: the shapes differ.
        """
        linked = _trainable(parameters)
        old, new = ([tuple(p.shape) for p in group] for group in (self._parameters, linked))
        if old != new:
            raise ConfigError(
                f"VGS: statistics of parameters with shapes {old} cannot describe shapes {new}; "
                "make a new VarianceGradientScaler for them"
            )
        self._parameters = linked
        like = self._initial_state()
        self._state = tree.map(lambda leaf, template: leaf.to(template), self._state, like)
        self._measured = self._scaled = False

    def update_statistics(self) -> None:
        """Measures the raw gradient, unless it has been scaled already."""
        if self.enabled and not self._scaled:
            self._measure()

    def scale_gradients(self) -> float:
        """Measures the raw gradient if that has not been done, and scales it in place if `apply_to` says so.

        Returns:
            The factor for this optimizer step.
        """
        if not self.enabled:
            return 1.0
        if self._scaled or not self._measured:
            self._measure()
        self._scaled = True
        factor = self.get_scaling_factor()
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if gradients and factor != 1 and self.apply_to == "gradient":
            torch._foreach_mul_(gradients, factor)
        return factor

    @contextlib.contextmanager
    def scaled_lr(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """With `apply_to="step"`, multiplies the learning rate of every parameter group within the context."""
        rates = [group["lr"] for group in optimizer.param_groups]
        factor = self.get_scaling_factor() if self.apply_to == "step" else 1.0
        try:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            yield
        finally:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def step(self) -> None:
        """Ends an optimizer step, before its gradients are cleared: they are measured if nothing else has."""
        if self.enabled and not self._measured:
            self._measure()
        self._measured = self._scaled = False

    def get_normalized_variance(self) -> float:
        """Normalised gradient variance r, before its cap; 0 before the first measurement."""
        return self._variance().item()

    def get_scaling_factor(self) -> float:
        """The factor as of the gradients measured so far; 1 during warm-up, and if not enabled."""
        if not self.enabled:
            return 1.0
        variance = self._variance()
        return scaling_factor(self._state, variance, variance.new_tensor([self.alpha]), self.rule).item()

    def state_dict(self) -> dict[str, Any]:
        """Statistics as numbers and tensors of their own, which `torch.load(..., weights_only=True)` reads."""
        return vgs_state_dict(self._state)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over statistics from `state_dict`: all of them, or none.

        Raises:
            ConfigError: keys, version, shapes or values that do not fit.
        """
        self._state = read_vgs_state(state_dict, self._initial_state())
        self._measured = self._scaled = False

    def _measure(self) -> None:
        gradients = [p.grad for p in self._parameters]
        if all(gradient is None for gradient in gradients):
            return
        like = self._state.step_count
        rows = [
            p.new_zeros(p.numel()) if g is None else g.reshape(-1)
            for p, g in zip(self._parameters, gradients, strict=True)
        ]
        flat = torch.cat([row.detach().to(like) for row in rows]).unsqueeze(0)
        active = torch.ones(1, dtype=torch.bool, device=like.device)
        finite = measure_(self._state, flat, self._sizes, active, self.rule)
        self._measured, self._scaled = True, False
        if not (self._warned or finite.item()):
            self._warned = True
            logger.warning("VGS: a gradient is not finite and was not measured; further ones are ignored silently")

    @property
    def _sizes(self) -> list[int]:
        return [p.numel() for p in self._parameters]

    def _initial_state(self) -> VGSState:
        precision = functools.reduce(torch.promote_types, [p.dtype for p in self._parameters], torch.float32)
        example = torch.zeros(1, sum(self._sizes), dtype=precision, device=self._parameters[0].device)
        return initial_vgs_state(example, self._sizes, self.rule)

    def _variance(self) -> Float[Tensor, "1"]:
        return normalized_variance(self._state, self._sizes, self.rule)


def vgs_state_dict(state: VGSState) -> dict[str, Any]:
    """Statistics of a population of one as numbers and tensors of their own."""
    found = {name: leaf[0].clone() if name in PER_TENSOR else leaf.item() for name, leaf in tree.items(state)}
    return {**found, "step_count": int(found["step_count"]), "vgs_version": VERSION}


def read_vgs_state(state_dict: Mapping[str, Any], like: VGSState) -> VGSState:
    """What `vgs_state_dict` made, as statistics with the shapes of `like`.

    Raises:
        ConfigError: keys, version, shapes or values that do not fit.
    """
    expected = dict(tree.items(like))
    if set(state_dict) != {*expected, "vgs_version"}:
        raise ConfigError(
            f"VGS: a state has the keys {[*expected, 'vgs_version']}, not {sorted(map(str, state_dict))}; "
            "pass what state_dict() returned"
        )
    if state_dict["vgs_version"] != VERSION:
        raise ConfigError(
            f"VGS: vgs_version={state_dict['vgs_version']!r} is not {VERSION}, the one this release reads; "
            "load it with the release that wrote it, or start with fresh statistics"
        )
    loaded = {name: _row(name, state_dict[name], leaf) for name, leaf in expected.items()}
    return tree.restore(like, loaded)


def _trainable(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The parameters that need a gradient, each once."""
    trainable = list({id(p): p for p in parameters if p.requires_grad}.values())
    if not trainable:
        raise ConfigError("VGS: no parameter needs a gradient; pass model.parameters() of a model that is trained")
    return trainable


def _row(name: str, value: Any, like: Tensor) -> Tensor:
    """An entry of a state dict as the only row of a statistic, checked."""
    try:
        row = torch.as_tensor(value).to(like, copy=True).unsqueeze(0)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"VGS: {name}={value!r} is not a number or tensor; pass what state_dict() returned"
        ) from error
    if row.shape != like.shape:
        raise ConfigError(
            f"VGS: {name} has shape {tuple(row.shape[1:])}, and these parameters need {tuple(like.shape[1:])}; "
            "the state belongs to another model or statistic"
        )
    if not row.isfinite().all() or (name not in ("param_grad_mean_ema", "grad_mean_ema") and row.min() < 0):
        raise ConfigError(f"VGS: {name} holds numbers that no gradients lead to; the state is damaged, start afresh")
    return row
