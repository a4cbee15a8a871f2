"""How long a head takes."""
