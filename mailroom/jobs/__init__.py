"""Work that runs before a mail goes: what types there are, and how they run apart from the mail."""
