"""Who may import whom: the layers of the package, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A module may import modules of its own layer's row or of rows above it, never below.
LAYERS = [
    {"errors", "lock", "memory", "version", "augment", "types", "seeds", "objectives", "registry", "artifacts"}
    | {"distributed"},
    {"config", "context", "data", "survey"},
    {"tasks", "models", "rl", "envs", "clustering"},
    {"metalearners", "outer", "pictures", "views", "html", "sinks"},
    {"train"},
    {"footprint"},
    {"stages", "testing"},
    {"calibration", "learner"},
    {"benchmarks"},
    {"report"},
    {
        "evaluation",
        "adaptation",
        "regression",
        "tables",
        "card",
        "export",
        "adapt",
        "predict",
        "classifier",
        "features",
        "recipe",
    },
    {"cli", "__main__"},
]
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}


def modules() -> dict[str, Path]:
    found = {}
    for package in ("umeta", "proposers", "embeddings"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, *, lazy: bool = True) -> set[str]:
    """Modules a file imports; those under `if TYPE_CHECKING` do not count, those in functions only with `lazy`."""
    found: set[str] = set()

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if not inside or lazy:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            if isinstance(node, ast.ImportFrom) and node.module:
                found.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
        for child in ast.iter_child_nodes(node):
            visit(child, inside or isinstance(node, ast.FunctionDef))

    visit(ast.parse(path.read_text(encoding="utf-8")), False)
    return found


def layer(module: str) -> str | None:
    """`umeta.data.images` -> `data`."""
    parts = module.split(".")
    return parts[1] if parts[0] == "umeta" and len(parts) > 1 and parts[1] in RANK else None


@pytest.mark.parametrize("name", [name for name in modules() if name != "umeta"])
def test_a_module_imports_only_from_its_own_layer_or_above(name):
    own = layer(name)
    for imported in imports(modules()[name]):
        other = layer(imported)
        if own and other and not (name == "umeta.stages" and imported.startswith("umeta.benchmarks")):
            assert RANK[other] <= RANK[own], f"{name} imports {imported}"


def test_there_is_no_import_cycle():
    known = modules()
    graph = {name: {i for i in imports(path, lazy=False) if i in known} for name, path in known.items()}
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join([*trail[trail.index(name) :], name])}"
        if name not in done:
            for other in sorted(graph[name]):
                walk(other, [*trail, name])
            done.add(name)

    for name in graph:
        walk(name, [])


@pytest.mark.parametrize("name", [name for name in modules() if name.split(".")[0] in ("proposers", "embeddings")])
def test_parts_import_leaf_modules_only_and_never_each_other(name):
    leaves = {"errors", "types", "seeds", "objectives", "clustering", "distributed"}
    leaves |= {"context", "data", "augment", "tasks", "models", "rl"}
    if name == "embeddings.learner":  # loads a run, which is made of stages
        leaves |= {"registry", "stages"}
    for imported in imports(modules()[name]):
        assert imported.split(".")[0] not in ("proposers", "embeddings") or imported == name, (
            f"{name} imports {imported}"
        )
        assert layer(imported) in {None, *leaves}, f"{name} imports {imported}"


@pytest.mark.parametrize("name", [name for name in modules() if name.split(".")[0] == "umeta"])
def test_the_core_knows_no_particular_part(name):
    for imported in imports(modules()[name]):
        assert imported.split(".")[0] not in ("proposers", "embeddings"), f"{name} imports {imported}"


def test_only_the_oracle_leads_from_the_stages_to_the_benchmarks():
    """Statically: nothing `umeta.stages` reaches imports the benchmarks, save the one branch for oracles in it."""
    known = modules()
    reached, todo = set(), ["umeta.stages"]
    while todo:
        name = todo.pop()
        if name not in reached and name in known and not name.startswith("umeta.benchmarks"):
            reached.add(name)
            todo += imports(known[name])
    guilty = {name for name in reached if any(i.startswith("umeta.benchmarks") for i in imports(known[name]))}
    assert guilty == {"umeta.stages"}
    assert not any(i.startswith("umeta.benchmarks") for i in imports(known["umeta.stages"], lazy=False))


@pytest.mark.parametrize(
    "heavy",
    ["faiss", "sklearn", "matplotlib", "torchvision", "PIL", "omegaconf", "pydantic", "gymnasium", "mujoco"],
)
def test_heavy_libraries_are_imported_where_they_are_used(heavy):
    estimators = {"umeta.classifier", "umeta.features"}  # scikit-learn's classes, which they must inherit from
    for name, path in modules().items():
        if heavy == "sklearn" and name in estimators:
            continue
        assert not any(i.split(".")[0] == heavy for i in imports(path, lazy=False)), f"{name} imports {heavy}"
