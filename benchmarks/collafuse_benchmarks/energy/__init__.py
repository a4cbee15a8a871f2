"""What a head takes of energy."""
