"""The experiment of `rmsprop-jax demo`: RMSProp and its family on two small tasks."""
