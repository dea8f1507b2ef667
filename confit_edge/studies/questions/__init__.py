"""One file per question. Any file here that defines a `STUDY` is a study; it needs no registration."""
