"""The data that all other packages work with: messages, accounts, attempts, errors, ids.

It imports nothing of ours but mailroom.process.
"""
