"""Pipelines under their former path."""

from puma_actors.api.pipelines import PrivatePipeline, TextPipeline, local_pipeline, pipeline

__all__ = ["PrivatePipeline", "TextPipeline", "local_pipeline", "pipeline"]
