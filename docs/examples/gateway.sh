#!/usr/bin/env bash
# The gateway's interface with curl: gateway.sh CHAT-MODEL EMBEDDING-MODEL
# README.md says how to start. The key is not an argument: those show in lists of processes.
set -euo pipefail

ask() {
  curl --silent --show-error --fail-with-body --no-buffer \
    --header @<(printf 'Authorization: Bearer %s\n' "$OPENAI_API_KEY") \
    --header "Content-Type: application/json" "$@"
}

echo "-- the models"
ask "$OPENAI_BASE_URL/models"

echo; echo "-- who computes, and what they learn"
ask "$OPENAI_BASE_URL/puma/session"

echo; echo "-- an answer in one piece"
ask "$OPENAI_BASE_URL/chat/completions" --data @- <<END
{"model": "$1", "max_completion_tokens": 8,
 "messages": [{"role": "user", "content": "What is the capital of France?"}]}
END

echo; echo "-- the same, token by token"
ask "$OPENAI_BASE_URL/chat/completions" --data @- <<END
{"model": "$1", "max_completion_tokens": 8, "stream": true,
 "messages": [{"role": "user", "content": "What is the capital of France?"}]}
END

echo; echo "-- a vector"
ask "$OPENAI_BASE_URL/embeddings" --data @- <<END
{"model": "$2", "input": "The spare key hangs behind the painting."}
END
echo
