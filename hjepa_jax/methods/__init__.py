"""Methods of self-supervised learning: what is trained beside the encoder, and by which loss."""
