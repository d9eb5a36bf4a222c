"""Going back where a step of adaptation did harm, as the next episodes show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from umeta.types import Adapted, Batch, Step, along


def guard(step: Step, explores: bool = False) -> Step:
    """Return a step that undoes the one before where it did harm, and takes half of it instead.

    Harm is a mean return lower than before by more than two standard errors, over the episodes before and after.

    explores: whether the first episodes are of many policies, of which the first step picks one; it is not undone.
    """
    kept: tuple[Adapted, Batch] | None = None
    share = torch.ones(())

    def take_guarded_step(adapted: Adapted, batch: Batch) -> Adapted:
        nonlocal kept, share
        if kept is not None:
            harm = did_harm(*(totals(one) for one in (kept[1], batch)))
            share = torch.where(harm, share / 2, share)
            old = kept[1].tensors()
            adapted = replace(adapted, params=choose(harm, kept[0].params, adapted.params))
            batch = replace(batch, **cast(dict[str, Any], choose(harm, old, batch.tensors())))
        if not explores or adapted.steps:
            kept = adapted, batch
        after = step(adapted, batch)
        params = {
            name: torch.lerp(adapted.params[name], value, along(share, value)) for name, value in after.params.items()
        }
        return replace(after, params=params)

    return take_guarded_step


def totals(batch: Batch) -> Tensor:
    """Return of each episode [T, E]."""
    assert batch.reward is not None
    return (batch.reward * batch.mask).view(len(batch), batch.sequences, -1).sum(-1)


def did_harm(before: Tensor, after: Tensor) -> Tensor:
    """Whether the mean of returns [T, E] has become lower by more than two standard errors [T]."""
    error = sum(one.var(1) / one.shape[1] for one in (before, after)) ** 0.5
    return before.mean(1) - after.mean(1) > 2 * error


def choose(which: Tensor, yes: dict[str, Tensor], no: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take each task's tensors from `yes` or from `no`; which: [T]."""
    return {name: torch.where(along(which, value), yes[name], value) for name, value in no.items()}
