"""`rlrun tune`: the verb."""

import sys

from rlrun.errors import UserError
from rlrun.facts import FAILED
from rlrun.signals import Signals
from rlrun.tuning.plan import Plan, plan
from rlrun.tuning.workers import Job, Outcome, Pool

EXIT_FINISHED = 0


def tune(arguments: list[str]) -> int:
    """rlrun tune algo=ppo env=cartpole [KEY=VALUE ...]: search for hyperparameters, and say what they are worth.

    Each trial is an ordinary run for each of its seeds. The best trial is trained once more with fresh seeds, beside
    the present configuration, and written as a tuned file. The same line again goes on, or says what was found.

      trials=50          trials wanted, pruned ones among them; a larger number extends a finished search
      seeds=3            runs of a trial; its score is the mean of their last evaluations
      confirm=5          fresh seeds for the best trial and for the present configuration
      sampler=tpe        or random
      pruner=median      stop a trial that an evaluation shows below the median of the complete ones; or none
      jobs=1             trials at a time, each in a process of its own
      storage=journal    or sqlite: the trials.log or trials.db that Optuna's own tools open
      name=NAME          the folder, searches/<algo>_<env>... otherwise (outputs=DIR instead of searches)
      only=KEY,KEY       search these keys of the space alone

    The space is conf/tune/<algo>.yaml, changed by
      space.algo.gamma=[0.9,0.99]                        choices
      "space.algo.gae_lambda={low: 0.9, high: 1.0}"      a range; log: true or step: for its scale
      space.algo.learning_rate.high=1e-3                 one end of a range
      space.algo.gamma=null                              left as it is
      algo.gamma=0.98                                    fixed, as every other KEY=VALUE is for all trials
    """
    wanted = plan(arguments)
    _check_optuna()
    with Signals() as signals, Pool(wanted.options.jobs, signals, wanted.folder / "workers.log") as pool:
        if not wanted.file.exists():
            _check(wanted, pool)
            if signals.received:
                return 128 + signals.received
        try:
            wanted.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"outputs: {wanted.folder} cannot be made ({error}); choose another outputs=...") from error
        with wanted.lock():
            wanted.store()
            finished = _carry_out(wanted, pool)
        if finished:
            return EXIT_FINISHED
        print(f"{wanted.folder}: stopped, saved; the same command goes on from there", file=sys.stderr)
        return 128 + (signals.received or 0)


def _carry_out(wanted: Plan, pool: Pool) -> bool:
    """Search, confirm and report; return whether that came to its end."""
    from rlrun.tuning.board import Board
    from rlrun.tuning.confirm import confirm
    from rlrun.tuning.report import Report
    from rlrun.tuning.search import Search
    from rlrun.tuning.study import Study

    options = wanted.options
    study = Study(
        wanted.folder,
        options.storage,
        wanted.space,
        options.sampler,
        options.pruner,
        wanted.config["seed"],
        wanted.every,
        wanted.evaluations,
    )
    with Board() as board:
        Search(wanted, study, board).run(pool)
        if pool.signals.received:
            return False
        best = study.best()
        assert best is not None  # the first trials are never pruned
        confirmation = confirm(wanted, best, pool, board) if options.confirm else None
        if pool.signals.received:
            return False
    report = Report(wanted, study, best, confirmation)
    report.write()
    report.print()
    return True


def _check_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError(f'rlrun tune needs Optuna ({error}): pip install "rlrun[tune]"') from error


def _check(wanted: Plan, pool: Pool) -> None:
    """Raise UserError if the present configuration cannot be built, before anything is written."""
    outcomes: list[Outcome] = []
    jobs = [Job("check", [[*wanted.flags, *wanted.overrides]], check_only=True)]
    pool.run(lambda: jobs.pop() if jobs else None, lambda *_: False, lambda _, outcome: outcomes.append(outcome))
    if outcomes and outcomes[0].status == FAILED:
        raise UserError(outcomes[0].error)
