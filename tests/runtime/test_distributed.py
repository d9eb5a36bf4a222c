"""Two processes give what one gives; and what the death of one leaves behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from helpers.toys import Corners
from torch import nn

from embeddings.acai import ACAI, mirrored
from embeddings.simclr import SimCLR
from proposers.diayn import Diayn
from proposers.diayn_metra import DiaynMetra
from proposers.metra import Metra
from umeta.cli.chain import run_stages
from umeta.config.build import build
from umeta.config.images import TrainConfig
from umeta.envs.nav2d import Nav2D
from umeta.errors import UserError
from umeta.evaluation.images import evaluate
from umeta.metalearners.anil import ANIL
from umeta.metalearners.maml import MAML
from umeta.metalearners.protonet import ProtoNet
from umeta.metalearners.reptile import Reptile
from umeta.metalearners.rl2 import RL2
from umeta.models.conv4 import Conv4
from umeta.models.mlp import MLP
from umeta.outer.adam import Adam
from umeta.parts import Problem, Proposer, Simulation
from umeta.rl.sac import SAC
from umeta.runtime import artifacts, distributed
from umeta.runtime.checkpoints import Checkpoints
from umeta.runtime.lock import hold_folder
from umeta.runtime.loop import RunContext
from umeta.stages.propose import propose
from umeta.tasks.clustering import kmeans
from umeta.tasks.reward import RewardTasks
from umeta.testing import toy_images, toy_tasks
from umeta.train import BatchProblem, metatrain, roll_out
from umeta.types import Batch, EpisodeSpec, PolicyLearner, RecurrentLearner, Theta

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch knows one process only")
EPISODE = EpisodeSpec(way=3, shot=1, query=2)
TASKS = toy_tasks()


def entered(rank: int, port: int, size: int, work: Callable[[], Any], place: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # the store is another process's, as under torchrun
    with distributed.join_processes("cpu"):
        torch.save(work(), place / f"{rank}.pt")


def in_processes(work: Callable[[], Any], place: Path, size: int = 2) -> list[Any]:
    """What the work gives in each of several processes at once; None for one that dies of a signal."""
    start = mp.get_context("forkserver")
    start.set_forkserver_preload(["test_distributed"])
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [start.Process(target=entered, args=(rank, store.port, size, work, place)) for rank in range(size)]
    end = time.monotonic() + 540
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(max(0, end - time.monotonic()))
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert None not in codes, "a process hangs"
    assert all(code in (0, -signal.SIGKILL) for code in codes)
    return [torch.load(place / f"{r}.pt", weights_only=False) if code == 0 else None for r, code in enumerate(codes)]


TWO = ("--nproc-per-node=2", "--standalone")  # processes on one machine
LEARNERS = {
    "maml": lambda: MAML(Conv4(filters=4), steps=2),
    "anil": lambda: ANIL(Conv4(filters=4), steps=2),
    "protonet": lambda: ProtoNet(Conv4(filters=4)),
    "reptile": lambda: Reptile(Conv4(filters=4), steps=2),
}


def meta_gradients() -> dict[str, Any]:
    """Of each learner, in float64, of five tasks in chunks of two."""
    found = {}
    for name, make in LEARNERS.items():
        learner = make().build(TASKS.spec, EPISODE)
        drawn = learner.init(0)
        theta = Theta({key: value.double().requires_grad_() for key, value in drawn.params.items()})
        mine = distributed.shard(np.arange(5))
        batch = TASKS.sample(mine, episode=EPISODE, seed=0)
        support, query = (part.map_tensors(doubled) for part in (batch.support(), batch.query()))
        problem = BatchProblem(learner, theta, TASKS.spec, [support], query, 2, len(mine) / 5)
        found[name] = (mine.tolist(), *problem.loss_and_grad(), problem.stats)
    return found


def doubled(value: torch.Tensor) -> torch.Tensor:
    return value.double() if value.is_floating_point() else value


POLICIES: dict[str, Callable[[], PolicyLearner]] = {
    "maml": lambda: MAML(MLP([4])),
    "rl2": lambda: RL2(MLP([4]), hidden=4),
}


def policy_problem(name: str) -> BatchProblem:
    """A learner's meta-loss in float64, on this process's part of the episodes of five tasks, in chunks of two."""
    learner, tasks, episode = POLICIES[name](), RewardTasks(Nav2D(horizon=4), Corners()), EpisodeSpec(1, 3, 3)
    learner = learner.build(tasks.spec, episode)
    drawn = learner.init(0)
    supports, query = roll_out(learner, drawn, tasks.sample(np.arange(5), episode=episode, seed=0), 5, rounds=2)
    if isinstance(learner, RecurrentLearner):
        supports, query = [], learner.trial([*supports, query])
    mine = distributed.shard(range(5))
    theta = Theta({key: value.double().requires_grad_() for key, value in drawn.params.items()})

    def part(batch: Batch) -> Batch:
        return batch.chunk(mine[0], mine[-1] + 1).map_tensors(doubled)

    return BatchProblem(learner, theta, tasks.spec, [part(b) for b in supports], part(query), 2, len(mine) / 5)


def policies() -> dict[str, Any]:
    """Of each learner what TRPO and PPO ask for: the loss, its clipped gradient, a product with the Fisher information,
    and the loss and the divergence after a step."""
    found = {}
    for name in POLICIES:
        at = policy_problem(name)
        metrics, gradient = at.loss_and_grad(clip=0.2)
        before = at.loss_and_kl()
        product = at.fisher_vector(gradient)
        with torch.no_grad():
            for key, value in at.theta.params.items():
                value -= 0.1 * gradient[key]
        found[name] = (metrics, gradient, product, {"before": before, "after": at.loss_and_kl()})
    return found


def evaluated() -> np.ndarray:
    learner = LEARNERS["protonet"]()
    learner = learner.build(TASKS.spec, EPISODE)
    theta = learner.init(0)
    return evaluate(learner, theta, TASKS, EPISODE, count=21)


def vectors() -> np.ndarray:
    """Five blobs far apart, one of which is a single point forty times."""
    draw = np.random.default_rng(0)
    corners = 10 * np.eye(4)[draw.integers(0, 4, 200)] + 0.1 * draw.standard_normal((200, 4))
    return np.concatenate([corners, np.zeros((40, 4))]).astype(np.float32)


def embedded() -> torch.Tensor:
    images, embedder = toy_images(), ACAI(dimensions=16, depth=2, steps=2, batch=7)
    embedder.fit(images, RunContext(seed=0))
    return embedder.embed(images)


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.double()


class Precise(SimCLR):
    """In float64; one normalisation averages over all steps, one is partly fixed."""

    def networks(self, item_shape: tuple[int, ...]) -> nn.Sequential:
        encoder, head = super().networks(item_shape)
        norms = [layer for layer in encoder.modules() if isinstance(layer, nn.BatchNorm2d)]
        norms[0].momentum = None
        norms[1].bias.requires_grad_(False)
        return nn.Sequential(nn.Sequential(Doubled(), encoder), head).double()


def fit_simclr() -> dict[str, torch.Tensor]:
    """What SimCLR learns of batches that two processes cannot halve."""
    embedder = Precise(Conv4(filters=4, halvings=3), steps=2, batch=7, lr=0.01)
    embedder.fit(toy_images(), RunContext(seed=0))
    return embedder.state_dict()


def run_rounds(out: Path) -> Any:
    """All stages of two rounds, with a model of which a part is fitted when meta-training is over."""
    model = {"name": "described", "model": {"name": "conv4", "filters": 4}}
    plain = {
        "data": {"name": "digits"},
        "proposer": {"name": "instances"},
        "metalearner": {"name": "protonet", "distance": "cosine", "model": model},
        "train": {"outer": {"name": "adam"}, "steps": 2, "way": 5, "shot": 1, "query": 1, "meta_batch": 3},
        "rounds": [{"proposer": {"name": "progressive", "neighbours": [8], "similarity": 0.2, "k": [20]}}],
        "evaluate": {"episodes": [[3, 1]], "query": 2, "tasks": 20, "baselines": []},
        "name": "tiny",
        "out": str(out),
    }
    return run_stages(build(plain), Namespace(device="cpu", resume=False))


@dataclass(frozen=True)
class Counted(Nav2D):
    """Tells how many copies are simulated."""

    copies: ClassVar[list[int]] = []

    def simulate(self, n: int) -> Simulation:
        self.copies.append(n)
        return super().simulate(n)


SKILLED: dict[str, Proposer] = {
    "ppo": Diayn(skills=3, iterations=3, episodes=2, hidden=8),
    "sac": Diayn(skills=3, iterations=3, episodes=2, hidden=8, algorithm=SAC(updates=3, batch=6, replay=40)),
    "both": DiaynMetra(skills=3, movers=2, iterations=3, episodes=2, hidden=8),
    "metra": Metra(skills=4, iterations=3, episodes=5, hidden=8, map_steps=2),
}


def discover_skills(name: str) -> tuple[dict[str, torch.Tensor], int]:
    """The rewards and policies of skills, and how many copies of the environment this process simulated for them."""
    tasks = SKILLED[name].propose(Counted(horizon=6), RunContext())
    learnt = tasks.rewards if isinstance(tasks.rewards, torch.nn.Module) else tasks.rewards.discriminator
    return {**learnt.state_dict(), **tasks.skills}, Counted.copies[-1]


def propose_skills(out: Path) -> Path:
    plain = {
        "env": {"name": "nav2d", "horizon": 6},
        "proposer": {"name": "diayn", "skills": 3, "iterations": 3, "episodes": 2, "hidden": 8},
        "metalearner": {"name": "maml", "model": {"name": "mlp", "hidden": [8]}},
        "train": {"outer": {"name": "adam"}},
        "evaluate": {"benchmark": "nav2d"},
        "name": "skills",
        "out": str(out),
    }
    return propose(build(plain), device="cpu")


def fail_in_second() -> None:
    if distributed.rank() == 1:
        raise UserError("the second alone")


def complaint(work: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as raised:
        work()
    return str(raised.value)


def locked(folder: Path) -> str:
    try:
        with distributed.hold_together(hold_folder(folder)):
            return "mine"
    except UserError as error:
        return str(error)


def parts(place: Path) -> dict[str, Any]:
    """Everything that needs two processes and little time, so that they are started once."""
    return {
        "rank": (distributed.rank(), distributed.size(), distributed.is_first()),
        "shard": distributed.shard(range(5)),
        "gathered": distributed.gather([f"{distributed.rank()}{i}" for i in range(distributed.rank())]),
        "totals": distributed.sum_numbers({"a": 1 + distributed.rank(), "b": 0.1}),
        "agreed": (distributed.any_process(distributed.rank() == 1), distributed.any_process(False)),
        "once": distributed.run_once(lambda: (distributed.size(), os.getpid())),
        "each": distributed.run_each(distributed.rank),
        "failed": complaint(lambda: distributed.run_each(fail_in_second)),
        "locks": (locked(place / "free"), locked(place / "taken")),
        "gradients": meta_gradients(),
        "policies": policies(),
        "evaluated": evaluated(),
        "clusters": kmeans(vectors(), 5, 10, 3),
        "few": kmeans(vectors()[-60:], 50, 10, 3),  # most of the vectors are one and the same
        "embedded": embedded(),
        "fit_simclr": fit_simclr(),
        "rounds": run_rounds(place),
        "skills": {name: discover_skills(name) for name in SKILLED},
        "proposed": propose_skills(place),
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    place = tmp_path_factory.mktemp("two")
    with hold_folder(place / "taken"):
        return in_processes(partial(parts, place), place)


def test_alone_everything_is_the_identity() -> None:
    assert (distributed.rank(), distributed.size(), distributed.is_first()) == (0, 1, True)
    assert distributed.shard(range(5)) == range(5)
    assert distributed.gather([1, 2]) == [1, 2]
    assert distributed.sum_numbers({"a": 0.1}) == {"a": 0.1}
    assert (distributed.any_process(True), distributed.any_process(False)) == (True, False)
    assert distributed.run_once(lambda: 3) == 3


def test_processes_share_out_and_put_together(two: list[dict[str, Any]]) -> None:
    assert [found["rank"] for found in two] == [(0, 2, True), (1, 2, False)]
    assert [list(found["shard"]) for found in two] == [[0, 1], [2, 3, 4]]
    for found in two:
        assert found["gathered"] == ["10"]
        assert found["totals"] == {"a": 3, "b": 0.2}
        assert found["agreed"] == (True, False)
        assert found["once"] == two[0]["once"]
        assert found["each"] == [0, 1]
        assert found["failed"] == "the second alone"  # nobody waits for one that has given up
    assert two[0]["once"][0] == 1  # as if it were the only one


def test_one_lock_is_for_all_processes(two: list[dict[str, Any]]) -> None:
    for found in two:
        free, taken = found["locks"]
        assert free == "mine"
        assert f"process {os.getpid()} on" in taken


@pytest.mark.parametrize("name", list(LEARNERS))
def test_the_meta_gradient_is_that_of_one_process(name: str, two: list[dict[str, Any]]) -> None:
    _, metrics, gradient, stats = meta_gradients()[name]
    assert sorted(task for found in two for task in found["gradients"][name][0]) == list(range(5))
    for found in two:
        _, others, other, other_stats = found["gradients"][name]
        assert others == pytest.approx(metrics, rel=1e-12)
        for key, value in {**gradient, **stats}.items():
            torch.testing.assert_close({**other, **other_stats}[key], value, rtol=1e-10, atol=1e-10)
    first, second = (found["gradients"][name][2] for found in two)
    assert all(torch.equal(first[key], second[key]) for key in first)  # or the processes would drift apart
    assert any(value.abs().max() > 1e-3 for value in gradient.values())


@pytest.mark.parametrize("name", list(POLICIES))
def test_what_outer_loops_on_policies_ask_for_is_that_of_one_process(name: str, two: list[dict[str, Any]]) -> None:
    metrics, *vectors, losses = policies()[name]
    assert losses["after"][1] > 1e-6
    for found in two:
        other, *others, other_losses = found["policies"][name]
        assert other == pytest.approx(metrics, rel=1e-9)
        for moment, values in losses.items():
            assert other_losses[moment] == pytest.approx(values, rel=1e-6, abs=1e-12)
        for mine, theirs in zip(vectors, others, strict=True):
            assert any(value.abs().max() > 1e-6 for value in mine.values())
            for key, value in mine.items():
                torch.testing.assert_close(theirs[key], value, rtol=1e-6, atol=1e-10)


def test_evaluation_gives_the_same_accuracies_in_the_same_order(two: list[dict[str, Any]]) -> None:
    alone = evaluated()
    assert len(set(alone.tolist())) > 2
    for found in two:
        assert np.array_equal(found["evaluated"], alone)


def test_k_means_is_that_of_one_process(two: list[dict[str, Any]]) -> None:
    labels, distances = kmeans(vectors(), 5, 10, 3)
    assert len(set(labels.tolist())) == 5
    for found in two:
        assert np.array_equal(found["clusters"][0], labels)
        np.testing.assert_allclose(found["clusters"][1], distances, rtol=1e-3, atol=1e-4)
        assert np.array_equal(found["few"][0], two[0]["few"][0])
        np.testing.assert_allclose(found["few"][1], 0, atol=1e-3)  # with a mean for each vector that is another


def test_an_embedding_is_that_of_one_process(two: list[dict[str, Any]]) -> None:
    alone = embedded()
    for found in two:
        torch.testing.assert_close(found["embedded"], alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(two[0]["embedded"], two[1]["embedded"])


def test_contrastive_learning_is_that_of_one_process(two: list[dict[str, Any]]) -> None:
    """Batch normalisation and the loss look across the images of all processes."""
    alone = fit_simclr()
    assert {"running_mean", "running_var", "weight"} <= {name.rpartition(".")[2] for name in alone}
    for found in two:
        for name, value in alone.items():
            torch.testing.assert_close(found["fit_simclr"][name], value, rtol=1e-10, atol=1e-10)


def assert_trained_alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """On the mean: of the few weights whose gradient is hardly more than rounding, Adam moves each as far as any."""
    for name, value in one.items():
        assert (other[name] - value).abs().mean() < 1e-3 * value.abs().mean() + 2e-5, name


def test_rounds_are_those_of_one_process(two: list[dict[str, Any]], tmp_path: Path) -> None:
    runs = [Path(found["folder"]).parent for found in (run_rounds(tmp_path), *(found["rounds"] for found in two))]
    assert runs[1] == runs[2]
    first, other = (artifacts.read_tensors(folder / "tiny-0" / "model.safetensors") for folder in runs[:2])
    assert_trained_alike(first, other)
    alone, together = (np.load(next(folder.parent.glob("tasks/tiny/partitions*.npy"))) for folder in runs[:2])
    assert len(alone) == len(together) == 2
    assert (alone[0] >= 0).mean() > 0.1
    assert (alone[0] == together[0]).mean() > 0.98  # an item near the bound may fall to either side
    assert two[0]["rounds"]["rows"] == two[1]["rounds"]["rows"]


@pytest.mark.parametrize("name", list(SKILLED))
def test_skills_are_those_of_one_process_from_half_of_its_simulation(name: str, two: list[dict[str, Any]]) -> None:
    learnt, copies = discover_skills(name)
    assert sum(found["skills"][name][1] for found in two) == copies
    for found in two:
        assert 0 < found["skills"][name][1] < copies
        for key, value in learnt.items():
            assert torch.equal(found["skills"][name][0][key], value)


def test_the_stage_proposes_the_skills_of_one_process(two: list[dict[str, Any]], tmp_path: Path) -> None:
    alone = propose_skills(tmp_path)
    for name in ("discriminator.safetensors", "skills.safetensors", "preview.png", "diayn.jsonl"):
        assert (two[0]["proposed"] / name).read_bytes() == (alone / name).read_bytes()


def test_fewer_skills_than_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 6)
    for name, option in (("ppo", "proposer.skills: 3"), ("metra", "proposer.episodes: 5")):
        with pytest.raises(UserError, match=f"{option} are too few for 6 processes; start . at most"):
            SKILLED[name].propose(Nav2D(), RunContext())


def test_fewer_images_a_step_than_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 3)
    for embedder, least in ((ACAI(dimensions=16, batch=5), "two"), (SimCLR(Conv4(filters=4), batch=2), "one")):
        with pytest.raises(UserError, match=f"images per step are too few for 3 processes, which need {least} each"):
            embedder.fit(toy_images(), RunContext())


@pytest.mark.parametrize("batch", [4, 7, 8])
def test_mirrored_places_are_shared_out_and_keep_their_mirror_images(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "size", lambda: 2)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        mine = mirrored(batch)
        assert np.array_equal(mine[::-1], batch - 1 - mine)
        found += mine.tolist()
    assert sorted(found) == list(range(batch))


@dataclass
class Even(Adam):
    """Adam that makes no large step of a gradient of rounding errors: ProtoNet's last shift has no other."""

    def start(self, params: dict[str, torch.Tensor]) -> None:
        super().start(params)
        self._optimiser.param_groups[0]["eps"] = 1e-2


@dataclass
class Dying(Even):
    """The second process dies after the gradient of step 4."""

    def step(self, problem: Problem, progress: float) -> dict[str, float]:
        found = problem.loss_and_grad()
        if progress > 0.6 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.move(*found, progress)


def trained(outer: Adam, folder: Path | None = None, resume: bool = False) -> Theta | str:
    """With the message in its place where it ends with one."""
    config = TrainConfig(outer, steps=6, way=3, shot=1, query=2, meta_batch=3)
    try:
        return metatrain(
            LEARNERS["protonet"]().build(TASKS.spec, config.episode),
            TASKS,
            config,
            RunContext(1, folder=folder, resume=resume),
        )
    except UserError as error:
        return str(error)


def test_after_a_death_there_is_a_message_and_a_checkpoint_from_which_one_or_two_go_on(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    message, dead = in_processes(partial(trained, Dying(), tmp_path / "run"), tmp_path)
    assert dead is None
    assert isinstance(message, str)
    assert message.startswith("metatrain: at step 4 of 6, another process of this run has ended")
    assert "--resume" in message
    assert Checkpoints(tmp_path / "run", "metatrain").steps() == [4]
    whole = trained(Even())
    two = in_processes(partial(trained, Even(), tmp_path / "run", True), tmp_path)
    state, step, _ = Checkpoints(tmp_path / "run", "metatrain").read(4)  # the last two are kept
    assert step == 4
    Checkpoints(tmp_path / "alone", "metatrain").write(state, step, 0)
    one = trained(Even(), tmp_path / "alone", True)
    for theta in (*two, one):
        for name, value in whole.params.items():
            torch.testing.assert_close(theta.params[name], value, rtol=1e-3, atol=1e-5)
        for name, value in whole.running.items():
            torch.testing.assert_close(theta.running[name], value, rtol=1e-3, atol=1e-4)


def test_fewer_tasks_than_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 4)
    assert trained(Adam()) == (
        "train.meta_batch: 3 tasks are too few for 4 processes; start 3 at most, or set train.meta_batch=4 or more"
    )


def torchrun(*words: str, how: Sequence[str] = TWO, **env: str) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, "-m", "torch.distributed.run", *how, "-m", "umeta"]
    here = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **env}
    with subprocess.Popen([*run, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=here) as done:
        try:
            out, err = done.communicate(timeout=540)
        except BaseException:
            done.terminate()  # torchrun then ends the processes it started
            raise
    return subprocess.CompletedProcess(words, done.returncode, out, err)


@pytest.mark.slow
def test_the_command_line_under_torchrun_gives_the_table_of_one_process(tmp_path: Path) -> None:
    words = [
        "run",
        "digits_acai_kmeans_protonet",
        "embedding.steps=3",
        "proposer.partitions=2",
        "proposer.k=20",
        "train.steps=3",
        "train.meta_batch=3",
        "evaluate.tasks=20",
        "evaluate.scratch_steps=2",
        "--device=cpu",
    ]
    two = torchrun(*words, f"out={tmp_path / 'two'}", UMETA_CACHE=str(tmp_path / "cache"))
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("\nraw pixels, 1-NN") == 1  # one of them speaks
    env = {**os.environ, "OMP_NUM_THREADS": "1", "UMETA_CACHE": str(tmp_path / "other")}
    alone = [sys.executable, "-m", "umeta", *words, f"out={tmp_path / 'one'}"]
    one = subprocess.run(alone, capture_output=True, text=True, env=env, check=True)
    baselines = "chance", "raw pixels", "HOG"
    rows = [[line for line in done.stdout.splitlines() if line.startswith(baselines)] for done in (one, two)]
    assert len(rows[0]) >= 2
    assert rows[0] == rows[1]
    assert (tmp_path / "two" / "runs" / "digits_acai_kmeans_protonet" / "report.html").exists()


@pytest.mark.slow
def test_two_machines_give_what_one_process_gives(tmp_path: Path) -> None:
    """They share the output folder alone. In each the process is the first of its machine, LOCAL_RANK 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    small = ["digits_acai_kmeans_protonet", "train.steps=3", "train.meta_batch=3", "metalearner.distance=cosine"]
    small += ["--device=cpu", f"out={tmp_path}"]
    propose = ["embedding.steps=2", "proposer.partitions=2", "proposer.k=20", "evaluate.tasks=20"]

    def start(node: int) -> subprocess.CompletedProcess[str]:
        place = ["--nnodes=2", f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}"]
        words = ["run", *small, *propose, "evaluate.scratch_steps=2", "name=two"]
        how = [*place, "--nproc-per-node=1"]
        return torchrun(*words, how=how, UMETA_CACHE=str(tmp_path / f"cache{node}"))

    with ThreadPoolExecutor(2) as pool:
        nodes = list(pool.map(start, range(2)))
    assert [done.returncode for done in nodes] == [0, 0], nodes[0].stderr + nodes[1].stderr
    assert [done.stdout.count("\nraw pixels, 1-NN") for done in nodes] == [1, 0]  # one of them speaks
    assert (tmp_path / "runs" / "two" / "report.html").exists()
    alone = [sys.executable, "-m", "umeta", "metatrain", *small, "tasks=tasks/two", "name=one"]
    subprocess.run(alone, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    one, two = (artifacts.read_tensors(tmp_path / "runs" / name / "model.safetensors") for name in ("one", "two"))
    assert_trained_alike(one, two)


@pytest.mark.slow
def test_mistakes_are_told_once(tmp_path: Path) -> None:
    done = torchrun("metatrain", "digits_acai_kmeans_protonet", f"out={tmp_path}", "train.steps=no")
    assert done.returncode != 0
    assert done.stderr.count("umeta: ") == 1
    assert "Traceback" not in done.stderr.partition("torch")[0]
