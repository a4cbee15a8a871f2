"""`python -m collafuse_edge`, which is also what `accelerate launch -m` starts."""

from collafuse_edge.cli import main

main()
