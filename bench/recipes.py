"""What `bench.minutes` compares: ways to learn from pictures for some minutes, and then to tell new classes apart.

Each method gets pictures [n, C, H, W] uint8 of the training classes, their labels (which one method alone looks at) and
a deadline, and returns what answers a task. umeta chooses its own network; the loops of the others are as their own
examples have them, all on one network: PIL pictures, a DataLoader, their transforms, heads and losses. Their answer is
by prototypes, the nearest mean of the support's vectors, whose length is 1.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from umeta.data.images import to_float
from umeta.evaluation.images import evaluate
from umeta.metalearners._embedding import embeds_alone
from umeta.models.conv4 import Conv4
from umeta.stages.runs import load_run
from umeta.tasks.partition import PartitionTasks
from umeta.types import EpisodeSpec, Theta

Answer = Callable[[PartitionTasks, EpisodeSpec, int], np.ndarray]  # accuracy on each of a number of tasks


@dataclass(frozen=True)
class Training:
    """What a method may use."""

    pixels: np.ndarray
    labels: np.ndarray
    seconds: float
    seed: int

    @property
    def grey(self) -> bool:
        """Whether the pictures are drawings, and else photographs."""
        return self.pixels.shape[1] == 1

    def model(self) -> Conv4:
        """Give the network that the loops train."""
        return Conv4([64, 64, 128, 256], down="pool_first", halvings=3)

    def network(self, channels: int | None = None) -> nn.Module:
        torch.manual_seed(self.seed)
        return self.model().build((channels or self.pixels.shape[1], *self.pixels.shape[2:]))


def umeta(training: Training) -> Answer:
    """Run `umeta run --images` on a folder of the pictures, as a person does; reading them takes of the minutes too."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        pictures.mkdir()
        for i, picture in enumerate(training.pixels):
            Image.fromarray(np.moveaxis(picture, 0, 2).squeeze()).save(pictures / f"{i}.png", compress_level=1)
        minutes = ["--minutes", f"{training.seconds / 60:g}", "--seed", str(training.seed)]
        words = ["run", "--images", str(pictures), *minutes, f"out={folder}", "name=learnt"]
        subprocess.run([sys.executable, "-m", "umeta", *words], check=True, stdout=subprocess.DEVNULL)
        run = load_run(Path(folder) / "runs" / "learnt", device="cpu")
    return partial(answer_by_learner, run.learner, run.theta)


@torch.no_grad()
def answer_by_learner(
    learner: Any, theta: Theta, tasks: PartitionTasks, episode: EpisodeSpec, count: int
) -> np.ndarray:
    """Accuracy on each task of a learner of this library; one whose features depend on no task sees pictures once."""
    if embeds_alone(learner):
        seen = torch.cat([learner.features(theta, to_float(part)) for part in tasks.items.split(500)])
        tasks, learner = PartitionTasks(seen, tasks.partitions, tasks.names), learner.on_features()
    return evaluate(learner, theta, tasks, episode, count=count, seed=0, steps=learner.test_steps)


def plain_protonet(training: Training) -> Answer:
    """Train a ProtoNet with labels in easyfsl's way: a step for each episode of single pictures, 5-way 5-shot."""
    net = training.network().train()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    draw = np.random.default_rng(training.seed)
    members = [np.flatnonzero(training.labels == c) for c in np.unique(training.labels)]
    way, shot, query = 5, 5, 10
    x = [torch.from_numpy(picture) for picture in training.pixels]  # a data set of single pictures
    for _ in until(training.seconds):
        chosen = [draw.choice(members[c], shot + query, replace=False) for c in draw.permutation(len(members))[:way]]
        batch = to_float(torch.stack([x[i] for items in chosen for i in items])).unflatten(0, (way, shot + query))
        z_support, z_query = net(batch[:, :shot].flatten(0, 1)), net(batch[:, shot:].flatten(0, 1))
        scores = -torch.cdist(z_query, z_support.unflatten(0, (way, shot)).mean(1))
        loss = F.cross_entropy(scores, torch.arange(way).repeat_interleave(query))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return partial(answer_by_prototypes, partial(see, net, None))


class Pictures(Dataset[Any]):
    """PIL pictures in colour, as the libraries' transforms want them."""

    def __init__(self, pixels: np.ndarray, transform: Callable[[Any], Any]) -> None:
        self.pixels, self.transform = pixels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> list[Tensor]:
        picture = np.moveaxis(np.broadcast_to(self.pixels[i], (3, *self.pixels.shape[2:])), 0, 2)
        return self.transform(Image.fromarray(np.ascontiguousarray(picture)))


def batches(training: Training, transform: Callable[[Any], Any], size: int) -> Iterator[list[Tensor]]:
    """Give views in batches until the time is over, made by a process beside the one that trains."""
    pictures = Pictures(training.pixels, transform)
    generator = torch.Generator().manual_seed(training.seed)
    loader = DataLoader(
        pictures, batch_size=size, shuffle=True, drop_last=True, num_workers=1, generator=generator, timeout=600
    )
    began = time.monotonic()
    while True:
        for views in loader:
            if time.monotonic() - began > training.seconds:
                return
            yield views


def lightly_simclr(training: Training) -> Answer:
    """SimCLR by lightly, as its example for CIFAR-10 has it."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    transform = SimCLRTransform(input_size=training.pixels.shape[-1], gaussian_blur=0.0)
    return by_views(training, transform, partial(SimCLRProjectionHead, output_dim=128), NTXentLoss())


def lightly_barlow_twins(training: Training) -> Answer:
    """Barlow Twins by lightly, with BYOL's views, as its example has it."""
    from lightly.loss import BarlowTwinsLoss
    from lightly.models.modules import BarlowTwinsProjectionHead
    from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform

    side = training.pixels.shape[-1]
    transform = BYOLTransform(
        view_1_transform=BYOLView1Transform(input_size=side, gaussian_blur=0.0),
        view_2_transform=BYOLView2Transform(input_size=side, gaussian_blur=0.0),
    )
    return by_views(training, transform, lambda d, h: BarlowTwinsProjectionHead(d, 2048, 2048), BarlowTwinsLoss())


def by_views(training: Training, transform: Any, head: Callable[[int, int], nn.Module], criterion: nn.Module) -> Answer:
    """Train on pairs of views by a loss of their projections."""
    net = training.network(3)
    width = features(net, training)
    projection = head(width, width)
    optimiser = torch.optim.Adam([*net.parameters(), *projection.parameters()], lr=1e-3)
    for views in batches(training, transform, 256):
        loss = criterion(*(projection(net(view)) for view in views))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return partial(answer_by_prototypes, partial(see, net, 3))


def lightly_dino(training: Training) -> Answer:
    """DINO by lightly, with two global and six local views."""
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms.dino_transform import DINOTransform

    side = training.pixels.shape[-1]
    student, teacher = (of_two_parts(training, DINOProjectionHead) for _ in range(2))
    teacher.load_state_dict(student.state_dict())
    deactivate_requires_grad(teacher)
    criterion = DINOLoss(output_dim=2048, warmup_teacher_temp_epochs=5)
    optimiser = torch.optim.Adam(student.parameters(), lr=1e-3)
    transform = DINOTransform(
        global_crop_size=side, local_crop_size=max(16, side // 2), gaussian_blur=(0.0, 0.0, 0.0), n_local_views=6
    )
    for step, views in enumerate(batches(training, transform, 64)):
        update_momentum(student, teacher, m=0.996)
        targets = [teacher(view) for view in views[:2]]
        loss = criterion(targets, [student(view) for view in views], epoch=step * 64 // len(training.pixels))
        optimiser.zero_grad()
        loss.backward()
        student[1].cancel_last_layer_gradients(current_epoch=step * 64 // len(training.pixels))
        optimiser.step()
    return partial(answer_by_prototypes, partial(see, teacher[0], 3))


def of_two_parts(training: Training, head: Callable[..., nn.Module]) -> nn.Sequential:
    """Give a network whose views may differ in size, and its head."""
    layers = list(training.network(3).children())
    net = nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(net, head(features(net, training), 512, 64, 2048, freeze_last_layer=1))


def pixels(training: Training) -> Answer:
    """Pictures as they are: what no minute of learning gives."""
    return partial(answer_by_prototypes, lambda x: x.flatten(1))


METHODS: dict[str, Callable[[Training], Answer]] = {
    "umeta": umeta,
    "ProtoNet with labels, plain loop": plain_protonet,
    "SimCLR, lightly": lightly_simclr,
    "Barlow Twins, lightly": lightly_barlow_twins,
    "DINO, lightly": lightly_dino,
    "pixels": pixels,
}


def until(seconds: float) -> Iterator[int]:
    """Count steps until the time is over."""
    began, step = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        yield step
        step += 1


def features(net: nn.Module, training: Training) -> int:
    """Count the numbers that it makes of a picture. It is left as it was made, to be trained."""
    with torch.no_grad():
        width = net.eval()(torch.zeros(2, 3, *training.pixels.shape[2:])).shape[1]
    net.train()
    return width


def see(net: nn.Module, channels: int | None, x: Tensor) -> Tensor:
    """Give features of pictures [n, C, H, W]; those trained in colour get them as their transforms normalise them."""
    if channels:
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        x = (x.expand(-1, channels, -1, -1) - mean) / std
    return net.eval()(x)


@torch.no_grad()
def answer_by_prototypes(
    see: Callable[[Tensor], Tensor], tasks: PartitionTasks, episode: EpisodeSpec, count: int
) -> np.ndarray:
    """Accuracy on each task of the nearest mean of the support's vectors, all of length 1."""
    z = torch.cat([F.normalize(see(to_float(part)).flatten(1), dim=1) for part in tasks.items.split(500)])
    batch = tasks.sample(np.arange(count), episode=episode, seed=0)
    right = []
    for index, label, query, answer in zip(
        batch.support_index, batch.support_label, batch.query_index, batch.query_label, strict=True
    ):
        means = torch.stack([z[index[label == c]].mean(0) for c in range(episode.way)])
        right.append((torch.cdist(z[query], means).argmin(1) == answer).float().mean().item())
    return np.array(right)
