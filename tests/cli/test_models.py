"""A network that cannot be used stops a command before anything long begins."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

PARTS = '''
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from embeddings.pixels import Pixels


@dataclass(frozen=True)
class Lazy:
    """Size unknown."""

    def build(self, item_shape):
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(8))


@dataclass
class Long(Pixels):
    """Takes hours."""

    def fit(self, images, ctx):
        Path("fitted").touch()
        super().fit(images, ctx)
'''


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.chdir(tmp_path)
    Path("parts.py").write_text(PARTS)
    return {
        "data": {"name": "digits"},
        "embedding": {"name": "parts.py:Long"},
        "proposer": {"name": "kmeans", "k": 12, "partitions": 1, "smallest": 6},
        "metalearner": {"name": "maml", "model": {"name": "parts.py:Lazy"}},
        "train": {"outer": {"name": "adam"}, "steps": 1, "way": 3, "shot": 1, "query": 1, "meta_batch": 2},
        "evaluate": {"episodes": [[3, 1]], "query": 1, "tasks": 2, "baselines": []},
    }


def test_of_a_learner(config: dict, refused) -> None:
    says = ["metalearner.model: Lazy: '1.weight' has no size yet", "torch.zeros(2, 1, 28, 28)"]
    Path("bad.yaml").write_text(yaml.safe_dump(config))
    Path("good.yaml").write_text(yaml.safe_dump({**config, "metalearner": {"name": "maml", "model": {"name": "mlp"}}}))
    refused("propose", "bad.yaml", says=says)
    refused("run", "good.yaml", "bad.yaml", says=says)
    assert not any(Path(name).exists() for name in ("fitted", "tasks", "runs"))


def test_of_an_embedding(config: dict, refused) -> None:
    embedding = {"name": "simclr", "model": {"name": "parts.py:Lazy"}}
    plain = {**config, "embedding": embedding, "metalearner": {"name": "maml", "model": {"name": "mlp"}}}
    Path("bad.yaml").write_text(yaml.safe_dump(plain))
    refused("propose", "bad.yaml", says=["embedding.model: Lazy: '1.weight' has no size yet"])


def test_of_functions_and_of_an_environment(config: dict, refused) -> None:
    for name, about in (
        ("sinusoid", {"proposer": "sinusoid", "evaluate": {"shots": [5]}}),
        ("nav2d", {"env": "nav2d", "proposer": "random_discriminator", "evaluate": {"benchmark": "nav2d"}}),
    ):
        train = {"outer": {"name": "adam"}, "steps": 1}
        Path(f"{name}.yaml").write_text(yaml.safe_dump({"metalearner": config["metalearner"], "train": train, **about}))
        refused("run", f"{name}.yaml", says=["metalearner.model: Lazy: '1.weight' has no size yet"])
