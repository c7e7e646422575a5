"""No word of a prompt or an answer gets into a log, an error or a file; keys; the page."""

import logging
import re
from html.parser import HTMLParser

import httpx2 as httpx
import openai
import pytest
from conversation import PROMPT
from gateway import KEY, NAME, gateway
from reference import usual_logs

from protocols.errors import ConfigError, PeerFailed
from puma_actors.serve import keys
from puma_actors.serve.page import content, policy

CANARY = "xyzzyplugh"


async def test_no_prompt_in_logs_errors_or_files(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    records = []

    class Keep(logging.Handler):
        def emit(self, record):
            records.append((record.name.partition(".")[0], record.getMessage()))

    root = logging.getLogger()
    keep = Keep(level=0)
    root.addHandler(keep)
    monkeypatch.setattr(root, "level", 0)
    with usual_logs():
        async with gateway(folder) as served:
            client = served.client()
            chat = [{"role": "user", "content": f"{PROMPT} {CANARY}"}]
            whole = await client.chat.completions.create(model=NAME, messages=chat, max_tokens=6)
            answer = whole.choices[0].message.content
            assert len(answer) > 12
            bad = [
                {"messages": chat, "temperature": CANARY},
                {"messages": [{"role": "user", "content": {"text": CANARY}}]},
                {"messages": [{"role": CANARY, "content": CANARY}]},
                {"messages": chat, "max_tokens": CANARY},
                {"messages": chat, "stop": [1, CANARY]},
                {"messages": chat, "logit_bias": {CANARY: 1}},
                {"messages": CANARY},
            ]
            for body in bad:
                with pytest.raises(openai.BadRequestError) as refused:
                    await client.post(
                        "/chat/completions", cast_to=object, body={"model": NAME, **body}
                    )
                assert CANARY not in refused.value.response.text
            async with httpx.AsyncClient() as raw:
                broken = await raw.post(
                    f"{served.base}/v1/chat/completions",
                    headers={"authorization": f"Bearer {KEY}", "content-type": "application/json"},
                    content=f'{{"model": "{CANARY}',
                )
                query = await raw.get(f"{served.base}/?q={CANARY}")
            assert (broken.status_code, query.status_code) == (400, 404)
            assert CANARY not in broken.text

            async def lost(*args, **kwargs):
                raise PeerFailed("dealer has gone")
                yield

            monkeypatch.setattr(served.models[NAME].cluster(), "generate", lost)
            with pytest.raises(openai.InternalServerError) as failed:
                await client.chat.completions.create(model=NAME, messages=chat, max_tokens=2)
            assert failed.value.status_code == 502
            assert CANARY not in str(failed.value)
            async with httpx.AsyncClient(headers={"authorization": f"Bearer {KEY}"}) as raw:
                numbers = (await raw.get(f"{served.base}/metrics")).text
            assert "puma_requests_refused_total" in numbers
            assert not any(secret in numbers for secret in (CANARY, KEY, PROMPT, answer))
    root.removeHandler(keep)
    out, err = capfd.readouterr()
    said = {name for name, line in records if CANARY in line}
    assert said  # the clients' own logs, which shows that all logs were heard
    assert said <= {"openai", "httpx2"}
    assert not any(answer in line for _, line in records)
    for secret in (CANARY, answer):
        assert secret not in "".join((out, err))
        assert not any(secret.encode() in path.read_bytes() for path in tmp_path.rglob("*"))


# -- keys ------------------------------------------------------------------------------------------


def test_a_key_is_made_once_and_for_its_owner_only(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = keys.key_file()
    key = keys.stored_key(path)
    assert keys.stored_key(path) == key
    assert len(key) > 40
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        keys.stored_key(path)


@pytest.mark.parametrize("key", ["", "short", "x" * 201, "with space in it here", "schlüssel" * 4])
def test_unusable_keys(key, tmp_path):
    with pytest.raises(ConfigError, match="16 to 200 characters"):
        keys.check_key(key, "--api-key")
    path = tmp_path / "serve.key"
    path.write_text(key)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        keys.stored_key(path)


# -- the page --------------------------------------------------------------------------------------


class Attributes(HTMLParser):
    """Everything in a page that could load something, or run by itself."""

    def __init__(self):
        super().__init__()
        self.loads, self.runs, self.labels, self.ids = [], [], set(), []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in {"src", "href", "action", "data", "poster", "srcset"}:
                self.loads.append(value)
            if name.startswith("on") or name == "style":
                self.runs.append((tag, name))
            if name == "for":
                self.labels.add(value)
            if name == "id":
                self.ids.append(value)


def test_the_page_loads_nothing_and_runs_only_its_own_script():
    page = Attributes()
    page.feed(content())
    assert page.loads == ["data:,"]
    assert page.runs == []
    assert len(page.ids) == len(set(page.ids))
    assert page.labels <= set(page.ids)
    rules = dict(rule.split(" ", 1) for rule in policy().split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'self'"
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", rules["script-src"])
    script = content().partition("<script>")[2]
    for risky in ("innerHTML", "insertAdjacentHTML", "document.write", "eval(", "http://", "//cdn"):
        assert risky not in script


async def test_the_page_is_served_with_its_policy(folder):
    async with gateway(folder) as served, httpx.AsyncClient() as raw:
        page = await raw.get(served.base)
    assert page.text == content()
    assert page.headers["content-security-policy"] == policy()
    assert page.headers["cache-control"] == "no-store"
    assert "set-cookie" not in page.headers
