"""What the documentation reads from the source: parts, options, packaged configs and commands. A hook of MkDocs.

A page asks for it by a comment on a line of its own:

    <!-- part: metalearner maml -->             its paper, equations, file and options
    <!-- parts: metalearner -->                 a line for each part of a kind
    <!-- options: umeta.config.images EvaluateConfig -->
    <!-- configs -->                            a line for each packaged config
    <!-- commands -->                           the help of each command

Nothing of it is written by hand, so the site cannot say what the code does not.
"""

from __future__ import annotations

import argparse
import re
from typing import Any, get_args

from umeta.cli.main import parser
from umeta.config import reading, registry
from umeta.models.functional import Normalisation
from umeta.models.precision import Precision

MARKER = re.compile(r"^<!-- (part|parts|options|configs|commands)(?:: (.*?))? -->$", re.MULTILINE)
QUOTED = re.compile(r"'[^']+'")
TYPES = {  # names of types in the source, and what they stand for
    "Normalisation": f"Literal[{', '.join(map(repr, get_args(Normalisation)))}]",
    "Precision": f"Literal[{', '.join(map(repr, get_args(Precision)))}]",
    "Count": "int > 0",
    "Seed": "int >= 0",
}
ARXIV = re.compile(r"(?<!\[)arXiv (\d{4}\.\d{4,5})")
CAPTION = re.compile(r"^\*((?:Source|Published): .*)\*$", re.MULTILINE)


def on_config(config: dict[str, Any]) -> dict[str, Any]:
    """Put the page of each meta-learner into the navigation, where it has an empty section for them, by family."""
    methods = next(part["Methods"] for part in config["nav"] if "Methods" in part)
    place = next(part for part in methods if "Meta-learners" in part)
    place["Meta-learners"] = [
        {family.capitalize(): [f"methods/{name}.md" for name in names]} for family, names in registry.families().items()
    ]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put what the markers of a page ask for in their place, link papers, and set captions in small type."""
    makers = {"part": part, "parts": parts, "options": options, "configs": configs, "commands": commands}
    markdown = MARKER.sub(lambda m: makers[m[1]](*(m[2] or "").split()), markdown)
    markdown = ARXIV.sub(r"[\g<0>](https://arxiv.org/abs/\1)", markdown)
    return CAPTION.sub(r"\1\n{ .caption }", markdown)


def part(kind: str, name: str) -> str:
    """Describe one part: its docstring, its file, its options."""
    text, found = registry.describe(kind, name)
    first, _, rest = text.partition("\n")
    place = f"{registry.KINDS[kind].replace('.', '/')}/{name}.py"
    return f"**{first}**\n\n{rest.strip()}\n\n`{kind}: {name}`, in `{place}`.\n\n{option_table(found)}"


def parts(kind: str) -> str:
    """List the built-in parts of a kind, each with its paper; meta-learners by family, with a link to their page."""
    if kind == "metalearner":
        rows = [[family, name] for family, names in registry.families().items() for name in names]
        said = {name: registry.describe(kind, name)[0].partition("\n")[0] for _, name in rows}
        return table([kind, "it adapts", ""], [[f"[`{name}`]({name}.md)", family, said[name]] for family, name in rows])
    lines = [[f"`{name}`", registry.describe(kind, name)[0].partition("\n")[0]] for name in registry.built_in(kind)]
    return table([kind, ""], lines)


def options(module: str, name: str) -> str:
    """List the options of a dataclass, those that have a help."""
    return option_table([one for one in registry.describe_class(module, name)[1] if one.help])


def configs() -> str:
    """List the packaged configs, each with its title and the comment that it begins with."""
    lines = []
    for name, path in sorted(reading.find_packaged().items()):
        text = path.read_text(encoding="utf-8")
        comment = re.match(r"(?:# .*\n)*", text)
        title = reading.load_yaml(text).get("title", "")
        said = " ".join(line.removeprefix("# ") for line in comment[0].splitlines()) if comment else ""
        lines.append([f"`{name}`", title, said])
    return table(["config", "row in tables", ""], lines)


def commands() -> str:
    """Show the arguments of each command of the command line."""
    (found,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    chapters = []
    for name, command in found.choices.items():
        rows = [argument(action) for action in command._actions if action.dest != "help"]
        text = f"{(command.description or '').capitalize()}."
        chapters.append(f"## umeta {name}\n\n{text}\n\n{table(['argument', ''], rows)}")
    return "\n\n".join(chapters)


def argument(action: argparse.Action) -> list[str]:
    """Write an argument as a row: how it is given, and its help."""
    value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    given = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    return [f"`{given} {value}`" if action.option_strings and value else f"`{given}`", action.help or ""]


def option_table(found: list[registry.Option]) -> str:
    """Write options as a table."""
    if not found:
        return "It has no options."
    lines = [[f"`{one.name}`", readable_type(one.type), readable_default(one.default), one.help] for one in found]
    return table(["option", "type", "default", ""], lines)


def readable_type(annotation: str) -> str:
    """Write a type as a config would have its values: `Literal['a', 'b'] | None` as `a`, `b`, `None`."""
    for name, meaning in TYPES.items():
        annotation = re.sub(rf"\b{name}\b", meaning, annotation)
    choices = re.fullmatch(r"Literal\[(.*?)\]( \| None)?", annotation)
    if choices:
        return ", ".join(f"`{word.strip(chr(39))}`" for word in choices[1].split(", "))
    return f"`{annotation}`"


def readable_default(default: str) -> str:
    """Write a default as a config would have it."""
    made = re.fullmatch(r"field\(default_factory=(?:lambda: )?(.*)\)", default, re.DOTALL)
    default = {"list": "[]", "dict": "{}"}.get(made[1], made[1]) if made else default
    if default == "required":
        return default
    return f"`{default[1:-1] if re.fullmatch(QUOTED, default) else default}`"


def table(header: list[str], lines: list[list[str]]) -> str:
    """Write a Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
