"""ResNet encoder, projector and predictors."""
