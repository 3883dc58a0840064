"""The service as its users have it: commands, pages in a browser, examples, whole roads of mails."""
