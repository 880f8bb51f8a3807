"""A causal transformer over the last observations and actions, as a policy of Stable-Baselines3."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn
from torch.nn import functional as F

from sb3_refine.errors import RefineError, check_count

State = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Keys and values of the last tokens, the last action, and the number of steps so far, for each environment."""


class _Block(nn.Module):
    """
    A layer of the transformer, with normalisation before attention and before the feed-forward part, as in GPT-2.

    :param embed_dim: numbers of a token
    :param n_heads: of the attention
    """

    def __init__(self, embed_dim: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.query_key_value = nn.Linear(embed_dim, 3 * embed_dim)
        self.projection = nn.Linear(embed_dim, embed_dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(embed_dim, 4 * embed_dim), nn.ReLU(), nn.Linear(4 * embed_dim, embed_dim)
        )

    def project(self, tokens: th.Tensor) -> tuple[th.Tensor, ...]:
        """:return: queries, keys and values of tokens, each of the shape of the tokens"""
        return self.query_key_value(self.attention_norm(tokens)).chunk(3, dim=-1)

    def attend(
        self, tokens: th.Tensor, query: th.Tensor, key: th.Tensor, value: th.Tensor, bias: th.Tensor
    ) -> th.Tensor:
        """
        :param tokens: shape ``(batch, n, embed_dim)``
        :param query: of these tokens
        :param key: of the tokens to attend to, shape ``(batch, m, embed_dim)``
        :param value: of these
        :param bias: added to the attention's logits, shape ``(batch or 1, n_heads, n, m)``
        :return: the tokens of the next layer
        """
        query, key, value = (each.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for each in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        tokens = tokens + self.projection(attended.transpose(1, 2).flatten(2))
        return tokens + self.feed_forward(self.feed_forward_norm(tokens))


class CausalTransformer(nn.Module):
    """
    A decoder over the steps of an episode. Each step is a token, made of its observation and the action before. A token
    attends to itself, to the ``context - 1`` tokens before it, and to one at the beginning of the episode: the target
    return. Positions are relative: in each layer, a bias for each age of a token.

    :param n_observed: numbers of an observation
    :param n_acted: numbers of an action
    :param context: steps that a token attends to
    :param n_layers: of the transformer
    :param n_heads: of the attention
    :param embed_dim: numbers of a token
    """

    def __init__(self, n_observed: int, n_acted: int, context: int, n_layers: int, n_heads: int, embed_dim: int):
        super().__init__()
        self.context, self.embed_dim = context, embed_dim
        self.embed_return = nn.Linear(1, embed_dim)
        self.embed_observation = nn.Linear(n_observed, embed_dim)
        self.embed_action = nn.Linear(n_acted, embed_dim, bias=False)
        self.embed_norm, self.norm = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self._shape_of_bias = (n_layers, n_heads, context)
        self.flat_age_bias = nn.Parameter(th.empty(n_layers * n_heads * context).zero_())
        self.blocks: Any = nn.ModuleList(_Block(embed_dim, n_heads) for _ in range(n_layers))
        self.apply(_initialise)

    @property
    def age_bias(self) -> th.Tensor:
        """Added to the logits of the attention, by age of a token, shape ``(n_layers, n_heads, context)``."""
        return self.flat_age_bias.view(self._shape_of_bias)

    def forward(self, observations: th.Tensor, previous_actions: th.Tensor, target_return: th.Tensor) -> th.Tensor:
        """
        Whole episodes at once, as in training.

        :param observations: shape ``(batch, n_steps, n_observed)``, from the beginning of an episode on
        :param previous_actions: the action before each observation, zeros before the first of an episode, shape
            ``(batch, n_steps, n_acted)``
        :param target_return: shape ``(1,)``
        :return: what the action of each step is made from, shape ``(batch, n_steps, embed_dim)``
        """
        batch, n_steps, _ = observations.shape
        first = self.embed_return(target_return).expand(batch, 1, -1)
        steps = self.embed_observation(observations) + self.embed_action(previous_actions)
        tokens = self.embed_norm(th.cat([first, steps], dim=1))
        index = th.arange(n_steps, device=observations.device)
        ages = index[:, None] - index
        is_hidden = F.pad((ages < 0) | (ages >= self.context), (1, 0))  # all see the target return, which sees itself
        is_hidden = F.pad(is_hidden, (0, 0, 1, 0), value=True)
        is_hidden[0, 0] = False
        bias = F.pad(self.age_bias[:, :, ages.clamp(0, self.context - 1)], (1, 0, 1, 0))
        for block, each in zip(self.blocks, bias.masked_fill(is_hidden, -th.inf), strict=True):
            tokens = block.attend(tokens, *block.project(tokens), bias=each[None])
        return self.norm(tokens[:, 1:])

    def first_memory(self, target_return: th.Tensor) -> th.Tensor:
        """
        :param target_return: shape ``(1,)``
        :return: the memory of an episode that is about to begin, shape ``(n_layers, 2, 1, context, embed_dim)``
        """
        token = self.embed_norm(self.embed_return(target_return))[None, None]
        memory = []
        for block in self.blocks:
            query, key, value = block.project(token)
            memory.append(F.pad(th.stack([key, value]), (0, 0, 0, self.context - 1)))
            token = block.attend(token, query, key, value, bias=token.new_zeros(1, 1, 1, 1))
        return th.stack(memory)

    def step(
        self, observation: th.Tensor, previous_action: th.Tensor, memory: th.Tensor, n_steps: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        The next step of some episodes, with the keys and values of earlier tokens from memory: what :meth:`forward`
        gives for the last observation, up to rounding.

        :param observation: shape ``(batch, n_observed)``
        :param previous_action: shape ``(batch, n_acted)``
        :param memory: keys and values of the target return and the last ``context - 1`` steps, shape
            ``(n_layers, 2, batch, context, embed_dim)``
        :param n_steps: steps of each episode before this one, shape ``(batch,)``
        :return: what the action is made from, shape ``(batch, embed_dim)``, and the memory with this step
        """
        token = self.embed_norm(self.embed_observation(observation) + self.embed_action(previous_action))[:, None]
        ages = th.arange(self.context, -1, -1, device=token.device)  # the first is the target return
        is_hidden = ages > n_steps[:, None]
        is_hidden[:, 0] = False
        bias = F.pad(self.age_bias.flip(2), (1, 0))[:, None, :, None].masked_fill(is_hidden[:, None, None], -th.inf)
        new = []
        for block, (keys, values), each in zip(self.blocks, memory, bias, strict=True):
            query, key, value = block.project(token)
            new += [key, value]
            token = block.attend(token, query, th.cat([keys, key], dim=1), th.cat([values, value], dim=1), bias=each)
        of_step = th.stack(new).unflatten(0, memory.shape[:2])
        return self.norm(token[:, 0]), th.cat([memory[..., :1, :], memory[..., 2:, :], of_step], dim=-2)


_LARGEST = {"context": 4096, "n_layers": 64, "n_heads": 64, "embed_dim": 4096}


def check_sizes(context: int, n_layers: int, n_heads: int, embed_dim: int) -> None:
    """
    :param context: see :class:`CausalTransformer`, as for the next three
    :param n_layers: of the transformer
    :param n_heads: of the attention
    :param embed_dim: numbers of a token
    :raises RefineError: when one is out of range; the sizes may come from a file
    """
    sizes = {"context": context, "n_layers": n_layers, "n_heads": n_heads, "embed_dim": embed_dim}
    for name, value in sizes.items():
        check_count(f"transformer: {name}", value, 2 if name == "context" else 1, at_most=_LARGEST[name])
    if embed_dim % n_heads:
        raise RefineError(f"transformer: embed_dim: expected a multiple of n_heads ({n_heads}), got {embed_dim}")


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class TransformerPolicy(ActorCriticPolicy):
    """
    A policy that sees the last observations and actions, for ``PPO``: a Decision Transformer
    (https://arxiv.org/abs/2106.01345, section 3) with two differences. ``predict`` sees no rewards, so the return to go
    stays the target return, as one token at the beginning, instead of a token a step from which the rewards are
    subtracted. And positions are relative, so that episodes may be of any length.

    ``predict`` keeps the context in its ``state``, as recurrent policies do, and computes each token once. The policy
    is made by :func:`~sb3_refine.students.distill.distill` and refined by a search; ``PPO.learn``, which trains on
    single steps, cannot train it.

    :param observation_space: any that Stable-Baselines3 has a features extractor for
    :param action_space: any of PPO's
    :param lr_schedule: of the optimizer
    :param context: steps of the environment that a layer sees
    :param n_layers: of the transformer
    :param n_heads: of the attention
    :param embed_dim: numbers of a token
    :param target_return: what the first token says, in units of the teacher's mean return
    :param kwargs: see Stable-Baselines3's ``ActorCriticPolicy``
    """

    action_middle: th.Tensor
    """Of the range of each dimension of a ``Box`` action."""
    action_half_range: th.Tensor
    """Half of that range."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        context: int = 20,
        n_layers: int = 3,
        n_heads: int = 1,
        embed_dim: int = 128,
        target_return: float = 1.0,
        **kwargs: Any,
    ):
        if kwargs.get("use_sde"):
            raise ValueError("a TransformerPolicy has no generalized state-dependent exploration; leave use_sde out")
        check_sizes(context, n_layers, n_heads, embed_dim)
        if not isinstance(target_return, (int, float)) or not np.isfinite(target_return):
            raise ValueError(f"target_return: expected a number, got {target_return!r}")
        self.transformer_kwargs = {
            "context": context,
            "n_layers": n_layers,
            "n_heads": n_heads,
            "embed_dim": embed_dim,
        }
        self.target_return = float(target_return)
        if isinstance(observation_space, spaces.Dict):
            kwargs.setdefault("features_extractor_class", CombinedExtractor)
        elif is_image_space(observation_space):
            kwargs.setdefault("features_extractor_class", NatureCNN)
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        n_acted = get_flattened_obs_dim(self.action_space)
        self.transformer = CausalTransformer(self.features_dim, n_acted, **self.transformer_kwargs)
        embed_dim = self.transformer_kwargs["embed_dim"]
        if isinstance(self.action_space, spaces.Box):
            bounds = self.action_space.low, self.action_space.high
            low, high = (th.as_tensor(bound, dtype=th.float32) for bound in bounds)
            half_range = th.where(high > low, high / 2 - low / 2, 1.0)
            self.register_buffer("action_middle", high / 2 + low / 2, persistent=False)
            self.register_buffer("action_half_range", half_range, persistent=False)
        dist: Any = self.action_dist
        if isinstance(dist, DiagGaussianDistribution):
            self.action_net, self.log_std = dist.proba_distribution_net(embed_dim, log_std_init=self.log_std_init)
        else:
            self.action_net = dist.proba_distribution_net(embed_dim)
        self.action_net.apply(_initialise)
        make_optimizer: Any = self.optimizer_class
        self.optimizer = make_optimizer(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        return {**parameters, **self.transformer_kwargs, "target_return": self.target_return}

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> Any:
        """:raises NotImplementedError: always; see :class:`TransformerPolicy`"""
        raise NotImplementedError(
            "a TransformerPolicy acts through predict, which keeps its context in `state`; PPO cannot train it"
        )

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> Any:
        """:raises NotImplementedError: always; see :class:`TransformerPolicy`"""
        return self.forward(obs)

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """:raises NotImplementedError: always; there is no value network"""
        return self.forward(obs)

    def get_distribution(self, obs: PyTorchObs, previous_actions: th.Tensor | None = None) -> Distribution:
        """
        :param obs: of one episode, from its beginning on, as ``obs_to_tensor`` makes them
        :param previous_actions: see :meth:`previous_actions`, which they come from where they are not given
        :return: the distribution of each action
        """
        previous = self.previous_actions(obs) if previous_actions is None else previous_actions
        return self.distribution_of_sequences(obs, previous)

    def previous_actions(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: of one episode, from its beginning on, as ``obs_to_tensor`` makes them
        :return: the deterministic action before each observation, zeros before the first, shape ``(1, n_steps, ...)``
        """
        with th.no_grad():
            actions, state = [], self._first_state(1)
            for features in self.extract_features(obs, self.pi_features_extractor):
                _, state = self._next_action(features[None], state, deterministic=True)
                actions.append(state[1])
        previous = np.concatenate([np.zeros_like(actions[0]), *actions[:-1]])[np.newaxis]
        return th.as_tensor(previous, device=self.device)

    def distribution_of_sequences(
        self,
        observations: PyTorchObs,
        previous_actions: th.Tensor,
        begins: th.Tensor | None = None,
        is_real: th.Tensor | None = None,
    ) -> Distribution:
        """
        :param observations: of sequences of ``n_steps`` each, one after the other, as ``obs_to_tensor`` makes them
        :param previous_actions: the action before each observation, shape ``(n_sequences, n_steps, ...)``
        :param begins: of each sequence, whether it is from the beginning of an episode on, so that there is no action
            before the first observation; None for all
        :param is_real: which steps are not padding, shape ``(n_sequences, n_steps)``; None for all
        :return: the distribution of the actions, one step after the other
        """
        n_sequences, n_steps = previous_actions.shape[:2]
        features: Any = self.extract_features(observations, self.pi_features_extractor)
        acted = self._as_input(previous_actions.flatten(0, 1)).unflatten(0, (n_sequences, n_steps))
        if begins is None:
            begins = th.ones(n_sequences, dtype=th.bool, device=self.device)
        acted = th.cat([acted[:, :1].masked_fill(begins[:, None, None], 0.0), acted[:, 1:]], dim=1)
        latent = self.transformer(features.unflatten(0, acted.shape[:2]), acted, self._target()).flatten(0, 1)
        return self._get_action_dist_from_latent(latent if is_real is None else latent[is_real.flatten()])

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, State]:
        """
        :param observation: of one or several environments
        :param state: what the last call returned; None at the beginning
        :param episode_start: of each environment, whether an episode begins
        :param deterministic: whether to take the most probable action
        :return: the actions, and the state for the next call
        """
        if self.training:  # which takes long to set
            self.set_training_mode(False)
        batch, is_vectorized = self.obs_to_tensor(observation)
        with th.no_grad():
            features = self.extract_features(batch, self.pi_features_extractor)
            if state is None:
                state = self._first_state(len(features))
            elif episode_start is not None and np.any(episode_start):
                first = self._first_state(len(features))
                state = tuple(
                    np.where(_along(axis, episode_start, new), new, old)
                    for new, old, axis in zip(first, state, (2, 0, 0), strict=True)
                )
            actions, state = self._next_action(features, state, deterministic)  # type: ignore[arg-type]
        return (actions if is_vectorized else actions[0]), state

    def _next_action(self, features: th.Tensor, state: State, deterministic: bool) -> tuple[np.ndarray, State]:
        memory, last_action, n_steps = (th.from_numpy(each).to(self.device) for each in state)
        acted = self._as_input(last_action).masked_fill(n_steps[:, None] == 0, 0.0)
        latent, memory = self.transformer.step(features, acted, memory, n_steps)
        if deterministic and isinstance(self.action_space, spaces.Box):  # the mean, without the cost of a distribution
            actions = self.action_net(latent).cpu().numpy()
        else:
            actions = self._get_action_dist_from_latent(latent).get_actions(deterministic=deterministic).cpu().numpy()
        actions = actions.reshape(-1, *(self.action_space.shape or ()))
        if isinstance(self.action_space, spaces.Box):
            actions = np.clip(actions, self.action_space.low, self.action_space.high)
        last_action = actions.astype(np.float32 if isinstance(self.action_space, spaces.Box) else np.int64)
        return actions, (memory.cpu().numpy(), last_action, state[2] + 1)

    def _first_state(self, n_envs: int) -> State:
        memory = self.transformer.first_memory(self._target()).repeat(1, 1, n_envs, 1, 1)
        kind = np.float32 if isinstance(self.action_space, spaces.Box) else np.int64
        action = np.zeros((n_envs, *(self.action_space.shape or ())), dtype=kind)
        return memory.cpu().numpy(), action, np.zeros(n_envs, dtype=np.int64)

    def _target(self) -> th.Tensor:
        return th.full((1,), self.target_return, device=self.device)

    def _as_input(self, actions: th.Tensor) -> th.Tensor:
        """Numbers in [-1, 1] for each finite dimension of ``Box``, one-hot for discrete ones."""
        if isinstance(self.action_space, spaces.Box):
            return ((actions - self.action_middle) / self.action_half_range).flatten(1)
        encoded: Any = preprocess_obs(actions, self.action_space)
        return encoded.flatten(1)


def _along(axis: int, flags: np.ndarray, array: np.ndarray) -> np.ndarray:
    """One flag for each entry along an axis, in a shape that broadcasts."""
    return np.asarray(flags).reshape([-1 if each == axis else 1 for each in range(array.ndim)])
