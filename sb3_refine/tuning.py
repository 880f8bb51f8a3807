"""Many searches at a time with Ray Tune, which may change their settings on the way."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from sb3_refine.agents.agent import Agent, save_agent
from sb3_refine.errors import check_count
from sb3_refine.evaluation.target import EvaluationTarget
from sb3_refine.refiner import Refiner

AGENT_FOLDER = "agent"
"""Where a checkpoint of a trial has the agent, as :func:`~sb3_refine.judging.judge` reads it."""


def trainable(
    make_agent: Callable[[], Agent],
    n_updates: int | None = None,
    eval_freq: int = 5,
    n_eval_episodes: int = 20,
    **kwargs: Any,
) -> Callable[[dict[str, Any]], None]:
    """
    A function for ``ray.tune.Tuner``. Each trial is a search; ``config`` has arguments of
    :class:`~sb3_refine.refiner.Refiner`, such as ``learning_rate``, ``delta_std``, ``n_delta`` and ``seed``.

    A trial reports the mean return of its iterate as ``mean_return``, with ``n_updates`` done, ``rollouts`` and
    ``env_steps``. Each report has a checkpoint, so population-based training (``PopulationBasedTraining``) may let a
    trial go on from another one, with other settings. Nothing is tested: let :func:`~sb3_refine.judging.judge` compare
    the agents of the checkpoints, in :data:`AGENT_FOLDER`, with the original.

    :param make_agent: loads the agent to refine, on the machine that runs the trial
    :param n_updates: length of a search; None for that of the optimizer's default preset
    :param eval_freq: updates between two reports
    :param n_eval_episodes: episodes of the iterate for each report, on the same validation seeds in all trials with one
        ``seed``
    :param kwargs: arguments of the refiner that all trials share; ``backend`` is ``"serial"`` unless given, as Ray Tune
        gives a trial one processor
    :return: the function
    """
    check_count("eval_freq", eval_freq, 1)
    check_count("n_eval_episodes", n_eval_episodes, 1)

    def run_trial(config: dict[str, Any]) -> None:
        from ray import tune

        refiner = Refiner(make_agent(), **{"backend": "serial", "acceptance": False, **kwargs, **config})
        with tempfile.TemporaryDirectory() as name:
            folder, start = Path(name), tune.get_checkpoint()
            if start is not None:
                start.to_directory(folder)
            refiner.learn(
                n_updates,
                callback=_Report(refiner.agent, folder, eval_freq, refiner.validation_seeds[:n_eval_episodes]),
                checkpoint_folder=folder,
                checkpoint_interval=eval_freq,
                resume=start is not None,
                may_change=tuple(config),
            )

    return run_trial


class _Report(BaseCallback):
    """Reports to Ray Tune, with the checkpoint that the search has just written and the agent of its iterate."""

    def __init__(self, agent: Agent, folder: Path, eval_freq: int, seeds: list[int]):
        super().__init__()
        self.agent, self.folder, self.eval_freq, self.seeds = agent, folder, eval_freq, seeds

    def _on_step(self) -> bool:
        from ray import tune

        search, evaluator = self.locals["search"], self.locals["evaluator"]
        if search.n_updates_done % self.eval_freq == 0:
            returns = EvaluationTarget(evaluator, search.optimizer.theta).run(self.seeds).returns
            search.count(evaluator)
            save_agent(self.agent, self.folder / AGENT_FOLDER)
            tune.report(
                {
                    "mean_return": float(np.mean(returns)),
                    "n_updates": search.n_updates_done,
                    "rollouts": search.n_episodes,
                    "env_steps": search.n_env_steps,
                },
                checkpoint=tune.Checkpoint.from_directory(self.folder),
            )
        return True
