"""`umeta run`: all stages, for configs or for a folder of images."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from umeta.cli.chain import run_chain
from umeta.cli.options import OVERRIDES, Commands, add_record, add_stage_options, as_overrides, load_config
from umeta.errors import UserError


def add_parser(commands: Commands) -> None:
    text = (
        "propose, meta-train and evaluate, for one config or several in one table, for a folder of images, or for an "
        "environment"
    )
    sub = commands.add_parser("run", help=text, description=text)
    add_stage_options(sub)
    sub.add_argument("config", nargs="*", help=f"files or names of packaged configs, and overrides: {OVERRIDES}")
    where = "instead of a config: a folder or zip of images without labels, for which one is written"
    sub.add_argument("--images", type=Path, metavar="PLACE", help=where)
    where = "instead of a config: an environment that gymnasium knows, such as Hopper-v5 or my_module:Mine-v0"
    sub.add_argument("--env", metavar="ID", help=where)
    where = "with --images: a folder or zip with a folder of images per class, to evaluate on"
    sub.add_argument("--test", type=Path, metavar="PLACE", help=where)
    text = "with --images: how long it may take, without the test (default: 30)"
    sub.add_argument("--minutes", type=float, metavar="N", help=text)
    text = (
        "with --images: also weigh a pre-trained network against what was learnt: a name of timm's, torchvision:NAME, "
        "or auto for the best of those that lie on this disk"
    )
    sub.add_argument("--backbone", metavar="NAME", help=text)
    text = "with --backbone: its weights, a .safetensors file or a .pth of weights alone; else they are downloaded"
    sub.add_argument("--weights", type=Path, metavar="FILE", help=text)
    text = "run each config with N seeds, and add the mean over them and its interval"
    sub.add_argument("--seeds", type=int, default=1, metavar="N", help=text)
    add_record(sub)


def run(options: argparse.Namespace) -> dict[str, Any]:
    names = [word for word in options.config if "=" not in word]
    changes = [word for word in options.config if "=" in word]
    if options.env is not None:
        names = [write_env_config(names, changes, options)]
    if options.images is not None:
        return run_images(names, changes, options)
    if not names:
        raise UserError(
            "run: what? A folder of your images, umeta run --images photos, or at least one config, such as "
            "umeta run omniglot_best (umeta list shows all); umeta demo needs nothing"
        )
    if options.test is not None or options.minutes is not None:
        raise UserError("run: --test and --minutes go with --images; for a config set data.test=DIR and train.steps=N")
    if options.backbone is not None:
        raise UserError("run: --backbone goes with --images; in a config, name it as metalearner.model")
    if len(names) > 1 and any(word.startswith(("name=", "tasks=")) for word in changes):
        raise UserError(
            "run: name= and tasks= are for a single config; several keep their own names, out=DIR moves them"
        )
    configs = [load_config(name, changes, options) for name in names]  # all are checked before the first begins
    if len({config.name for config in configs}) < len(configs):
        raise UserError(f"run: two of {', '.join(names)} are named the same; each needs a name of its own")
    if options.seeds < 1:
        raise UserError(f"run: --seeds {options.seeds}: expected 1 or more")
    if options.seeds > 1:
        configs = [
            load_config(name, [*changes, *with_seed(config, config.seed + i)], options)
            for name, config in zip(names, configs, strict=True)
            for i in range(options.seeds)
        ]
    result = run_chain(configs, options, options.seeds)
    from umeta.stages.runs import ADAPTED  # here, as it brings torch

    if options.env is not None and (configs[0].run_folder / ADAPTED).exists():  # policies with a memory write none
        folder = str(configs[0].run_folder)
        own = ["--allow-plugin"] * (":" in options.env)
        again = shlex.join(["umeta", "export", folder, "--goal", "0", *own, "--out", "policy"])
        print(f"{folder}: {again} writes the policy that earned this reward, for gymnasium")
    return result


def write_env_config(names: Sequence[str], changes: Sequence[str], options: argparse.Namespace) -> str:
    """Write a config for the environment, and return its file."""
    if options.images is not None:
        raise UserError("run: --env or --images: learn in an environment, or from pictures")
    if names:
        raise UserError(f"run: --env stands for a config; leave out '{names[0]}', or set env.id in the config")
    from umeta.quickstart.unknown import write_env_recipe
    from umeta.runtime.distributed import run_once

    return str(run_once(lambda: write_env_recipe(options.env, list(changes), options.resume)))


def with_seed(config: Any, seed: int) -> list[str]:
    """List the overrides that make of a config one with another seed."""
    title = json.dumps(f"{config.title or config.name}, seed {seed}", ensure_ascii=False)
    return [f"seed={seed}", f"name={config.name}-seed{seed}", f"title={title}"]


def run_images(names: Sequence[str], changes: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Write a config for the images, and run it."""
    if names:
        raise UserError(f"run: --images stands for a config; leave out '{names[0]}', or set data.root in the config")
    if options.seeds != 1:
        raise UserError("run: --seeds goes with a config; --images writes one, which can be run again with it")
    if options.record is not None and options.test is None:
        raise UserError("run: --record keeps results, and without --test there are none")
    if options.weights is not None and options.backbone is None:
        raise UserError(f"run: --weights {options.weights} are of which network? Add --backbone NAME")
    began = time.monotonic()
    from umeta.config import registry
    from umeta.quickstart import recipe, route
    from umeta.runtime.allocator import keep_buffers
    from umeta.runtime.distributed import run_once

    keep_buffers()
    imported = time.monotonic()
    minutes = recipe.MINUTES if options.minutes is None else options.minutes
    backbones = name_backbones(options)
    for backbone in backbones:  # one that cannot be had is found before long work
        registry.build_part("model", backbone, "--backbone").build((3, 64, 64))
    path = run_once(
        lambda: recipe.write_recipe(
            options.images,
            options.test,
            [*changes, *as_overrides(options, "seed")],
            minutes=minutes,
            device=options.device,
            resume=options.resume,
            hold_out=route.HELD_OUT if options.backbone else 0,
            began=began,
        )
    )
    config = load_config(str(path), changes, options)
    deadline = None
    if config.train.minutes and not options.resume and not any(word.startswith("train.minutes=") for word in changes):
        # the pages and pictures at the end take about as long as what is imported at the beginning
        deadline = began + 60 * minutes - 2 * (imported - began)
    result = run_chain([config], options, deadline=deadline)
    folder = str(config.run_folder)
    if backbones:
        kept, choice = run_once(lambda: route.route(config.run_folder, backbones, device=options.device))
        print(f"kept: {kept}: {choice}")
        result |= {"choice": asdict(choice)}
        folder = str(kept)
    again = shlex.join(["umeta", "adapt", folder, "--support"])
    print(f"{folder}: with a folder of images per class in DIR, {again} DIR --out learner")
    return {"config": str(path), "run": folder, **result}


def name_backbones(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the pre-trained networks that are asked for, as options of a model."""
    if options.backbone is None:
        return []
    if options.backbone == "auto":
        from umeta.quickstart.ondisk import find_networks

        if options.weights is not None:
            raise UserError(f"run: --weights {options.weights} are of which network? --backbone NAME in place of auto")
        return find_networks()
    library, _, name = options.backbone.rpartition(":")
    weights = {} if options.weights is None else {"weights": str(options.weights)}
    return [{"name": "backbone", "network": name, **({"library": library} if library else {}), **weights}]
