"""Networks as people write them, in every learner that adapts them or embeds with them, against the module itself."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tests.helpers.zoo import SHAPE, ZOO, Animal, conv, train_norms
from umeta import seeds
from umeta.config.images import TrainConfig
from umeta.metalearners.anil import ANIL
from umeta.metalearners.imaml import IMAML
from umeta.metalearners.maml import MAML
from umeta.metalearners.metacurvature import MetaCurvature
from umeta.metalearners.metasgd import MetaSGD
from umeta.metalearners.protonet import ProtoNet
from umeta.metalearners.reptile import Reptile
from umeta.models.check import choose_program
from umeta.models.functional import Pure, draw
from umeta.outer.adam import Adam
from umeta.tasks.partition import PartitionTasks
from umeta.train import BatchProblem, check_fits, metatrain
from umeta.types import Adapted, Batch, EpisodeSpec, MetaLearner, TaskSpec, Theta

EPISODE = EpisodeSpec(2, 2, 2)
LEARNERS = {
    "maml": lambda **options: MAML(inner_lr=0.1, steps=2, **options),
    "first-order": lambda **options: MAML(inner_lr=0.1, steps=2, first_order=True, **options),
    "anil": lambda **options: ANIL(inner_lr=0.1, steps=2, **options),
    "metasgd": lambda **options: MetaSGD(inner_lr=0.1, steps=2, **options),
    "metacurvature": lambda **options: MetaCurvature(inner_lr=0.1, steps=2, **options),
    "imaml": lambda **options: IMAML(inner_lr=0.1, steps=2, iterations=2, **options),
    "reptile": lambda **options: Reptile(inner_lr=0.1, steps=2, **options),
    "protonet": lambda **options: ProtoNet(**options),
}
NORMED = [name for name in ZOO if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in ZOO[name]().modules())]


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, *SHAPE, generator=torch.Generator().manual_seed(seed))


def run_tasks_apart(module: nn.Module, params: dict[str, Tensor], x: Tensor) -> Tensor:
    """The module at each task's weights, one task after the other."""
    found = []
    for t, items in enumerate(x):
        kept = {name: value.clone() for name, value in module.named_buffers()}
        found.append(functional_call(module, {n: p[t] for n, p in params.items()} | kept, (items.clone(),)))
    return torch.stack(found).flatten(2) if found[0].dim() > 1 else torch.stack(found)[..., None]


@pytest.mark.parametrize("name", ZOO)
def test_features_and_their_gradient_are_the_modules_own(name: str) -> None:
    for dtype, near in ((torch.float32, 1e-5), (torch.float64, 1e-9)):
        module = train_norms(draw(ZOO[name], seed=0))
        network = Pure(module, "batch")
        width = choose_program(network, SHAPE)
        module, network.module = module.to(dtype), network.module.to(dtype)
        generator = torch.Generator().manual_seed(1)
        for tasks in (1, 3):
            params = {
                n: (p + 0.1 * torch.randn(tasks, *p.shape, generator=generator).to(dtype)).requires_grad_(
                    n not in network.fixed
                )
                for n, p in network.params().items()
            }
            x = pictures(tasks, 4).to(dtype)
            before = x.clone()
            out, expected = network.per_task(params, x)[0], run_tasks_apart(module, params, x)
            assert out.shape == (tasks, 4, width)
            assert torch.equal(x, before)
            assert (out - expected).abs().max() <= near * max(1, expected.abs().max())
            leaves = [p for p in params.values() if p.requires_grad]
            grads = [torch.autograd.grad(z.sin().sum(), leaves, allow_unused=True) for z in (out, expected)]
            for ours, theirs in zip(*grads, strict=True):
                ours, theirs = (torch.zeros(1) if g is None else g for g in (ours, theirs))
                assert (ours - theirs).abs().max() <= 100 * near * max(1, theirs.abs().max())


@pytest.mark.parametrize("kind", LEARNERS)
@pytest.mark.parametrize("name", ZOO)
def test_the_support_asked_again_answers_as_adaptation_saw_it(name: str, kind: str) -> None:
    """After a meta-step that decays weights; and what the module says is fixed has not moved by a bit."""
    images = (pictures(16).numpy() * 255).astype("uint8")
    tasks = PartitionTasks(images, torch.arange(16).remainder(4).numpy())
    config = TrainConfig(Adam(lr=0.01, weight_decay=0.1), steps=1, way=2, shot=2, query=2, meta_batch=2)
    for normalisation in ("batch", "support", "running", "group") if name in NORMED else ("support",):
        options = LEARNERS[kind](model=Animal(name), normalisation=normalisation)
        learner = options.build(TaskSpec(SHAPE), EPISODE)
        module = train_norms(draw(ZOO[name], seed=0))
        theta, begun = metatrain(learner, tasks, config), learner.init(seeds.integer(0, "weights")).params
        fixed = {n for n, p in module.named_parameters() if not p.requires_grad}
        assert fixed == learner.fixed
        assert any(not torch.equal(theta.params[n], begun[n]) for n in theta.params)
        support = tasks.sample([0, 1], episode=EPISODE, seed=1).support()
        theta = Theta(theta.params)  # as in meta-training
        with torch.no_grad():
            adapted = learner.adapt(theta, support)
            found = learner.predict(theta, adapted, support.x)
            expected = answers(learner, module, theta, adapted, support)
            each = [learner.predict(theta, adapted, support.x[:, i : i + 1]) for i in range(support.x.shape[1])]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        if normalisation in ("support", "group"):  # otherwise it is by the batch at hand
            torch.testing.assert_close(torch.cat(each, 1), found, rtol=1e-4, atol=1e-4)
        for n in fixed:
            assert torch.equal(theta.params[n], begun[n])


@pytest.mark.parametrize("normalisation", ["support", "running"])
@pytest.mark.parametrize("name", NORMED)
def test_given_statistics_are_those_of_each_call(name: str, normalisation: str) -> None:
    """Of running statistics each call has its own, and an answer depends on no other item; a stored learner fits."""
    learner = MAML(Animal(name), inner_lr=0.1, steps=1, normalisation=normalisation).build(TaskSpec(SHAPE), EPISODE)
    theta = learner.init(0)
    check_fits(theta.params, MAML(Animal(name)), TaskSpec(SHAPE), EPISODE, "stored")
    images = pictures(6)
    _, used = learner.built.network.shared(theta.params, images)
    theta = Theta(theta.params, {n: value + 0.1 for n, value in used.items()})
    z = learner.features(theta, images)
    torch.testing.assert_close(torch.cat([learner.features(theta, x[None]) for x in images]), z)
    torch.testing.assert_close(learner.built.network.shared(theta.params, images, theta.running)[1], theta.running)
    if used:
        other = Theta(
            theta.params, dict(list(theta.running.items())[:-1]) | {list(used)[-1]: list(used.values())[-1] + 3}
        )
        assert not torch.allclose(learner.features(other, images), z)


class FixedFirst(nn.Module):
    """A first layer that stays as it is, as a parameter without a gradient or as a buffer."""

    def __init__(self, parameter: bool) -> None:
        super().__init__()
        weight = torch.randn(4, 2, 3, 3)
        if parameter:
            self.weight = nn.Parameter(weight, requires_grad=False)
        else:
            self.register_buffer("weight", weight)
        self.body = nn.Sequential(nn.Tanh(), conv(4, 3), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(F.conv2d(x, self.weight))


@dataclass(frozen=True)
class Fixed:
    """A model of it."""

    parameter: bool

    def build(self, item_shape: tuple[int, ...]) -> nn.Module:
        return FixedFirst(self.parameter)


@pytest.mark.parametrize("kind", LEARNERS)
def test_what_needs_no_gradient_is_to_a_learner_as_a_buffer(kind: str) -> None:
    """Also in what is solved for or curved over all weights."""
    found = []
    for parameter in (True, False):
        learner = LEARNERS[kind](model=Fixed(parameter)).build(TaskSpec(SHAPE), EPISODE)
        params = {n: p.double().requires_grad_() for n, p in learner.init(0).params.items()}
        y = torch.arange(4).remainder(2).expand(2, -1)
        support, query = (Batch(pictures(2, 4, seed=i).double(), y, torch.ones_like(y).bool(), 2) for i in (1, 2))
        found.append(BatchProblem(learner, Theta(params), TaskSpec(SHAPE), [support], query, 2).loss_and_grad())
    (metrics, ours), (expected, theirs) = found
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-9)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-7, atol=1e-12)


def answers(learner: MetaLearner, module: nn.Module, theta: Theta, adapted: Adapted, support: Batch) -> Tensor:
    """What the adapted learner must answer for its support, by the plain module."""
    own = (
        adapted.params
        if "head.weight" in adapted.params
        else {n: p[None].repeat(len(support), *[1] * p.dim()) for n, p in theta.params.items()}
    )
    params = {n: own[n] for n, _ in module.named_parameters()}
    if learner.normalisation == "group":
        network = learner.built.network
        z = torch.stack([network.shared({n: p[t] for n, p in params.items()}, x)[0] for t, x in enumerate(support.x)])
    else:
        z = run_tasks_apart(module, params, support.x)
    if "head.weight" in adapted.params:
        return z @ own["head.weight"].mT + own["head.bias"][:, None]
    onehot = F.one_hot(support.y, support.way).to(z.dtype)
    prototypes = onehot.mT @ z / onehot.sum(1)[..., None]
    return 2 * z @ prototypes.mT - prototypes.square().sum(-1)[:, None]
