"""Self-supervised learning methods: their losses and the parts trained with the encoder."""
