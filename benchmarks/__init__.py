"""How fast, how large: see README.md in this folder."""
