"""Where labels come from and what classes are called."""
