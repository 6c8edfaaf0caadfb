"""The experiments of `rmsprop-jax bench`: what a claim of this package rests on."""
