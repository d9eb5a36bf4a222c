"""Rewards from a discriminator that was never trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Gt
from torch import nn

from umeta import seeds
from umeta.parts import Context, Embedder, Environment
from umeta.rl.discriminator import Discriminator, SkillRewards
from umeta.rl.explore import collect_states
from umeta.tasks.reward import RewardTasks


@dataclass(frozen=True)
class RandomDiscriminator:
    """Random functions of the state as rewards: log p(z|s) of an untrained discriminator (UML-RAND, Gupta et al. 2018).

    With a usual initialisation such a discriminator is almost constant. Here its weights are He's times `gain`, its
    biases are not zero (or it would tell directions from the mean state and nothing else), and its input is scaled by
    what random actions reach, so that the states of an episode are told apart.
    """

    skills: Annotated[int, Gt(1)] = 50
    """rewards, one per skill z"""
    hidden: Annotated[int, Gt(0)] = 300
    """width of the two hidden layers"""
    gain: Annotated[float, Gt(0)] = 1.0
    """times He's initial weights (He et al. 2015), and standard deviation of the biases"""
    inputs: Annotated[float, Gt(0)] = 2.0
    """standard deviation of the discriminator's input, over the states that random actions reach"""
    temperature: Annotated[float, Gt(0)] = 0.25
    """divides the logits: the smaller, the surer of its skills"""
    sees: list[int] | None = None
    """which numbers of the observation count; by default all"""

    domain: ClassVar[Literal["image", "env"]] = "env"
    sees_labels: ClassVar[bool] = False

    def propose(self, source: Environment, ctx: Context, embedder: Embedder | None = None) -> RewardTasks:
        """One reward per skill.

        Raises:
            UserError: the environment cannot be simulated, or `sees` names numbers that it does not observe.
        """
        with torch.random.fork_rng(devices=[]):
            discriminator = Discriminator.checked(source, self.skills, self.hidden, self.sees)
        random = seeds.generator(ctx.seed, "random discriminator")
        with torch.no_grad():
            for layer in discriminator.layers:
                if isinstance(layer, nn.Linear):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=random).mul_(self.gain)
                    nn.init.normal_(layer.bias, std=self.gain, generator=random)
            last = discriminator.layers[-1]
            assert isinstance(last, nn.Linear)
            last.weight.div_(self.temperature)
            last.bias.zero_()
        seen = discriminator.seen(collect_states(source, ctx))
        discriminator.standardise(seen.mean(0), seen.std(0), self.inputs)
        return RewardTasks(source, SkillRewards(discriminator))
