"""`rlrun export RUN`: the policy as ONNX and as safetensors, checked against the original, with a model card."""

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from rlrun.arguments import parse
from rlrun.difference import first_difference
from rlrun.errors import RunFailed, UserError
from rlrun.files import human_bytes
from rlrun.inspect_run import LoadedRun, load, make_greedy
from rlrun.stateful import named_tensors

KNOWN = {"checkpoint": "last", "to": ""}
NEEDED = ("onnx", "onnxscript", "onnxruntime", "safetensors")
# Exported weights are float32 and shall run anywhere, whatever the run was trained on.
CPU = {"kind": "cpu", "precision": "float32", "compile": False, "threads": 1}


def export(arguments: list[str]) -> int:
    """rlrun export RUN [checkpoint=last|best|STEP] [to=RUN/export]: write the policy for use without rlrun.

    policy.onnx takes raw observations and gives actions; policy.safetensors holds the weights; README.md says how
    the policy was trained, what it scores and how to load it; config.yaml is the run's. Nothing is written unless
    the exported policy does as the original does.
    """
    path, options = parse(arguments, KNOWN, "export")
    _check_extra()
    run = load(path, options["checkpoint"], CPU)
    target = Path(str(options["to"])) if options["to"] else run.path / "export"
    _check_target(target)
    sampled = make_greedy(run.agent.algorithm)
    contents, checked = exported(run, str(options["checkpoint"]), sampled)
    _write(target, contents)
    sizes = ", ".join(f"{name} ({human_bytes(len(content))})" for name, content in contents.items())
    print(f"policy of step {run.step:,} ({options['checkpoint']}) in {target}/: {sizes}\n{checked}")
    return 0


def exported(run: LoadedRun, checkpoint: str, sampled: bool) -> tuple[dict[str, bytes], str]:
    """Return the files, {name: content}, and what was checked. Raises RunFailed if a check fails."""
    from rlrun.export_check import Check
    from rlrun.exported_policy import ExportedPolicy, as_onnx
    from rlrun.model_card import Card

    policy = ExportedPolicy(run.agent)
    model = as_onnx(policy)
    check = Check(run.agent, policy, model)
    check.run(run.config["eval"]["max_steps"])
    card = Card(run, policy, str(check), checkpoint, sampled)
    return {
        "policy.onnx": model,
        "policy.safetensors": as_safetensors(run),
        "README.md": card.text().encode(),
        "config.yaml": (run.path / "config.yaml").read_bytes(),
    }, str(check)


def as_safetensors(run: LoadedRun) -> bytes:
    """Return the weights, under the names that the policy's state has, and the statistics of the observations."""
    from safetensors.torch import load as loaded
    from safetensors.torch import save

    tensors = dict(named_tensors(run.agent.algorithm.policy_state_dict()))
    if run.agent.spec.normalize_obs:
        moments = run.agent.normalizer.obs_moments
        tensors["normalizer.mean"], tensors["normalizer.var"] = map(torch.as_tensor, (moments.mean, moments.var))
    # Policy and value may share a torso. The format takes each tensor once, under one name, and its own function
    # load_model finds the other name in the metadata.
    first_name: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        first_name.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name)
    kept = {name: tensors[name].detach().contiguous() for name in first_name.values()}
    aliases = {n: first_name[t.data_ptr(), t.shape, t.stride()] for n, t in tensors.items() if n not in kept}
    content = save(kept, metadata={"format": "pt", **aliases})
    again = loaded(content)
    if difference := first_difference({name: again.get(name) for name in kept}, kept):
        raise RunFailed(f"policy.safetensors does not hold what the checkpoint holds ({difference})")
    return content


def _check_extra() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"rlrun export needs {', '.join(missing)}: pip install 'rlrun[export]'")


def _check_target(target: Path) -> None:
    existing = next(path for path in [target, *target.resolve().parents] if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise UserError(f"to={target} cannot be written to; choose another folder")


def _write(target: Path, contents: dict[str, bytes]) -> None:
    """Write all files beside their folder before the first is put in its place."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
            for name, content in contents.items():
                (Path(folder) / name).write_bytes(content)
            for name in contents:
                os.replace(Path(folder) / name, target / name)
    except OSError as error:
        raise UserError(f"to={target} cannot be written ({error}); choose another folder") from error
