"""From observations to features: what stands before the memory."""

from popgraft.nn.encoders.base import Encoder, is_image
from popgraft.nn.encoders.make import make_encoder

__all__ = ["Encoder", "is_image", "make_encoder"]
