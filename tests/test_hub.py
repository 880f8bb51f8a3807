"""Pulling from and pushing to the Hub: the real client against a stand-in for the Hub on this machine."""

import io
import json
import os
import pickle
import re
import shutil
import socket
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
import yaml
from conftest import ENV_ID
from fresh import run_command
from hub_server import HubServer
from hub_user import HubUser

from sb3_refine import RefineError, Refiner, load_agent
from sb3_refine.reporting.model_card import model_card
from sb3_refine.reporting.publish import layout, push
from sb3_refine.reporting.run_folder import read_run_folder

pytest.importorskip("huggingface_hub")

TOKEN, STRANGER = "hf_of_me", "hf_of_somebody_else"
ZIP = f"a2c-{ENV_ID}.zip"
FAST = [
    "--n-updates",
    "2",
    "--n-delta",
    "2",
    "--n-eval-episodes",
    "2",
    "--backend",
    "serial",
    "--verbose",
    "0",
    "--no-report",
]


def environment(endpoint, home, **more):
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "TRUST_REMOTE_CODE": "True"}
    return {**inherited, **own, **more}


@pytest.fixture(scope="module")
def nowhere():
    """An address where nobody answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("huggingface")


@pytest.fixture(scope="module")
def running_hub():
    server = HubServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(running_hub):
    """A Hub in good order, on which nobody but we have a token."""
    running_hub.tokens.clear()
    running_hub.tokens.update({TOKEN: ["me"], STRANGER: []})
    running_hub.repos.clear()
    running_hub.requests.clear()
    yield running_hub
    running_hub.cut, running_hub.status = "", None


@pytest.fixture(scope="module")
def client(running_hub, home):
    user = HubUser(environment(running_hub.url, home))
    yield user
    user.close()


@pytest.fixture(scope="module")
def offline(nowhere, home):
    """The same user without a connection."""
    user = HubUser(environment(nowhere, home))
    yield user
    user.close()


def run(endpoint, home, *arguments, **more):
    return run_command(*arguments, env=environment(endpoint, home, **more))


def files_of(made_agents, algo="a2c", env_name=ENV_ID):
    """An agent in the layout that the Zoo pushes."""
    run_folder = made_agents / algo / f"{ENV_ID}_1"
    files = {
        f"{algo}-{env_name}.zip": (run_folder / f"{ENV_ID}.zip").read_bytes(),
        "config.yml": (run_folder / ENV_ID / "config.yml").read_bytes(),
        "args.yml": b"!!python/object/apply:collections.OrderedDict\n- - - env_kwargs\n    - null\n",
        "env_kwargs.yml": b"g: 9.5\nrender_mode: rgb_array\n",
        "results.json": b"{}",
        "train_eval_metrics.zip": b"PK\x05\x06" + bytes(18),
        "README.md": b"# An agent\n",
    }
    statistics = run_folder / ENV_ID / "vecnormalize.pkl"
    return {**files, "vec_normalize.pkl": statistics.read_bytes()} if statistics.exists() else files


@pytest.fixture(scope="module")
def fingerprint(made_agents, client):
    """Of the agent on disk."""
    return client(f"fingerprint(load_agent('a2c', {ENV_ID!r}, {str(made_agents)!r}))")


@pytest.fixture(scope="module")
def pristine_run(made_agents, tmp_path_factory):
    """What a short run has left."""
    refiner = Refiner(load_agent("a2c", ENV_ID, made_agents), n_delta=2, n_eval_episodes=3, backend="serial")
    return refiner.learn(1).save(tmp_path_factory.mktemp("refined-agents"))


@pytest.fixture
def run_folder(pristine_run, tmp_path):
    return Path(shutil.copytree(pristine_run, tmp_path / "run folder"))


PULL = f"load_agent('a2c', {ENV_ID!r}, 'no-folder')"


def pull_from(organization, more=""):
    return f"load_agent('a2c', {ENV_ID!r}, organization={organization!r}{more})"


# ---------------------------------------------------------------- pull


def test_an_agent_missing_from_the_folder_comes_from_the_zoos_organization(hub, client, made_agents, fingerprint):
    revision = hub.add(f"sb3/a2c-{ENV_ID}", files_of(made_agents))
    agent = client(f"(lambda a: [a.source, a.recipe.env_kwargs, a.config, fingerprint(a)])({PULL})")
    source, env_kwargs, config, pulled = agent
    assert pulled == fingerprint
    assert env_kwargs == {"g": 9.5}  # env_kwargs.yml reaches the environment, the Zoo's camera does not
    assert config == {"policy": "MlpPolicy", "normalize": True}
    assert (source["repo"], source["revision"]) == (f"sb3/a2c-{ENV_ID}", revision)
    assert source["sha256"] == sha256(files_of(made_agents)[ZIP]).hexdigest()
    assert not any("README" in request or "train_eval" in request for request in hub.requests)


def test_only_the_zip_and_the_files_it_needs_are_required(hub, client, made_agents, fingerprint):
    files = files_of(made_agents)
    hub.add(f"bare/a2c-{ENV_ID}", {name: files[name] for name in (ZIP, "vec_normalize.pkl")})
    assert client(f"fingerprint({pull_from('bare')})") == fingerprint
    hub.add(f"naked/a2c-{ENV_ID}", {ZIP: files[ZIP]})
    assert "there is no vecnormalize.pkl" in client.refused(pull_from("naked"))


def test_the_folder_comes_first_unless_the_hub_is_requested(hub, client, made_agents):
    hub.add(f"sb3/a2c-{ENV_ID}", files_of(made_agents))
    arguments = f"'a2c', {ENV_ID!r}, {str(made_agents)!r}"
    assert "repo" not in client(f"load_agent({arguments}).source")
    assert hub.requests == []
    for option in ("organization='sb3'", f"repo_name='a2c-{ENV_ID}'", "revision='main'"):
        assert client(f"load_agent({arguments}, {option}).source")["repo"] == f"sb3/a2c-{ENV_ID}"


@pytest.mark.parametrize("option", ["exp_id=7", "load_best=True", "load_last_checkpoint=True"])
def test_a_choice_within_the_folder_is_not_answered_by_another_agent(hub, client, made_agents, option):
    hub.add(f"sb3/a2c-{ENV_ID}", files_of(made_agents))
    assert "on the Hub" not in client.refused(f"load_agent('a2c', {ENV_ID!r}, {str(made_agents)!r}, {option})")
    assert "a repo on the Hub holds one agent: leave out" in client.refused(pull_from("sb3", f", {option}"))
    assert hub.requests == []


def test_an_unfinished_run_in_the_folder_is_not_replaced_by_a_strangers(hub, client, made_agents, tmp_path):
    hub.add(f"sb3/a2c-{ENV_ID}", files_of(made_agents))
    shutil.copytree(made_agents / "a2c", tmp_path / "a2c")
    zip_path = tmp_path / "a2c" / f"{ENV_ID}_1" / f"{ENV_ID}.zip"
    zip_path.rename(zip_path.with_name("best_model.zip"))
    assert "there are: best_model.zip" in client.refused(f"load_agent('a2c', {ENV_ID!r}, {str(tmp_path)!r})")
    assert hub.requests == []


def test_a_renamed_environment_is_found_under_either_name(hub, client, made_agents):
    hub.add("old/ppo-Ant-v3", files_of(made_agents, "ppo", "Ant-v3"))
    hub.add("new/ppo-Ant-v4", files_of(made_agents, "ppo", "Ant-v4"))
    for organization, name in (("old", "ppo-Ant-v3"), ("new", "ppo-Ant-v4")):
        assert client(f"pull('ppo', 'Ant-v3', {organization!r}).source['repo']") == f"{organization}/{name}"


def test_slashes_in_names_become_dashes(hub, client, made_agents):
    hub.add("other/named", files_of(made_agents, "ppo", "Some-Space-v1"))
    assert client("pull('ppo', 'Some/Space-v1', 'other', 'named').model.name") == "ppo-Some-Space-v1.zip"


def test_a_revision_gives_the_older_agent(hub, client, made_agents, fingerprint):
    files = files_of(made_agents)
    older = hub.add(f"two/a2c-{ENV_ID}", files)
    damaged = files["config.yml"] + b"  - - note\n    - newer\n"
    newer = hub.add(f"two/a2c-{ENV_ID}", {**files, "config.yml": damaged})
    pulled = "(lambda a: [a.source['revision'], 'note' in a.config, fingerprint(a)])"
    assert client(f"{pulled}({pull_from('two')})") == [newer, True, fingerprint]
    assert client(f"{pulled}({pull_from('two', f', revision={older!r}')})") == [older, False, fingerprint]
    refused = client.refused(pull_from("two", ", revision='v9'"))
    assert refused == f"revision: two/a2c-{ENV_ID} has no revision 'v9'; see {hub.url}/two/a2c-{ENV_ID}/commits/main"


def test_the_cache_serves_without_a_connection(hub, client, offline, home, nowhere, made_agents, fingerprint):
    hub.add(f"kept/a2c-{ENV_ID}", files_of(made_agents))
    client(f"fingerprint({pull_from('kept')})")
    n_downloads = sum("/resolve/" in request for request in hub.requests)
    client(f"fingerprint({pull_from('kept')})")
    assert sum("/resolve/" in request for request in hub.requests) == n_downloads
    assert offline(f"fingerprint({pull_from('kept')})") == fingerprint
    hub.status = 503
    assert client(f"fingerprint({pull_from('kept')})") == fingerprint
    options = ["--algo", "a2c", "--env", ENV_ID, "--organization", "kept", "--dry-run"]
    done = run(nowhere, home, *options, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"the Hub cannot be reached: kept/.*, revision [0-9a-f]{40} from its cache\n", done.stderr)


def test_an_agent_outside_the_cache_needs_a_connection(hub, offline, client, home, nowhere):
    line = f"its cache has no complete copy of sb3/ppo-{ENV_ID}; check the connection"
    refused = offline.refused(f"load_agent('ppo', {ENV_ID!r}, 'no-folder')")
    assert refused.startswith("folder: there is no folder no-folder; name the Zoo's log folder with -f; the agent was")
    assert "the Hub cannot be reached (" in refused
    assert line in refused
    hub.status = 503
    assert "the Hub cannot be reached (" in client.refused(f"load_agent('ppo', {ENV_ID!r}, 'no-folder')")
    done = run(nowhere, home, "--algo", "ppo", "--env", ENV_ID, "--revision", "v1", HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"no complete copy of sb3/ppo-{ENV_ID} at v1; unset HF_HUB_OFFLINE" in done.stderr


def test_no_such_repo(hub, client, made_agents):
    hub.add(f"sb3/a2c-{ENV_ID}", files_of(made_agents))
    pull = "load_agent('a2c', 'Pendulun-v1', 'no-folder')"
    hint = rf"sb3/a2c-Pendulun-v1 \(did you mean sb3/a2c-{ENV_ID}\?\)"
    refused = client.refused(pull)
    assert re.search(f"there is no public {hint}; if it is private, run `hf auth login` or set HF_TOKEN$", refused)
    assert re.search(f"there is no {hint}, or your token may not see it$", client.refused(pull, STRANGER))
    refused = client.refused(f"load_agent('a2c', {ENV_ID!r}, organization='a b')")
    assert refused.startswith("organization, repo_name: ")
    assert hub.requests.count("GET /api/models/a b/a2c-Pendulum-v1") == 0


def test_a_private_repo_needs_its_token(hub, client, made_agents, fingerprint):
    hub.add(f"me/a2c-{ENV_ID}", files_of(made_agents), private=True)
    assert "if it is private, run `hf auth login` or set HF_TOKEN" in client.refused(pull_from("me"))
    assert "or your token may not see it" in client.refused(pull_from("me"), STRANGER)
    assert "the Hub does not know your token; run `hf auth login`" in client.refused(pull_from("me"), "hf_expired")
    assert client(f"fingerprint({pull_from('me')})", TOKEN) == fingerprint


def test_a_gated_repo_says_where_to_ask(hub, client, made_agents):
    repo = f"guarded/a2c-{ENV_ID}"
    hub.add(repo, files_of(made_agents), gated=True)
    asked = f"{repo} is gated: ask for access at {hub.url}/{repo}"
    assert client.refused(pull_from("guarded")) == f"{asked}, then run `hf auth login` or set HF_TOKEN"
    assert client.refused(pull_from("guarded"), TOKEN) == asked


def test_a_repo_without_the_zip_says_which_it_has(hub, client, made_agents):
    hub.add("other/mine", files_of(made_agents, "ppo"))
    refused = client.refused(pull_from("other", ", repo_name='mine'"))
    assert refused.startswith(f"other/mine has no {ZIP}; its zips: ppo-{ENV_ID}.zip; download one")


@pytest.mark.slow
@pytest.mark.parametrize(("organization", "cut"), [("cut", ".zip"), ("torn-off", "vec_normalize.pkl")])
def test_an_interrupted_download_starts_again(hub, client, made_agents, fingerprint, organization, cut):
    hub.add(f"{organization}/a2c-{ENV_ID}", files_of(made_agents))
    hub.cut = cut
    refused = client.refused(pull_from(organization))
    assert refused.startswith(f"the download of {organization}/a2c-{ENV_ID} was interrupted (")
    assert refused.endswith("; no partial file is kept; run the same command again")
    # what has arrived is not taken for the whole agent: the zip comes last
    hub.status = 503
    assert "its cache has no complete copy" in client.refused(pull_from(organization))
    hub.cut, hub.status = "", None
    assert client(f"fingerprint({pull_from(organization)})") == fingerprint


def test_a_damaged_copy_in_the_cache_is_found_and_replaced(hub, client, home, made_agents, fingerprint):
    hub.add(f"torn/a2c-{ENV_ID}", files_of(made_agents))
    copy = Path(client(f"{pull_from('torn')}.source['path']"))
    content = copy.read_bytes()
    copy.resolve().write_bytes(content[:-100] + bytes(100))
    assert f"the copy of {ZIP} in the Hub's cache was damaged and has been removed" in client.refused(pull_from("torn"))
    assert client(f"fingerprint({pull_from('torn')})") == fingerprint
    assert copy.read_bytes() == content


class _Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_strangers_files_run_nothing(hub, client, made_agents, tmp_path):
    trap = tmp_path / "sprung"
    attack = {"vec_normalize.pkl": pickle.dumps(_Attack(trap))}
    hub.add(f"evil/a2c-{ENV_ID}", {**files_of(made_agents), **attack})
    assert "system" in client.refused(pull_from("evil"))
    yaml_attack = f"!!python/object/apply:os.system ['touch {trap}']".encode()
    for name in ("config.yml", "args.yml", "env_kwargs.yml"):
        hub.add(f"evil/a2c-{ENV_ID}", {**files_of(made_agents), name: yaml_attack})
        assert f"{name}: cannot be read as YAML" in client.refused(pull_from("evil"))
    assert not trap.exists()
    pickle.loads(attack["vec_normalize.pkl"])
    assert trap.exists()  # the trap works


def test_a_zip_is_not_pulled(made_agents):
    zip_path = made_agents / "a2c" / f"{ENV_ID}_1" / f"{ENV_ID}.zip"
    with pytest.raises(RefineError, match="model: a zip is not pulled"):
        load_agent(model=zip_path, revision="main")


def test_without_the_client_only_the_folder_is_searched(made_agents, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    load_agent("a2c", ENV_ID, made_agents)
    with pytest.raises(RefineError) as error:
        load_agent("a2c", "Pendulun-v1", made_agents)
    assert re.fullmatch(
        r"no agent a2c/Pendulun-v1 in .* \(did you mean Pendulum-v1\?\); the agent was not loaded from the Hub either: "
        r"the Hub needs huggingface_hub; pip install 'sb3-refine\[hub\]'",
        str(error.value),
    )


# ---------------------------------------------------------------- push


def test_a_pushed_agent_has_the_zoos_layout(hub, client, run_folder):
    (run_folder / "plots").mkdir()
    (run_folder / "plots" / "returns.png").write_bytes(b"\x89PNG")
    (run_folder / "report.md").write_text("Somebody wrote this, perhaps not the run.")
    (run_folder / "progress.csv").write_text("a,b\n1,2\n")
    assert client(f"push({str(run_folder)!r}, 'me')", TOKEN) == f"{hub.url}/me/a2c-{ENV_ID}"
    files = hub.repos[f"me/a2c-{ENV_ID}"].files
    assert sorted(files) == [
        ".gitattributes", "README.md", ZIP, "args.yml", "config.yml", "env_kwargs.yml", "plots/returns.png",
        "refinement.json", "report.md", "results.json", "train_eval_metrics.zip", "vec_normalize.pkl",
    ]  # fmt: skip
    assert files[ZIP] == (run_folder / f"{ENV_ID}.zip").read_bytes()
    assert files["vec_normalize.pkl"] == (run_folder / ENV_ID / "vecnormalize.pkl").read_bytes()
    assert zipfile.ZipFile(io.BytesIO(files["train_eval_metrics.zip"])).namelist() == ["progress.csv"]
    report = files["report.md"].decode()  # written anew from refinement.json
    assert report.startswith(f"# a2c {ENV_ID}: ")
    assert "sb3-refine evaluate --algo a2c" in report
    assert str(run_folder.parent.parent) not in report and "Somebody" not in report
    local = json.loads((run_folder / "refinement.json").read_text())
    assert json.loads(files["results.json"])["mean_reward"] == local["baseline"]["mean_return"]
    published = {**local, "source": {**local["source"], "path": f"{ENV_ID}.zip"}, "command": None}
    assert json.loads(files["refinement.json"]) == published
    assert str(Path(local["source"]["path"]).parent) not in files["README.md"].decode()


def test_the_card_has_the_fields_that_the_hub_indexes(hub, client, run_folder):
    from huggingface_hub import ModelCard

    client(f"push({str(run_folder)!r}, 'me', 'mine')", TOKEN)
    card = ModelCard(hub.repos["me/mine"].files["README.md"].decode())
    figures = json.loads((run_folder / "refinement.json").read_text())["baseline"]
    assert card.data.library_name == "stable-baselines3"
    assert card.data.tags == [
        ENV_ID, "deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3", "sb3-refine",
    ]  # fmt: skip
    (result,) = card.data.eval_results
    assert (result.task_type, result.dataset_type, result.metric_type) == (
        "reinforcement-learning", ENV_ID, "mean_reward",
    )  # fmt: skip
    assert result.metric_value == f"{figures['mean_return']:.2f} +/- {figures['std_return']:.2f}"
    assert card.data.to_dict()["model-index"][0]["name"] == "A2C"
    assert "--organization me --repo-name mine" in card.text
    assert "-orga me -name mine" in card.text


@pytest.mark.parametrize("decision", ["refined", "original", "unchecked"])
def test_the_card_claims_no_more_than_the_decision(run_folder, decision):
    from huggingface_hub import ModelCard

    path = run_folder / "refinement.json"
    content = json.loads(path.read_text())
    content.update(decision=decision, reason="because")
    content["refined"]["mean_return"] = -12.345
    if decision == "unchecked":
        content.update(baseline=None, refined=None, paired_difference=None)
    path.write_text(json.dumps(content))
    run = read_run_folder(run_folder)
    card = ModelCard(model_card(run, f"me/a2c-{ENV_ID}"))
    assert f"Decision: `{decision}` (because)." in card.text
    values = [result.metric_value.split()[0] for result in card.data.eval_results or ()]
    figures = {
        "refined": ["-12.35"],
        "original": [f"{content['baseline']['mean_return']:.2f}"] if content["baseline"] else [],
    }
    assert values == figures.get(decision, [])
    assert ("results.json" in layout(run, f"me/a2c-{ENV_ID}")) == (decision != "unchecked")
    phrase = {"refined": "it did better", "original": "**original** agent, unchanged", "unchecked": "**not tested**"}
    assert phrase[decision] in card.text
    assert ("| mean return |" in card.text) == ("-12.35" in card.text) == (decision != "unchecked")
    assert content["output_sha256"] in card.text


def test_the_cards_snippet_runs(hub, client, run_folder):
    hub.tokens["hf_snippet"] = ["snippet"]
    client(f"push({str(run_folder)!r}, 'snippet')", "hf_snippet")
    text = hub.repos[f"snippet/a2c-{ENV_ID}"].files["README.md"].decode()
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.S)
    program = f"{snippet}\nscope = globals() | locals()"
    assert client(f"(lambda scope: exec({program!r}, scope) or str(type(scope['model'].get_env())))({{}})").endswith(
        "VecNormalize'>"
    )


def test_a_push_removes_outdated_files(hub, client, run_folder):
    old = {
        "vec_normalize.pkl": b"old",
        "replay.mp4": b"old",
        f"a2c-{ENV_ID}/policy.pth": b"old",
        "plots/old.png": b"old",
    }
    hub.add(f"me/a2c-{ENV_ID}", {**old, "LICENSE": b"mine", ".gitattributes": b""})
    (run_folder / ENV_ID / "vecnormalize.pkl").unlink()
    client(f"push({str(run_folder)!r}, 'me')", TOKEN)
    files = hub.repos[f"me/a2c-{ENV_ID}"].files
    assert not set(old) & set(files)
    assert files["LICENSE"] == b"mine"


def test_env_kwargs_survive_a_push_and_a_pull(hub, client, run_folder):
    args = run_folder / ENV_ID / "args.yml"
    args.write_text(yaml.dump({"algo": "a2c", "env": ENV_ID, "env_kwargs": {"g": 9.81}}))
    client(f"push({str(run_folder)!r}, 'me')", TOKEN)
    assert yaml.safe_load(hub.repos[f"me/a2c-{ENV_ID}"].files["env_kwargs.yml"]) == {"g": 9.81}
    assert client(f"{pull_from('me')}.recipe.env_kwargs", TOKEN) == {"g": 9.81}


@pytest.mark.parametrize(
    ("token", "line"),
    [
        (None, "the Hub takes nothing without a token; run `hf auth login` or set HF_TOKEN"),
        (STRANGER, "your token may not write to me; run `hf auth login` or set HF_TOKEN to one that may"),
        ("hf_expired", "the Hub does not know your token; run `hf auth login` or set HF_TOKEN"),
    ],
)
def test_a_failed_push_says_why_and_how_to_retry(hub, client, run_folder, token, line):
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    refused = client.refused(f"push({str(run_folder)!r}, 'me', 'mine')", token)
    assert refused.startswith("not pushed to me/mine: ")
    assert line in refused
    assert refused.endswith(
        f"; the agent is safe in {run_folder}; "
        f"to try again: sb3-refine push '{run_folder}' --organization me --repo-name mine"
    )
    assert before == {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    assert hub.repos == {}


def test_a_push_without_a_connection(offline, hub, client, run_folder):
    refused = offline.refused(f"push({str(run_folder)!r}, 'me')", TOKEN)
    assert re.match(
        r"not pushed to me/a2c-Pendulum-v1: the Hub cannot be reached \(.+\); the agent is safe in", refused
    )
    hub.status = 500
    assert "the Hub answers" in client.refused(f"push({str(run_folder)!r}, 'me')", TOKEN)


def test_only_files_of_the_run_are_pushed(run_folder, tmp_path):
    with pytest.raises(RefineError, match=r"no folder of a finished run; name OUTPUT/ALGO/ENV_K"):
        push(tmp_path / "nothing", "me")
    (run_folder / f"{ENV_ID}.zip").write_bytes(b"another")
    with pytest.raises(RefineError, match=r"Pendulum-v1\.zip: missing, or not the agent that refinement.json names"):
        push(run_folder, "me")


# ---------------------------------------------------------------- there and back


@pytest.mark.slow
def test_pull_refine_push_and_pull_again(hub, client, home, made_agents, fingerprint, tmp_path):
    revision = hub.add(f"sb3/a2c-{ENV_ID}", files_of(made_agents))
    options = ["--algo", "a2c", "--env", ENV_ID, "-f", tmp_path / "none", "-o", tmp_path / "out", *FAST]
    done = run(hub.url, home, *options, "--no-acceptance", "--push-to-hub", "me/again", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.endswith(f"pushed to {hub.url}/me/again\n")
    run_folder = tmp_path / "out" / "a2c" / f"{ENV_ID}_1"
    source = json.loads((run_folder / "refinement.json").read_text())["source"]
    assert (source["repo"], source["revision"]) == (f"sb3/a2c-{ENV_ID}", revision)
    assert f"at revision `{revision}`" in hub.repos["me/again"].files["README.md"].decode()
    kept = client(f"fingerprint(load_agent('a2c', {ENV_ID!r}, {str(tmp_path / 'out')!r}))")
    again = client(f"fingerprint({pull_from('me', ', repo_name=' + repr('again'))})")
    assert again == kept != fingerprint
    (run_folder / "refinement.json").unlink()
    assert run(hub.url, home, "--resume", run_folder, "--verbose", "0").returncode == 0
    assert json.loads((run_folder / "refinement.json").read_text())["source"] == source


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("judge", "the best of several agents, tested against the original"),
        ("train", "training on with its own algorithm and hyperparameters"),
        ("auto", "training on with its own algorithm, as long as that made it better, then a direct random search"),
    ],
)
def test_every_method_pushes_what_can_be_pulled(hub, client, home, made_agents, tmp_path, method, said):
    how = {
        "judge": ["--candidates", made_agents / "ppo" / f"{ENV_ID}_1"],
        "train": ["--method", "train", "-n", 64],
        "auto": ["--method", "auto", "--budget", 32, "--n-delta", 2],
    }[method]
    options = [
        "--algo",
        "a2c",
        "--env",
        ENV_ID,
        "-f",
        made_agents,
        "-o",
        tmp_path / "out",
        "--n-eval-episodes",
        4,
        *how,
    ]
    subcommand = ["judge"] if method == "judge" else []
    done = run(hub.url, home, *subcommand, *options, "--no-report", "--push-to-hub", f"me/{method}", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert said in hub.repos[f"me/{method}"].files["README.md"].decode()
    algo = next((tmp_path / "out").iterdir()).name
    kept = client(f"fingerprint(load_agent({algo!r}, {ENV_ID!r}, {str(tmp_path / 'out')!r}))")
    pulled = f"load_agent({algo!r}, {ENV_ID!r}, 'none', organization='me', repo_name={method!r})"
    assert client(f"fingerprint({pulled})") == kept


def test_a_search_does_not_start_if_its_push_cannot_work(hub, home, made_agents, tmp_path):
    options = ["--algo", "a2c", "--env", ENV_ID, "-f", made_agents, "-o", tmp_path / "out", *FAST]
    done = run(hub.url, home, *options, "--push-to-hub", "me")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "the Hub takes nothing without a token; run `hf auth login`" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_failed_push_keeps_the_result_and_can_be_tried_again(hub, home, made_agents, tmp_path):
    options = ["--algo", "a2c", "--env", ENV_ID, "-f", made_agents, "-o", tmp_path / "out", *FAST]
    done = run(hub.url, home, *options, "--push-to-hub", "me", HF_TOKEN=STRANGER)
    run_folder = tmp_path / "out" / "a2c" / f"{ENV_ID}_1"
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "decision: " in done.stdout
    assert (run_folder / f"{ENV_ID}.zip").exists()
    command = re.search(r"to try again: sb3-refine (.*)\n", done.stderr).group(1)
    assert command == f"push {run_folder} --organization me"
    done = run(hub.url, home, *command.split(), HF_TOKEN=TOKEN)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"pushed to {hub.url}/me/a2c-{ENV_ID}\n"
    assert hub.repos[f"me/a2c-{ENV_ID}"].files[ZIP] == (run_folder / f"{ENV_ID}.zip").read_bytes()


def test_huggingface_sb3_and_the_zoo_load_a_pushed_agent(hub, client, run_folder, tmp_path):
    pytest.importorskip("huggingface_sb3")
    pytest.importorskip("rl_zoo3")
    pytest.importorskip("requests", reason="rl_zoo3.load_from_hub needs requests, and does not depend on it")
    hub.tokens["hf_zoo"] = ["zoo"]
    client(f"push({str(run_folder)!r}, 'zoo')", "hf_zoo")
    fetched = client(f"__import__('huggingface_sb3').load_from_hub('zoo/a2c-{ENV_ID}', {ZIP!r})")
    assert Path(fetched).read_bytes() == (run_folder / f"{ENV_ID}.zip").read_bytes()
    client(
        "__import__('importlib').import_module('rl_zoo3.load_from_hub').download_from_hub("
        f"'a2c', __import__('huggingface_sb3').EnvironmentName({ENV_ID!r}), 0, {str(tmp_path / 'logs')!r}, 'zoo')"
    )
    there = tmp_path / "logs" / "a2c" / f"{ENV_ID}_1"
    assert (there / f"{ENV_ID}.zip").read_bytes() == (run_folder / f"{ENV_ID}.zip").read_bytes()
    ours = (run_folder / ENV_ID / "vecnormalize.pkl").read_bytes()
    assert (there / ENV_ID / "vecnormalize.pkl").read_bytes() == ours
