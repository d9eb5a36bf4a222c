"""RL^2: a recurrent policy as the learning algorithm, whose memory lasts for all episodes of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Annotated, Any, ClassVar, Self

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from umeta.metalearners._network import NetworkLearner
from umeta.parts import Model
from umeta.rl.advantage import trial_advantages
from umeta.types import Adapted, Batch, EpisodeSpec, RecurrentLearner, TaskSpec, Theta

FURTHEST = 5.0  # standard deviations that the memory is told a reward is off the mean
State = Mapping[str, Tensor]


@dataclass
class RL2(NetworkLearner, RecurrentLearner):
    """Fast reinforcement learning via slow (RL^2, Duan et al. 2016, arXiv 1611.02779; Wang et al. 2016, 1611.05763).

    `h_t = GRU(model(s_t, a_t-1, r_t-1, d_t-1), h_t-1)`: state, last action, what it earned, and whether an episode
    ended with it. Mean and log standard deviation of an action are linear in `h_t`. The memory h is kept from episode
    to episode of a trial; nothing else adapts. A task's episodes side by side are of as many trials, which know nothing
    of each other, so one round of adaptation is one more episode of each trial: the other learners see all of them.
    The policy gradient is that of the discounted return of the whole trial.

    Unlike the paper, rewards are told in standard deviations from the mean of the trial so far, as pseudo-rewards in
    meta-training and true ones at test differ in scale; and the baseline is the linear one of the other learners here,
    fitted for each episode of the trial, not a network. The paper's step is TRPO, which takes much time here: ppo.
    """

    model: Model
    """the network before the memory"""
    hidden: Annotated[int, Gt(0)] = 64
    """numbers in the memory (256 in the paper)"""
    discount: Annotated[float, Ge(0), Le(1)] = 0.99
    """of later rewards, on through the episodes of the trial"""

    family: ClassVar[str] = "by a policy's memory"
    normalisation = "group"  # other statistics would be over steps that nothing has seen yet

    def build(self, spec: TaskSpec, episode: EpisodeSpec) -> Self:
        """Return a copy with the network for states and what the last step brought."""
        return super().build(replace(spec, item_shape=(prod(spec.item_shape) + spec.outputs + 2,)), episode)

    def _make_module(self, spec: TaskSpec, episode: EpisodeSpec, features: int) -> nn.Module:
        return Memory(features, self.hidden, spec.outputs + spec.free)

    def unadapted(self, theta: Theta, tasks: int) -> Adapted:
        """Return an empty memory for `tasks` tasks."""
        bias = theta.params[self._own("answer.bias")]
        last = bias.new_zeros(tasks, 1, len(bias) // 2 + 1)
        seen = torch.zeros(tasks, 1, 3, dtype=torch.float64, device=bias.device)
        return Adapted({"hidden": bias.new_zeros(tasks, 1, self.hidden), "last": last, "seen": seen})

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Return the memory after the support, of each of E trials.

        `hidden` [T, E, hidden], the `last` action and what it earned [T, E, action + 1], and of the rewards `seen` so
        far count, sum and sum of squares [T, E, 3].
        """
        return Adapted(self._read(theta, self._begun(theta, start, support), support)[1])

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Answer x [T, N, ...], where each item begins the next episode of a trial, of all trials in turn."""
        return self.act(theta, adapted)(x)

    def act(self, theta: Theta, adapted: Adapted) -> Acting:
        """Return a policy for the next episode."""
        return Acting(self, theta, adapted.params)

    def replay(self, theta: Theta, adapted: Adapted, steps: Batch) -> Tensor:
        """Return what the policy answers at the steps, after those before them: [T, N, 2 * action]."""
        return self._read(theta, self._begun(theta, adapted, steps), steps)[0]

    def trial(self, rounds: Sequence[Batch]) -> Batch:
        """Join the rounds to one sequence for each trial, with its advantages; the score is the last round's."""
        trials = rounds[0].sequences
        apart = [
            batch.map_tensors(lambda value: value if value.dim() == 1 else split(value, trials)) for batch in rounds
        ]
        x, reward, mask = (torch.stack([getattr(b, name) for b in apart], 2) for name in ("x", "reward", "mask"))
        w = trial_advantages(x, reward, mask, self.discount)
        names = ("x", "y", "mask", "logp", "reward", "first")
        joined: dict[str, Any] = {name: torch.cat([getattr(b, name) for b in apart], 2).flatten(1, 2) for name in names}
        return replace(rounds[-1], **joined, w=w.flatten(1), after=None)

    def answers(self, theta: Theta, inputs: Tensor, hidden: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs [T, E, L, 2 * action] and the last memory; inputs: [T, E, L, d], there: [T, E, L], L steps."""
        z = self.built.network.shared(theta.params, inputs.flatten(0, 2))[0].unflatten(0, (-1, inputs.shape[2]))
        out, hidden = self._run_module(theta, z, hidden.flatten(0, 1), there.flatten(0, 1))
        return out.unflatten(0, inputs.shape[:2]), hidden.unflatten(0, inputs.shape[:2])

    def _begun(self, theta: Theta, start: Adapted | None, batch: Batch) -> State:
        return of_trials((start or self.unadapted(theta, len(batch))).params, batch.sequences)

    def _read(self, theta: Theta, state: State, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Answers at all steps [T, N, 2 * action], and the state after them; padding leaves it as it was."""
        assert batch.reward is not None
        assert batch.first is not None
        x, action, reward, mask, first = (
            split(value, batch.sequences) for value in (batch.x, batch.y, batch.reward, batch.mask, batch.first)
        )
        earned, seen = standardised(reward, mask, state["seen"])
        came = torch.cat([action, earned[..., None].to(action.dtype)], -1)
        came = torch.cat([state["last"][:, :, None], came], 2)  # at t + 1 what came of step t
        steps = torch.arange(1, came.shape[2], device=mask.device)
        latest = torch.where(mask, steps, 0).cummax(2).values  # in `came`, after each step
        before = latest.roll(1, 2)
        before[:, :, 0] = 0
        began = first & ((before > 0) | (state["seen"][:, :, None, 0] > 0))  # the first step of all follows no end
        inputs = told(x, taken(came, before), began)
        out, hidden = self.answers(theta, inputs, state["hidden"], mask)
        last = taken(came, latest[:, :, -1:])[:, :, 0]
        return out.flatten(1, 2), {"hidden": hidden, "last": last, "seen": seen}


class Memory(nn.Module):
    """A GRU (Cho et al. 2014), and a linear layer of its state."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.cell, self.answer = nn.GRUCell(inputs, hidden), nn.Linear(hidden, outputs)
        with torch.no_grad():
            self.answer.weight.mul_(0.1)  # acts like pure noise at first

    def forward(self, x: Tensor, h: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs [n, L, outputs] and the last state [n, hidden], which steps not `there` [n, L] leave alone."""
        states = []
        for item, real in zip(x.unbind(1), there[..., None].unbind(1), strict=True):
            h = torch.where(real, self.cell(item, h), h)
            states.append(h)
        return self.answer(torch.stack(states, 1)), h


class Acting:
    """The policy in one episode of each trial."""

    def __init__(self, learner: RL2, theta: Theta, state: State) -> None:
        self.learner, self.theta, self.state, self.begins = learner, theta, dict(state), True

    def __call__(self, x: Tensor) -> Tensor:
        """Return the answers [T, E, 2 * action] to observations [T, E, ...]."""
        self.state = of_trials(self.state, x.shape[1])
        began = (self.state["seen"][..., 0] > 0) & self.begins
        self.begins = False
        inputs = told(x, self.state["last"], began)[:, :, None]
        there = torch.ones_like(began)[:, :, None]
        out, self.state["hidden"] = self.learner.answers(self.theta, inputs, self.state["hidden"], there)
        return out[:, :, 0]

    def observe(self, action: Tensor, reward: Tensor) -> None:
        """Take note of what came of the answers: actions [T, E, action] and rewards [T, E]."""
        there = torch.ones_like(reward, dtype=torch.bool)
        earned, self.state["seen"] = standardised(reward[..., None], there[..., None], self.state["seen"])
        self.state["last"] = torch.cat([action, earned.to(action.dtype)], -1)


def of_trials(state: State, trials: int) -> dict[str, Tensor]:
    """Return the state of `trials` trials: the first ones, or all repeated."""
    return {name: value[:, torch.arange(trials) % value.shape[1]] for name, value in state.items()}


def told(x: Tensor, last: Tensor, began: Tensor) -> Tensor:
    """Join the network's input: observations [..., d], what came of the last step, and where episodes began."""
    return torch.cat([x.flatten(last.dim() - 1), last, began[..., None].to(x.dtype)], -1)


def standardised(reward: Tensor, mask: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards [T, E, L] in standard deviations from the mean, both over the trial up to and with each of them.

    seen: count, sum and sum of squares [T, E, 3] before, float64; returned with those rewards that the mask counts.
    """
    r = reward.double() * mask
    sums = seen[:, :, None] + torch.stack([mask.double(), r, r.square()], -1).cumsum(2)
    count, total, squares = sums.unbind(-1)
    mean = total / count.clamp(min=1)
    spread = (squares / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
    return ((r - mean) / (spread + 1e-8)).clamp(-FURTHEST, FURTHEST), sums[:, :, -1]


def split(value: Tensor, sequences: int) -> Tensor:
    """Return the sequences apart: [T, N, ...] as [T, E, L, ...]."""
    return value.unflatten(1, (sequences, -1))


def taken(values: Tensor, at: Tensor) -> Tensor:
    """Of values [T, E, n, d] those at the places [T, E, L]."""
    return values.take_along_dim(at[..., None], 2)
