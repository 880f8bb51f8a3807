"""What happens at every step of training on."""

import time
from collections.abc import Callable

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from tqdm import tqdm

from sb3_refine.search.callbacks import as_callback


class TrainingCallback(BaseCallback):
    """
    Makes the slices of a training one training for the user's callback, shows the progress, and ends the training in
    time.

    :param callback: of the user
    :param progress: counts environment steps
    :param deadline: of ``time.perf_counter``; or None
    """

    def __init__(self, callback: MaybeCallback, progress: tqdm, deadline: float | None = None):
        super().__init__()
        self._callback, self._progress, self._deadline = as_callback(callback), progress, deadline
        self._has_started = self._has_stopped = False

    @property
    def is_over(self) -> bool:
        """Whether the user's callback has stopped the training, or the time is up."""
        return self._has_stopped or (self._deadline is not None and time.perf_counter() >= self._deadline)

    def _init_callback(self) -> None:
        self._callback.init_callback(self.model)

    def _on_training_start(self) -> None:
        self._n_shown = self.model.num_timesteps
        if not self._has_started:
            self._callback.on_training_start(self.locals, self.globals)
        self._has_started = True

    def update_child_locals(self, locals_: dict) -> None:
        self._callback.update_locals(locals_)

    def _on_rollout_start(self) -> None:
        self._callback.on_rollout_start()

    def _on_step(self) -> bool:
        self._progress.update(self.model.num_timesteps - self._n_shown)
        self._n_shown = self.model.num_timesteps
        self._has_stopped = self._has_stopped or not self._callback.on_step()
        return not self.is_over

    def _on_rollout_end(self) -> None:
        self._callback.on_rollout_end()

    def end(self) -> None:
        """Tell the user's callback that the training has ended."""
        if self._has_started:
            self._callback.on_training_end()


class EndsAtRollout(BaseCallback):
    """
    Ends a training between two rollouts, so that none is cut off before its update.

    :param is_over: asked at the start of each rollout
    """

    def __init__(self, is_over: Callable[[], bool]):
        super().__init__()
        self._ask, self._is_over = is_over, False

    def _on_rollout_start(self) -> None:
        self._is_over = self._ask()

    def _on_step(self) -> bool:
        return not self._is_over
