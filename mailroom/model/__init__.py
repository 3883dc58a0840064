"""The model that all others speak of: messages, accounts, attempts, errors, ids.

It knows nothing of the rest.
"""
