"""Action heads: the distribution of the policy, one final class per family of action spaces."""

from popgraft.nn.heads.base import ActionHead
from popgraft.nn.heads.make import make_head

__all__ = ["ActionHead", "make_head"]
