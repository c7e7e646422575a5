"""Notes searched by meaning, through the gateway: the parties see neither notes nor question.

README.md says how to start.
"""

import argparse

import numpy as np
from openai import OpenAI

NOTES = [
    "The spare key hangs behind the painting in the hall.",
    "Dentist on Thursday at nine.",
    "Grandmother's recipe for plum cake.",
    "The car was serviced in March.",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question")
    parser.add_argument("--model", required=True, help="a name that the gateway serves")
    given = parser.parse_args()

    client = OpenAI()  # OPENAI_BASE_URL and OPENAI_API_KEY
    answer = client.embeddings.create(model=given.model, input=[given.question, *NOTES])
    vectors = np.array([each.embedding for each in answer.data])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = vectors[1:] @ vectors[0]
    for at in np.argsort(-likeness):
        print(f"{likeness[at]:6.3f}  {NOTES[at]}")


if __name__ == "__main__":
    main()
