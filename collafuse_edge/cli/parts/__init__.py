"""What commands share: options, output, paths, streams."""
