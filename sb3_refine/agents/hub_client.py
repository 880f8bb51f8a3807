"""The Hugging Face Hub's client, imported where used, and error messages for the Hub's answers."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from sb3_refine.errors import RefineError, did_you_mean, one_line

LOG_IN = "run `hf auth login` or set HF_TOKEN"


class NotThere(RefineError):
    """No such repo, or none that the token may see: the agent may have another name."""


def client() -> ModuleType:
    """
    :return: ``huggingface_hub`` with its submodules
    :raises RefineError: when it is not installed
    """
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise RefineError("the Hub needs huggingface_hub; pip install 'sb3-refine[hub]'") from error
    return huggingface_hub


@contextmanager
def quiet() -> Iterator[None]:
    """
    Silence the client's warnings of retries and missing tokens, since errors say what matters in one line, and its
    progress bars if standard error is not a terminal.
    """
    utils = client().utils
    verbosity = utils.logging.get_verbosity()
    has_bars = not utils.are_progress_bars_disabled()
    utils.logging.set_verbosity_error()
    if has_bars and not sys.stderr.isatty():
        utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.logging.set_verbosity(verbosity)
        if has_bars:
            utils.enable_progress_bars()


def is_unreachable(error: Exception) -> bool:
    """
    :param error: of a request
    :return: whether the Hub did not answer, or answered that it is overloaded or broken
    """
    answer = _answer(error)
    return answer is None or answer.status_code == 429 or answer.status_code >= 500


def pull_refusal(repo: str, revision: str | None, error: Exception) -> RefineError:
    """
    :param repo: what was asked for
    :param revision: of it
    :param error: of a request that the Hub has answered
    :return: why the Hub refused, and the remedy
    """
    hub = client()
    address = f"{hub.constants.ENDPOINT}/{repo}"
    if isinstance(error, hub.errors.RevisionNotFoundError):
        return RefineError(f"revision: {repo} has no revision {revision!r}; see {address}/commits/main")
    if isinstance(error, hub.errors.GatedRepoError):
        log_in = "" if hub.get_token() else f", then {LOG_IN}"
        return RefineError(f"{repo} is gated: ask for access at {address}{log_in}")
    if isinstance(error, hub.errors.RepositoryNotFoundError):
        return _no_such_repo(repo, _answer(error).status_code)
    meanings = {
        401: f"the Hub does not know your token; {LOG_IN}",
        403: f"your token may not read it; {LOG_IN} to one that may",
    }
    return RefineError(f"{repo}: {meanings.get(_answer(error).status_code, f'the Hub answers {one_line(error)}')}")


def push_refusal(repo: str, error: Exception) -> RefineError:
    """
    :param repo: where to
    :param error: of a request
    :return: why it failed, and the remedy
    """
    answer = _answer(error)
    if answer is None:
        return RefineError(f"the Hub cannot be reached ({one_line(error)})")
    organization = repo.partition("/")[0]
    not_allowed = f"your token may not write to {organization}; {LOG_IN} to one that may"
    meanings = {401: f"the Hub does not know your token; {LOG_IN}", 403: not_allowed, 404: not_allowed}
    return RefineError(meanings.get(answer.status_code, f"the Hub answers {one_line(error)}"))


def _no_such_repo(repo: str, status: int) -> NotThere:
    """Without a token, the Hub answers 401 for private and for missing repos; with one, 404 for both."""
    hint = did_you_mean(repo, _public_repos(repo))
    if client().get_token() is not None:
        return NotThere(f"there is no {repo}{hint}, or your token may not see it")
    if status == 404:
        return NotThere(f"there is no {repo}{hint}")
    return NotThere(f"there is no public {repo}{hint}; if it is private, {LOG_IN}")


def _public_repos(repo: str) -> list[str]:
    """Public repos of the same organization, to suggest one."""
    hub = client()
    try:
        return [model.id for model in hub.HfApi().list_models(author=repo.partition("/")[0], limit=1000)]
    except (hub.errors.HTTPError, OSError):
        return []


def _answer(error: BaseException | None) -> Any:
    """The Hub's answer to a request, if the error or its cause has one."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return response
        error = error.__cause__
    return None
