"""A callback for any training: at the end, the checkpoint that is provably better than the model at the start."""

from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.errors import check_count
from sb3_refine.files import atomic_path
from sb3_refine.judging import Judge, Judgement
from sb3_refine.training.checkpoints import Snapshots
from sb3_refine.training.continuation import agent_at

_N_SNAPSHOTS = 100  # of the whole training, where the user names no frequency


class JudgeCallback(BaseCallback):
    """
    Keeps checkpoints in the course of ``learn()`` within a bound on disk. At the end, the best of them on validation
    seeds is tested once against the model at the start of ``learn()``, and is saved if it is better; else the model of
    the start is saved.

    Works in Stable-Baselines3's ``learn()`` and in the Zoo, as ``callback: sb3_refine.JudgeCallback``. The environment
    has to be one that can be built again, see :class:`~sb3_refine.refiner.Refiner`.

    >>> import tempfile
    >>> from stable_baselines3 import PPO
    >>> model = PPO("MlpPolicy", "Pendulum-v1", n_steps=200, batch_size=50, seed=0, device="cpu")
    >>> callback = JudgeCallback(tempfile.mkdtemp(), n_eval_episodes=10, report=False, verbose=0, backend="serial")
    >>> model = model.learn(1_000, callback)
    >>> callback.judgement.result.decision in ("refined", "original")
    True

    :param save_path: folder of the result, in the Zoo's layout: the agent, ``refinement.json``, ``report.md``, and the
        checkpoints in ``checkpoints/``
    :param save_freq: steps of the callback between two checkpoints, as in ``CheckpointCallback``; None for a hundredth
        of the training
    :param n_checkpoints: checkpoints kept on disk beside the last one, evenly spaced
    :param n_average: see :meth:`~sb3_refine.judging.Judge.judge`
    :param report: whether to write ``report.md``, for which some more episodes are run
    :param verbose: 0: silent; 1: say what was decided
    :param kwargs: any other argument of :class:`~sb3_refine.judging.Judge`
    :raises RefineError: at the start of ``learn()``, when the environment cannot be built again
    """

    def __init__(
        self,
        save_path: str | Path,
        save_freq: int | None = None,
        n_checkpoints: int = 20,
        n_average: int = 0,
        report: bool = True,
        verbose: int = 1,
        **kwargs: Any,
    ):
        super().__init__(verbose)
        check_count("save_freq", 1 if save_freq is None else save_freq, 1)
        check_count("n_checkpoints", n_checkpoints, 1)
        self.save_path, self.n_checkpoints, self.n_average = Path(save_path), n_checkpoints, n_average
        self.judgement: Judgement | None = None
        self._save_freq, self._report, self._kwargs = save_freq, report, kwargs

    def _on_training_start(self) -> None:
        agent = agent_from_model(self.model)
        paths = self.save_path / "state" / "start.zip", self.save_path / "state" / "start.pkl"
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        self._save(*paths)
        self._judge = Judge(agent_at(agent, *paths, trust=True), **self._kwargs)
        for path in paths:
            path.unlink(missing_ok=True)
        self._snapshots = Snapshots(self.save_path / "checkpoints", agent, self.n_checkpoints, trust=True)
        n_calls = (self.model._total_timesteps - self.model.num_timesteps) // self.model.n_envs
        self._freq = self._save_freq or max(1, n_calls // _N_SNAPSHOTS)
        self._first_call, self._n_snapshots = self.n_calls, 0

    def _on_step(self) -> bool:
        if (self.n_calls - self._first_call) % self._freq == 0:
            self._take()
        return True

    def _on_training_end(self) -> None:
        self._take()
        self.judgement = self._judge.judge(self._snapshots.agents(), n_average=self.n_average)
        self.judgement.save(run_folder=self.save_path)
        if self._report:
            self.judgement.report(self.save_path)
        if self.verbose >= 1:
            result = self.judgement.result
            print(f"JudgeCallback: {result.decision} ({result.reason}); saved to {self.save_path}")

    def _take(self) -> None:
        self._n_snapshots += 1
        self._snapshots.add(self._n_snapshots, self.model.num_timesteps, self._save)

    def _save(self, zip_path: Path, statistics_path: Path) -> None:
        statistics = self.model.get_vec_normalize_env()
        if statistics is not None:
            with atomic_path(statistics_path) as path:
                statistics.save(str(path))
        with atomic_path(zip_path) as path:
            self.model.save(path)
