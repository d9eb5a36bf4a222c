"""Instance tasks and mixtures: a class is one image, views differ, and each distribution gets its share of tasks."""

import numpy as np
import pytest
import torch

from proposers.instances import Instances
from proposers.kmeans import KMeans
from proposers.mixture import Mixture
from umeta import seeds
from umeta.augment.drawing import Drawing
from umeta.config.build import build
from umeta.config.registry import build_part
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.runtime.loop import RunContext
from umeta.stages import tasks
from umeta.tasks import mixture, store
from umeta.tasks.instances import Augmented, InstanceTasks
from umeta.tasks.partition import PartitionTasks
from umeta.tasks.rotated import Rotated
from umeta.types import EpisodeSpec

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), dtype=np.uint8)
IMAGES = UnlabelledImages.of(PIXELS)
EPISODE = EpisodeSpec(4, 2, 3)


def batch(tasks, indices=range(6), seed=0):
    drawn = tasks.sample(np.array(indices), episode=EPISODE, seed=seed)
    return drawn.support(), drawn.query()


def test_every_class_is_one_image_and_support_and_query_agree():
    support, query = batch(InstanceTasks(PIXELS))
    assert support.x.shape == (6, 8, 1, 8, 8)
    assert query.x.shape == (6, 12, 1, 8, 8)
    for t in range(6):
        seen = {}
        for x, y in [*zip(support.x[t], support.y[t], strict=True), *zip(query.x[t], query.y[t], strict=True)]:
            assert torch.equal(seen.setdefault(y.item(), x), x)
        assert len(seen) == 4
        assert len({x.numpy().tobytes() for x in seen.values()}) == 4


def test_a_class_is_turned_the_same_way_in_support_and_query():
    plain, turned = batch(InstanceTasks(PIXELS)), batch(Rotated(InstanceTasks(PIXELS)))
    seen = set()
    for before, after in zip(plain, turned, strict=True):
        for t, y, x, z in zip(range(6), before.y, before.x, after.x, strict=True):
            for label, image, rotated in zip(y.tolist(), x, z, strict=True):
                (turn,) = [r for r in range(4) if np.array_equal(np.rot90(image, r, (1, 2)), rotated)]
                seen.add((t, label, turn))
    assert len(seen) == 6 * 4  # one turn for each class of each task
    assert {turn for _, _, turn in seen} == {0, 1, 2, 3}
    with pytest.raises(UserError, match="square images"):
        Rotated(InstanceTasks(PIXELS[..., :6]))


def test_too_few_images_are_named():
    with pytest.raises(UserError, match="4-way tasks need as many images, there are 3"):
        batch(InstanceTasks(PIXELS[:3]))


def test_views_differ_within_a_class_and_depend_on_seed_and_task_alone():
    tasks = Augmented(InstanceTasks(PIXELS), Drawing())
    support, query = batch(tasks)
    assert not torch.equal(support.x[0, 0], support.x[0, 1])
    assert not torch.equal(support.x[0, 0], query.x[0, 0])
    alone = batch(tasks, [4])[1]
    assert torch.allclose(alone.x[0], query.x[4], atol=1e-6)
    assert torch.equal(batch(tasks)[0].x, support.x)
    assert not torch.equal(batch(tasks, seed=1)[0].x, support.x)


def two():
    """Tasks whose images say where they come from: black from the first distribution, white from the second."""
    labels = (np.arange(30) // 6)[None]
    black = PartitionTasks(np.zeros_like(PIXELS), labels)
    white = PartitionTasks(np.full_like(PIXELS, 255), labels)
    return mixture.Mixture((3.0, 1.0), (black, white))


def test_a_mixture_draws_each_part_by_its_weight():
    support, query = batch(two(), range(2000))
    white = support.x.flatten(1).amax(1) == 1
    assert torch.equal(white, query.x.flatten(1).amin(1) == 1)
    assert white.float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_which_part_a_task_is_of_stays_as_it_was():
    """The tasks of runs that were recorded before hang on it."""
    white = batch(two(), range(40))[0].x.flatten(1).amax(1) == 1
    drawn = seeds.uniform(seeds.key(0, "mixture", np.arange(40)))
    assert white.tolist() == (drawn >= 0.75).tolist()


def test_a_mixture_within_a_mixture_is_drawn_apart_from_it():
    alike = [PartitionTasks(np.full_like(PIXELS, shade), (np.arange(30) // 6)[None]) for shade in (0, 100, 200)]
    tasks = mixture.Mixture((1.0, 1.0), (mixture.Mixture((3.0, 2.0), tuple(alike[:2])), alike[2]))
    x = tasks.sample(np.arange(2000), episode=EpisodeSpec(2, 1, 1), seed=0).query().x[:, 0, 0, 0, 0] * 255
    shares = np.bincount(x.round().int().numpy(), minlength=201)[[0, 100, 200]] / 2000
    np.testing.assert_allclose(shares, [0.3, 0.2, 0.5], atol=0.03)


def test_a_mixture_gives_each_task_alone_as_in_a_batch():
    tasks = mixture.Mixture((1.0, 1.0), (InstanceTasks(PIXELS), PartitionTasks(PIXELS, (np.arange(30) // 6)[None])))
    support, query = batch(tasks, range(20))
    for i in (0, 7, 13):
        one = batch(tasks, [i])
        assert torch.equal(one[0].x[0], support.x[i])
        assert torch.equal(one[1].y[0], query.y[i])


def test_what_is_made_of_tasks_is_of_the_same_items():
    inner = InstanceTasks(PIXELS)
    for made in (Augmented(inner, Drawing()), Rotated(inner), mixture.Mixture((1.0, 1.0), (inner, inner))):
        assert made.spec == inner.spec
        assert made.to("cpu").spec == inner.spec
        assert torch.equal(batch(made.to("cpu"))[0].x, batch(made)[0].x)


class Identity:
    def embed(self, images):
        return torch.from_numpy(images.pixels.reshape(len(images), -1).astype(np.float32))


@pytest.mark.parametrize(
    "proposer",
    [
        Instances(rotations=True),
        Mixture([Instances(), KMeans(k=3, partitions=2, smallest=5, keep=0)], [1.0, 2.0]),
    ],
    ids=["instances", "mixture"],
)
def test_what_is_saved_gives_the_same_tasks(proposer, tmp_path):
    tasks = proposer.propose(IMAGES, RunContext(), Identity())
    description = store.save_tasks(tasks, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(store.list_files(description))
    again = store.load_saved(description, tmp_path, IMAGES)
    episode = EpisodeSpec(2, 1, 2)
    for role in ("support", "query"):
        a, b = (getattr(t.sample(np.arange(8), episode=episode, seed=0), role)() for t in (tasks, again))
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [-1.0, 2.0]])
def test_bad_weights_are_named(weights):
    with pytest.raises(ValueError, match="2 proposers need as many weights"):
        Mixture([Instances(), Instances()], weights)


def test_proposers_for_environments_are_refused_as_parts_of_a_mixture():
    with pytest.raises(UserError, match="proposer: mixes proposers of tasks on images, and Diayn"):
        build_part("proposer", {"name": "mixture", "proposers": ["instances", "diayn"]})


def test_proposers_that_see_labels_are_refused_as_parts_of_a_mixture():
    class Labels(Instances):
        sees_labels = True

    with pytest.raises(UserError, match="an oracle cannot be mixed"):
        Mixture([Instances(), Labels()]).propose(IMAGES, RunContext())


def test_a_rare_part_of_a_mixture_that_cannot_give_the_episodes_is_found_at_once():
    poor = PartitionTasks(PIXELS, np.where(np.arange(30) < 2, 0, -1)[None])
    plain = {
        "data": "digits",
        "proposer": "instances",
        "metalearner": {"name": "protonet", "model": "conv4"},
        "train": {"outer": "adam"},
    }
    config = build({"name": "poor", **plain})
    with pytest.raises(UserError):
        tasks.check_usable(mixture.Mixture((1.0, 1e-9), (InstanceTasks(PIXELS), poor)), config)


def test_a_mixture_is_built_from_a_config_and_its_parts_are_checked():
    plain = {"name": "mixture", "proposers": ["instances", {"name": "kmeans", "k": "7"}], "weights": [1, 3]}
    built = build_part("proposer", plain)
    assert built == Mixture([Instances(), KMeans(k=7)], [1.0, 3.0])
    with pytest.raises(UserError, match=r"proposers\[1\]: unknown option 'kk'; did you mean 'k'"):
        build_part("proposer", {"name": "mixture", "proposers": ["instances", {"name": "kmeans", "kk": 7}]})


def test_a_resumed_mixture_of_two_of_a_kind_keeps_them_apart(tmp_path):
    two_kmeans = Mixture([KMeans(k=6, partitions=2, smallest=1), KMeans(k=3, partitions=2, smallest=1)])
    first = two_kmeans.propose(IMAGES, RunContext(folder=tmp_path), Identity())
    again = two_kmeans.propose(IMAGES, RunContext(folder=tmp_path, resume=True), Identity())
    assert [part.partitions.max() + 1 for part in again.parts] == [6, 3]
    for a, b in zip(first.parts, again.parts, strict=True):
        assert np.array_equal(a.partitions, b.partitions)


def test_drawings_are_distorted_as_drawings_and_photographs_as_photographs():
    colour = UnlabelledImages.of(np.repeat(PIXELS, 3, axis=1))
    assert type(Instances().propose(IMAGES, RunContext()).augment).__name__ == "Drawing"
    assert type(Instances().propose(colour, RunContext()).augment).__name__ == "Photo"
