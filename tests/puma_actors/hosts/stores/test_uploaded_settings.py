"""What a model says of itself is part of what its owner uploads."""

import json
import shutil
from pathlib import Path

from hosts import hosts

from puma_actors.api.local import LocalCluster
from puma_actors.api.remote import RemoteCluster


async def test_settings_of_the_choice_of_tokens(
    folder: Path, certificates: Path, model: Path, tmp_path: Path
) -> None:
    async def answer(cluster: LocalCluster | RemoteCluster) -> list[int | None]:
        return [token.id async for token in cluster.generate("I see", max_new_tokens=4)]

    async with LocalCluster.from_pretrained(model) as local:
        usual = await answer(local)
    copy = shutil.copytree(model, tmp_path / "copy")
    said = {"suppress_tokens": [usual[0]], "no_repeat_ngram_size": 1, "repetition_penalty": 1.2}
    (copy / "generation_config.json").write_text(json.dumps(said))
    async with LocalCluster.from_pretrained(copy) as local:
        expected = await answer(local)
    assert expected[0] != usual[0]
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(copy)
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            assert await answer(remote) == expected
            assert remote.of_model({}) == {**said, "suppress_tokens": (usual[0],)}
