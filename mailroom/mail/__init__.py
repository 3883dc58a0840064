"""The trade: what a mail is, how it is written down, and how it is handed to the next hop."""
