"""
Monte Carlo tree search with the policy and the value of an agent (PUCT), as in AlphaGo Zero. Upper bounds, and returns
of any scale, are as in MuZero (https://arxiv.org/abs/1911.08265, appendix B).
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from sb3_refine.envs.states import EnvState, EnvStates, observation_key, outcome_key
from sb3_refine.envs.wrappers import action_masks_of
from sb3_refine.errors import RefineError, check_count

_C_BASE = 19_652  # MuZero's c2
_N_DRAWS = 2.0  # times the square root of the visits
_DIRICHLET_CONCENTRATION = 10.0  # divided by the number of valid actions


class PriorAndValue(Protocol):
    """
    The network that a search is led by.

    :ivar uses_masks: whether its policy takes a mask of the valid actions
    """

    uses_masks: bool

    def evaluate(self, observation: Any, mask: np.ndarray | None) -> tuple[np.ndarray, float]:
        """
        :param observation: raw
        :param mask: which actions are valid; None for all
        :return: the probability of each action, and the discounted return from there, in units of the rewards
        """


@dataclass(frozen=True)
class SearchSettings:
    """
    How to search.

    :param n_simulations: in each search; each evaluates one new state with the network
    :param discount: of later rewards, that of the agent's training
    :param exploration: the factor of the prior, MuZero's c1
    :param root_noise: share of Dirichlet noise in the prior of the root (AlphaGo Zero's epsilon); 0 for none
    :param least_range: of returns that counts as 1 when they are normalised, in units of the rewards: where all returns
        in the tree are closer together, their differences are taken for errors of the network, and the prior decides
    :raises RefineError: when a setting is out of range
    """

    n_simulations: int = 64
    discount: float = 0.99
    exploration: float = 1.25
    root_noise: float = 0.0
    least_range: float = 0.0

    def __post_init__(self) -> None:
        check_count("n_simulations", self.n_simulations, 1)
        if not 0 < self.discount <= 1:
            raise RefineError(f"discount: expected a number above 0, at most 1, got {self.discount}")
        if not 0 <= self.exploration < math.inf:
            raise RefineError(f"exploration: expected a number of at least 0, got {self.exploration}")
        if not 0 <= self.root_noise <= 1:
            raise RefineError(f"root_noise: expected a share from 0 to 1, got {self.root_noise}")


@dataclass(frozen=True)
class Plan:
    """
    What a search has found for one state.

    :param visits: share of the simulations that began with each action, shape ``(n_actions,)``
    :param value: mean discounted return of the simulations, in units of the rewards
    :param action: index of the action with the most visits; of equals, the one with the higher return
    """

    visits: np.ndarray
    value: float
    action: int


class _Node:
    """
    A state, and what the search has seen of its actions.

    :param prior: of each action
    :param valid: which actions there are
    :param value: by the network
    :param state: of the environment; None where nothing comes after it
    """

    __slots__ = ("children", "prior", "state", "totals", "valid", "value", "visits")

    def __init__(self, prior: np.ndarray, valid: np.ndarray, value: float, state: EnvState | None):
        self.prior, self.valid, self.value, self.state = prior, valid, value, state
        self.visits, self.totals = np.zeros(len(prior)), np.zeros(len(prior))
        self.children: list[dict[bytes, _Outcome]] = [{} for _ in prior]

    @property
    def is_end(self) -> bool:
        """Whether the search cannot go on from there."""
        return self.state is None or not self.valid.any()


class _Outcome:
    """
    What an action has led to, and how often that was drawn.

    :param node: the state
    :param reward: on the way
    """

    __slots__ = ("n_drawn", "node", "reward")

    def __init__(self, node: _Node, reward: float):
        self.node, self.reward, self.n_drawn = node, reward, 0


class _Range:
    """
    The lowest and the highest return in the tree, to normalise returns of any scale, as in MuZero.

    :param least: range that counts as 1, at least
    """

    def __init__(self, least: float):
        self._low, self._high, self._least = math.inf, -math.inf, least

    def add(self, value: float) -> None:
        self._low, self._high = min(self._low, value), max(self._high, value)

    def normalised(self, values: np.ndarray) -> np.ndarray:
        if self._high <= self._low:
            return np.zeros_like(values)
        return np.clip((values - self._low) / max(self._high - self._low, self._least), 0.0, 1.0)


class TreeSearch:
    """
    Searches in an environment: from its present state, each simulation follows the actions with the highest upper
    bounds to a state that is not in the tree yet, which the network evaluates. The environment is left as it was.

    In an environment that is random, the outcome of an action in n simulations is drawn about twice the square root of
    n times, with new random numbers (progressive widening); the other simulations follow what was drawn, as often as it
    was. The search does not know what the environment is going to draw.

    :param env: with the wrappers of the agent
    :param network: gives priors and values
    :param settings: how to search
    :param is_random: whether the environment is known to be random, see :func:`~sb3_refine.envs.states.check_states`;
        one that turns out to be is searched as such from then on
    """

    def __init__(self, env: gym.Env, network: PriorAndValue, settings: SearchSettings, is_random: bool = False):
        self._env, self._network, self._settings, self.is_random = env, network, settings, is_random
        self._states, self._masks = EnvStates(env), action_masks_of(env) if network.uses_masks else None
        self._evaluated: dict[bytes, tuple[np.ndarray, float]] = {}  # searches of successive steps meet the same states
        self._rng = np.random.default_rng(0)
        self.n_env_steps = 0
        """Of all simulations so far."""

    def plan(self, observation: Any, rng: np.random.Generator) -> Plan:
        """
        :param observation: of the present state
        :param rng: for the noise at the root, and for what is random in the environment
        :return: what the search has found
        """
        present, self._rng = self._states.save(), rng
        knew = self.is_random
        root = self._grown(observation)
        if self.is_random and not knew:  # what the tree has taken for certain may be chance
            self._states.restore(present)
            root = self._grown(observation)
        self._states.restore(present)
        n_visits = root.visits.sum()
        mean = np.divide(root.totals, root.visits, out=np.full_like(root.totals, -np.inf), where=root.visits > 0)
        action = int(np.lexsort((mean, root.visits))[-1])
        if not n_visits:  # no action leads to anything finite
            return Plan(root.prior.astype(np.float32), root.value, int(root.prior.argmax()))
        return Plan((root.visits / n_visits).astype(np.float32), float(root.totals.sum() / n_visits), action)

    def _grown(self, observation: Any) -> _Node:
        """The root of a tree with all simulations."""
        self._states.reseed(int(self._rng.integers(2**63)))
        root, returns = self._root(observation), _Range(self._settings.least_range)
        for _ in range(self._settings.n_simulations):
            if not root.is_end:
                self._simulate(root, returns)
        return root

    def _root(self, observation: Any) -> _Node:
        root, share = self._node(observation), self._settings.root_noise
        if share:
            noise, n_valid = np.zeros_like(root.prior), root.valid.sum()
            noise[root.valid] = self._rng.dirichlet(np.full(n_valid, _DIRICHLET_CONCENTRATION / n_valid))
            root.prior = (1 - share) * root.prior + share * noise
        return root

    def _simulate(self, root: _Node, returns: _Range) -> None:
        """Down to a new state or an end of the episode, and back."""
        path: list[tuple[_Node, int, float]] = []
        node, present, is_new = root, None, False
        while not (is_new or node.is_end):
            action = self._choose(node, returns)
            outcome = self._known(node, action)
            if outcome is None:
                if present is not node:
                    assert node.state is not None
                    self._states.restore(node.state)
                outcome, is_new = self._step(node, action)
                if outcome is None:
                    node.valid[action] = False  # never again
                    break
                present = outcome.node
                outcome.n_drawn += 1
            path.append((node, action, outcome.reward))
            node = outcome.node
        value = node.value
        for parent, action, reward in reversed(path):
            value = reward + self._settings.discount * value
            parent.visits[action] += 1
            parent.totals[action] += value
            returns.add(parent.totals[action] / parent.visits[action])

    def _choose(self, node: _Node, returns: _Range) -> int:
        """The action with the highest upper bound, as in MuZero; one without visits has the node's value."""
        means = np.divide(node.totals, node.visits, out=np.full_like(node.totals, node.value), where=node.visits > 0)
        n_visits = node.visits.sum()
        factor = self._settings.exploration + math.log((n_visits + _C_BASE + 1) / _C_BASE)
        bounds = returns.normalised(means) + factor * node.prior * math.sqrt(max(1.0, n_visits)) / (1 + node.visits)
        return int(np.where(node.valid, bounds, -np.inf).argmax())

    def _known(self, node: _Node, action: int) -> _Outcome | None:
        """An outcome that the action has had; None if another one is to be drawn."""
        known = list(node.children[action].values())
        n_drawn = np.array([each.n_drawn for each in known])
        if n_drawn.sum() < (_N_DRAWS * math.sqrt(node.visits[action] + 1) if self.is_random else 1):
            return None
        if len(known) == 1:
            return known[0]
        return known[int(self._rng.choice(len(known), p=n_drawn / n_drawn.sum()))]

    def _step(self, node: _Node, action: int) -> tuple[_Outcome | None, bool]:
        """:return: what the action leads to, None where that is not finite; and whether it is new"""
        before = None if self.is_random else self._states.drawn()
        outcome = self._env.step(action)
        self.n_env_steps += 1
        if before is not None and self._states.drawn() != before:
            self.is_random = True
        observation, reward, terminated, truncated, info = outcome
        if not (math.isfinite(reward) and _is_finite(observation)):
            return None, True
        has_ended = bool(terminated or truncated)
        mask = None if has_ended else self._mask()
        key = outcome_key(outcome) + (b"" if mask is None else mask.tobytes())
        is_new = key not in node.children[action]
        if is_new and terminated:
            child = _Node(np.empty(0), np.empty(0, dtype=bool), 0.0, None)  # no more rewards
            node.children[action][key] = _Outcome(child, float(reward))
        elif is_new:
            last = info.get("terminal_observation", observation) if has_ended else observation
            node.children[action][key] = _Outcome(self._node(last, goes_on=not has_ended), float(reward))
        return node.children[action][key], is_new

    def _node(self, observation: Any, goes_on: bool = True) -> _Node:
        """Of the present state; after a time limit, the network says what would have come."""
        mask = self._mask() if goes_on else None
        prior, value = self._evaluate(observation, mask)
        valid = np.ones(len(prior), dtype=bool) if mask is None else mask.copy()
        return _Node(prior, valid, value, self._states.save(with_chance=False) if goes_on else None)

    def _evaluate(self, observation: Any, mask: np.ndarray | None) -> tuple[np.ndarray, float]:
        key = hashlib.blake2b(observation_key(observation) + (b"" if mask is None else mask.tobytes())).digest()
        if key not in self._evaluated:
            self._evaluated[key] = self._network.evaluate(observation, mask)
        return self._evaluated[key]

    def _mask(self) -> np.ndarray | None:
        return None if self._masks is None else np.array(self._masks(), dtype=bool)


def _is_finite(observation: Any) -> bool:
    if isinstance(observation, dict):
        return all(_is_finite(part) for part in observation.values())
    values = np.asarray(observation)
    return not np.issubdtype(values.dtype, np.floating) or bool(np.isfinite(values).all())
