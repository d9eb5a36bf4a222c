"""What the tests share: a cache of their own, and small folders of generated images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UMETA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def draw() -> Callable[..., Path]:
    """`draw(root, cat=8, dog=5)` writes root/cat/0.png ... of noise; `flat=8` writes them into root itself."""

    def draw(root: Path, *, flat: int = 0, side: int = 16, **classes: int) -> Path:
        generator = np.random.default_rng(0)
        for name, count in {".": flat, **classes}.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (side, side), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"{i:02}.png")
        return root

    return draw


@pytest.fixture
def umeta(capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line: (exit code, standard output, standard error)."""

    from umeta.cli.main import main

    def call(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def refused(umeta) -> Callable[..., None]:
    """`refused("propose", "x.yaml", says=["x.yaml"])`: exit code 2 and one line that says all of it, no traceback."""

    def check(*arguments: Any, says: list[str]) -> None:
        code, out, err = umeta(*arguments)
        assert code == 2
        message = err.strip().splitlines()[-1]
        assert message.startswith("umeta: ")
        assert "Traceback" not in err
        assert [text for text in says if text not in message] == [], message
        assert "{" not in out

    return check


@pytest.fixture(scope="session")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`made_run("maml", head="fixed")`: a run of a few meta-steps on digits 0 to 4, each made once. Not to change."""
    from umeta.config import build
    from umeta.stages import metatrain, propose

    place = tmp_path_factory.mktemp("made")
    plain: dict[str, Any] = {
        "data": {"name": "digits"},
        "embedding": {"name": "pixels"},
        "proposer": {"name": "kmeans", "k": 12, "partitions": 2, "smallest": 6},
        "out": str(place),
        "tasks": str(place / "tasks"),
    }
    train = {"outer": {"name": "adam"}, "steps": 5, "way": 5, "shot": 1, "query": 2, "meta_batch": 2}

    @cache
    def made_run(name: str, **options: Any) -> Path:
        learner = {"name": name, "model": {"name": "conv4", "filters": 8}, **options}
        whole = {**plain, "metalearner": learner, "train": train, "name": "-".join(map(str, [name, *options.values()]))}
        run = build.build(whole)
        if not (place / "tasks").exists():
            propose.propose(run, device="cpu")
        return metatrain.metatrain(run, device="cpu")

    return made_run
