"""Anybody's environment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor

from umeta.config.registry import from_here
from umeta.envs._episodes import Episodic
from umeta.envs.batched import quiet
from umeta.errors import UserError

CALMER = "; try a smaller learning rate, or a smaller env.unit"
ENDLESS = 1e30  # bounds of actions beyond it are a way to say that there are none


@dataclass(frozen=True)
class Gym(Episodic):
    """Any environment of gymnasium that shows vectors and takes vectors or one of some choices (Towers et al. 2024).

    Of n choices the one with the largest of n numbers is taken, to which a policy's noise is added like to any others.
    A copy that ends stays ended, and is stepped no more.
    `horizon` takes the place of the environment's own time limit. The environment's reward is dropped. Where a copy is
    in the plane, for people to look at: the first two numbers of its observation.
    """

    id: str
    """as gymnasium knows it, such as Pendulum-v1; with module:Env-v0 the module is imported first"""
    options: dict[str, Any] = field(default_factory=dict)
    """the environment's own options"""
    unit: Annotated[float, Gt(0)] = 0.7
    """how far an action of 1 goes from the middle of its bounds, where 1 is to either bound, or in the environment's
    own numbers where it has no bounds; a policy's standard deviation starts there"""
    symlog: bool = False
    """whether observations are shown as their logarithms, of x as sign(x) log(1 + abs(x)) (symlog, Hafner et al. 2023,
    arXiv 2301.04104): forces in the hundreds no longer drown the angles beside them"""

    axes: ClassVar[tuple[str, str]] = ("observation 0", "observation 1")

    @property
    def observation(self) -> int:
        return self.one.observation_space.shape[0]

    @property
    def action(self) -> int:
        return int(self.one.action_space.n) if self.chooses else self.one.action_space.shape[0]

    @property
    def chooses(self) -> bool:
        """Whether an action is a choice."""
        return is_choice(self.one.action_space)

    @property
    def randoms(self) -> int:
        return 1

    @cached_property
    def one(self) -> Any:
        """A copy to look at.

        Raises:
            UserError: it cannot be made, or is of a kind that is not supported.
        """
        one = self.made()
        for name, space in (("observations", one.observation_space), ("actions", one.action_space)):
            vector = type(space).__name__ == "Box" and len(space.shape) == 1 and space.shape[0]
            choice = name == "actions" and is_choice(space)
            if not choice and not (vector and np.issubdtype(space.dtype, np.floating)):
                raise UserError(
                    f"env: the {name} of '{self.id}' are {space}; only vectors of floats (a Box of one dimension) are "
                    "supported, and as actions one choice (Discrete), but no pixels: wrap the environment, or choose "
                    "another"
                )
        return one

    def made(self, **options: Any) -> Any:
        """Return a copy.

        Raises:
            UserError: gymnasium cannot make it, or its own code fails.
        """
        with quiet(), from_here():
            import gymnasium

            try:
                return gymnasium.make(self.id, **{"max_episode_steps": self.horizon, **options, **self.options})
            except (gymnasium.error.Error, ImportError) as error:
                raise UserError(f"env: gymnasium cannot make '{self.id}': {error}") from error
            except Exception as error:  # whatever somebody's code raises
                told = f"{type(error).__name__}: {error}"
                raise UserError(
                    f"env: '{self.id}' does not accept env.options {self.options}, or fails ({told})"
                ) from error

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The least and the most that an action may be."""
        return torch.from_numpy(self.one.action_space.low), torch.from_numpy(self.one.action_space.high)

    def show(self, observations: Tensor) -> Tensor:
        """Give what is shown of the environment's own observations."""
        return observations.sign() * observations.abs().log1p() if self.symlog else observations

    def restore(self, shown: Tensor) -> Tensor:
        """Give the environment's own observations of those that are shown."""
        return shown.sign() * shown.abs().expm1() if self.symlog else shown

    def torque(self, actions: Tensor) -> Tensor:
        """Give what the environment gets: actions in its own numbers, within its bounds, or the numbers of choices."""
        if self.chooses:
            return actions.argmax(-1) + int(self.one.action_space.start)
        low, high = self.bounds
        below, above = low > -ENDLESS, high < ENDLESS  # where there are bounds
        least = low.where(below, (high - 2).where(above, -1))
        most = high.where(above, (low + 2).where(below, 1))
        return ((least + most) / 2 + (most - least) / 2 * self.unit * actions).clamp(low, high)

    def simulate(self, n: int, rewarded: bool = False) -> Copies:
        """rewarded: whether `last_reward` is kept, which benchmarks alone may ask for."""
        return Copies(self, n, rewarded)


def is_choice(space: Any) -> bool:
    """Whether a space is one of some choices."""
    return type(space).__name__ == "Discrete"


class Copies:
    """n copies of a gymnasium environment, side by side."""

    def __init__(self, env: Gym, n: int, rewarded: bool) -> None:
        self.env = env
        drawn = {"render_mode": "rgb_array"} if self.drawable and "render_mode" not in env.options else {}
        with self.theirs("made"):
            self.copies = [env.made(**drawn) for _ in range(n)]
        self.ended = torch.zeros(n, dtype=torch.bool)
        self.seen = torch.zeros(n, env.observation)
        self.last_reward = torch.zeros(n) if rewarded else None  # 0 after the end

    @property
    def drawable(self) -> bool:
        return "rgb_array" in self.env.one.metadata.get("render_modes", [])

    def reset(self, u: Tensor) -> Tensor:
        with self.theirs("reset"):
            for i, (copy, number) in enumerate(zip(self.copies, u[:, 0].tolist(), strict=True)):
                seen, _ = copy.reset(seed=int(number * 2**31))
                self.see(i, seen)
        self.ended = torch.zeros_like(self.ended)
        self.check("the observation it begins with", self.seen)
        return self.env.show(self.seen.clone())

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Step the copies that go on. Those that have ended show their last observation for ever."""
        self.check("an action", actions, CALMER)
        clipped = self.env.torque(actions).numpy().astype(self.env.one.action_space.dtype)
        earned, ended = torch.zeros(len(self.copies)), self.ended.clone()
        with self.theirs("stepped"):
            for i in (~self.ended).nonzero()[:, 0].tolist():
                seen, earned[i], terminated, truncated, _ = self.copies[i].step(clipped[i])
                ended[i] = bool(terminated or truncated)
                self.see(i, seen)
        if self.last_reward is not None:
            self.last_reward = earned
            self.check("a reward", earned)
        self.check("an observation", self.seen, CALMER)
        self.ended = ended
        return self.env.show(self.seen.clone()), ended

    def see(self, i: int, seen: Any) -> None:
        """Take what a copy shows."""
        self.seen[i] = torch.from_numpy(np.asarray(seen, np.float32).reshape(self.env.observation))

    def check(self, what: str, values: Tensor, hint: str = "") -> None:
        """Raise UserError when they are not numbers."""
        if not values.isfinite().all():
            raise UserError(f"env: '{self.env.id}': {what} is not a number{hint}")

    @contextmanager
    def theirs(self, where: str) -> Iterator[None]:
        """Within the block somebody's own code runs, and whatever it raises is a UserError."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"env: '{self.env.id}' fails when it is {where} ({type(error).__name__}: {error}); what gymnasium "
                "expects: reset(seed=..., options=...) -> observation, info and step(action) -> observation, reward, "
                "terminated, truncated, info; gymnasium.utils.env_checker.check_env says more"
            ) from error

    def positions(self) -> Tensor:
        place = torch.zeros(len(self.seen), 2)
        place[:, : self.seen.shape[1]] = self.seen[:, :2]
        return place

    def picture(self, copy: int = 0) -> np.ndarray:
        """As the environment draws itself.

        Raises:
            UserError: it does not, or this machine cannot.
        """
        if not self.drawable:
            raise UserError(f"env: '{self.env.id}' cannot draw itself: it has no render mode 'rgb_array'")
        try:
            return np.asarray(self.copies[copy].render(), dtype=np.uint8)
        except Exception as error:  # of as many kinds as there are graphics libraries
            raise UserError(f"env: '{self.env.id}' cannot be drawn here: {error}") from error
