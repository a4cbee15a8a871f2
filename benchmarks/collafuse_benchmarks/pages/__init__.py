"""Reports for people, and the folder that keeps them."""
