"""Speaking SMTP: how a mail is written down, and how it is handed to the next hop."""
