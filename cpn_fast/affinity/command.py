"""`cpn train-affinity`: from a labelling's class maps to a trained AffinityNet."""

from __future__ import annotations

from cpn_fast.affinity.task import AffinityTask
from cpn_fast.config.recipes import with_recipe
from cpn_fast.config.training import AffinityConfig
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.runs.folder import RunFolder
from cpn_fast.training.run import run_training


def run_affinity(config: AffinityConfig, progress: Progress = SILENT) -> RunFolder:
    """Make labels and train one run (the same in every process of a distributed one).

    Args:
        config: the settings.
        progress: where the training is shown.

    Returns:
        The run folder, with final weights.

    Raises:
        DataError: if labelling, weights or settings do not fit, the folder holds a run and `resume` is off, or the
            labels of a resumed run have changed.
        NonFiniteError: if a loss or gradient was not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the checkpoint is written.
    """
    return run_training(with_recipe(config), AffinityTask, progress)
