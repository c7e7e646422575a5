"""Conversations with a cluster on the small model of `conftest.py`."""

PROMPT = "I see the red cat"
IDS = [1, 3, 7, 14, 16, 19, 2]
"""What the template makes of `PROMPT`."""
TOLERANCE = 0.02


async def generated(cluster, prompt=PROMPT, **options) -> list[int]:
    async for _ in cluster.generate(prompt, **options):
        pass
    return cluster.usage.token_ids


async def text_of(cluster, prompt=PROMPT, **options) -> str:
    return "".join([token.text async for token in cluster.generate(prompt, **options)])
