"""Who may import whom: the layers of docs/architecture.md, read from the source."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Top to bottom: a module imports from its own row or from rows above it, never from rows below.
LAYERS = {
    "base": ("types", "parts", "objectives", "seeds", "errors", "version", "config", "runtime"),
    "material": ("data", "augment", "envs", "rl"),
    "models": ("models",),
    "methods": ("tasks", "metalearners", "outer"),
    "plug-ins": ("proposers", "embeddings"),
    "stages": ("train", "stages", "draw"),
    "judge": ("benchmarks", "evaluation", "report", "deploy", "testing"),
    "face": ("cli", "quickstart", "teach", "__main__", "__init__"),
}
FILES = {"__init__", "__main__", "version", "types", "parts", "objectives", "seeds", "errors", "train", "testing"}
DOMAINS = {"images", "environments", "regression"}
ORACLE = ("umeta.stages.domains", "umeta.benchmarks.labelled")  # which a config may name; stamped on every report
HEAVY = {"faiss", "sklearn", "matplotlib", "torchvision", "PIL", "pydantic", "gymnasium", "mujoco", "jinja2"}
ESTIMATORS = "umeta.deploy.estimators"  # inherits from scikit-learn's classes
SOURCES = {"UnlabelledImages", "LabelledImages"}
MOST = 5  # tests on the kind of a config, a source or tasks: what differs by domain is in umeta/stages/domains.py


@dataclass
class Tree:
    """The modules of a checkout, and what each imports."""

    root: Path
    files: dict[str, Path] = field(init=False)

    def __post_init__(self) -> None:
        found = (
            path for name in ("umeta", "proposers", "embeddings") for path in sorted((self.root / name).rglob("*.py"))
        )
        self.files = {self.name(path): path for path in found}

    def name(self, path: Path) -> str:
        return ".".join(path.relative_to(self.root).with_suffix("").parts).removesuffix(".__init__")

    def imports(self, name: str, *, everywhere: bool = True) -> Iterator[str]:
        """What a module imports, our own modules by their full names.

        everywhere: also inside functions and under TYPE_CHECKING.
        """
        todo: list[ast.AST] = [ast.parse(self.files[name].read_text(encoding="utf-8"))]
        while todo:
            node = todo.pop()
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: relative import"
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    yield full if full in self.files else str(node.module)
            lazy = isinstance(node, (ast.FunctionDef, ast.Lambda))
            lazy |= isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            if everywhere or not lazy:
                todo += ast.iter_child_nodes(node)

    def graph(self) -> dict[str, set[str]]:
        return {name: {other for other in self.imports(name) if other in self.files} - {name} for name in self.files}


def layer(module: str) -> int | None:
    """The row of a module: `umeta.data.images` is in that of `data`, the third file of `proposers` in theirs."""
    top, _, rest = module.partition(".")
    place = (rest.partition(".")[0] or "__init__") if top == "umeta" else top
    return next((i for i, row in enumerate(LAYERS.values()) if place in row), None)


def violations(tree: Tree) -> list[str]:
    """All that is wrong with who imports whom, one sentence each."""
    found = []
    for name, others in tree.graph().items():
        own = layer(name)
        if own is None:
            found.append(f"{name} belongs to no layer")
        for other in sorted(others):
            theirs = layer(other)
            if own is not None and theirs is not None and theirs > own and (name, other) != ORACLE:
                found.append(f"{name} imports {other}, from a lower layer")
            plugins = ("proposers", "embeddings")
            if other.startswith(plugins):
                found.append(f"{name} imports {other}: plug-ins are found by name, by {{umeta.config.registry}} alone")
    return found + [f"import circle: {' -> '.join(circle)}" for circle in circles(tree.graph())]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One circle for each step back that a walk through the graph meets."""
    found, done = [], set()

    def walk(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append([*trail[trail.index(name) :], name])
        elif name not in done:
            for other in sorted(graph[name]):
                walk(other, [*trail, name])
            done.add(name)

    for name in graph:
        walk(name, [])
    return found


def questions_of_kind(tree: Tree) -> list[str]:
    """Where `umeta/` asks for the kind of a config, of a source or of tasks by `isinstance` or `match`."""
    modules = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in tree.files.items()}
    classes = [(name, node) for name, m in modules.items() for node in m.body if isinstance(node, ast.ClassDef)]
    kinds = SOURCES | {
        node.name
        for name, node in classes
        if (name.startswith("umeta.config.") and node.name.endswith("Config"))
        or (name.startswith("umeta.tasks.") and any(getattr(part, "name", "") == "sample" for part in node.body))
    }
    found = []
    for name, module in modules.items():
        for node in ast.walk(module):
            asked: ast.AST | None = None
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
                asked = node.args[1]
            elif isinstance(node, ast.MatchClass):
                asked = node.cls
            if asked and kinds & {getattr(n, "id", getattr(n, "attr", "")) for n in ast.walk(asked)}:
                found.append(f"{name}:{node.lineno}: {ast.unparse(node)}")
    return [one for one in found if one.startswith("umeta")]


def test_imports_follow_the_layers_and_never_run_in_a_circle():
    assert violations(Tree(ROOT)) == []


PLANTED = {
    "a file without a layer": ("umeta/extra.py", "", "umeta.extra belongs to no layer"),
    "a folder without a layer": ("umeta/extra/inner.py", "", "umeta.extra.inner belongs to no layer"),
    "upwards": ("umeta/errors.py", "import umeta.train\n", "umeta.errors imports umeta.train"),
    "upwards in a function": (
        "umeta/tasks/partition.py",
        "def late():\n    from umeta.stages import runs\n",
        "umeta.tasks.partition imports umeta.stages.runs",
    ),
    "upwards for types": (
        "umeta/models/mlp.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from umeta.evaluation.images import evaluate\n",
        "umeta.models.mlp imports umeta.evaluation.images",
    ),
    "a label for a stage": (
        "umeta/stages/propose.py",
        "from umeta.benchmarks.labelled import LabelledImages\n",
        "umeta.stages.propose imports umeta.benchmarks.labelled",
    ),
    "a plug-in": ("umeta/train.py", "from proposers.kmeans import KMeans\n", "umeta.train imports proposers.kmeans"),
    "a plug-in of a plug-in": (
        "proposers/kmeans.py",
        "from embeddings.acai import ACAI\n",
        "proposers.kmeans imports embeddings.acai",
    ),
    "a circle in a layer": ("umeta/seeds.py", "def late():\n    from umeta.seeds_too import x\n", "import circle"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_violation_is_found(planted, tmp_path):
    for package in ("umeta", "proposers", "embeddings"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    path, text, says = PLANTED[planted]
    (tmp_path / path).parent.mkdir(exist_ok=True)
    with open(tmp_path / path, "a", encoding="utf-8") as file:
        file.write(text)
    if planted == "a circle in a layer":
        (tmp_path / "umeta/seeds_too.py").write_text("from umeta import seeds\n\nx = seeds\n")
    assert [problem for problem in violations(Tree(tmp_path)) if says in problem]


def test_hardly_anything_asks_for_the_kind_of_a_config_or_of_tasks():
    found = questions_of_kind(Tree(ROOT))
    assert len(found) <= MOST, "\n".join(found)


@pytest.mark.parametrize(
    "planted",
    ["isinstance(x, images.Config | int)", "isinstance(x, (int, reward.RewardTasks))", "issubclass(x, Rotated)"],
)
def test_a_planted_question_for_a_kind_is_found(planted, tmp_path):
    for package in ("umeta", "proposers", "embeddings"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    before = questions_of_kind(Tree(tmp_path))
    with open(tmp_path / "umeta/train.py", "a", encoding="utf-8") as file:
        file.write(f"\n\ndef planted(x):\n    return {planted}\n")
    assert len(questions_of_kind(Tree(tmp_path))) == len(before) + 1


def test_the_top_of_the_package_is_ten_files_and_folders():
    assert {path.stem for path in (ROOT / "umeta").glob("*.py")} == FILES


@pytest.mark.parametrize("folder", ["config", "draw", "evaluation"])
def test_every_domain_has_a_file_of_the_same_name(folder):
    assert {path.stem for path in (ROOT / "umeta" / folder).glob("*.py")} >= DOMAINS


def test_no_paper_s_file_imports_another_paper_s_file():
    """Bases, whose names begin with an underscore, are there to be imported; methods are not."""
    tree = Tree(ROOT)
    for name, others in tree.graph().items():
        for other in others:
            folder, _, file = other.rpartition(".")
            if folder == "umeta.metalearners" and not file.startswith("_"):
                assert not name.startswith("umeta.metalearners."), f"{name} imports {other}"


def test_nothing_the_stages_import_reaches_a_label_save_the_oracle_that_a_config_names():
    tree = Tree(ROOT)
    graph = tree.graph()
    reached, todo = set(), [name for name in graph if name.startswith("umeta.stages")]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += [other for other in graph[name] if (name, other) != ORACLE]
    assert not {name for name in reached if name.startswith("umeta.benchmarks")}
    assert ORACLE[1] not in set(tree.imports(ORACLE[0], everywhere=False))


def test_heavy_libraries_are_imported_where_they_are_used():
    tree = Tree(ROOT)
    for name in tree.files:
        heavy = {other.partition(".")[0] for other in tree.imports(name, everywhere=False)} & HEAVY
        assert heavy <= ({"sklearn"} if name == ESTIMATORS else set()), f"{name} imports {heavy}"
