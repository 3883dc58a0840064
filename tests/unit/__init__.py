"""One module each, in one process; the folders are those of mailroom/."""
