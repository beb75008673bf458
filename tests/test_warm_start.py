"""`init_from`: what a run takes over from another, what it says of it, and that it does not need it again."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import rlrun_here, rows, the_run
from torch import nn

import rlrun as package
from rlrun.build import Agent
from rlrun.checkpoint import Checkpoints
from rlrun.cli import quoted
from rlrun.compose import names_of
from rlrun.config import options
from rlrun.errors import UserError
from rlrun.stateful import named_tensors
from rlrun.warm_start import Source, told, warm_start

MakeAgent = Callable[..., Agent]
Compose = Callable[..., dict[str, Any]]
TINY = ["network.hidden=[8]", "algo.num_envs=2", "algo.num_steps=32", "algo.batch_size=64", "tuned=none"]
SHORT = ["log.console=false", "log.tensorboard=false", "eval.episodes=2", "eval.final_episodes=3", "device.threads=1"]
PPO = ["algo=ppo", "env=cartpole", "total_steps=256", *TINY, *SHORT]
SIZES = {"algo.num_envs": 2, "algo.num_steps": 8, "algo.batch_size": 16, "algo.buffer_size": 500}


def source(agent: Agent, **origin: Any) -> Source:
    """Return an agent's policy as another begins with it."""
    facts = {"run": "some/run", "checkpoint": "last", "step": 1, "sha256": "", "algo": "ppo", "env": "cartpole"}
    moments = agent.normalizer.obs_moments.state_dict() if agent.spec.normalize_obs else None
    return Source({**facts, **origin}, dict(named_tensors(agent.algorithm.policy_state_dict())), moments)


def shuffled(agent: Agent) -> Agent:
    """Return the agent with other weights than every new one has."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for network in agent.algorithm.networks().values():
            for parameter in network.parameters():
                parameter.add_(torch.empty_like(parameter).normal_(generator=generator))
    return agent


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished PPO run in its outputs."""
    folder = tmp_path_factory.mktemp("stored")
    done = rlrun_here([*PPO, "eval.every=100", "name=first"], folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def workplace(stored: Path, tmp_path: Path) -> Path:
    """A copy of that folder, which a test may change."""
    return Path(shutil.copytree(stored, tmp_path / "workplace"))


FIRST = "outputs/cartpole/ppo/first/seed=0"
FROM_FIRST = [*PPO, f"init_from={FIRST}", "checkpoint.every=64"]


# --- What is taken --------------------------------------------------------------------------------------


def with_networks() -> list[str]:
    """Return the algorithms that learn with networks."""
    tabular = ("td", "q_learning", "sarsa", "expected_sarsa", "value_iteration", "q_iteration")
    return [algo for algo in options("algo") if algo not in ("random", "scripted", *tabular)]


def made(make_agent: MakeAgent, compose: Compose, algo: str, *overrides: str) -> Agent:
    """Return a small agent of an algorithm, in an environment that it can act in."""
    for env in ("cartpole", "pendulum"):
        known = compose(f"algo={algo}", f"env={env}", "tuned=none")["algo"]
        sizes = [f"{key}={size}" for key, size in SIZES.items() if key.removeprefix("algo.") in known]
        if "train_every" in known:
            sizes.append("algo.train_every=2")
        try:
            return make_agent(f"algo={algo}", f"env={env}", "tuned=none", "network.hidden=[8]", *sizes, *overrides)
        except UserError as error:
            if "cannot act in" not in str(error):
                raise
    raise AssertionError(f"{algo} acts nowhere")


@pytest.mark.parametrize("algo", with_networks())
def test_every_algorithm_takes_a_policy_of_its_own_kind_whole_and_its_targets_follow(
    algo: str, make_agent: MakeAgent, compose: Compose
) -> None:
    other, agent = shuffled(made(make_agent, compose, algo)), made(make_agent, compose, algo)
    facts = warm_start(agent, source(other))
    theirs, own = (dict(named_tensors(a.algorithm.policy_state_dict())) for a in (other, agent))
    assert own.keys() == theirs.keys() == set(facts["taken"])
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    assert not facts["left_behind"]
    networks = agent.algorithm.networks()
    for name in networks:
        if "target" in name:  # what the convention rests on
            assert equal(networks[name], networks[name.removeprefix("target_")]), name
    assert not any(name in agent.algorithm.acting_networks() for name in facts["fresh"])


ON_POLICY = ["ppo", "a2c", "trpo", "a3c", "reinforce", "actor_critic"]


@pytest.mark.parametrize("algo", ON_POLICY)
def test_a_clone_starts_every_algorithm_with_such_a_policy(algo: str, make_agent: MakeAgent, compose: Compose) -> None:
    clone = shuffled(made(make_agent, compose, "bc"))
    agent = made(make_agent, compose, algo)
    facts = warm_start(agent, source(clone, algo="bc"))
    assert not any(name in facts["fresh"] for name in dict(named_tensors(agent.algorithm.policy_state_dict())))
    obs, first = torch.randn(50, 4), torch.zeros(50, dtype=torch.bool)
    with torch.no_grad():
        wanted, actual = (a.algorithm.act(obs, None, first)[0] for a in (clone, agent))
    assert torch.equal(wanted, actual)


def test_what_fits_is_taken_and_the_rest_stays_as_it_was(make_agent: MakeAgent, compose: Compose) -> None:
    other = shuffled(made(make_agent, compose, "ppo"))
    agent, untouched = (make_agent("algo=ppo", "env=acrobot", *TINY, "network.hidden=[8,8]") for _ in range(2))
    facts = warm_start(agent, source(other))
    assert facts["taken"] == [f"net.{part}.1.bias" for part in ("policy_torso", "value_torso")] + [
        "net.value_head.weight",
        "net.value_head.bias",
    ]
    own, before, theirs = (dict(named_tensors(a.algorithm.policy_state_dict())) for a in (agent, untouched, other))
    for name, tensor in own.items():
        assert torch.equal(tensor, theirs[name] if name in facts["taken"] else before[name]), name
        assert (name in facts["taken"]) != (name in facts["fresh"])
    assert set(facts["left_behind"]) == theirs.keys() - set(facts["taken"])


def test_a_policy_on_a_torso_of_its_own_goes_before_the_value_where_they_are_to_share_one(
    make_agent: MakeAgent, compose: Compose
) -> None:
    other = shuffled(made(make_agent, compose, "ppo"))
    shared = made(make_agent, compose, "ppo", "algo.share_torso=true")
    facts = warm_start(shared, source(other))
    assert equal(shared.algorithm.net.policy_torso, other.algorithm.net.policy_torso)  # type: ignore[attr-defined]
    assert facts["left_behind"] == ["net.value_torso.1.weight", "net.value_torso.1.bias"]
    back = made(make_agent, compose, "ppo")
    warm_start(back, source(shared))
    for part in ("policy_torso", "value_torso"):
        assert equal(getattr(back.algorithm.net, part), shared.algorithm.net.policy_torso)  # type: ignore[attr-defined]


def test_tables_are_taken_too(make_agent: MakeAgent) -> None:
    agents = [make_agent(f"algo={algo}", "env=frozenlake") for algo in ("sarsa", "q_learning")]
    for _ in range(20):
        agents[0].algorithm.step()
    warm_start(agents[1], source(agents[0]))
    sarsa, q_learning = (agent.algorithm.q.array() for agent in agents)  # type: ignore[attr-defined]
    assert np.array_equal(sarsa, q_learning)
    assert np.ptp(q_learning) > 0


@pytest.mark.parametrize(("here", "there"), [(True, True), (True, False), (False, True)])
def test_statistics_come_along_where_both_normalise(
    here: bool, there: bool, make_agent: MakeAgent, compose: Compose
) -> None:
    key = "env.normalize_obs={}"
    other = made(make_agent, compose, "ppo", key.format(str(there).lower()))
    other.algorithm.step()
    agent, untouched = (made(make_agent, compose, "ppo", key.format(str(here).lower())) for _ in range(2))
    facts = warm_start(agent, source(other))
    assert facts["obs_statistics"] == (here and there)
    expected = other if here and there else untouched
    assert np.array_equal(agent.normalizer.obs_moments.mean, expected.normalizer.obs_moments.mean)
    assert not np.array_equal(agent.normalizer.obs_moments.mean, np.zeros(4)) or not here


def test_statistics_of_observations_of_another_shape_stay_behind(make_agent: MakeAgent) -> None:
    other, agent, untouched = (
        make_agent("algo=ppo", f"env={env}", *TINY, "env.normalize_obs=true")
        for env in ("cartpole", "acrobot", "acrobot")
    )
    begun = source(other)
    facts = warm_start(agent, begun)
    assert not facts["obs_statistics"]
    assert "begin anew" in told(begun, facts, normalizes=True)
    assert np.array_equal(agent.normalizer.obs_moments.mean, untouched.normalizer.obs_moments.mean)
    agent.algorithm.step()


def test_if_nothing_fits_both_sides_are_named(make_agent: MakeAgent, compose: Compose) -> None:
    agent, other = made(make_agent, compose, "dqn"), made(make_agent, compose, "ppo")
    before = {name: tensor.clone() for name, tensor in named_tensors(agent.algorithm.policy_state_dict())}
    with pytest.raises(UserError) as raised:
        warm_start(agent, source(other))
    for fragment in ("init_from=some/run", "net.policy_torso.1.weight [8, 4]", "net.advantage.0.weight [8, 4]"):
        assert fragment in str(raised.value)
    after = dict(named_tensors(agent.algorithm.policy_state_dict()))
    assert all(torch.equal(before[name], after[name]) for name in before)


# --- A run ----------------------------------------------------------------------------------------------


def test_a_run_begins_with_the_very_policy_says_so_and_records_it(workplace: Path) -> None:
    done = rlrun_here([*FROM_FIRST, "checkpoint.keep=100"], workplace)
    assert done.returncode == 0, done.stderr
    assert f"init_from: 8 weights of {workplace / FIRST} (ppo on cartpole, last policy, step 256)" in done.stderr
    (run,) = workplace.glob("outputs/cartpole/ppo/*init_from=ppo-first-seed=0*/seed=0")
    began, last = package.load(run, 0), package.load(workplace / FIRST, "last")
    nets = [loaded.agent.algorithm.networks()["net"] for loaded in (began, last)]
    assert equal(*nets)
    assert not equal(nets[0], package.load(run, "last").agent.algorithm.networks()["net"])
    origin = json.loads((run / "run.json").read_text())["origins"]["init_from"]
    manifest = json.loads((workplace / FIRST / "checkpoints/step-256.json").read_text())
    assert (origin["run"], origin["step"]) == (str(workplace / FIRST), 256)
    assert origin["sha256"] == manifest["sha256"]
    assert origin["fresh"] == origin["left_behind"] == []


def test_the_checkpoint_may_be_chosen(workplace: Path) -> None:
    done = rlrun_here([*FROM_FIRST, "init_checkpoint=best"], workplace)
    assert done.returncode == 0, done.stderr
    (run,) = workplace.glob("outputs/cartpole/ppo/*init_checkpoint=best_init_from=*/seed=0")
    origin = json.loads((run / "run.json").read_text())["origins"]["init_from"]
    _, manifest = Checkpoints(workplace / FIRST, keep=1).load_best()
    assert (origin["checkpoint"], origin["sha256"]) == ("best", manifest["sha256"])


def test_a_run_that_began_does_not_need_the_other_again(workplace: Path) -> None:
    name = "name=second"
    assert rlrun_here([*FROM_FIRST, name], workplace).returncode == 0
    shutil.rmtree(workplace / FIRST)
    finished = rlrun_here([*FROM_FIRST, name], workplace)
    assert finished.returncode == 0
    assert "is finished" in finished.stderr
    run = workplace / "outputs/cartpole/ppo/second/seed=0"
    extended = rlrun_here(["resume", str(run), "total_steps=400"], workplace)
    assert extended.returncode == 0, extended.stderr
    assert rlrun_here(["eval", str(run), "episodes=2"], workplace).returncode == 0
    assert json.loads((run / "run.json").read_text())["origins"]["init_from"]["step"] == 256


def test_another_origin_under_the_same_name_is_refused(workplace: Path) -> None:
    assert rlrun_here([*FROM_FIRST, "name=second"], workplace).returncode == 0
    done = rlrun_here([*PPO, "name=second"], workplace)
    assert done.returncode == 2
    assert f"init_from: stored {FIRST}, asked for None" in done.stderr
    changed = rlrun_here(["resume", "outputs/cartpole/ppo/second/seed=0", "init_from=other/run"], workplace)
    assert changed.returncode == 2
    assert "init_from=other/run cannot be changed on a stored run" in changed.stderr


BAD = {
    "no run": (["init_from=outputs/none/seed=0"], "init_from=outputs/none/seed=0 is not a run folder"),
    "no such checkpoint": ([f"init_from={FIRST}", "init_checkpoint=77"], "checkpoint=77 is not there"),
    "no checkpoint yet": (["init_from=outputs/cartpole/ppo/empty/seed=0"], "holds no checkpoint yet"),
    "a checkpoint of nothing": (["init_checkpoint=best"], "init_checkpoint=best says nothing without init_from"),
    "nothing fits": ([f"init_from={FIRST}", "algo=dqn", "total_steps=256"], "none of its weights fits"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_begun_with_is_refused_before_anything_is_written(case: str, workplace: Path) -> None:
    empty = shutil.copytree(workplace / FIRST, workplace / "outputs/cartpole/ppo/empty/seed=0")
    shutil.rmtree(empty / "checkpoints")
    before = sorted(workplace.rglob("*"))
    given, expected = BAD[case]
    base = ["algo=ppo", "env=cartpole", *SHORT] if case == "nothing fits" else PPO
    done = rlrun_here([*base, *given], workplace)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert expected in done.stderr
    assert sorted(workplace.rglob("*")) == before


def test_a_sweep_may_begin_with_several_and_each_seed_with_its_own(workplace: Path) -> None:
    assert rlrun_here([*PPO, "name=first", "seed=1"], workplace).returncode == 0
    sweep = ["-m", *PPO, f"init_from=null,{FIRST}", "outputs=outputs"]
    done = rlrun_here(sweep, workplace)
    assert done.returncode == 0, done.stderr
    each = ["-m", *PPO, f"init_from={FIRST[:-1]}" + "${seed}", "seed=0,1"]
    done = rlrun_here(each, workplace)
    assert done.returncode == 0, done.stderr
    runs = sorted(workplace.glob("outputs/cartpole/ppo/*init_from=ppo-first_*/seed=*"))
    assert [run.name for run in runs] == ["seed=0", "seed=1"]
    begun = [json.loads((run / "run.json").read_text())["origins"]["init_from"]["run"][-6:] for run in runs]
    assert begun == ["seed=0", "seed=1"]


# --- Once more ------------------------------------------------------------------------------------------


def test_a_run_is_reproduced_from_any_folder_while_its_origin_is_as_it_was(workplace: Path, tmp_path: Path) -> None:
    assert rlrun_here([*FROM_FIRST, "name=second"], workplace).returncode == 0
    run = workplace / "outputs/cartpole/ppo/second/seed=0"
    again = rlrun_here(["reproduce", str(run)], tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.startswith("bit-identical")

    assert rlrun_here(["resume", FIRST, "total_steps=512"], workplace).returncode == 0
    changed = rlrun_here(["reproduce", str(run)], tmp_path)
    assert changed.returncode == 2
    assert "its last policy is now another one, of step 512" in changed.stderr
    shutil.rmtree(workplace / FIRST)
    gone = rlrun_here(["reproduce", str(run)], tmp_path)
    assert gone.returncode == 2
    assert f"began with the last policy of init_from={workplace / FIRST}, of step 256" in gone.stderr


# --- Names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("outputs/cartpole/ppo/default/seed=3", "init_from=ppo-default-seed=3"),
        ("outputs/acrobot/ppo/default/seed=3/", "init_from=acrobot-ppo-default-seed=3"),
        ("outputs/cartpole/ppo/default/seed=${seed}", "init_from=ppo-default"),
        ("other/cartpole/ppo/default/seed=3", r"init_from=[0-9a-f]{6}-ppo-default-seed=3"),
        ("other/cartpole/ppo/default/seed=${seed}", r"init_from=[0-9a-f]{6}-ppo-default"),
        ("my_run", "init_from=my_run"),
    ],
)
def test_a_run_is_named_after_the_one_it_began_with(typed: str, expected: str, compose: Compose) -> None:
    choices = {"algo": "ppo", "env": "cartpole", "network": "mlp", "device": "auto", "protocol": "none"}
    override = f"init_from='{typed}'"
    config = compose("env=cartpole", override)
    names = names_of(config, [override], {**choices, "tuned": "ppo_cartpole"})
    assert re.fullmatch(expected, names.variant), names.variant


def test_each_seed_from_its_own_has_one_name_and_two_places_have_two(compose: Compose) -> None:
    choices = {"algo": "ppo", "env": "cartpole", "network": "mlp", "device": "auto", "protocol": "none"}
    choices["tuned"] = "ppo_cartpole"

    def named(*overrides: str) -> str:
        return names_of(compose("env=cartpole", *overrides), list(overrides), choices).variant

    one, other = (named("init_from='a/cartpole/ppo/x/seed=${seed}'", f"seed={seed}") for seed in (0, 1))
    assert one == other
    assert named("init_from='a/cartpole/ppo/x/seed=1'") != named("init_from='b/cartpole/ppo/x/seed=1'") != one


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("init_from=a/b/seed=0", "init_from='a/b/seed=0'"),
        ("init_from=null,a/seed=0,b/seed=1", "init_from=null,'a/seed=0','b/seed=1'"),
        ("init_from=a/b/seed=${seed}", "init_from='a/b/seed=${seed}'"),
        ("init_from='a/b/seed=0'", "init_from='a/b/seed=0'"),
        ("seed=range(1,3)", "seed=range(1,3)"),
        ("env.kwargs={a: b/c=d}", "env.kwargs={a: b/c=d}"),
    ],
)
def test_paths_are_quoted_for_hydra_alone_in_lists_and_with_the_runs_own_seed(typed: str, expected: str) -> None:
    assert quoted(typed) == expected


def test_without_an_origin_nothing_of_it_is_written(stored: Path) -> None:
    run = the_run(stored)
    assert json.loads((run / "run.json").read_text())["origins"] == {}
    assert not (run / "checkpoints/step-0.json").exists()
    assert rows(run / "metrics.jsonl")[0]["step"] > 0
