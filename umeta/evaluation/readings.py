"""Evaluate on ambiguous tasks with true labels, as one who has seen the support alone cannot know how they are read."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from umeta.evaluation.chunks import adapt_chunks
from umeta.evaluation.result import Cell, summarize
from umeta.runtime import distributed
from umeta.stages.runs import Run
from umeta.tasks.ambiguous import Ambiguous, TwoReadings
from umeta.types import EpisodeSpec, TaskDistribution


def measure_readings(run: Run, tasks: TaskDistribution, episode: EpisodeSpec, count: int) -> dict[str, Cell]:
    """Measure what the run's learner makes of `count` test tasks that are ambiguous."""
    found, seed = [], run.config.evaluate.seed
    for batch, adapted in adapt_chunks(run.learner, run.theta, Ambiguous(tasks), episode, count, seed, run.test_steps):
        assert isinstance(batch, TwoReadings)
        with torch.no_grad():
            query, other = batch.query(), batch.reread().query().y
            each = run.learner.predict_each(run.theta, adapted, query.x).log_softmax(-1)
            found.append({name: values.cpu() for name, values in judge_readings(each, query.y, other).items()})
    parts = distributed.gather(found)
    return {name: {**summarize(torch.cat([part[name] for part in parts])), "digits": 3} for name in parts[0]}


def judge_readings(each: Tensor, y: Tensor, other: Tensor) -> dict[str, Tensor]:
    """Judge answers to queries of ambiguous tasks, log-probabilities [T, S, N, 2] of the S that are mixed: [T] each.

    y: the labels [T, N] by the reading that a task follows; other: those by the one that it might have followed. Where
    they differ, an item is at best as likely as not, log 1/2. So are all queries of a task together for one who answers
    by both readings, but not for one who is undecided at each query anew. An answer covers the reading by which the
    labels are likelier to it.
    """
    mine, theirs = (each.gather(-1, told[:, None, :, None].expand(*each.shape[:3], 1))[..., 0] for told in (y, other))
    answers, differ = math.log(each.shape[1]), y != other
    mixed = each.logsumexp(1) - answers
    right, likely = (mixed.argmax(-1) == y).float(), mine.logsumexp(1) - answers
    follows = mine.sum(-1) > theirs.sum(-1)
    return {
        "accuracy, readings agree": 100 * (right * ~differ).sum(1) / (~differ).sum(1),
        "log-likelihood, readings differ": (likely * differ).sum(1) / differ.sum(1),
        "log-likelihood, all queries": mine.sum(-1).logsumexp(1) - answers,
        "readings covered": follows.any(1).float() + (~follows).any(1).float(),
    }
