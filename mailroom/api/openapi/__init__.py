"""The description of the API, and what is held to it."""
