"""
Processes in which nothing of a test has happened yet.

They are forked from a server that has imported PyTorch and the package, which takes seconds. The workers of the tests'
evaluators and of these processes are forked from the same server. The server imports no module that reads its settings
from the environment, such as `huggingface_hub`.
"""

import multiprocessing
import os
import subprocess
import sys
import types
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory

CONTEXT = multiprocessing.get_context("forkserver")
COMMAND_LINE = "import sys; from sb3_refine.cli.main import main; sys.exit(main())"


def start_server():
    """Start the server, with more modules than the package itself asks for."""
    modules = ["sb3_contrib", "sb3_refine.cli.main", "sb3_refine.testing"]
    forkserver.set_forkserver_preload([*modules, "torch._dynamo"])  # every model's optimizer imports the last
    forkserver.ensure_running()


def run_script(code, *arguments, cwd=None, env=None, timeout=300) -> subprocess.CompletedProcess:
    """Runs a script in a process of its own, as ``python -c`` does."""
    with TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdout", "stderr")]
        process = CONTEXT.Process(target=_run, args=(code, list(map(str, arguments)), files, cwd, env))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise TimeoutError(f"the script ran longer than {timeout} s")
        return subprocess.CompletedProcess(arguments, process.exitcode, *(path.read_text() for path in files))


def run_command(*arguments, **kwargs) -> subprocess.CompletedProcess:
    """Runs ``sb3-refine`` in a process of its own."""
    return run_script(COMMAND_LINE, *arguments, **kwargs)


def set_environment(env):
    """Replace the variables of this process."""
    if env is not None:
        os.environ.clear()
        os.environ.update(env)


def _run(code, arguments, files, cwd, env):
    for descriptor, path in enumerate(files, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(cwd or ".")
    set_environment(env)
    forkserver._forkserver.ensure_running = lambda: None  # workers come from the same server
    sys.argv = ["-c", *arguments]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(code, "<script>", "exec"), vars(main))
