"""Where to cut: both sides measured, joined, and one way chosen."""
