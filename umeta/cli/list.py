"""`umeta list`: the parts and the configs, or one of them in full."""

from __future__ import annotations

import argparse
from typing import Any

from umeta.cli.options import Commands, add_common_options
from umeta.errors import UserError


def add_parser(commands: Commands) -> None:
    text = "list the parts and configs, or show one in full"
    sub = commands.add_parser("list", help=text, description=text)
    add_common_options(sub)
    sub.add_argument("name", nargs="?", help="a part or a config")


def run(options: argparse.Namespace) -> dict[str, Any]:
    from umeta.config import reading, registry

    parts = {kind: registry.built_in(kind) for kind in registry.KINDS}
    if options.name is None:
        shown: dict[str, Any] = {}
        for kind, found in parts.items():
            print(f"{kind}:")
            for family, names in (registry.families() if kind == "metalearner" else {"": found}).items():
                if family:
                    print(f" {family}:")
                for name in names:
                    line = registry.describe(kind, name)[0].partition("\n\n")[0].replace("\n", " ")
                    shown.setdefault(kind, {})[name] = line
                    print(f"  {name:<16} {line}")
        print("configs:")
        for name in reading.find_packaged():
            print(f"  {name}")
        return {**shown, "configs": sorted(reading.find_packaged())}
    for kind, found in parts.items():
        if options.name in found:
            text, fields = registry.describe(kind, options.name)
            print(f"{kind} {options.name}: {text}\n")
            for field in fields:
                print(f"  {field.name}: {field.type} = {field.default}\n      {field.help}")
            return {"kind": kind, "name": options.name, "help": text, "options": [vars(field) for field in fields]}
    if options.name in reading.find_packaged():
        text = reading.find_packaged()[options.name].read_text(encoding="utf-8")
        print(text.strip())
        return {"config": reading.read(options.name)}
    from umeta.errors import suggest

    known = {*reading.find_packaged(), *(name for found in parts.values() for name in found)}
    raise UserError(f"list: nothing is named '{options.name}'{suggest(options.name, known)}")
