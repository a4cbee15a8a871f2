"""Training of server and client denoisers (torch, diffusers, accelerate)."""
