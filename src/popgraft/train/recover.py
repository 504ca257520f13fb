"""Goes back to a point: in a run that is resumed, and in one that has lost a shard and goes on."""

from typing import TYPE_CHECKING, Any

from popgraft.errors import ShardLost
from popgraft.messages import logger_of
from popgraft.store import snapshot
from popgraft.train.points import load_point, newest_point, points, remove_old_points
from popgraft.train.run import BEST, LAST

if TYPE_CHECKING:
    from popgraft.train.loop import Training

logger = logger_of(__name__)

LASTING = ("stopped", "resumed", "damaged", "changed", "lost")
"""Events of processes rather than of training: they stay in the record when training is repeated."""
ATTEMPTS = 3
"""Shards that may be lost in one generation before the run ends."""


def recover(training: "Training", error: ShardLost) -> None:
    """Makes lost shards anew, and goes on from the newest point: with the results of a run that has lost none.

    All go back, those of other shards too, so that scores are compared after the same number of steps.

    Raises:
        ShardLost: `error`, where a lost shard cannot be made anew, or is lost again and again.
    """
    while True:
        generation = training.state.generation
        training.losses[generation] += 1
        if not training.executor.recovers:
            raise error
        if training.losses[generation] == ATTEMPTS:
            raise ShardLost(
                f"{error}. It is the {ATTEMPTS}rd time in generation {generation + 1}, so the run ends"
            ) from error
        try:
            return _go_back(training, error)
        except ShardLost as another:  # while it was going back
            error = another


def _go_back(training: "Training", error: ShardLost) -> None:
    state, executor, generation = training.state, training.executor, training.state.generation
    logger.warning("%s; making it anew", error)
    training.background.wait()
    members = executor.recover()
    damages: list[str] = []
    point = newest_point(training.run.folder, damages.append)
    assert point is not None, "a run that recovers begins with a point"
    load_point(training, *point)
    for damage in damages:
        training.tell_event("damaged", damage, generation)
    text = f"{error}; members {members} are rebuilt, and all go on with generation {state.generation + 1}"
    training.tell_event("lost", text, generation)
    training.tensorboard.on_end()
    for text in rewind(training, point[1]):
        logger.warning("%s", training.place.said(text))
        training.observer.on_event("damaged", training.place.said(text))
    training.tensorboard.on_start(training.plan())
    executor.restart(state.generation)


def rewind(training: "Training", metadata: dict[str, Any] | None) -> list[str]:
    """Makes the folder what it was at the point; whenever this is cut short, doing it again completes it.

    Returns:
        What the database has lost of the time before.
    """
    state, folder = training.state, training.run.folder
    for generation, name in sorted(points(folder).items(), reverse=True):
        if generation > state.generation:
            snapshot.remove(folder, name)
    remove_old_points(folder, training.config.snapshots.keep)  # where it was killed before it had
    known = state.follower.known()
    lost = training.database.rewind(state.rounds.tolist(), metadata["events"] if metadata else 0, known, LASTING)
    training.tensorboard.cut(metadata["tensorboard"] if metadata else {})
    if state.record is not None and state.found is not None:
        snapshot.save(folder, BEST, state.record.state, state.found)
    else:
        snapshot.remove(folder, BEST)
    snapshot.remove(folder, LAST)
    return lost
