"""A space that skills move in, learnt from what they do, and rewards for moving there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from umeta.errors import UserError
from umeta.parts import Environment
from umeta.rl.discriminator import CONSTANT
from umeta.rl.rollout import Paths

SLACK = 1e-3  # of the constraint, as the authors'
DUAL = 30.0  # where the multiplier of the constraint starts, as the authors'
SHARP = 10.0  # of norm matching
ALIGNED = (0.5, 0.7)  # cosines between which alignment gives way to norm matching

Family = Literal["directions", "velocities", "places"]


class Space(nn.Module):
    """A map phi of states to a space in which a step is at most 1 long, and a reward for each of some points w there.

    The reward of a step from s to s' of an episode that began in s0, with d = phi(s') - phi(s):
    `directions` w'd, `velocities` -|d - w|, `places` -|phi(s') - phi(s0) - w|.
    """

    mean: Tensor
    scale: Tensor
    points: Tensor

    def __init__(
        self, env: Environment, family: Family, *, count: int, dim: int, hidden: int, sees: list[int] | None
    ) -> None:
        """Build the network; sees: which numbers of the observation and, after it, the two of the position.

        Raises:
            UserError: `sees` names numbers that there are not.
        """
        super().__init__()
        numbers = env.observation + 2
        if sees is not None and (not sees or any(not 0 <= i < numbers for i in sees)):
            raise UserError(f"proposer.sees: expected some of 0 to {numbers - 1}, got {sees}")
        self.sees, self.family = list(range(numbers)) if sees is None else sees, family
        d = len(self.sees)
        self.register_buffer("mean", torch.zeros(d))  # of what it sees
        self.register_buffer("scale", torch.ones(d))
        self.register_buffer("points", torch.zeros(count, dim))
        self.layers = nn.Sequential(
            nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, dim)
        )

    @property
    def count(self) -> int:
        return len(self.points)

    @property
    def of_places(self) -> bool:
        """Whether a place alone tells its reward: no, where it comes from counts as well."""
        return False

    def seen(self, paths: Paths) -> Tensor:
        """Give what the map sees of episodes, before it is scaled: [T, E, H + 1, d]."""
        return torch.cat([paths.observations, paths.positions], -1)[..., self.sees]

    def standardise(self, paths: Paths) -> None:
        """From now on its input has a standard deviation of 1 over the states of these episodes."""
        states = self.seen(paths)[:, :, 1:][paths.mask]
        spread = states.std(0)
        self.mean.copy_(states.mean(0))
        self.scale.copy_(torch.where(spread > CONSTANT, 1 / spread, 0.0))

    def locate(self, seen: Tensor) -> Tensor:
        """Give phi [..., dim] of what it sees [..., d]."""
        return self.layers((seen - self.mean) * self.scale)

    @torch.no_grad()
    def forward(self, paths: Paths, which: Tensor) -> Tensor:
        """Return what each step earns [T, E, H]; which: each task's reward [T]."""
        phi, w = self.locate(self.seen(paths)), self.points[which][:, None, None]
        if self.family == "places":
            return -(phi[:, :, 1:] - phi[:, :, :1] - w).norm(dim=-1)
        d = phi.diff(dim=2)
        return (w * d).sum(-1) if self.family == "directions" else -(d - w).norm(dim=-1)

    def describe(self, states: Tensor) -> list[str]:
        """In numbers."""
        return [f"reward: {self.family} in a space of {self.points.shape[1]} dimensions, learnt from {len(self.sees)}"]


class MapLearner:
    """What trains the map: gradient steps on it, and on the dual variable that keeps a step at most 1 long."""

    def __init__(self, space: Space, lr: float = 1e-3, steps: int = 20) -> None:
        self.space, self.steps = space, steps
        self.dual = nn.ParameterList([torch.tensor(math.log(DUAL))])
        self.optimiser = torch.optim.Adam([*space.parameters(), *self.dual.parameters()], lr=lr)

    def learn(self, paths: Paths, skill: Tensor, random: torch.Generator) -> float:
        """Train on the environment steps of this iteration; give the root mean square of a step in the space."""
        seen, there = self.space.seen(paths), paths.mask
        before, after, z = seen[:, :, :-1][there], seen[:, :, 1:][there], skill[there]
        square = torch.zeros(())
        for part in self.draw_parts(len(z), random):
            d = self.space.locate(after[part]) - self.space.locate(before[part])
            square = d.square().sum(-1)
            room = (1 - square).clamp(max=SLACK)
            dual = self.dual[0].exp()
            loss = -((d * z[part]).sum(-1) + dual.detach() * room).mean() + dual * room.mean().detach()
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
        return square.mean().sqrt().item()

    def draw_parts(self, count: int, random: torch.Generator) -> Iterator[Tensor]:
        """Draw a tenth of `count` environment steps for each of an iteration's gradient steps."""
        for _ in range(self.steps):
            yield torch.randperm(count, generator=random)[: max(count // 10, 1)]


def judge(space: Space, paths: Paths, skill: Tensor) -> tuple[Tensor, float, Tensor]:
    """Return episodes' steps in the space [T, E, H, dim], how aligned with skills they are, and what they earn."""
    with torch.no_grad():
        d = space.locate(space.seen(paths)).diff(dim=2)
    cosine = measure_alignment(d[paths.mask], skill[paths.mask])
    return d, cosine, reward(d, skill, paths.mask, cosine)


def reward(d: Tensor, skill: Tensor, mask: Tensor, cosine: float) -> Tensor:
    """Give what steps d [T, E, H, dim] of the space earn: alignment, and norm matching once they are aligned."""
    low, high = ALIGNED
    share = min(max((cosine - low) / (high - low), 0.0), 1.0)
    along = standardise((d * skill).sum(-1), mask)
    matched = standardise(1 / (1 + SHARP * (d - skill).square().sum(-1)), mask)
    return (1 - share) * along + share * matched


def measure_alignment(d: Tensor, skill: Tensor) -> float:
    """Return the mean cosine of steps d [n, dim] and skills, weighed by length: steps against a wall do not count."""
    along, most = (d * skill).sum(), (d.norm(dim=-1) * skill.norm(dim=-1)).sum()
    return (along / (most + 1e-8)).item()


def standardise(values: Tensor, mask: Tensor) -> Tensor:
    """Scale values [T, E, H] to a mean of 0 and a standard deviation of 1 over the steps of a mask."""
    return (values - values[mask].mean()) / (values[mask].std() + 1e-8)


def tell_success(cosine: float, smaller: str = "env.unit or proposer.dim") -> str:
    """Say how well skills go their way, and what to do where that is hardly better than by chance.

    smaller: which options might help.
    """
    said = f"metra: skills go where they are told with a cosine of {cosine:.2f} on average, by chance 0"
    failed = f". The skills are alike, and so are their rewards: try more iterations, or a smaller {smaller}"
    return said + failed * (cosine < 0.3)
