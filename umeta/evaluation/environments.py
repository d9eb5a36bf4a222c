"""Evaluation on an environment: true return against policy-gradient steps, on goals that nothing has seen before."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from umeta import seeds
from umeta.benchmarks.goals import Split, find_benchmark, goals
from umeta.config.environments import Config, EvaluateConfig
from umeta.draw import environments
from umeta.draw.curves import Curve, name_steps
from umeta.errors import UserError, suggest
from umeta.evaluation.guard import guard
from umeta.evaluation.practice import ROUND_NATS, add_practice
from umeta.evaluation.result import Cell, Result, summarize, trace
from umeta.evaluation.rows import Kept, describe_provenance, describe_question, read_results, record_result
from umeta.evaluation.steps import change_learner, follow, list_candidates, own_step, stay
from umeta.metalearners.maml import MAML
from umeta.models.mlp import MLP
from umeta.parts import ProposerTraits, Tracker
from umeta.report import write
from umeta.runtime import artifacts
from umeta.runtime.loop import start_trackers
from umeta.runtime.progress import Progress, note
from umeta.stages.domains import env_spec
from umeta.stages.runs import ADAPTED, Run
from umeta.stages.tasks import load_tasks
from umeta.tasks.reward import RewardBatch, RewardTasks
from umeta.train import pack, policy_of, unpack
from umeta.types import Adapted, Batch, EpisodeSpec, PolicyLearner, RecurrentLearner, Step, Theta

BASELINES = ("scratch", "finetune")
SHOWN = (0, 1, 2, 3, 5, 10)  # steps in a table
OWN = "its own step"
STAYS = f"{OWN}, and no more"
MEAN = "from the mean of its contexts"
SHOWN_ONCE = "its own steps on one demonstration"
PICTURED = 6  # goals
TRIED = 4  # episodes of each skill, to choose the best
FINALISTS = 3  # ways of learning, of a first round on validation goals
FURTHER = 2  # goals to choose among them on, for each of the first round


def measure_returns(
    learner: PolicyLearner, theta: Theta, begin: Adapted, step: Step, batch: RewardBatch, steps: int, label: str = ""
) -> tuple[Tensor, list[Adapted]]:
    """Mean return of each task's fresh episodes after 0 to `steps` steps [T, steps + 1], and the policies."""
    found, policies = [], [begin]
    bar = Progress(label, steps + 1, enabled=bool(label))
    for k in range(steps + 1):
        act = policy_of(learner, theta, policies[-1])
        with torch.no_grad():
            episodes = batch.batch(batch.paths(act, batch.episode.query, f"after {k}"))
        assert episodes.score is not None
        found.append(episodes.score)
        if k < steps:
            policies.append(step(policies[-1], episodes))
        bar.update(k + 1)
    bar.close()
    return torch.stack(found, 1), policies


def take_first(policies: Adapted, tasks: int) -> Adapted:
    """Return the policies of the first tasks."""
    return Adapted({name: value[:tasks] for name, value in policies.params.items()})


def name_practice(rounds: int) -> str:
    """Say how often a policy practises, as rows and files are named."""
    return f"{rounds} round{'s' * (rounds != 1)} of practice"


def name_row(title: str, rounds: int) -> str:
    """Name the row that practises beside the one that does not."""
    return f"{title}, {name_practice(rounds)}"


def practice_learner(run: Run) -> MAML:
    """Return what takes the steps of practice, with the run's network."""
    return change_learner(MAML(run.config.metalearner.model), run.config.env, inner_kl=ROUND_NATS, schedule="constant")


def start_from(learner: PolicyLearner, theta: Theta, batch: RewardBatch) -> Adapted:
    """Return what acts before anything is known of the tasks."""
    return learner.unadapted(theta, len(batch.which))


@dataclass
class Way:
    """A way to learn from episodes: where to begin, and what makes the steps, which may keep something between them."""

    begin: Callable[[RewardBatch], Adapted]
    step: Callable[[], Step]
    explores: bool = False  # whether it begins with many policies

    def with_guard(self) -> Way:
        """Return the same with a guard."""
        return replace(self, step=lambda: guard(self.step(), self.explores))


@dataclass
class Trial:
    """What all rows of a test have in common: the run, and the goals to choose on and to test on."""

    run: Run
    settings: EvaluateConfig

    def batch(self, split: Split, final: bool = False) -> RewardBatch:
        """Return the tasks of all goals of a split, and episodes of its own; `final`: further goals to choose on."""
        s = self.settings
        count = s.goals if split == "test" else s.validation * (1 + FURTHER)
        tasks = goals(s.benchmark, self.run.config.env, split, count, s.seed)
        here = np.arange(count)
        if split == "val":
            here = here[s.validation :] if final else here[: s.validation]
        seed = seeds.integer(s.seed, split)  # a reward that all goals are is met in other episodes
        return tasks.sample(here, episode=EpisodeSpec(1, s.episodes, s.episodes), seed=seed)

    def own(self) -> tuple[Tensor, dict[str, Any]]:
        """Return the run's learner, which adapts by its own inner steps."""
        run, batch = self.run, self.batch("test")
        learner, theta = run.learner, run.theta
        assert isinstance(learner, PolicyLearner)
        begin, own = partial(start_from, learner, theta), partial(own_step, learner, theta)
        ways: dict[str, Way] = {OWN: Way(begin, own)}
        if ProposerTraits.of(run.config.proposer).demonstrates:
            shown = self.demonstrate(batch)
            ways = {SHOWN_ONCE: Way(begin, lambda: lambda adapted, _: own()(adapted, shown))}
        elif not isinstance(learner, RecurrentLearner):
            plain = list_candidates(self.policy_learner(), run.config.env, theta)
            mean = partial(start_from, self.policy_learner(), theta)
            said = f"{MEAN}, " if learner.explores else ""
            rest = {STAYS: lambda: stay} | {f"{OWN}, then {name}": way for name, way in plain.items()}
            ways |= {name: Way(begin, partial(follow, own, way), learner.explores) for name, way in rest.items()}
            ways |= {f"{said}{name}": Way(mean, way) for name, way in plain.items()}
        found, policies, facts = self.best(learner, theta, ways)
        return found, facts if self.settings.practice else {**facts, **self.hand_back(policies, batch)}

    def practise_own(self) -> tuple[Tensor, dict[str, Any]]:
        """Return the run's learner, which takes its own step once, and practises after it and each later batch."""
        learner, theta = self.run.learner, self.run.theta
        assert isinstance(learner, PolicyLearner)
        begin, step = partial(start_from, learner, theta), own_step(learner, theta)
        found, policies, facts = self.measure_practice(learner, theta, begin, step)
        return found, {**facts, **self.hand_back(policies, self.batch("test"))}

    def hand_back(self, policies: list[Adapted], batch: RewardBatch) -> dict[str, Any]:
        """Write the policies that the test ended with, for `umeta export`, and show what they do; return notes."""
        run = self.run
        assert isinstance(run.learner, PolicyLearner)
        if not isinstance(run.learner, RecurrentLearner):
            order = batch.which.argsort()  # by the number of the goal
            artifacts.write_tensors(run.folder / ADAPTED, {n: value[order] for n, value in policies[-1].params.items()})
        ends = {"before": policies[0], "after": policies[-1]}
        notes = [self.film(name, policy, batch) for name, policy in ends.items()]
        few = replace(batch, which=batch.which[:PICTURED], indices=batch.indices[:PICTURED])
        paths = {}
        for name, policy in ends.items():
            act = policy_of(run.learner, run.theta, take_first(policy, PICTURED))
            paths[f"{name} adaptation"] = few.paths(act, 3, "shown")
        places = getattr(batch.tasks.rewards, "places", None)
        marked = None if places is None else places[few.which]
        environments.draw_behaviour(run.folder / "behaviour.png", paths, run.config.env, marked)
        return {"notes": [note for note in dict.fromkeys(notes) if note]}

    def film(self, name: str, policy: Adapted, batch: RewardBatch) -> str | None:
        """Film the first goal's policy; return a sentence where that is impossible."""
        assert isinstance(self.run.learner, PolicyLearner)
        act = policy_of(self.run.learner, self.run.theta, take_first(policy, 1))
        told = replace(batch, which=batch.which[:1]).telling(act)
        return environments.write_film(
            self.run.folder / f"{name}.gif", batch.tasks.env, act, self.settings.seed, told=told
        )

    @cached_property
    def experts(self) -> tuple[Tensor, list[Adapted], dict[str, Any]]:
        """Policies that began with random weights, each goal's with others, trained for each goal by itself."""
        return self.train(self.policy_learner(), self.draw_policies)

    def draw_policies(self, batch: RewardBatch) -> Adapted:
        """Draw random weights for each goal."""
        learner = self.policy_learner()
        drawn = [learner.init(seeds.integer(batch.seed, "scratch", int(index))).params for index in batch.indices]
        return Adapted({name: torch.stack([one[name] for one in drawn]) for name in drawn[0]})

    def scratch(self) -> tuple[Tensor, dict[str, Any]]:
        """Return a policy with random weights, trained for each goal by itself."""
        found, _, facts = self.experts
        return found, facts

    def practise_from_scratch(self) -> tuple[Tensor, dict[str, Any]]:
        """Return a policy with random weights that learns by practice alone."""
        found, _, facts = self.measure_practice(self.policy_learner(), Theta({}), self.draw_policies, stay)
        return found, facts

    def demonstrate(self, batch: RewardBatch) -> Batch:
        """Return an episode for each goal of the policy that was trained on it from scratch."""
        act = partial(self.policy_learner().predict, Theta({}), self.experts[1][-1])
        return batch.batch(batch.paths(act, 1, "demonstration"))

    def finetune(self) -> tuple[Tensor, dict[str, Any]]:
        """Train the proposer's best skill for each goal on. The episodes that choosing took count as steps."""
        tasks = load_skills(self.run)
        assert tasks.skills is not None
        skills = tasks.skills
        count, width = skills["1.bias"].shape
        learner = change_learner(MAML(MLP([width, width])), self.run.config.env)
        rewarded = replace(tasks, env=self.batch("val").tasks.env)
        every = RewardBatch(rewarded, torch.arange(count), np.arange(count), EpisodeSpec(1, 1, 1), self.settings.seed)
        tried = every.paths(partial(learner.predict, Theta({}), Adapted(skills)), TRIED, "choose a skill")

        def begin(batch: RewardBatch) -> Adapted:
            rewards = batch.tasks.rewards
            totals = [tried.total(rewards(tried, which.expand(count))) for which in batch.which]
            best = torch.stack(totals).argmax(1)
            return Adapted({name: value[best] for name, value in skills.items()})

        found, _, facts = self.train(learner, begin)
        return found, {**facts, "offset": count * TRIED / self.settings.episodes}

    def train(
        self, learner: MAML, begin: Callable[[RewardBatch], Adapted]
    ) -> tuple[Tensor, list[Adapted], dict[str, Any]]:
        """Return what `best` does, of all candidates, for policies that were not meta-trained."""
        candidates = list_candidates(learner, self.run.config.env, Theta({}))
        return self.best(learner, Theta({}), {name: Way(begin, step) for name, step in candidates.items()})

    def best(
        self, learner: PolicyLearner, theta: Theta, ways: dict[str, Way]
    ) -> tuple[Tensor, list[Adapted], dict[str, Any]]:
        """Return the test returns of the candidate that earns most over all steps on the validation goals.

        The best of a first round are tried on further goals, where a step that does harm now and then shows, each with
        a guard as well. Where there is but one way there is nothing to choose.
        """
        test, steps = self.batch("test"), self.settings.steps

        def earn(name: str, batch: RewardBatch) -> float:
            way = ways[name]
            label = f"validation, {name}"
            try:
                found, _ = measure_returns(learner, theta, way.begin(batch), way.step(), batch, steps, label)
            except UserError as error:  # a step so long that the environment breaks down; another may do
                failed.append(error)
                return -math.inf
            after = found[:, 1:].mean().item()
            return after if math.isfinite(after) else -math.inf

        chosen = next(iter(ways))
        failed: list[UserError] = []
        facts = {"alone": chosen}
        if len(ways) > 1:
            first, further = self.batch("val"), self.batch("val", final=True)
            earned = {name: earn(name, first) for name in ways}
            if len(failed) == len(ways):
                raise failed[0]
            finalists = sorted(ways, key=lambda name: -earned[name])[:FINALISTS]
            guarded = {f"{name}, guarded": ways[name].with_guard() for name in finalists}
            # where no harm is done both earn the same, and the first is taken
            ways = guarded | {name: ways[name] for name in finalists}
            chosen = max(ways, key=lambda name: earn(name, further))
            facts = {"chosen": chosen}
        way = ways[chosen]
        found, policies = measure_returns(learner, theta, way.begin(test), way.step(), test, steps, chosen)
        return found, policies, facts

    def measure_practice(
        self, learner: PolicyLearner, theta: Theta, begin: Callable[[RewardBatch], Adapted], step: Step
    ) -> tuple[Tensor, list[Adapted], dict[str, Any]]:
        """Return the test returns of a step that is followed by practice. There is nothing to choose."""
        test, rounds = self.batch("test"), self.settings.practice
        step = add_practice(step, practice_learner(self.run), theta, test, rounds)
        found, policies = measure_returns(learner, theta, begin(test), step, test, self.settings.steps, "practice")
        return found, policies, {"practice": rounds}

    def steps_of(self, own: bool, rounds: int = 0) -> int:
        """Count the environment steps that a step of adaptation takes, its rounds of practice included.

        own: of the run's own learner, not of a baseline.
        """
        alone = own and isinstance(self.run.learner, RecurrentLearner)  # each of its trials learns from itself alone
        batches = 2 + rounds if rounds else 1  # what the last round has made is tried as well
        return self.run.config.env.horizon * batches * (1 if alone else self.settings.episodes)

    def policy_learner(self) -> MAML:
        """MAML with the run's network, whatever its learner."""
        return change_learner(MAML(self.run.config.metalearner.model), self.run.config.env)


def evaluate_run(run: Run, device: str, record: Path | None = None, trackers: Sequence[Tracker] = ()) -> Result:
    """Evaluate a run on true rewards, as `umeta.evaluation.run.evaluate_run`; always on the CPU.

    Raises:
        UserError: as `check`.
    """
    check(run.config, record)
    run = replace(run, theta=unpack(pack(run.theta)))  # on the CPU, where the environment is
    config, settings = run.config, run.config.evaluate
    title = config.title or config.name
    trial = Trial(run, settings)
    rows: dict[str, Callable[[], tuple[Tensor, dict[str, Any]]]] = {}
    if "scratch" in settings.baselines:
        rows["from scratch"] = trial.scratch
        if settings.practice:
            rows[name_row("from scratch", settings.practice)] = trial.practise_from_scratch
    if "finetune" in settings.baselines:
        try:
            load_skills(run)
            rows["best skill, fine-tuned"] = trial.finetune
        except UserError as error:
            note(f"baseline finetune left out: {error}")
    rows[title] = trial.own
    if settings.practice:
        rows[name_row(title, settings.practice)] = trial.practise_own
    handed_back = next(reversed(rows))
    asked = describe_question(run, env=config.plain["env"])
    # rows with practice are told by their names, so that those without stay when there is more of it
    question = {key: value for key, value in asked.items() if key != "practice"}
    kept = Kept(run.folder / "evaluation.json", question, ("rows", "handed back"))
    if handed_back not in kept.parts["handed back"]:  # what the folder shows is of another row
        kept.parts["rows"].pop(handed_back, None)
        kept.parts["handed back"] = {handed_back: True}
    table = kept.compute_rows({name: partial(compute_row, method) for name, method in rows.items()})
    order = trial.batch("test").which.argsort()  # goals by number, so that results of other seeds and episodes pair up
    result: Result = {
        "domain": "env",
        "name": config.name,
        "title": title,
        "rows": {name: tabulate_returns(torch.tensor(row["returns"])) for name, row in table.items()},
        "adaptation": {
            name: trace_returns(row, trial.steps_of(name == title, row.get("practice", 0)))
            for name, row in table.items()
        },
        "returns": {name: round_returns(torch.tensor(row["returns"])[order].tolist()) for name, row in table.items()},
        "protocol": {
            "name": settings.benchmark,
            "split": "test",
            "proposed_with": "true rewards" if run.true_labels else "no reward",
            **{key: asked[key] for key in ("goals", "episodes", "steps", "seed")},
        },
        "facts": list_facts(run, table),
        "handed_back": handed_back,
        "notes": table[handed_back].get("notes", []),
        "minutes": run.minutes(evaluate=kept.seconds),
        **describe_provenance(run),
    }
    result["facts"].append(
        f"{title}: minutes {', '.join(f'{name} {value:g}' for name, value in result['minutes'].items())}; "
        f"{result['hardware']}; seed {config.seed}"
    )
    with start_trackers(trackers, run.folder):
        write.write_adaptation(run, result, trackers)
    if record is not None:
        record_result(record, result)
    return result


def load_skills(run: Run) -> RewardTasks:
    """Return the tasks that the run was trained on, where their proposer learnt skills.

    Raises:
        UserError: it learnt none, or the tasks are gone, or others by now.
    """
    tasks, manifest = load_tasks(run.config)
    if artifacts.hash_value(manifest) != artifacts.read_json(run.folder / "tasks.json")["hash"]:
        raise UserError(f"{run.config.tasks_folder} is not what {run.folder} was trained on")
    if getattr(tasks, "skills", None) is None:
        raise UserError("the proposer learnt no skills")
    return cast(RewardTasks, tasks)


def check(config: Config, record: Path | None = None) -> None:
    """Find what would stop an evaluation, before anything long begins.

    Raises:
        UserError: an unknown benchmark or baseline, a network that the environment does not fit, or a results file
            that is not one.
    """
    settings = config.evaluate
    if unknown := [name for name in settings.baselines if name not in BASELINES]:
        raise UserError(f"evaluate.baselines: no baseline is named '{unknown[0]}'{suggest(unknown[0], BASELINES)}")
    goals(settings.benchmark, config.env, "test", 1, settings.seed)
    learner = config.metalearner.build(env_spec(config), config.train.episode)
    if settings.practice and (isinstance(learner, RecurrentLearner) or ProposerTraits.of(config.proposer).demonstrates):
        raise UserError("evaluate.practice: is for policies without a memory that learn from rewards; set it to 0")
    if record is not None:
        read_results(record)


def compute_row(method: Callable[[], tuple[Tensor, dict[str, Any]]]) -> dict[str, Any]:
    """Compute a method's returns and its notes, as they are kept."""
    found, facts = method()
    return {**facts, "returns": found.tolist()}


def tabulate_returns(found: Tensor) -> dict[str, Cell]:
    """Return a table's cells: mean return over goals [T, steps + 1], half width of its 95 % interval."""
    shown = [k for k in SHOWN if k < found.shape[1]]
    return {name_steps(k): summarize(found[:, k]) for k in shown}


def round_returns(returns: list[list[float]]) -> list[list[float]]:
    """Round returns [T, steps + 1] to what a results file keeps of them."""
    return [[round(value, 2) for value in of_goal] for of_goal in returns]


def trace_returns(row: dict[str, Any], each: int) -> Curve:
    """Mean return against environment steps; those that choosing where to begin took come first.

    each: environment steps that a step of adaptation takes.
    """
    found = [summarize(values) for values in torch.tensor(row["returns"]).T]
    x = [(k + row.get("offset", 0.0)) * each for k in range(len(found))]
    return trace(x, found, "environment steps of adaptation")


def compare_with_scratch(title: str, own: list[list[float]], scratch: list[list[float]], them: str) -> str:
    """Say how much more a row of returns [T, steps + 1] earns than training from scratch on the same goals."""
    gains = (torch.tensor(own) - torch.tensor(scratch)).T
    told = [(k, summarize(gains[k])) for k in SHOWN if k < len(gains)]
    listed = ", ".join(f"{cell['mean']:+.2f} ± {cell['interval']:.2f} (k={k})" for k, cell in told)
    return f"{title}: more than from scratch after k steps, mean and 95 % interval of differences over {them}: {listed}"


def list_facts(run: Run, rows: dict[str, dict[str, Any]]) -> list[str]:
    """Return what a reader must know to compare the numbers with others."""
    s: EvaluateConfig = run.config.evaluate
    reward = " ".join((find_benchmark(s.benchmark).reward.__doc__ or "").split())
    title = run.config.title or run.config.name
    own = s.benchmark == "own"  # one reward, which all goals are
    oracle = "the true reward, the same" if own else "true rewards of other goals"
    with_labels = oracle if run.true_labels else "no reward"
    them = "repetitions" if own else "goals"
    facts = [
        f"benchmark {s.benchmark}: {s.goals} {them} of seed {s.seed}{'' if own else ' that nothing has seen before'}, "
        f"mean undiscounted return of {s.episodes} fresh episodes for each and at each step, 95 % interval over "
        f"{them}; reward: {reward}",
        f"{title}: proposed with {with_labels}, as are its meta-training tasks",
    ]
    if isinstance(run.learner, RecurrentLearner):
        facts.append(
            f"{title}: a step is one more episode in each of {s.episodes} trials, which know nothing of each other and "
            "are tested as they go; a step of the others sees all of the episodes"
        )
    for name in (title, name_row(title, s.practice)):
        if name in rows and "from scratch" in rows:
            facts.append(compare_with_scratch(name, rows[name]["returns"], rows["from scratch"]["returns"], them))
    for name, row in rows.items():
        if name == name_row(title, s.practice):
            facts.append(f"{name}: umeta export --goal N writes these policies, and films show them")
        if "practice" in row:
            facts.append(
                f"{name}: after each step {row['practice'] + 1} times {s.episodes} episodes without a reward, "
                "judged by a regression of all rewards seen so far; the plot counts their environment steps"
            )
        if "alone" in row:
            facts.append(f"{name}: {row['alone']}")
        if "chosen" in row:
            facts.append(f"{name}: {row['chosen']}, chosen on {s.validation * (1 + FURTHER)} further {them}")
        if "offset" in row:
            facts.append(
                f"{name}: choosing the skill took {row['offset']:g} steps' worth of episodes, which the plot counts "
                "and the table's columns do not"
            )
    return facts
