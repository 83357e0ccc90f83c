"""`python -m hjepa_jax.tools.fuzz TARGET`: see `hjepa_jax.tools.fuzz.harness`."""

from hjepa_jax.tools.fuzz.harness import main

if __name__ == "__main__":
    main()
