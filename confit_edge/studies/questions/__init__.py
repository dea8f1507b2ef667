"""One file a question. A file here with a `STUDY` in it is a study; nothing else needs to know of it."""
