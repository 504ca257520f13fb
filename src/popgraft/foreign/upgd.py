"""UPGD, AdaptiveUPGD and UPGDW as torch.optim.Optimizer: the population's kernels with a population of one."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from popgraft.foreign.upgd_checks import NOISE_STATE, SKIPPED, check_settings, check_state, check_state_dict
from popgraft.optim import upgd_rules
from popgraft.optim.noise import draw_noise_
from popgraft.optim.upgd import UPGDRule, begin, descend_, initial_upgd_state, normaliser, track_
from popgraft.optim.upgd_rules import Perturbed

Group = dict[str, Any]
OUTSIDE = ("self", "params", "seed", "__class__")
"""Names in a constructor that are no settings."""

_log = logging.getLogger(__name__)


class _UPGDBase(Optimizer):
    """Groups, state and skipping; a subclass says which rule of the engine it is.

    Args:
        given: arguments of a subclass by name: parameters or groups of them, the seed of the noise (None draws one from
            torch's global generator, once), and settings of a group that sets nothing itself.
    """

    kind: ClassVar[type[Perturbed]]

    def __init__(self, given: Group) -> None:
        params, seed = given["params"], given["seed"]
        super().__init__(params, {name: value for name, value in given.items() if name not in OUTSIDE})
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        self.generator = torch.Generator().manual_seed(seed)
        self.skipped_steps = 0

    def rule(self, group: Group) -> UPGDRule:
        """The constants that a group's settings amount to."""
        betas = (group["beta1"], group["beta2"]) if "beta1" in group else tuple(group.get("betas", ()))
        settings = {**group, "betas": betas, "sizes": ()}
        return self.kind(**{field.name: settings[field.name] for field in dataclasses.fields(self.kind)}).constants

    def add_param_group(self, param_group: Group) -> None:
        """Adds parameters with settings of their own.

        Raises:
            ConfigError: a setting outside its range.
        """
        check_settings({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Moves every parameter that has a gradient; if a gradient is not finite, nothing is moved or remembered.

        Args:
            closure: recomputes the loss and its gradients, and returns the loss.

        Raises:
            ConfigError: a group that has begun without an average of gradient norms now needs it; nothing is moved.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        owned = [
            (p, group, self.rule(group))
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None and p.numel()
        ]
        if not owned:
            return loss
        for p, _, rule in owned:
            check_state(self.state.get(p), rule)
        finite = [p.grad.isfinite().all().to(owned[0][0].device) for p, _, _ in owned]
        if torch.stack(finite).all():
            self._move([_Part(p, self.state[p], group, rule) for p, group, rule in owned])
        else:
            self.skipped_steps += 1
            if self.skipped_steps == 1:
                _log.warning(
                    "%s: a gradient is not finite; such steps are skipped and counted in skipped_steps",
                    type(self).__name__,
                )
        return loss

    def _move(self, parts: "list[_Part]") -> None:
        extremes = torch.cat([part.track().to(parts[0].flat.device) for part in parts])
        eta = normaliser(extremes[:, :1].amin(), extremes[:, 1:].amax())
        for part in parts:
            part.descend(eta, self.generator)

    def state_dict(self) -> dict[str, Any]:
        """State of the parameters, settings of the groups, the noise generator and the number of skipped steps."""
        own = {NOISE_STATE: self.generator.get_state(), SKIPPED: self.skipped_steps}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, so that training continues bit for bit.

        Raises:
            ConfigError: a state dictionary of another kind of optimizer; this one is as it was.
        """
        check_state_dict(self, state_dict, self.rule)
        super().load_state_dict({key: value for key, value in state_dict.items() if key not in (NOISE_STATE, SKIPPED)})
        self.generator.set_state(state_dict[NOISE_STATE].cpu())
        self.skipped_steps = state_dict[SKIPPED]

    def __getstate__(self) -> dict[str, Any]:
        own = {NOISE_STATE: self.generator.get_state(), SKIPPED: self.skipped_steps}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        if NOISE_STATE in state:  # a copy or a pickle; torch also calls this while it loads a state dictionary
            self.generator = torch.Generator()
            self.generator.set_state(state.pop(NOISE_STATE))
        super().__setstate__(state)


class _Part:
    """One parameter during one step, as a population of one."""

    def __init__(self, param: Tensor, state: dict[str, Any], group: Group, rule: UPGDRule) -> None:
        self.param, self.group, self.rule = param, group, rule
        self.flat = param.detach().reshape(1, -1)
        self.grad = param.grad.detach().reshape(1, -1)  # type: ignore[union-attr]  # only parameters with a gradient
        self.sizes = [self.flat.shape[1]]
        if not state:
            averages = initial_upgd_state(self.flat, self.sizes, rule).averages
            state["step"] = 0
            for name, average in averages.items():
                state[name] = average if name == "grad_norm" else average.view_as(param)
        state["step"] += 1
        self.correction: float = 1 - rule.beta_utility ** state["step"]
        self.averages = {name: value.view(1, -1) for name, value in state.items() if name != "step"}
        lr, sigma, decay = (self._scalar(group[name]) for name in ("lr", "sigma", "weight_decay"))
        step = self._scalar(state["step"])
        self.columns = begin(step, lr, sigma, decay, self._scalar(1), rule)

    def _scalar(self, value: int | float | Tensor) -> Tensor:
        return torch.tensor([float(value)], dtype=self.flat.dtype, device=self.flat.device)

    def track(self) -> Tensor:
        """Updates the averages; returns the least and the largest corrected utility, [1, 2]."""
        extremes = track_(self.flat, self.grad, self.averages, self.columns, self.rule)
        return torch.cat(extremes, dim=1) / self.correction

    def descend(self, eta: Tensor, generator: torch.Generator) -> None:
        """Moves the parameter; η is that of all parameters together."""
        noise = torch.empty_like(self.flat)
        draw_noise_(noise, [generator])
        scale = (eta * self.correction).to(noise).clamp(min=torch.finfo(noise.dtype).tiny).view(1, 1)
        descend_(self.flat, self.grad, self.averages, noise, self.columns, scale, self.sizes, self.rule)
        if not self.param.is_contiguous():  # then `flat` is a copy
            self.param.copy_(self.flat.view_as(self.param))


class UPGD(_UPGDBase):
    """Utility-based perturbed gradient descent: θ ← (1 − αλ)θ − κα(g + ξ)∘(1 − s), as `upgd_`.

    Elsayed & Mahmood 2024 (arXiv:2404.00781), algorithm 1.

    Args:
        params: parameters or groups of them; utilities compete over all groups.
        lr: α.
        weight_decay: λ, decoupled.
        beta_utility: decay rate of the utility's average.
        sigma: σ, the noise's standard deviation; with `adaptive_noise` its ratio to the gradient.
        adaptive_noise: whether noise follows the gradient of its tensor.
        noise_beta: decay rate of the average of gradient norms, unless `instant_noise_scale`.
        min_noise_std: least standard deviation of adaptive noise.
        instant_noise_scale: whether adaptive noise follows the latest gradient instead of the average.
        noise_scaling: "rms": noise as a vector is σ times as long as the gradient; "l2": every element of it is.
        utility_gain: κ; 2 makes the step at zero utility a plain one.
        seed: of the noise; None draws one from torch's global generator.

    Raises:
        ConfigError: a setting outside its range.
    """

    kind = upgd_rules.UPGDUpdate

    def __init__(
        self,
        params: ParamsT,
        lr: int | float | Tensor = 1e-5,
        weight_decay: int | float = 0.001,
        beta_utility: int | float = 0.999,
        sigma: int | float = 0.001,
        adaptive_noise: bool = False,
        noise_beta: int | float = 0.999,
        min_noise_std: int | float = 1e-6,
        instant_noise_scale: bool = True,
        noise_scaling: str = "rms",
        utility_gain: int | float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(locals())


class AdaptiveUPGD(_UPGDBase):
    """UPGD along Adam's direction: θ ← (1 − αλ)θ − κα(m̂/(√v̂ + ε) + ξ)∘(1 − s), as `upgd_`.

    Args:
        params: as `UPGD`.
        lr: as `UPGD`.
        weight_decay: as `UPGD`.
        beta_utility: as `UPGD`.
        sigma: as `UPGD`; noise is added after Adam's normalisation.
        beta1: decay rate of the first moment.
        beta2: decay rate of the second moment.
        eps: ε.
        adaptive_noise: as `UPGD`; the noise is divided by rms(√v̂) + ε of its tensor.
        noise_beta: as `UPGD`.
        min_noise_std: as `UPGD`, in units of the normalised direction.
        instant_noise_scale: as `UPGD`.
        noise_scaling: as `UPGD`.
        utility_gain: as `UPGD`.
        seed: as `UPGD`.

    Raises:
        ConfigError: a setting outside its range.
    """

    kind = upgd_rules.AdaptiveUPGDUpdate

    def __init__(
        self,
        params: ParamsT,
        lr: int | float | Tensor = 1e-5,
        weight_decay: int | float = 0.001,
        beta_utility: int | float = 0.999,
        sigma: int | float = 0.001,
        beta1: int | float = 0.9,
        beta2: int | float = 0.999,
        eps: int | float = 1e-8,
        adaptive_noise: bool = False,
        noise_beta: int | float = 0.999,
        min_noise_std: int | float = 1e-6,
        instant_noise_scale: bool = True,
        noise_scaling: str = "rms",
        utility_gain: int | float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(locals())


class UPGDW(_UPGDBase):
    """`AdaptiveUPGD` under the names and defaults of torch.optim.AdamW; the utility decays with `betas[1]`.

    A utility is judged over the same horizon as the second moment that scales its parameter's step.

    Args:
        params: as `AdaptiveUPGD`.
        lr: as `AdaptiveUPGD`.
        betas: decay rates of the first and second moment.
        eps: as `AdaptiveUPGD`.
        weight_decay: as `AdaptiveUPGD`.
        sigma: as `AdaptiveUPGD`.
        adaptive_noise: as `AdaptiveUPGD`.
        noise_beta: as `AdaptiveUPGD`.
        min_noise_std: as `AdaptiveUPGD`.
        instant_noise_scale: as `AdaptiveUPGD`.
        noise_scaling: as `AdaptiveUPGD`.
        utility_gain: as `AdaptiveUPGD`.
        seed: as `AdaptiveUPGD`.

    Raises:
        ConfigError: a setting outside its range.
    """

    kind = upgd_rules.UPGDWUpdate

    def __init__(
        self,
        params: ParamsT,
        lr: int | float | Tensor = 1e-4,
        betas: tuple[int | float, int | float] = (0.9, 0.999),
        eps: int | float = 1e-8,
        weight_decay: int | float = 0.01,
        sigma: int | float = 0.001,
        adaptive_noise: bool = False,
        noise_beta: int | float = 0.999,
        min_noise_std: int | float = 1e-6,
        instant_noise_scale: bool = True,
        noise_scaling: str = "rms",
        utility_gain: int | float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(locals())
