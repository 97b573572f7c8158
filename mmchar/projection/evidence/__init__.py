"""What others measured, held against projections: read, compared, fitted to. May use all of `projection`."""
