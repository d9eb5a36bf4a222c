"""What is found of a network before anything long begins: which program runs it, and what cannot be used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.helpers.zoo import SHAPE, ZOO, Animal, Net, block, conv, preset_norm, sequence
from umeta.config.images import TrainConfig
from umeta.errors import UserError
from umeta.metalearners.imaml import IMAML
from umeta.metalearners.maml import MAML
from umeta.metalearners.protonet import ProtoNet
from umeta.metalearners.reptile import Reptile
from umeta.metalearners.rl2 import RL2
from umeta.models import check
from umeta.models.check import choose_program
from umeta.models.functional import Pure
from umeta.models.kernels import TaskBatched
from umeta.outer.adam import Adam
from umeta.testing import check_model, toy_tasks
from umeta.train import check_fits, metatrain
from umeta.types import EpisodeSpec, TaskSpec, Theta

SPEC, EPISODE = TaskSpec(SHAPE), EpisodeSpec(2, 2, 2)


@dataclass(frozen=True)
class Built:
    """A model of what a function gives."""

    make: Callable[[], object]

    def build(self, item_shape: tuple[int, ...]) -> object:
        return self.make()


def chosen(make: Callable[[], nn.Module]) -> Pure:
    network = Pure(make(), "support")
    choose_program(network, SHAPE)
    return network


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("plain", "all tasks in one program"),
        ("relu in place", "all tasks in one program"),
        ("one block twice", "all tasks in one program"),
        ("pretrained and frozen", "all tasks in one program"),
        ("hook", "under torch.func.vmap, which is slower: its Conv2d has hooks"),
        ("forward exchanged", "under torch.func.vmap, which is slower: its ReLU has hooks, or another forward"),
        ("parametrized weight norm", "its ParametrizedConv2d has weights that are no parameters"),
        ("gate of one channel", "which is slower: all tasks in one program raises RuntimeError: The size of tensor"),
        ("lstm", "task by task, which is slowest: it has transpose, for which there is no batched rule; torch.func"),
        ("branch on values", "task by task, which is slowest: its forward cannot be traced"),
    ],
)
def test_the_fastest_program_is_taken_that_does_what_the_module_does(name: str, program: str) -> None:
    network = chosen(ZOO[name])
    assert program in network.program
    assert MAML(Animal(name)).build(SPEC, EPISODE).program.startswith(f"the network runs {network.program}")


@pytest.mark.parametrize("wrong", ["features", "gradient", "by given statistics"])
def test_a_program_that_computes_something_else_is_left(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the reason: in one of the three things that learners use."""
    right = TaskBatched.__call__

    def compute_changed(self: TaskBatched, params, x: Tensor, given):
        out, used = right(self, params, x, given)
        if wrong == "gradient":
            return out + (0.01 * out - (0.01 * out).detach()), used
        return out * (1.001 if (wrong == "features") == (not given) else 1), used

    monkeypatch.setattr(TaskBatched, "__call__", compute_changed)
    network = chosen(block)
    assert "which is slower: all tasks in one program computes something else than the module" in network.program
    vmapped = Pure.run_vmapped
    monkeypatch.setattr(Pure, "run_vmapped", lambda *given: (2 * vmapped(*given)[0], vmapped(*given)[1]))
    assert "which is slowest" in chosen(block).program
    assert "torch.func.vmap computes something else" in chosen(block).program


def noisy() -> nn.Module:
    return Net(lambda m, x: m.body(x + torch.randn_like(x)), body=block())


def build_with_dropout() -> nn.Module:
    return Net(lambda m, x: F.dropout(m.body(x), 0.5), body=block())


@pytest.mark.parametrize("make", [noisy, build_with_dropout])
@pytest.mark.parametrize("learner", [MAML, ProtoNet, Reptile, IMAML])
def test_random_networks_run_task_by_task_and_are_said_to_be_random(make: Callable, learner: Callable) -> None:
    before = torch.get_rng_state()
    built = learner(Built(make)).build(SPEC, EPISODE)
    assert torch.equal(before, torch.get_rng_state())
    assert "it draws random numbers" in built.program
    assert "items beside it" not in built.program
    network = built.built.network
    params = {n: p.expand(2, *p.shape).requires_grad_() for n, p in network.params().items()}
    out, _ = network.per_task(params, torch.rand(2, 3, *SHAPE))
    grads = torch.autograd.grad(out.square().sum(), list(params.values()), create_graph=True)
    assert all(g.isfinite().all() for g in torch.autograd.grad(grads[0].square().sum(), list(params.values())))


def test_what_is_to_be_known_of_a_network_is_said() -> None:
    mixing = nn.TransformerEncoderLayer(12, 2, 16)  # which takes the items for a sequence
    for make, said in (
        (ZOO["dropout"], "its dropout is off"),
        (ZOO["half frozen"], "1 of its 6 parameters stay as they are"),
        (lambda: Net(lambda m, x: m.layer(sequence(x)), layer=copy.deepcopy(mixing)), "depends on the items beside it"),
    ):
        assert said in MAML(Built(make)).build(SPEC, EPISODE).program
        assert ProtoNet(Built(make)).build(SPEC, EPISODE).program.startswith("the network: ")
        assert said in ProtoNet(Built(make)).build(SPEC, EPISODE).program
    assert MAML(Animal("plain")).build(SPEC, EPISODE).program == "the network runs all tasks in one program"
    assert ProtoNet(Animal("lstm")).build(SPEC, EPISODE).program == ""  # one set of weights: nothing is slower


class Twice(torch.autograd.Function):
    """Twice its input, with as many derivatives as are asked for, of which the second is not there."""

    @staticmethod
    def forward(ctx, x: Tensor, left: int = 1) -> Tensor:
        ctx.left = left
        return 2 * x

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple:
        if not ctx.left:
            raise NotImplementedError("derivative for it is not implemented")
        return Twice.apply(g, ctx.left - 1), None


def test_what_torch_differentiates_once_is_for_first_order() -> None:
    model = Built(lambda: Net(lambda m, x: m.body(Twice.apply(m.first(x)).sin()), first=conv(), body=block()[1:]))
    for learner in (MAML(model), IMAML(model)):
        with pytest.raises(
            UserError, match=r"metalearner.model: torch cannot .* Net twice .*not implemented.*first_order"
        ):
            learner.build(SPEC, EPISODE)
    for learner in (MAML(model, first_order=True), Reptile(model), ProtoNet(model)):
        learner.build(SPEC, EPISODE)


def scripted() -> nn.Module:
    return torch.jit.trace(block().eval(), torch.rand(2, *SHAPE))


def hooked_weight() -> nn.Module:
    net = block()
    net[0].weight.register_hook(lambda gradient: 0 * gradient)
    return net


def build_with_checkpoints(reentrant: bool) -> nn.Module:
    return Net(lambda m, x: checkpoint(m.body, m.first(x), use_reentrant=reentrant), first=conv(), body=block()[2:])


def raising(m: nn.Module, x: Tensor) -> Tensor:
    raise LookupError("no such row\nand more")


REFUSED = {
    "lazy": (
        lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)),
        r"'1.weight' has no size yet .* torch.zeros\(2, 2, 6",
    ),
    "lazy norm": (lambda: block(nn.LazyBatchNorm2d()), r"'1.weight' has no size yet"),
    "scripted": (scripted, r"it is TorchScript"),
    "scripted within": (lambda: nn.Sequential(scripted()), r"its '0' is TorchScript"),
    "half": (lambda: block().half(), r"'0.weight' is float16, expected float32"),
    "double": (lambda: block().double(), r"'0.weight' is float64, expected float32"),
    "compiled": (lambda: torch.compile(block()), r"it is compiled, whose weights cannot be exchanged"),
    "hook on a gradient": (hooked_weight, r"'0.weight' has a hook on its gradient"),
    "checkpoint": (lambda: build_with_checkpoints(False), r"RuntimeError: leave torch.utils.checkpoint out of it"),
    "reentrant checkpoint": (lambda: build_with_checkpoints(True), r"RuntimeError: .*[Cc]heckpoint"),
    "parallel": (lambda: nn.DataParallel(block()), r"gives a DataParallel; return the module in it"),
    "function": (lambda: F.relu, r"gives a builtin_function_or_method|gives a function, expected a torch.nn.Module"),
    "nothing": (lambda: None, r"gives a NoneType, expected a torch.nn.Module"),
    "build raises": (
        lambda: nn.Linear("3", 2),
        r"Built.build\(\(2, 6, 6\)\) raises TypeError: .*test_check.py, line \d+\)",
    ),
    "forward raises": (
        lambda: Net(raising),
        r"Net cannot take items of shape \(2, 6, 6\): LookupError: no such row \(test_check.py, line \d+\)$",
    ),
    "other items": (lambda: nn.Linear(5, 2), r"Linear cannot take items of shape \(2, 6, 6\): RuntimeError: mat1"),
    "pair": (lambda: Net(lambda m, x: (x, x)), r"Net gives a tuple for 3 items; let its forward return a tensor"),
    "mean over items": (lambda: Net(lambda m, x: x.mean(0)), r"Net gives a tensor \[2, 6, 6\] for 3 items"),
    "integers": (
        lambda: Net(lambda m, x: m.body(x).long(), body=block()),
        r"no gradient reaches the parameters of Net",
    ),
    "detached": (lambda: Net(lambda m, x: m.body(x).detach(), body=block()), r"no gradient reaches the parameters"),
    "squeezed": (lambda: Net(lambda m, x: x.mean((2, 3)).squeeze(0)), r"Net gives a tensor \[2\] for 1 items"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_when_a_learner_is_built(name: str) -> None:
    make, says = REFUSED[name]
    for learner in (MAML(Built(make)), ProtoNet(Built(make))):
        with pytest.raises(UserError, match=r"metalearner\.model: .*" + says):
            learner.build(SPEC, EPISODE)
    with pytest.raises(UserError, match=says):
        check_model(Built(make), SHAPE)


@pytest.mark.parametrize("name", ["plain", "lstm", "one norm twice", "norm subclass", "writes to its input"])
def test_check_model_takes_what_keeps_its_promises(name: str) -> None:
    check_model(Animal(name), SHAPE)


@pytest.mark.parametrize(
    ("make", "promise"),
    [
        (lambda: Net(lambda m, x: m.body(x) / 0, body=block()), "finite"),
        (lambda: Net(lambda m, x: m.body(x) - x.mean(), body=block()), "depends on no other item"),
        (
            lambda: (torch.Generator().seed(), nn.Linear(6, int(torch.randint(2, 99, ())) and next(WIDTHS)))[1],
            "same seed",
        ),
        (noisy, "alone and beside"),
    ],
)
def test_check_model_names_the_promise_that_is_broken(make: Callable, promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_model(Built(make), SHAPE)


WIDTHS = iter(range(2, 1000))


@pytest.mark.parametrize("name", ZOO)
def test_a_stored_learner_fits_without_content(name: str) -> None:
    """A loaded run's parameters are compared with those of a network on torch's meta device."""
    learner = MAML(Animal(name), normalisation="running")
    params = learner.build(SPEC, EPISODE).init(0).params
    check_fits(params, learner, SPEC, EPISODE, "stored")


@pytest.mark.parametrize("normalisation", ["running", "support"])
@pytest.mark.parametrize("kind", [MAML, ProtoNet])
def test_a_running_average_that_a_model_comes_with_is_where_it_begins(kind: Callable, normalisation: str) -> None:
    net = nn.Sequential(conv(), preset_norm(nn.BatchNorm2d(4)), nn.ReLU(), conv(4, 4), nn.BatchNorm2d(4), nn.Flatten())
    learner = kind(Built(lambda: copy.deepcopy(net)), normalisation=normalisation).build(SPEC, EPISODE)
    theta, x = learner.init(0), torch.rand(5, *SHAPE)
    assert set(theta.running) == {"1.mean", "1.var"}
    whole = Theta(theta.params, theta.running | {"4.mean": torch.zeros(4), "4.var": torch.ones(4)})
    torch.testing.assert_close(learner.features(whole, x), net.eval()(x))
    assert kind(Animal("plain"), normalisation=normalisation).build(SPEC, EPISODE).init(0).running is None
    assert kind(Built(lambda: copy.deepcopy(net)), normalisation="group").build(SPEC, EPISODE).init(0).running is None


@pytest.mark.parametrize("normalisation", ["batch", "support", "running", "group"])
def test_a_frozen_layer_keeps_the_running_average_it_came_with(normalisation: str) -> None:
    net = ZOO["pretrained and frozen"]()
    x = torch.rand(1, 5, *SHAPE)
    learner = MAML(Built(lambda: copy.deepcopy(net)), normalisation=normalisation).build(SPEC, EPISODE)
    theta = learner.init(0)
    wide = {n: p[None] for n, p in theta.params.items()}
    for found in (learner.features(theta, x[0]), learner.built.network.per_task(wide, x)[0][0]):
        torch.testing.assert_close(found, net.eval()(x[0]))
    assert theta.running is None


@pytest.mark.parametrize("adapts", [["0.weight"], ["head.bias"], ["0.weight", "head.bias"]])
def test_a_shared_head_has_to_be_adapted(adapts: list[str]) -> None:
    """Else all classes have the same row, and every gradient but that of their biases is zero."""
    with pytest.raises(UserError, match=r"metalearner.adapts: .*head: shared.* add head.weight"):
        MAML(Animal("plain"), adapts=adapts).build(SPEC, EPISODE)
    for head in ("fixed", "prototypes"):
        MAML(Animal("plain"), adapts=adapts, head=head).build(SPEC, EPISODE)
    MAML(Animal("plain"), adapts=[*adapts, "head.weight"]).build(SPEC, EPISODE)
    MAML(Animal("plain"), adapts=adapts).build(TaskSpec(SHAPE, "regression", 1), EPISODE)  # no classes to tell apart
    with pytest.raises(UserError, match=r"metalearner.adapts: the model says that '0.weight' needs no gradient"):
        MAML(Animal("half frozen"), adapts=["0.weight", "head.weight"]).build(SPEC, EPISODE)


class Remembering(nn.Module):
    """Keeps what it saw, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.calls, self.last = nn.Sequential(nn.Flatten(), nn.Linear(72, 3), nn.Softsign()), 1, None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.body(x) * self.calls
        self.calls += 1
        return self.last


def test_what_a_forward_keeps_is_of_one_call() -> None:
    model = Built(Remembering)
    learner = MAML(model).build(SPEC, EPISODE)
    params = {n: p.expand(2, *p.shape) for n, p in learner.built.network.params().items()}
    x = torch.rand(2, 3, *SHAPE)
    network = copy.deepcopy(learner).built.network
    for _ in range(2):
        expected = torch.stack([network.module.body(items) for items in x])
        torch.testing.assert_close(network.per_task(params, x)[0], expected)
    assert network.module.last is None


def test_there_has_to_be_something_to_learn() -> None:
    tasks = toy_tasks()
    config = TrainConfig(Adam(), steps=1, way=2, shot=1, query=1, meta_batch=1)
    fixed = Built(lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 3)).requires_grad_(False))
    for model in (fixed, Built(nn.Flatten)):
        with pytest.raises(UserError, match=r"metalearner.model: it has no parameter that meta-training may move"):
            metatrain(ProtoNet(model).build(tasks.spec, config.episode), tasks, config)
        metatrain(MAML(model).build(tasks.spec, config.episode), tasks, config)  # its head


def test_the_librarys_own_networks_are_not_compared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in MODULES of test_kernels.py; a subclass elsewhere is anybody's."""
    from umeta.models.conv4 import Conv4

    class Mine(Conv4):
        pass

    tried = []
    monkeypatch.setattr(check.Trial, "compare", lambda self, program: tried.append(program) or "")
    MAML(Conv4(2)).build(TaskSpec((1, 16, 16)), EPISODE)
    assert not tried
    MAML(Mine(2)).build(TaskSpec((1, 16, 16)), EPISODE)
    assert tried


@pytest.mark.parametrize(
    ("layers", "side", "looked_at"),
    [
        (lambda: [nn.Conv2d(1, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()], 64, 64),  # 1 million operations
        (lambda: [nn.Conv2d(1, 256, 7, padding=3), nn.AdaptiveAvgPool2d(1), nn.Flatten()], 256, 64),  # 1,600 million
        (lambda: [nn.Conv2d(1, 256, 7, padding=3), nn.AvgPool2d(64), nn.Flatten()], 256, 256),  # of one size alone
    ],
)
def test_a_large_network_is_looked_at_on_smaller_images_where_it_takes_them(layers, side, looked_at, monkeypatch):
    seen = []
    run = check.Trial.__init__
    monkeypatch.setattr(
        check.Trial, "__init__", lambda self, network, shape: seen.append(shape) or run(self, network, (1, 64, 64))
    )
    network = Pure(nn.Sequential(*layers()), "group")
    with torch.random.fork_rng():
        choose_program(network, (1, side, side))
    assert seen == [(1, looked_at, looked_at)]


def test_a_network_before_a_memory_may_be_of_any_kind() -> None:
    model = Built(lambda: Net(lambda m, x: m.rnn(x[:, None])[0][:, 0], rnn=nn.LSTM(6, 5, batch_first=True)))
    learner = RL2(model).build(TaskSpec((2,), "policy", 2, 2), EpisodeSpec(1, 1, 1))
    assert learner.built.features == 5
