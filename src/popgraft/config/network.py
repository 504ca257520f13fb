"""Settings of the policy and value networks."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, field_validator, model_validator

from popgraft.config.fields import Integer, Kwargs, Number, Positive, Section, reference

BUILT_IN_ENCODERS = ("auto", "mlp", "cnn")


class NetworkConfig(Section):
    """The policy and value networks of every member."""

    encoder: str = "auto"
    """`mlp`, `cnn`, or `module:Class` of an nn.Module called as Class(observation_space, **encoder_kwargs);
    `auto` takes cnn for images."""
    encoder_kwargs: Kwargs = {}
    """Keyword arguments of an own encoder."""
    encoder_layers: list[Positive] = [64]
    """Widths of the encoder's dense layers, before the recurrent ones."""
    cnn_features: Positive = 512
    """Features that the built-in encoder makes of an image."""
    normalize_images: StrictBool = True
    """Whether 8-bit images are divided by 255. If not, they are taken as they are, and so are all other observations of
    three axes (channels, height, width), as images too."""
    share_encoder: StrictBool = True
    """Whether actor and critic read one encoder; else the critic has its own."""
    activation: Literal["tanh", "relu", "leaky_relu", "elu", "silu", "gelu"] = "tanh"
    """Nonlinearity of dense layers."""
    layer_norm: StrictBool = False
    """Whether dense layers normalise before their nonlinearity."""
    recurrent: Literal["lstm", "gru", "none"] = "lstm"
    """Kind of memory; `none` gives a feed-forward agent."""
    hidden_size: Positive = 64
    """Width of a recurrent layer."""
    recurrent_layers: Positive = 1
    """Number of recurrent layers."""
    recurrent_dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Share of what a recurrent layer hands to the next one that an update leaves out, drawn anew for every minibatch.
    Who acts leaves out nothing, so that the policy in an update is not quite the one that acted."""
    critic_recurrent: Literal["separate", "shared", "detached", "none"] = "separate"
    """Whether the critic has its own memory, reads the actor's and shapes it, only reads it, or has none."""
    head_layers: list[Positive] = []
    """Widths of dense layers between memory and output, in actor and critic alike."""
    critic_head_layers: list[Positive] | None = None
    """The same for the critic where it differs; null: `head_layers`."""
    log_std_init: Number = 0.0
    """Logarithm of a continuous action's standard deviation at birth."""
    use_sde: StrictBool = False
    """Whether a continuous action's noise is a function of the state (generalised state-dependent exploration)."""
    sde_sample_freq: Positive | None = None
    """Steps for which that function stays the same; null: a whole rollout."""
    critic: Literal["quantile", "categorical", "scalar"] = "quantile"
    """What the critic predicts: quantiles of the return, a law over a fixed support, or the mean alone."""
    n_quantiles: Positive = 21
    """Quantiles that a quantile critic predicts."""
    n_bins: Annotated[Integer, Field(ge=2)] = 51
    """Atoms of a categorical critic's support."""
    support: tuple[Number, Number] = (-10.0, 10.0)
    """Lowest and highest return of a categorical critic, in normalised units where returns are normalised."""
    twin_critics: StrictBool = False
    """Whether there are two critics on the same features, against overestimation."""
    twin_reduce: Literal["min", "mean"] = "min"
    """How two critics become one value, everywhere."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Factors of the matrix products in gradients and in compiled LSTMs. `bfloat16` rounds them to eight significant
    bits and adds up in float32, which is faster on some processors and slower on others; `auto` takes what a
    measurement on this machine's CPU finds to be faster, and keeps to it."""

    @field_validator("encoder", mode="after")
    @classmethod
    def _known_encoder(cls, encoder: str) -> str:
        if encoder not in BUILT_IN_ENCODERS and ":" not in encoder:
            raise ValueError(f"must be one of {', '.join(BUILT_IN_ENCODERS)}, or module:Class")
        return encoder if encoder in BUILT_IN_ENCODERS else reference(encoder)

    @property
    def atoms(self) -> int:
        """Outputs of one critic."""
        return {"quantile": self.n_quantiles, "categorical": self.n_bins, "scalar": 1}[self.critic]

    @model_validator(mode="after")
    def _one_encoder_for_one_memory(self) -> "NetworkConfig":
        if not self.share_encoder and self.recurrent != "none" and self.critic_recurrent in ("shared", "detached"):
            raise ValueError(
                f"a critic with an encoder of its own cannot read the actor's memory, but critic_recurrent is "
                f"{self.critic_recurrent!r}; set share_encoder: true or critic_recurrent: separate"
            )
        return self

    @model_validator(mode="after")
    def _dropout_has_a_place(self) -> "NetworkConfig":
        layers = 0 if self.recurrent == "none" else self.recurrent_layers
        if self.recurrent_dropout and layers < 2:
            raise ValueError(
                f"recurrent_dropout={self.recurrent_dropout} acts between recurrent layers, of which there are "
                f"{layers}; set recurrent_layers: 2 or recurrent_dropout: 0"
            )
        return self

    @model_validator(mode="after")
    def _support_is_an_interval(self) -> "NetworkConfig":
        low, high = self.support
        if not low < high:
            raise ValueError(f"support={[low, high]} must rise from the lowest to the highest return; swap its ends")
        return self

    @model_validator(mode="after")
    def _somebody_reads_the_kwargs(self) -> "NetworkConfig":
        if self.encoder_kwargs and self.encoder in BUILT_IN_ENCODERS:
            raise ValueError(
                f"encoder_kwargs are for an own encoder, and encoder is {self.encoder!r}; "
                "remove them or set encoder: module:Class"
            )
        return self
