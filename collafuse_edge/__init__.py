"""What people touch: command line, data sets, training, hand-over, evaluation."""
