"""What each role does once its channels are open: owner, client, dealer and evaluators.

A role knows its messages, not where its peers run.
"""
