"""
Monte Carlo tree search with the policy and the value of an agent (PUCT), as in AlphaGo Zero. Upper bounds, and returns
of any scale, are as in MuZero (https://arxiv.org/abs/1911.08265, appendix B).
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from sb3_refine.envs.states import EnvState, EnvStates, observation_key, outcome_key
from sb3_refine.envs.wrappers import action_masks_of
from sb3_refine.errors import RefineError, check_count

_C_BASE = 19_652  # MuZero's c2
_DIRICHLET_CONCENTRATION = 10.0  # divided by the number of valid actions


class PriorAndValue(Protocol):
    """The network that a search is led by."""

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
    :raises RefineError: when a setting is out of range
    """

    n_simulations: int = 64
    discount: float = 0.99
    exploration: float = 1.25
    root_noise: float = 0.0

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

    :param prior: of each action; 0 for those that are not valid
    :param value: by the network
    :param state: of the environment, where it can be returned to
    """

    __slots__ = ("children", "is_end", "prior", "state", "totals", "value", "visits")

    def __init__(self, prior: np.ndarray, value: float, state: EnvState | None, is_end: bool):
        self.prior, self.value, self.state, self.is_end = prior, value, state, is_end
        self.visits, self.totals = np.zeros(len(prior)), np.zeros(len(prior))
        self.children: list[dict[bytes, tuple[_Node, float]]] = [{} for _ in prior]


class _Range:
    """The lowest and the highest return in the tree, to normalise returns of any scale, as in MuZero."""

    def __init__(self) -> None:
        self._low, self._high = math.inf, -math.inf

    def add(self, value: float) -> None:
        self._low, self._high = min(self._low, value), max(self._high, value)

    def normalised(self, values: np.ndarray) -> np.ndarray:
        if self._high <= self._low:
            return np.zeros_like(values)
        return np.clip((values - self._low) / (self._high - self._low), 0.0, 1.0)


class TreeSearch:
    """
    Searches in an environment: from its present state, each simulation follows the actions with the highest upper
    bounds to a state that is not in the tree yet, which the network evaluates. The environment is left as it was.

    An environment that is random is stepped from the root in each simulation, with new random numbers, and each action
    has a child for each outcome; otherwise, the state of each node is saved.

    :param env: with the wrappers of the agent
    :param network: gives priors and values
    :param settings: how to search
    :param is_random: whether a step from one state may lead to several, see
        :func:`~sb3_refine.envs.states.check_states`
    """

    def __init__(self, env: gym.Env, network: PriorAndValue, settings: SearchSettings, is_random: bool):
        self._env, self._network, self._settings, self._is_random = env, network, settings, is_random
        self._states, self._masks = EnvStates(env), action_masks_of(env)
        self._evaluated: dict[bytes, tuple[np.ndarray, float]] = {}  # searches of successive steps meet the same states
        space: Any = env.action_space
        self.first_action = int(space.start)
        """Of the environment: that with index 0."""
        self.n_env_steps = 0
        """Of all simulations so far."""

    def plan(self, observation: Any, rng: np.random.Generator) -> Plan:
        """
        :param observation: of the present state
        :param rng: for the noise at the root, and for what is random in the environment
        :return: what the search has found
        """
        present = self._states.save()
        self._states.reseed(int(rng.integers(2**63)))
        root = self._root(observation, rng)
        returns = _Range()
        for _ in range(self._settings.n_simulations):
            self._simulate(root, returns)
        self._states.restore(present)
        n_visits = root.visits.sum()
        mean = np.divide(root.totals, root.visits, out=np.full_like(root.totals, -np.inf), where=root.visits > 0)
        action = int(np.lexsort((mean, root.visits))[-1])
        return Plan((root.visits / n_visits).astype(np.float32), float(root.totals.sum() / n_visits), action)

    def _root(self, observation: Any, rng: np.random.Generator) -> _Node:
        prior, value = self._evaluate(observation, self._mask())
        share, valid = self._settings.root_noise, prior > 0
        if share:
            noise = np.zeros_like(prior)
            noise[valid] = rng.dirichlet(np.full(valid.sum(), _DIRICHLET_CONCENTRATION / valid.sum()))
            prior = (1 - share) * prior + share * noise
        return _Node(prior, value, self._states.save(with_chance=False), is_end=False)

    def _simulate(self, root: _Node, returns: _Range) -> None:
        """Down to a new state or an end of the episode, and back."""
        path: list[tuple[_Node, int, float]] = []
        node, is_new = root, False
        if self._is_random:
            self._states.restore(self._state_of(root))
        while not (is_new or node.is_end):
            action = self._choose(node, returns)
            known = node.children[action]
            if known and not self._is_random:
                ((child, reward),) = known.values()
            else:
                child, reward, is_new = self._step(node, action)
            path.append((node, action, reward))
            node = child
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
        return int(np.where(node.prior > 0, bounds, -np.inf).argmax())

    def _step(self, node: _Node, action: int) -> tuple[_Node, float, bool]:
        """:return: the state that the action leads to, the reward, and whether the state is new"""
        if not self._is_random:
            self._states.restore(self._state_of(node))
        outcome = self._env.step(self.first_action + action)
        self.n_env_steps += 1
        key = outcome_key(outcome)
        if key in node.children[action]:
            return (*node.children[action][key], False)
        observation, reward, terminated, truncated, _ = outcome
        node.children[action][key] = self._node(observation, bool(terminated), bool(truncated)), float(reward)
        return (*node.children[action][key], True)

    def _node(self, observation: Any, terminated: bool, truncated: bool) -> _Node:
        """After a termination there are no rewards; after a time limit, the network says what would have come."""
        if terminated:
            return _Node(np.empty(0), 0.0, None, is_end=True)
        prior, value = self._evaluate(observation, None if truncated else self._mask())
        state = None if self._is_random or truncated else self._states.save(with_chance=False)
        return _Node(prior, value, state, is_end=truncated)

    def _evaluate(self, observation: Any, mask: np.ndarray | None) -> tuple[np.ndarray, float]:
        key = observation_key(observation) + (b"" if mask is None else mask.tobytes())
        if key not in self._evaluated:
            self._evaluated[key] = self._network.evaluate(observation, mask)
        return self._evaluated[key]

    def _state_of(self, node: _Node) -> EnvState:
        assert node.state is not None
        return node.state

    def _mask(self) -> np.ndarray | None:
        return None if self._masks is None else np.asarray(self._masks(), dtype=bool)
