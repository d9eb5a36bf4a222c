"""A run joined with a pre-trained network: its cosines are the sum of both, it stands alone, and it says what it is."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from umeta.deploy.adapted import AdaptedLearner, MetaLearnt, describe
from umeta.errors import UserError
from umeta.models.backbone import Backbone
from umeta.models.whitened import find_whitening
from umeta.stages.join import join
from umeta.stages.runs import load_run

NETWORK = "test_efficientnet"


@pytest.fixture
def backbone(tmp_path):
    """Options of a network with weights on disk."""
    torch.manual_seed(0)
    net = timm.create_model(NETWORK).train()
    net(torch.randn(8, 3, 64, 64))
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    return {"name": "backbone", "network": NETWORK, "weights": str(tmp_path / "weights.safetensors"), "size": 32}


@pytest.fixture
def before(made_run):
    return load_run(made_run("protonet", normalisation="running", distance="cosine"), device="cpu")


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("weight", [0, 0.5])
def test_cosines_are_the_sum_of_both(weight, whitened, before, backbone, tmp_path):
    items = np.random.default_rng(0).integers(0, 256, (6, *before.item_shape), dtype=np.uint8)
    x = torch.from_numpy(items).float() / 255
    options = {key: value for key, value in backbone.items() if key != "name"}
    with torch.no_grad():
        frozen = Backbone(**options).build(before.item_shape).eval()(x)
        put = dict(zip(("mean", "directions"), find_whitening(frozen.numpy()), strict=True)) if whitened else None
        frozen = F.normalize((frozen - put["mean"]) @ put["directions"] if put else frozen)
        learnt = before.learner.features(before.theta, x)
    wanted = (frozen @ frozen.T + weight * learnt @ learnt.T) / (1 + weight)
    model = {"name": "whitened", "model": backbone, "features": frozen.shape[1]} if whitened else backbone
    folder = join(before, model, weight, tmp_path / "runs" / "joint", put)
    (tmp_path / "weights.safetensors").unlink()  # it needs them no more
    run = load_run(folder, device="cpu")
    z = MetaLearnt.of(run).features(items)
    torch.testing.assert_close(z @ z.T, wanted, atol=1e-5, rtol=1e-4)
    assert run.pretrained == "data of others, maybe labelled"
    learner = AdaptedLearner.adapt(MetaLearnt.of(run), items, list("aabbcc"))
    learner.save(tmp_path / "learner")
    again = AdaptedLearner.load(tmp_path / "learner", device="cpu")
    np.testing.assert_allclose(again.probabilities(items), learner.probabilities(items), atol=1e-5)
    assert "pre-trained on data of others" in describe(again.values())[0]


def test_reports_and_cards_say_what_it_had_learnt_from(before, backbone, umeta, tmp_path):
    folder = join(before, {**backbone, "learnt_from": "ImageNet with labels"}, 1.0, tmp_path / "runs" / "joint")
    small = ["evaluate.episodes=[[3,1]]", "evaluate.tasks=4", "evaluate.query=2", "evaluate.baselines=[]"]
    assert umeta("evaluate", folder, *small, "--device", "cpu")[0] == 0
    stamp = "after a network pre-trained on ImageNet with labels"
    assert stamp in (folder / "report.md").read_text()
    assert stamp in (folder / "report.html").read_text()
    assert umeta("export", folder, "--out", tmp_path / "exported")[0] == 0
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "pre-trained on ImageNet with labels" in card
    assert "- unsupervised" not in card


def test_what_cannot_be_joined_is_said(made_run, before, backbone, tmp_path):
    with pytest.raises(UserError, match=r"MAML has no features that can be joined"):
        join(load_run(made_run("maml", head="fixed"), device="cpu"), backbone, 1.0, tmp_path / "runs" / "joint")
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there exists"):
        join(before, backbone, 1.0, tmp_path / "there")
