"""TensorBoard's HParams tab: one row a configuration, with the means over its seeds, as its own backend sees it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness import rlrun_here, the_run
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

from rlrun.facts import FAILED, FINISHED, INTERRUPTED, Facts
from rlrun.hparams import session_end, session_start
from rlrun.logger import Logger

CONFIG: dict[str, Any] = {
    "seed": 0,
    "total_steps": 100,
    "outputs": "outputs",
    "eval": {"every": 5},
    "algo": {"_target_": "rlrun.algos.ppo.PPO", "gamma": 0.9, "clip_value": True, "end": None, "num_envs": 8},
    "network": {"_target_": "rlrun.networks.torsos.MLP", "hidden": [64, 64]},
}
FACTS = Facts(
    env="cartpole", algo="ppo", variant="default", seed=0, started="2026-01-02T03:04:05+00:00", host="", config=CONFIG
)


def with_gamma(gamma: float, seed: int = 0) -> Facts:
    config = {**CONFIG, "seed": seed, "algo": {**CONFIG["algo"], "gamma": gamma}}
    return replace(FACTS, seed=seed, config=config, variant=f"gamma={gamma}")


def write_session(root: Path, facts: Facts, result: float, status: str = FINISHED) -> Path:
    """Write what a run leaves: an evaluation, a result, an end."""
    folder = root / facts.name
    folder.mkdir(parents=True)
    logger = Logger(folder, tensorboard=True, facts=facts)
    logger.load_state_dict({})
    logger.metrics(50, {"eval/mean_reward": 2 * result})
    logger.result(100, result)
    logger.close(status)
    return folder


def session_groups(root: Path) -> dict[str, Any]:
    """Return {trial: session group} as the tab asks for them."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(root)).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(root))
    context = Context(TBContext(data_provider=provider, logdir=str(root)))
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=100, aggregation_type=api_pb2.AGGREGATION_AVG, allowed_statuses=[0, 1, 2, 3]
    )
    found = list_session_groups.Handler(RequestContext(), context, "0", request).run().session_groups
    return {group.name: group for group in found}


def metrics(group: Any) -> dict[str, float]:
    return {value.name.tag: value.value for value in group.metric_values}


def test_seeds_of_one_configuration_are_one_row_with_their_means(tmp_path: Path) -> None:
    for gamma, results in ((0.9, (1.0, 2.0, 6.0)), (0.99, (10.0, 20.0, 30.0))):
        for seed, result in enumerate(results):
            write_session(tmp_path, with_gamma(gamma, seed), result)
    groups = session_groups(tmp_path)
    assert len(groups) == 2
    by_gamma = {group.hparams["algo.gamma"].number_value: group for group in groups.values()}
    assert [len(by_gamma[gamma].sessions) for gamma in (0.9, 0.99)] == [3, 3]
    assert metrics(by_gamma[0.9])["final/mean_return"] == 3.0
    assert metrics(by_gamma[0.99])["final/mean_return"] == 20.0
    assert metrics(by_gamma[0.99])["eval/mean_reward"] == 40.0


def test_runs_under_one_name_that_differ_in_a_hyperparameter_are_two_rows() -> None:
    one, other = (replace(with_gamma(gamma), variant="mine") for gamma in (0.9, 0.99))
    assert one.trial() != other.trial()
    assert one.trial() == replace(one, seed=5, config={**one.config, "seed": 5}).trial()


def test_a_row_shows_what_may_change_learning_and_nothing_else() -> None:
    assert FACTS.hyperparameters() == {
        "algo": "ppo",
        "env": "cartpole",
        "variant": "default",
        "network": "MLP",
        "total_steps": 100,
        "algo.gamma": 0.9,
        "algo.clip_value": True,
        "algo.end": "null",
        "algo.num_envs": 8,
        "network.hidden": "[64, 64]",
    }


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        (FINISHED, api_pb2.STATUS_SUCCESS),
        (FAILED, api_pb2.STATUS_FAILURE),
        ("pruned", api_pb2.STATUS_SUCCESS),  # which was ended on purpose
        (INTERRUPTED, api_pb2.STATUS_UNKNOWN),  # it goes on
    ],
)
def test_a_session_says_how_it_ended(status: str, shown: int, tmp_path: Path) -> None:
    write_session(tmp_path, FACTS, 1.0, status)
    (group,) = session_groups(tmp_path).values()
    assert [session.status for session in group.sessions] == [shown]
    assert group.sessions[0].start_time_secs == FACTS.started_unix


def test_equal_facts_give_equal_bytes_whatever_the_order_of_the_keys() -> None:
    backwards = dict(reversed(CONFIG.items())) | {"algo": dict(reversed(CONFIG["algo"].items()))}
    again = replace(FACTS, config=backwards)
    assert session_start(FACTS).SerializeToString() == session_start(again).SerializeToString()
    assert session_end(succeeded=True, unix=1.0) == session_end(succeeded=True, unix=1.0)


def first_summary(folder: Path) -> bytes:
    """Return the first summary in the event file of a folder, as it lies there."""
    (path,) = folder.glob("events.out.tfevents.*")
    event = next(event for event in EventFileLoader(str(path)).Load() if event.HasField("summary"))
    return event.summary.SerializeToString(deterministic=True)


def test_a_resumed_run_has_the_same_beginning_and_no_second_one(tmp_path: Path) -> None:
    folder = write_session(tmp_path, FACTS, 1.0, INTERRUPTED)
    before = first_summary(folder)
    resumed = Logger(folder, tensorboard=True, facts=FACTS)
    resumed.load_state_dict({"metrics.jsonl": (folder / "metrics.jsonl").stat().st_size})
    resumed.close(FINISHED)
    assert first_summary(folder) == before
    (group,) = session_groups(tmp_path).values()
    assert [session.status for session in group.sessions] == [api_pb2.STATUS_SUCCESS]


def test_a_run_keeps_its_id_and_no_other_run_has_it() -> None:
    others = [replace(FACTS, seed=1), replace(FACTS, started="2026-01-02T03:04:06+00:00"), replace(FACTS, host="b")]
    assert len({FACTS.id, *(other.id for other in others)}) == 4
    assert replace(FACTS, config={}).id == FACTS.id  # what is watched may change on resume


def test_a_trained_run_is_a_row_with_its_result(tmp_path: Path) -> None:
    quick = ["algo=ppo", "env=cartpole", "total_steps=600", "eval.every=300", "eval.final_episodes=2"]
    assert rlrun_here([*quick, "log.console=false"], tmp_path).returncode == 0
    (group,) = session_groups(tmp_path).values()
    result = json.loads((the_run(tmp_path) / "result.json").read_text())["mean_return"]
    assert metrics(group)["final/mean_return"] == pytest.approx(result)
    assert group.hparams["total_steps"].number_value == 600
    assert not any(name.split(".")[0] in ("eval", "log", "seed", "outputs") for name in group.hparams)
