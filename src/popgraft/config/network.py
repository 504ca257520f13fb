"""Settings of the policy and value networks."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, model_validator

from popgraft.config.fields import Integer, Kwargs, Number, Positive, Section
from popgraft.config.kinds import Kinds, kinds_of

ENCODERS = Kinds(
    "model.network.encoder",
    ("torch.nn:Module", "popgraft.nn:Encoder"),
    {
        "auto": "popgraft.nn.encoders.joined:MixedEncoder",
        "mlp": "popgraft.nn.encoders.joined:FlatEncoder",
        "cnn": "popgraft.nn.encoders.joined:ImageEncoder",
    },
)
MEMORIES = Kinds(
    "model.network.recurrent",
    ("popgraft.nn:Memory",),
    {
        "lstm": "popgraft.nn.lstm:LSTM",
        "gru": "popgraft.nn.gru:GRU",
        "mingru": "popgraft.nn.mingru:MinGRU",
        "lru": "popgraft.nn.lru:LRU",
        "ffm": "popgraft.nn.ffm:FFM",
        "none": None,
    },
)
ACTION_HEADS = Kinds("model.network.action_head", ("popgraft.nn:ActionHead",), {"auto": None})
CRITICS = Kinds(
    "model.network.critic",
    ("popgraft.nn:Critic",),
    {
        "quantile": "popgraft.nn.critics.quantile:QuantileCritic",
        "categorical": "popgraft.nn.critics.categorical:CategoricalCritic",
        "scalar": "popgraft.nn.critics.scalar:ScalarCritic",
    },
)


class NetworkConfig(Section):
    """The policy and value networks of every member."""

    encoder: Annotated[str, ENCODERS] = "auto"
    """From observations to features; `auto` takes cnn for images. An own one is an nn.Module, made as
    Class(observation_space, **encoder_kwargs), or a popgraft.nn.Encoder, made as Class(spaces, network,
    **encoder_kwargs)."""
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
    recurrent: Annotated[str, MEMORIES] = "lstm"
    """Kind of memory; `none` gives a feed-forward agent. An own one is a popgraft.nn.Memory, made as Class(n_in,
    hidden_size, recurrent_layers, **recurrent_kwargs)."""
    recurrent_kwargs: Kwargs = {}
    """Keyword arguments of an own memory."""
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
    action_head: Annotated[str, ACTION_HEADS] = "auto"
    """Distribution of actions; `auto` follows from the action space: softmax, coins, or a diagonal Gaussian. An own one
    is a popgraft.nn.ActionHead, made as Class(n_in, action, network, **action_head_kwargs)."""
    action_head_kwargs: Kwargs = {}
    """Keyword arguments of an own action head."""
    log_std_init: Number = 0.0
    """Logarithm of a continuous action's standard deviation at birth."""
    use_sde: StrictBool = False
    """Whether a continuous action's noise is a function of the state (generalised state-dependent exploration)."""
    sde_sample_freq: Positive | None = None
    """Steps for which that function stays the same; null: a whole rollout."""
    critic: Annotated[str, CRITICS] = "quantile"
    """What the critic predicts: quantiles of the return, a law over a fixed support, or the mean alone. An own one is a
    popgraft.nn.Critic, made as Class(network, **critic_kwargs)."""
    critic_kwargs: Kwargs = {}
    """Keyword arguments of an own critic."""
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
    """Factors of the matrix products in gradients and in compiled memories. `bfloat16` rounds them to eight significant
    bits and adds up in float32, which is faster on some processors and slower on others; `auto` takes what a
    measurement on this machine's CPU finds to be faster, and keeps to it."""

    @property
    def remembers(self) -> bool:
        """Whether there is a memory."""
        return MEMORIES.table.get(self.recurrent, self.recurrent) is not None

    @model_validator(mode="after")
    def _one_encoder_for_one_memory(self) -> "NetworkConfig":
        if not self.share_encoder and self.remembers and self.critic_recurrent in ("shared", "detached"):
            raise ValueError(
                f"a critic with an encoder of its own cannot read the actor's memory, but critic_recurrent is "
                f"{self.critic_recurrent!r}; set share_encoder: true or critic_recurrent: separate"
            )
        return self

    @model_validator(mode="after")
    def _dropout_has_a_place(self) -> "NetworkConfig":
        layers = self.recurrent_layers if self.remembers else 0
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
        for name, kinds in kinds_of(NetworkConfig).items():
            if getattr(self, f"{name}_kwargs") and getattr(self, name) in kinds.table:
                raise ValueError(
                    f"{name}_kwargs are for an own {name}, and {name} is {getattr(self, name)!r}; "
                    f"remove them or set {name}: module:Class"
                )
        return self

    @model_validator(mode="after")
    def _somebody_explores(self) -> "NetworkConfig":
        if self.use_sde and self.action_head != "auto":
            raise ValueError(
                f"use_sde chooses an action head, and action_head is {self.action_head!r}; set use_sde: false"
            )
        return self
