"""A run in plain sentences."""

import math
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import numpy as np

from popgraft.dashboard.data import RETURN, RunData, quartiles
from popgraft.messages import one_line
from popgraft.train import counted, readable

FALL = 0.25
"""Share of what was gained since the first generation that a member has to lose for it to be told."""
STATES = {"running": "is still running", "finished": "is finished", "stopped": "was stopped and can be resumed"}


def summary(data: RunData, other: RunData | None = None) -> list[str]:
    """What was trained on what, for how long, how well, and what the population's evolution changed.

    Args:
        data: the run.
        other: another run that it is compared with.
    """
    parts = _work(data), [*_success(data), *_training(data), *_falls(data)], _evolution(data), _comparison(data, other)
    return [one_line(" ".join(part)) for part in parts if part]


def _work(data: RunData) -> list[str]:
    config = data.config
    task = config.env.id or config.env.factory or "environments of a factory"
    least = f"{data.latest.min() + 1} to " if data.apart else ""
    whole = "" if data.state == "finished" else f" of {planned(data):,}"
    spent = "" if math.isnan(data.seconds) else f", which took {timedelta(seconds=round(data.seconds))}"
    return [
        f"{counted(data.pop, 'agent')} trained on {task} for {data.total:,}{whole} environment steps, in "
        f"{least}{counted(len(data.steps), 'generation')}{spent}.",
        f"The run {STATES[data.state]}.",
    ]


def _success(data: RunData) -> list[str]:
    found = data.found
    if not found:
        return ["No generation has been scored yet."]
    sentences = []
    score = readable(found["score"], found["stderr"])
    claim = readable(found.get("claimed_score", found["score"]), found.get("claimed_stderr", found["stderr"]))
    origin = f"member {found['member']} of generation {found['generation'] + 1}, after {found['steps']:,} steps"
    compared = ""
    if "claimed_score" in found:
        compared = f"; {score} over the {counted(found['episodes'], 'episode')} in which it was compared with others"
    if "final_score" in found:
        final = readable(found["final_score"], found["final_stderr"])
        sentences.append(
            f"The best agent scores {final} over {counted(found['final_episodes'], 'fresh episode')}. It was {origin}, "
            f"and scored {claim} then{compared}."
        )
        if "final_attacked_score" in found:
            attacked = readable(found["final_attacked_score"], found["final_attacked_stderr"])
            sentences.append(f"Under attack it scores {attacked}.")
    else:
        sentences.append(f"The best agent so far scored {claim}: {origin}{compared}.")
    last = data.last_scores[data.members]
    if len(last) > 1:
        low, median, high = (readable(float(value)) for value in quartiles(last[None])[:, 0])
        sentences.append(
            f"In {'their' if data.apart and not data.cuts else 'the'} last generation the median member scores "
            f"{median}, the middle half {low} to {high}."
        )
    return sentences


def _training(data: RunData) -> Iterator[str]:
    """What the same members returned in training, where scores are of other episodes."""
    returns = data.metrics.get(RETURN)
    if returns is None or data.config.pbt.fitness == "training":
        return
    members = data.members
    last = quartiles(returns[data.latest[members], members][None])[1, 0]
    if math.isfinite(last):
        where = ", where actions are sampled" if data.config.evaluation.deterministic else ""
        whose = "the median member's" if len(members) > 1 else f"member {members[0]}'s" if data.pop > 1 else "its"
        yield f"In training{where}, {whose} episodes return {readable(float(last))} in the last generation."


def _falls(data: RunData) -> Iterator[str]:
    """Members that end far below what was reached at their place."""
    if not len(data.scores):
        return
    sign = 1 if data.maximizes else -1
    first = quartiles(sign * data.scores[:1])[1, 0]
    worth, falls = sign * data.scores, []
    for member, last in zip(data.members.tolist(), data.latest[data.members].tolist(), strict=True):
        own = worth[: last + 1, member]
        if not math.isfinite(own[-1]):
            continue
        peak = int(np.nanargmax(own))
        gained, lost = own[peak] - first, own[peak] - own[-1]
        error = math.hypot(data.stderr[peak, member], data.stderr[last, member])
        if gained > 0 and lost > max(FALL * gained, 2 * error):
            falls.append((float(lost), member, float(sign * own[peak]), float(sign * own[-1])))
    if falls:
        _, member, before, after = max(falls)
        fall = f"from {readable(before)} to {readable(after)}"
        if len(data.members) == 1:
            yield f"{'The agent' if data.pop == 1 else f'Member {member}'} has fallen late, {fall}."
        else:
            share = f"{len(falls)} of {len(data.members)} members have fallen late"
            yield f"{share}; the farthest is member {member}, {fall}."


def _evolution(data: RunData) -> list[str]:
    if data.pop == 1:
        return []
    nothing = [] if data.config.pbt.varied else ["Nothing was tuned, because pbt.hyperparams names nothing."]
    if not data.config.pbt.copies and not data.grafts:
        return nothing or ["Nobody was replaced: this is random search over the hyperparameters."]
    reasons = Counter(graft.reason for graft in data.grafts)
    rescues = reasons.pop("rescue", 0)
    copies = sum(reasons.values())
    sentences = [f"Members were overwritten with better ones {counted(copies, 'time')}."]
    if rescues:
        sentences.append(f"{counted(rescues, 'time')} a member without a finite score was rescued.")
    for row, members in data.cuts:
        whole, size = int(data.left[row].sum()), int(data.left[row + 1].sum())
        names = ", ".join(str(member) for member in members)
        sentences.append(
            f"After generation {data.generations[row] + 1} the worst of {whole} members ended ({names}), and {size} "
            "trained on."
        )
    moves = list(_moves(data))
    if moves:
        sentences.append(f"From the best agent's first ancestor to itself, {', '.join(moves)}.")
    return sentences + nothing


def _moves(data: RunData) -> Iterator[str]:
    """How every explored hyperparameter went on the best agent's line of descent."""
    if not data.ancestors:
        return
    first, last = data.ancestors[0], data.ancestors[-1]
    for space in data.spaces:
        values = data.hyperparams[space.name]
        before, after = values[first], values[last]
        yield (
            f"{space.name} stayed at {before:.3g}"
            if before == after
            else f"{space.name} went {before:.3g} → {after:.3g}"
        )


def _comparison(data: RunData, other: RunData | None) -> list[str]:
    if other is None:
        return []
    kind = "random search" if not other.config.pbt.copies else "its population"
    own, theirs = (_best(each) for each in (data, other))
    return [f"In {other.path}, {kind} reached {theirs} in {other.total:,} steps, against {own} here."]


def _best(data: RunData) -> str:
    found = data.found
    if "final_score" in found:
        return readable(found["final_score"], found["final_stderr"]) + " on fresh episodes"
    return readable(found["score"], found["stderr"]) if found else "no score"


def planned(data: RunData) -> int:
    """Environment steps of the whole run: full generations."""
    return data.config.planned_steps(data.total, len(data.members))
