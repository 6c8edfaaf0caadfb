"""The experiments of `rmsprop-jax claims`: what is said of RMSProp, tested."""
