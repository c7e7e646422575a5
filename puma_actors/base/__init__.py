"""The base of every wing: tasks, threads, logs, certificates, checked tables, foreign text.

Nothing here deals with frames, roles or models.
"""
