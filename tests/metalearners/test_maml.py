"""MAML against a plain double-backward loop, and what it promises beyond the contract."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from umeta.config.images import TrainConfig
from umeta.errors import UserError
from umeta.metalearners.maml import MAML
from umeta.models.conv4 import Conv4
from umeta.models.mlp import MLP
from umeta.objectives import accuracy
from umeta.outer.adam import Adam
from umeta.runtime.loop import RunContext
from umeta.tasks.partition import PartitionTasks
from umeta.testing import toy_images, toy_tasks
from umeta.train import BatchProblem, metatrain
from umeta.types import Adapted, Batch, EpisodeSpec, MetaLearner, TaskSpec, Theta

WAY, SIDE = 3, 16
SPEC = TaskSpec((1, SIDE, SIDE))
EPISODE = EpisodeSpec(WAY, 2, 2)


@dataclass(frozen=True)
class Mlp:
    """A model that is not of this library: linear layers and BatchNorm1d."""

    def build(self, item_shape: tuple[int, ...]) -> nn.Module:
        inputs = int(np.prod(item_shape))
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 5))


MODELS = {"pool": Conv4(filters=4), "stride": Conv4(filters=4, down="stride"), "mlp": Mlp()}


def batch(count: int, tasks: int = 3, way: int = WAY, seed: int = 0) -> Batch:
    """`tasks` tasks with `count` random items of each class, in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(tasks, way * count, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
    y = torch.arange(way).repeat_interleave(count).expand(tasks, -1)
    return Batch(x, y, torch.ones(y.shape, dtype=torch.bool), way)


def begun(learner: MAML, seed: int = 0) -> Theta:
    """Its theta in float64, normalisation weights and biases moved off ones and zeros."""
    generator = torch.Generator().manual_seed(seed)
    params = {}
    for name, p in learner.init(seed).params.items():
        noise = 0.2 * torch.rand(p.shape, generator=generator, dtype=torch.float64)
        params[name] = (p.double() + noise).requires_grad_()
    return Theta(params)


# The plain loop: torch.nn.functional alone, one task at a time.

Given = list[tuple[Tensor, Tensor]]


def normalised(z: Tensor, weight: Tensor, bias: Tensor, norm: str, given: Given | None, used: Given) -> Tensor:
    over = [0, *range(2, z.dim())]
    used.append((z.mean(over), z.var(over, correction=0)))
    if norm == "group":
        return F.group_norm(z, 1, weight, bias)
    if given is None:
        return F.batch_norm(z, None, None, weight, bias, True)
    mean, var, weight, bias = (v.view(-1, *[1] * (z.dim() - 2)) for v in (*given[len(used) - 1], weight, bias))
    return (z - mean) / (var + 1e-5).sqrt() * weight + bias


def forward(model: str, p: dict[str, Tensor], x: Tensor, norm: str, given: Given | None = None) -> tuple[Tensor, Given]:
    used: Given = []
    if model == "mlp":
        z = F.linear(x.flatten(1), p["1.weight"], p["1.bias"])
        z = normalised(z, p["2.weight"], p["2.bias"], norm, given, used)
        z = F.linear(z.tanh(), p["4.weight"], p["4.bias"])
    else:
        z, each = x, 4 if model == "pool" else 3
        for i in range(0, 4 * each, each):
            z = F.conv2d(z, p[f"{i}.weight"], stride=2 if model == "stride" else 1, padding=1)
            z = F.relu(normalised(z, p[f"{i + 1}.weight"], p[f"{i + 1}.bias"], norm, given, used))
            z = F.max_pool2d(z, 2) if model == "pool" else z
        z = z.mean((2, 3)) if model == "stride" else z.flatten(1)
    return F.linear(z, p["head.weight"], p["head.bias"]), used


def plain_meta_gradient(model: str, learner: MAML, theta: Theta, support: Batch, query: Batch) -> tuple[Tensor, list]:
    """The mean query loss and its gradient."""
    losses = []
    for t in range(len(support)):
        fast = dict(theta.params)
        if learner.head == "shared":
            fast["head.weight"] = fast["head.weight"].repeat(WAY, 1)
            fast["head.bias"] = fast["head.bias"].repeat(WAY)
        for k in range(learner.steps):
            size = learner.inner_lr / (k + 1 if learner.schedule == "harmonic" else 1)
            logits, _ = forward(model, fast, support.x[t], learner.normalisation)
            loss = F.cross_entropy(logits, support.y[t])
            grads = torch.autograd.grad(loss, list(fast.values()), create_graph=not learner.first_order)
            moves = learner.adapts or fast
            fast = {n: p - size * g * (n in moves) for (n, p), g in zip(fast.items(), grads, strict=True)}
        given = None
        if learner.normalisation == "support":
            given = forward(model, fast, support.x[t], "support")[1]
        losses.append(F.cross_entropy(forward(model, fast, query.x[t], learner.normalisation, given)[0], query.y[t]))
    loss = torch.stack(losses).mean()
    return loss, torch.autograd.grad(loss, list(theta.params.values()))


@pytest.mark.parametrize("normalisation", ["batch", "support", "running", "group"])
@pytest.mark.parametrize("first_order", [False, True], ids=["second", "first"])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("model", MODELS)
def test_meta_gradient_equals_a_plain_loop(model: str, steps: int, first_order: bool, normalisation: str) -> None:
    head = "shared" if steps == 5 else "fixed"
    learner = MAML(MODELS[model], 0.4, steps, first_order=first_order, head=head, normalisation=normalisation).build(
        SPEC, EPISODE
    )
    theta, support, query = begun(learner), batch(2), batch(2, seed=1)
    loss, expected = plain_meta_gradient(model, learner, theta, support, query)
    for chunk in (1, 2, 3):
        metrics, grads = BatchProblem(learner, theta, SPEC, [support], query, chunk).loss_and_grad()
        assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-12)
        assert list(grads) == list(theta.params)
        off = torch.cat([(g - e).flatten() for g, e in zip(grads.values(), expected, strict=True)]).norm()
        whole = torch.cat([e.flatten() for e in expected]).norm()
        assert whole > 1e-3
        assert off / whole < 1e-10


def test_a_harmonic_schedule_divides_each_step_by_its_number() -> None:
    learner = MAML(MODELS["mlp"], 0.4, 3, head="fixed", normalisation="batch", schedule="harmonic")
    learner = learner.build(SPEC, EPISODE)
    theta, support, query = begun(learner), batch(2), batch(2, seed=1)
    loss, expected = plain_meta_gradient("mlp", learner, theta, support, query)
    metrics, grads = BatchProblem(learner, theta, SPEC, [support], query, 3).loss_and_grad()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-12)
    for found, plain in zip(grads.values(), expected, strict=True):
        torch.testing.assert_close(found, plain)
    first = learner.adapt(theta, support, steps=1)
    torch.testing.assert_close(
        learner.adapt(theta, support, start=first, steps=2).params, learner.adapt(theta, support, steps=3).params
    )


@pytest.mark.parametrize("adapts", [["2.bias"], ["4.weight", "head.bias"]])
def test_the_inner_loop_moves_the_weights_it_is_told_to(adapts: list[str]) -> None:
    learner = MAML(MODELS["mlp"], 0.4, 3, head="fixed", normalisation="batch", adapts=adapts).build(SPEC, EPISODE)
    theta, support, query = begun(learner), batch(2), batch(2, seed=1)
    fast = learner.adapt(theta, support).params
    for name, value in fast.items():
        moved = not torch.equal(value, theta.params[name].expand(value.shape))
        assert moved == (name in adapts)
    _, expected = plain_meta_gradient("mlp", learner, theta, support, query)
    _, grads = BatchProblem(learner, theta, SPEC, [support], query, 3).loss_and_grad()
    for (name, found), true in zip(grads.items(), expected, strict=True):
        torch.testing.assert_close(found, true, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("adapts", [[], ["2.weigth"]])
def test_the_inner_loop_has_to_move_something_that_is_there(adapts: list[str]) -> None:
    with pytest.raises(UserError, match=r"adapts: expected names among 1.weight, .* head.bias, got"):
        MAML(MODELS["mlp"], adapts=adapts).build(SPEC, EPISODE)


@pytest.mark.parametrize("normalisation", ["batch", "support", "running", "group"])
@pytest.mark.parametrize("precision", ["bfloat16", "auto"])
def test_the_queries_may_be_seen_in_bfloat16_and_the_support_is_not(precision: str, normalisation: str) -> None:
    found = {}
    for name in ("float32", precision):
        learner = MAML(MODELS["pool"], 0.1, 2, normalisation=normalisation, precision=name).build(SPEC, EPISODE)
        theta = Theta({n: p.detach().float().requires_grad_() for n, p in begun(learner).params.items()})
        support, query = (replace(batch(2, seed=seed), x=batch(2, seed=seed).x.float()) for seed in (0, 1))
        adapted = learner.adapt(theta, support)
        grads = BatchProblem(learner, theta, SPEC, [support], query, 3).loss_and_grad()[1]
        assert all(g.dtype == torch.float32 for g in grads.values())
        logits = learner.predict(theta, adapted, query.x)
        found[name] = adapted.params, logits.detach(), torch.cat([g.flatten() for g in grads.values()])
    (fast, logits, grads), (same, near, nearly) = found.values()
    assert all(torch.equal(fast[name], same[name]) for name in fast)
    assert near.dtype == torch.float32
    assert precision == "auto" or not torch.equal(logits, near)
    torch.testing.assert_close(near.softmax(-1), logits.softmax(-1), atol=0.05, rtol=0)
    assert F.cosine_similarity(grads, nearly, dim=0) > 0.98


def test_recomputed_steps_have_the_same_gradient() -> None:
    support, query = batch(2), batch(2, seed=1)
    kept, again = (
        MAML(MODELS["pool"], 0.4, 3, recompute=recompute).build(SPEC, EPISODE) for recompute in (False, True)
    )
    found = [
        BatchProblem(learner, begun(learner), SPEC, [support], query, 3).loss_and_grad()[1] for learner in (kept, again)
    ]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


def test_the_orders_differ() -> None:
    """Otherwise the test above would say nothing of second derivatives."""
    grads = {}
    for first_order in (False, True):
        learner = MAML(MODELS["pool"], 0.4, 2, first_order=first_order).build(SPEC, EPISODE)
        _, found = BatchProblem(learner, begun(learner), SPEC, [batch(2)], batch(2, seed=1), 3).loss_and_grad()
        grads[first_order] = torch.cat([g.flatten() for g in found.values()])
    assert torch.nn.functional.cosine_similarity(grads[False], grads[True], dim=0) < 0.999


def test_running_statistics_are_frozen_at_evaluation() -> None:
    """Support and query alike are normalised by them, as torch's own batch norm in eval mode does."""
    learner = MAML(MODELS["mlp"], 0.3, 2, normalisation="running").build(SPEC, EPISODE)
    theta = begun(learner)
    generator = torch.Generator().manual_seed(5)
    mean, var = (torch.rand(6, generator=generator, dtype=torch.float64) for _ in range(2))
    theta = Theta(theta.params, {"2.mean": mean, "2.var": var})
    support, query = batch(2), batch(2, seed=1)
    logits = learner.predict(theta, learner.adapt(theta, support), query.x)
    for t in range(3):
        fast = {n: p.repeat(WAY, *[1] * (p.dim() - 1)) if n.startswith("head") else p for n, p in theta.params.items()}
        for _ in range(2):
            out = forward("mlp", fast, support.x[t], "running", [(mean, var)])[0]
            grads = torch.autograd.grad(F.cross_entropy(out, support.y[t]), list(fast.values()))
            fast = {n: p - 0.3 * g for (n, p), g in zip(fast.items(), grads, strict=True)}
        torch.testing.assert_close(logits[t], forward("mlp", fast, query.x[t], "running", [(mean, var)])[0])


def test_steps_may_be_asked_for_and_gone_on_from() -> None:
    """As evaluation does with `test_steps`."""
    learner = MAML(MODELS["mlp"], 0.3, steps=2, test_steps=5).build(SPEC, EPISODE)
    theta, support = begun(learner), batch(2)
    with torch.no_grad():
        five = learner.adapt(theta, support, steps=learner.test_steps)
        on = learner.adapt(theta, support, start=learner.adapt(theta, support), steps=3)
        none = learner.adapt(theta, support, steps=0)
        same = learner.adapt(theta, support, steps=2)
        default = learner.adapt(theta, support)
    for name in theta.params:
        torch.testing.assert_close(five.params[name], on.params[name])
        assert torch.equal(same.params[name], default.params[name])
        assert torch.equal(none.params[name][1], theta.params[name].expand_as(none.params[name][1]))
    assert not torch.allclose(five.params["1.weight"], default.params["1.weight"])


def test_a_loaded_theta_needs_no_grad_mode_in_particular() -> None:
    learner = MAML(MODELS["mlp"], 0.3, 2).build(SPEC, EPISODE)
    theta = begun(learner)
    loaded = Theta({name: p.detach() for name, p in theta.params.items()})
    found = learner.adapt(loaded, batch(2))
    assert not any(p.requires_grad for p in found.params.values())
    with torch.no_grad():
        expected = learner.adapt(theta, batch(2))
    for name, p in found.params.items():
        assert torch.equal(p, expected.params[name])


def test_without_gradients_no_step_keeps_the_one_before() -> None:
    """Else memory at evaluation would grow with the number of steps."""
    alive = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Watch.apply(x)

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x * 1.0

        @staticmethod
        def setup_context(ctx, inputs, output) -> None:
            ctx.token = Token()

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            return grad

        @staticmethod
        def vmap(info, in_dims, x: Tensor) -> tuple[Tensor, int]:
            return Watch.apply(x), in_dims[0]

    class Token:
        count, most = 0, 0

        def __init__(self) -> None:
            Token.count += 1
            Token.most = max(Token.most, Token.count)

        def __del__(self) -> None:
            Token.count -= 1

    @dataclass(frozen=True)
    class Model:
        def build(self, item_shape: tuple[int, ...]) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 4), Counting())

    learner = MAML(Model(), 0.1, 6).build(SPEC, EPISODE)
    theta = learner.init(0)
    support = replace(batch(1), x=batch(1).x.float())
    with torch.no_grad():
        alive.append(learner.adapt(theta, support))
    assert 1 <= Token.most <= 4


def test_the_shared_head_takes_any_way_and_the_fixed_one_refuses() -> None:
    shared, fixed = (MAML(MODELS["mlp"], 0.3, 2, head=head).build(SPEC, EPISODE) for head in ("shared", "fixed"))
    support = batch(1, way=5)
    theta = begun(shared)
    assert theta.params["head.weight"].shape == (1, 5)
    assert shared.predict(theta, shared.adapt(theta, support), support.x).shape == (3, 5, 5)
    with pytest.raises(UserError, match=r"for 3 ways, not 5; .*head: shared"):
        fixed.adapt(begun(fixed), support)


def test_the_shared_head_makes_classes_exchangeable() -> None:
    learner = MAML(MODELS["mlp"], 0.3, 2).build(SPEC, EPISODE)
    theta, support, query = begun(learner), batch(2), batch(2, seed=1)
    order = torch.tensor([2, 0, 1])
    logits = learner.predict(theta, learner.adapt(theta, support), query.x)
    permuted = learner.predict(theta, learner.adapt(theta, replace(support, y=order[support.y])), query.x)
    torch.testing.assert_close(permuted[..., order], logits)


@pytest.mark.parametrize("normalisation", ["group", "running"])
def test_unequal_shots(normalisation: str) -> None:
    """Padding, whatever it holds, leaves a task as it would be without: where no statistic is taken of the batch."""
    learner = MAML(MODELS["pool"], 0.3, 3, normalisation=normalisation).build(SPEC, EPISODE)
    theta = begun(learner)
    if normalisation == "running":
        stats = {f"{i}.{k}": torch.full((4,), 0.5, dtype=torch.float64) for i in (1, 5, 9, 13) for k in ("mean", "var")}
        theta = Theta(theta.params, stats)
    support, query = batch(2), batch(2, seed=1)
    mask = support.mask.clone()
    mask[0, [1, 5]] = False
    padded = replace(support, x=torch.where(mask[..., None, None, None], support.x, torch.tensor(7.0)), mask=mask)
    kept = mask[0].nonzero()[:, 0]
    short = Batch(support.x[:1, kept], support.y[:1, kept], mask[:1, kept], WAY)
    logits = learner.predict(theta, learner.adapt(theta, padded), query.x)
    alone = learner.predict(theta, learner.adapt(theta, short), query.x[:1])
    torch.testing.assert_close(logits[:1], alone)


def test_options_are_compared_and_shown_without_what_was_built() -> None:
    one, other = MAML(MODELS["mlp"]), MAML(MODELS["mlp"])
    built = one.build(SPEC, EPISODE)
    assert built == one == other
    assert repr(built) == repr(one) == repr(other)
    assert copy.deepcopy(built) == replace(built) == built
    assert "_built" not in repr(built)


def test_a_model_with_a_parameter_of_the_heads_name_is_refused() -> None:
    @dataclass(frozen=True)
    class Headed:
        def build(self, item_shape: tuple[int, ...]) -> nn.Module:
            return Net()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(SIDE * SIDE, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1))

    with pytest.raises(UserError, match=r"'head.weight' has the name of one of the learner's own"):
        MAML(Headed()).build(SPEC, EPISODE).init(0)


@pytest.mark.parametrize("head", ["shared", "fixed", "prototypes"])
def test_features_are_what_the_network_gives_its_head(head: str) -> None:
    """Not adapted, by the running statistics, each image by itself."""
    learner = MAML(MODELS["mlp"], head=head, normalisation="running").build(SPEC, EPISODE)
    theta = begun(learner)
    mean, var = torch.full((6,), 0.3, dtype=torch.float64), torch.full((6,), 0.7, dtype=torch.float64)
    x = batch(2).x[0]
    found = learner.features(Theta(theta.params, {"2.mean": mean, "2.var": var}), x)
    p = theta.params
    z = (F.linear(x.flatten(1), p["1.weight"], p["1.bias"]) - mean) / (var + 1e-5).sqrt() * p["2.weight"] + p["2.bias"]
    torch.testing.assert_close(found, F.linear(z.tanh(), p["4.weight"], p["4.bias"]))


def test_only_batch_statistics_are_transductive() -> None:
    flags = {n: MAML(MODELS["mlp"], normalisation=n).transductive for n in ("batch", "support", "running", "group")}
    assert [name for name, flag in flags.items() if flag] == ["batch"]


# Learning


@dataclass(frozen=True)
class Perceptron:
    def build(self, item_shape: tuple[int, ...]) -> nn.Module:
        return nn.Sequential(nn.Linear(item_shape[0], 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())


def distracted(seed: int) -> PartitionTasks:
    """16 Gaussian classes: means differ in 4 coordinates, 12 louder ones are noise that only experience ignores."""
    draw = np.random.default_rng(seed)
    corners = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 4), axis=-1).reshape(16, 4)
    labels = np.arange(16).repeat(30)
    signal = corners[labels] + 0.1 * draw.standard_normal((480, 4))
    noise = 2 * draw.standard_normal((480, 12))
    return PartitionTasks(np.concatenate([signal, noise], axis=1).astype(np.float32), labels)


def taught(learner: MetaLearner, steps: int) -> tuple[Theta, float, float]:
    """After so many meta-steps on 5-way 1-shot tasks; accuracy on other ones with that, and with random weights."""
    config = TrainConfig(Adam(lr=5e-3), steps=steps, way=5, shot=1, query=5, meta_batch=8)
    learner = learner.build(TaskSpec((16,)), config.episode)
    trained = metatrain(learner, distracted(0), config, RunContext())
    tasks = distracted(1).sample(np.arange(100), episode=config.episode, seed=1)

    def right(theta: Theta) -> float:
        with torch.no_grad():
            logits = learner.predict(theta, learner.adapt(theta, tasks.support()), tasks.query().x)
        return accuracy(logits, tasks.query()).mean().item()

    return trained, right(trained), right(learner.init(1))


def test_it_learns_to_learn_in_one_step() -> None:
    """One step from the learnt initialisation, against one step of any size from a random one."""
    config = TrainConfig(Adam(lr=5e-3), steps=150, way=5, shot=1, query=5, meta_batch=8)
    learner = MAML(Perceptron(), inner_lr=1.0, steps=1).build(TaskSpec((16,)), config.episode)
    trained = metatrain(learner, distracted(0), config, RunContext())
    untrained = learner.init(1)
    tasks = distracted(1).sample(np.arange(100), episode=config.episode, seed=1)

    def right(theta: Theta, lr: float) -> float:
        one = replace(learner, inner_lr=lr).build(TaskSpec((16,)), config.episode)
        with torch.no_grad():
            logits = one.predict(theta, one.adapt(theta, tasks.support()), tasks.query().x)
        return accuracy(logits, tasks.query()).mean().item()

    assert right(trained, 1.0) > 0.95
    assert max(right(untrained, lr) for lr in (0.01, 0.1, 1.0)) < 0.5


def test_scaling_by_way_steps_as_far_as_a_loss_that_many_times_larger() -> None:
    images = toy_images()
    support = toy_tasks(images).sample(np.arange(2), episode=EpisodeSpec(3, 2, 2), seed=0).support()
    fast = []
    for lr, by in ((0.1, True), (0.3, False)):
        options = MAML(Conv4(4), inner_lr=lr, scale_by_way=by, steps=2)
        learner = options.build(TaskSpec(images.item_shape), EpisodeSpec(3, 2, 2))
        with torch.no_grad():
            fast.append(learner.adapt(learner.init(0), support).params)
    for name, value in fast[0].items():
        assert torch.allclose(value, fast[1][name], atol=1e-5), name


def test_the_log_says_how_the_network_runs(capsys: pytest.CaptureFixture[str]) -> None:
    config = TrainConfig(outer=Adam(), steps=1, way=2, shot=1, query=1, meta_batch=2)
    for model, said in (
        (Conv4(2), "all tasks in one program"),
        (Prelu(), "torch.func.vmap, which is slower: it has PReLU"),
    ):
        tasks = toy_tasks()
        learner = MAML(model, steps=1).build(tasks.spec, config.episode)
        metatrain(learner, tasks, config, RunContext(progress=True))
        assert f"the network runs {said}" in capsys.readouterr().err.replace("under ", "")


@dataclass(frozen=True)
class Prelu:
    def build(self, item_shape: tuple[int, ...]) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.PReLU())


# Inner steps given in nats

POLICY = TaskSpec((4,), "policy", 2, 2)


def policy_batch(tasks: int = 3, items: int = 60) -> Batch:
    """What a policy of standard deviation 1 did; a fifth of the steps is masked."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(tasks, items, n, generator=generator, dtype=torch.float64) for n in (4, 2))
    w = torch.randn(tasks, items, generator=generator, dtype=torch.float64)
    logp = torch.distributions.Normal(0.0, 1.0).log_prob(y).sum(-1)
    mask = torch.rand(tasks, items, generator=generator) < 0.8
    return Batch(x, y, mask, 1, w, logp, score=torch.zeros(tasks))


def moved(learner: MAML, theta: Theta, before: Adapted, after: Adapted, support: Batch) -> list[float]:
    """Each task's mean KL divergence over its unmasked steps, by torch's own."""
    found = []
    outputs = [learner.predict(theta, one, support.x) for one in (before, after)]
    for mask, *two in zip(support.mask, *outputs, strict=True):
        normals = [Normal(*(part.detach() for part in (out[:, :2], out[:, 2:].exp()))) for out in two]
        found.append(kl_divergence(*normals).sum(-1)[mask].mean().item())
    return found


@pytest.mark.parametrize("nats", [0.01, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_step_of_so_many_nats_has_them_whatever_the_gradients_size(nats: float, scale: float) -> None:
    learner = MAML(MLP([8]), inner_kl=nats, steps=1, schedule="harmonic").build(POLICY, EpisodeSpec(1, 2, 2))
    theta, support = begun(learner), policy_batch()
    support = replace(support, w=scale * support.w)
    policies = [learner.unadapted(theta, 3)]
    for number in (1, 2, 3):
        policies.append(learner.adapt(theta, support, start=policies[-1], steps=1))
        assert moved(learner, theta, *policies[-2:], support) == pytest.approx([nats / number] * 3, rel=0.2)


def test_a_step_of_so_many_nats_has_them_where_few_of_many_states_tell_its_size() -> None:
    """Episodes follow one another, end at different times, and show other things the longer they last."""
    learner = MAML(MLP([8]), inner_kl=0.5, steps=1).build(POLICY, EpisodeSpec(1, 2, 2))
    theta, support = begun(learner), policy_batch(items=6000)
    when = torch.arange(6000) % 100
    far = 0.05 * when[:, None] * support.x
    support = replace(support, x=far, mask=when < torch.tensor([[100], [40], [25]]))
    before, after = learner.unadapted(theta, 3), learner.adapt(theta, support)
    assert moved(learner, theta, before, after, support) == pytest.approx([0.5] * 3, rel=0.2)


def test_a_step_of_so_many_nats_goes_down_the_gradient_and_is_differentiated() -> None:
    """Its size is a constant to the meta-gradient: that of plain MAML with this very rate."""
    by_nats = MAML(MLP([8]), inner_kl=0.3, steps=1).build(POLICY, EpisodeSpec(1, 2, 2))
    theta, support = begun(by_nats), policy_batch(tasks=1)
    unit = replace(by_nats, inner_kl=None, inner_lr=1.0).build(POLICY, EpisodeSpec(1, 2, 2))
    start, far, along = by_nats.unadapted(theta, 1), by_nats.adapt(theta, support), unit.adapt(theta, support)
    steps = [torch.cat([(one.params[n] - start.params[n]).flatten() for n in start.params]) for one in (far, along)]
    rate = (steps[0].norm() / steps[1].norm()).item()
    torch.testing.assert_close(steps[0], rate * steps[1])
    plain = replace(unit, inner_lr=rate).build(POLICY, EpisodeSpec(1, 2, 2))
    grads = [BatchProblem(one, theta, POLICY, [support], support, 1).loss_and_grad()[1] for one in (by_nats, plain)]
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name])


def test_without_a_gradient_a_step_of_so_many_nats_moves_nothing() -> None:
    learner = MAML(MLP([8]), inner_kl=1.0, steps=2).build(POLICY, EpisodeSpec(1, 2, 2))
    theta, support = begun(learner), policy_batch()
    adapted = learner.adapt(theta, replace(support, w=torch.zeros_like(support.w)))
    for name, value in adapted.params.items():
        assert torch.equal(value, theta.params[name].expand_as(value))


def test_nats_are_of_policies_alone() -> None:
    with pytest.raises(UserError, match=r"metalearner\.inner_kl: is for policies"):
        MAML(Conv4(filters=4), inner_kl=0.3).build(SPEC, EPISODE)
