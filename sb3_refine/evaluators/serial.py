"""Episodes one after the other, in this process."""

from collections.abc import Sequence

import numpy as np
from typing_extensions import Self

from sb3_refine.evaluators.base import Evaluator, RolloutWorker
from sb3_refine.optimizers.candidates import Candidate
from sb3_refine.policies.base import one_thread
from sb3_refine.rollouts.episode import Episode
from sb3_refine.seeding import globals_restored


class SerialEvaluator(Evaluator):
    """Runs everything in the calling process: for debugging, and where processes cannot be started."""

    _worker: RolloutWorker | None = None

    def __enter__(self) -> Self:
        with globals_restored():
            self._worker = RolloutWorker(self.task)
        return self

    def _evaluate(
        self, mean: np.ndarray, candidates: Sequence[Candidate], episode_seeds: Sequence[int], measures: Sequence[str]
    ) -> list[Episode]:
        assert self._worker is not None, "use the evaluator as a context manager"
        with one_thread(), globals_restored():
            return [
                self._worker.run(mean, candidate, seed, measures)
                for candidate, seed in zip(candidates, episode_seeds, strict=True)
            ]

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None
