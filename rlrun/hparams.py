"""What TensorBoard's HParams tab reads: how a session (a run) began, and how it ended.

Sessions of one trial are a row of the table, with the means of their metrics. No summary of the whole experiment
is written: TensorBoard would believe the first that it finds, and runs that came later, with other
hyperparameters, would lack columns. Without one it makes the columns from the sessions that there are.
"""

from typing import Any

from rlrun.facts import Facts


def session_start(facts: Facts) -> Any:
    """Return the summary of a beginning; equal facts give equal bytes."""
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

    info = SessionStartInfo(group_name=facts.trial(), start_time_secs=facts.started_unix)
    for name, value in facts.hyperparameters().items():
        if isinstance(value, bool):
            info.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            info.hparams[name].number_value = value
        else:
            info.hparams[name].string_value = value
    return _summary(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=info))


def session_end(*, succeeded: bool, unix: float) -> Any:
    """Return the summary of an end. A run that was interrupted has none: it goes on."""
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    status = api_pb2.STATUS_SUCCESS if succeeded else api_pb2.STATUS_FAILURE
    info = SessionEndInfo(status=status, end_time_secs=unix)
    return _summary(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=info))


def _summary(tag: str, content: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata

    about = metadata.create_summary_metadata(content)
    # A map has no order of its own: without this, equal summaries would be different bytes.
    stated = type(content).FromString(about.plugin_data.content)
    about.plugin_data.content = stated.SerializeToString(deterministic=True)
    return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)])
