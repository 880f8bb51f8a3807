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
from sb3_refine.optimizers import OPTIMIZERS
from sb3_refine.refiner import Refiner
from sb3_refine.seeding import EpisodeSeeds

__all__ = ["AGENT_FOLDER", "trainable"]

AGENT_FOLDER = "agent"
"""Where a checkpoint of a trial has the agent, as :func:`~sb3_refine.judging.judge` reads it."""


def trainable(
    make_agent: Callable[[], Agent],
    n_updates: int | None = None,
    eval_freq: int = 5,
    n_eval_episodes: int = 20,
    eval_seed: int = 0,
    **kwargs: Any,
) -> Callable[[dict[str, Any]], None]:
    """
    A function for ``ray.tune.Tuner``. Each trial is a search; ``config`` has arguments of
    :class:`~sb3_refine.refiner.Refiner`, such as ``learning_rate``, ``delta_std``, ``n_delta`` and ``seed``.

    A trial reports the mean return of its iterate as ``mean_return``, with ``n_updates`` done, and the ``rollouts`` and
    ``env_steps`` that led to it. Each report has a checkpoint, so population-based training
    (``PopulationBasedTraining``) may let a trial go on from another one, with other options of the optimizer. Nothing
    is tested: let :func:`~sb3_refine.judging.judge` compare the agents of the checkpoints, in :data:`AGENT_FOLDER`,
    with the original.

    :param make_agent: loads the agent to refine, on the machine that runs the trial
    :param n_updates: length of a search; None for that of the optimizer's default preset
    :param eval_freq: updates between two reports; the last update is reported, too
    :param n_eval_episodes: episodes of the iterate for each report
    :param eval_seed: of these episodes, which are the same in all trials
    :param kwargs: arguments of the refiner that all trials share; ``backend`` is ``"serial"`` unless given, as Ray Tune
        gives a trial one processor
    :return: the function
    """
    check_count("eval_freq", eval_freq, 1)
    check_count("n_eval_episodes", n_eval_episodes, 1)
    seeds = EpisodeSeeds(eval_seed).take("validation", n_eval_episodes)

    def run_trial(config: dict[str, Any]) -> None:
        from ray import tune

        refiner = Refiner(make_agent(), **{"backend": "serial", "acceptance": False, **kwargs, **config})
        with tempfile.TemporaryDirectory() as name:
            folder, start = Path(name), tune.get_checkpoint()
            if start is not None:
                start.to_directory(folder)
            refiner.learn(
                n_updates,
                callback=_Report(refiner.agent, folder, eval_freq, seeds),
                checkpoint_folder=folder,
                checkpoint_interval=eval_freq,
                resume=start is not None,
                may_change=[name for name in config if name in OPTIMIZERS[refiner.optimizer_name].options()],
            )

    return run_trial


class _Report(BaseCallback):
    """Reports to Ray Tune, with a checkpoint of the search and the agent of its iterate."""

    def __init__(self, agent: Agent, folder: Path, eval_freq: int, seeds: list[int]):
        super().__init__()
        self.agent, self.folder, self.eval_freq, self.seeds = agent, folder, eval_freq, seeds

    def _on_step(self) -> bool:
        from ray import tune

        search, evaluator, checkpoint = (self.locals[name] for name in ("search", "evaluator", "checkpoint"))
        n_done = search.n_updates_done
        if n_done % self.eval_freq == 0 or n_done == search.optimizer.n_updates:
            returns = EvaluationTarget(evaluator, search.optimizer.theta).run(self.seeds).returns
            search.count(evaluator)
            checkpoint.take(search)  # with the episodes of the report
            checkpoint.write()
            save_agent(self.agent, self.folder / AGENT_FOLDER)
            tune.report(
                {
                    "mean_return": float(np.mean(returns)),
                    "n_updates": n_done,
                    "rollouts": search.n_episodes,
                    "env_steps": search.n_env_steps,
                },
                checkpoint=tune.Checkpoint.from_directory(self.folder),
            )
        return True
