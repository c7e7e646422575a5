"""Tasks on texts, as in transformers' pipelines: inputs and outputs only, without a runtime."""
