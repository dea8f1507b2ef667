"""What an embedding looks like: measures of arrays, and their plots. It knows of no run."""
