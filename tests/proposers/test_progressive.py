"""Rounds of proposing and meta-training: clusters of a learner's features, weights taken over, and a record of it."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from embeddings.learner import Learner
from proposers import progressive
from proposers.progressive import Progressive
from umeta.cli.main import main
from umeta.config import build, reading
from umeta.config.images import Config, TrainConfig
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.metalearners.maml import MAML
from umeta.metalearners.protonet import ProtoNet
from umeta.models.conv4 import Conv4
from umeta.models.functional import MOMENTUM
from umeta.outer.adam import Adam
from umeta.runtime import artifacts
from umeta.runtime.loop import RunContext
from umeta.stages import domains, runs
from umeta.stages.tasks import load_tasks
from umeta.tasks import store
from umeta.tasks.rotated import Rotated
from umeta.testing import check_embedder, check_tasks, same, sampled, toy_images, toy_tasks
from umeta.train import metatrain
from umeta.types import EpisodeSpec, Theta

IMAGES = toy_images()
EPISODE = EpisodeSpec(2, 1, 2)
TRUE = np.arange(48) % 4  # four blobs of eleven, and four items on their own
ALONE = slice(44, 48)


class Blobs:
    def embed(self, images: UnlabelledImages) -> torch.Tensor:
        z = 5 * np.eye(4)[TRUE] + np.random.default_rng(0).normal(0, 0.05, (48, 4))
        z[ALONE] = [[9, -9, 0, 0], [0, 9, -9, 0], [0, 0, 9, -9], [-9, 0, 0, 9]]
        return torch.from_numpy(z).float()


# the proposer


def test_clusters_are_mixed_with_single_images_and_outliers_left_to_those() -> None:
    tasks = Progressive(neighbours=[10], similarity=0.5, k=[4], core=0.5, instances=0.25).propose(
        IMAGES, RunContext(), Blobs()
    )
    mixed = tasks.tasks
    assert mixed.weights == (0.75, 0.25)
    by_neighbours, by_means = mixed.parts[0].partitions
    assert (by_neighbours[ALONE] == -1).all()
    pairs = set(zip(by_neighbours[:44].tolist(), TRUE[:44].tolist(), strict=True))
    assert len(pairs) == len({cluster for cluster, _ in pairs} - {-1}) == 4
    _, sizes = np.unique(by_means[by_means >= 0], return_counts=True)
    assert len(sizes) == 4
    assert 24 <= sizes.sum() <= 26  # half of 48, each cluster's rounded up
    check_tasks(tasks, IMAGES, EPISODE)


def test_drawings_are_turned_when_asked_and_photographs_augmented_as_photographs() -> None:
    turned = Progressive(k=[4], rotations=True).propose(IMAGES, RunContext(), Blobs())
    assert isinstance(turned.tasks, Rotated)
    assert type(turned.augment).__name__ == "Drawing"
    colour = UnlabelledImages.of(np.repeat(IMAGES.pixels, 3, axis=1))
    assert type(Progressive(k=[4]).propose(colour, RunContext(), Blobs()).augment).__name__ == "Photo"


def test_an_interrupted_proposal_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proposer = Progressive(neighbours=[4, 10], k=[4, 6])
    whole = proposer.propose(IMAGES, RunContext(5), Blobs())
    asked: list[int] = []
    original = progressive.kmeans

    def failing(z: np.ndarray, k: int, *rest: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append(k)
        if asked == [4, 6]:
            raise RuntimeError("the power went")
        return original(z, k, *rest)

    monkeypatch.setattr(progressive, "kmeans", failing)
    with pytest.raises(RuntimeError):
        proposer.propose(IMAGES, RunContext(5, folder=tmp_path, checkpoint_seconds=0), Blobs())
    again = proposer.propose(IMAGES, RunContext(5, folder=tmp_path, resume=True), Blobs())
    assert asked == [4, 6, 6]
    assert np.array_equal(whole.tasks.parts[0].partitions, again.tasks.parts[0].partitions)
    lines = [json.loads(line) for line in (tmp_path / "progressive.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]


@pytest.mark.parametrize("rotations", [False, True])
def test_what_is_saved_gives_the_same_tasks(rotations: bool, tmp_path: Path) -> None:
    tasks = Progressive(k=[4], rotations=rotations).propose(IMAGES, RunContext(), Blobs())
    description = store.save_tasks(tasks, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(store.list_files(description))
    again = store.load_saved(json.loads(json.dumps(description)), tmp_path, IMAGES)
    assert same(sampled(tasks, np.arange(16), EPISODE, 3), sampled(again, np.arange(16), EPISODE, 3))
    assert again.describe(EPISODE) == tasks.describe(EPISODE)


class NotNumbers(Blobs):
    def embed(self, images: UnlabelledImages) -> torch.Tensor:
        return super().embed(images).fill_(float("inf"))


@pytest.mark.parametrize(
    ("embedder", "message"),
    [
        (None, "needs an embedding to cluster; use it in rounds"),
        (Blobs(), "49 clusters need at least as many images, there are 48"),
        (NotNumbers(), "not numbers"),
    ],
)
def test_bad_input_is_named(embedder: object, message: str) -> None:
    proposer = Progressive(k=[49]) if "49" in message else Progressive()
    with pytest.raises(UserError, match=message):
        proposer.propose(IMAGES, RunContext(), embedder)


def test_nothing_to_cluster_by_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one number in neighbours or k"):
        Progressive(neighbours=[])


def test_too_few_clusters_are_named_before_anything_is_trained_on_them() -> None:
    tasks = Progressive(neighbours=[10], similarity=0.5).propose(IMAGES, RunContext(), Blobs())
    with pytest.raises(UserError, match="5-way tasks with 3 items a class"):
        tasks.sample(np.arange(32), episode=EpisodeSpec(5, 1, 2), seed=0)


# turned classes


def test_turned_tasks_are_the_tasks_but_for_their_turns() -> None:
    plain, turned = toy_tasks(IMAGES), Rotated(toy_tasks(IMAGES))
    drawn = turned.sample(np.arange(200), episode=EPISODE, seed=1)
    before = plain.sample(np.arange(200), episode=EPISODE, seed=1)
    for role in ("support", "query"):
        one, other = getattr(before, role)(), getattr(drawn, role)()
        assert torch.equal(one.y, other.y)
        for t in range(20):
            for x, z, y in zip(one.x[t], other.x[t], one.y[t], strict=True):
                assert np.array_equal(np.rot90(x, drawn.turns[t, y], (1, 2)), z)
    counts = torch.bincount(drawn.turns.flatten(), minlength=4)
    assert counts.min() > 60  # 100 each
    assert turned.describe(EPISODE)[:-1] == plain.describe(EPISODE)


# the learner as an embedding


def learner_of(folder: Path | str) -> Learner:
    """The embedding, with its run in hand."""
    embedder = Learner(str(folder))
    runs.hand_over(embedder, "cpu")
    return embedder


def test_the_embedding_is_the_runs_features_and_keeps_the_contract(finished: Path) -> None:
    embedder = learner_of(finished / "runs/tiny-0")
    check_embedder(embedder, IMAGES)
    embedder.fit(IMAGES, RunContext())
    run = runs.load_run(embedder.run, device="cpu")
    net = Conv4(filters=4).build(run.item_shape)
    running = {name.replace(".", ".running_"): value for name, value in run.theta.running.items()}
    net.load_state_dict({**run.theta.params, **running}, strict=False)
    expected = net.eval()(IMAGES.floats(slice(None))).detach()
    torch.testing.assert_close(embedder.embed(IMAGES), expected, atol=1e-5, rtol=1e-4)


def test_other_images_and_a_missing_run_are_named(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"takes images \(1, 16, 16\), these are \(1, 24, 24\)"):
        learner_of(finished / "runs/tiny").fit(toy_images(side=24), RunContext())
    with pytest.raises(UserError, match="nowhere: no such run"):
        learner_of(tmp_path / "nowhere")


def test_another_learner_in_the_runs_place_is_noticed(place: Path) -> None:
    """Whether it is alike but for its weights, or has other parameters."""
    embedder = learner_of("runs/tiny-0")
    embedder.fit(IMAGES, RunContext())
    state = embedder.state_dict()
    learner_of("runs/tiny-0").load_state_dict(state)
    changes = ["metalearner.distance=cosine", "start=runs/tiny-0", "train.outer.lr=1e-12", "train.steps=1"]
    common = ["tiny.yaml", "rounds=[]", "tasks=tasks/tiny-0", "name=cosine", "--device", "cpu"]
    assert main(["metatrain", *common, *changes]) == 0
    for other in ("runs/tiny-1", "runs/cosine"):
        with pytest.raises(UserError, match="not the learner that this embedding was made with"):
            learner_of(other).load_state_dict(state)


# weights to start from

TRAIN = TrainConfig(Adam(lr=1e-12), steps=2, way=2, shot=1, query=2, meta_batch=2)
TASKS = toy_tasks(IMAGES)


def begun(learner: ProtoNet | MAML, seed: int) -> Theta:
    return learner.init(seed)


def test_meta_training_starts_from_the_weights_and_statistics_given() -> None:
    learner = ProtoNet(Conv4(filters=4)).build(TASKS.spec, TRAIN.episode)
    running = {f"{i}.{k}": torch.full((4,), 7.0) for i in (1, 5, 9, 13) for k in ("mean", "var")}
    start = Theta(begun(learner, 99).params, running)
    kept = {name: value.clone() for name, value in start.params.items()}
    theta = metatrain(learner, TASKS, TRAIN, RunContext(1), start)
    fresh = metatrain(learner, TASKS, TRAIN, RunContext(1))
    for name, value in kept.items():
        torch.testing.assert_close(theta.params[name], value)  # the step size is next to nothing
        assert torch.equal(start.params[name], value)
    assert not torch.allclose(theta.params["0.weight"], fresh.params["0.weight"], atol=1e-3)
    expected = torch.full((4,), 7.0)
    for step in range(2):
        support = TASKS.sample(np.arange(2 * step, 2 * step + 2), episode=TRAIN.episode, seed=1).support()
        z = [torch.nn.functional.conv2d(task, kept["0.weight"], padding=1) for task in support.x]
        expected += MOMENTUM * (torch.stack([task.mean((0, 2, 3)) for task in z]).mean(0) - expected)
    torch.testing.assert_close(theta.running["1.mean"], expected)
    assert running["1.mean"].tolist() == [7.0] * 4


def test_what_the_start_lacks_begins_at_random_and_is_told(capsys: pytest.CaptureFixture) -> None:
    learner = ProtoNet(Conv4(filters=4), distance="cosine").build(TASKS.spec, TRAIN.episode)
    other = ProtoNet(Conv4(filters=4)).build(TASKS.spec, TRAIN.episode)
    start = begun(other, 99)
    theta = metatrain(learner, TASKS, TRAIN, RunContext(1, progress=True), start)
    assert theta.params["scale"].item() == pytest.approx(10)
    torch.testing.assert_close(theta.params["0.weight"], start.params["0.weight"])
    assert "12 parameters taken over; at random: scale" in capsys.readouterr().err
    # what it has too much is passed over
    back = metatrain(other, TASKS, TRAIN, RunContext(1), theta)
    assert "scale" not in back.params


def test_a_start_that_does_not_fit_is_refused() -> None:
    learner, other = (ProtoNet(Conv4(filters=n)).build(TASKS.spec, TRAIN.episode) for n in (4, 8))
    with pytest.raises(UserError, match=r"parameter '0.weight' has shape \(8, 1, 3, 3\), the learner's has \(4, 1, 3"):
        metatrain(learner, TASKS, TRAIN, RunContext(), begun(other, 0))
    with pytest.raises(UserError, match="none of the learner's parameters"):
        metatrain(learner, TASKS, TRAIN, RunContext(), Theta({"other": torch.ones(1)}))


# states kept on the way


def counting(folder: Path, steps: int, snapshots: int, stop: int | None = None, resume: bool = False) -> None:
    done = torch.tensor(0)

    def step(i: int) -> dict[str, float]:
        if i == stop:
            raise RuntimeError("the power went")
        done.add_(1)
        return {"done": float(done)}

    context = RunContext(folder=folder, resume=resume, checkpoint_seconds=0)
    context.loop("count", steps, step, lambda: {"done": done}, lambda state: done.copy_(state["done"]), snapshots)


def snapshots(folder: Path) -> dict[int, int]:
    found = {}
    for path in (folder / "snapshots" / "count").iterdir():
        state = artifacts.read_tensors(path / "state.safetensors")
        meta = artifacts.read_json(path / "meta.json")
        assert path.name == f"step-{meta['step']}"
        assert meta["seconds"] >= 0
        found[meta["step"]] = state["done"].item()
    return dict(sorted(found.items()))


@pytest.mark.parametrize(
    ("steps", "count", "at"), [(10, 4, [3, 5, 8, 10]), (10, 1, [10]), (6, 3, [2, 4, 6]), (3, 9, [1, 2, 3])]
)
def test_snapshots_are_kept_at_even_steps(steps: int, count: int, at: list[int], tmp_path: Path) -> None:
    counting(tmp_path, steps, count)
    assert snapshots(tmp_path) == {step: step for step in at}
    assert len(list((tmp_path / "checkpoints" / "count").iterdir())) == 2


def test_snapshots_are_the_same_after_a_resume(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        counting(tmp_path, 10, 4, stop=6)
    assert snapshots(tmp_path) == {3: 3, 5: 5}
    counting(tmp_path, 10, 4, resume=True)
    assert snapshots(tmp_path) == {3: 3, 5: 5, 8: 8, 10: 10}


def test_no_snapshots_unless_asked_for(tmp_path: Path) -> None:
    counting(tmp_path, 10, 0)
    assert not (tmp_path / "snapshots").exists()


# rounds of a config

PLAIN = {
    "data": {"name": "folder", "root": "images", "splits": "splits", "size": 16, "channels": 1},
    "proposer": "instances",
    "metalearner": {"name": "protonet", "model": {"name": "conv4", "filters": 4}},
    "train": {"outer": {"name": "adam", "lr": 0.002}, "steps": 3, "way": 3, "shot": 1, "query": 2, "meta_batch": 2},
    "rounds": [
        {"proposer": {"name": "progressive", "neighbours": [8], "similarity": 0.2, "k": [6]}, "train": {"steps": 2}},
        {},
    ],
    "evaluate": {"episodes": [[3, 1]], "query": 2, "tasks": 4, "baselines": ["knn"]},
}


def of(**changes: object) -> Config:
    return build.build({**reading.expand_names({**PLAIN, "name": "tiny", **changes})})


def test_each_round_follows_on_the_one_before() -> None:
    changes = [{**PLAIN["rounds"][0], "metalearner": {"test_steps": 3}}, {"train": {"outer": {"schedule": "cosine"}}}]
    first, second, third = build.build_rounds(of(rounds=changes, out="place"))
    assert [turn.name for turn in (first, second, third)] == ["tiny-0", "tiny-1", "tiny"]
    assert (first.embedding, first.start) == (None, None)
    for turn, before in ((second, "place/runs/tiny-0"), (third, "place/runs/tiny-1")):
        assert turn.embedding == Learner(before)
        assert turn.start == before
        assert turn.proposer == Progressive(neighbours=[8], similarity=0.2, k=[6])
        assert turn.metalearner == ProtoNet(Conv4(filters=4), test_steps=3)
        assert turn.train.steps == 2
        assert not turn.rounds
    assert (first.train.steps, first.metalearner.test_steps) == (3, 0)
    assert [turn.train.outer for turn in (second, third)] == [Adam(lr=0.002), Adam(lr=0.002, schedule="cosine")]
    assert {turn.train.outer.lr for turn in (first, second, third)} == {0.002}


def test_a_config_without_rounds_is_its_only_round() -> None:
    (only,) = build.build_rounds(of(rounds=[]))
    assert replace(only, plain={}) == replace(of(rounds=[]), plain={})


def test_a_round_may_say_otherwise() -> None:
    _, second, third = build.build_rounds(
        of(rounds=[{"embedding": "pixels", "start": None}, {"proposer": "instances"}])
    )
    assert (type(second.embedding).__name__, second.start) == ("Pixels", None)
    assert third.embedding == Learner("runs/tiny-1")
    assert type(third.proposer).__name__ == "Instances"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([{}, {"seed": 3}], r"rounds\[1\]: unknown key 'seed', expected one of embedding, proposer"),
        ([{"proposer": {"kk": 3}}], "unknown option 'kk'"),
        ([{"train": {"steps": 0}}], "train.steps"),
        ([{"embedding": {"name": "learner", "ran": "x"}}], "'ran'; did you mean 'run'"),
    ],
)
def test_a_mistake_in_a_round_is_named(changes: list, says: str) -> None:
    with pytest.raises(UserError, match=says):
        build.build_rounds(of(rounds=changes))


# the command line


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory where a config of three rounds was run, and an oracle; nothing may change it."""
    place = tmp_path_factory.mktemp("rounds")
    for i, pixels in enumerate(IMAGES.pixels):
        (place / "images" / f"class{i % 4}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0]).save(place / "images" / f"class{i % 4}" / f"{i}.png")
    (place / "splits").mkdir()
    for split in ("train", "test"):
        (place / "splits" / f"{split}.txt").write_text("class0\nclass1\nclass2\nclass3\n")
    (place / "tiny.yaml").write_text(yaml.safe_dump(PLAIN))
    oracle = {**PLAIN, "proposer": "umeta.benchmarks.oracle:Oracle", "rounds": []}
    (place / "oracle.yaml").write_text(yaml.safe_dump(oracle))
    with contextlib.chdir(place), contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["run", "tiny.yaml", "--device", "cpu", "--json"]) == 0
        (place / "out.txt").write_text(out.getvalue())
        for command in ("propose", "metatrain"):
            assert main([command, "oracle.yaml", "--device", "cpu"]) == 0
    return place


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and the current directory."""
    shutil.copytree(finished, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture):
    """`refused("propose", "x.yaml", says="x.yaml")`: exit code 2 and one line that says it."""

    def check(*arguments: str, says: str) -> None:
        capsys.readouterr()
        assert main([*arguments, "--device", "cpu"]) == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("umeta: ")
        assert says in message, message

    return check


ROUNDS = ("tiny-0", "tiny-1", "tiny")


def result(place: Path) -> SimpleNamespace:
    return SimpleNamespace(**json.loads((place / "out.txt").read_text().splitlines()[-1])["results"][0])


def test_run_takes_the_rounds_in_turn_and_evaluates_the_last(finished: Path) -> None:
    for kind in ("tasks", "runs"):
        assert {path.name for path in (finished / kind).iterdir()} == {*ROUNDS, "oracle"}
    found = result(finished)
    assert (found.name, found.folder) == ("tiny", "runs/tiny")
    assert {"learner, 1-NN", "tiny"} < set(found.rows)
    assert found.protocol["proposed_with"] == "no labels"
    assert not [name for name in ROUNDS[:2] if (finished / "runs" / name / "report.json").exists()]


def test_each_round_is_what_its_parts_give_by_hand(place: Path) -> None:
    """The second round: its vectors are the first learner's features, its learner goes on from there."""
    _, second, _ = build.build_rounds(build.load("tiny.yaml"))
    first = runs.load_run("runs/tiny-0", device="cpu")
    images = domains.read_images(second)
    z = first.learner.features(first.theta, images.floats(slice(None)))
    np.testing.assert_allclose(np.load("tasks/tiny-1/embeddings.npy"), z, atol=1e-5)

    embedder = learner_of("runs/tiny-0")
    embedder.fit(images, RunContext())
    tasks = second.proposer.propose(images, RunContext(second.seed), embedder)
    kept, _ = load_tasks(second)
    assert same(sampled(tasks, np.arange(8), EPISODE, 0), sampled(kept, np.arange(8), EPISODE, 0))

    learner = second.metalearner.build(tasks.spec, second.train.episode)
    theta = metatrain(learner, tasks, second.train, RunContext(second.seed), first.theta)
    trained = runs.load_run("runs/tiny-1", device="cpu").theta
    assert same(theta.params, trained.params)
    assert same(theta.running, trained.running)


def test_manifests_name_the_parent(finished: Path) -> None:
    manifests = {name: artifacts.read_json(finished / "runs" / name / "manifest.json") for name in ROUNDS}
    assert "start" not in manifests["tiny-0"]
    for name, before in (("tiny-1", "tiny-0"), ("tiny", "tiny-1")):
        digest = artifacts.hash_file(finished / "runs" / before / "manifest.json")
        assert manifests[name]["start"] == {"run": f"runs/{before}", "hash": digest}
        stored = yaml.safe_load((finished / "runs" / name / "config.yaml").read_text())
        assert stored["start"] == f"runs/{before}"
        assert stored["embedding"] == {"name": "learner", "run": f"runs/{before}"}


def test_minutes_include_the_earlier_rounds(finished: Path) -> None:
    spent = []
    for name in ROUNDS[:2]:
        for kind in ("tasks", "runs"):
            seconds = artifacts.read_sealed(finished / kind / name / "seconds.json")
            spent += [value for key, value in seconds.items() if key != "earlier rounds"]
    found = artifacts.read_json(finished / "runs/tiny/seconds.json")["earlier rounds"]
    assert len(spent) == 5  # propose and metatrain twice, and the second round's embedding
    assert found == pytest.approx(sum(spent))
    assert result(finished).minutes["earlier rounds"] == round(found / 60, 2)
    assert "earlier rounds" not in artifacts.read_json(finished / "runs/tiny-0/seconds.json")


def models(place: Path) -> dict[str, bytes]:
    return {name: (place / "runs" / name / "model.safetensors").read_bytes() for name in ROUNDS}


def test_resuming_a_finished_run_changes_nothing_and_running_it_anew_is_refused(place: Path, refused) -> None:
    before = {path: path.read_bytes() for kind in ("tasks", "runs") for path in Path(kind).rglob("model.safetensors")}
    refused("run", "tiny.yaml", says="tasks/tiny-0 exists")
    manifests = {name: (place / "runs" / name / "manifest.json").stat().st_mtime_ns for name in ROUNDS}
    assert main(["run", "tiny.yaml", "--device", "cpu", "--resume"]) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert {name: (place / "runs" / name / "manifest.json").stat().st_mtime_ns for name in ROUNDS} == manifests


def test_a_run_interrupted_in_its_second_round_is_resumed_to_the_same_bytes(place: Path) -> None:
    before = models(place)
    for folder in ("tasks/tiny", "runs/tiny"):
        shutil.rmtree(folder)
    for path in Path("runs/tiny-1").iterdir():
        if path.name not in ("asked.json", "checkpoints"):
            path.unlink() if path.is_file() else shutil.rmtree(path)
    assert main(["run", "tiny.yaml", "--device", "cpu", "--resume"]) == 0
    assert models(place) == before


def test_one_stage_of_a_config_with_rounds_is_refused_with_the_way_out(place: Path, refused) -> None:
    for command in ("propose", "metatrain"):
        says = "it alternates propose and metatrain in 3 rounds, which umeta run does; for its first round alone add"
        refused(command, "tiny.yaml", "name=new", says=f"new: {says} rounds=[]")
    assert not Path("tasks/new").exists()
    assert main(["propose", "tiny.yaml", "name=new", "rounds=[]", "--device", "cpu"]) == 0
    assert main(["metatrain", "tiny.yaml", "name=new", "rounds=[]", "--device", "cpu"]) == 0
    new = Path("runs/new/model.safetensors").read_bytes()
    assert new == models(place)["tiny-0"]


def test_a_mistake_in_a_round_stops_before_anything_is_written(place: Path, refused) -> None:
    refused("run", "tiny.yaml", "name=new", "rounds=[{data: digits}]", says="rounds[0]: unknown key 'data'")
    refused("run", "tiny.yaml", "name=new", "rounds=[{proposer: kmaens}]", says="did you mean 'kmeans'")
    refused("run", "tiny.yaml", "name=new", "rounds=3", says="rounds")
    assert not list(place.glob("*/new*"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["start=runs/tiny-0", "metalearner.model.filters=8"], "start from a run with the same model"),
        (["start=runs/nowhere"], "runs/nowhere: no such run"),
        (["start=tasks/tiny"], "tasks/tiny: expected an artefact of kind 'run'"),
    ],
)
def test_a_bad_start_is_named_and_mended_without_cleaning_up(place: Path, refused, changes, says) -> None:
    common = ["metatrain", "tiny.yaml", "rounds=[]", "name=new", "tasks=tasks/tiny-0"]
    refused(*common, *changes, says=says)
    assert main([*common, "start=runs/tiny-0", "--device", "cpu"]) == 0


def test_a_learner_that_saw_labels_must_not_reach_propose(place: Path, refused) -> None:
    embedding = "embedding={name: learner, run: runs/oracle}"
    refused("propose", "tiny.yaml", "rounds=[]", "name=new", embedding, says="runs/oracle was trained with true labels")
    refused("propose", "tiny.yaml", "rounds=[]", "name=new", embedding.replace("oracle", "x"), says="runs/x: no such")


def test_a_start_that_saw_labels_is_stamped(place: Path, refused) -> None:
    common = ["tiny.yaml", "rounds=[]", "tasks=tasks/tiny-0", "--device", "cpu"]
    assert main(["metatrain", *common, "name=new", "start=runs/oracle"]) == 0
    assert not artifacts.read_json(Path("tasks/tiny-0/manifest.json"))["true_labels"]
    assert artifacts.read_json(Path("runs/new/manifest.json"))["true_labels"]
    assert main(["evaluate", "runs/new", "evaluate.baselines=[]", "--device", "cpu"]) == 0
    assert artifacts.read_json(Path("runs/new/report.json"))["protocol"]["proposed_with"] == "true labels"
    # and what starts from that, and what is embedded by it
    assert main(["metatrain", *common, "name=newer", "start=runs/new"]) == 0
    assert artifacts.read_json(Path("runs/newer/manifest.json"))["true_labels"]
    refused("propose", "tiny.yaml", "rounds=[]", "name=x", "embedding={name: learner, run: runs/newer}", says="labels")
