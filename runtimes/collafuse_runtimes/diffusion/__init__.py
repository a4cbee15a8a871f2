"""The arithmetic of the split: plan, schedules, levels, samplers, noise. Numbers in, numbers out."""
