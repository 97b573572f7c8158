"""A counted generation shared out over several GPUs: patches, sequences, tensors and the messages between them."""
