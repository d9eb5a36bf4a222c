"""Environments: physics bit for bit as gymnasium's, resets that depend on their numbers alone, and people's own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from umeta.envs.ant import Ant
from umeta.envs.batched import Driven, Walking, quiet
from umeta.envs.gym import Gym
from umeta.envs.half_cheetah import HalfCheetah
from umeta.envs.hopper import Hopper
from umeta.envs.nav2d import Nav2D
from umeta.envs.walker2d import Walker2d
from umeta.errors import UserError
from umeta.parts import Environment, Simulation

KINDS = (HalfCheetah, Ant, Hopper, Walker2d)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def physics(env: Any) -> Any:
    options = {"include_cfrc_ext_in_observation": False} if env.id == "Ant-v5" else {}
    with quiet():
        return gymnasium.make(env.id, exclude_current_positions_from_observation=not env.positions, **options).unwrapped


# The physics


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_states_are_gymnasiums_bit_for_bit(kind: Callable[..., Driven], positions: bool) -> None:
    """300 steps of three copies; gymnasium's own are stepped alone, from the same noise."""
    env, copies, steps = kind(positions=positions), 3, 300
    bodies, actions = env.simulate(copies), normal(steps, copies, env.action)
    assert bodies.reset(uniform(copies, env.randoms)).shape == (copies, env.observation)
    single = [physics(env) for _ in range(copies)]
    for one, qpos, qvel in zip(single, bodies.qpos, bodies.qvel, strict=True):
        one.reset()
        one.set_state(qpos.copy(), qvel.copy())
        assert env.dt == pytest.approx(one.dt)
    for action in actions:
        observation, ended = bodies.step(action)
        assert not ended.any()
        for i, one in enumerate(single):
            seen, *_ = one.step(env.torque(action)[i].numpy())
            np.testing.assert_array_equal(one.data.qpos, bodies.qpos[i])
            np.testing.assert_array_equal(one.data.qvel, bodies.qvel[i])
            np.testing.assert_array_equal(seen.astype(np.float32), observation[i].numpy())
    plane = {"Ant-v5": 2}.get(one.spec.id, 1)
    ground = bodies.qpos[:, :plane].astype(np.float32)
    np.testing.assert_array_equal(bodies.positions()[:, :plane].numpy(), ground)


@pytest.mark.parametrize("kind", KINDS)
def test_the_resets_noise_is_gymnasiums(kind: Callable[..., Driven]) -> None:
    env, one, resets = kind(), physics(kind()), []
    bodies = env.simulate(2000)
    assert bodies.reset(torch.zeros(2000, env.randoms)).isfinite().all()
    bodies.reset(uniform(2000, env.randoms))
    for seed in range(300):
        one.reset(seed=seed)
        resets.append((one.data.qpos - one.init_qpos, one.data.qvel.copy()))
    theirs = [np.stack(noise) for noise in zip(*resets, strict=True)]
    for found, noise in zip((bodies.qpos - one.init_qpos, bodies.qvel), theirs, strict=True):
        quantiles = [np.quantile(sample, [0.025, 0.2, 0.5, 0.8, 0.975]) / noise.std() for sample in (found, noise)]
        np.testing.assert_allclose(*quantiles, atol=0.12)
        np.testing.assert_allclose(found.std(0) / noise.std(), 1, atol=0.07)
        np.testing.assert_allclose(found.mean(0) / noise.std(), 0, atol=0.1)


@pytest.mark.parametrize("env", [Nav2D(), HalfCheetah(), Ant(), Hopper()], ids=lambda env: env.id)
def test_a_copy_is_the_same_alone_among_others_and_again(env: Environment) -> None:
    u, actions = uniform(4, env.randoms), normal(20, 4, env.action)

    def observed(simulation: Simulation, copies: slice) -> Tensor:
        seen = [simulation.reset(u[copies]), *(simulation.step(action[copies])[0] for action in actions)]
        return torch.stack(seen, 1)

    together = env.simulate(4)
    first = observed(together, slice(0, 4))
    assert first.dtype == torch.float32
    assert torch.equal(observed(together, slice(0, 4)), first)
    assert torch.equal(observed(env.simulate(1), slice(2, 3)), first[2:3])


def test_the_thread_count_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    env, seen = Ant(), []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        ants = env.simulate(3)
        assert ants.batch.nthread == threads
        ants.reset(uniform(3, env.randoms))
        seen.append(torch.stack([ants.step(action)[0] for action in normal(20, 3, env.action)]))
    assert torch.equal(*seen)


def test_torques_are_scaled_and_clipped() -> None:
    actions = torch.tensor([[0.5, -1, 10, -10, 0, 1]])
    np.testing.assert_allclose(HalfCheetah(unit=0.5).torque(actions), [[0.25, -0.5, 1, -1, 0, 0.5]])


def test_an_ant_ends_where_gymnasiums_does_and_only_when_asked_to() -> None:
    heights = torch.linspace(-0.5, 1.5, 41)
    ending, living = (env.simulate(len(heights)) for env in (Ant(ends=True), Ant()))
    for ants in (ending, living):
        ants.reset(torch.full((len(heights), Ant().randoms), 0.5))
        ants.qpos[:, 2] = heights
        ants.batch.forward()
    one, ends = physics(Ant()), []
    for qpos in ending.qpos:
        one.reset()
        one.set_state(qpos.copy(), np.zeros(14))
        ends.append(one.step(np.zeros(8))[2])
    assert 5 < sum(ends) < 36
    assert ending.step(torch.zeros(len(heights), 8))[1].tolist() == ends
    assert not living.step(torch.zeros(len(heights), 8))[1].any()
    still = ending.qpos[ends].copy()
    assert ending.step(torch.ones(len(heights), 8))[1][ends].all()
    np.testing.assert_array_equal(ending.qpos[ends], still)  # what has ended is simulated no more
    ending.qpos[:] = np.nan
    assert ending.step(torch.zeros(len(heights), 8))[1].all()


@pytest.mark.parametrize(
    ("env", "place", "limits"),
    [
        (Ant(), 2, (0.2, 1)),
        (Hopper(), 1, (0.7,)),
        (Hopper(), 2, (-0.2, 0.2)),
        (Hopper(), 5, (-100, 100)),  # of a joint
        (Hopper(), 7, (-100, 100)),  # of a velocity
        (Walker2d(), 1, (0.8, 2)),
        (Walker2d(), 2, (-1, 1)),
    ],
)
def test_the_limits_of_what_is_healthy_are_gymnasiums(env: Walking, place: int, limits: tuple[float, ...]) -> None:
    one, ended = physics(env), []
    one.reset()
    qpos, qvel = one.data.qpos, one.data.qvel
    numbers, at = (qpos, place) if place < len(qpos) else (qvel, place - len(qpos))
    for number in [near for x in limits for near in (np.nextafter(x, -200), x, np.nextafter(x, 200))] + [np.nan]:
        numbers[at] = number
        ended.append(bool(env.fallen(qpos[None], qvel[None])[0]))
        assert ended[-1] != one.is_healthy, number
    assert 0 < sum(ended) < len(ended)


@pytest.mark.parametrize("env", [HalfCheetah(), Ant(), Hopper()], ids=lambda env: env.id)
def test_unstable_physics_are_not_numbers_leave_other_copies_alone_and_are_silent(
    env: Driven, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    bodies = env.simulate(4)
    bodies.reset(uniform(4, env.randoms))
    bodies.qvel[1], bodies.qvel[2] = 1e12, np.nan
    for _ in range(3):
        observation, _ = bodies.step(torch.zeros(4, env.action))
    assert observation.isfinite().all(1).tolist() == [True, False, False, True]
    assert bodies.reset(uniform(4, env.randoms)).isfinite().all()
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_stepper_is_not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    from mujoco.batch import SimulationError

    bodies = HalfCheetah().simulate(3)
    bodies.reset(uniform(3, 18))

    def fail(ids: np.ndarray, nstep: int) -> None:
        raise SimulationError(np.array([1]), "out of memory")

    monkeypatch.setattr(bodies.batch, "step", fail)
    assert bodies.step(torch.zeros(3, 6))[0].isfinite().all(1).tolist() == [True, False, True]


def test_a_body_is_drawn_or_it_is_said_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    import mujoco

    bodies = HalfCheetah().simulate(2)
    bodies.reset(uniform(2, 18))
    with suppress(UserError):  # this machine may have neither a screen nor EGL
        picture = bodies.picture(1)
        assert picture.shape == (128, 128, 3)
        assert picture.dtype == np.uint8
        assert picture.std() > 10

    def refuse(*_: Any) -> None:
        raise RuntimeError("no display")

    monkeypatch.setattr(mujoco, "Renderer", refuse)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(UserError, match=r"no display.*MUJOCO_GL=egl"):
        HalfCheetah().simulate(1).picture()
    monkeypatch.setattr("umeta.envs.batched.screen", lambda: False)
    monkeypatch.delenv("MUJOCO_GL")
    with pytest.raises(UserError, match=r"no screen.*MUJOCO_GL=egl"):
        HalfCheetah().simulate(1).picture()


# A point


def test_a_point_moves_by_hand() -> None:
    box, plane = Nav2D(unit=0.05).simulate(1), Nav2D("Nav2DOpen-v0", unit=0.05).simulate(1)
    for points in (box, plane):
        assert points.reset(torch.zeros(1, 0)).tolist() == [[0, 0]]
        for action, place in (([1.0, -1.0], [0.05, -0.05]), ([100.0, 0.0], [0.15, -0.05])):
            seen, ended = points.step(torch.tensor([action]))
            np.testing.assert_allclose(seen, [place], rtol=1e-6)
            assert torch.equal(points.positions(), seen)
            assert not ended.any()
        for _ in range(10):
            points.step(torch.tensor([[100.0, -100.0]]))
    np.testing.assert_allclose(box.positions(), [[0.5, -0.5]])
    np.testing.assert_allclose(plane.positions(), [[1.15, -1.05]], rtol=1e-6)


def test_a_points_picture_is_a_disc_at_its_place() -> None:
    """Of radius 0.03, in a square that is 1.5 wide: x to the right, y upwards."""
    points = Nav2D(unit=0.1).simulate(1)
    points.reset(torch.zeros(1, 0))
    for action in ([1.0, 1.0], [1.0, 0.0]):
        points.step(torch.tensor([action]))
    picture = points.picture()
    rows, columns = (picture == (0, 90, 170)).all(-1).nonzero()
    unit = 1.5 / 127
    assert len(rows) * unit**2 == pytest.approx(np.pi * 0.03**2, rel=0.2)
    assert (columns.mean() * unit - 0.75, 0.75 - rows.mean() * unit) == pytest.approx((0.2, 0.1), abs=unit)


# Other people's environments


class Broken(gymnasium.Env):
    """Fails where it is told to."""

    observation_space = action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, how: str) -> None:
        self.how = how
        if how == "init":
            raise KeyError("robot")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if self.how == "reset":
            raise OSError("no robot")
        if self.how == "old reset":
            return np.zeros(1, np.float32)
        return np.full(1, np.nan if self.how == "nan reset" else 0, np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        if self.how == "step":
            raise AssertionError("out of the world")
        seen = np.full(1, np.nan if self.how == "nan step" else 0, np.float32)
        return (seen, 0.0, False, {}) if self.how == "old step" else (seen, np.nan, False, False, {})


class Counting(gymnasium.Env):
    """Observes its seed's first random number, the steps so far, and the last action; ends after `last` steps."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float64)

    def __init__(self, last: int, render_mode: str | None = None) -> None:
        self.last, self.render_mode, self.count = last, render_mode, 0
        self.action_space = spaces.Box(np.array([-2, 0], np.float32), np.array([2, np.inf], np.float32))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.start, self.count = self.np_random.random(), 0
        return np.array([self.start, 0, 0, 0]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.count += 1
        return np.array([self.start, self.count, *action]), 10.0 + self.count, self.count == self.last, False, {}

    def render(self) -> np.ndarray:
        return np.full((4, 5, 3), self.count, np.uint8)


class Odd(gymnasium.Env):
    """Of whatever spaces it is told, and cannot be drawn."""

    def __init__(self, observed: spaces.Space, acted: spaces.Space) -> None:
        self.observation_space, self.action_space = observed, acted


@pytest.fixture(scope="module", autouse=True)
def registered() -> Any:
    gymnasium.register("Counting-v0", Counting)
    gymnasium.register("Hurried-v0", Counting, max_episode_steps=2)
    gymnasium.register("Odd-v0", Odd)
    gymnasium.register("Broken-v0", Broken, disable_env_checker=True)
    yield
    for name in ("Counting-v0", "Hurried-v0", "Odd-v0", "Broken-v0"):
        del gymnasium.registry[name]


def counting(id: str = "Counting-v0", last: int = 3, **options: Any) -> Gym:
    return Gym(id, {"last": last}, **options)


@pytest.mark.parametrize(
    ("env", "last"),
    [(counting(), 3), (counting("Hurried-v0", last=9, horizon=5), 5), (counting("Hurried-v0", last=4, horizon=5), 4)],
    ids=["terminated", "truncated", "its own limit is not taken"],
)
def test_an_end_stays_and_nothing_is_stepped_after_it(env: Gym, last: int) -> None:
    copies = env.simulate(2)
    for _ in range(2):
        start = copies.reset(torch.tensor([[0.1], [0.7]]))
        for t in range(1, 9):
            observation, ended = copies.step(torch.zeros(2, 2))
            assert observation[:, 1].tolist() == [min(t, last)] * 2
            assert torch.equal(observation[:, 0], start[:, 0])
            assert ended.tolist() == [t >= last] * 2
            assert torch.equal(copies.positions(), observation[:, :2])
            assert [one.unwrapped.count for one in copies.copies] == [min(t, last)] * 2  # nor is it simulated


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("init", "'Broken-v0' does not accept .* or fails .KeyError: 'robot'"),
        ("reset", "'Broken-v0' fails when it is reset .OSError: no robot"),
        ("old reset", "fails when it is reset"),
        ("step", "fails when it is stepped .AssertionError: out of the world"),
        ("old step", "fails when it is stepped .*terminated, truncated, info"),
        ("nan reset", "'Broken-v0': the observation it begins with is not a number"),
        ("nan step", "an observation is not a number; try"),
        ("reward", "a reward is not a number$"),
    ],
)
def test_an_environment_that_fails_is_named_and_where(how: str, said: str) -> None:
    def played() -> None:
        copies = Gym("Broken-v0", {"how": how}).simulate(2, rewarded=how == "reward")
        copies.reset(torch.rand(2, 1))
        copies.step(torch.zeros(2, 1))

    with pytest.raises(UserError, match=said):
        played()


def test_bounds_so_large_that_they_are_none_are_taken_for_none() -> None:
    most = np.finfo(np.float32).max
    gymnasium.register("Endless-v0", lambda: Odd(spaces.Box(-1, 1, (2,)), spaces.Box(-most, most, (1,), np.float32)))
    env = Gym("Endless-v0", unit=0.5)
    assert env.torque(torch.tensor([[-4.0], [0.0], [6.0]])).tolist() == [[-2], [0], [3]]
    del gymnasium.registry["Endless-v0"]


def test_actions_with_one_bound_begin_one_from_it() -> None:
    box = spaces.Box(np.array([2, -np.inf], np.float32), np.array([np.inf, -5], np.float32))
    gymnasium.register("Half-v0", lambda: Odd(spaces.Box(-1, 1, (2,)), box))
    actions = torch.tensor([[-3.0, -3.0], [0.0, 0.0], [4.0, 4.0]])
    assert Gym("Half-v0", unit=0.5).torque(actions).tolist() == [[2, -7.5], [3, -6], [5, -5]]
    del gymnasium.registry["Half-v0"]


def test_a_gymnasium_episode_depends_on_its_number_alone() -> None:
    pendulum = Gym("Pendulum-v1")
    u, actions = uniform(3, 1), normal(10, 3, 1)

    def observed(simulation: Simulation, copies: slice) -> Tensor:
        return torch.stack([simulation.reset(u[copies]), *(simulation.step(a[copies])[0] for a in actions)], 1)

    together = pendulum.simulate(3)
    first = observed(together, slice(0, 3))
    assert first.shape == (3, 11, pendulum.observation)
    assert torch.equal(observed(together, slice(0, 3)), first)
    assert torch.equal(observed(pendulum.simulate(1), slice(1, 2)), first[1:2])
    assert not torch.equal(first[0, 0], first[1, 0])


def test_observations_are_shown_on_a_logarithmic_scale_where_that_is_asked_for() -> None:
    """Of x the sign(x) log(1 + |x|); where a copy is remains what the environment says."""
    plain, compressed = (Gym("Pendulum-v1", symlog=symlog) for symlog in (False, True))
    seen, shown = plain.simulate(2), compressed.simulate(2)
    u, actions = uniform(2, 1), normal(3, 2, 1)
    for x, y in [(seen.reset(u), shown.reset(u)), *((seen.step(a)[0], shown.step(a)[0]) for a in actions)]:
        torch.testing.assert_close(y, x.sign() * (1 + x.abs()).log())
        torch.testing.assert_close(compressed.restore(y), x)
    assert torch.equal(seen.positions(), shown.positions())


def test_actions_are_scaled_from_the_middle_and_clipped() -> None:
    """The first number lies in [-2, 2], the second in [0, inf), where it begins with 1."""
    copies = counting(unit=0.5).simulate(3)
    copies.reset(uniform(3, 1))
    observation, _ = copies.step(torch.tensor([[1.0, 1.0], [-9.0, -9.0], [0.2, 9.0]]))
    np.testing.assert_allclose(observation[:, 2:], [[1, 1.5], [-2, 0], [0.2, 5.5]], rtol=1e-6)


def test_of_choices_the_one_with_the_largest_number_is_taken() -> None:
    """CartPole as gymnasium steps it; choices may be counted from any number on."""
    env = Gym("CartPole-v1", horizon=30)
    assert (env.observation, env.action) == (4, 2)
    u, numbers = uniform(2, 1), normal(30, 2, 2)
    copies = env.simulate(2, rewarded=True)
    seen, ended, earned = [copies.reset(u)], torch.zeros(2, dtype=torch.bool), torch.zeros(2)
    for number in numbers:
        observed, ended = copies.step(number)
        seen.append(observed)
        earned += copies.last_reward
    for copy in range(2):
        theirs = gymnasium.make("CartPole-v1")
        expected, over, steps = [theirs.reset(seed=int(u[copy, 0] * 2**31))[0]], False, 0
        while steps < 30 and not over:
            observed, _, over, *_ = theirs.step(int(numbers[steps, copy, 1] > numbers[steps, copy, 0]))
            expected.append(observed)
            steps += 1
        np.testing.assert_array_equal(torch.stack(seen)[: steps + 1, copy], np.stack(expected))
        assert ended[copy]
        assert earned[copy] == steps
    odd = Gym("Odd-v0", {"observed": VECTOR, "acted": spaces.Discrete(3, start=-1)})
    assert odd.torque(torch.tensor([[0.0, 2, 1], [3, 0, 1]])).tolist() == [0, -1]


def test_rewards_are_kept_only_where_they_are_asked_for() -> None:
    hidden, shown = counting().simulate(1), counting().simulate(1, rewarded=True)
    assert hidden.last_reward is None
    shown.reset(uniform(1, 1))
    rewards = []
    for _ in range(5):
        shown.step(torch.zeros(1, 2))
        rewards.append(shown.last_reward.item())
    assert rewards == [11, 12, 13, 0, 0]


def test_it_draws_itself_or_says_that_it_cannot() -> None:
    copies = counting().simulate(2)
    copies.reset(uniform(2, 1))
    copies.step(torch.zeros(2, 2))
    assert copies.picture(1).tolist() == np.ones((4, 5, 3)).tolist()
    vector = spaces.Box(-1, 1, (2,))
    with pytest.raises(UserError, match="'Odd-v0' cannot draw itself"):
        Gym("Odd-v0", {"observed": vector, "acted": vector}).simulate(1).picture()


VECTOR = spaces.Box(-1, 1, (2,))


@pytest.mark.parametrize(
    ("observed", "acted", "said"),
    [
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), VECTOR, r"the observations of 'Odd-v0' are Box\(0, 255, \(8, 8, 3\)"),
        (spaces.Dict({"a": VECTOR}), VECTOR, r"the observations of 'Odd-v0' are Dict"),
        (spaces.Discrete(3), VECTOR, r"the observations of 'Odd-v0' are Discrete\(3\)"),
        (VECTOR, spaces.MultiBinary(4), r"the actions of 'Odd-v0' are MultiBinary\(4\).*one choice"),
        (VECTOR, spaces.Box(0, 9, (2,), np.int64), r"the actions of 'Odd-v0' are Box.*floats"),
    ],
    ids=["pixels", "dict", "discrete", "choices", "integers"],
)
def test_what_is_no_vector_is_refused(observed: spaces.Space, acted: spaces.Space, said: str) -> None:
    env = Gym("Odd-v0", {"observed": observed, "acted": acted})
    for look in (lambda: env.observation, lambda: env.action, lambda: env.simulate(1)):
        with pytest.raises(UserError, match=said):
            look()


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (Gym("HalfCheta-v5"), "cannot make 'HalfCheta-v5'.*Did you mean: `HalfCheetah`"),
        (Gym("nowhere:Lost-v0"), "cannot make 'nowhere:Lost-v0'.*nowhere"),
        (Gym("Counting-v0"), r"'Counting-v0' does not accept env.options \{\}.*'last'"),
        (Gym("Pendulum-v1", {"length": 2}), r"'Pendulum-v1' does not accept env.options \{'length': 2\}"),
    ],
    ids=["unknown", "module", "missing", "option"],
)
def test_what_cannot_be_made_is_named(env: Gym, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _ = env.observation


def test_gymnasiums_own_physics_are_made_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And they are those of the stepper, but for the noise at the start."""
    monkeypatch.chdir(tmp_path)
    env = Gym("HalfCheetah-v5", unit=0.5)
    copies, bodies = env.simulate(2), HalfCheetah(unit=0.5).simulate(2)
    copies.reset(uniform(2, 1))
    bodies.reset(uniform(2, 18))
    for one, qpos, qvel in zip(copies.copies, bodies.qpos, bodies.qvel, strict=True):
        one.unwrapped.set_state(qpos.copy(), qvel.copy())
    for action in normal(10, 2, 6):
        assert torch.equal(copies.step(action)[0], bodies.step(action)[0])
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("env", [Nav2D(), *(kind() for kind in KINDS), counting()], ids=lambda env: env.id)
def test_all_are_environments(env: Environment) -> None:
    assert isinstance(env, Environment)
    simulation = env.simulate(2)
    kept = simulation.reset(uniform(2, env.randoms))
    before = kept.clone()
    observation, ended = simulation.step(torch.ones(2, env.action))
    assert torch.equal(kept, before), "the caller's own to keep"
    assert observation.shape == (2, env.observation)
    assert observation.dtype == simulation.positions().dtype == torch.float32
    assert simulation.positions().shape == (2, 2)
    assert ended.dtype == torch.bool
