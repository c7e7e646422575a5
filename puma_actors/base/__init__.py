"""What every wing stands on: tasks, threads, logs, certificates, tables, texts from elsewhere.

Nothing here knows a frame, a role or a model.
"""
