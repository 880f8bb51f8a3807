"""
Fuzz the readers of files: mutated real files must give a result or one line, in bounded time and memory, and must not
import, write, execute or connect to anything.

    python tests/fuzz.py FOLDER --n-inputs 1000 --seed 0

FOLDER is a log folder of the Zoo; its zips, statistics, YAML and npz files, and a checkpoint, are what is mutated.
Prints a line of counts, and exits with status 1 at the first input that misbehaves, which is then kept.
"""

import argparse
import base64
import io
import json
import pickletools
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from hostile import HARMFUL_PICKLES

_SECONDS = 10  # of the processor: a busy machine is not the file's doing
_BYTES = 2**30
_NAMES = [
    ("os", "system"), ("builtins", "eval"), ("numpy", "load"), ("torch", "load"), ("subprocess", "Popen"),
    ("builtins", "getattr"), ("functools", "partial"), ("importlib", "import_module"), ("antigravity", "geohash"),
    ("gymnasium.spaces.box", "Box"), ("gymnasium.spaces.dict", "Dict"), ("collections", "OrderedDict"),
    ("numpy", "dtype"), ("numpy._core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "scalar"),
    ("stable_baselines3.common.utils", "LinearSchedule"), ("stable_baselines3.common.buffers", "ReplayBuffer"),
]  # fmt: skip
_FORBIDDEN = (
    "exec", "import", "os.system", "os.exec", "os.fork", "os.spawn", "subprocess.", "socket.", "shutil.",
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "ctypes.", "pty.",
    "code.__new__", "marshal.", "pickle.find_class", "object.__setattr__",
)  # fmt: skip
_OPCODES = [bytes([opcode]) for opcode in b"Rbo02aseut(]}\x81\x93"]
_VALUES = [b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"K\x00", b"N", b"\x88", b"G\x7f\xf8" + b"\0" * 6]
_TEXT_TOKENS = [
    b"&a ", b"*a", b"!!bool ", b"!!timestamp ", b"!!binary ", b"!!python/name:os.system ", b"[", b"{", b"- ", b": ",
    b"? ", b"<<: ", b"\t", b"\x00", b"|\n", b">\n", b"'", b'"', b"%YAML 9.9\n---\n", b"\xff", b"0x", b"1e999", b"~",
]  # fmt: skip


class Guard:
    """Notes what an audited interpreter does while a file is read."""

    def __init__(self) -> None:
        self.active, self.seen = False, ""
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.active:
            return
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        loads = event == "import" and arguments[0] in sys.modules
        if (event.startswith(_FORBIDDEN) and not loads) or writes:
            self.seen = f"{event} {str(arguments)[:200]}"


# ---------------------------------------------------------------- mutations


def flip(data: bytes, rng: random.Random) -> bytes:
    """Change, cut out, repeat or put in a few bytes."""
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(len(found) + 1)
        n = rng.choice([1, 1, 2, 4, 50])
        change = rng.randrange(5)
        if change == 0 and at < len(found):
            found[at] = rng.randrange(256)
        elif change == 1:
            del found[at : at + n]
        elif change == 2:
            found[at:at] = rng.randbytes(n)
        elif change == 3:
            found[at:at] = found[at : at + n] * rng.choice([1, 2, 100])
        else:
            found[at : at + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"])
    return bytes(found)


def opcodes(data: bytes) -> list[bytes]:
    """A pickle cut into its opcodes."""
    try:
        starts = [position for _, _, position in pickletools.genops(data)]
    except ValueError:
        return [data]
    return [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]


def mutate_pickle(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Change the program of a pickle: drop, repeat, swap and bring in opcodes, and exchange names."""
    if rng.random() < 0.2:
        return flip(data, rng)
    if rng.random() < 0.03:
        return rng.choice(list(HARMFUL_PICKLES.values()))
    code = opcodes(data)
    for _ in range(rng.choice([1, 1, 2, 3, 10])):
        at = rng.randrange(len(code))
        change = rng.randrange(6)
        if change == 0:
            del code[at]
        elif change == 1:
            code.insert(at, code[rng.randrange(len(code))])
        elif change == 2:
            other = opcodes(rng.choice(others))
            start = rng.randrange(len(other))
            code[at:at] = other[start : start + rng.choice([1, 3, 10, 40])]
        elif change == 3:
            module, name = rng.choice(_NAMES)
            code[at] = f"c{module}\n{name}\n".encode()
        elif change == 4:
            code[at] = rng.choice(_OPCODES)
        else:
            code[at] = rng.choice(_VALUES)
        code = code or [b"."]
    return b"".join(code)


def mutate_text(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return flip(data, rng)
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(_TEXT_TOKENS) * rng.choice([1, 1, 1, 50, 5000]) + data[at:]


def rezip(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def unzip(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def mutate_torch(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    if rng.random() < 0.3 or not zipfile.is_zipfile(io.BytesIO(data)):
        return flip(data, rng)
    members = unzip(data)
    name = next((name for name in members if name.endswith("/data.pkl")), None)
    name = name if rng.random() < 0.8 and name else rng.choice(list(members))
    members[name] = mutate_pickle(members[name], rng, others) if name.endswith(".pkl") else flip(members[name], rng)
    return rezip(members, rng.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED]))


def mutate_model(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Change an attribute, a file of torch, or the zip itself."""
    if rng.random() < 0.1:
        return flip(data, rng)
    members = unzip(data)
    torchs = [name for name in members if name.endswith(".pth")]
    if torchs and rng.random() < 0.4:
        name = rng.choice(torchs)
        members[name] = mutate_torch(members[name], rng, others)
    elif rng.random() < 0.1:
        members["data"] = mutate_text(members["data"], rng)
    else:
        attributes = json.loads(members["data"])
        for _ in range(rng.choice([1, 1, 3])):
            key = rng.choice(list(attributes))
            value = attributes[key]
            if isinstance(value, dict) and ":serialized:" in value:
                pickled = mutate_pickle(base64.b64decode(value[":serialized:"]), rng, others)
                value[":serialized:"] = base64.b64encode(pickled).decode()
            else:
                attributes[key] = rng.choice([None, -1, 10**12, 1e400, "x", [], {}, [[[]]], True, float("nan"), value])
        members["data"] = json.dumps(attributes).encode()
    return rezip(members)


# ---------------------------------------------------------------- the readers


def readers() -> dict[str, Callable[[Path], object]]:
    """What reads each kind of file."""
    from gymnasium import spaces

    from sb3_refine.agents.decoding.evaluations import read_evaluations
    from sb3_refine.agents.decoding.model_zip import read_model
    from sb3_refine.agents.decoding.statistics import read_vec_normalize
    from sb3_refine.agents.decoding.zoo_yaml import read_zoo_yaml
    from sb3_refine.agents.sb3_models import load_model
    from sb3_refine.search.checkpoint import read_checkpoint

    def build(path: Path) -> object:
        stored = read_model(path)
        space = stored.attributes["observation_space"]
        return load_model(stored, {}, space if isinstance(space, spaces.Space) else spaces.Box(-1, 1))

    return {
        "zip": build,
        "pkl": read_vec_normalize,
        "yml": read_zoo_yaml,
        "npz": read_evaluations,
        "pt": lambda path: read_checkpoint(path.parent),
    }


def seeds_of(folder: Path) -> dict[str, list[bytes]]:
    """Real files by kind."""
    found = {kind: sorted(folder.rglob(f"*.{kind}")) for kind in ("zip", "pkl", "yml", "npz", "pt")}
    return {kind: [path.read_bytes() for path in paths] for kind, paths in found.items() if paths}


def pickles_of(files: dict[str, list[bytes]]) -> list[bytes]:
    """All pickles in them, to take opcodes from."""
    pickles = list(files.get("pkl", []))
    for data in files.get("zip", []):
        for value in json.loads(unzip(data)["data"]).values():
            if isinstance(value, dict) and ":serialized:" in value:
                pickles.append(base64.b64decode(value[":serialized:"]))
    return pickles


def mutate(kind: str, data: bytes, rng: random.Random, pickles: list[bytes]) -> bytes:
    if kind == "zip":
        return mutate_model(data, rng, pickles)
    if kind == "pkl":
        return mutate_pickle(data, rng, pickles)
    if kind == "pt":
        return mutate_torch(data, rng, pickles)
    return mutate_text(data, rng) if kind == "yml" else flip(data, rng)


class TooSlowError(BaseException):
    """Not an Exception, so that no reader takes it for an error of the file."""


def stop(number: int, frame: object) -> None:
    raise TooSlowError


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n-inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=["zip", "pkl", "yml", "npz", "pt"])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    from sb3_refine.agents.decoding.pickle_tree import DecodingError
    from sb3_refine.errors import RefineError

    read, files = readers(), seeds_of(options.folder)
    files = {kind: found for kind, found in files.items() if kind in options.kinds}
    pickles = pickles_of(seeds_of(options.folder))
    guard, counts, slowest = Guard(), Counter(), (0.0, 0)
    workplace = Path(tempfile.mkdtemp())
    for kind, found in files.items():  # what is imported and made on first use is not the file's doing
        for data in found:
            path = workplace / ("checkpoint.pt" if kind == "pt" else f"file.{kind}")
            path.write_bytes(data)
            read[kind](path)
    signal.signal(signal.SIGPROF, stop)
    limit_memory()
    for number in range(options.n_inputs):
        rng = random.Random(f"{options.seed} {number}")
        kind = rng.choice(list(files))
        data = mutate(kind, rng.choice(files[kind]), rng, pickles)
        path = workplace / ("checkpoint.pt" if kind == "pt" else f"file.{kind}")
        path.write_bytes(data)
        start, problem = time.process_time(), ""
        signal.setitimer(signal.ITIMER_PROF, _SECONDS)
        guard.active = True
        try:
            read[kind](path)
            counts[f"{kind} read"] += 1
        except (RefineError, DecodingError) as error:
            counts[f"{kind} refused"] += 1
            if not str(error).isprintable() or len(str(error)) > 1000:
                problem = f"not one short line: {str(error)[:200]!r}"
        except BaseException as error:
            problem = f"{type(error).__name__}: {str(error)[:300]}"
        finally:
            guard.active = False
            signal.setitimer(signal.ITIMER_PROF, 0)
        slowest = max(slowest, (time.process_time() - start, number))
        problem = problem or guard.seen
        if problem:
            print(f"input {number} of seed {options.seed}, {path}: {problem}")
            return 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{options.n_inputs} inputs: {dict(sorted(counts.items()))}")
    print(f"slowest {slowest[0]:.2f} s (input {slowest[1]}); peak {peak:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
