"""What a model's head does with texts: the tasks of transformers' pipelines, without a runtime."""
