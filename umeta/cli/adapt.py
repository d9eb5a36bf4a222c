"""`umeta adapt`: a run to classes of yours, or to a reward."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from umeta.cli.options import Commands, add_learner_options
from umeta.errors import UserError

POLICY = ("goal", "episodes", "steps", "practice")  # what goes with --reward


def add_parser(commands: Commands) -> None:
    text = "adapt a run to classes of yours, from a few labelled images of each, or its policy to a reward"
    sub = commands.add_parser("adapt", help=text, description=text)
    add_learner_options(sub)
    sub.add_argument("run", type=Path, help="runs/NAME; or a learner that adapt wrote, to be changed")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="metalearner.KEY=value")
    where = "a folder (or zip) with a folder of images per class, or a CSV with the columns path and label"
    sub.add_argument("--support", type=Path, metavar="PLACE", help=where)
    sub.add_argument("--add", type=Path, metavar="PLACE", help="to a learner: more examples, as --support")
    text = "from a learner: a class, or its Nth example as support.png shows them"
    sub.add_argument("--remove", action="append", default=[], metavar="CLASS[:N]", help=text)
    text = "of a learner: give a class another name"
    sub.add_argument("--rename", action="append", default=[], metavar="OLD=NEW", help=text)
    text = "of a run on an environment: a family of rewards, such as cheetah_velocity or my_rewards.py:name"
    sub.add_argument("--reward", metavar="NAME", help=text)
    text = "with --reward: the numbers of the goal that is wanted, such as 1.5; by default the family's first test goal"
    sub.add_argument("--goal", type=float, nargs="+", metavar="X", help=text)
    text = "with --reward: episodes per step, 20 by default; and as many after the last, since the best step is kept"
    sub.add_argument("--episodes", type=int, metavar="N", help=text)
    sub.add_argument("--steps", type=int, metavar="N", help="with --reward: steps to take, 3 by default")
    text = "with --reward: rounds of practice without a reward after each step, by default the run's evaluate.practice"
    sub.add_argument("--practice", type=int, metavar="N", help=text)
    text = "a new folder for the learner, or for the policy as export writes it"
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help=text)


def run(options: argparse.Namespace) -> dict[str, Any]:
    for change in options.overrides:
        if not change.startswith("metalearner."):
            raise UserError(f"'{change}': adapt takes metalearner.KEY=value; the rest is the run's")
    from umeta.config import reading
    from umeta.deploy.adapt import adapt_run, change_learner
    from umeta.deploy.adapted import describe
    from umeta.runtime.allocator import keep_buffers

    keep_buffers()
    common = {
        "device": options.device,
        "skip_bad": options.skip_bad is not False,
        "trusted": None if options.allow_plugin else (),
    }
    changes = options.add is not None or options.remove or options.rename
    if sum([options.support is not None, options.reward is not None, bool(changes)]) != 1:
        raise UserError(
            "adapt: --support PLACE for a run on images, or --reward NAME for one on an environment; for a learner one "
            "or more of --add, --remove and --rename"
        )
    if options.reward is None and any(getattr(options, name) is not None for name in POLICY):
        raise UserError("adapt: --goal, --episodes, --steps and --practice go with --reward")
    changed = reading.parse_overrides(options.overrides).get("metalearner")
    if options.reward is not None:
        return run_policy(options, changed, common["trusted"])
    if options.support is not None:
        learner, notes = adapt_run(options.run, options.support, options.out, options=changed, **common)
    else:
        if changed:
            raise UserError("adapt: metalearner.KEY=value goes with --support; a learner keeps its options")
        rename = dict(read_rename(text) for text in options.rename)
        learner, notes = change_learner(
            options.run, options.out, add=options.add, remove=options.remove, rename=rename, **common
        )
    for note in notes:
        print(note, file=sys.stderr)
    print(*describe(learner.values()), sep="\n")
    again = shlex.join(["umeta", "predict", str(options.out), "IMAGES", "--out", "predictions.csv"])
    print(f"\n{options.out}: look at {options.out / 'support.png'}, then: {again}")
    calibration = asdict(learner.calibration) if learner.calibration else None
    return {"learner": str(options.out), "classes": learner.classes.tolist(), "calibration": calibration}


def run_policy(options: argparse.Namespace, changed: Any, trusted: Any) -> dict[str, Any]:
    """Adapt a policy to a reward."""
    from umeta.deploy.policies import adapt_policy
    from umeta.draw.curves import name_steps

    wanted = {name: value for name in POLICY if (value := getattr(options, name)) is not None}
    returns, best = adapt_policy(options.run, options.reward, options.out, options=changed, trusted=trusted, **wanted)
    for count, value in enumerate(returns):
        print(f"after {name_steps(count)}: mean return {value:.2f}")
    print(f"\n{options.out}: the policy after {name_steps(best)}; its README.md says how it acts")
    return {"export": str(options.out), "returns": returns, "steps": best}


def read_rename(text: str) -> tuple[str, str]:
    """Read OLD=NEW."""
    old, _, new = text.partition("=")
    if not old or not new:
        raise UserError(f"--rename {text}: expected OLD=NEW, such as --rename cat=kitten")
    return old, new
