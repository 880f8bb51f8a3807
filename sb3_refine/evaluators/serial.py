"""Episodes one after the other, in this process."""

from collections.abc import Iterator, Sequence

from typing_extensions import Self

from sb3_refine.evaluators.base import Evaluator
from sb3_refine.evaluators.worker import Batch, Job, RolloutWorker
from sb3_refine.policies.base import one_thread
from sb3_refine.rollouts.episode import Episode
from sb3_refine.seeding import globals_restored


class SerialEvaluator(Evaluator):
    """Runs everything in the calling process: for debugging, and where processes cannot be started."""

    _worker: RolloutWorker | None = None

    @classmethod
    def default_n_workers(cls) -> int | None:
        """:return: 1"""
        return 1

    def __enter__(self) -> Self:
        with globals_restored():
            self._worker = RolloutWorker(self.task)
        return self

    def _run(self, batch: Batch, jobs: Sequence[Job]) -> Iterator[tuple[int, Episode]]:
        assert self._worker is not None, "use the evaluator as a context manager"
        for number, job in enumerate(jobs):
            with one_thread(), globals_restored():
                episode = self._worker.run(batch, job)
            yield number, episode

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None
