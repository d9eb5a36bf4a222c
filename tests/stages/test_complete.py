"""What stands beside a trained network is fitted when meta-training is over, and is there wherever the run is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from umeta.config import build
from umeta.deploy.adapted import AdaptedLearner, MetaLearnt
from umeta.errors import UserError
from umeta.evaluation.run import evaluate_run
from umeta.stages import metatrain, propose
from umeta.stages.runs import load_run, snapshots

MODEL = {"name": "described", "model": {"name": "conv4", "filters": 8}, "weight": 0.5}


def plan(out: Path, name: str = "tiny", **changes: Any) -> Any:
    plain = {
        "data": {"name": "digits"},
        "proposer": {"name": "instances"},
        "out": str(out),
        "name": name,
        "metalearner": {"name": "protonet", "distance": "cosine", "model": MODEL},
        "train": {"outer": {"name": "adam"}, "steps": 4, "way": 5, "shot": 1, "query": 1, "meta_batch": 1},
    }
    return build.build({**plain, **changes})


def trained(config: Any) -> Path:
    propose.propose(config, device="cpu")
    return metatrain.metatrain(config, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    config = plan(tmp_path_factory.mktemp("complete"))
    config = build.build({**config.plain, "train": {**config.plain["train"], "snapshots": 2}})
    return trained(config)


def test_the_run_is_of_the_network_and_of_descriptors(folder):
    run = load_run(folder, device="cpu")
    assert run.config.plain["metalearner"]["model"] == {**MODEL, "fitted": True}
    x = torch.rand(6, *run.item_shape)
    z = run.learner.features(run.theta, x)
    whole = run.learner.model.build(run.item_shape)
    whole.load_state_dict({**whole.state_dict(), **{k: v for k, v in run.theta.params.items() if k != "scale"}})
    descriptors = torch.cat([weight**0.5 * F.normalize(part) for part, weight in whole.whiten(x)], 1)
    own = run.learner.features(run.theta, x)[:, : z.shape[1] - descriptors.shape[1]]
    # of a vector of length 1 the network has a share of its weight
    total = 0.5 + sum(weight for _, weight in whole.whiten(x))
    torch.testing.assert_close(own.square().sum(1), torch.full((6,), 0.5 / total), atol=1e-4, rtol=0)
    torch.testing.assert_close(z[:, own.shape[1] :], descriptors / total**0.5, atol=1e-4, rtol=1e-3)


def test_it_is_judged_beside_descriptors_alone_and_adapts_and_goes_on(folder, tmp_path):
    small = {"episodes": [[3, 1]], "tasks": 4, "query": 2, "baselines": ["untrained", "random"]}
    rows = evaluate_run(folder, {"evaluate": small}, device="cpu")["rows"]
    assert {"descriptors alone", "random weights, prototypes"} < rows.keys()
    run = load_run(folder, device="cpu")
    proposed = sum(value for name, value in run.seconds().items() if name in ("embedding", "propose"))
    seconds = [value for value, _ in snapshots(run, "cpu")]
    assert len(seconds) == 2
    assert proposed < seconds[0] < seconds[1]
    assert all(
        then.learner.features(then.theta, torch.rand(2, *run.item_shape)).isfinite().all()
        for _, then in snapshots(run, "cpu")
    )
    items = run.config.data.read("test").pixels[:6]
    AdaptedLearner.adapt(MetaLearnt.of(run), items, list("aabbcc")).save(tmp_path / "learner")
    again = AdaptedLearner.load(tmp_path / "learner", device="cpu")
    assert again.probabilities(items).argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
    later = trained(plan(tmp_path, start=str(folder)))
    assert load_run(later, device="cpu").learner.model.fitted


def test_learners_that_do_not_compare_features_are_refused(tmp_path):
    for metalearner in ({"name": "maml", "model": MODEL}, {"name": "relation", "model": MODEL}):
        config = plan(tmp_path, metalearner["name"], metalearner=metalearner)
        with pytest.raises(UserError, match="learners that compare features alone"):
            trained(config)
    whole = {"name": "protonet", "model": {**MODEL, "fitted": True}}
    with pytest.raises(UserError, match="leave it out"):
        trained(plan(tmp_path, "fitted", metalearner=whole))
