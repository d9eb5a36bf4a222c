"""All stages of one config after another, and their report."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umeta.cli.options import build_trackers
from umeta.errors import UserError

if TYPE_CHECKING:
    from umeta.evaluation.result import Result


MISSING = {"start": "no such run", "tasks": "there are no such tasks"}


def run_chain(
    configs: Sequence[Any], options: argparse.Namespace, seeds: int = 1, deadline: float | None = None
) -> dict[str, Any]:
    """Run all stages of each config and report on them all; `seeds` configs in a row differ in their seed alone.

    deadline: when the meta-training of each is to be over, by `time.monotonic`, in place of their `train.minutes`.
    """
    from umeta.evaluation.rows import record_result
    from umeta.report import write
    from umeta.runtime.distributed import is_first

    check_chain(configs, options.record, options.resume)
    log = build_trackers(options)
    found = [run_stages(config, options, log, options.record, deadline) for config in configs]
    results = [result for result in found if result is not None]
    if not results:
        return {"report": None, "results": []}
    means = [write.average_seeds(results[i : i + seeds]) for i in range(0, len(results), seeds) if seeds > 1]
    if options.record is not None and is_first():
        for mean in means:
            record_result(options.record, mean)
    return report_on(results, Path(configs[0].out), means)


def check_chain(configs: Sequence[Any], record: Path | None = None, resume: bool = False) -> None:
    """Check all configs before the first begins.

    Raises:
        UserError: a config that cannot be evaluated, a start or tasks that are not there and will not be, a folder that
            is there already and is not to be resumed, or that cannot be written.
    """
    from umeta.config.build import build_rounds
    from umeta.evaluation.run import check_evaluation
    from umeta.stages.folder import check_out, refuse_begun
    from umeta.train import check_share

    begun: set[Path] = set()
    for config in configs:
        for turn in build_rounds(config):
            check_share(turn.train)
            check_out(turn)
            for key, found in (("start", turn.parent), ("tasks", turn.tasks and turn.tasks_folder)):
                if found and not Path(found).exists() and begun.isdisjoint({Path(found), Path(turn.out) / found}):
                    raise UserError(f"{config.name}: {key}: {found}: {MISSING[key]}")
            written = [turn.run_folder] if turn.tasks else [turn.tasks_folder, turn.run_folder]
            for folder in [] if resume else written:
                refuse_begun(folder)
            begun |= {*written}
        check_evaluation(config, record)


def run_stages(
    config: Any,
    options: argparse.Namespace,
    log: Sequence[Any] = (),
    record: Path | None = None,
    deadline: float | None = None,
) -> Result | None:
    """Propose, meta-train and evaluate one config; return the result, or None where nothing is evaluated."""
    from umeta.config import registry
    from umeta.config.build import build_rounds
    from umeta.config.reading import Whole
    from umeta.evaluation.rows import describe_provenance
    from umeta.evaluation.run import evaluate_run
    from umeta.report import write
    from umeta.runtime.distributed import run_once
    from umeta.runtime.progress import note
    from umeta.stages import metatrain, propose
    from umeta.stages.runs import load_run

    note(f"== {config.title or config.name}")
    turns = build_rounds(config)
    for i, turn in enumerate(turns):
        if turn.tasks is None:
            propose.propose(turn, device=options.device, resume=options.resume, trackers=log)
        minutes = None if deadline is None else run_once(partial(share_minutes, deadline, turns[i:]))
        folder = metatrain.metatrain(turn, device=options.device, resume=options.resume, trackers=log, minutes=minutes)
    if not config.evaluated:
        run = load_run(folder, trusted=registry.find_plugins(config.plain))
        run_once(lambda: print(write.write_untested(run, describe_provenance(run), f"{test_later(folder)} tests it.")))
        return None
    # a finished run that is resumed is evaluated as this command's config says, not as its own did
    source = {config.key: Whole(config.plain[config.key])} if config.key else {}
    changed = {"evaluate": Whole(asdict(config.evaluate)), "title": config.title, **source}
    known = registry.find_plugins(config.plain)
    result = evaluate_run(folder, changed, device=options.device, record=record, trusted=known, trackers=log)
    return {**result, "folder": str(folder), "tasks": str(turn.tasks_folder)}


def share_minutes(deadline: float, turns: Sequence[Any]) -> float:
    """Return the minutes that the first of the rounds may meta-train for: its share of those left, by meta-steps.

    What it leaves is shared by those after it, and so is what their proposing takes.
    """
    steps = [turn.train.steps for turn in turns]
    return max(1.0, deadline - time.monotonic()) / 60 * steps[0] / sum(steps)


def test_later(folder: Path) -> str:
    """Return a command that tests a run on images that had no test."""
    return shlex.join(["umeta", "evaluate", str(folder), "data.test=DIR", "evaluate.episodes=[[5,1]]"])


def report_on(results: Sequence[Result], out: Path, means: Sequence[Result] = ()) -> dict[str, Any]:
    """Print one table of all results, and write a report of several into `out`."""
    from umeta.report import write
    from umeta.runtime.distributed import run_once

    print(write.align_columns(write.tabulate([*results, *means])))
    print(*dict.fromkeys(fact for result in results for fact in write.list_facts(result)), sep="\n")
    page = Path(results[0]["folder"]) / "report.md"
    if len(results) > 1:
        page = run_once(lambda: write.write_combined(results, out, means))
    print(page.with_suffix(".html"))
    return {"report": str(page), "results": list(results)}
