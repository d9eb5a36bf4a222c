"""All stages of one config after another, and their report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from umeta.cli.options import build_trackers
from umeta.errors import UserError


def run_chain(configs: Sequence[Any], options: argparse.Namespace, seeds: int = 1) -> dict[str, Any]:
    """Run all stages of each config and report on them all; `seeds` configs in a row differ in their seed alone."""
    from umeta.config import registry
    from umeta.config.build import build_rounds
    from umeta.config.reading import Whole
    from umeta.evaluation.rows import append
    from umeta.evaluation.run import check_evaluation, evaluate_run
    from umeta.report import write
    from umeta.runtime.distributed import first, once
    from umeta.stages import metatrain, propose
    from umeta.train import check_share

    begun: set[Path] = set()
    for config in configs:
        for turn in build_rounds(config):
            check_share(turn.train)
            if turn.parent and not Path(turn.parent).exists() and Path(turn.parent) not in begun:
                raise UserError(f"start: {turn.parent}: no such run")
            begun.add(turn.run_folder)
        check_evaluation(config, options.record)
    log, results = build_trackers(options), []
    for config in configs:
        write.note(f"== {config.title or config.name}")
        for turn in build_rounds(config):
            if turn.tasks is None:
                propose.propose(turn, device=options.device, resume=options.resume, sinks=log)
            folder = metatrain.metatrain(turn, device=options.device, resume=options.resume, sinks=log)
        if not config.evaluated:
            continue
        # a finished run that is resumed is evaluated as this command's config says, not as its own did
        source = {config.key: Whole(config.plain[config.key])} if config.key else {}
        changed = {"evaluate": Whole(asdict(config.evaluate)), "title": config.title, **source}
        known = registry.find_plugins(config.plain)
        result = evaluate_run(folder, changed, device=options.device, record=options.record, trusted=known, sinks=log)
        results.append({**result, "folder": str(folder), "tasks": str(turn.tasks_folder)})
    if not results:
        return {"report": None, "results": []}
    means = [write.over_seeds(results[i : i + seeds]) for i in range(0, len(results), seeds) if seeds > 1]
    if options.record is not None and first():
        for mean in means:
            append(options.record, mean)
    print(write.aligned(write.table([*results, *means])))
    print(*dict.fromkeys(fact for result in results for fact in write.facts(result)), sep="\n")
    page = Path(results[0]["folder"]) / "report.md"
    if len(results) > 1:
        page = once(lambda: write.together(results, Path(configs[0].out), means))
    print(page.with_suffix(".html"))
    return {"report": str(page), "results": results}
