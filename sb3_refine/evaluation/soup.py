"""A greedy soup: the average of those candidates that make it better."""

import logging
from collections.abc import Callable, Sequence

from sb3_refine.agents.agent import Agent
from sb3_refine.agents.averages import average
from sb3_refine.agents.candidates import NamedAgent

logger = logging.getLogger(__name__)

MAX_INGREDIENTS = 8


def greedy_soup(candidates: Sequence[NamedAgent], score: Callable[[Sequence[Agent]], list[float]]) -> NamedAgent | None:
    """
    Average candidates greedily (Wortsman et al., 2022, "Model soups", https://arxiv.org/abs/2203.05482, recipe 1): from
    the best one on, each of the :data:`MAX_INGREDIENTS` best joins the average if the average is not worse with it.

    :param candidates: of one algorithm, with the same networks
    :param score: of some agents, on common validation episodes; higher is better
    :return: the average; None where nothing joined the best candidate
    :raises RefineError: when the candidates cannot be averaged
    """
    scores = dict(zip((each.name for each in candidates), score([each.agent for each in candidates]), strict=True))
    ranked = sorted(candidates, key=lambda each: scores[each.name], reverse=True)[:MAX_INGREDIENTS]
    ingredients, best = ranked[:1], scores[ranked[0].name]
    for each in ranked[1:]:
        (found,) = score([average([one.agent for one in (*ingredients, each)])])
        if found >= best:
            ingredients, best = [*ingredients, each], found
    if len(ingredients) == 1:
        return None
    logger.info("greedy soup of %s", ", ".join(one.name for one in ingredients))
    return NamedAgent("greedy soup", average([one.agent for one in ingredients]))


def n_scores(n_candidates: int) -> int:
    """
    :param n_candidates: of a greedy soup
    :return: the agents that are scored for the soup
    """
    return n_candidates + min(n_candidates, MAX_INGREDIENTS) - 1
