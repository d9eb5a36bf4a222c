"""Evaluate a run on tasks with true labels, rewards or functions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from umeta.config.build import RunConfig
from umeta.evaluation.result import Result
from umeta.parts import Tracker
from umeta.runtime import artifacts, distributed
from umeta.runtime.lock import hold_folder
from umeta.stages.domains import domain_of, resolve
from umeta.stages.runs import load_run


def evaluate_run(
    folder: Path | str,
    overrides: dict[str, Any] | None = None,
    *,
    device: str = "auto",
    record: Path | None = None,
    trusted: Collection[str] | None = (),
    trackers: Sequence[Tracker] = (),
) -> Result:
    """Evaluate a run on true labels, rewards or functions, beside the baselines; write `report.{html,md,json}`.

    Finished rows and curves are kept in `evaluation.json`, so that an interrupted evaluation goes on where it stopped.
    `record` names a results file to append to; `overrides` and `trusted` are those of `load_run`; the trackers get the
    results.

    Raises:
        UserError: the run is missing, or what `check_evaluation` finds, or another process is at work in the run's
            folder.
    """
    for place in [Path(folder), *([] if record is None else [record.parent])]:
        artifacts.check_writable(place)
    run = load_run(folder, overrides, device=device, trusted=trusted)
    domain = domain_of(run.config)
    evaluate = resolve(domain.evaluate)
    with distributed.hold_together(hold_folder(run.folder)):
        distributed.run_once(lambda: artifacts.remove_leftovers(run.folder))
        if domain.one_process:
            return distributed.run_once(lambda: evaluate(run, device, record, trackers))
        return evaluate(run, device, record, trackers)


def check_evaluation(config: RunConfig, record: Path | None = None) -> None:
    """Find what would stop the evaluation that a config asks for, before anything long begins.

    Raises:
        UserError: as the `check` of the config's domain.
    """
    if record is not None:
        artifacts.check_writable(record.parent)
    if config.evaluated:
        resolve(domain_of(config).check)(config, record)
