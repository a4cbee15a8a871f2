"""What a checkpoint's network is, and how one asks a conditional one for a class."""
