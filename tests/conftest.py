"""What the tests share: a cache of their own, and small folders of generated images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

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
