"""A streamed answer through the gateway, by OpenAI's own client. README.md says how to start."""

import argparse

from openai import OpenAI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question")
    parser.add_argument("--model", required=True, help="a name that the gateway serves")
    parser.add_argument("--tokens", type=int, default=32, help="most tokens of the answer")
    given = parser.parse_args()

    client = OpenAI()  # OPENAI_BASE_URL and OPENAI_API_KEY
    stream = client.chat.completions.create(
        model=given.model,
        messages=[{"role": "user", "content": given.question}],
        max_completion_tokens=given.tokens,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
        if chunk.usage is not None:
            cost = chunk.usage.model_dump()["puma"]
            print(
                f"\n{chunk.usage.completion_tokens} tokens, {cost['rounds']:,} rounds, "
                f"{cost['online_bytes'] / 1e6:.1f} MB between the parties"
            )


if __name__ == "__main__":
    main()
