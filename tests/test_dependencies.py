"""The oldest releases that are tested (`make test-oldest`) are the oldest that pyproject.toml allows."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def versions(requirements: list[Requirement], operator: str) -> dict[tuple[str, str], list[Version]]:
    """The versions that follow this operator, by name and environment."""
    return {
        (one.name, str(one.marker)): [Version(s.version) for s in one.specifier if s.operator == operator]
        for one in requirements
    }


def test_the_oldest_releases_tested_are_the_floors() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = sum(project["optional-dependencies"].values(), project["dependencies"])
    floors = [one for one in map(Requirement, declared) if one.name != project["name"]]
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    oldest = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert versions(oldest, "==") == versions(floors, ">=")
