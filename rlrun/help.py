"""The page that `rlrun --help` prints."""

from rlrun.config import options

PAGE = """\
rlrun trains reinforcement-learning agents from a configuration, and finishes what it began: kill it at any
moment, give the same command again, and the result is bit for bit that of an undisturbed run.

Usage
  rlrun KEY=VALUE ...             train, or go on with a run that was stopped
  rlrun -m KEY=A,B ...            train all combinations; hydra/launcher=joblib, slurm_gpu or ray: several at a time
  rlrun +study=NAME [KEY=VALUE]   a saved sweep, of those that rlrun list shows
  rlrun resume RUN [KEY=VALUE]    go on with a run from its folder alone, e.g. with a larger total_steps
  rlrun eval RUN [episodes=100] [checkpoint=best|last|STEP] [first_seed=0]
  rlrun play RUN                  watch the policy: a window, or a video in RUN/videos
  rlrun ls [outputs]              a table of runs
  rlrun list                      everything that can be chosen, with a line about each
  rlrun bench KEY=VALUE ...       steps per second of a configuration, and where they go
  rlrun playground                random and hand-written policies, untrained: envs=cartpole,taxi episodes=20 seed=0
  rlrun compare PATHS ...         which is better, how surely: by=algo,variant metric=final|best|auc|TAG
                                  threshold=475 mix=true out=report into=FILE.md section=NAME
  rlrun aggregate PATHS ...       mean and 95% interval over seeds, as runs that TensorBoard shows beside them
  rlrun tune KEY=VALUE ...        search for hyperparameters: trials=50 seeds=3 confirm=5 jobs=1 space.KEY=[a,b]
  rlrun reproduce RUN             run it again from its record: is every bit the same, and if not, where and why
  rlrun export RUN                the policy as ONNX and safetensors, checked, with a model card in RUN/export
  rlrun clean [PATHS ...]         show what finished runs no longer need, and free it: yes=true keep=replay,...

Choose (algo=ppo env=cartpole, where nothing is said)
{groups}

Set
  seed=0  total_steps=1e6         the run; each environment brings its usual total_steps
  algo.learning_rate=1e-3         any number of the algorithm (--cfg job shows all of them)
  algo.num_envs=8  algo.gamma=0.99
  env.repeat_action_probability=0.25
  env.potential=MODULE.FUNCTION   shape the learner's rewards by a potential of the observation
  init_from=RUN                   begin with the weights of a stored run's policy; init_checkpoint=last|best|STEP
  eval.every=  eval.episodes=  log.every=  checkpoint.every=  checkpoint.keep=    cadences, in steps
  log.trackers=[wandb,mlflow]     the same numbers there, too: wandb.project=  mlflow.tracking_uri=
  stop.at_return=475  stop.after_time=2h    end early, cleanly
  name=my_run                     the run's folder, instead of one named after what you changed
  fresh=true                      set an existing run aside and start anew
  tuned=none                      leave out the tuned numbers for this pair of algo and env
  protocol=machado                Atari with sticky actions instead of Baselines' protocol
  device.threads=1  device.precision=bf16  device.compile=true

Examples
  rlrun algo=ppo env=cartpole
  rlrun algo=ppo env=breakout seed=1 total_steps=1e6
  rlrun -m algo=ppo,a2c env=cartpole,acrobot "seed=range(5)"
  rlrun algo=scripted env=cartpole algo.script=my_module.my_policy
  rlrun algo=bc env=cartpole algo.expert=outputs/cartpole/ppo/default/seed=0
  rlrun algo=ppo env=gym env.id=MountainCar-v0 algo.num_envs=16
  rlrun resume outputs/cartpole/ppo/default/seed=0 total_steps=200_000

Find
  outputs/<env>/<algo>/<variant>/seed=<n>/ holds config.yaml, run.json, metrics.jsonl, episodes.jsonl,
  evaluations.jsonl, result.json, checkpoints/ and a TensorBoard file: tensorboard --logdir outputs

Hydra's own flags work: --cfg job, --config-dir DIR, --info, -m, --hydra-help.
Tab completion in bash: eval "$(rlrun -sc install=bash)"
"""


def page() -> str:
    """Return the help, with the options that there are now."""
    groups = []
    for group in ("algo", "env", "network", "device", "protocol"):
        names = [name for name in options(group) if name != "none"]
        groups.append(_wrapped(f"  {group}=", names))
    return PAGE.format(groups="\n".join(groups)).rstrip()


def _wrapped(start: str, names: list[str], width: int = 104) -> str:
    lines, line = [], f"{start:<12}"
    for name in names:
        if len(line) + len(name) > width:
            lines.append(line.rstrip())
            line = " " * 12
        line += name + "  "
    return "\n".join([*lines, line.rstrip()])
