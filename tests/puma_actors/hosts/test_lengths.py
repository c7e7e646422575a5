"""Lengths are public, and an owner chooses what makes them: what SECURITY.md says about it."""

import json
from pathlib import Path

import pytest
from hosts import Hosts, hosts
from reference import save_model, save_tokenizer, set_config

from puma_actors.api.remote import RemoteCluster

WORD = "cat"
EXTRA = 30
SIGNAL = (
    "{% for m in messages %}{{ m.content }} {% endfor %}"
    f"{{% if '{WORD}' in messages[0].content %}}{{{{ 'I ' * {EXTRA} }}}}{{% endif %}}"
)


async def signal(cluster: Hosts, tokenizer: Path | None, *, raw: bool) -> int:
    """How many tokens more the parties see when the word occurs."""
    remote = await RemoteCluster.open(cluster.client, "tiny", tokenizer=tokenizer)
    async with remote:
        lengths = []
        for word in (WORD, "the"):
            ids = remote.encode(f"I see {word}", raw=raw)
            async for _ in remote.generate(ids, max_new_tokens=1):
                pass
            lengths.append(len(remote.usage.prompt_ids))
    return lengths[0] - lengths[1]


@pytest.mark.parametrize("how", ["template", "tokenizer"])
async def test_a_signal_in_a_published_tokenizer(
    how: str, folder: Path, certificates: Path, tmp_path: Path
) -> None:
    model = set_config(save_model(tmp_path / "model", seed=3))
    own = tmp_path / "own"
    own.mkdir()
    save_tokenizer(own)
    save_tokenizer(model, template=SIGNAL if how == "template" else None)
    if how == "tokenizer":
        file = model / "tokenizer.json"
        content = json.loads(file.read_text())
        longer = f"{WORD} " + "I " * EXTRA
        replace = {"type": "Replace", "pattern": {"String": WORD}, "content": longer}
        file.write_text(json.dumps({**content, "normalizer": replace}))
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        assert await signal(cluster, None, raw=False) == EXTRA
        assert await signal(cluster, None, raw=True) == (0 if how == "template" else EXTRA)
        for raw in (False, True):
            assert await signal(cluster, own, raw=raw) == 0
