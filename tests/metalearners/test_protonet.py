"""ProtoNet against the formula, and what it promises beyond the contract."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.toys import Itself, batch, learnt, rand
from scipy.optimize import linprog
from torch import Tensor, nn

from umeta.errors import UserError
from umeta.metalearners import protonet
from umeta.metalearners.protonet import ProtoNet
from umeta.models.conv4 import Conv4
from umeta.objectives import accuracy, categorical
from umeta.testing import check_metalearner
from umeta.train import BatchProblem
from umeta.types import Batch, EpisodeSpec, TaskSpec, Theta

NORMALISATIONS = ("batch", "support", "running", "group")


def learner_of(d: int, **options: object) -> tuple[ProtoNet, Theta]:
    learner = ProtoNet(Itself(), **options).build(TaskSpec((d,)), EpisodeSpec(2, 1, 1))
    return learner, learner.init(0)


def test_euclidean_logits_by_hand() -> None:
    """Minus squared distances to the class means, up to what is the same for all classes of a query."""
    learner, theta = learner_of(3)
    x, query = rand(2, 5, 3), rand(2, 4, 3, seed=1)
    support = batch(x, [[0, 0, 1, 1, 1], [1, 0, 0, 0, 1]], way=2)
    log_p = learner.predict(theta, learner.adapt(theta, support), query).log_softmax(-1)
    members = [[[0, 1], [2, 3, 4]], [[1, 2, 3], [0, 4]]]
    for t in range(2):
        for q in range(4):
            distances = [((query[t, q] - x[t, members[t][c]].mean(0)) ** 2).sum() for c in range(2)]
            torch.testing.assert_close(log_p[t, q], (-torch.stack(distances)).log_softmax(0), atol=1e-5, rtol=1e-5)


def test_cosine_logits_by_hand() -> None:
    learner, theta = learner_of(3, distance="cosine")
    theta = Theta({**theta.params, "scale": torch.tensor(4.0)})
    x, query = rand(1, 4, 3), rand(1, 3, 3, seed=1)
    logits = learner.predict(theta, learner.adapt(theta, batch(x, [[0, 1, 1, 0]], way=2)), query)
    units = F.normalize(x[0], dim=1)
    means = torch.stack([units[[0, 3]].mean(0), units[[1, 2]].mean(0)])
    expected = 4 * torch.stack([F.cosine_similarity(query[0], mean[None], dim=1) for mean in means], dim=1)
    torch.testing.assert_close(logits[0], expected)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_label_permutation_permutes_the_answers(distance: str, normalisation: str) -> None:
    learner = ProtoNet(Conv4(filters=4), distance=distance, normalisation=normalisation).build(
        TaskSpec((1, 16, 16)), EpisodeSpec(3, 2, 1)
    )
    theta = learner.init(0)
    x, query = rand(2, 6, 1, 16, 16), rand(2, 4, 1, 16, 16, seed=1)
    support = batch(x, [[0, 0, 1, 1, 2, 2]] * 2, way=3)
    order = torch.tensor([2, 0, 1])
    logits = learner.predict(theta, learner.adapt(theta, support), query)
    permuted = learner.predict(theta, learner.adapt(theta, replace(support, y=order[support.y])), query)
    torch.testing.assert_close(permuted[..., order], logits)


def test_the_cosines_scale_starts_where_it_is_told_and_is_learnt() -> None:
    assert learner_of(4, distance="cosine")[1].params["scale"].item() == 10
    learner, theta = learner_of(4, distance="cosine", scale=16.0)
    assert theta.params["scale"].item() == 16
    params = {name: p.requires_grad_() for name, p in theta.params.items()}
    support, query = batch(rand(1, 4, 4), [[0, 1, 0, 1]], 2), batch(rand(1, 4, 4, seed=1), [[0, 1, 0, 1]], 2)
    _, grads = BatchProblem(learner, Theta(params), TaskSpec((4,)), [support], query, 1).loss_and_grad()
    assert grads["scale"] != 0


def test_unscaled_cosines_cannot_fit_20_ways() -> None:
    """At scale 1 even perfect embeddings give the right class an eighth; at 10 they are sure."""
    learner, theta = learner_of(20, distance="cosine")
    x = torch.eye(20)[None]
    support = batch(x, [list(range(20))], 20)
    sure = {}
    for scale in (1.0, 10.0):
        scaled = Theta({**theta.params, "scale": torch.tensor(scale)})
        log_p = learner.predict(scaled, learner.adapt(scaled, support), x).log_softmax(-1)
        sure[scale] = log_p[0].diagonal().exp().max().item()
    assert sure[1.0] == pytest.approx(np.e / (np.e + 19))
    assert sure[1.0] < 1 / 7
    assert sure[10.0] > 0.99


def test_masked_items_are_in_no_prototype() -> None:
    learner, theta = learner_of(3)
    x, query = rand(2, 5, 3), rand(2, 4, 3, seed=1)
    x[0, 4], x[1, 0] = 1e3, 1e3
    mask = torch.tensor([[True] * 4 + [False], [False] + [True] * 4])
    support = batch(x, [[0, 1, 1, 0, 1], [0, 1, 0, 1, 0]], 2, mask)
    logits = learner.predict(theta, learner.adapt(theta, support), query)
    for t, kept in enumerate((slice(0, 4), slice(1, 5))):
        short = batch(x[t : t + 1, kept], [support.y[t, kept].tolist()], 2)
        alone = learner.predict(theta, learner.adapt(theta, short), query[t : t + 1])
        torch.testing.assert_close(alone, logits[t : t + 1])


def test_a_class_without_support_is_no_reason_to_fail() -> None:
    learner, theta = learner_of(3)
    logits = learner.predict(theta, learner.adapt(theta, batch(rand(1, 2, 3), [[0, 2]], 3)), rand(1, 4, 3))
    assert logits.isfinite().all()


def test_steps_change_nothing() -> None:
    learner, theta = learner_of(3)
    support = batch(rand(1, 2, 3), [[0, 1]], 2)
    first = learner.adapt(theta, support)
    again = learner.adapt(theta, support, start=first, steps=7)
    assert torch.equal(first.params["prototypes"], again.params["prototypes"])


@pytest.mark.parametrize("normalisation", ["batch", "support", "running"])
def test_in_training_each_task_is_normalised_by_itself(normalisation: str) -> None:
    learner = ProtoNet(Conv4(filters=4), normalisation=normalisation).build(TaskSpec((1, 16, 16)), EpisodeSpec(2, 1, 1))
    theta = learner.init(0)
    support = batch(rand(2, 4, 1, 16, 16), [[0, 0, 1, 1]] * 2, 2)
    net = learner.model.build((1, 16, 16))
    net.load_state_dict(theta.params, strict=False)
    adapted = learner.adapt(theta, support)
    for t in range(2):
        z = net.train()(support.x[t])
        torch.testing.assert_close(adapted.params["prototypes"][t], torch.stack([z[:2].mean(0), z[2:].mean(0)]))


def test_at_evaluation_running_statistics_are_used_as_torch_does() -> None:
    learner = ProtoNet(Conv4(filters=4), normalisation="running").build(TaskSpec((1, 16, 16)), EpisodeSpec(2, 1, 1))
    theta = learner.init(0)
    net = learner.model.build((1, 16, 16))
    net.load_state_dict(theta.params, strict=False)
    for _ in range(3):
        net(rand(5, 1, 16, 16))
    running = {n.replace("running_", ""): b for n, b in net.named_buffers() if "running" in n}
    support, query = batch(rand(1, 2, 1, 16, 16), [[0, 1]], 2), rand(1, 3, 1, 16, 16, seed=1)
    trained = Theta(theta.params, running)
    logits = learner.predict(trained, learner.adapt(trained, support), query)
    expected = -(torch.cdist(net.eval()(query[0]), net(support.x[0])) ** 2)
    torch.testing.assert_close(logits[0].log_softmax(-1), expected.log_softmax(-1), atol=1e-4, rtol=1e-4)


def test_a_models_own_scale_is_trained_or_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x

    @dataclass(frozen=True)
    class Model:
        def build(self, item_shape: tuple[int, ...]) -> nn.Module:
            return Scaled()

    spec, episode = TaskSpec((3,)), EpisodeSpec(2, 1, 1)
    learner = ProtoNet(Model()).build(spec, episode)
    theta = learner.init(0)
    x = rand(1, 2, 3)
    twice = Theta({"scale": torch.tensor([2.0])})
    support = batch(x, [[0, 1]], 2)
    torch.testing.assert_close(learner.adapt(theta, support).params["prototypes"], x)
    torch.testing.assert_close(learner.adapt(twice, support).params["prototypes"], 2 * x)
    with pytest.raises(UserError, match="'scale' has the name of one of the learner's own"):
        ProtoNet(Model(), distance="cosine").build(spec, episode).init(0)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_it_learns_which_coordinates_matter(distance: str) -> None:
    before, after = learnt(ProtoNet(Itself(), distance=distance))
    assert after > 0.95
    assert before < 0.6


# the linear layer that goes on from the prototypes


def tunable(distance: str, **options: object) -> tuple[ProtoNet, Theta, Batch, Tensor]:
    """Three tasks of two overlapping classes, of different size each, whose prototypes do not fit the support."""
    learner, theta = learner_of(3, distance=distance, **options)
    x = rand(3, 8, 3) * torch.tensor([0.3, 1.0, 5.0]).view(3, 1, 1)
    return learner, theta, batch(x, [[0, 0, 0, 1, 1, 1, 1, 0], [1, 0] * 4, [0, 1] * 4], 2), rand(3, 4, 3, seed=1)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_tuning_by_hand(distance: str) -> None:
    """Adam of torch on a linear layer that begins as the prototypes, its step size relative to the weights' size."""
    learner, theta, support, query = tunable(distance, tune_lr=0.02)
    adapted = learner.adapt(theta, support, steps=7)
    logits = learner.predict(theta, adapted, query)
    for t in range(3):
        z, y, q = support.x[t], support.y[t], query[t]
        if distance == "cosine":
            z, q = F.normalize(z, dim=1), F.normalize(q, dim=1)
        means = torch.stack([z[y == label].mean(0) for label in range(2)])
        layer = nn.Linear(3, 2)
        with torch.no_grad():
            layer.weight.copy_(2 * means if distance == "euclidean" else 10 * F.normalize(means, dim=1))
            layer.bias.copy_(-(means**2).sum(1) if distance == "euclidean" else torch.zeros(2))
        optimiser = torch.optim.Adam(layer.parameters(), lr=0.02 * layer.weight.square().mean().sqrt().item())
        for _ in range(7):
            optimiser.zero_grad()
            F.cross_entropy(layer(z), y).backward()
            optimiser.step()
        torch.testing.assert_close(adapted.params["weight"][t], layer.weight.detach(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(logits[t], layer(q).detach(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_tuning_fits_the_support_better_and_no_steps_are_the_prototypes(distance: str) -> None:
    learner, theta, support, query = tunable(distance)
    plain = learner.adapt(theta, support)
    for steps in (None, 0):
        assert "weight" not in learner.adapt(theta, support, steps=steps).params
        found = learner.predict(theta, learner.adapt(theta, support, steps=steps), query)
        assert torch.equal(found, learner.predict(theta, plain, query))
    before, few, many = (
        categorical(learner.predict(theta, learner.adapt(theta, support, steps=steps), support.x), support)
        for steps in (0, 5, 20)
    )
    assert (few < before).all()
    assert (many < few).all()


def test_a_task_is_tuned_alone_as_in_a_batch_and_without_its_padding() -> None:
    learner, theta, support, query = tunable("euclidean")
    together = learner.predict(theta, learner.adapt(theta, support, steps=6), query)
    for t in range(3):
        alone = learner.predict(theta, learner.adapt(theta, support.chunk(t, t + 1), steps=6), query[t : t + 1])
        torch.testing.assert_close(alone, together[t : t + 1], atol=1e-5, rtol=1e-4)
    mask = support.mask.clone()
    mask[:, 6:] = False
    padded = replace(support, mask=mask, x=torch.where(mask[..., None], support.x, torch.tensor(99.0)))
    short = Batch(support.x[:, :6], support.y[:, :6], mask[:, :6], 2)
    found, expected = (learner.predict(theta, learner.adapt(theta, b, steps=6), query) for b in (padded, short))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_tuning_leaves_the_network_and_carries_no_graph() -> None:
    learner, theta, support, query = tunable("cosine")
    params = {name: p.clone().requires_grad_() for name, p in theta.params.items()}
    tuned = learner.adapt(Theta(params), support, steps=3)
    assert not tuned.params["weight"].requires_grad
    assert all(torch.equal(p, theta.params[name]) and p.grad is None for name, p in params.items())
    with torch.no_grad():
        again = learner.adapt(theta, support, steps=3)
    torch.testing.assert_close(learner.predict(theta, again, query), learner.predict(theta, tuned, query).detach())


# prototypes that move towards the queries


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_soft_k_means_by_hand(distance: str, steps: int) -> None:
    """Each query counts for a class by its probability, each support item by 1, in every step anew."""
    learner, theta = learner_of(3, distance=distance, refine=steps)
    x, query = rand(1, 5, 3), rand(1, 4, 3, seed=1)
    found = learner.predict(theta, learner.adapt(theta, batch(x, [[0, 0, 1, 1, 1]], 2)), query)[0].softmax(-1)
    z, q = (x[0], query[0]) if distance == "euclidean" else (F.normalize(x[0], dim=1), F.normalize(query[0], dim=1))

    def answer(prototypes: list[Tensor]) -> Tensor:
        if distance == "euclidean":
            logits = [-((q - p) ** 2).sum(1) for p in prototypes]
        else:
            logits = [10 * F.cosine_similarity(q, p[None], dim=1) for p in prototypes]
        return torch.stack(logits, dim=1).softmax(1)

    members = [z[:2], z[2:]]
    answered = [answer([m.mean(0) for m in members])]
    for _ in range(steps):
        moved = []
        for label in range(2):
            total, weight = members[label].sum(0), float(len(members[label]))
            for i in range(4):
                total, weight = total + answered[-1][i, label] * q[i], weight + answered[-1][i, label]
            moved.append(total / weight)
        answered.append(answer(moved))
    torch.testing.assert_close(found, answered[-1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, answered[-2], atol=1e-3)


def test_refining_is_transductive_and_none_of_it_changes_nothing() -> None:
    check_metalearner(ProtoNet(Conv4(filters=4), refine=2), transductive=True)
    with pytest.raises(AssertionError, match="one by one"):
        check_metalearner(ProtoNet(Conv4(filters=4), refine=2))
    flags = {(n, r): ProtoNet(Itself(), normalisation=n, refine=r).transductive for n in NORMALISATIONS for r in (0, 1)}
    assert {key for key, flag in flags.items() if flag} == {(n, 1) for n in NORMALISATIONS} | {("batch", 0)}
    (plain, theta), (none, _) = learner_of(3), learner_of(3, refine=0)
    support, query = batch(rand(1, 4, 3), [[0, 1, 0, 1]], 2), rand(1, 4, 3, seed=1)
    answers = [learner.predict(theta, learner.adapt(theta, support), query) for learner in (plain, none)]
    assert torch.equal(*answers)


def test_refining_finds_clusters_that_one_shot_does_not_show() -> None:
    """Two tight clusters of queries, and a support item at the edge of each."""
    learner, theta = learner_of(2)
    refined, _ = learner_of(2, refine=5)
    corner = torch.tensor([[0.0, 0.0], [6.0, 0.0]])
    y = torch.arange(2).repeat(100)
    query = Batch((corner[y] + 0.7 * rand(200, 2))[None], y[None], torch.ones(1, 200, dtype=torch.bool), 2)
    support = batch(torch.tensor([[[3.5, 4.0], [6.0, -4.0]]]), [[0, 1]], 2)
    before, after = (
        accuracy(one.predict(theta, one.adapt(theta, support), query.x), query).item() for one in (learner, refined)
    )
    assert after == 1
    assert before < 0.95


def test_refining_a_class_that_nothing_belongs_to_is_no_reason_to_fail() -> None:
    learner, theta = learner_of(3, refine=2)
    support = batch(rand(1, 2, 3) + 100, [[0, 2]], 3)
    logits = learner.predict(theta, learner.adapt(theta, support), rand(1, 4, 3, seed=1) + 100)
    assert logits.isfinite().all()


# prototypes that are carried to the queries


def test_transport_is_the_cheapest_between_equal_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly smoothed it costs what the linear programme's does; smoothed, its logarithm is a term for each side."""
    cost = rand(2, 3, 8).double().abs() + 0.1
    plan = protonet.balance(cost)
    torch.testing.assert_close(plan.sum(2), torch.full((2, 3), 1 / 3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(plan.sum(1), torch.full((2, 8), 1 / 8).double(), atol=1e-9, rtol=0)
    rest = plan.log() + cost / cost.amax((1, 2), keepdim=True) / 0.05
    sides = rest.mean(1, keepdim=True) + rest.mean(2, keepdim=True) - rest.mean((1, 2), keepdim=True)
    torch.testing.assert_close(rest, sides)
    sums = np.vstack([np.kron(np.eye(3), np.ones(8)), np.kron(np.ones(3), np.eye(8))])
    shares = np.repeat([1 / 3, 1 / 8], [3, 8])
    least = torch.tensor([linprog(c.numpy().ravel(), A_eq=sums, b_eq=shares).fun for c in cost])
    assert ((plan * cost).sum((1, 2)) > least + 0.01).all()
    monkeypatch.setattr(protonet, "SMOOTHING", 2e-3)
    monkeypatch.setattr(protonet, "ROUNDS", 3000)
    torch.testing.assert_close((protonet.balance(cost) * cost).sum((1, 2)), least.double(), atol=0.005, rtol=0)


@pytest.mark.parametrize("shots", [1, 3])
def test_opta_by_hand(monkeypatch: pytest.MonkeyPatch, shots: int) -> None:
    """A prototype becomes the mean of the queries, by what is transported to it: five times, or once 0.7 of the way."""
    monkeypatch.setattr(protonet, "balance", lambda cost: (-cost / 4).softmax(1))
    learner, theta = learner_of(3, transport=True)
    plain, _ = learner_of(3)
    x, query = rand(1, 2 * shots, 3), rand(1, 8, 3, seed=1)
    first = x[0].unflatten(0, (2, shots)).mean(1).numpy()
    reached, z = first, query[0].numpy()
    for _ in range(5 if shots == 1 else 1):
        shares = np.exp(-((reached[:, None] - z) ** 2).sum(-1) / 4)
        shares /= shares.sum(0)
        reached = np.stack([np.average(z, axis=0, weights=share) for share in shares])
    if shots > 1:
        reached = 0.7 * reached + 0.3 * first
    labels = torch.arange(2).repeat_interleave(shots)
    found = learner.predict(theta, learner.adapt(theta, batch(x, [labels.tolist()], 2)), query)
    adapted = plain.adapt(theta, batch(torch.from_numpy(reached)[None], [[0, 1]], 2))
    torch.testing.assert_close(found, plain.predict(theta, adapted, query), atol=1e-5, rtol=1e-5)


def test_transport_is_transductive_and_keeps_tasks_apart() -> None:
    check_metalearner(ProtoNet(Conv4(filters=4), transport=True), transductive=True)
    with pytest.raises(AssertionError, match="one by one"):
        check_metalearner(ProtoNet(Conv4(filters=4), transport=True))
    assert ProtoNet(Itself(), transport=True).transductive


# features and precision


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("normalisation", ["running", "group"])
def test_features_are_what_prototypes_are_means_of(distance: str, normalisation: str) -> None:
    learner = ProtoNet(Conv4(filters=4), distance=distance, normalisation=normalisation).build(
        TaskSpec((1, 16, 16)), EpisodeSpec(2, 1, 1)
    )
    theta = learner.init(0)
    stats = {f"{i}.{k}": torch.full((4,), 0.1) for i in (1, 5, 9, 13) for k in ("mean", "var")}
    theta = Theta(theta.params, stats if normalisation == "running" else {})
    x = rand(4, 1, 16, 16) + 1
    z = learner.features(theta, x)
    assert z.shape == (4, 4)
    prototypes = learner.adapt(theta, batch(x[None], [[0, 0, 1, 1]], 2)).params["prototypes"]
    torch.testing.assert_close(prototypes[0], torch.stack([z[:2].mean(0), z[2:].mean(0)]))
    torch.testing.assert_close(learner.features(theta, x[2:3]), z[2:3])
    lengths = z.norm(dim=1)
    assert torch.allclose(lengths, torch.ones(4)) == (distance == "cosine")


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_bfloat16_is_nearly_float32(distance: str, normalisation: str) -> None:
    spec, episode = TaskSpec((1, 16, 16)), EpisodeSpec(3, 2, 2)
    x = rand(2, 6, 1, 16, 16)
    support, query = (batch(x + 0.3 * rand(*x.shape, seed=s), [[0, 0, 1, 1, 2, 2]] * 2, 3) for s in (1, 2))
    logits, grads = {}, {}
    for precision in ("float32", "bfloat16", "auto"):
        options = {"distance": distance, "normalisation": normalisation, "precision": precision}
        learner = ProtoNet(Conv4(filters=8, halvings=2), **options).build(spec, episode)
        theta = learner.init(0)
        params = {name: p.requires_grad_() for name, p in theta.params.items()}
        problem = BatchProblem(learner, Theta(params), spec, [support], query, 2)
        _, found = problem.loss_and_grad()
        assert all(g.dtype == torch.float32 and g.isfinite().all() for g in found.values())
        assert all(value.dtype == torch.float32 for value in problem.stats.values())
        grads[precision] = torch.cat([g.flatten() for g in found.values()])
        adapted = learner.adapt(theta, support)
        assert all(value.dtype == torch.float32 for value in adapted.params.values())
        logits[precision] = learner.predict(theta, adapted, query.x)
        assert logits[precision].dtype == torch.float32
        assert learner.features(Theta(params), query.x[0]).dtype == torch.float32
    assert not torch.equal(logits["bfloat16"], logits["float32"])
    for precision in ("bfloat16", "auto"):
        torch.testing.assert_close(logits[precision].softmax(-1), logits["float32"].softmax(-1), atol=0.1, rtol=0)
        assert F.cosine_similarity(grads[precision], grads["float32"], dim=0) > 0.95
    assert any(torch.equal(logits["auto"], logits[same]) for same in ("float32", "bfloat16"))
