"""Settings of `StateAdversarialPPO`."""

from pydantic import StrictBool, model_validator

from popgraft.config.adversary import AdversaryConfig, PerturbationConfig, Schedule

__all__ = ["PerturbationConfig", "SAPPOConfig"]


class SAPPOConfig(AdversaryConfig):
    """State-adversarial PPO of a model that is trained elsewhere."""

    attack_policy: StrictBool = True
    """Whether the loss has the robust term of the policy."""
    attack_value: StrictBool = True
    """Whether the value loss is taken at attacked observations."""
    adaptive_epsilon: StrictBool = False
    """Whether `epsilon` follows `epsilon_schedule`."""

    @model_validator(mode="after")
    def _has_an_end(self) -> "SAPPOConfig":
        if self.schedule != "constant" and self.max_updates is None:
            raise ValueError(
                f"epsilon_schedule={self.epsilon_schedule!r} needs an end; set max_updates to the updates of the "
                "whole training"
            )
        return self

    @property
    def schedule(self) -> Schedule:
        """Course of the radius."""
        return self.epsilon_schedule if self.adaptive_epsilon else "constant"
