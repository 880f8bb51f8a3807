"""A user of the Hub, in a process of its own: the Hub's client reads its settings when it is imported."""

import hashlib
import os
from contextlib import suppress

import pytest
from fresh import CONTEXT, set_environment

from sb3_refine import RefineError


class HubUser:
    """Evaluates expressions in a process with the given environment."""

    def __init__(self, environment):
        self._connection, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_serve, args=(theirs, environment), daemon=True)
        self._process.start()
        theirs.close()

    def close(self):
        self._connection.close()
        self._process.join()

    def __call__(self, expression, token=None):
        self._connection.send((expression, token))
        answer = self._connection.recv()
        if isinstance(answer, RefineError):
            raise answer
        return answer

    def refused(self, expression, token=None):
        """The line that refuses an expression."""
        with pytest.raises(RefineError) as error:
            self(expression, token)
        assert "\n" not in str(error.value)
        return str(error.value)


def fingerprint(agent):
    """Hash of all parameters and statistics."""
    digest = hashlib.sha256()
    for name, value in sorted(agent.model.policy.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    if agent.vec_normalize is not None:
        digest.update(agent.vec_normalize.obs_rms.mean.tobytes() + agent.vec_normalize.obs_rms.var.tobytes())
    return digest.hexdigest()


def _serve(connection, environment):
    set_environment(environment)
    from sb3_refine import load_agent
    from sb3_refine.agents.hub import pull
    from sb3_refine.reporting.publish import push

    names = {"load_agent": load_agent, "pull": pull, "push": push, "fingerprint": fingerprint}
    with suppress(EOFError):  # the test has closed the connection
        while True:
            expression, token = connection.recv()
            os.environ.pop("HF_TOKEN", None)
            if token:
                os.environ["HF_TOKEN"] = token
            try:
                answer = eval(expression, names)
            except RefineError as error:
                answer = error
            connection.send(answer)
