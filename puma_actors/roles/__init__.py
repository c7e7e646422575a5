"""The work of each role once its channels are open: owner, client, dealer and evaluators.

A role knows its messages, not where its peers run.
"""
