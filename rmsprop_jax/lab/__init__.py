"""What the experiments of `demo`, `bench` and `claims` are made of."""
