"""``vecnormalize.pkl``: the statistics that a policy normalises its observations with."""

from pathlib import Path

from stable_baselines3.common.vec_env import VecNormalize

from sb3_refine.agents.decoding.objects import vec_normalize
from sb3_refine.agents.decoding.pickle_tree import BROKEN, DecodingError, UnknownObjectError, read_pickle
from sb3_refine.agents.decoding.trusted import TRUST, unpickle
from sb3_refine.envs.normalisation import detached
from sb3_refine.errors import RefineError

_MAX_BYTES = 64 * 2**20
_MAX_OPCODES = 200_000  # it holds the last information of every environment


def read_vec_normalize(path: Path, trust_remote_code: bool = False) -> VecNormalize:
    """
    Read a ``vecnormalize.pkl`` without an environment. No code in it is run, unless its author is trusted.

    :param path: the file
    :param trust_remote_code: unpickle the file where it cannot be read as data, which can run any code
    :return: the wrapper with its statistics, its flags as they were saved, and no ``venv``
    :raises RefineError: when it is unreadable, is something else, or its figures are impossible
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RefineError(
                f"{path}: larger than {_MAX_BYTES / 2**20:.0f} MiB, too large for the statistics of a VecNormalize"
            )
        data = path.read_bytes()
    except OSError as error:
        raise RefineError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return detached(vec_normalize(read_pickle(data, _MAX_OPCODES)))
    except UnknownObjectError as error:
        if not trust_remote_code:
            raise RefineError(f"{path}: {error}; {TRUST}") from None
    except (DecodingError, *BROKEN) as error:
        raise RefineError(
            f"{path}: not the statistics of a VecNormalize ({error}); save or download it again"
        ) from None
    found = unpickle(str(path), data)
    if not isinstance(found, VecNormalize):
        raise RefineError(f"{path}: expected a pickled VecNormalize, got {type(found).__name__}")
    return detached(found)
