"""Memory that does not suffice, in the user's words."""

import contextlib
import errno
from collections.abc import Iterator

import torch

from popgraft.config import Config
from popgraft.errors import OutOfMemory


@contextlib.contextmanager
def in_words(config: Config) -> Iterator[None]:
    """Turns every way in which memory can run out into one error that says what to lower.

    Args:
        config: the run, whose values the error names.

    Raises:
        OutOfMemory: the machine, or the GPU, has too little memory for what was tried.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if isinstance(error, OutOfMemory) or not _is_shortage(error):
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        model, envs = config.model, config.env.num_envs
        fixes = [f"env.num_envs={max(1, envs // 2)}"] if envs > 1 else []
        if config.sequences % (2 * model.n_minibatches) == 0:
            fixes.insert(0, f"model.n_minibatches={2 * model.n_minibatches}")
        fixes += ["execute.shards=1"] if config.execute.shards != 1 else []
        advice = " or ".join(f"--set {fix}" for fix in fixes)
        raise OutOfMemory(
            f"memory does not suffice ({reason}); close other programs, or lower the run's needs: "
            + (f"go on with {advice}, or " if advice else "")
            + f"train anew with less than pbt.population_size={config.pbt.population_size}"
        ) from error


def _is_shortage(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    words = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(word in str(error).lower() for word in words)
