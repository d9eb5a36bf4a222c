"""Skills that can be told apart by the states they visit, and the rewards that tell them apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from umeta.parts import Context, Embedder, Environment
from umeta.rl.apart import Learning, ToldApart, tell_success
from umeta.tasks.reward import RewardTasks


@dataclass(frozen=True)
class Diayn(ToldApart):
    """Diversity is all you need (DIAYN, Eysenbach et al. 2018, algorithm 1), its skills as rewards (Gupta et al. 2018).

    A discriminator learns to tell from a state which skill z led there, a policy per skill earns `log p(z|s)`. The
    original learns by SAC, one update a step; here all skills act in many copies of a fast simulator at once and learn
    on-policy by PPO, or by SAC. Rewards are always those of the present discriminator, which learns from this round's
    states; an episode cut short by the horizon counts on with its value.
    """

    domain: ClassVar[Literal["image", "env"]] = "env"
    sees_labels: ClassVar[bool] = False

    def propose(self, source: Environment, ctx: Context, embedder: Embedder | None = None) -> RewardTasks:
        """Return a reward per skill, and the skills' policies.

        Raises:
            UserError: the simulation breaks, or `sees` names numbers that it does not observe.
        """
        learning = Learning(self, source, ctx)
        ctx.loop("diayn", self.iterations, learning.step, learning.save, learning.load)
        if learning.accuracy is not None:  # else all iterations had been done before
            ctx.note(tell_success(learning.accuracy, self.skills))
        return RewardTasks(source, learning.rewards, learning.policy.policies())
