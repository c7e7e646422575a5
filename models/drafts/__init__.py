"""Drafts of an answer: tokens that the client proposes, so that one step can evaluate several."""
