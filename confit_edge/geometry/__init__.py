"""The geometry of an embedding: measures of arrays, and their plots. Independent of runs."""
