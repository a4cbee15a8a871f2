"""What every measurement shares: clocks, samples, their summary, the work that is timed."""
